"""Predictions on a grid over a slide, as a map without gaps."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import Colormap, Normalize
from scipy.spatial import cKDTree
from spatialdata import SpatialData

from nh2st_scverse._constants import KEY
from nh2st_scverse._docs import documented
from nh2st_scverse._validators import check_positive
from nh2st_scverse.data.geometry import is_hexagonal, spot_spacing
from nh2st_scverse.pl._expression import choose_genes, colour_limits, draw_colour_bar, score_text
from nh2st_scverse.pl._figure import (
    FAINTNESS,
    LONGEST_PX,
    NOT_KNOWN,
    Picture,
    colour_map,
    draw_image,
    draw_scale_bar,
    draw_title,
    finish,
    pictures,
    section_title,
    tissue_panels,
)
from nh2st_scverse.prediction import find_prediction, read

N_COLUMNS = 4
HEXAGON_REACH = 0.59  # from the centre of a hexagon to its corner, in distances of places, and a little for gaps
SQUARE_REACH = 0.52  # of a square, the same


@documented()
def slide_map(
    sdata: SpatialData,
    genes: str | Sequence[str] | None = None,
    *,
    key: str = KEY,
    table_key: str | None = None,
    shapes_key: str | None = None,
    image_key: str | Mapping[str, str] | None = None,
    microns_per_pixel: float | None = None,
    image: bool = True,
    alpha: float = 1.0,
    vmin: float | None = None,
    vmax: float | None = None,
    cmap: str | Colormap = "viridis",
    ncols: int = N_COLUMNS,
    figsize: tuple[float, float] | None = None,
    dpi: float | None = None,
    save: str | Path | None = None,
    return_ax: bool = False,
) -> np.ndarray | None:
    """Draw predictions on a grid over an H&E slide as maps without gaps: the H&E first, then one map for each gene.

    Every place fills its cell of the grid, a hexagon or a square. The maps are raster images, so that a hundred
    thousand places take seconds. The title of a map gives the correlation of the gene on tissue that its predictor had
    not seen (``var["nh2st_pearson"]``): how far to trust it.

    Parameters
    ----------
    sdata
        Object with predictions on a grid: an H&E slide after ``nh.tl.predict_expression(slide, model=model)``; with
        :func:`nh2st_scverse.pp.grid` before it, the grid is as dense as wanted. Spots of a measured section are
        drawn in the same way, each as large as its cell.
    genes
        Genes to draw. None: those with the highest held-out correlation, as many as fill a row.
    key
        Name under which the predictions were written.
    table_key
        Table with the predictions. None: the only one that has them.
    $drawn
    image
        Draw the H&E too, as the first panel.
    alpha
        Opacity of the maps, above 0 to 1: below 1 the H&E is seen through them, in grey.
    vmin, vmax
        Limits of the colours. None: the 2 % and the 98 % quantile of the gene in all sections.
    cmap
        Colour map.
    ncols
        Panels in a row.
    $figure

    Returns
    -------
    Nothing, or with ``return_ax`` an array of :class:`~matplotlib.axes.Axes`, (sections, genes + 1): H&E and genes;
    without `image` (sections, genes). Each section begins a row of the figure.

    Raises
    ------
    KeyError
        No prediction under `key`, no such table, section or gene.
    ValueError
        Genes that were not predicted, an empty list of genes, an `alpha` that is not above 0 and at most 1, less
        than one column.

    See Also
    --------
    expression : predicted beside measured expression, spot by spot.
    nh2st_scverse.pp.grid : places to predict at.

    Examples
    --------
    >>> import nh2st_scverse as nh
    >>> sdata = nh.datasets.synthetic(width_um=1200)
    >>> model = nh.tl.train(sdata, n_genes=20, max_epochs=2, progress=False)
    >>> slide = nh.datasets.synthetic(width_um=1200, seed=1).subset(["section_0_image"])
    >>> nh.pp.grid(slide, spacing_um=50)
    >>> nh.tl.predict_expression(slide, model=model, progress=False)
    >>> nh.pl.slide_map(slide)
    """
    check_positive(alpha, argument="alpha")
    if alpha > 1:
        raise ValueError(f"Expected alpha to be above 0 and at most 1, found {alpha!r}.")
    if isinstance(ncols, bool) or not isinstance(ncols, int) or ncols < 1:
        raise ValueError(f"Expected ncols to be a whole number above 0, found {ncols!r}.")
    table_key = find_prediction(sdata, key, table_key, recorded=False)
    table = sdata.tables[table_key]
    prediction = read(table, key)
    panel = choose_genes(table, prediction, key, genes)
    if genes is None:
        panel = panel[: max(1, ncols - image)]
    predicted, unit = prediction.of(panel), prediction.unit  # (n_places, G)
    drawn = pictures(
        sdata, table_key=table_key, shapes_key=shapes_key, image_key=image_key, microns_per_pixel=microns_per_pixel
    )
    every = np.concatenate([picture.rows for picture in drawn])
    limits = [colour_limits([predicted[every, g]], vmin, vmax) for g in range(len(panel))]
    colours = colour_map(cmap, (0, 0, 0, 0))

    n_panels = len(panel) + image
    ncols = min(ncols, n_panels)
    n_rows = -(-n_panels // ncols)  # of each section
    fig, axes = tissue_panels(
        [picture for picture in drawn for _ in range(n_rows)], ncols, extra=0.8 * ncols, figsize=figsize, dpi=dpi
    )
    axes = axes.reshape(len(drawn), n_rows * ncols)
    for ax in axes[:, n_panels:].flat:
        ax.remove()
    axes = axes[:, :n_panels]
    for row, picture in zip(axes, drawn, strict=True):
        name = f"  {section_title(picture)}" if len(drawn) > 1 else ""
        if image:
            draw_image(row[0], picture)
            draw_title(row[0], f"H&E{name}")
        place = _cells(picture)
        for g, (ax, gene) in enumerate(zip(row[image:], panel, strict=True)):
            values = predicted[picture.rows, g]
            _draw_map(ax, picture, place, values, limits[g], colours, alpha)
            draw_title(ax, f"{gene}{'' if image else name}{score_text(prediction, gene)}")
            draw_colour_bar(ax, ax.images[-1], predicted[every, g], unit)
        draw_scale_bar(row[0], picture)
    finish(fig, save, dpi)
    return axes if return_ax else None


def _cells(picture: Picture) -> np.ndarray:
    """Position of the place whose cell each pixel of a map lies in (h, w); -1 off the grid.

    The nearest place owns a pixel: on a hexagonal grid its cell is a hexagon, on a square one a square.
    """
    left, right, bottom, top = picture.window
    step = max(right - left, bottom - top) / LONGEST_PX  # µm
    x, y = np.arange(left + step / 2, right, step), np.arange(top + step / 2, bottom, step)
    spacing = spot_spacing(picture.xy)
    # squares lie along the axes of the image: the largest of both distances gives them straight borders
    reach, p = (HEXAGON_REACH, 2.0) if is_hexagonal(picture.xy) else (SQUARE_REACH, np.inf)
    at = np.stack(np.meshgrid(x, y), axis=-1)  # (h, w, 2)
    found = cKDTree(picture.xy).query(at, p=p, distance_upper_bound=reach * spacing, workers=-1)[1]
    return np.where(found == len(picture.xy), -1, found)


def _draw_map(
    ax: Axes,
    picture: Picture,
    place: np.ndarray,
    values: np.ndarray,
    limits: tuple[float, float],
    cmap: Colormap,
    alpha: float,
) -> None:
    draw_image(ax, picture, faint=True, contrast=FAINTNESS if alpha == 1 else 1.0)
    left, right, bottom, top = picture.window
    here = np.where(place < 0, np.nan, values[place])
    unknown = (place >= 0) & np.isnan(here)
    if unknown.any():
        grey = np.zeros((*place.shape, 4))
        grey[unknown] = mpl.colors.to_rgba(NOT_KNOWN, alpha)
        ax.imshow(grey, extent=(left, right, bottom, top), interpolation="nearest")
        ax.set_xlabel("grey: not predicted", fontsize="small", color="0.4")
    ax.imshow(
        np.ma.masked_invalid(here),
        extent=(left, right, bottom, top),
        cmap=cmap,
        norm=Normalize(*limits),
        alpha=alpha,
        interpolation="nearest",
    )
    ax.set(xlim=(left, right), ylim=(bottom, top))
