"""Small places pooled into spots: where the spots lie, which one each place is in, and the sums of counts."""

from __future__ import annotations

import numpy as np
from scipy import sparse
from scipy.spatial import cKDTree


def lay_spots(low: np.ndarray, high: np.ndarray, pitch: float, *, hexagonal: bool) -> tuple[np.ndarray, np.ndarray]:
    """Centres (n, 2) of an array that covers a rectangle, and their row and column (n, 2) as Visium counts them."""
    height = pitch * (np.sqrt(3) / 2 if hexagonal else 1.0)
    n_cols, n_rows = (np.ceil((high - low) / (pitch, height)).astype(int) + 1).tolist()
    row, col = (part.ravel() for part in np.mgrid[:n_rows, :n_cols])
    shift = 0.5 * (row % 2) if hexagonal else np.zeros(len(row))
    start = (low + high - np.array([(n_cols - 1) * pitch, (n_rows - 1) * height])) / 2
    xy = start + np.c_[(col + shift) * pitch, row * height]
    return xy, np.c_[row, 2 * col + row % 2 if hexagonal else col]


def spot_of(xy: np.ndarray, spots: np.ndarray, size: float) -> np.ndarray:
    """The spot (n,) whose circle, `size` wide, holds each place (n, 2); -1 outside of all."""
    distance, nearest = cKDTree(spots).query(xy, distance_upper_bound=size / 2)
    return np.where(np.isfinite(distance), nearest, -1)


def pool(counts: np.ndarray | sparse.spmatrix, spot: np.ndarray, n_spots: int) -> sparse.csr_matrix:
    """Sums (n_spots, G) of the counts (n, G) of the places in each spot."""
    inside = np.flatnonzero(spot >= 0)
    which = sparse.csr_matrix(
        (np.ones(len(inside), np.float32), (spot[inside], inside)), shape=(n_spots, counts.shape[0])
    )
    return sparse.csr_matrix(which @ sparse.csr_matrix(counts), dtype=np.float32)


def count_molecules(spot: np.ndarray, gene: np.ndarray, shape: tuple[int, int]) -> sparse.csr_matrix:
    """Number of molecules of each gene in each spot; those with -1 for either are left out."""
    there = (spot >= 0) & (gene >= 0)
    ones = np.ones(int(there.sum()), np.float32)
    return sparse.csr_matrix((ones, (spot[there], gene[there])), shape=shape)
