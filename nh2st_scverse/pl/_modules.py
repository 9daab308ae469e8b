"""Sets of genes beside the H&E."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pandas as pd
from matplotlib.colors import Colormap
from spatialdata import SpatialData

from nh2st_scverse._constants import KEY
from nh2st_scverse._docs import documented
from nh2st_scverse._keys import Keys
from nh2st_scverse._validators import as_sequence, check_positive
from nh2st_scverse.data.units import measure
from nh2st_scverse.pl._expression import N_DEFAULT, Look, draw_maps
from nh2st_scverse.pl._figure import finish, pictures
from nh2st_scverse.prediction import find_prediction, read


@documented()
def modules(
    sdata: SpatialData,
    scores: pd.DataFrame,
    names: str | Sequence[str] | None = None,
    *,
    key: str = KEY,
    layer: str | None = None,
    table_key: str | None = None,
    shapes_key: str | None = None,
    image_key: str | Mapping[str, str] | None = None,
    microns_per_pixel: float | None = None,
    shared: bool = True,
    vmin: float | None = None,
    vmax: float | None = None,
    cmap: str | Colormap = "viridis",
    size: float = 1.0,
    figsize: tuple[float, float] | None = None,
    dpi: float | None = None,
    save: str | Path | None = None,
    return_ax: bool = False,
) -> np.ndarray | None:
    """Draw H&E, measured and predicted sets of genes side by side: one row for each set and section.

    What is drawn is the mean of the genes of a set. The title of a prediction gives the correlation of the set as one,
    and its noise ceiling, as :func:`nh2st_scverse.tl.modules` found them: how far to trust it.

    Parameters
    ----------
    sdata
        Object with scores of sets.
    scores
        What :func:`nh2st_scverse.tl.modules` returned.
    names
        Sets to draw. None: the first four of `scores`, its best.
    key
        Name under which the predictions were written.
    layer
        Layer with the counts that are drawn as measured; None means X. They are brought to the unit of the prediction.
    table_key
        Table with the predictions. None: the only one that has them.
    $drawn
    shared
        One colour scale for measured and predicted. In both cases a set has the same scale in all sections, which
        runs from the 2 % to the 98 % quantile.
    vmin, vmax
        Limits of the colours, instead of the quantiles.
    cmap
        Colour map.
    size
        Size of the spots relative to their true size.
    $figure

    Returns
    -------
    Nothing, or with ``return_ax`` an array of :class:`~matplotlib.axes.Axes`, (sets x sections, 3): H&E, measured,
    predicted. A table that has predictions only (made with ``table_added``) has no measured column.

    Raises
    ------
    KeyError
        No scores of sets in the table, or no such set.
    ValueError
        `scores` is not of this table; an empty list of sets.

    See Also
    --------
    expression : the same for single genes.
    nh2st_scverse.tl.modules : the scores.

    Examples
    --------
    >>> import nh2st_scverse as nh
    >>> sdata = nh.datasets.synthetic(width_um=1500)
    >>> nh.tl.predict_expression(sdata, n_genes=40, max_epochs=2, progress=False)
    >>> genes = sdata["table"].var_names[sdata["table"].var["nh2st"]]
    >>> found = nh.tl.modules(sdata, {"tumour": [g for g in genes if g.startswith("TUMOR")]})
    >>> nh.pl.modules(sdata, found)
    """
    check_positive(size, argument="size")
    table_key = find_prediction(sdata, key, table_key, recorded=False)
    table, place = sdata.tables[table_key], Keys(key).modules
    if place not in table.obsm:
        raise KeyError(f"Expected scores of sets in obsm[{place!r}]: call nh.tl.modules(sdata, gene_sets) first.")
    if not isinstance(scores, pd.DataFrame) or "genes" not in scores:
        raise ValueError(
            f"Expected scores= to be what nh.tl.modules returned, found {type(scores).__name__}: "
            "scores = nh.tl.modules(sdata, gene_sets)."
        )
    chosen = [names] if isinstance(names, str) else names
    chosen = list(scores.index[:N_DEFAULT] if chosen is None else map(str, as_sequence(chosen, argument="names")))
    if not chosen:
        raise ValueError("Expected one or more sets, found an empty list. names=None draws the best ones.")
    frame: pd.DataFrame = table.obsm[place]
    missing = [name for name in chosen if name not in scores.index or name not in frame]
    if missing:
        both = [name for name in scores.index if name in frame]
        raise KeyError(f"Sets {missing} are not in the scores and obsm[{place!r}]. Available: {both}.")
    prediction = read(table, key)
    columns = [("predicted", frame[chosen].to_numpy(dtype=np.float32), prediction.unit)]
    if key in table.layers:  # X has something else: what was measured
        means = []
        for name in chosen:
            at = table.var_names.get_indexer(scores.loc[name, "genes"].split(", "))
            beside = measure(table, layer, at, prediction.unit)
            means.append(beside.values().mean(axis=1))
        shared = shared and beside.unit == prediction.unit  # others cannot share the scale
        columns.insert(0, ("measured", np.stack(means, axis=1), beside.unit))
    drawn = pictures(
        sdata,
        table_key=table_key,
        shapes_key=shapes_key,
        image_key=image_key,
        microns_per_pixel=microns_per_pixel,
    )
    titles = {name: _score_text(scores.loc[name], "r here" if prediction.foreign else "r") for name in chosen}
    look = Look(shared, vmin, vmax, cmap, size)
    fig, axes = draw_maps(drawn, titles, columns, look, figsize=figsize, dpi=dpi)
    finish(fig, save, dpi)
    return axes if return_ax else None


def _score_text(row: pd.Series, name: str) -> str:
    r, ceiling = row.get("pearson", np.nan), row.get("ceiling", np.nan)
    return "" if pd.isna(r) else f"  {name} = {r:.2f}" + ("" if pd.isna(ceiling) else f" of {ceiling:.2f}")
