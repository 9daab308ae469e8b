"""What the figures share: a section drawn in µm, a scale bar, saving."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any

import matplotlib as mpl
import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.collections import Collection, EllipseCollection, PolyCollection
from matplotlib.colors import Colormap
from matplotlib.figure import Figure
from matplotlib.font_manager import FontProperties
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.patheffects import withStroke
from matplotlib.textpath import TextPath
from spatialdata import SpatialData

from nh2st_scverse._options import Elements
from nh2st_scverse._validators import as_path, check_one_of
from nh2st_scverse.data.geometry import Geometry, apply_affine
from nh2st_scverse.data.patches import read_pixels
from nh2st_scverse.data.section import Section, locate_sections

PANEL_INCHES = 2.9  # width of one picture of tissue
LONGEST_PX = 900  # of the H&E behind a panel: sharp on a screen and in print at this size
NOT_KNOWN = "#959595"  # spots without a value: darker than the pale H&E, and in no colour map
SAVED_DPI = 200  # of a file, where neither the call nor matplotlib's settings tell: sharp in print
FAINTNESS = 0.35  # contrast that is left of the H&E under coloured spots


@dataclass(frozen=True)
class Picture:
    """One section ready to be drawn: the H&E around its spots, and the spots, all in µm."""

    name: str
    rows: np.ndarray  # (n,) rows of the table
    xy: np.ndarray  # (n, 2) centres
    radius: np.ndarray  # (n,) true radius; unused when there are outlines
    outlines: list[np.ndarray] | None  # (m, 2) corners of each shape, when the shapes are polygons
    pixels: np.ndarray  # (h, w, 3) uint8
    extent: tuple[float, float, float, float]  # left, right, bottom, top of the pixels
    window: tuple[float, float, float, float]  # left, right, bottom, top of what is shown
    image: tuple[float, float, float, float]  # left, right, bottom, top of that part of it which the image covers

    @cached_property
    def faint(self) -> np.ndarray:
        """The pixels in grey, of half the side: what lies under spots is not looked at closely."""
        height, width = (n - n % 2 for n in self.pixels.shape[:2])
        return self.pixels[:height, :width].reshape(height // 2, 2, width // 2, 2, 3).mean(axis=(1, 3, 4))

    @property
    def aspect(self) -> float:
        """Height of what is shown divided by its width."""
        left, right, bottom, top = self.window
        return (bottom - top) / (right - left)


def pictures(
    sdata: SpatialData,
    *,
    table_key: str | None,
    shapes_key: str | None,
    image_key: str | Mapping[str, str] | None,
    microns_per_pixel: float | None,
) -> list[Picture]:
    """Every section that a table annotates, ready to be drawn."""
    elements = Elements.of(table_key, shapes_key, image_key, microns_per_pixel)
    # nobody looks at neighbours: a small piece of a section can be drawn, too
    return [draw_ready(sdata, section) for section in locate_sections(sdata, elements, n_nodes=2)]


def draw_ready(sdata: SpatialData, section: Section) -> Picture:
    """One section ready to be drawn."""
    geometry = section.geometry
    full = geometry.levels[0]
    microns = full.microns_per_pixel
    scale = np.sqrt(abs(np.linalg.det(full.from_shapes[:2, :2]))) * microns  # unit of the shapes -> µm
    shapes = sdata.shapes[section.shapes_key].loc[geometry.instances]
    outlines = None
    if "radius" in shapes:
        radius = shapes["radius"].to_numpy(dtype=float) * scale
    else:
        outlines = [_outline(polygon, full.from_shapes) * microns for polygon in shapes.geometry]
        radius = np.array([np.ptp(outline, axis=0).max() / 2 for outline in outlines])

    xy = section.xy_um
    seen = section.usable if section.usable.any() else np.ones(len(xy), dtype=bool)
    margin = radius[seen].max() + section.spacing_um
    low, high = xy[seen].min(axis=0) - margin, xy[seen].max(axis=0) + margin  # x, y

    pixels, extent = read_window(geometry, low, high)
    height, width = (n * microns for n in full.array.shape[1:])
    return Picture(
        name=section.name,
        rows=section.rows,
        xy=xy,
        radius=radius,
        outlines=outlines,
        pixels=pixels,
        extent=extent,
        window=(float(low[0]), float(high[0]), float(high[1]), float(low[1])),
        image=(max(low[0], 0.0), min(high[0], width), min(high[1], height), max(low[1], 0.0)),
    )


def read_window(
    geometry: Geometry, low: np.ndarray, high: np.ndarray, longest: int = LONGEST_PX
) -> tuple[np.ndarray, tuple[float, float, float, float]]:
    """The H&E between two corners (x, y) in µm, about `longest` px wide or high.

    Returns pixels (h, w, 3) uint8 and their extent in µm: left, right, bottom, top.
    """
    full = geometry.levels[0]
    microns = full.microns_per_pixel
    enough = [lv for lv in geometry.levels if (high - low).max() / lv.microns_per_pixel >= longest]
    level = enough[-1] if enough else full
    step = max(1, int((high - low).max() / level.microns_per_pixel // longest))  # an image without a pyramid
    to_full = full.from_shapes @ np.linalg.inv(level.from_shapes) @ np.diag([step, step, 1.0])
    corners = apply_affine(np.linalg.inv(to_full), np.stack([low, high]) / microns)
    start, stop = np.floor(corners.min(axis=0)).astype(int), np.ceil(corners.max(axis=0)).astype(int)
    pixels = read_pixels(level.array[:, ::step, ::step], start, stop, level.colours)
    (left, top), (right, bottom) = apply_affine(to_full, np.stack([start, stop]).astype(float)) * microns
    return pixels, (float(left), float(right), float(bottom), float(top))


def _outline(polygon: Any, affine: np.ndarray) -> np.ndarray:
    largest = max(getattr(polygon, "geoms", [polygon]), key=lambda part: part.area)
    return apply_affine(affine, np.asarray(largest.exterior.coords)[:, :2])


def tissue_panels(
    drawn: Sequence[Picture],
    n_columns: int,
    *,
    extra: float,
    figsize: tuple[float, float] | None,
    dpi: float | None,
) -> tuple[Figure, np.ndarray]:
    """A figure with one row of panels per picture, as high as the section needs: axes (n_rows, n_columns).

    `extra` inches of width are left for colour bars and legends.
    """
    heights = [PANEL_INCHES * picture.aspect for picture in drawn]
    if figsize is None:
        figsize = ((PANEL_INCHES + 0.1) * n_columns + extra, sum(heights) + 0.4 * len(drawn))
    fig, axes = plt.subplots(
        len(drawn),
        n_columns,
        figsize=figsize,
        dpi=dpi,
        squeeze=False,
        layout=ConstrainedLayoutEngine(compress=True, w_pad=0.06, h_pad=0.06),
        gridspec_kw={"height_ratios": heights},
    )
    for ax, picture in ((ax, picture) for row, picture in zip(axes, drawn, strict=True) for ax in row):
        left, right, bottom, top = picture.window
        ax.set(xlim=(left, right), ylim=(bottom, top), xticks=[], yticks=[], aspect="equal")
        ax.spines[:].set_visible(False)
    return fig, axes


def gene_panels(
    drawn: Sequence[Picture],
    n_genes: int,
    n_columns: int,
    *,
    once: Sequence[int] = (),
    extra: float,
    figsize: tuple[float, float] | None,
    dpi: float | None,
) -> tuple[Figure, np.ndarray]:
    """A row of panels for each gene and section, those of a gene together: axes (n_genes * n_sections, n_columns).

    The H&E, the first column, is drawn in the rows of the first gene. Those panels stand in the rows of the other
    genes, too, and so do those of the columns `once`, for what is the same for every gene.
    """
    n = len(drawn)
    pictures = [picture for _ in range(n_genes) for picture in drawn]
    fig, axes = tissue_panels(pictures, n_columns, extra=extra, figsize=figsize, dpi=dpi)
    for picture, row in zip(drawn, axes, strict=False):
        draw_image(row[0], picture)
        draw_scale_bar(row[0], picture)
        draw_title(row[0], f"H&E  {section_title(picture)}" if n > 1 else "H&E")
    for i in range(n, len(axes)):
        for column in (0, *once):
            axes[i, column].remove()
            axes[i, column] = axes[i % n, column]
        if n > 1:
            axes[i, 1].set_ylabel(section_title(pictures[i]))
    return fig, axes


def draw_image(ax: Axes, picture: Picture, *, faint: bool = False, contrast: float = FAINTNESS) -> None:
    """The H&E; `faint` in grey of a low contrast, so that spots can be read on it."""
    left, right, bottom, top = picture.window
    if faint:
        grey = 255 - (255 - picture.faint) * contrast
        ax.imshow(grey, extent=picture.extent, cmap="gray", vmin=0, vmax=255, interpolation="antialiased")
    else:
        ax.imshow(picture.pixels, extent=picture.extent, interpolation="antialiased")
    ax.set(xlim=(left, right), ylim=(bottom, top))


def draw_spots(ax: Axes, picture: Picture, *, size: float = 1.0, **kwargs: Any) -> Collection:
    """The spots at their true place and size, times `size`; `kwargs` are those of a matplotlib collection."""
    kwargs = {"linewidths": 0} | kwargs
    if picture.outlines is None:
        diameter = 2 * size * picture.radius
        spots: Collection = EllipseCollection(
            diameter,
            diameter,
            np.zeros(len(diameter)),
            units="xy",
            offsets=picture.xy,
            offset_transform=ax.transData,
            **kwargs,
        )
    else:
        corners = [c + (size - 1) * (c - xy) for c, xy in zip(picture.outlines, picture.xy, strict=True)]
        spots = PolyCollection(corners, **kwargs)
    ax.add_collection(spots, autolim=False)
    return spots


def draw_scale_bar(ax: Axes, picture: Picture) -> None:
    """A bar of a round length, about a quarter of the image, in its corner with the fewest spots."""
    left, right, bottom, top = picture.window
    across, down = ((picture.xy - (left, top)) / (right - left, bottom - top)).T  # 0 to 1 in the panel
    corners = [(west, low) for low in (True, False) for west in (True, False)]
    west, low = min(
        corners,
        key=lambda c: np.sum((across < 0.35 if c[0] else across > 0.65) & (down > 0.84 if c[1] else down < 0.16)),
    )

    first, last, floor, ceiling = picture.image
    width = last - first
    power = 10.0 ** np.floor(np.log10(width / 3.5))
    length = max(step * power for step in (1, 2, 5) if step * power <= width / 3.5)
    label = f"{length / 1000:g} mm" if length >= 1000 else f"{length:g} µm"
    inset = max(length / 2 + 0.04 * width, 0.13 * width)  # the label may be wider than the bar
    centre = first + inset if west else last - inset
    y = floor - 0.04 * (floor - ceiling) if low else ceiling + 0.04 * (floor - ceiling)
    data_and_panel = ax.get_xaxis_transform()  # x in µm, y from 0 to 1 in the panel
    height = (bottom - y) / (bottom - top)
    # white around black is read on dark and on pale tissue
    ax.plot(
        [centre - length / 2, centre + length / 2],
        [height, height],
        transform=data_and_panel,
        color="black",
        linewidth=2.5,
        solid_capstyle="butt",
        path_effects=[withStroke(linewidth=5, foreground="white")],
        label="scale bar",
    )
    ax.annotate(
        label,
        (centre, height),
        xycoords=data_and_panel,
        xytext=(0, 3 if low else -3),  # towards the middle: it never leaves the panel
        textcoords="offset points",
        ha="center",
        va="bottom" if low else "top",
        fontsize="small",
        path_effects=[withStroke(linewidth=3, foreground="white")],
    )


def colour_map(cmap: str | Colormap, bad: Any) -> Colormap:
    """A colour map by its name or as it is, with the colour of what is not known; ValueError for an unknown name."""
    if not isinstance(cmap, Colormap):
        check_one_of(cmap, list(mpl.colormaps), argument="cmap")
        cmap = mpl.colormaps[cmap]
    return cmap.with_extremes(bad=bad)


def draw_title(ax: Axes, text: str, *, inches: float = PANEL_INCHES, fontsize: str | None = None) -> None:
    """A title no wider than its panel: a long one breaks at its last double space, and shrinks if it must."""
    size = float(FontProperties(size=fontsize or plt.rcParams["axes.titlesize"]).get_size_in_points())
    room = 0.95 * inches
    lines = text.rsplit("  ", 1) if text_inches(text, size) > room else [text]
    widest = max(text_inches(line, size) for line in lines)
    ax.set_title("\n".join(lines), fontsize=size * min(1.0, room / widest))


@lru_cache(maxsize=1000)
def text_inches(text: str, fontsize: float) -> float:
    """Width of a line of text whose font has this size in points."""
    return float(TextPath((0, 0), text, size=fontsize).get_extents().width) / 72


def section_title(picture: Picture) -> str:
    """Name of a section as a person knows it: shapes ``C2_spots`` are section C2."""
    return picture.name.removesuffix("_spots")


def finish(fig: Figure, save: str | Path | None, dpi: float | None) -> None:
    """Save a figure; a path without an ending becomes a PNG."""
    if save is None:
        return
    if dpi is None and mpl.rcParams["savefig.dpi"] == "figure":
        dpi = SAVED_DPI
    path = as_path(save, argument="save")
    if path.is_dir():
        raise IsADirectoryError(
            f"Expected save= to be a file, found the folder {path}: give save={str(path / 'a.png')!r}."
        )
    path = path if path.suffix else path.with_suffix(".png")
    path.parent.mkdir(parents=True, exist_ok=True)
    fig.savefig(path, bbox_inches="tight", dpi=dpi)
