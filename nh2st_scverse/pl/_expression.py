"""Measured and predicted expression of genes beside the H&E."""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import matplotlib as mpl
import numpy as np
from anndata import AnnData
from matplotlib.axes import Axes
from matplotlib.collections import Collection
from matplotlib.colors import Colormap, Normalize
from matplotlib.figure import Figure
from matplotlib.image import AxesImage
from spatialdata import SpatialData

from nh2st_scverse._constants import KEY
from nh2st_scverse._docs import documented
from nh2st_scverse._validators import as_sequence, check_positive
from nh2st_scverse.data.units import measure
from nh2st_scverse.pl._figure import (
    NOT_KNOWN,
    Picture,
    colour_map,
    draw_image,
    draw_spots,
    draw_title,
    finish,
    gene_panels,
    pictures,
)
from nh2st_scverse.prediction import Prediction, find_prediction, read

N_DEFAULT = 4  # genes when none are named
QUANTILES = (0.02, 0.98)  # between which the colours run: a few spots with very many counts do not flatten the rest


@documented()
def expression(
    sdata: SpatialData,
    genes: str | Sequence[str] | None = None,
    *,
    key: str = KEY,
    layer: str | None = None,
    table_key: str | None = None,
    shapes_key: str | None = None,
    image_key: str | Mapping[str, str] | None = None,
    microns_per_pixel: float | None = None,
    shared: bool = True,
    difference: bool = False,
    vmin: float | None = None,
    vmax: float | None = None,
    cmap: str | Colormap = "viridis",
    size: float = 1.0,
    figsize: tuple[float, float] | None = None,
    dpi: float | None = None,
    save: str | Path | None = None,
    return_ax: bool = False,
) -> np.ndarray | None:
    """Draw H&E, measured and predicted expression side by side: one row for each gene and section.

    Spots are drawn in their true size on a faint copy of the H&E. The title of a prediction gives the correlation of
    the gene on tissue that its predictor had not seen (``var["nh2st_pearson"]``): how far to trust it. After
    :func:`nh2st_scverse.tl.evaluate` its noise ceiling stands behind it: r = 0.60 of 0.77. Spots without a prediction
    are grey.

    Predictions vary less than measurements, which have counting noise on top. With one colour scale for both, as is the
    default, this is seen as it is, and a gene that is hardly predicted looks flat. ``shared=False`` gives each its own
    scale: compare *where* a gene is high, not how high.

    Parameters
    ----------
    sdata
        Object with predictions, see :func:`nh2st_scverse.tl.predict_expression`.
    genes
        Genes to draw. None: the four with the highest held-out correlation.
    key
        Name under which the predictions were written.
    layer
        Layer with the counts that are drawn as measured; None means X. They are brought to the unit of the prediction,
        ``log1p`` of counts per ten thousand by default, as far as they tell their own.
    table_key
        Table with the predictions. None: the only one that has them.
    $drawn
    shared
        One colour scale for measured and predicted. In both cases a gene has the same scale in all sections, which
        runs from the 2 % to the 98 % quantile.
    difference
        Add a column with predicted less measured: where the prediction is too high, and where too low.
    vmin, vmax
        Limits of the colours, instead of the quantiles.
    cmap
        Colour map.
    size
        Size of the spots relative to their true size.
    $figure

    Returns
    -------
    Nothing, or with ``return_ax`` an array of :class:`~matplotlib.axes.Axes`, (genes x sections, 3): H&E, measured,
    predicted (and difference); the sections of a gene follow each other, and the H&E of a section, which is drawn once,
    stands in each of its rows. A table that has predictions only (made with ``table_added``) has no measured column:
    (genes x sections, 2).

    Raises
    ------
    KeyError
        No prediction under `key`, no such table, layer, section or gene.
    ValueError
        Genes that were not predicted, an empty list of genes, or a difference without measured values of the same unit.

    See Also
    --------
    scatter : the same values, one against the other.

    Examples
    --------
    >>> import nh2st_scverse as nh
    >>> sdata = nh.datasets.synthetic(n_sections=2, width_um=1200)
    >>> nh.tl.predict_expression(sdata, n_genes=30, max_epochs=3, progress=False)
    >>> nh.pl.expression(sdata, shapes_key="section_0_spots")
    """
    check_positive(size, argument="size")
    table_key = find_prediction(sdata, key, table_key, recorded=False)
    table = sdata.tables[table_key]
    prediction = read(table, key)
    panel = choose_genes(table, prediction, key, genes)
    unit = prediction.unit
    columns: list[tuple[str, np.ndarray, str]] = [("predicted", prediction.of(panel), unit)]  # (n_spots, G)
    if key in table.layers:
        beside = measure(table, layer, table.var_names.get_indexer(panel), unit)
        same_unit = beside.unit == unit  # others cannot share the scale
        columns.insert(0, ("measured", beside.values(), beside.unit))
        shared = shared and same_unit
    if difference and not (len(columns) == 2 and same_unit):
        raise ValueError(
            f"Expected measured values in the unit of the prediction ({unit}) for a difference, found "
            + ("counts that are drawn in another unit." if len(columns) == 2 else "a table with predictions only.")
        )

    drawn = pictures(
        sdata,
        table_key=table_key,
        shapes_key=shapes_key,
        image_key=image_key,
        microns_per_pixel=microns_per_pixel,
    )
    titles = {gene: score_text(prediction, gene) for gene in panel}
    look = Look(shared, vmin, vmax, cmap, size, difference)
    fig, axes = draw_maps(drawn, titles, columns, look, figsize=figsize, dpi=dpi)
    finish(fig, save, dpi)
    return axes if return_ax else None


