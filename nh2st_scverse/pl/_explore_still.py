"""What the panel of ``nh.explore`` shows as a figure: to be saved, and to stand in a notebook without a kernel."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from nh2st_scverse.data.geometry import Geometry
from nh2st_scverse.pl._clusters import draw_legend
from nh2st_scverse.pl._explore import Map
from nh2st_scverse.pl._expression import draw_colour_bar, draw_values
from nh2st_scverse.pl._figure import (
    NOT_KNOWN,
    Picture,
    colour_map,
    draw_image,
    draw_scale_bar,
    draw_spots,
    draw_title,
    read_window,
    section_title,
    tissue_panels,
)

BAR_INCHES = 0.8  # room for a colour bar or a legend
LASSO = "#d1495b"


@dataclass(frozen=True)
class Row:
    """One section as the panel shows it."""

    picture: Picture
    maps: Sequence[Map]
    outline: np.ndarray  # (m, 2) µm: what was drawn; m may be 0


def draw_still(rows: Sequence[Row], title: str, *, opacity: float = 1.0, dpi: float | None = None) -> Figure:
    """The H&E and the maps of each section, a section in a row."""
    n_maps = len(rows[0].maps)
    with plt.ioff():  # who wants to see it has the panel
        fig, axes = tissue_panels(
            [row.picture for row in rows], 1 + n_maps, extra=BAR_INCHES * n_maps, figsize=None, dpi=dpi
        )
    fig.suptitle(title, fontsize="large")
    for row, ax in zip(rows, axes, strict=True):
        draw_image(ax[0], row.picture)
        draw_scale_bar(ax[0], row.picture)
        draw_title(ax[0], f"H&E  {section_title(row.picture)}")
        for one, where in zip(row.maps, ax[1:], strict=True):
            _draw_map(where, row.picture, one, opacity)
        for where in ax if len(row.outline) else ():
            corners = np.vstack([row.outline, row.outline[:1]])
            where.plot(*corners.T, color=LASSO, linewidth=1.5)
    return fig


def _draw_map(ax: Axes, picture: Picture, one: Map, opacity: float) -> None:
    if not one.labels:
        spots = draw_values(ax, picture, one.values, one.name, one.limits, colour_map(one.cmap, NOT_KNOWN), 1.0)
        draw_colour_bar(ax, spots, one.values, one.unit)
        spots.set_alpha(opacity)
        return
    draw_image(ax, picture, faint=True)
    colours = [NOT_KNOWN if np.isnan(code) else one.colours[int(code)] for code in one.values]
    draw_spots(ax, picture, facecolors=colours, alpha=opacity)
    draw_title(ax, one.name)
    draw_legend(ax, dict(zip(one.labels, one.colours, strict=True)))


def zoomed(picture: Picture, geometry: Geometry, view: Sequence[float]) -> Picture:
    """A part of a picture (left, top, right, bottom in µm), as sharp as the whole."""
    left, right, bottom, top = picture.window
    low, high = np.maximum(view[:2], (left, top)), np.minimum(view[2:], (right, bottom))
    if (high <= low).any() or (high - low >= 0.99 * np.array([right - left, bottom - top])).all():
        return picture
    pixels, extent = read_window(geometry, low, high)
    first, last, floor, ceiling = picture.image
    image = max(first, low[0]), min(last, high[0]), min(floor, high[1]), max(ceiling, low[1])
    return replace(picture, pixels=pixels, extent=extent, window=(low[0], high[0], high[1], low[1]), image=image)
