"""How far a prediction may be off, and how unlike the training tissue a spot looks."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from scipy.optimize import nnls
from scipy.stats import norm
from sklearn.decomposition import PCA

from nh2st_scverse._constants import LEVELS
from nh2st_scverse.data.feature_cache import PART
from nh2st_scverse.train.data import Data

SMALLEST_VARIANCE = 1e-3  # of the variance of the gene: no prediction is certain
MOST_DISAGREEMENT = 0.5  # of the variance, taken off for it: members that disagree much are not right together
N_COMPONENTS = 16
N_SPOTS = 1000  # of the training sections that tell what is familiar
FAMILIAR = 0.95  # share of a training group that is as near to the other groups as a novelty of 1 says


@dataclass(frozen=True)
class Residuals:
    """How far predictions are from the measured values of tissue that the predictors never saw.

    The variance of a gene is a straight line over its prediction: counts vary more where there are more of them. How
    wide an interval is in standard deviations is told by the residuals too, for those of sparse genes are not normal.
    """

    line: np.ndarray  # (2, G) intercept and slope of the variance
    widths: np.ndarray  # (3, G) standard deviations on either side that hold LEVELS of the measured values

    @classmethod
    def fit(cls, predicted: np.ndarray, measured: np.ndarray) -> Residuals:
        """Learn from predictions and measured values (N, G) of held-out spots; the slope is not negative."""
        squares = (measured - predicted) ** 2
        least = SMALLEST_VARIANCE * measured.var(axis=0) + 1e-9
        line = np.empty((2, predicted.shape[1]))
        for g, (p, s) in enumerate(zip(predicted.T, squares.T, strict=True)):
            found = nnls(np.stack([np.ones_like(p), np.maximum(p, 0)], axis=1).astype(float), s.astype(float))[0]
            variance = np.maximum(found[0] + found[1] * np.maximum(p, 0), least[g])
            line[:, g] = found * np.mean(s / variance)  # standardised residuals: variance 1
        line[0] = np.maximum(line[0], least)
        away = np.sqrt(squares) / np.sqrt(_variance(line, predicted))
        return cls(line.astype(np.float32), np.quantile(away, LEVELS, axis=0).astype(np.float32))

    def std(self, predicted: np.ndarray, disagreement: np.ndarray | float = 0.0) -> np.ndarray:
        """Standard deviation (n, G) of predictions.

        Residuals of single members tell too much for the mean of them: its mean squared error is less than theirs by
        exactly their `disagreement` (G,), the variance among them (Krogh and Vedelsby 1995).
        """
        found = np.empty(predicted.shape, dtype=np.float32)
        for start in range(0, len(predicted), PART):  # of many spots, in place
            rows = slice(start, start + PART)
            variance = _variance(self.line, predicted[rows])
            found[rows] = np.sqrt(np.maximum(variance - disagreement, (1 - MOST_DISAGREEMENT) * variance))
        return found

    def array(self) -> np.ndarray:
        """What to keep of it: (5, G)."""
        return np.concatenate([self.line, self.widths])

    @classmethod
    def of(cls, array: np.ndarray) -> Residuals:
        """Read :meth:`array`; format 2 had the line alone, its intervals are those of a normal distribution."""
        normal = np.broadcast_to(norm.ppf(0.5 + np.array(LEVELS) / 2)[:, None], (len(LEVELS), array.shape[1]))
        return cls(array[:2], array[2:] if len(array) > 2 else normal.astype(np.float32))


def _variance(line: np.ndarray, predicted: np.ndarray) -> np.ndarray:
    return np.asarray(line[0] + line[1] * np.maximum(predicted, 0))


@dataclass(frozen=True)
class Novelty:
    """What the principal components of the training features leave unexplained of the features of a spot."""

    mean: np.ndarray  # (F,)
    matrix: np.ndarray  # (F, C)
    scale: float  # what counts as 1

    @classmethod
    def fit(cls, data: Data, seed: int = 0) -> Novelty:
        """Learn what the training sections look like; how unlike the others each group is tells what is familiar."""
        rng = np.random.default_rng(seed)
        features, group = [], []
        for i, section in enumerate(data.sections):
            chosen = rng.permutation(np.flatnonzero(section.usable))[: N_SPOTS // len(data.sections)]
            features.append(np.asarray(data.input(i, chosen), dtype=np.float32))
            group += [section.group] * len(chosen)
        x, names = np.concatenate(features), np.array(group)
        if len(set(group)) == 1:  # two halves judge each other: less strict than groups do
            names = rng.permutation(np.arange(len(x)) % 2)
        scale = max(
            np.quantile(_unexplained(x[names == name], *_components(x[names != name], seed)), FAMILIAR)
            for name in np.unique(names)
        )
        return cls(*_components(x, seed), float(scale))

    def arrays(self) -> dict[str, np.ndarray]:
        """What to keep of it."""
        return {"mean": self.mean, "matrix": self.matrix, "scale": np.array([self.scale])}

    @classmethod
    def of(cls, arrays: Mapping[str, np.ndarray]) -> Novelty | None:
        """Read :meth:`arrays`; that of format 2 noticed too little and is left out."""
        if set(arrays) != {"mean", "matrix", "scale"}:
            return None
        return cls(arrays["mean"], arrays["matrix"], float(arrays["scale"][0]))

    def score(self, features: np.ndarray) -> np.ndarray:
        """Novelty (n,) of spots: 5 % of the spots of the strangest training group have more than 1 for the others."""
        return _unexplained(features, self.mean, self.matrix) / self.scale


def _components(x: np.ndarray, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Mean (F,) and principal components (F, C) of features (N, F)."""
    n = min(N_COMPONENTS, len(x) // 2, x.shape[1] // 2)
    pca = PCA(n, svd_solver="randomized", random_state=seed).fit(x)
    return pca.mean_.astype(np.float32), np.ascontiguousarray(pca.components_.T, dtype=np.float32)


def _unexplained(x: np.ndarray, mean: np.ndarray, matrix: np.ndarray) -> np.ndarray:
    """Distance (n,) of features to the plane of the components."""
    away = x - mean
    return np.asarray(np.linalg.norm(away - away @ matrix @ matrix.T, axis=1))
