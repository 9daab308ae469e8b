"""Clusters of measured and of predicted expression, side by side on the tissue."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pandas as pd
from anndata import AnnData
from matplotlib.axes import Axes
from matplotlib.colors import to_hex
from matplotlib.lines import Line2D
from scipy.optimize import linear_sum_assignment
from sklearn.metrics import adjusted_rand_score
from spatialdata import SpatialData

from nh2st_scverse._docs import documented
from nh2st_scverse._validators import check_positive, choose_key
from nh2st_scverse.pl._figure import (
    NOT_KNOWN,
    draw_image,
    draw_scale_bar,
    draw_spots,
    finish,
    pictures,
    section_title,
    tissue_panels,
)

MOST_LABELS = 50


@documented()
def clusters(
    sdata: SpatialData,
    measured: str,
    predicted: str,
    *,
    table_key: str | None = None,
    shapes_key: str | None = None,
    image_key: str | Mapping[str, str] | None = None,
    microns_per_pixel: float | None = None,
    size: float = 1.0,
    figsize: tuple[float, float] | None = None,
    dpi: float | None = None,
    save: str | Path | None = None,
    return_ax: bool = False,
) -> np.ndarray | None:
    """Draw two clusterings of the spots side by side, in matching colours: one row for each section.

    Names of clusters are arbitrary. Each predicted cluster gets the colour of the measured cluster it shares most
    spots with, one to one (Hungarian matching), and keeps its own name; clusters without a partner get a colour of
    their own. The title gives the adjusted Rand index over all spots that are drawn and have both labels: 1 for the
    same clusters, about 0 for unrelated ones.

    Parameters
    ----------
    sdata
        Object with a table that annotates spots.
    measured, predicted
        Columns of its ``obs``, for example leiden clusters of measured and of predicted expression.
    table_key
        Table with the columns. None: the only one that has them.
    $drawn
    size
        Size of the spots relative to their true size.
    $figure

    Returns
    -------
    Nothing, or with ``return_ax`` an array of :class:`~matplotlib.axes.Axes`, (sections, 2): measured, predicted.

    Raises
    ------
    KeyError
        No such table, column or section.
    ValueError
        No spot has both labels, or a column has too many different values to be a clustering.

    See Also
    --------
    spatially_variable : whether the same genes have a pattern.
    nh2st_scverse.tl.biology : the agreement as numbers.

    Examples
    --------
    >>> import nh2st_scverse as nh
    >>> sdata = nh.datasets.synthetic(width_um=1200)
    >>> table = sdata.tables["table"]
    >>> table.obs["dense"] = (table.obs["n_nuclei"] > 10).astype(str)
    >>> nh.pl.clusters(sdata, "tissue", "dense")
    """
    check_positive(size, argument="size")
    table_key = _table_with(sdata, (measured, predicted), table_key)
    table = sdata.tables[table_key]
    drawn = pictures(
        sdata,
        table_key=table_key,
        shapes_key=shapes_key,
        image_key=image_key,
        microns_per_pixel=microns_per_pixel,
    )
    rows = np.concatenate([picture.rows for picture in drawn])
    columns = {"measured": labels_of(table, measured), "predicted": labels_of(table, predicted)}
    known = rows[columns["measured"].notna().to_numpy()[rows] & columns["predicted"].notna().to_numpy()[rows]]
    if not len(known):
        raise ValueError(f"Expected spots with a label in both {measured!r} and {predicted!r}, found none.")
    rand = adjusted_rand_score(*(column.iloc[known].astype(str) for column in columns.values()))
    partner = match_labels(columns["measured"].iloc[known], columns["predicted"].iloc[known])
    first = palette_of(table, measured, columns["measured"])
    palettes = {"measured": first, "predicted": _matched_palette(first, columns["predicted"], partner)}
    titles = {"measured": f"measured\n{measured}", "predicted": f"predicted  ARI = {rand:z.2f}\n{predicted}"}

    fig, axes = tissue_panels(drawn, 2, figsize=figsize, dpi=dpi, extra=1.0)
    for i, picture in enumerate(drawn):
        for ax, (name, labels) in zip(axes[i], columns.items(), strict=True):
            draw_image(ax, picture, faint=True)
            shown = labels.iloc[picture.rows]
            colours = [palettes[name].get(label, NOT_KNOWN) for label in shown]
            draw_spots(ax, picture, size=size, facecolors=colours)
            if i == 0:
                ax.set_title(titles[name])
                draw_legend(ax, palettes[name])
            if shown.isna().any():
                ax.set_xlabel("grey: no label", fontsize="small", color="0.4")
        draw_scale_bar(axes[i, 0], picture)
        if len(drawn) > 1:
            axes[i, 0].set_ylabel(section_title(picture))
    finish(fig, save, dpi)
    return axes if return_ax else None


def match_labels(measured: pd.Series, predicted: pd.Series) -> dict[str, str]:
    """Predicted label -> measured label, one to one, so that most spots agree; without pairs that share no spot."""
    shared = pd.crosstab(predicted.astype(str), measured.astype(str))
    pairs = zip(*linear_sum_assignment(shared.to_numpy(), maximize=True), strict=True)
    return {shared.index[p]: shared.columns[m] for p, m in pairs if shared.iat[p, m] > 0}


def _table_with(sdata: SpatialData, columns: tuple[str, str], table_key: str | None) -> str:
    if not isinstance(sdata, SpatialData):
        raise TypeError(f"Expected a SpatialData object, found {type(sdata).__name__}.")
    if table_key is not None:
        choose_key(sdata.tables, table_key, what="tables", argument="table_key")
    tables = {name: table for name, table in sdata.tables.items() if table_key in (None, name)}
    having = [name for name, table in tables.items() if all(column in table.obs for column in columns)]
    if not having:
        available = {name: [str(c) for c in table.obs.columns] for name, table in tables.items()}
        raise KeyError(
            f"Expected columns {list(columns)} in the obs of a table, found {available}. Make clusters with "
            "sc.tl.leiden(table, key_added=...)."
        )
    return choose_key(having, None, what=f"tables with {list(columns)}", argument="table_key")


def labels_of(table: AnnData, column: str) -> pd.Series:
    """Labels as strings in a categorical: numbers in their order, names in the order of their column if it has one."""
    values = table.obs[column]
    if values.nunique() > MOST_LABELS:
        raise ValueError(
            f"Expected clusters in obs[{column!r}], found {values.nunique()} different values (at most {MOST_LABELS} "
            "can be told apart). Pass a column with labels, such as sc.tl.leiden writes."
        )
    labels = values.astype("category").cat.remove_unused_categories()
    names = sorted(labels.cat.categories, key=_number_first)
    chosen = isinstance(values.dtype, pd.CategoricalDtype)  # the order, by whoever made the column
    if chosen and (labels.cat.ordered or not all(np.isfinite(_number_first(name)[0]) for name in names)):
        names = list(labels.cat.categories)
    return labels.cat.reorder_categories(names).cat.rename_categories(str)


def _number_first(label: object) -> tuple[float, str]:
    try:
        return float(str(label)), ""
    except ValueError:
        return float("inf"), str(label)


def cluster_colours(n: int) -> list[str]:
    """Colours of scanpy for `n` categories."""
    from scanpy.plotting import palettes

    sizes = (palettes.default_20, palettes.default_28, palettes.default_102)
    palette = next((p for p in sizes if n <= len(p)), palettes.default_102)
    return [to_hex(colour) for colour in palette[:n]]


def palette_of(table: AnnData, column: str, labels: pd.Series) -> dict[str, str]:
    """The colours that scanpy has stored for a column, else new ones."""
    categories = list(labels.cat.categories)
    stored = table.uns.get(f"{column}_colors")
    names = [str(c) for c in table.obs[column].astype("category").cat.categories]  # stored in this order
    if stored is not None and len(stored) == len(names):
        colours = {name: to_hex(colour) for name, colour in zip(names, stored, strict=True)}
        return {name: colours[name] for name in categories}
    return dict(zip(categories, cluster_colours(len(categories)), strict=True))


def _matched_palette(first: dict[str, str], labels: pd.Series, partner: dict[str, str]) -> dict[str, str]:
    alone = [name for name in labels.cat.categories if name not in partner]
    used = set(first.values())
    spare = [colour for colour in cluster_colours(len(used) + len(alone)) if colour not in used]
    own = dict(zip(alone, spare, strict=False))  # at least as many: no more than len(used) were taken away
    return {name: first[partner[name]] if name in partner else own[name] for name in labels.cat.categories}


def draw_legend(ax: Axes, palette: dict[str, str]) -> None:
    """Name the clusters beside the axes, by their colours."""
    handles = [
        Line2D([], [], marker="o", linestyle="", color=colour, markersize=7, label=name)
        for name, colour in palette.items()
    ]
    ax.legend(
        handles=handles,
        loc="center left",
        bbox_to_anchor=(1.0, 0.5),
        frameon=False,
        fontsize="small",
        ncols=1 + (len(handles) - 1) // 14,
        handletextpad=0.1,
        borderaxespad=0.2,
    )
