"""Regions that are drawn in ``nh.explore``: which spots lie inside, and the column of ``obs`` that says so."""

from __future__ import annotations

import numpy as np
from anndata import AnnData
from matplotlib.path import Path as Outline
from numpy.typing import ArrayLike

from nh2st_scverse._constants import DRAWN
from nh2st_scverse._validators import check_name


def inside(outline: ArrayLike, xy: np.ndarray) -> np.ndarray:
    """Positions of the places (n, 2) inside an outline (m, 2)."""
    corners = np.asarray(outline, dtype=float).reshape(-1, 2)
    return np.flatnonzero(Outline(corners).contains_points(xy)) if len(corners) > 2 else np.empty(0, dtype=int)


def write_region(table: AnnData, name: str, rows: np.ndarray) -> None:
    """Write whether each spot is one of some rows to ``obs[name]``.

    Raises
    ------
    ValueError
        No row, no name that can be stored, or a column that was not written here.
    """
    check_name(name, argument="name", beside=map(str, table.obs.columns))
    drawn = {str(column) for column in table.uns.get(DRAWN, ())}
    if name in table.obs and not (name in drawn and table.obs[name].dtype == bool):
        raise ValueError(f"obs[{name!r}] is there already, and was not drawn in nh.explore: choose another name.")
    if not len(rows):
        raise ValueError("Expected a region with spots, found none: hold the shift key and draw round some of them.")
    table.obs[name] = np.isin(np.arange(table.n_obs), rows)
    table.uns[DRAWN] = np.array(sorted(drawn | {name}))
