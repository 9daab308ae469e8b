"""Baselines on the features that NH2ST gets: each takes components of training and test spots, and predicts the latter.

Every baseline can be given three inputs, by the ending of its name:

==============  =======================================================================================
``ridge``       the spot: all fields of view, standardised as for NH2ST
``ridge_context``  the same, and beside it the mean of the spots around, as much as NH2ST sees
``ridge@patch``  as the field uses it: one standard patch, the features as the encoder gives them
==============  =======================================================================================

Two are controls, which show how far one gets without looking closely: ``composition`` knows only which of a few kinds
of tissue a spot is, ``position`` only where in its section it lies.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from functools import partial

import numpy as np
from sklearn.cluster import KMeans
from sklearn.compose import TransformedTargetRegressor
from sklearn.decomposition import PCA
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import Ridge
from sklearn.model_selection import GridSearchCV, GroupKFold, KFold
from sklearn.neighbors import KNeighborsRegressor
from sklearn.neural_network import MLPRegressor
from sklearn.preprocessing import StandardScaler

from nh2st_scverse.metrics import pearson
from nh2st_scverse.nn.config import Standardise
from nh2st_scverse.tl._retrieval import retrieval
from nh2st_scverse.train.data import Data
from nh2st_scverse.train.tensors import section_features

Baseline = Callable[[np.ndarray, np.ndarray, np.ndarray, np.ndarray, int], np.ndarray]
PENALTIES = 10.0 ** np.arange(1, 8)
N_COMPONENTS = {"": 256, "_context": 512, "@patch": 256, "@position": 9}
N_KINDS = 10  # of tissue, that the composition is told by


def mean(x: np.ndarray, y: np.ndarray, groups: np.ndarray, x_test: np.ndarray, seed: int) -> np.ndarray:
    """Mean of each gene over the training spots."""
    return np.repeat(y.mean(axis=0, keepdims=True), len(x_test), axis=0)


def ridge(x: np.ndarray, y: np.ndarray, groups: np.ndarray, x_test: np.ndarray, seed: int) -> np.ndarray:
    """Ridge regression, its penalty chosen by group."""
    return _tuned(Ridge(), {"alpha": list(PENALTIES)}, x, y, groups).predict(x_test)


def knn(x: np.ndarray, y: np.ndarray, groups: np.ndarray, x_test: np.ndarray, seed: int) -> np.ndarray:
    """Mean of the nearest training spots, their number chosen by group."""
    numbers = [n for n in (5, 10, 20, 50, 100) if n < len(x) // 2]
    return _tuned(KNeighborsRegressor(), {"n_neighbors": numbers}, x, y, groups).predict(x_test)


def mlp(x: np.ndarray, y: np.ndarray, groups: np.ndarray, x_test: np.ndarray, seed: int) -> np.ndarray:
    """A network of one hidden layer, with early stopping."""
    scale = x.std(axis=0).max()  # one for all: with each component at variance 1, the least of them drown the rest
    network = MLPRegressor(hidden_layer_sizes=(256,), alpha=10.0, early_stopping=True, max_iter=200, random_state=seed)
    scaled = TransformedTargetRegressor(network, transformer=StandardScaler(), check_inverse=False)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", category=ConvergenceWarning)  # long enough: a user cannot change it
        return scaled.fit(x / scale, y).predict(x_test / scale)


def composition(x: np.ndarray, y: np.ndarray, groups: np.ndarray, x_test: np.ndarray, seed: int) -> np.ndarray:
    """Mean of the training spots of the same kind of tissue: of the same cluster of the features."""
    kinds = KMeans(min(N_KINDS, len(x)), n_init=3, random_state=seed).fit(x)
    means = np.stack([y[kinds.labels_ == kind].mean(axis=0) for kind in range(kinds.n_clusters)])
    return means[kinds.predict(x_test)]


METHODS: dict[str, Baseline] = {"mean": mean, "knn": knn, "ridge": ridge, "mlp": mlp, "retrieval": retrieval}
BASELINES: dict[str, tuple[Baseline, str]] = {
    name + ending: (method, ending)
    for ending in ("", "_context", "@patch")
    for name, method in METHODS.items()
    if name != "mean" or ending == ""
} | {"composition": (composition, ""), "position": (ridge, "@position")}


def inputs(data: Data, i: int, ending: str, *, standardise: Standardise, dim: int) -> np.ndarray:
    """What a baseline sees of the spots of a section: (n_spots, F).

    Parameters
    ----------
    data, i
        Features, and the position of the section.
    ending
        ``""``, ``"_context"``, ``"@patch"`` or ``"@position"``: of the input of the baseline.
    standardise
        How features are standardised within the section.
    dim
        Features of one field of view; those of the standard patch come first.
    """
    section = data.sections[i]
    if ending == "@position":  # a smooth surface: x and y up to the third power, in halves of the section's extent
        x, y = ((section.xy_um - section.xy_um.mean(axis=0)) / (np.ptp(section.xy_um, axis=0) / 2 + 1e-9)).T
        return np.stack([x, y, x * x, x * y, y * y, x**3, x * x * y, x * y * y, y**3], axis=1)
    if ending == "@patch":
        return section_features(section, data.input(i), "none")[:, :dim]
    own = section_features(section, data.input(i), standardise)
    if ending == "":
        return own
    nodes, there = section.neighbours.nodes[:, 1:], section.neighbours.mask[:, 1:, None]  # the first is the spot itself
    around = (own[nodes] * there).sum(axis=1) / np.maximum(there.sum(axis=1), 1)
    return np.concatenate([own, around], axis=1)


def predict(
    names: Sequence[str], train: Data, test: Data, *, standardise: Standardise, dim: int, seed: int
) -> dict[str, list[np.ndarray]]:
    """Train baselines on some sections and predict others: for each name an array (n_spots, G) for each test section.

    The components are those of the training spots, computed once for all baselines with the same input. Features of
    each kind (`blocks`: their numbers) enter with equal total variance, as they do for NH2ST.
    """
    blocks = train.blocks
    share = np.repeat(np.array(blocks, dtype=float) ** -0.5, blocks) if len(blocks) > 1 else np.ones(1)
    ready = [train.trainable(i) for i in range(len(train.sections))]
    y = np.concatenate([train.target(i)[known] for i, known in enumerate(ready)])
    group = np.repeat(np.asarray(train.groups), [int(known.sum()) for known in ready])
    cuts = np.cumsum([s.n_spots for s in test.sections])[:-1]
    predicted = {}
    for ending in dict.fromkeys(BASELINES[name][1] for name in names):
        of = partial(inputs, ending=ending, standardise=standardise, dim=dim)
        x = np.concatenate([of(train, i)[known] for i, known in enumerate(ready)])
        x_test = np.concatenate([of(test, i) for i in range(len(test.sections))])
        n = min(N_COMPONENTS[ending], x.shape[1], len(x) // 2)  # a fold of the tuning has fewer spots
        scaler, weight = StandardScaler().fit(x), np.resize(np.ones(1) if ending == "@position" else share, x.shape[1])
        x, x_test = scaler.transform(x) * weight, scaler.transform(x_test) * weight
        components = PCA(n, random_state=seed, svd_solver="randomized").fit(x)
        x, x_test = components.transform(x), components.transform(x_test)
        for name in names:
            method, wanted = BASELINES[name]
            if wanted == ending:
                predicted[name] = np.split(method(x, y, group, x_test, seed), cuts)
    return predicted


def _tuned(
    estimator: object, grid: dict[str, Sequence[float]], x: np.ndarray, y: np.ndarray, groups: np.ndarray
) -> GridSearchCV:
    def mean_pearson(fitted: Ridge | KNeighborsRegressor, x_held: np.ndarray, y_held: np.ndarray) -> float:
        scores = pearson(y_held, fitted.predict(x_held))
        return float(np.nan_to_num(scores).mean())

    n_groups = len(np.unique(groups))
    search = GridSearchCV(
        estimator, grid, scoring=mean_pearson, cv=GroupKFold(min(5, n_groups)) if n_groups > 1 else KFold(4)
    )
    return search.fit(x, y, groups=groups) if n_groups > 1 else search.fit(x, y)  # KFold: runs of rows of a section
