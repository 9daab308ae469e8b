"""Predictions beside how far they may be off."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from matplotlib.colors import Colormap
from spatialdata import SpatialData

from nh2st_scverse._constants import KEY
from nh2st_scverse._keys import Keys
from nh2st_scverse._validators import check_positive
from nh2st_scverse.pl._expression import choose_genes, colour_limits, draw_colour_bar, draw_values, score_text
from nh2st_scverse.pl._figure import (
    NOT_KNOWN,
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

NOVELTY = "novelty (above 1:\nunlike the training tissue)"
FAMILIAR, STRANGE = 0.5, 1.5  # novelty at the ends of its colours, 1 in the middle
APART = 0.1  # how far from their middle standard deviations must be to have the colours of the ends


def uncertainty(
    sdata: SpatialData,
    genes: str | Sequence[str] | None = None,
    *,
    key: str = KEY,
    table_key: str | None = None,
    shapes_key: str | None = None,
    image_key: str | Mapping[str, str] | None = None,
    microns_per_pixel: float | None = None,
    cmap: str | Colormap = "viridis",
    uncertainty_cmap: str | Colormap = "plasma_r",
    size: float = 1.0,
    figsize: tuple[float, float] | None = None,
    dpi: float | None = None,
    save: str | Path | None = None,
    return_ax: bool = False,
) -> np.ndarray | None:
    """Draw the H&E, the prediction and its standard deviation: one row for each gene and section.

    Where the second map is dark, the first is not to be trusted. With ``obs["nh2st_novelty"]`` a fourth column shows
    how unlike the training sections the tissue of a spot is.

    Parameters
    ----------
    sdata
        Object with predictions under `key` and their standard deviations under ``key + "_std"``.
    genes
        Genes to draw. None: the four with the highest held-out correlation.
    key
        Name under which the predictions were written.
    table_key
        Table with the predictions. None: the only one that has them.
    shapes_key
        Draw only this section. None: all sections of the table.
    image_key
        H&E image, or a mapping of shapes to images. None: the one under the spots.
    microns_per_pixel
        Of the image at full resolution, when the object does not tell.
    cmap, uncertainty_cmap
        Colour maps of the prediction, and of its standard deviation and the novelty.
    size
        Size of the spots relative to their true size.
    figsize, dpi
        Size of the figure in inches, and dots per inch.
    save
        File to write the figure to.
    return_ax
        Return the axes.

    Returns
    -------
    Nothing, or with ``return_ax`` an array of :class:`~matplotlib.axes.Axes`, (genes x sections, 3 or 4): H&E,
    predicted, standard deviation, novelty. A gene has one colour scale for all sections.

    Raises
    ------
    KeyError
        No prediction under `key`, none of its standard deviations, no such table, section or gene.
    ValueError
        Genes that were not predicted, an empty list of genes, a size that is not above 0.

    See Also
    --------
    expression : measured beside predicted.

    Examples
    --------
    >>> import nh2st_scverse as nh
    >>> sdata = nh.datasets.synthetic(n_sections=3, width_um=1200)
    >>> nh.tl.predict_expression(sdata, uncertainty=True, n_genes=20, max_epochs=3, progress=False)
    >>> nh.pl.uncertainty(sdata)
    """
    check_positive(size, argument="size")
    table_key = find_prediction(sdata, key, table_key, recorded=False)
    table = sdata.tables[table_key]
    prediction = read(table, key)
    if prediction.std is None:
        raise KeyError(
            f"Expected standard deviations in layers[{Keys(key).std!r}], found the layers "
            f"{[name for name in table.layers if name is not None]}. Predict with uncertainty=True."
        )
    panel = choose_genes(table, prediction, key, genes)
    unit = prediction.unit
    columns = [
        ("predicted", prediction.of(panel), unit, colour_map(cmap, NOT_KNOWN)),
        ("standard deviation", prediction.std[:, prediction.at(panel)], unit, colour_map(uncertainty_cmap, NOT_KNOWN)),
    ]
    if prediction.novelty is not None:
        novelty = prediction.novelty
        columns.append(("novelty", np.repeat(novelty[:, None], len(panel), axis=1), NOVELTY, columns[1][3]))
    drawn = pictures(
        sdata, table_key=table_key, shapes_key=shapes_key, image_key=image_key, microns_per_pixel=microns_per_pixel
    )
    fig, axes = tissue_panels(drawn * len(panel), 1 + len(columns), extra=0.8 * len(columns), figsize=figsize, dpi=dpi)
    every = np.concatenate([picture.rows for picture in drawn])
    rows = iter(axes)
    for g, gene in enumerate(panel):
        for picture in drawn:
            ax = next(rows)
            draw_image(ax[0], picture)
            draw_scale_bar(ax[0], picture)
            draw_title(ax[0], f"H&E  {section_title(picture)}" if len(drawn) > 1 else "H&E")
            for panel_ax, (title, values, label, colours) in zip(ax[1:], columns, strict=True):
                text = {"predicted": f"{gene}{score_text(prediction, gene)}", "novelty": "novelty of the tissue"}
                limits = _limits(title, values[every, g])
                spots = draw_values(
                    panel_ax,
                    picture,
                    values[picture.rows, g],
                    text.get(title, f"{gene}  {title}"),
                    limits,
                    colours,
                    size,
                )
                draw_colour_bar(panel_ax, spots, values[every, g], label)
    finish(fig, save, dpi)
    return axes if return_ax else None


def _limits(title: str, values: np.ndarray) -> tuple[float, float]:
    """Ends of the colours of a column."""
    low, high = colour_limits([values], None, None)
    if title == "novelty":  # dark is above 1 on every slide, and not the least familiar place of this one
        return FAMILIAR, max(STRANGE, high)
    if title == "standard deviation":  # what hardly differs looks alike
        middle, half = (low + high) / 2, max(high - low, APART * (low + high)) / 2
        return middle - half, middle + half
    return low, high
