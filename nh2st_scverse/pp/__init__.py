"""Preparation: look at what the tools will use before they use it, lay a grid over slides, pool bins into spots."""

from __future__ import annotations

from nh2st_scverse.pp._check import check
from nh2st_scverse.pp._grid import grid
from nh2st_scverse.pp._nuclei import nuclei
from nh2st_scverse.pp._pseudospots import pseudospots

__all__ = ["check", "grid", "nuclei", "pseudospots"]


def __dir__() -> list[str]:
    return sorted(__all__)
