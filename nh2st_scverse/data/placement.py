"""Whether spots lie where their counts say: the same score for the spots as they are and as they might be meant.

Tissue that looks alike has like expression. How much of the leading components of expression a linear map of colours
and roughness of a small picture explains is largest where the spots belong; turned, mirrored, scaled or shifted, it is
less. A clearly better alternative names the mistake.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from scipy import sparse
from scipy.ndimage import gaussian_filter, uniform_filter
from scipy.spatial import cKDTree

from nh2st_scverse._constants import TARGET_SUM
from nh2st_scverse.data.pixels import remembered

ENOUGH_SPOTS = 100  # fewer fit an image anywhere
MOST_SPOTS = 600  # evenly chosen among more: the score takes no longer for a large section
N_GENES, N_COMPONENTS = 500, 6
TOTAL_SHARE = 0.15  # of total counts in the score, beside the components
CELLS = 4  # of the map of looks, for each spacing of the spots
SHRINKAGE = 0.01
SCALES = (0.5, 0.8, 0.9, 1.1, 1.25, 2.0)  # what coordinates may have been multiplied by
SHIFTS = (2, 3, 4)  # spacings
RIM_SHARE = 0.5  # what the rim of the array counts for, beside expression
# Over 15 real sections the best alternative is at least 0.04 worse than the right places, and 0.13 in most.
MARGIN = 0.07


@dataclass(frozen=True)
class Looks:
    """What a picture looks like, on a grid of cells as fine as the spots ask for."""

    maps: np.ndarray  # (h, w, F) optical densities and roughness, at the scale of a spot and around it
    tissue: np.ndarray  # (h, w) share of a cell that is tissue
    cell: float  # px of the picture

    @property
    def extent(self) -> np.ndarray:
        """Width and height in px of the picture, (2,)."""
        return np.array(self.tissue.shape[::-1]) * self.cell

    def at(self, xy: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Looks (n, F) at places (n, 2) in px of the picture, and which places are on tissue, (n,) bool."""
        cells = np.floor(xy / self.cell).astype(int)
        inside = ((cells >= 0) & (cells < self.tissue.shape[::-1])).all(axis=1)
        cells[~inside] = 0
        x, y = cells.T
        return self.maps[y, x], np.asarray(inside & (self.tissue[y, x] > 0.5))


