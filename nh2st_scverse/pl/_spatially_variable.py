"""Whether the genes with the clearest patterns are the same, measured and predicted."""

from __future__ import annotations

from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from spatialdata import SpatialData

from nh2st_scverse._constants import KEY
from nh2st_scverse._docs import documented
from nh2st_scverse._keys import Keys
from nh2st_scverse._validators import choose_key
from nh2st_scverse.pl._expression import find_prediction, read
from nh2st_scverse.pl._figure import finish
from nh2st_scverse.pl._gene_scores import COLOUR, name_points

N_COLUMNS = 3


@documented()
def spatially_variable(
    sdata: SpatialData,
    *,
    key: str = KEY,
    n_top: int = 8,
    table_key: str | None = None,
    shapes_key: str | None = None,
    figsize: tuple[float, float] | None = None,
    dpi: float | None = None,
    save: str | Path | None = None,
    return_ax: bool = False,
) -> np.ndarray | None:
    """Draw Moran's I of every gene, predicted against measured, one panel for each section.

    Moran's I is high for a gene whose spots resemble the spots around them. Predictions have no counting noise and lie
    above the dashed line of equality; what counts is the order: a patterned gene should be patterned in the prediction.

    Parameters
    ----------
    sdata
        Object with predictions, after :func:`nh2st_scverse.tl.biology`.
    key
        Name under which the predictions were written.
    n_top
        How many of the genes with the clearest measured pattern are named.
    table_key
        Table with the predictions. None: the only one that has them.
    shapes_key
        Draw only this section. None: all sections.
    $figure

    Returns
    -------
    Nothing, or with ``return_ax`` an array of :class:`~matplotlib.axes.Axes`, one for each section.

    Raises
    ------
    KeyError
        No prediction under `key`, no results of :func:`nh2st_scverse.tl.biology`, no such section.
    ValueError
        `n_top` is negative.

    See Also
    --------
    expression : the patterns themselves.

    Examples
    --------
    >>> import nh2st_scverse as nh
    >>> sdata = nh.datasets.synthetic(n_sections=2, width_um=1200)
    >>> nh.tl.predict_expression(sdata, n_genes=30, max_epochs=3, progress=False)
    >>> table = nh.tl.biology(sdata)
    >>> nh.pl.spatially_variable(sdata)
    """
    if n_top < 0:
        raise ValueError(f"Expected n_top of 0 or more, found {n_top}.")
    table_key = find_prediction(sdata, key, table_key, recorded=False)
    moran = read(sdata.tables[table_key], key).moran
    if moran is None:
        raise KeyError(
            f"Expected Moran's I in uns[{Keys(key).moran!r}], found nothing there. Compute it with nh.tl.biology(sdata"
            + ("" if key == KEY else f", key={key!r}")
            + ")."
        )
    names = list(dict.fromkeys(moran["section"]))
    if shapes_key is not None:
        names = [choose_key(names, shapes_key, what="sections with Moran's I", argument="shapes_key")]
    n_columns = min(N_COLUMNS, len(names))
    n_rows = -(-len(names) // n_columns)
    fig, grid = plt.subplots(
        n_rows,
        n_columns,
        figsize=figsize or (4.2 * n_columns, 3.4 * n_rows + 0.2),
        dpi=dpi,
        squeeze=False,
        layout="constrained",
    )
    axes = grid.ravel()
    for ax, name in zip(axes, names, strict=False):
        own = moran[moran["section"] == name].set_index("gene")
        _draw(ax, own[["measured", "predicted"]], n_top)
        rank = own[["measured", "predicted"]].corr("spearman").iloc[0, 1]
        title = f"rank correlation {rank:.2f}"
        ax.set_title(title if len(names) == 1 else f"{name.removesuffix('_spots')}  {title}", fontsize="medium")
    for ax in axes[len(names) :]:
        ax.set_axis_off()
    fig.supxlabel("Moran's I, measured", fontsize="medium")
    fig.supylabel("Moran's I, predicted", fontsize="medium")
    finish(fig, save, dpi)
    return axes[: len(names)] if return_ax else None


def _draw(ax: Axes, moran: pd.DataFrame, n_top: int) -> None:
    ax.scatter(moran["measured"], moran["predicted"], s=14, color=COLOUR, alpha=0.7, linewidths=0)
    low, high = float(moran["measured"].min()), float(moran["measured"].max())
    span = high - low or 1.0
    bottom, top = float(moran["predicted"].min()), float(moran["predicted"].max())
    pad = 0.06 * (top - bottom or 1.0)
    ax.set_ylim(bottom - pad, top + pad)
    # names stand in a column right of the points, where nothing else is drawn
    ax.set_xlim(low - 0.06 * span, high + (0.5 if n_top else 0.06) * span)
    ax.axline((0, 0), slope=1, color="0.7", linestyle="--", linewidth=0.9, zorder=0)
    named = moran.nlargest(n_top, "measured").sort_values("predicted", ascending=False)
    x, y = named["measured"].to_numpy(), named["predicted"].to_numpy()
    name_points(ax, x, y, [str(gene) for gene in named.index], at=high + 0.12 * span, side="left")
    ax.spines[["top", "right"]].set_visible(False)
