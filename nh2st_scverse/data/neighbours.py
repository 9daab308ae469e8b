"""The neighbourhood of a spot, and spatial folds that share nothing of it."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.spatial import cKDTree

from nh2st_scverse._constants import N_NODES

AT_ONCE = 8192  # spots whose neighbours are looked up at a time: candidates of all would not fit
MOST_TIES = 16  # spots that may be as far as the last neighbour is
REACH = 2.3  # spot spacings: farther spots are not neighbours but the other side of a hole


@dataclass(frozen=True)
class Neighbours:
    """Nodes of each spot's neighbourhood, the spot itself first and the others by distance."""

    nodes: np.ndarray  # (n, K) positions of spots; the spot itself where there is no neighbour
    mask: np.ndarray  # (n, K) bool: there is a neighbour
    offsets: np.ndarray  # (n, K, 2) x, y from the spot, in spot spacings


def neighbourhoods(xy: np.ndarray, spacing: float, usable: np.ndarray, n_nodes: int = N_NODES) -> Neighbours:
    """The spot itself and its nearest spots, of those that have a usable image.

    Parameters
    ----------
    xy
        (n, 2) centres of the spots of one section.
    spacing
        Distance between adjacent spots, in the unit of `xy`.
    usable
        (n,) bool; others are nobody's neighbour.
    n_nodes
        K, the spot itself included.

    Raises
    ------
    ValueError
        Fewer usable spots than nodes.
    """
    members = np.flatnonzero(usable)
    if len(members) < n_nodes:
        raise ValueError(
            f"Expected at least {n_nodes} spots with an image (a spot and its {n_nodes - 1} neighbours), found "
            f"{len(members)}. Join the sections of a slide into larger ones, or pass a model with fewer nodes."
        )
    # On a grid several spots are equally far. Which of them count must not depend on the order of the rows: those first
    # by x, then by y. So more than K are looked up, and sorted. The spot itself always stands first.
    tree = cKDTree(xy[members])
    found = alone(len(xy), n_nodes)
    for start in range(0, len(xy), AT_ONCE):
        rows = slice(start, start + AT_ONCE)
        distance, near = tree.query(xy[rows], min(len(members), n_nodes + MOST_TIES))
        nodes, own = members[near], found.nodes[rows, :1].copy()
        away = np.round((xy[nodes] - xy[rows, None]) / spacing, 6)
        keys = (away[..., 1], away[..., 0], np.round(distance / spacing, 6), nodes != own)  # the last one counts most
        order = np.lexsort(keys, axis=1)[:, :n_nodes]
        nodes, distance = (np.take_along_axis(values, order, axis=1) for values in (nodes, distance))
        nodes[:, :1] = own  # also of a spot that is nobody's neighbour
        mask = distance <= REACH * spacing
        mask[:, 0] = True
        found.nodes[rows] = np.where(mask, nodes, own)
        found.mask[rows] = mask
        found.offsets[rows] = (xy[found.nodes[rows]] - xy[rows, None]) / spacing
    return found


def alone(n: int, n_nodes: int = N_NODES) -> Neighbours:
    """Neighbourhoods of `n` spots that have no neighbour but themselves."""
    nodes = np.repeat(np.arange(n)[:, None], n_nodes, axis=1)
    mask = np.zeros(nodes.shape, dtype=bool)
    mask[:, 0] = True
    return Neighbours(nodes, mask, np.zeros((*nodes.shape, 2), dtype=np.float32))


def thinned_neighbourhoods(
    xy: np.ndarray, spacing: float, usable: np.ndarray, part: np.ndarray, n_nodes: int = N_NODES
) -> Neighbours:
    """Neighbourhoods among the spots of the same part, for grids that are denser than the one a model knows.

    Parameters
    ----------
    xy, spacing, usable, n_nodes
        As in :func:`neighbourhoods`; `spacing` is that within a part.
    part
        (n,) part of each spot, from :func:`interleave`.
    """
    nodes, mask, offsets = vars(alone(len(xy), n_nodes)).values()
    for one in np.unique(part):
        members = np.flatnonzero(part == one)
        k = min(n_nodes, int(usable[members].sum()))  # a small piece of tissue has few spots in each part
        if k == 0:
            continue
        found = neighbourhoods(xy[members], spacing, usable[members], k)
        nodes[members, :k], mask[members, :k], offsets[members, :k] = members[found.nodes], found.mask, found.offsets
    return Neighbours(nodes, mask, offsets)


