"""Predicted against measured expression, spot by spot."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator
from spatialdata import SpatialData

from nh2st_scverse._constants import KEY
from nh2st_scverse._docs import documented
from nh2st_scverse._validators import as_count, check_positive
from nh2st_scverse.data.units import measure
from nh2st_scverse.pl._expression import choose_genes, score_text
from nh2st_scverse.pl._figure import draw_title, finish
from nh2st_scverse.prediction import find_prediction, read

N_COLUMNS = 4
PANEL_INCHES = 2.6
MOST_COLOURS = 10


@documented()
def scatter(
    sdata: SpatialData,
    genes: str | Sequence[str] | None = None,
    *,
    key: str = KEY,
    layer: str | None = None,
    table_key: str | None = None,
    size: float = 1.0,
    ncols: int = N_COLUMNS,
    figsize: tuple[float, float] | None = None,
    dpi: float | None = None,
    save: str | Path | None = None,
    return_ax: bool = False,
) -> np.ndarray | None:
    """Draw the predicted against the measured expression of every spot, one panel for each gene.

    The title gives the correlation on held-out tissue and, after :func:`nh2st_scverse.tl.evaluate`, its noise ceiling:
    r = 0.60 of 0.77. The dashed line is a perfect prediction. A prediction varies less than the measured values, which
    have counting noise on top, so the cloud is flatter than the line even where it is as good as it can be. Sections
    have colours of their own: clouds one above the other are a difference between sections that the prediction has not
    found.

    Parameters
    ----------
    sdata
        Object with predictions, see :func:`nh2st_scverse.tl.predict_expression`, and counts.
    genes
        Genes to draw. None: the four with the highest held-out correlation.
    key
        Name under which the predictions were written.
    layer
        Layer with the counts; None means X.
    table_key
        Table with the predictions. None: the only one that has them.
    size
        Size of the points, relative to the usual one.
    ncols
        Panels in a row.
    $figure

    Returns
    -------
    Nothing, or with ``return_ax`` an array of :class:`~matplotlib.axes.Axes`, one for each gene.

    Raises
    ------
    KeyError
        No prediction under `key`, no such table, layer or gene.
    ValueError
        Genes that were not predicted, an empty list of genes, a table without counts, a size or number of columns that
        is not above 0.

    See Also
    --------
    expression : where on the tissue they are.

    Examples
    --------
    >>> import nh2st_scverse as nh
    >>> sdata = nh.datasets.synthetic(n_sections=2, width_um=1200)
    >>> nh.tl.predict_expression(sdata, n_genes=30, max_epochs=3, progress=False)
    >>> nh.pl.scatter(sdata)
    """
    check_positive(size, argument="size")
    ncols = as_count(ncols, argument="ncols")
    table_key = find_prediction(sdata, key, table_key, recorded=False)
    table = sdata.tables[table_key]
    if key not in table.layers:
        raise ValueError(
            f"Expected measured beside predicted expression, found a table that holds predictions only ({key!r} is in "
            "X). Predict into a table with counts: nh.tl.predict_expression(sdata) without table_added=."
        )
    prediction = read(table, key)
    panel = choose_genes(table, prediction, key, genes)
    predicted = prediction.of(panel)  # (n_spots, G)
    beside = measure(table, layer, table.var_names.get_indexer(panel), prediction.unit)
    measured = beside.values()
    regions = table.obs[table.uns["spatialdata_attrs"]["region_key"]].astype(str).to_numpy()
    names = list(dict.fromkeys(regions))
    palette = plt.get_cmap("tab10" if len(names) <= MOST_COLOURS else "tab20").colors  # type: ignore[attr-defined]

    ncols = min(ncols, len(panel))
    n_rows = -(-len(panel) // ncols)
    fig, grid = plt.subplots(
        n_rows,
        ncols,
        figsize=figsize or (PANEL_INCHES * ncols + 0.3, 2.7 * n_rows + 0.3),
        dpi=dpi,
        squeeze=False,
        layout="constrained",
    )
    axes = grid.ravel()
    dot = size * float(np.clip(4000 / len(regions), 2, 14))
    order = np.random.default_rng(0).permutation(len(regions))  # no section lies on top of the others
    colours = np.array([palette[names.index(region) % len(palette)] for region in regions])
    for g, (ax, gene) in enumerate(zip(axes, panel, strict=False)):
        _draw(ax, measured[order, g], predicted[order, g], colours[order], dot)
        draw_title(ax, f"{gene}{score_text(prediction, gene)}", inches=PANEL_INCHES - 0.2, fontsize="medium")
    for ax in axes[len(panel) :]:
        ax.set_axis_off()
    fig.supxlabel(f"measured, {beside.unit}", fontsize="medium")
    fig.supylabel("predicted" + ("" if beside.unit == prediction.unit else f", {prediction.unit}"), fontsize="medium")
    if len(names) > 1:
        handles = [
            plt.Line2D(
                [], [], marker="o", linestyle="", color=palette[i % len(palette)], label=name.removesuffix("_spots")
            )
            for i, name in enumerate(names)
        ]
        fig.legend(handles=handles, loc="outside right center", frameon=False, fontsize="small", title="section")
    finish(fig, save, dpi)
    return axes[: len(panel)] if return_ax else None


def _draw(ax: Axes, measured: np.ndarray, predicted: np.ndarray, colours: np.ndarray, size: float) -> None:
    """One gene; both axes have one scale, so that the slope can be read."""
    known = np.isfinite(predicted)
    ax.scatter(measured[known], predicted[known], s=size, c=colours[known], alpha=0.6, linewidths=0, rasterized=True)
    both = np.concatenate([measured[known], predicted[known]])
    low, high = (float(both.min()), float(both.max())) if len(both) else (0.0, 1.0)
    pad = 0.05 * (high - low or 1)
    limits = low - pad, high + pad
    ax.plot(limits, limits, color="0.6", linestyle="--", linewidth=0.9, zorder=0)
    ax.set(xlim=limits, ylim=limits, aspect="equal")
    for axis in (ax.xaxis, ax.yaxis):
        axis.set_major_locator(MaxNLocator(4, integer=True))
    ax.spines[["top", "right"]].set_visible(False)
