"""SpatialData to arrays: geometry, patches, neighbourhoods and expression of the spots of a section."""

from __future__ import annotations

from nh2st_scverse.data import expression, geometry, neighbours, patches, section

__all__ = ["expression", "geometry", "neighbours", "patches", "section"]


def __dir__() -> list[str]:
    return sorted(__all__)
