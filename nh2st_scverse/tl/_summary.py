"""``tl.summarise`` and ``tl.paired_differences``: what cross-validation found, with intervals."""

from __future__ import annotations

import numpy as np
import pandas as pd

from nh2st_scverse._options import as_seed
from nh2st_scverse._validators import as_count, check_one_of
from nh2st_scverse.metrics import bootstrap

UNIT = ["fold", "section"]  # what is held out: the rows that are resampled
USUAL = ("partial_pearson", "spearman", "mse", "mae", "ssim", "variance_ratio")
N_TOP = 50  # genes, as published
INTERVAL = (0.025, 0.975)


def summarise(scores: pd.DataFrame, *, n_resamples: int = 1000, seed: int = 0) -> pd.DataFrame:
    """One row for each method: the mean of every score over genes and held-out sections, with its 95 % interval.

    Parameters
    ----------
    scores
        From :func:`cross_validate`.
    n_resamples, seed
        Of the intervals: held-out sections and genes are resampled together. With few sections they are too narrow.

    Returns
    -------
    Indexed by ``method``. Each score has a column with its mean, and two with the ending ``_low`` and ``_high``:

    ``pearson``
        Over all genes of the panel, against the unsmoothed target. A method that predicts a constant counts as 0.
    ``of_ceiling``
        Mean ``pearson`` divided by the mean noise ceiling of the same genes; NaN without raw counts.
    ``pearson_measurable50``
        Over the 50 genes with the highest ceiling, which no prediction has a say in.
    ``partial_pearson``
        What is left of ``pearson`` when total counts are taken out; not there without raw counts.
    ``spearman``, ``mse``, ``mae``, ``ssim``, ``variance_ratio``
        See :mod:`nh2st_scverse.metrics`.
    ``pearson_smoothed``, ``mse_smoothed``
        Against the target the model was trained on, where that was smoothed (preset ``"paper"``).
    ``pearson_top50_published``
        The published metric, which flatters: in each fold the 50 genes that this method predicted best *by test score*,
        against the target the model was trained on; mean over folds.

    Raises
    ------
    KeyError
        Columns that :func:`cross_validate` writes are not there.

    See Also
    --------
    cross_validate, paired_differences

    Examples
    --------
    >>> import nh2st_scverse as nh
    >>> sdata = nh.datasets.synthetic(n_sections=2, width_um=1200)
    >>> scores = nh.tl.cross_validate(sdata, baselines=["ridge"], n_genes=20, max_epochs=3, progress=False)
    >>> nh.tl.summarise(scores)[["pearson", "pearson_low", "pearson_high"]].shape
    (2, 3)
    """
    _check(scores, n_resamples, seed)
    found = {}
    for method, own in scores.groupby("method", sort=False):
        tables = {metric: _table(scores, method, metric) for metric in own["metric"].unique()}
        ceiling = own[own["metric"] == "pearson"].pivot(index=UNIT, columns="gene", values="ceiling")
        pearson = tables["pearson"]
        ceiling = ceiling.reindex(index=pearson.index, columns=pearson.columns).where(pearson.notna())
        highest = ceiling.rank(axis=1, ascending=False) <= N_TOP
        usual = {name: tables[name] for name in USUAL if name in tables}
        smoothed = {name: tables[name] for name in tables if name.endswith("_smoothed")}
        best = _published(tables.get("pearson_smoothed", pearson))
        row: dict[str, float] = {}
        row |= _interval("pearson", pearson, n_resamples, seed)
        row |= _interval("of_ceiling", pearson.where(ceiling.notna()), n_resamples, seed, divisor=ceiling)
        row |= _interval(f"pearson_measurable{N_TOP}", pearson.where(highest), n_resamples, seed)
        for name, table in (usual | smoothed).items():
            row |= _interval(name, table, n_resamples, seed)
        row |= _interval(f"pearson_top{N_TOP}_published", best, n_resamples, seed)
        found[method] = row
    return pd.DataFrame.from_dict(found, orient="index").rename_axis("method")


