"""Which predictions a table has, and what they are: read back by everything that scores or draws them."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd
from anndata import AnnData
from spatialdata import SpatialData

from nh2st_scverse._constants import KEY, LEVELS, SCORES
from nh2st_scverse._keys import Keys, Place
from nh2st_scverse._logging import logger
from nh2st_scverse._validators import choose_key
from nh2st_scverse.data.expression import to_dense
from nh2st_scverse.data.section import check_sdata
from nh2st_scverse.prediction.value import Prediction, described_by, unknown

JOIN = 'join tables with merge="same", uns_merge="same", in anndata.concat and spatialdata.concatenate alike'
MORAN = {"section", "gene", "measured", "predicted"}  # columns of what tl.biology leaves


def predictions_of(table: AnnData) -> list[str]:
    """Keys of the predictions that a table has a record of."""
    return [str(key) for key in table.uns if _has_record(table, key)]


def has_no_counts(table: AnnData) -> bool:
    """Whether X itself is one of the predictions."""
    return any(in_x(table, key) for key in table.uns)


def in_x(table: AnnData, key: str) -> bool:
    """Whether X itself is the prediction, as in a table made with ``table_added``."""
    about = table.uns.get(key)
    if not _is_record(about) or key in table.layers:
        return False
    if "values_in" in about:
        return str(about["values_in"]) == "X"
    keys = Keys(key)  # earlier versions did not say
    return keys.predicted_gene not in table.var and keys.pearson in table.var


def has_prediction(table: AnnData, key: str, *, recorded: bool = True) -> bool:
    """Whether a table has a prediction under a key; unless `recorded`, any layer of this name is one."""
    if not _is_record(table.uns.get(key)):
        return not recorded and key in table.layers
    return key in table.layers or in_x(table, key)


def find_prediction(sdata: SpatialData, key: str, table_key: str | None, *, recorded: bool = True) -> str:
    """The table that has a prediction under `key`; what only draws needs no record of where it comes from."""
    check_sdata(sdata)
    if not isinstance(key, str):
        raise TypeError(f"Expected key= to be the name of a prediction, found {type(key).__name__} {key!r}.")
    having = [name for name, table in sdata.tables.items() if has_prediction(table, key, recorded=recorded)]
    if table_key is not None and table_key not in having and (table_key not in sdata.tables or not having):
        what = f"tables with a prediction {key!r}" if recorded and having else "tables"
        choose_key(having if recorded and having else sdata.tables, table_key, what=what, argument="table_key")
    if not having or table_key not in (None, *having):
        tables = {name: table for name, table in sdata.tables.items() if table_key in (None, name)}
        layers = {name: [layer for layer in table.layers if layer is not None] for name, table in tables.items()}
        others = sorted({n for table in tables.values() for n in table.uns if n != key and has_prediction(table, n)})
        lost = any(lost_record(table, key) for table in tables.values())
        raise KeyError(
            f"No table has a prediction {key!r}; found {layers} (layers of the tables). "
            + (f"Its record in uns[{key!r}] was lost when tables were joined: {JOIN}. " if lost else "")
            + f"Expected predictions under key={key!r}"
            + (f" (there are some under {others}: pass key=)" if others else "")
            + ", found none. Make them with nh.tl.predict_expression(sdata)."
            + (
                f" What another tool wrote there is known after nh.tl.evaluate(sdata, predicted={key!r}, unit=...)."
                if key in sdata.tables or any(key in found for found in layers.values())
                else ""
            )
        )
    return choose_key(having, table_key, what=f"tables with predictions under {key!r}", argument="table_key")


def read(table: AnnData, key: str = KEY) -> Prediction:
    """The prediction that a table has under a key, for all its rows; genes in the order of the table.

    A layer without a record is read too, as one in the default unit that knows no scores.

    Raises
    ------
    KeyError
        There is none.
    """
    if not has_prediction(table, key, recorded=False):
        raise KeyError(
            f"Expected a prediction under key={key!r} in the table, found {predictions_of(table)}. Make it with "
            "nh.tl.predict_expression(sdata)."
        )
    keys = Keys(key)
    about = table.uns[key] if _is_record(table.uns.get(key)) else {}
    lost = [f"uns[{key!r}]"] if lost_record(table, key) else []
    if "written" in about:
        wanted = (keys.predicted_gene,) if about.get("foreign") else (keys.predicted_gene, keys.pearson)
        lost += [f"var[{n!r}]" for n in wanted if n not in table.var]
    if lost:
        logger.warning(
            "%s of the prediction %r is not there: joining tables loses what they do not share, and so where the "
            "prediction comes from or how far to trust it. To keep it, %s.",
            " and ".join(lost),
            key,
            JOIN,
        )
    columns = _columns(table, key)
    if not len(columns):
        raise ValueError(
            f"Expected genes that are predicted under key={key!r}, found none among the {table.n_vars} of the table: "
            "they were left out since, or their names were. Keep table.var_names[table.var[key]], or predict again."
        )
    var = table.var.iloc[columns]

    def of_genes(name: str) -> np.ndarray:
        return pd.to_numeric(var[name], errors="coerce").to_numpy(dtype=float) if name in var else unknown(len(var))

    def of_layer(values: Any) -> np.ndarray:
        return to_dense(values if len(columns) == table.n_vars else values[:, columns])

    widths = [keys.z(level) for level in LEVELS]
    known = {one: of_genes(keys.evaluated(one)) for one in (*SCORES, "ceiling") if keys.evaluated(one) in var}
    moran = table.uns.get(keys.moran)
    evaluated = pd.DataFrame(known, index=pd.Index(var.index.astype(str), name="gene")) if known else None
    found = Prediction(
        genes=[str(gene) for gene in var.index],
        values=of_layer(table.X if in_x(table, key) else table.layers[keys.layer]),
        pearson=of_genes(keys.pearson),
        embedding=np.asarray(table.obsm[keys.embedding]) if keys.embedding in table.obsm else None,
        border=table.obs[keys.border].eq(True).to_numpy() if keys.border in table.obs else None,
        about=about,
        std=of_layer(table.layers[keys.std]) if keys.std in table.layers else None,
        widths=np.stack([of_genes(name) for name in widths]) if set(widths) <= set(var) else None,
        novelty=table.obs[keys.novelty].to_numpy(dtype=float) if keys.novelty in table.obs else None,
        evaluated=evaluated,
        moran=moran.astype({"section": str, "gene": str}) if _is_moran(moran) else None,
    )
    if found.foreign:  # columns with these names are that tool's own, and mean what it says
        return replace(
            found, pearson=unknown(len(var)), embedding=None, border=None, std=None, widths=None, novelty=None
        )
    return found


def provenance(table: AnnData, key: str) -> tuple[Mapping[str, Any], dict[str, Any]]:
    """Where a prediction comes from, and the settings of its model; both empty where that is not known."""
    about = table.uns.get(key)
    about = about if _is_record(about) else {}
    return about, dict(described_by(about).get("config", {}))


def written(table: AnnData, key: str) -> set[Place]:
    """What predictions, evaluation and biology under this key have written into a table."""
    keys, about = Keys(key), table.uns.get(key)
    if not _has_record(table, key):
        return set()
    if "written" in about:
        found = {(str(place), str(name)) for place, name in json.loads(str(about["written"]))}
    else:  # an earlier version, which kept no list
        found = set(keys.of_prediction) - {("obs", keys.predicted)}
        if keys.std in table.layers and keys.novelty in table.obs and not _is_record(table.uns.get(keys.std)):
            found |= set(keys.of_uncertainty)
    scores = table.uns.get(keys.scores)
    if isinstance(scores, Mapping) and {"mean_pearson", "n_genes", "n_sections"} <= set(scores):
        found |= set(keys.of_evaluation)
    if _is_moran(table.uns.get(keys.moran)):
        found |= set(keys.of_biology)
    modules = table.uns.get(keys.modules)
    if isinstance(modules, Mapping) and set(modules) == {"n_modules"}:
        found |= set(keys.of_modules)
    return {place for place in found if is_there(table, place)}


def lost_record(table: AnnData, key: str) -> bool:
    """Whether a prediction was written under a key and uns no longer says so."""
    keys = Keys(key)
    return key in table.layers and keys.embedding in table.obsm and not _is_record(table.uns.get(key))


def is_there(table: AnnData, place: Place) -> bool:
    """Whether a table has something at a place."""
    return place[1] in getattr(table, place[0])


def listed(places: Sequence[Place]) -> str:
    """Places as a user writes them."""
    return ", ".join(f"{place}[{name!r}]" for place, name in places)


def _is_record(about: Any) -> bool:
    return isinstance(about, Mapping) and "unit" in about


def _has_record(table: AnnData, key: str) -> bool:
    """Whether uns says that a prediction was written under a key, by this or an earlier version."""
    about = table.uns.get(key)
    return _is_record(about) and ("written" in about or "json" in about)


def _is_moran(found: Any) -> bool:
    return isinstance(found, pd.DataFrame) and set(found) >= MORAN


def _columns(table: AnnData, key: str) -> np.ndarray:
    """Positions in the table of the genes that were predicted."""
    keys = Keys(key)
    if keys.predicted_gene in table.var:
        return np.flatnonzero(table.var[keys.predicted_gene].eq(True).to_numpy())
    if in_x(table, key):
        return np.arange(table.n_vars)
    return np.flatnonzero(~np.isnan(to_dense(table.layers[keys.layer])).all(axis=0))
