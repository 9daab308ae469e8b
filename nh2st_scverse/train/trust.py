"""How far a prediction may be off, and how unlike the training tissue a spot looks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from scipy.optimize import nnls
from sklearn.decomposition import PCA
from sklearn.neighbors import NearestNeighbors

from nh2st_scverse.data.section import Section

N_COMPONENTS = 32
N_REFERENCES = 1000  # spots of the training sections that are kept
N_NEAREST = 5
FAMILIAR = 0.95  # share of the training spots that are as near to those of other groups as a novelty of 1 says
FLAT = 1e-3  # of the largest spread: features that vary less say nothing
LEAST = 1e-3  # of the variance of the gene: no prediction is certain


def fit_spread(predicted: np.ndarray, measured: np.ndarray) -> np.ndarray:
    """Variance of the residuals of each gene as a straight line over its prediction: (2, G), intercept and slope.

    Counts vary more where there are more of them, so the slope is not negative. `predicted` and `measured` (N, G) are
    of spots that the predictors never saw.
    """
    squares = (measured - predicted) ** 2
    least = LEAST * measured.var(axis=0) + 1e-9
    found = np.empty((2, predicted.shape[1]))
    for g, (p, s) in enumerate(zip(predicted.T, squares.T, strict=True)):
        line = nnls(np.stack([np.ones_like(p), np.maximum(p, 0)], axis=1).astype(float), s.astype(float))[0]
        variance = np.maximum(line[0] + line[1] * np.maximum(p, 0), least[g])
        found[:, g] = line * np.mean(s / variance)  # standardised residuals: variance 1
    found[0] = np.maximum(found[0], least)
    return found.astype(np.float32)


def spread(line: np.ndarray, predicted: np.ndarray) -> np.ndarray:
    """Standard deviation (n, G) of predictions, from the line of :func:`fit_spread`."""
    return np.sqrt(line[0] + line[1] * np.maximum(predicted, 0)).astype(np.float32)


@dataclass(frozen=True)
class Novelty:
    """Distance of the features of a spot to those of training spots, in principal components of variance 1."""

    mean: np.ndarray  # (F,)
    matrix: np.ndarray  # (F, C)
    references: np.ndarray  # (M, C)
    scale: float  # distance that counts as 1

    @classmethod
    def fit(cls, sections: Sequence[Section], groups: Sequence[str], seed: int = 0) -> Novelty:
        """Learn what the training sections look like; spots of other groups tell how far apart like tissue may be."""
        rng = np.random.default_rng(seed)
        each = N_REFERENCES // len(sections)
        features, group = [], []
        for section, name in zip(sections, groups, strict=True):
            assert section.features is not None
            usable = np.flatnonzero(section.usable)
            chosen = rng.permutation(usable)[:each]
            features.append(section.features[chosen])
            group += [name] * len(chosen)
        x = np.concatenate(features)
        mean, std = x.mean(axis=0), x.std(axis=0)
        weight = np.where(std > FLAT * std.max(), 1 / np.maximum(std, 1e-12), 0)
        n = min(N_COMPONENTS, len(x) // 2, x.shape[1])
        pca = PCA(n, svd_solver="randomized", random_state=seed).fit((x - mean) * weight)
        variance = np.maximum(pca.explained_variance_, 1e-6 * pca.explained_variance_[0])
        matrix = weight[:, None] * pca.components_.T / np.sqrt(variance)
        points = (x - mean) @ matrix
        names = np.array(group)
        apart = np.concatenate(
            [
                _distance(points[names != name], points[names == name])
                if (names != name).any()
                else _distance(points, points, itself=True)
                for name in np.unique(names)
            ]
        )
        mean, matrix, points = (v.astype(np.float32) for v in (mean, matrix, points))
        return cls(mean, matrix, points, float(np.quantile(apart, FAMILIAR)))

    def arrays(self) -> dict[str, np.ndarray]:
        """What to keep of it."""
        return {
            "mean": self.mean,
            "matrix": self.matrix,
            "references": self.references,
            "scale": np.array([self.scale]),
        }

    @classmethod
    def of(cls, arrays: Mapping[str, np.ndarray]) -> Novelty:
        """Read :meth:`arrays`."""
        return cls(arrays["mean"], arrays["matrix"], arrays["references"], float(arrays["scale"][0]))

    def score(self, features: np.ndarray) -> np.ndarray:
        """Novelty (n,) of spots: 1 is as far from the training spots as 5 % of these are from those of other groups."""
        return _distance(self.references, (features - self.mean) @ self.matrix) / self.scale


def _distance(references: np.ndarray, points: np.ndarray, *, itself: bool = False) -> np.ndarray:
    """Mean distance (n,) to the nearest references."""
    n = min(N_NEAREST + itself, len(references))
    distance = NearestNeighbors(n_neighbors=n).fit(references).kneighbors(points)[0]
    return np.asarray(distance[:, int(itself) :].mean(axis=1))