@remembered
def looks_of(picture: np.ndarray, tissue: np.ndarray, spacing: float) -> Looks:
    """Optical density of red, green and blue, and roughness, on cells of a quarter of the spacing (px).

    Parameters
    ----------
    picture
        (h, w, 3) uint8 of the whole image.
    tissue
        (h, w) bool, where tissue is.
    spacing
        Of the spots, in px of the picture.
    """
    density = -np.log((picture.astype(np.float32) + 1) / 256)  # 0 on white
    grey = density.mean(axis=2)
    rough = np.abs(grey - uniform_filter(grey, 5))
    layers = np.concatenate([density, rough[..., None], tissue[..., None]], axis=2)  # (h, w, 5)
    step = max(1, round(spacing / CELLS))
    height, width = (n // step for n in layers.shape[:2])
    cells = layers[: height * step, : width * step].reshape(height, step, width, step, -1).mean(axis=(1, 3))
    scales = (0.35 * spacing / step, 1.2 * spacing / step)
    maps = np.concatenate([gaussian_filter(cells[..., :4], (s, s, 0), mode="nearest") for s in scales], axis=2)
    return Looks(maps, gaussian_filter(cells[..., 4], scales[0], mode="nearest"), float(step))


def components_of(counts: np.ndarray | sparse.spmatrix, *, logged: bool = False) -> np.ndarray:
    """Total counts and leading components of expression (n, k), each with the variance that it has in the score.

    Their variances sum to 1.
    """
    values = sparse.csr_matrix(counts, dtype=np.float64)
    total = np.asarray(values.sum(axis=1)).ravel()
    if not logged:
        values = sparse.diags(TARGET_SUM / np.maximum(total, 1)) @ values
        values.data = np.log1p(values.data)
    mean = np.asarray(values.mean(axis=0)).ravel()
    spread = np.asarray(values.multiply(values).mean(axis=0)).ravel() - mean**2
    varied = np.argsort(-spread, kind="stable")[:N_GENES]
    dense = values[:, varied].toarray() - mean[varied]
    left, strength, _ = np.linalg.svd(dense, full_matrices=False)
    shares = strength[:N_COMPONENTS] ** 2
    if not shares.sum() > 0:
        return np.empty((len(dense), 0))
    parts = left[:, :N_COMPONENTS] * np.sqrt(len(dense) * (1 - TOTAL_SHARE) * shares / shares.sum())
    depth = np.log1p(total)
    depth = (depth - depth.mean()) / max(depth.std(), 1e-9) * np.sqrt(TOTAL_SHARE)
    return np.c_[depth, parts]


def beside(xy: np.ndarray, spacing: float) -> np.ndarray:
    """Places (m, 2) just outside the array: a spacing away from spots, where there is no spot."""
    angles = np.arange(12) * np.pi / 6
    around = (xy[:, None] + spacing * np.stack([np.cos(angles), np.sin(angles)], axis=1)).reshape(-1, 2)
    outside = around[cKDTree(xy).query(around)[0] > 0.8 * spacing]
    return outside[np.unique(np.floor(outside / (0.5 * spacing)), axis=0, return_index=True)[1]]


def placement_score(looks: Looks, xy: np.ndarray, components: np.ndarray, outside: np.ndarray) -> tuple[float, float]:
    """How well spots fit their places.

    Parameters
    ----------
    looks
        Of a picture.
    xy
        (n, 2) places of the spots in px of the picture.
    components
        (n, k) of their expression, with zero mean.
    outside
        (m, 2) places just outside their array.

    Returns
    -------
    The share of the variance of expression that looks explain; the share of spots on tissue above that of the places
    outside. Both are at most 1.
    """
    x, on = looks.at(xy)
    if on.sum() < 3:
        return 0.0, 0.0
    # glass explains nothing: whatever half of a section lies on it has expression of its own
    x = np.where(on[:, None], (x - x[on].mean(axis=0)) / (x[on].std(axis=0) + 1e-6), 0)
    gram = x.T @ x + SHRINKAGE * len(x) * np.eye(x.shape[1])
    both = x.T @ components
    explained = (both * np.linalg.solve(gram, both)).sum() / len(x) / max(components.var(axis=0).sum(), 1e-12)
    beyond = ((outside < 0) | (outside >= looks.extent)).any(axis=1)  # of the image, where nothing tells
    tissue_beside = np.where(beyond, on.mean(), looks.at(outside)[1])
    return float(explained), float(on.mean() - tissue_beside.mean()) if len(outside) else 0.0


ORIENTATIONS = (  # mistake, mirrored in x, in y, and whether x and y are exchanged before
    ("mirrored in x", True, False, False),
    ("mirrored in y", False, True, False),
    ("turned by 180°", True, True, False),
    ("x and y swapped", False, False, True),
    ("turned by a quarter", True, False, True),
    ("turned by a quarter", False, True, True),
    ("x and y swapped, and turned by 180°", True, True, True),
)


def alternatives(size: np.ndarray, centre: np.ndarray, spacing: float) -> Iterator[tuple[str, np.ndarray, np.ndarray]]:
    """Mistakes, and the map (2, 2), (2,) that takes them back, in px of a picture.

    Parameters
    ----------
    size
        (2,) width and height of the picture.
    centre
        (2,) of the spots.
    spacing
        Of the spots.
    """
    for cause, in_x, in_y, swap in ORIENTATIONS:
        turn = np.diag([-1.0 if in_x else 1.0, -1.0 if in_y else 1.0])
        turn = turn[:, ::-1] if swap else turn
        yield cause, turn, np.where([in_x, in_y], size, 0)  # in the frame of the image
        yield cause, turn, centre - turn @ centre  # in place
    for scale in SCALES:
        for origin in (np.zeros(2), size / 2, centre):
            yield f"scaled by {scale:g}", np.eye(2) / scale, (1 - 1 / scale) * origin
    for n in SHIFTS:
        for angle in np.arange(8) * np.pi / 4:
            yield f"shifted by about {n} spots", np.eye(2), -n * spacing * np.array([np.cos(angle), np.sin(angle)])


@dataclass(frozen=True)
class Fit:
    """The score of spots where they are, and of the mistake that would explain them best."""

    score: float
    cause: str
    best: float

    @property
    def misplaced(self) -> bool:
        """Whether the mistake is clearly the better explanation."""
        return self.best > self.score + MARGIN


@remembered
def fit(
    picture: np.ndarray,
    tissue: np.ndarray,
    xy: np.ndarray,
    components: np.ndarray,
    *,
    chosen: np.ndarray,
    spacing: float,
) -> Fit:
    """Compare the places of spots with those that they would have without a mistake.

    Parameters
    ----------
    picture, tissue
        (h, w, 3) uint8 of the whole image, and (h, w) bool.
    xy
        (n, 2) places of all spots in px of the picture.
    components
        (m, k) of the expression of the chosen spots.
    chosen
        (m,) positions of some of the spots.
    spacing
        Of the spots in px of the picture.
    """
    looks, outside = looks_of(picture, tissue, spacing), beside(xy, spacing)
    outside = outside[:: max(1, len(outside) // MOST_SPOTS)]
    some, centre = xy[chosen], (xy.min(axis=0) + xy.max(axis=0)) / 2

    def score(linear: np.ndarray, offset: np.ndarray) -> float:
        moved = (points @ linear.T + offset for points in (some, outside))
        explained, rim = placement_score(looks, next(moved), components, next(moved))
        return explained + RIM_SHARE * rim

    size = np.array(picture.shape[1::-1], dtype=float)
    scores = [(score(linear, offset), cause) for cause, linear, offset in alternatives(size, centre, spacing)]
    best, cause = max(scores)
    return Fit(score(np.eye(2), np.zeros(2)), cause, best)
