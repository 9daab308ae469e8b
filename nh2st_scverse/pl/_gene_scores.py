"""All genes by how well they are predicted."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from anndata import AnnData
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator
from sklearn.isotonic import isotonic_regression
from spatialdata import SpatialData

from nh2st_scverse._constants import KEY
from nh2st_scverse._docs import documented
from nh2st_scverse._keys import Keys
from nh2st_scverse.pl._figure import finish, text_inches
from nh2st_scverse.prediction import HELD_OUT, HERE, find_prediction, read

COLOUR, CEILING_COLOUR = "#1f6f8b", "#a6a6a6"


@documented()
def gene_scores(
    data: SpatialData | AnnData | pd.DataFrame,
    *,
    key: str = KEY,
    n_top: int = 8,
    table_key: str | None = None,
    ax: Axes | None = None,
    figsize: tuple[float, float] | None = None,
    dpi: float | None = None,
    save: str | Path | None = None,
    return_ax: bool = False,
) -> Axes | None:
    """Draw the held-out correlation of every predicted gene, best first, beside its noise ceiling.

    The ceiling is the highest correlation that any predictor could reach, given how few molecules were counted: a
    gene far below its ceiling is not seen in the image, one near it is predicted as well as it was measured.

    Parameters
    ----------
    data
        Object or table with predictions, or the result of :func:`nh2st_scverse.tl.evaluate`: a frame indexed by gene
        with the column ``pearson`` and perhaps ``ceiling``. Of a table the correlations are those on tissue that the
        predictor never saw, ``var["nh2st_pearson"]``, and the ceilings those that ``evaluate`` wrote. Of another tool
        they are those on these spots, and are named so.
    key
        Name under which the predictions were written.
    n_top
        How many of the best and of the worst genes are named.
    table_key
        Table with the predictions. None: the only one that has them.
    ax
        Axes to draw on; None makes a figure.
    $figure

    Returns
    -------
    Nothing, or with ``return_ax`` the :class:`~matplotlib.axes.Axes`.

    Raises
    ------
    KeyError
        No prediction under `key`, or no column of correlations.
    ValueError
        No gene has a correlation, or `n_top` is negative.

    See Also
    --------
    nh2st_scverse.tl.evaluate : the scores.
    expression : what they look like on the tissue.

    Examples
    --------
    >>> import pandas as pd
    >>> import nh2st_scverse as nh
    >>> scores = pd.DataFrame({"pearson": [0.6, 0.2], "ceiling": [0.8, 0.5]}, index=["CD74", "ACTB"])
    >>> nh.pl.gene_scores(scores)
    """
    if n_top < 0:
        raise ValueError(f"Expected n_top of 0 or more, found {n_top}.")
    scores, kind = _scores(data, key, table_key)
    if ax is None:
        fig, ax = plt.subplots(figsize=figsize or (7.5, 4.2), dpi=dpi, layout="constrained")
    else:
        fig = ax.figure  # type: ignore[assignment]
    n = len(scores)
    rank = np.arange(1, n + 1)
    mean = float(scores["pearson"].mean())
    if scores["ceiling"].notna().any():
        label = f"noise ceiling (mean {scores['ceiling'].mean():.2f})"
        ax.scatter(rank, scores["ceiling"], s=14, marker="_", color=CEILING_COLOUR, linewidths=1.2, label=label)
    ax.scatter(rank, scores["pearson"], s=14, color=COLOUR, linewidths=0, label=kind, zorder=3)
    across = [0.5, n + 0.5]
    ax.plot(across, [mean, mean], color=COLOUR, ls="--", lw=1, label=f"mean of {n} genes: {mean:.2f}", zorder=1)
    if float(scores["pearson"].min()) < 0:
        ax.plot(across, [0, 0], color="0.7", lw=0.8, zorder=0)

    low = min(0.0, float(scores["pearson"].min()))
    high = max(0.2, float(np.nanmax(scores.to_numpy(dtype=float))))
    ax.set_ylim(low - 0.06 * (high - low), high + 0.06 * (high - low))
    n_best = min(n_top, (n + 1) // 2)
    n_worst = min(n_top, n - n_best)
    # names stand in columns left and right of the points, where nothing else is drawn
    named = [*scores.index[:n_best], *scores.index[n - n_worst :]]
    inches = ax.get_position().width * ax.get_figure(root=True).get_figwidth()  # type: ignore[union-attr]
    share = min(0.3, 1.4 * max((text_inches(str(gene), 9) for gene in named), default=0.0) / inches)  # of the width
    room = max(0.26 * max(n, 4), share / (1 - 2 * share) * n) if n_best else 0.03 * n
    ax.set_xlim(0.5 - room, n + 0.5 + room)
    for some, x, side in ((slice(0, n_best), -0.2 * room, "right"), (slice(n - n_worst, n), n + 0.2 * room, "left")):
        values = scores["pearson"].iloc[some]
        name_points(ax, rank[some], values.to_numpy(), [str(gene) for gene in values.index], at=0.5 + x, side=side)

    ticks = [t for t in MaxNLocator(5, integer=True).tick_values(1, n) if 1 < t <= n]
    ax.set_xticks([1, *ticks])
    ax.set(xlabel="genes, best first", ylabel="Pearson correlation with measured")
    ax.spines[["top", "right"]].set_visible(False)
    ax.spines["bottom"].set_bounds(1, n)
    ax.legend(frameon=False, fontsize="small", loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=3)
    finish(fig, save, dpi)
    return ax if return_ax else None


def _scores(data: SpatialData | AnnData | pd.DataFrame, key: str, table_key: str | None) -> tuple[pd.DataFrame, str]:
    """Columns pearson and ceiling of the genes that have a correlation, best first, and what kind of correlation."""
    kind = HELD_OUT
    if isinstance(data, pd.DataFrame):
        if "pearson" not in data:
            raise KeyError(
                f"Expected a column 'pearson' of correlations, found {[str(c) for c in data.columns]}. Make it with "
                "nh.tl.predict_expression(sdata), or pass the result of nh.tl.evaluate(sdata)."
            )
        known = {name: data[name].astype(float) if name in data else np.nan for name in ("pearson", "ceiling")}
        scores, where = pd.DataFrame(known, index=data.index), "column 'pearson'"
        seen = data.attrs.get("in_sample", False)  # None: of another tool
        kind = HERE if seen is None else "correlation on training tissue" if seen else kind
    else:
        table = data
        if not isinstance(table, AnnData):
            found = find_prediction(data, key, table_key, recorded=False)
            table = data.tables[found]
        prediction = read(table, key)
        kind = prediction.score_name
        known = {"pearson": prediction.score, "ceiling": prediction.ceiling()}
        scores, where = pd.DataFrame(known, index=pd.Index(prediction.genes)), f"var[{Keys(key).pearson!r}]"
    scores = scores[scores["pearson"].notna()].sort_values("pearson", ascending=False, kind="stable")
    if scores.empty:
        raise ValueError(
            f"Expected correlations in {where}, found NaN for every gene. Pass the result of nh.tl.evaluate(sdata) to "
            "draw how well they fit what is measured here."
        )
    return scores, kind


def name_points(ax: Axes, x: np.ndarray, y: np.ndarray, names: list[str], *, at: float, side: str) -> None:
    """Names of points of descending height in a column at x = `at`, each with a thin line to its point."""
    low, high = ax.get_ylim()
    inches = ax.get_position().height * ax.get_figure(root=True).get_figheight()  # type: ignore[union-attr]
    heights = _spread(y, 0.15 / inches * (high - low), low, high)
    # from the end of the name that is next to the points, not across other names
    line: dict[str, Any] = {"arrowstyle": "-", "color": "0.75", "linewidth": 0.6, "shrinkA": 1, "shrinkB": 2}
    line["relpos"] = (1.0 if side == "right" else 0.0, 0.5)
    for name, point, height in zip(names, zip(x, y, strict=True), heights, strict=True):
        ax.annotate(
            name,
            point,
            xytext=(at, height),
            ha=side,
            va="center",
            fontsize="small",
            arrowprops=line,
        )


def _spread(y: np.ndarray, gap: float, low: float, high: float) -> np.ndarray:
    """Move descending values apart until neighbours are `gap` from each other, about where they were."""
    if not len(y):
        return y
    steps = np.arange(len(y)) * gap
    # least movement in squares: what is left after the smallest allowed steps must descend
    spread = isotonic_regression(y + steps, increasing=False) - steps
    over, under = max(spread[0] + gap / 2 - high, 0.0), max(low + gap / 2 - spread[-1], 0.0)
    return spread - over + under
