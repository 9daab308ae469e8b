"""What is high or low in a region."""

from __future__ import annotations

from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.axes import Axes

from nh2st_scverse._docs import documented
from nh2st_scverse.pl._figure import finish, text_inches
from nh2st_scverse.pl._gene_scores import CEILING_COLOUR, COLOUR, name_points

LEVEL = 0.05  # of q, the false discovery rate


@documented()
def region(
    found: pd.DataFrame,
    *,
    n_top: int = 8,
    ax: Axes | None = None,
    figsize: tuple[float, float] | None = None,
    dpi: float | None = None,
    save: str | Path | None = None,
    return_ax: bool = False,
) -> Axes | None:
    """Draw how much higher or lower each gene is inside a region, against how far it is to be trusted.

    Genes on the right are higher inside, those on the left lower; the higher a gene, the better it is predicted on
    held-out tissue. Those in colour differ by more than neighbouring spots that are alike explain (q below 0.05). The
    names are of genes that differ much and are predicted well (``trusted``).

    Parameters
    ----------
    found
        What :func:`nh2st_scverse.tl.region` returned.
    n_top
        How many genes are named on either side.
    ax
        Axes to draw on; None makes a figure.
    $figure

    Returns
    -------
    Nothing, or with ``return_ax`` the :class:`~matplotlib.axes.Axes`.

    Raises
    ------
    ValueError
        `found` is not what ``tl.region`` returns, has no gene with a known correlation, or `n_top` is negative.

    See Also
    --------
    nh2st_scverse.tl.region : the numbers.
    expression : what the genes look like on the tissue.

    Examples
    --------
    >>> import nh2st_scverse as nh
    >>> sdata = nh.datasets.synthetic(width_um=1500)
    >>> nh.tl.predict_expression(sdata, n_genes=20, max_epochs=2, progress=False)
    >>> nh.pl.region(nh.tl.region(sdata, "tissue", value="tumour"))
    """
    if n_top < 0:
        raise ValueError(f"Expected n_top of 0 or more, found {n_top}.")
    needed = {"auc", "q", "pearson", "trusted"}
    if not isinstance(found, pd.DataFrame) or not needed <= set(found):
        what = list(found) if isinstance(found, pd.DataFrame) else type(found).__name__
        raise ValueError(
            f"Expected what nh.tl.region returned, with columns {sorted(needed)}, found {what}: "
            "found = nh.tl.region(sdata, region)."
        )
    known = found[found["pearson"].notna()]
    if known.empty:
        raise ValueError("Expected correlations of genes, found NaN for every gene: nothing is known of their trust.")
    if ax is None:
        fig, ax = plt.subplots(figsize=figsize or (7.0, 4.2), dpi=dpi, layout="constrained")
    else:
        fig = ax.figure  # type: ignore[assignment]
    sure = known["q"] < LEVEL
    for some, colour, label in ((~sure, CEILING_COLOUR, "not told from chance"), (sure, COLOUR, f"q < {LEVEL}")):
        if some.any():
            label = f"{label} ({some.sum()})"
            ax.scatter(known["auc"][some], known["pearson"][some], s=14, color=colour, linewidths=0, label=label)
    low, high = min(0.0, float(known["pearson"].min())), max(0.2, float(known["pearson"].max()))
    ax.set_ylim(low - 0.06 * (high - low), high + 0.06 * (high - low))
    reach = max(0.1, float((known["auc"] - 0.5).abs().max()))
    named = known[sure & (known["trusted"] > 0)].sort_values("trusted", ascending=False, kind="stable")
    above, below = (named[side].head(n_top) for side in (named["auc"] > 0.5, named["auc"] < 0.5))
    inches = ax.get_position().width * ax.get_figure(root=True).get_figwidth()  # type: ignore[union-attr]
    names = [str(gene) for gene in (*above.index, *below.index)]
    share = min(0.3, 1.4 * max((text_inches(name, 9) for name in names), default=0.0) / inches)  # of the width
    room = 2 * reach * share / (1 - 2 * share)
    ax.set_xlim(0.5 - reach - room, 0.5 + reach + room)
    for genes, at, side in ((below, 0.5 - reach - 0.2 * room, "right"), (above, 0.5 + reach + 0.2 * room, "left")):
        genes = genes.sort_values("pearson", ascending=False, kind="stable")
        x, y = genes["auc"].to_numpy(), genes["pearson"].to_numpy()
        name_points(ax, x, y, [str(gene) for gene in genes.index], at=at, side=side)
    ax.axvline(0.5, color="0.7", lw=0.8, zorder=0)
    ax.set_xticks([tick for tick in np.round(np.arange(0, 1.01, 0.1), 1) if abs(tick - 0.5) <= reach])
    ax.set(xlabel="AUC: chance that a spot inside is higher than one outside", ylabel="Pearson correlation, held out")
    ax.spines[["top", "right"]].set_visible(False)
    ax.legend(frameon=False, fontsize="small", loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=2)
    finish(fig, save, dpi)
    return ax if return_ax else None