@dataclass(frozen=True)
class Look:
    """How maps are coloured, and whether predicted less measured is drawn, too."""

    shared: bool
    vmin: float | None
    vmax: float | None
    cmap: str | Colormap
    size: float
    difference: bool = False


def draw_maps(
    drawn: Sequence[Picture],
    titles: Mapping[str, str],
    columns: Sequence[tuple[str, np.ndarray, str]],
    look: Look,
    *,
    figsize: tuple[float, float] | None,
    dpi: float | None,
) -> tuple[Figure, np.ndarray]:
    """A row for each gene or set and section: H&E, then the columns, each a title, values (n_spots, G) and a unit.

    `titles` are those of the genes and what is said of each in the last column.
    """
    shared, difference, size = look.shared, look.difference, look.size
    colours = colour_map(look.cmap, NOT_KNOWN)
    signed = mpl.colormaps["RdBu_r"].with_extremes(bad=NOT_KNOWN)
    bars = 0.8 * ((1 if shared else len(columns)) + difference)
    n_columns = 1 + len(columns) + difference
    every = np.concatenate([picture.rows for picture in drawn])
    values_of = [[array[every, g] for _, array, _ in columns] for g in range(len(titles))]
    groups = [[values] * len(columns) if shared else [[one] for one in values] for values in values_of]
    limits_of = [[colour_limits(group, look.vmin, look.vmax) for group in of_gene] for of_gene in groups]
    fig, axes = gene_panels(drawn, len(titles), n_columns, extra=bars, figsize=figsize, dpi=dpi)
    rows = iter(axes)
    for g, (name, score) in enumerate(titles.items()):
        values, limits = values_of[g], limits_of[g]
        for picture in drawn:
            ax = next(rows)
            for i, (title, array, bar_label) in enumerate(columns):
                last = i == len(columns) - 1
                text = f"{name}  {title}{score if last else ''}"
                spots = draw_values(ax[i + 1], picture, array[picture.rows, g], text, limits[i], colours, size)
                if last or not shared:
                    draw_colour_bar(ax[i + 1], spots, np.concatenate(values if shared else [values[i]]), bar_label)
            if difference:
                error = values[1] - values[0]
                reach = max(map(abs, colour_limits([error], None, None)))
                off = (columns[1][1] - columns[0][1])[picture.rows, g]
                spots = draw_values(
                    ax[-1], picture, off, f"{name}  predicted − measured", (-reach, reach), signed, size
                )
                draw_colour_bar(ax[-1], spots, error, columns[1][2])
    return fig, axes


