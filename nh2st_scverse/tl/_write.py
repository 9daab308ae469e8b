"""Predictions into a table."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
from anndata import AnnData
from spatialdata import SpatialData
from spatialdata.models import TableModel

from nh2st_scverse._logging import logger
from nh2st_scverse.tl._prepare import Prepared, leave_features
from nh2st_scverse.train.trust import LEVELS

LARGEST = 2**34  # bytes of a layer


def check_size(table: AnnData) -> None:
    """A layer holds a value for every gene of the table, predicted or not: too much for half a million bins."""
    size = 4 * table.n_obs * table.n_vars
    if size > LARGEST:
        raise ValueError(
            f"A layer for {table.n_obs} spots x {table.n_vars} genes would take {size / 2**30:.0f} GB of memory: pass "
            "table_added='predicted' for a new table of the predicted genes alone, or keep fewer genes in the table."
        )


def check_free(table: AnnData, key: str) -> None:
    """Results of an earlier prediction are replaced, nothing else is."""
    if "json" in table.uns.get(key, {}):
        return
    places = {"layers": table.layers, "var": table.var, "uns": table.uns}
    taken = [f"{place}[{key!r}]" for place, holding in places.items() if key in holding]
    if f"X_{key}" in table.obsm:
        taken.append(f"obsm['X_{key}']")
    if taken:
        raise ValueError(
            f"key_added={key!r} would overwrite {', '.join(taken)} of the table, which no prediction wrote. "
            "Choose another "
            "key_added=."
        )


def check_genes(genes: Sequence[str], table: AnnData) -> None:
    lacking = [gene for gene in genes if gene not in table.var_names]
    if len(lacking) == len(genes):
        raise ValueError(
            f"None of the {len(genes)} genes of the model (e.g. {list(genes[:3])}) is in the table, which has e.g. "
            f"{list(table.var_names[:3])}. Rename the genes of one, or pass table_added='predicted' for a new table."
        )
    if lacking:
        logger.warning(
            "%d of %d genes of the model are not in the table and left out, e.g. %s. "
            "table_added='predicted' writes all of them to a new table.",
            len(lacking),
            len(genes),
            lacking[:3],
        )


def write(
    sdata: SpatialData,
    prepared: Prepared,
    genes: Sequence[str],
    predicted: Sequence[np.ndarray],
    scores: np.ndarray,
    components: np.ndarray,
    about: dict[str, Any],
    key: str,
    table_added: str | None,
    doubts: Sequence[tuple[np.ndarray, np.ndarray]] = (),
    widths: np.ndarray | None = None,
) -> None:
    """Write everything at once, after all that can fail."""
    table = prepared.tables[0]
    rows = np.concatenate([section.rows for section in prepared.sections])
    values = np.concatenate(predicted)  # (spots of the sections, panel)
    unpredicted = int((~np.isfinite(values)).any(axis=1).sum())
    if unpredicted:
        logger.warning("%d of %d spots have no usable image: their predictions are NaN.", unpredicted, len(rows))
    border = np.zeros(table.n_obs, dtype=bool)
    field_um = prepared.patch_um * max(json.loads(about["json"])["config"]["fields"])
    for section in prepared.sections:
        border[section.rows] = section.border(field_um)
    embedding = np.full((table.n_obs, components.shape[1]), np.nan, dtype=np.float32)
    embedding[rows] = values @ components

    intervals = [f"{key}_z{100 * level:.0f}" for level in LEVELS]
    of_genes = {f"{key}_pearson": scores} | (
        {} if widths is None else dict(zip(intervals, widths.astype(float), strict=True))
    )
    novelty = np.full(table.n_obs, np.nan, dtype=np.float32)
    if doubts:
        novelty[rows] = np.concatenate([novel for _, novel in doubts])

    if table_added is not None:
        attributes = table.uns["spatialdata_attrs"]
        obs = table.obs.iloc[rows].copy()
        new = AnnData(values, obs=obs, var=pd.DataFrame(of_genes, index=pd.Index(genes)))
        obs_regions = list(dict.fromkeys(obs[attributes["region_key"]].astype(str)))
        new.obs[attributes["region_key"]] = new.obs[attributes["region_key"]].astype(str).astype("category")
        new.obs[f"{key}_border"], new.obsm[f"X_{key}"], new.uns[key] = border[rows], embedding[rows], about
        if doubts:
            new.layers[f"{key}_std"] = np.concatenate([std for std, _ in doubts])
            new.obs[f"{key}_novelty"] = novelty[rows]
        if "spatial" in table.obsm:
            new.obsm["spatial"] = np.asarray(table.obsm["spatial"])[rows]
        sdata.tables[table_added] = TableModel.parse(
            new, region=obs_regions, region_key=attributes["region_key"], instance_key=attributes["instance_key"]
        )
        where = f"table {table_added!r}"
    else:
        columns = table.var_names.get_indexer(list(genes))
        known = columns >= 0
        layer = np.full(table.shape, np.nan, dtype=np.float32)
        layer[np.ix_(rows, columns[known])] = values[:, known]
        table.layers[key] = layer
        table.var[key] = np.isin(np.arange(table.n_vars), columns[known])
        table.obs[f"{key}_border"] = border
        table.obsm[f"X_{key}"] = embedding
        table.uns[key] = about
        places = [
            (table.layers, f"{key}_std"),
            (table.obs, f"{key}_novelty"),
            *((table.var, name) for name in intervals),
        ]
        for place, name in places:
            if name in place:  # of an earlier prediction
                del place[name]
        for name, of_known in of_genes.items():
            table.var[name] = np.full(table.n_vars, np.nan)
            table.var.iloc[columns[known], table.var.columns.get_loc(name)] = np.asarray(of_known)[known]
        if doubts:
            std = np.full(table.shape, np.nan, dtype=np.float32)
            std[np.ix_(rows, columns[known])] = np.concatenate([one for one, _ in doubts])[:, known]
            table.layers[f"{key}_std"], table.obs[f"{key}_novelty"] = std, novelty
        where = f"layers[{key!r}], var[{key!r}], obsm['X_{key}'] of the table"
    leave_features(prepared)
    if doubts and np.isnan(novelty).all():
        logger.warning(
            "obs[%r] is NaN: the model trains its encoder, or was saved by an earlier version, and does not know what "
            "the features of its training tissue look like. A slide unlike it would not be noticed.",
            f"{key}_novelty",
        )
    for section, (_, novel) in zip(prepared.sections, doubts, strict=bool(doubts)):
        unlike = np.mean(novel[section.usable] > 1)
        if unlike > 0.5:
            logger.warning(
                "%.0f %% of section %r look unlike the training sections (novelty above 1): another tissue, stain or "
                "focus? Its predictions are not to be trusted, and the scores of the genes do not hold for it.",
                100 * unlike,
                section.name,
            )
    logger.info(
        "Predicted %d genes in %d spots; mean Pearson on held-out tissue %.3f. Written to %s.",
        len(genes),
        len(rows) - unpredicted,
        about["mean_pearson"],
        where,
    )
