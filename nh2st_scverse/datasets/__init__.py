"""Drawn data, folders as technologies leave them, and the data sets of the paper: nothing is downloaded."""

from __future__ import annotations

from nh2st_scverse.datasets._paper import paper
from nh2st_scverse.datasets._published import hest_folder, stimage_folder
from nh2st_scverse.datasets._space_ranger import space_ranger_folder
from nh2st_scverse.datasets._synthetic import synthetic
from nh2st_scverse.datasets._visium_hd import visium_hd_folder
from nh2st_scverse.datasets._xenium import xenium_folder

__all__ = [
    "hest_folder",
    "paper",
    "space_ranger_folder",
    "stimage_folder",
    "synthetic",
    "visium_hd_folder",
    "xenium_folder",
]


def __dir__() -> list[str]:
    return sorted(__all__)
