"""Baselines on the features that NH2ST gets: each takes training and test features, and returns predictions."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from sklearn.compose import TransformedTargetRegressor
from sklearn.decomposition import PCA
from sklearn.linear_model import Ridge
from sklearn.model_selection import GridSearchCV, GroupKFold, KFold
from sklearn.neighbors import KNeighborsRegressor
from sklearn.neural_network import MLPRegressor
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import StandardScaler

from nh2st_scverse.metrics import pearson

Baseline = Callable[[np.ndarray, np.ndarray, np.ndarray, np.ndarray, int], np.ndarray]
PENALTIES = 10.0 ** np.arange(1, 8)


def mean(x: np.ndarray, y: np.ndarray, groups: np.ndarray, x_test: np.ndarray, seed: int) -> np.ndarray:
    """Mean of each gene over the training spots."""
    return np.repeat(y.mean(axis=0, keepdims=True), len(x_test), axis=0)


def ridge(x: np.ndarray, y: np.ndarray, groups: np.ndarray, x_test: np.ndarray, seed: int) -> np.ndarray:
    """PCA to 256 components and ridge regression, its penalty chosen by group."""
    return _tuned(_components(x, seed, Ridge()), {"ridge__alpha": PENALTIES}, x, y, groups).predict(x_test)


def knn(x: np.ndarray, y: np.ndarray, groups: np.ndarray, x_test: np.ndarray, seed: int) -> np.ndarray:
    """Mean of the nearest training spots in the space of the components, their number chosen by group."""
    numbers = [n for n in (5, 10, 20, 50, 100) if n < len(x) // 2]
    return _tuned(
        _components(x, seed, KNeighborsRegressor()), {"kneighborsregressor__n_neighbors": numbers}, x, y, groups
    ).predict(x_test)


def mlp(x: np.ndarray, y: np.ndarray, groups: np.ndarray, x_test: np.ndarray, seed: int) -> np.ndarray:
    """A network of one hidden layer on the components, with early stopping."""
    network = MLPRegressor((256,), alpha=1.0, early_stopping=True, max_iter=100, random_state=seed)
    scaled = TransformedTargetRegressor(network, transformer=StandardScaler())
    return _components(x, seed, StandardScaler(), scaled).fit(x, y).predict(x_test)


BASELINES: dict[str, Baseline] = {"mean": mean, "knn": knn, "ridge": ridge, "mlp": mlp}


def _components(x: np.ndarray, seed: int, *steps: object) -> Pipeline:
    n = min(256, x.shape[1], len(x) // 2)  # a fold of the tuning has fewer spots
    return make_pipeline(StandardScaler(), PCA(n, random_state=seed, svd_solver="randomized"), *steps)


def _tuned(pipeline: Pipeline, grid: dict, x: np.ndarray, y: np.ndarray, groups: np.ndarray) -> GridSearchCV:
    def mean_pearson(estimator: Pipeline, x_held: np.ndarray, y_held: np.ndarray) -> float:
        return float(np.nan_to_num(np.nanmean(pearson(y_held, estimator.predict(x_held)))))

    n_groups = len(np.unique(groups))
    search = GridSearchCV(
        pipeline, grid, scoring=mean_pearson, cv=GroupKFold(min(5, n_groups)) if n_groups > 1 else KFold(4)
    )
    return search.fit(x, y, groups=groups) if n_groups > 1 else search.fit(x, y)  # KFold: runs of rows of a section