def paired_differences(
    scores: pd.DataFrame,
    *,
    method: str = "nh2st",
    metric: str = "pearson",
    by: str | None = None,
    n_resamples: int = 1000,
    seed: int = 0,
) -> pd.DataFrame:
    """How much better a method is than each other one, on the same genes of the same held-out sections.

    Parameters
    ----------
    scores
        From :func:`cross_validate`.
    method
        The method that the others are compared with.
    metric
        Which score. Of errors (``"mse"``, ``"mae"``) less is better.
    by
        None: one row for each other method, sections and genes are resampled. ``"section"``: one for each held-out
        section, genes are resampled. ``"gene"``: one for each gene, sections are resampled.
    n_resamples, seed
        Of the 95 % intervals.

    Returns
    -------
    Columns ``other`` (the method it is compared with), ``section`` or ``gene`` if asked for, ``difference`` (mean of
    `method` less the other one), ``low``, ``high`` (NaN where there is one value only), ``greater`` (share of the pairs
    in which `method` has the greater score) and ``n`` (pairs of gene and section).

    Raises
    ------
    KeyError
        Columns that :func:`cross_validate` writes are not there.
    ValueError
        Unknown method, metric or `by`, or no other method.

    See Also
    --------
    cross_validate, summarise

    Examples
    --------
    >>> import nh2st_scverse as nh
    >>> sdata = nh.datasets.synthetic(n_sections=2, width_um=1200)
    >>> scores = nh.tl.cross_validate(sdata, baselines=["ridge"], n_genes=20, max_epochs=3, progress=False)
    >>> nh.tl.paired_differences(scores, by="section")["other"].tolist()
    ['ridge', 'ridge']
    """
    _check(scores, n_resamples, seed)
    methods = list(dict.fromkeys(scores["method"]))
    check_one_of(method, methods, argument="method")
    check_one_of(metric, list(dict.fromkeys(scores["metric"])), argument="metric")
    check_one_of(by, (None, "section", "gene"), argument="by")
    if len(methods) < 2:
        raise ValueError(f"Expected another method beside {method!r}, found none: pass baselines= to cross_validate.")
    own = _table(scores, method, metric)
    rows = []
    for other in methods:
        if other == method:
            continue
        difference = own - _table(scores, other, metric)
        parts = [(None, difference)]
        if by == "section":
            parts = list(difference.groupby(level="section", sort=False))
        elif by == "gene":
            parts = [(name, difference[[name]]) for name in difference]
        for name, part in parts:
            values = part.to_numpy(dtype=float)
            known = values[np.isfinite(values)]
            low, high = np.nan, np.nan
            if len(known) > 1:
                means = bootstrap(values, n_resamples=n_resamples, seed=seed, rows=by != "section")
                low, high = np.nanquantile(means, INTERVAL)
            rows.append(
                {"other": other}
                | ({by: name} if by else {})
                | {"difference": known.mean() if len(known) else np.nan, "low": low, "high": high}
                | {"greater": (known > 0).mean() if len(known) else np.nan, "n": len(known)}
            )
    return pd.DataFrame(rows)


def _check(scores: pd.DataFrame, n_resamples: int, seed: int) -> None:
    if not isinstance(scores, pd.DataFrame):
        raise TypeError(f"Expected scores to be the table of nh.tl.cross_validate(...), found {type(scores).__name__}.")
    as_count(n_resamples, argument="n_resamples")
    as_seed(seed)
    wanted = [*UNIT, "method", "gene", "metric", "value", "ceiling"]
    lacking = [name for name in wanted if name not in scores]
    if lacking:
        raise KeyError(
            f"Expected the columns {wanted} of nh.tl.cross_validate(...), found no {lacking} among "
            f"{[str(c) for c in scores.columns]}."
        )
    if not len(scores):
        raise ValueError("Expected scores of nh.tl.cross_validate(...), found an empty table.")


def _table(scores: pd.DataFrame, method: str, metric: str) -> pd.DataFrame:
    """Held-out sections x genes. A constant prediction has no correlation: 0 where another method has one."""
    every = scores[scores["metric"] == metric]
    table = every[every["method"] == method].pivot(index=UNIT, columns="gene", values="value")
    if metric.startswith(("pearson", "partial_pearson", "spearman")):
        varies = every.groupby([*UNIT, "gene"])["value"].count().unstack("gene") > 0
        table = table.where(table.notna() | ~varies.reindex_like(table), 0.0)
    return table


def _published(pearson: pd.DataFrame) -> pd.DataFrame:
    """Mean over the best genes of each fold, one column."""
    of_fold = pearson.groupby(level="fold", sort=False).mean()
    return of_fold.apply(lambda row: row.nlargest(N_TOP).mean(), axis=1).to_frame()


def _interval(
    name: str, table: pd.DataFrame, n_resamples: int, seed: int, divisor: pd.DataFrame | None = None
) -> dict[str, float]:
    """Mean of a table with its interval; with a divisor the quotient of the two means."""
    values = table.to_numpy(dtype=float)
    known = np.isfinite(values)
    if not known.any():
        return dict.fromkeys((name, f"{name}_low", f"{name}_high"), np.nan)
    mean, means = values[known].mean(), bootstrap(values, n_resamples=n_resamples, seed=seed)
    if divisor is not None:
        below = divisor.to_numpy(dtype=float)
        mean, means = mean / below[known].mean(), means / bootstrap(below, n_resamples=n_resamples, seed=seed)
    low, high = np.nanquantile(means, INTERVAL)
    return {name: float(mean), f"{name}_low": float(low), f"{name}_high": float(high)}
