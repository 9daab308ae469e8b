"""Predictions beside how far they may be off."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from matplotlib.colors import Colormap
from spatialdata import SpatialData

from nh2st_scverse._constants import KEY
from nh2st_scverse._docs import documented
from nh2st_scverse._keys import Keys
from nh2st_scverse._validators import check_positive
from nh2st_scverse.pl._expression import choose_genes, colour_limits, draw_colour_bar, draw_values, score_text
from nh2st_scverse.pl._figure import (
    NOT_KNOWN,
    colour_map,
    finish,
    gene_panels,
    pictures,
)
from nh2st_scverse.prediction import find_prediction, read

NOVELTY = "novelty (above 1:\nunlike the training tissue)"
FAMILIAR, STRANGE = 0.5, 1.5  # novelty at the ends of its colours, 1 in the middle
APART = 0.1  # how far from their middle standard deviations must be to have the colours of the ends


@documented()
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
    $drawn
    cmap, uncertainty_cmap
        Colour maps of the prediction, and of its standard deviation and the novelty.
    size
        Size of the spots relative to their true size.
    $figure

    Returns
    -------
    Nothing, or with ``return_ax`` an array of :class:`~matplotlib.axes.Axes`, (genes x sections, 3 or 4): H&E,
    predicted, standard deviation, novelty. A gene has one colour scale for all sections. H&E and novelty of a section
    are drawn once, and stand in each of its rows.

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
    once = [3] if prediction.novelty is not None else []
    extra = 0.8 * len(columns)
    fig, axes = gene_panels(drawn, len(panel), 1 + len(columns), once=once, extra=extra, figsize=figsize, dpi=dpi)
    every = np.concatenate([picture.rows for picture in drawn])
    rows = iter(axes)
    for g, gene in enumerate(panel):
        for picture in drawn:
            for i, (ax, (title, values, label, colours)) in enumerate(zip(next(rows)[1:], columns, strict=True), 1):
                if g and i in once:
                    continue
                text = {"predicted": f"{gene}{score_text(prediction, gene)}", "novelty": "novelty of the tissue"}
                limits = _limits(title, values[every, g])
                spots = draw_values(
                    ax,
                    picture,
                    values[picture.rows, g],
                    text.get(title, f"{gene}  {title}"),
                    limits,
                    colours,
                    size,
                )
                draw_colour_bar(ax, spots, values[every, g], label)
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