def draw_values(
    ax: Axes,
    picture: Picture,
    values: np.ndarray,
    title: str,
    limits: tuple[float, float],
    cmap: Colormap,
    size: float,
) -> Collection:
    draw_image(ax, picture, faint=True)
    spots = draw_spots(ax, picture, size=size, array=np.ma.masked_invalid(values), cmap=cmap, norm=Normalize(*limits))
    draw_title(ax, title)
    if np.isnan(values).any():
        ax.set_xlabel("grey: not predicted", fontsize="small", color="0.4")
    return spots


def draw_colour_bar(ax: Axes, spots: Collection | AxesImage, values: np.ndarray, label: str) -> None:
    low, high = spots.get_clim()
    below, above = np.nanmin(values, initial=low) < low, np.nanmax(values, initial=high) > high
    extend = {(False, False): "neither", (True, False): "min", (False, True): "max", (True, True): "both"}
    inset = ax.inset_axes((1.03, 0.08, 0.04, 0.84))  # part of the panel: it never meets another one
    bar = ax.figure.colorbar(spots, cax=inset, label=label, extend=extend[bool(below), bool(above)])
    bar.outline.set_visible(False)  # type: ignore[operator]


def choose_genes(table: AnnData, prediction: Prediction, key: str, genes: str | Sequence[str] | None) -> list[str]:
    """Genes to draw: those named, or the ones with the highest held-out correlation."""
    names = table.var_names.to_numpy(dtype=str)
    if genes is None:
        order = np.argsort(-np.nan_to_num(prediction.score, nan=-np.inf), kind="stable")
        return [prediction.genes[i] for i in order[:N_DEFAULT]]
    panel = [genes] if isinstance(genes, str) else list(map(str, as_sequence(genes, argument="genes")))
    if not panel:
        raise ValueError("Expected one or more genes, found an empty list. genes=None draws the best ones.")
    missing = [gene for gene in panel if gene not in table.var_names]
    if missing:
        close = {gene: close_names(gene, names) for gene in missing}
        hint = "; ".join(f"{gene!r}: did you mean {found}?" for gene, found in close.items() if found)
        examples = f"It has {len(names)} genes, e.g. {[str(n) for n in names[:5]]}."
        raise KeyError(f"Genes {missing} are not in the table. {hint or examples}")
    predicted = list(prediction.genes)
    unpredicted = [gene for gene in panel if gene not in set(predicted)]
    if unpredicted:
        raise ValueError(
            f"Genes {unpredicted} are measured but not predicted under {key!r}: the panel has {len(predicted)} of "
            f"{len(names)} genes, e.g. {predicted[:5]} (all of them: "
            f"table.var_names[table.var[{key!r}]]). To predict others pass genes= to nh.tl.predict_expression or "
            "nh.tl.train."
        )
    return panel


def close_names(gene: str, names: np.ndarray) -> list[str]:
    """Genes of a similar name, in whatever case."""
    lower = {str(name).lower(): str(name) for name in names}
    return [lower[match] for match in difflib.get_close_matches(gene.lower(), lower, n=3, cutoff=0.6)]


def score_text(prediction: Prediction, gene: str) -> str:
    """Correlation of a gene on held-out tissue, and its noise ceiling when it is known."""
    (at,) = prediction.at([gene])
    r, ceiling = prediction.score[at], prediction.ceiling()[at]
    if np.isnan(r):
        return ""
    name = "r here" if prediction.foreign else "r"
    return f"  {name} = {r:.2f}" + ("" if np.isnan(ceiling) else f" of {ceiling:.2f}")


def colour_limits(arrays: Sequence[np.ndarray], vmin: float | None, vmax: float | None) -> tuple[float, float]:
    """Limits that hold the middle of every array; those given win."""
    finite = [values[np.isfinite(values)] for values in arrays]
    finite = [values for values in finite if len(values)]
    quantiles = np.array([np.quantile(values, QUANTILES) for values in finite] or [(0.0, 1.0)])
    low, high = float(quantiles[:, 0].min()), float(quantiles[:, 1].max())
    if high <= low:  # a gene that is counted in very few spots
        low, high = float(min(v.min() for v in finite)), float(max(v.max() for v in finite))
    if high <= low:
        high = low + 1
    low, high = low if vmin is None else vmin, high if vmax is None else vmax
    if not low < high:
        raise ValueError(f"Expected vmin= below vmax=, found colours from {low!r} to {high!r} for what is drawn.")
    return low, high
