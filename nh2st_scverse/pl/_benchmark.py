"""How methods compare on tissue that none of them saw."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes

from nh2st_scverse._docs import documented
from nh2st_scverse._validators import check_one_of
from nh2st_scverse.pl._figure import finish

COLOUR, OTHERS = "#1f6f8b", "#8c8c8c"
ERRORS = ("mse", "mae", "mse_smoothed")  # less is better
LABELS = {
    "pearson": "Pearson correlation",
    "pearson_smoothed": "Pearson correlation,\nsmoothed target",
    "spearman": "Spearman correlation",
    "mse": "mean squared error",
    "mse_smoothed": "mean squared error,\nsmoothed target",
    "mae": "mean absolute error",
    "variance_ratio": "variance, predicted / measured",
    "ssim": "SSIM of the map",
}


@documented()
def benchmark(
    scores: pd.DataFrame,
    *,
    metric: str | Sequence[str] = "pearson",
    highlight: str = "nh2st",
    seed: int = 0,
    ax: Axes | None = None,
    figsize: tuple[float, float] | None = None,
    dpi: float | None = None,
    save: str | Path | None = None,
    return_ax: bool = False,
) -> np.ndarray | None:
    """Draw the scores of every method, best first, with 95 % intervals.

    A pale dot is a held-out section: the mean over all genes of the panel. The strong dot is their mean. In the panel
    of Pearson correlations the grey band is the noise ceiling, from the lowest to the highest of the sections. Methods
    whose name ends in ``@patch`` see one standard patch for each spot, as is usual in the field.

    Parameters
    ----------
    scores
        From :func:`nh2st_scverse.tl.cross_validate`.
    metric
        One or several of its metrics, one panel each.
    highlight
        Method in colour.
    seed
        Of the bootstrapped intervals.
    ax
        Axes to draw on, for one metric; None makes a figure.
    $figure

    Returns
    -------
    Nothing, or with ``return_ax`` an array of :class:`~matplotlib.axes.Axes`, one for each metric.

    Raises
    ------
    KeyError
        Columns that :func:`nh2st_scverse.tl.cross_validate` writes are not there.
    ValueError
        Unknown metrics, no metric, or `ax` with several.

    See Also
    --------
    gene_scores : gene by gene.

    Examples
    --------
    >>> import nh2st_scverse as nh
    >>> sdata = nh.datasets.synthetic(n_sections=2, width_um=1200)
    >>> scores = nh.tl.cross_validate(sdata, baselines=["ridge"], n_genes=20, max_epochs=3, progress=False)
    >>> nh.pl.benchmark(scores)
    """
    if not isinstance(scores, pd.DataFrame):
        raise TypeError(f"Expected the scores of nh.tl.cross_validate(...), found {type(scores).__name__}.")
    wanted = ["fold", "section", "method", "gene", "metric", "value"]
    lacking = [name for name in wanted if name not in scores]
    if lacking:
        raise KeyError(
            f"Expected the columns {wanted} of nh.tl.cross_validate(...), found no {lacking} among "
            f"{[str(c) for c in scores.columns]}."
        )
    metrics = [metric] if isinstance(metric, str) else list(metric)
    known = list(dict.fromkeys(scores["metric"]))
    for name in metrics:
        check_one_of(name, known, argument="metric")
    if not metrics or (ax is not None and len(metrics) > 1):
        raise ValueError(f"Expected one metric{'' if ax is None else ' for the given axes'}, found {metrics}.")
    means = {name: _means(scores, name) for name in metrics}
    methods = means[metrics[0]].groupby("method")["value"].mean().sort_values(ascending=metrics[0] in ERRORS)
    order = list(methods.index)
    if ax is None:
        size = (3.2 * len(metrics) + 1.2, 0.32 * len(order) + 1.0)
        fig, grid = plt.subplots(
            1, len(metrics), figsize=figsize or size, dpi=dpi, squeeze=False, sharey=True, layout="constrained"
        )
        axes = grid[0]
    else:
        fig, axes = ax.figure, np.array([ax])  # type: ignore[assignment]
    palette = {method: COLOUR if method == highlight else OTHERS for method in order}
    for panel, name in zip(axes, metrics, strict=True):
        about = {"data": means[name], "x": "value", "y": "method", "order": order, "ax": panel}
        same = {"hue": "method", "palette": palette, "legend": False}
        dots = {"size": 5, "linewidth": 0.8, "edgecolor": "white", "zorder": 5}  # seen on the interval, too
        sns.stripplot(**about, **same, **dots, alpha=0.7, jitter=False)  # its jitter is another one each time
        sns.pointplot(
            **about, **same, errorbar=("ci", 95), seed=seed, linestyle="none", markersize=8, err_kws={"linewidth": 1.8}
        )
        _ceiling(panel, scores, name)
        panel.set(xlabel=LABELS.get(name, name) + (" (less is better)" if name in ERRORS else ""), ylabel="")
        panel.spines[["top", "right"]].set_visible(False)
        panel.grid(axis="x", color="0.9", linewidth=0.8)
        panel.set_axisbelow(True)
    finish(fig, save, dpi)
    return axes if return_ax else None


def _means(scores: pd.DataFrame, metric: str) -> pd.DataFrame:
    """Mean over genes of each method in each held-out section; a constant prediction has a correlation of 0."""
    own = scores[scores["metric"] == metric]
    value = own["value"]
    if metric.startswith(("pearson", "spearman")):
        varies = own.groupby(["fold", "section", "gene"])["value"].transform("count") > 0
        value = value.where(value.notna() | ~varies, 0.0)
    means = own.assign(value=value).groupby(["method", "fold", "section"], sort=False)["value"].mean()
    return means.reset_index()


def _ceiling(ax: Axes, scores: pd.DataFrame, metric: str) -> None:
    if metric != "pearson" or "ceiling" not in scores or scores["ceiling"].isna().all():
        return
    of_section = scores[scores["metric"] == metric].groupby(["fold", "section"])["ceiling"].mean()
    low, high, mean = of_section.min(), of_section.max(), of_section.mean()
    ax.axvspan(low, high, color="0.9", linewidth=0, zorder=0)
    ax.axvline(mean, color="0.6", linestyle="--", linewidth=1, zorder=0)
    ax.annotate(
        f"noise ceiling {mean:.2f}",
        (mean, 1),
        xycoords=ax.get_xaxis_transform(),
        xytext=(0, 3),
        textcoords="offset points",
        ha="center",
        fontsize="small",
        color="0.4",
    )
