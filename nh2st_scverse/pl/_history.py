"""The course of a training."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.ticker import MaxNLocator

from nh2st_scverse._docs import documented
from nh2st_scverse.pl._figure import finish

VALIDATION = "validation_pearson"
TITLES = {
    VALIDATION: "validation: Pearson",
    "loss": "training: loss, all terms",
    "mse": "training: squared error",
    "pearson": "training: 1 − Pearson",
    "query_contrast": "training: contrast of spots",
    "neighbour_contrast": "training: contrast of neighbourhoods",
}
N_COLUMNS = 3


@documented()
def history(
    model: Any,
    *,
    figsize: tuple[float, float] | None = None,
    dpi: float | None = None,
    save: str | Path | None = None,
    return_ax: bool = False,
) -> np.ndarray | None:
    """Draw the terms of the loss and the validation score of every member of a model over the epochs.

    A dot marks the epoch with the best validation score, whose weights a member keeps.

    Parameters
    ----------
    model
        A trained model, or anything with a frame ``history`` that has the columns ``member``, ``epoch``,
        ``validation_pearson`` and terms of the loss.
    $figure

    Returns
    -------
    Nothing, or with ``return_ax`` an array of :class:`~matplotlib.axes.Axes`: validation first, then each term.

    Raises
    ------
    TypeError
        `model` has no history.
    ValueError
        The history is empty or lacks a column.

    See Also
    --------
    nh2st_scverse.tl.train : the model.
    gene_scores : what came of it.

    Examples
    --------
    >>> import nh2st_scverse as nh
    >>> sdata = nh.datasets.synthetic(n_sections=2, width_um=1200)
    >>> model = nh.tl.train(sdata, n_genes=30, max_epochs=5, progress=False)
    >>> nh.pl.history(model)
    """
    table = getattr(model, "history", None)
    if not isinstance(table, pd.DataFrame):
        raise TypeError(
            f"Expected a trained model with a frame .history, found {type(model).__name__}. Train one with "
            "nh.tl.train(sdata) or load one with nh.NH2ST.load(folder)."
        )
    lacking = [column for column in ("member", "epoch", VALIDATION) if column not in table]
    if lacking or table.empty:
        raise ValueError(
            f"Expected a history with rows for 'member', 'epoch' and {VALIDATION!r}, found {len(table)} rows of "
            f"{[str(c) for c in table.columns]}."
        )
    terms = [name for name in TITLES if name in table and table[name].notna().any()]
    n_rows = -(-len(terms) // N_COLUMNS)
    n_columns = min(N_COLUMNS, len(terms))
    fig, grid = plt.subplots(
        n_rows,
        n_columns,
        figsize=figsize or (3.3 * n_columns, 2.6 * n_rows + 0.3),
        dpi=dpi,
        squeeze=False,
        layout="constrained",
    )
    axes = grid.ravel()
    members = list(table["member"].unique())
    colours = plt.get_cmap("tab10" if len(members) <= 10 else "tab20").colors  # type: ignore[attr-defined]
    for i, member in enumerate(members):
        rows = table[table["member"] == member].sort_values("epoch")
        colour = colours[i % len(colours)]
        for ax, term in zip(axes, terms, strict=False):
            ax.plot(rows["epoch"], rows[term], color=colour, linewidth=1.3, label=f"{member}")
        if rows[VALIDATION].notna().any():
            best = rows.loc[rows[VALIDATION].idxmax()]
            axes[0].plot(best["epoch"], best[VALIDATION], "o", color=colour, markersize=5)
    for ax, term in zip(axes, terms, strict=False):
        ax.set_title(TITLES[term], fontsize="medium")
        ax.spines[["top", "right"]].set_visible(False)
        ax.xaxis.set_major_locator(MaxNLocator(5, integer=True))
        ax.set_xlabel("epoch")
    for ax in axes[len(terms) :]:
        ax.set_axis_off()
    if len(members) > 1:
        handles, labels = axes[0].get_legend_handles_labels()
        fig.legend(handles, labels, title="member", loc="outside right center", frameon=False, fontsize="small")
    finish(fig, save, dpi)
    return axes[: len(terms)] if return_ax else None
