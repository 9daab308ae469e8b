"""Data sets that come with the package: nothing is downloaded."""

from __future__ import annotations

from nh2st_scverse.datasets._space_ranger import space_ranger_folder
from nh2st_scverse.datasets._synthetic import synthetic

__all__ = ["space_ranger_folder", "synthetic"]


def __dir__() -> list[str]:
    return sorted(__all__)
