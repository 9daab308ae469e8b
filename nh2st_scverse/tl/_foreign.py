"""Predictions of other tools: a layer beside the counts, or a table of the same spots, read as one of our own."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import scipy.sparse as sp
from anndata import AnnData
from spatialdata import SpatialData

from nh2st_scverse._constants import LOG_UNIT
from nh2st_scverse._keys import Keys, Place
from nh2st_scverse._logging import logger
from nh2st_scverse._validators import check_name, check_unique, choose_key, whole_ids
from nh2st_scverse.data.expression import numbers, to_dense
from nh2st_scverse.data.units import UNKNOWN, Unit
from nh2st_scverse.prediction import (
    Prediction,
    check_free,
    check_size,
    has_no_counts,
    in_x,
    predictions_of,
    with_record,
    written,
)


@dataclass(frozen=True)
class Foreign:
    """A prediction of another tool, and what to write so that it is found again."""

    prediction: Prediction
    table_key: str  # of the table that has the counts
    entries: Mapping[Place, Any]


def read_foreign(sdata: SpatialData, name: str, unit: str | None, table_key: str | None) -> Foreign:
    """A layer, or a table, of this name, laid beside the counts; nothing is written yet."""
    check_name(name, argument="predicted")
    unit = _as_unit(unit)
    copies = {key for key, table in sdata.tables.items() if ("layers", name) in written(table, name)}
    having = [
        key
        for key, table in sdata.tables.items()
        if name in table.layers and key not in copies and not has_no_counts(table)
    ]
    _check_not_ours(sdata, name)
    if name in sdata.tables and having:
        raise ValueError(
            f"predicted={name!r} is a table and a layer of the tables {having}: rename or delete one of them."
        )
    if name in sdata.tables:
        table_key, values = _beside_counts(sdata, name, table_key)
        entries: dict[Place, Any] = {("layers", name): values}
        source = f"table {name!r}"
    elif having:
        table_key = choose_key(having, table_key, what=f"tables with a layer {name!r}", argument="table_key")
        source = f"layers[{name!r}] of table {table_key!r}"
        if not sdata.tables[table_key].uns.get("spatialdata_attrs"):
            raise ValueError(f"Expected the table of {source} to annotate spots, found one without a region.")
        values, entries = _finite(sdata.tables[table_key].layers[name], source), {}
    else:
        layers = {key: [one for one in table.layers if one is not None] for key, table in sdata.tables.items()}
        raise KeyError(
            f"Expected predicted= to name a layer or a table, found no {name!r} among the layers {layers} and the "
            f"tables {list(sdata.tables)}."
            + (f" What was kept of a table of this name is scored by key={name!r}." if copies else "")
        )
    table, keys = sdata.tables[table_key], Keys(name)
    check_unique(table.var_names, what="gene names", remedy="adata.var_names_make_unique()")
    known = np.isfinite(values).any(axis=0)
    if not known.any():
        raise ValueError(f"Expected predicted values in {source}, found NaN for every spot and gene of the counts.")
    values = values[:, known]
    spots = np.isfinite(values).all(axis=1)
    _tell(source, table, known, spots, values)
    prediction = Prediction(
        genes=[str(gene) for gene in table.var_names[known]],
        values=values,
        pearson=np.full(values.shape[1], np.nan),
        embedding=None,
        border=None,
        about={"unit": unit, "foreign": True, "source": source},
    )
    entries |= {("var", keys.predicted_gene): known, ("obs", keys.predicted): spots}
    check_free(table, name, [*entries, ("uns", keys.about), *keys.of_evaluation], argument="predicted")
    return Foreign(prediction, table_key, with_record(prediction, keys, "layers", entries))


def spots_of(table: AnnData) -> pd.MultiIndex:
    """Section and instance of each row."""
    attributes = table.uns["spatialdata_attrs"]
    region, instance = (table.obs[attributes[name]] for name in ("region_key", "instance_key"))
    return pd.MultiIndex.from_arrays([region.astype(str), whole_ids(instance).astype(str)])


def check_level(predicted: np.ndarray, measured: np.ndarray, unit: str) -> None:
    """Warn where predicted values are so much higher or lower than measured ones that the unit must be another."""
    found, wanted = float(predicted.mean()), float(measured.mean())
    if unit != UNKNOWN and not 0.5 <= found / max(wanted, 1e-12) <= 2:
        logger.warning(
            "The mean of the predicted values is %.3g, that of the measured ones in the unit %s is %.3g. Is unit= that "
            "of the tool? If not, errors and the variance ratio mean nothing; unit=%r leaves them out.",
            found,
            unit,
            wanted,
            UNKNOWN,
        )


def _as_unit(unit: str | None) -> str:
    if unit == UNKNOWN:
        return UNKNOWN
    parsed = Unit.parse(unit) if isinstance(unit, str) else None
    if parsed is None or not parsed.total:
        raise ValueError(
            f"Expected unit= to say what the other tool predicts, found {unit!r}. Pass unit={LOG_UNIT!r}, "
            "'log1p(counts per 1,000,000)', 'log2(1 + counts per 1,000,000)', 'counts per 10,000' or another sum: the "
            f"counts are brought to it. With unit={UNKNOWN!r} (scaled values, say) correlations alone are given. Raw "
            "counts become counts per 10,000 by sc.pp.normalize_total(adata, target_sum=1e4, layer=...)."
        )
    return str(parsed)


def _check_not_ours(sdata: SpatialData, name: str) -> None:
    """Raise ValueError for what this package has predicted."""
    for key, table in sdata.tables.items():
        for other in predictions_of(table):
            of_tool = other == name and table.uns[other].get("foreign")
            if not of_tool and (("layers", name) in written(table, other) or (key == name and in_x(table, other))):
                raise ValueError(
                    f"predicted={name!r} is for what another tool predicted, found what belongs to the prediction "
                    f"{other!r} of this package: nh.tl.evaluate(sdata, key={other!r})."
                )


def _beside_counts(sdata: SpatialData, name: str, table_key: str | None) -> tuple[str, np.ndarray]:
    """The table that has the counts of the spots of another one, and the values of that one laid out as it is."""
    source = sdata.tables[name]
    check_unique(source.var_names, what=f"gene names of table {name!r}", remedy="adata.var_names_make_unique()")
    annotates = bool(source.uns.get("spatialdata_attrs"))  # if not, the names of the spots tell
    own: pd.Index = spots_of(source) if annotates else source.obs_names
    if not own.is_unique:
        raise ValueError(f"Expected one row for each spot in table {name!r}, found {own[own.duplicated()][0]} twice.")
    having: dict[str, np.ndarray] = {}
    for key, table in sdata.tables.items():
        if key == name or not table.uns.get("spatialdata_attrs") or has_no_counts(table):
            continue
        rows = own.get_indexer(spots_of(table) if annotates else table.obs_names)
        if (rows >= 0).any() and table.var_names.isin(source.var_names).any():
            having[key] = rows
    if not having:
        raise ValueError(
            f"Expected a table with the counts of the spots and genes of table {name!r} (spots e.g. {own[0]}, genes "
            f"e.g. {list(source.var_names[:3])}), found none with any of both among "
            f"{[key for key in sdata.tables if key != name]}. Predict the spots of that table, and give genes "
            "the names that it has."
        )
    what = f"tables with measured values of the spots of {name!r}"
    key = choose_key(list(having), table_key, what=what, argument="table_key")
    table, rows = sdata.tables[key], having[key]
    check_size(table, "")
    check_unique(table.var_names, what="gene names", remedy="adata.var_names_make_unique()")
    columns = source.var_names.get_indexer(table.var_names)
    values = np.full(table.shape, np.nan, dtype=np.float32)
    both = np.ix_(rows >= 0, columns >= 0)
    values[both] = _finite(source.X, f"X of table {name!r}")[np.ix_(rows[rows >= 0], columns[columns >= 0])]
    lacking = source.n_vars - int((columns >= 0).sum())
    if lacking:
        examples = [str(gene) for gene in source.var_names[~source.var_names.isin(table.var_names)][:3]]
        logger.warning(
            "%d of %d genes of table %r are not measured in table %r and left out, e.g. %s.",
            lacking,
            source.n_vars,
            name,
            key,
            examples,
        )
    return key, values


def _finite(x: Any, where: str) -> np.ndarray:
    """Predicted values (n, G) float32: NaN where they are not finite."""
    if x is None:
        raise ValueError(f"Expected predicted values in {where}, found nothing.")
    values = to_dense(numbers(x, where))
    if sp.issparse(x) or np.isfinite(values).all():
        return values
    return np.where(np.isfinite(values), values, np.nan).astype(np.float32)


def _tell(source: str, table: AnnData, known: np.ndarray, spots: np.ndarray, values: np.ndarray) -> None:
    """Say what is left out, and what may have been left out by the tool."""
    if not known.all() or not spots.all():
        logger.info(
            "%s has values for %d of %d measured genes, and for all of them in %d of %d spots: others are left out.",
            source,
            known.sum(),
            len(known),
            spots.sum(),
            len(spots),
        )
    empty = (np.nan_to_num(values) == 0).all(axis=0)
    if empty.any():
        logger.warning(
            "%d genes are 0 in every spot of %s, e.g. %s, and count as a correlation of 0. Were they not predicted, "
            "set them to NaN.",
            empty.sum(),
            source,
            [str(gene) for gene in table.var_names[known][empty][:3]],
        )
