"""``tl.evaluate``: predicted against measured, gene by gene."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
import scipy.sparse as sp
from anndata import AnnData
from spatialdata import SpatialData

from nh2st_scverse import metrics
from nh2st_scverse._constants import KEY, SCORES
from nh2st_scverse._keys import Keys
from nh2st_scverse._logging import logger
from nh2st_scverse.data.expression import is_logged, matrix, measured
from nh2st_scverse.prediction import check_free, find_prediction, put


def evaluate(
    sdata: SpatialData, *, key: str = KEY, table_key: str | None = None, layer: str | None = None, n_splits: int = 5
) -> pd.DataFrame:
    """Score a prediction against the measured expression, gene by gene.

    Scores are taken within each section and averaged over the sections. They are honest if the predictor never saw the
    spots: after cross-fitting, or for sections that a model was not trained on.

    Parameters
    ----------
    sdata
        Object with a prediction from :func:`predict_expression`.
    key
        Name of the prediction.
    table_key
        Table; None means the only one that has the prediction.
    layer
        Layer with the counts; None means X.
    n_splits
        Random halvings of the counts for the noise ceiling.

    Returns
    -------
    One row for each predicted gene: ``pearson``, ``spearman``, ``mse``, ``mae``, ``variance_ratio``, ``ceiling`` (the
    highest Pearson correlation that counting noise allows; NaN without raw counts) and ``of_ceiling``, best genes
    first. Written to ``table.var[key + "_" + name]``, and their means to ``table.uns[key + "_scores"]``.

    Raises
    ------
    KeyError
        No such prediction.
    ValueError
        Predictions in another unit than the measured expression.

    See Also
    --------
    cross_validate : compare with baselines.
    biology : what of the tissue's structure survives.

    Examples
    --------
    >>> import nh2st_scverse as nh
    >>> sdata = nh.datasets.synthetic(n_sections=2, width_um=1200)
    >>> nh.tl.predict_expression(sdata, n_genes=30, max_epochs=3, progress=False)
    >>> nh.tl.evaluate(sdata).shape
    (30, 7)
    """
    if not isinstance(sdata, SpatialData):
        raise TypeError(f"Expected one SpatialData object, found {type(sdata).__name__}: call once for each object.")
    table_key = find_prediction(sdata, key, table_key)
    table = sdata.tables[table_key]
    keys = Keys(key)
    check_free(table, key, keys.of_evaluation, argument="key")
    genes = table.var_names[table.var[key].to_numpy(dtype=bool)]
    check_unit(table, key)
    columns = table.var_names.get_indexer(genes)
    predicted = np.asarray(table.layers[key])[:, columns]
    target = measured(table, layer, columns)
    if not has_counts(table, layer):
        logger.warning("No raw counts: the noise ceiling is NaN. Pass layer= with counts to have it.")

    regions = table.obs[table.uns["spatialdata_attrs"]["region_key"]].astype(str).to_numpy()
    parts = []
    for region in pd.unique(regions):
        at = (regions == region) & np.isfinite(predicted).all(axis=1)
        if at.sum() < 3:
            continue
        scores = {name: getattr(metrics, name)(target[at], predicted[at]) for name in SCORES}
        ceiling = ceilings(table, np.flatnonzero(at), genes, layer, n_splits=n_splits)
        parts.append(pd.DataFrame(scores | {"ceiling": ceiling}, index=pd.Index(genes, name="gene")))
    if not parts:
        raise ValueError(f"Expected at least 3 predicted spots in a section, found none with a prediction {key!r}.")
    result = pd.concat(parts).groupby(level=0, sort=False).mean().loc[genes].rename_axis("gene")
    result["of_ceiling"] = result["pearson"] / result["ceiling"].where(result["ceiling"] > 0.05)

    means = {f"mean_{name}": float(result[name].mean()) for name in result}
    entries: dict[tuple[str, str], Any] = {
        ("var", keys.evaluated(name)): result[name].reindex(table.var_names) for name in (*SCORES, "ceiling")
    }
    entries["uns", keys.scores] = means | {"n_genes": len(genes), "n_sections": len(parts)}
    put(table, key, entries, clear=keys.of_evaluation)
    return result.sort_values("pearson", ascending=False)


def has_counts(table: AnnData, layer: str | None) -> bool:
    """Whether X or a layer holds raw counts: whole numbers, no logarithms."""
    counts = matrix(table, layer)
    return not is_logged(counts) and not np.any(_values(counts) % 1)


def ceilings(
    table: AnnData,
    rows: np.ndarray,
    genes: Sequence[str],
    layer: str | None,
    library: str = "genome",
    *,
    n_splits: int = 5,
) -> np.ndarray:
    """Noise ceiling (G,) of genes over some rows of a table; NaN without raw counts.

    `library` is that of the target: counts of all genes, or of the ``"panel"`` alone.
    """
    if not has_counts(table, layer):
        return np.full(len(genes), np.nan)
    counts = matrix(table, layer)[rows]
    panel = counts[:, table.var_names.get_indexer(list(genes))]
    whole = np.asarray((panel if library == "panel" else counts).sum(axis=1)).ravel()
    return metrics.noise_ceiling(panel, library_size=whole, n_splits=n_splits)


def check_unit(table: AnnData, key: str) -> None:
    about = table.uns.get(key, {})
    config = json.loads(about["json"])["config"] if "json" in about else {}
    if config.get("smooth") or config.get("library") == "panel":
        raise ValueError(
            f"The prediction {key!r} is in the unit {about['unit']!r} of preset 'paper', which the measured counts are "
            "not in. Score such a model with nh.tl.cross_validate(..., preset='paper')."
        )


def _values(x: Any) -> np.ndarray:
    return np.asarray(x.data if sp.issparse(x) else x)
