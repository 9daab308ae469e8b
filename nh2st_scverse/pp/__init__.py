"""Preparation: look at what the tools will use before they use it, and lay a grid over slides without spots."""

from __future__ import annotations

from nh2st_scverse.pp._check import check
from nh2st_scverse.pp._grid import grid

__all__ = ["check", "grid"]


def __dir__() -> list[str]:
    return sorted(__all__)