def ring_neighbourhoods(xy: np.ndarray, spacing: float, usable: np.ndarray, n_nodes: int = N_NODES) -> Neighbours:
    """Neighbours where those of a hexagonal grid would be, for bins and cells that are denser than a model knows.

    Parameters
    ----------
    xy, usable, n_nodes
        As in :func:`neighbourhoods`.
    spacing
        That the model knows, in the unit of `xy`. A place of the grid without a bin or cell within half of it is empty.
    """
    angles = np.r_[np.arange(6), np.arange(6) + 0.5, np.arange(6)] * np.pi / 3
    away = np.repeat([1.0, np.sqrt(3), 2.0], 6)
    steps = (away * [np.cos(angles), np.sin(angles)]).T[: n_nodes - 1]  # (K - 1, 2) spacings
    members = np.flatnonzero(usable)
    tree = cKDTree(xy[members])
    nodes, mask, offsets = vars(alone(len(xy), n_nodes)).values()
    for k, step in enumerate(steps, start=1):
        distance, found = tree.query(xy + step * spacing, distance_upper_bound=spacing / 2)
        there = np.isfinite(distance)
        mask[:, k] = there
        nodes[there, k] = members[found[there]]
        offsets[:, k] = (xy[nodes[:, k]] - xy) / spacing
    return Neighbours(nodes, mask, offsets)


def interleave(rows: np.ndarray, cols: np.ndarray, factor: int) -> np.ndarray:
    """Cut a grid into ``factor ** 2`` interleaved ones, each `factor` times as wide: (n,) part of each spot.

    Parameters
    ----------
    rows, cols
        (n,) place in the array; columns by twos where it is hexagonal, as on a Visium slide.
    factor
        How many times wider.
    """
    if ((rows + cols) % 2 == 0).all():  # hexagonal: along its two axes
        cols = (cols - rows) // 2
    return np.asarray((rows % factor) * factor + cols % factor)


def spatial_blocks(xy: np.ndarray, n_blocks: int) -> np.ndarray:
    """Cut a section into compact blocks of equal size: (n,) block of each spot.

    The longer side is halved again and again, so that blocks stay compact.
    """
    block = np.zeros(len(xy), dtype=int)

    def cut(members: np.ndarray, parts: int, first: int) -> None:
        if parts == 1:
            block[members] = first
            return
        axis = np.ptp(xy[members], axis=0).argmax()
        order = members[np.lexsort((xy[members, 1 - axis], xy[members, axis]))]  # whatever the order of the rows
        left = parts // 2
        at = len(order) * left // parts
        cut(order[:at], left, first)
        cut(order[at:], parts - left, first + left)

    cut(np.arange(len(xy)), n_blocks, 0)
    return block


def apart_from(held_out: np.ndarray, neighbours: Neighbours, xy: np.ndarray, patch: float) -> np.ndarray:
    """Spots that share neither a neighbour nor a pixel with the held-out ones: (n,) bool.

    Parameters
    ----------
    held_out
        (n,) bool.
    neighbours
        Of all spots.
    xy
        (n, 2) centres, in the axes of the image.
    patch
        Side of the largest patch, in the unit of `xy`.
    """
    seen = np.unique(neighbours.nodes[held_out])  # every node that a held-out spot looks at
    gap, _ = cKDTree(xy[seen]).query(xy, p=np.inf)  # square patches overlap below one side in both axes
    clear = gap >= patch
    return clear[neighbours.nodes].all(axis=1) & ~held_out
