"""``tl.evaluate``: predicted against measured, gene by gene."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import scipy.sparse as sp
from anndata import AnnData
from spatialdata import SpatialData

from nh2st_scverse import metrics
from nh2st_scverse._constants import KEY, SCORES
from nh2st_scverse._docs import documented
from nh2st_scverse._keys import Keys, Place
from nh2st_scverse._logging import logger, quiet
from nh2st_scverse._validators import as_count
from nh2st_scverse.data.checks import in_tissue
from nh2st_scverse.data.copies import marks
from nh2st_scverse.data.expression import is_logged, matrix, to_dense
from nh2st_scverse.data.units import UNKNOWN, UNKNOWN_LOGS, Unit, measure
from nh2st_scverse.prediction import Prediction, check_free, find_prediction, has_no_counts, in_x, put, read
from nh2st_scverse.tl._foreign import Foreign, check_level, read_foreign, spots_of

CORRELATIONS = ("pearson", "spearman")  # scores of which a constant prediction has 0
IN_UNIT = ("mse", "mae", "variance_ratio")  # scores that mean nothing between two units


@documented()
def evaluate(
    sdata: SpatialData,
    *,
    key: str = KEY,
    predicted: str | None = None,
    unit: str | None = None,
    table_key: str | None = None,
    layer: str | None = None,
    n_splits: int = 5,
) -> pd.DataFrame:
    """Score a prediction against the measured expression, gene by gene.

    Scores are taken within each section and averaged over the sections; spots without counts, and those off the tissue
    (``in_tissue`` is 0), are left out, as in training. They are honest if the predictor never saw the spots: after
    cross-fitting, or for sections that a model was not trained on. For others they are too high, which a warning says.
    The held-out correlation of a gene, ``var["nh2st_pearson"]``, stays as it is: it tells how far to trust a gene, this
    function how well it fits here.

    Parameters
    ----------
    sdata
        Object with a prediction from :func:`predict_expression`, or from another tool.
    key
        Name of the prediction.
    predicted
        Name of what another tool predicted, instead of `key`: a layer beside the counts, or a table of the same spots,
        which is laid beside the counts as a layer of its name. Genes that are not measured, and spots without a value
        for each gene, are left out. Plots, :func:`report` and the other tools then take its name as ``key``. Whether
        its model saw this tissue is not known here.
    unit
        What `predicted` holds: ``"log1p(counts per 10,000)"``, ``"log2(1 + counts per 1,000,000)"``,
        ``"counts per 10,000"``, ...: the counts are brought to it. ``"not known"``: correlations alone, errors and
        the variance ratio are NaN.
    table_key
        Table with the prediction, and with the counts of the spots of `predicted`; None means the only one.
    layer
        Layer with the counts; None means X. Values in another unit than the prediction are brought to it where they
        tell theirs (counts, or logarithms of counts per spot). For a table of predictions alone (``table_added``) the
        measured values are those of the other table of the same spots.
    n_splits
        Random halvings of the counts for the noise ceiling.

    Returns
    -------
    One row for each predicted gene: ``pearson``, ``spearman``, ``mse``, ``mae``, ``variance_ratio``, ``ceiling`` (the
    highest Pearson correlation that counting noise allows; NaN without raw counts) and ``of_ceiling``, best genes
    first. A constant prediction counts as a correlation of 0. Written to ``table.var``: ``"nh2st_evaluated_pearson"``,
    ``"nh2st_spearman"``, ``"nh2st_mse"``, ``"nh2st_mae"``, ``"nh2st_variance_ratio"`` and ``"nh2st_ceiling"`` for the
    default `key`; and to ``table.uns["nh2st_scores"]``: their means, and ``in_sample``, whether the model was trained
    on sections of these names or with this expression (``"not known"`` of another tool). For `predicted` also
    ``var[predicted]`` (genes), ``obs[predicted + "_predicted"]`` (spots) and ``uns[predicted]`` (source and unit).

    Raises
    ------
    KeyError
        No such prediction.
    ValueError
        `predicted` without its unit, of other spots or genes than any counts, or that this package made; `unit` or
        another `key` beside it. Predictions in another unit than the measured expression, measured values that are the
        prediction itself, or none beside it; columns of these names that no evaluation wrote.

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
    >>> from sklearn.neighbors import KNeighborsRegressor
    >>> adata = sdata["table"]
    >>> y = nh.data.expression.measured(adata)
    >>> smooth = KNeighborsRegressor(20).fit(adata.obsm["spatial"], y)  # stands for another tool
    >>> adata.layers["smooth"] = smooth.predict(adata.obsm["spatial"])
    >>> nh.tl.evaluate(sdata, predicted="smooth", unit="log1p(counts per 10,000)").shape
    (300, 7)
    """
    n_splits = as_count(n_splits, argument="n_splits")
    foreign = None
    if predicted is not None:
        if key not in (KEY, predicted):
            raise ValueError(f"Expected key= or predicted=, found key={key!r} and predicted={predicted!r}: pass one.")
        _check_object(sdata)
        foreign, key = read_foreign(sdata, predicted, unit, table_key), predicted
    elif unit is not None:
        raise ValueError(
            f"Expected unit= beside predicted= alone, found unit={unit!r}: a prediction of this package knows its own."
        )
    pair = compare(sdata, key=key, table_key=table_key, layer=layer, foreign=foreign)
    keys, table = Keys(key), pair.table
    if foreign is None:
        check_free(table, key, keys.of_evaluation, argument="key")
    if not has_counts(pair.source, layer):
        logger.warning("No raw counts: the noise ceiling is NaN. Pass layer= with counts to have it.")

    parts = []
    for region in pd.unique(pair.regions):
        at = (pair.regions == region) & pair.scored
        if at.sum() < 3:
            continue
        values = pair.measured[at], pair.predicted[at]
        scores = {name: getattr(metrics, name)(*values) for name in SCORES if name not in CORRELATIONS}
        scores |= {name: getattr(metrics, name)(*values, constant=0.0) for name in CORRELATIONS}
        ceiling = ceilings(pair.source, pair.rows[at], pair.genes, layer, n_splits=n_splits)
        parts.append(pd.DataFrame(scores | {"ceiling": ceiling}, index=pd.Index(pair.genes, name="gene")))
    if not parts:
        raise ValueError(f"Expected at least 3 predicted spots in a section, found none with a prediction {key!r}.")
    result = pd.concat(parts).groupby(level=0, sort=False).mean().loc[pair.genes].rename_axis("gene")
    result = result[[*SCORES, "ceiling"]]
    result["of_ceiling"] = result["pearson"] / result["ceiling"].where(result["ceiling"] > 0.05)

    if pair.prediction.unit == UNKNOWN:
        result[list(IN_UNIT)] = np.nan
    named, known = trained_on(pair.prediction, pair.regions[pair.scored], pair.measured[pair.scored])
    seen: bool | None = bool(named or known)
    if pair.prediction.foreign:
        seen = None
        check_level(pair.predicted[pair.scored], pair.measured[pair.scored], pair.prediction.unit)
        logger.warning(
            "%s is of another tool: whether its model saw this tissue is not known here. If it did, these scores are "
            "too high and say nothing of other tissue.",
            pair.prediction.about.get("source", repr(key)),
        )
    elif seen:
        logger.warning(
            "The model of the prediction %r was trained on %s. %s these scores are too high and say nothing of other "
            "tissue; var[%r] are those on tissue it never saw. nh.tl.predict_expression(sdata) without model= predicts "
            "every spot by a model that never saw it.",
            key,
            f"the expression of {known}" if known else f"sections of these names: {named}",
            "So" if known else "If they are the same tissue,",
            keys.pearson,
        )
    means = {f"mean_{name}": float(result[name].mean()) for name in result}
    entries: dict[Place, Any] = {
        ("var", keys.evaluated(name)): result[name].reindex(table.var_names) for name in (*SCORES, "ceiling")
    }
    counts = {"n_genes": len(pair.genes), "n_sections": len(parts), "in_sample": "not known" if seen is None else seen}
    entries["uns", keys.scores] = means | counts
    if foreign is None:
        put(table, key, entries, clear=keys.of_evaluation)
    else:  # what was found of an earlier one of this name is not true any more
        put(table, key, {**foreign.entries, **entries})
    result = result.sort_values("pearson", ascending=False)
    result.attrs["in_sample"] = seen
    return result


@dataclass(frozen=True)
class Pair:
    """Predicted and measured values of the same spots and genes."""

    prediction: Prediction
    table: AnnData  # that has the prediction
    source: AnnData  # that has the measured values: the same, or another one of the same spots
    own: np.ndarray  # (n,) rows of `table`
    rows: np.ndarray  # (n,) rows of `source`
    genes: list[str]
    predicted: np.ndarray  # (n, G)
    measured: np.ndarray  # (n, G) in the unit of the prediction
    regions: np.ndarray  # (n,) section of each spot
    scored: np.ndarray  # (n,) bool: predicted, with counts, and not off the tissue


def compare(
    sdata: SpatialData, *, key: str, table_key: str | None, layer: str | None, foreign: Foreign | None = None
) -> Pair:
    """Lay a prediction, or one that is not written yet, and what was measured side by side; refuse what cannot be."""
    _check_object(sdata)
    table_key = find_prediction(sdata, key, table_key) if foreign is None else foreign.table_key
    table = sdata.tables[table_key]
    prediction = read(table, key) if foreign is None else foreign.prediction
    check_unit(prediction, key)
    own = rows = np.arange(table.n_obs)
    source_key = table_key
    if in_x(table, key):
        source_key, own, rows = _measured_beside(sdata, table_key, key)
    source = sdata.tables[source_key]
    genes = [gene for gene in prediction.genes if gene in source.var_names]
    predicted = prediction.of(genes)[own]
    columns = source.var_names.get_indexer(genes)
    measured = measure(source, layer, columns, prediction.unit, rows)
    name = "X" if layer is None else f"layer {layer!r}"
    there = np.isfinite(predicted).all(axis=1)
    values = measured.values()
    copied = np.array_equal(to_dense(measured.as_stored[there]), predicted[there]) or (
        prediction.foreign and np.allclose(values[there], predicted[there], rtol=1e-4, atol=1e-6)
    )
    if there.any() and copied:
        raise ValueError(
            f"Expected measured values in {name} of table {source_key!r}, found the prediction {key!r} itself. Pass "
            "layer= with the counts."
        )
    if measured.unit != prediction.unit and (
        Unit.parse(prediction.unit) is not None or prediction.unit == UNKNOWN_LOGS
    ):
        found = "counts" if prediction.unit == UNKNOWN_LOGS else "logarithms of another kind, or of some genes only"
        raise ValueError(
            f"The prediction {key!r} is in the unit {prediction.unit!r}, found {found} in {name} of table "
            f"{source_key!r}, which cannot be brought to it. Pass layer= with "
            + ("the same logarithms as in training." if prediction.unit == UNKNOWN_LOGS else "the counts.")
        )
    if prediction.unit == UNKNOWN_LOGS and not prediction.cross_fitted:
        logger.warning(
            "The model was trained on logarithms of a kind that it does not know. Where those of table %r are of "
            "another kind, errors and variances mean nothing; correlations do.",
            source_key,
        )
    regions = table.obs[table.uns["spatialdata_attrs"]["region_key"]].astype(str).to_numpy()[own]
    scored = there & measured.counted & in_tissue(source.obs.iloc[rows]) & in_tissue(table.obs.iloc[own])
    return Pair(prediction, table, source, own, rows, genes, predicted, values, regions, scored)


def _measured_beside(sdata: SpatialData, table_key: str, key: str) -> tuple[str, np.ndarray, np.ndarray]:
    """Another table that has measured values of the spots of a table of predictions, and the rows of both that fit."""
    spots = spots_of(sdata.tables[table_key])
    having = {}
    for name, other in sdata.tables.items():
        if name == table_key or not other.uns.get("spatialdata_attrs") or has_no_counts(other):
            continue
        rows = pd.Index(spots_of(other)).get_indexer(spots)
        if (rows >= 0).any() and other.var_names.isin(sdata.tables[table_key].var_names).any():
            having[name] = rows
    if len(having) != 1:
        raise ValueError(
            f"Expected measured values beside the prediction {key!r}, found that table {table_key!r} holds predictions "
            f"only (in X), and the tables {list(having)} with measured values of the same spots and genes, where one "
            "is expected. Leave out the others, or predict into a table with counts: nh.tl.predict_expression(sdata) "
            "without table_added=."
        )
    ((name, rows),) = having.items()
    own = np.flatnonzero(rows >= 0)
    return name, own, rows[own]


def _check_object(sdata: SpatialData) -> None:
    if not isinstance(sdata, SpatialData):
        raise TypeError(f"Expected one SpatialData object, found {type(sdata).__name__}: call once for each object.")


def trained_on(
    prediction: Prediction, regions: np.ndarray, measured: np.ndarray | None = None
) -> tuple[list[str], list[str]]:
    """Sections of a prediction with the name, and those with the expression, of one that its model was trained on.

    `regions` are the sections (n,) of some spots, `measured` their values (n, G), where there are any.
    """
    if prediction.cross_fitted:
        return [], []
    described = prediction.described
    names = {str(name).rpartition(":")[2] for name in described.get("trained_on", {})}
    sections = list(pd.unique(regions))
    known, kept = [], [set(some) for some in described.get("tissue", {}).values()]
    if kept and measured is not None:
        for section in sections:
            here = set(marks(measured[regions == section], most=None))
            if any(len(here & some) > len(some) / 4 for some in kept):
                known.append(section)
    return [section for section in sections if section in names], known


def seen_in_training(
    sdata: SpatialData, table_key: str, key: str, prediction: Prediction
) -> tuple[list[str], list[str]]:
    """Sections of a written prediction as :func:`trained_on` tells them, with the expression where it is measured."""
    if prediction.cross_fitted or prediction.foreign:
        return [], []
    table = sdata.tables[table_key]
    try:
        with quiet():
            pair = compare(sdata, key=key, table_key=table_key, layer=None)
    except (KeyError, ValueError):  # nothing is measured here
        return trained_on(prediction, table.obs[table.uns["spatialdata_attrs"]["region_key"]].astype(str).to_numpy())
    return trained_on(prediction, pair.regions[pair.scored], pair.measured[pair.scored])


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


def log_totals(table: AnnData, rows: np.ndarray, layer: str | None) -> np.ndarray | None:
    """Logarithm of the counts (n,) of some rows of a table; None without raw counts."""
    if not has_counts(table, layer):
        return None
    return np.log1p(np.asarray(matrix(table, layer)[rows].sum(axis=1), dtype=float).ravel())


def check_unit(prediction: Prediction, key: str) -> None:
    """Raise ValueError for a prediction in a unit that no table of counts can be brought to."""
    if prediction.config.get("smooth") or prediction.config.get("library") == "panel":
        raise ValueError(
            f"The prediction {key!r} is in the unit {prediction.unit!r} of preset 'paper', which the measured counts "
            "are not in. Score such a model with nh.tl.cross_validate(..., preset='paper')."
        )


def _values(x: Any) -> np.ndarray:
    return np.asarray(x.data if sp.issparse(x) else x)
