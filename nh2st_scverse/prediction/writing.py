"""A prediction into a table: all at once, or nothing."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import pandas as pd
from anndata import AnnData
from spatialdata import SpatialData
from spatialdata.models import TableModel

from nh2st_scverse._constants import KEY, LEVELS
from nh2st_scverse._keys import Keys, Place
from nh2st_scverse._logging import logger
from nh2st_scverse._validators import whole_ids
from nh2st_scverse.prediction.places import check_added, check_free
from nh2st_scverse.prediction.reading import is_there, listed, predictions_of, written
from nh2st_scverse.prediction.value import Prediction


def write(
    sdata: SpatialData,
    table: AnnData,
    rows: np.ndarray,
    prediction: Prediction,
    *,
    key: str = KEY,
    table_added: str | None = None,
) -> None:
    """Write a prediction of some rows of a table: into layers of the table, or into a new table of the object.

    All that an earlier prediction under the key left is cleared first. When anything fails, the object is as it was.

    Parameters
    ----------
    sdata
        The object that gets the new table.
    table
        The table that annotates the spots.
    rows
        (n,) its rows, in the order of the prediction.
    prediction
        What to write.
    key
        Name to write it under.
    table_added
        Name of a new table with the predicted genes in X; one that an earlier prediction made is replaced.
    """
    if table_added is not None:
        check_added(sdata, table_added, key)
        sdata.tables[table_added] = _new_table(sdata, table, rows, prediction, key, table_added)
        where = f"table {table_added!r}"
    else:
        check_free(table, key)
        columns = table.var_names.get_indexer(list(prediction.genes))
        put(table, key, _entries(table, rows, columns, prediction, Keys(key)))
        where = f"layers[{key!r}], var[{key!r}], obsm[{Keys(key).embedding!r}] of the table"
    _tell(table, rows, prediction, Keys(key), where)


def put(table: AnnData, key: str, entries: Mapping[Place, Any], clear: Sequence[Place] | None = None) -> None:
    """Clear what was written under a key (all of it, or only `clear`), then write entries: all of it or nothing."""
    if table.is_view:  # of a larger table: from here on a table of its own
        table.obs = table.obs.copy()
    old = written(table, key)
    old = old if clear is None else old & set(clear)
    with _all_or_nothing(table, [*old, *entries]):
        for place, name in old:
            del getattr(table, place)[name]
        for (place, name), value in entries.items():
            getattr(table, place)[name] = value


@contextmanager
def _all_or_nothing(table: AnnData, places: Sequence[Place]) -> Iterator[None]:
    """Put some places of a table back as they were when the block fails."""
    frames = {axis: getattr(table, axis).copy(deep=False) for axis in ("obs", "var")}
    inside = [(place, name) for place, name in places if place not in frames]
    before = {(place, name): getattr(table, place)[name] for place, name in inside if is_there(table, (place, name))}
    try:
        yield
    except BaseException:  # an interruption too
        for axis, frame in frames.items():
            setattr(table, axis, frame)
        for place, name in inside:
            if (place, name) in before:
                getattr(table, place)[name] = before[place, name]
            elif is_there(table, (place, name)):
                del getattr(table, place)[name]
        raise


def _entries(
    table: AnnData, rows: np.ndarray, columns: np.ndarray, prediction: Prediction, keys: Keys
) -> dict[Place, Any]:
    """What to write where; `columns` are those of the genes in the table, -1 for genes that it lacks."""
    known = columns >= 0
    at = np.ix_(rows, columns[known])

    def layer(values: np.ndarray) -> np.ndarray:
        full = np.full(table.shape, np.nan, dtype=np.float32)
        full[at] = values[:, known]
        return full

    def of_spots(values: np.ndarray, otherwise: Any) -> np.ndarray:
        full = np.full((table.n_obs, *values.shape[1:]), otherwise, dtype=values.dtype)
        full[rows] = values
        return full

    def of_genes(values: np.ndarray) -> np.ndarray:
        full = np.full(table.n_vars, np.nan)
        full[columns[known]] = np.asarray(values, dtype=float)[known]
        return full

    return with_record(
        prediction,
        keys,
        "layers",
        {("layers", keys.layer): layer(prediction.values)}
        | _beside(prediction, keys, layer=layer, of_spots=of_spots, of_genes=of_genes)
        | {("var", keys.predicted_gene): np.isin(np.arange(table.n_vars), columns[known])},
    )


def _beside(prediction: Prediction, keys: Keys, *, layer: Any, of_spots: Any, of_genes: Any) -> dict[Place, Any]:
    """All that stands beside the values, each laid out by one of three functions."""
    found: dict[Place, Any] = {
        ("var", keys.pearson): of_genes(prediction.pearson),
        ("obs", keys.predicted): of_spots(np.isfinite(prediction.values).all(axis=1), False),
    }
    if prediction.border is not None:
        found["obs", keys.border] = of_spots(np.asarray(prediction.border, dtype=bool), False)
    if prediction.embedding is not None:
        found["obsm", keys.embedding] = of_spots(np.asarray(prediction.embedding, dtype=np.float32), np.nan)
    if prediction.std is not None:
        found["layers", keys.std] = layer(prediction.std)
    if prediction.novelty is not None:
        found["obs", keys.novelty] = of_spots(np.asarray(prediction.novelty, dtype=np.float32), np.nan)
    if prediction.widths is not None:
        for level, width in zip(LEVELS, prediction.widths, strict=True):
            found["var", keys.z(level)] = of_genes(width)
    return found


def with_record(prediction: Prediction, keys: Keys, values_in: str, entries: dict[Place, Any]) -> dict[Place, Any]:
    """Entries, and the record in uns that tells where they come from and which they are."""
    places = [*entries, ("uns", keys.about)]
    record = {"values_in": values_in, "written": json.dumps(places)}
    return entries | {("uns", keys.about): {**prediction.about, **record}}


def _new_table(
    sdata: SpatialData, table: AnnData, rows: np.ndarray, prediction: Prediction, key: str, table_added: str
) -> AnnData:
    """A table with the predicted genes in X, and what the user added to an earlier one of this name."""
    keys, attributes = Keys(key), table.uns["spatialdata_attrs"]
    # what predictions wrote into the table that is annotated is about its own layers
    theirs = {name for one in predictions_of(table) for place, name in written(table, one) if place == "obs"}
    obs = table.obs.iloc[rows].drop(columns=list(theirs))
    region_key, instance_key = attributes["region_key"], attributes["instance_key"]
    obs[region_key] = obs[region_key].astype(str).astype("category")
    obs[instance_key] = whole_ids(obs[instance_key])  # a new table takes no others
    new = AnnData(prediction.values, obs=obs, var=pd.DataFrame(index=pd.Index(list(prediction.genes))))
    entries = _beside(
        prediction,
        keys,
        layer=lambda values: values,
        of_spots=lambda values, _: values,
        of_genes=lambda values: np.asarray(values, dtype=float),
    ) | {("var", keys.predicted_gene): np.ones(new.n_vars, dtype=bool)}
    for (place, name), value in with_record(prediction, keys, "X", entries).items():
        getattr(new, place)[name] = value
    if "spatial" in table.obsm:
        new.obsm["spatial"] = np.asarray(table.obsm["spatial"])[rows]
    if table_added in sdata.tables:
        _carry(sdata.tables[table_added], new, key)
    return TableModel.parse(
        new,
        region=list(dict.fromkeys(obs[region_key])),
        region_key=region_key,
        instance_key=instance_key,
    )


def _carry(old: AnnData, new: AnnData, key: str) -> None:
    """Take over what the user added to a table, where it is of the same spots and genes."""
    fits = {"uns"}
    if old.obs_names.equals(new.obs_names):
        fits |= {"obs", "obsm", "obsp"}
    if old.var_names.equals(new.var_names):
        fits |= {"var", "varm", "varp"}
    if {"obs", "var"} <= fits:
        fits |= {"layers"}
    ours, lost = written(old, key), []
    for place in ("obs", "obsm", "obsp", "var", "varm", "varp", "layers", "uns"):
        source, target = getattr(old, place), getattr(new, place)
        for name in list(source):
            if name is None or name in target or (place, name) in ours or name == "spatialdata_attrs":
                continue
            if place in fits:
                target[name] = source[name]
            else:
                lost.append((place, name))
    if lost:
        logger.warning(
            "The new table has other spots or genes than the earlier one: %s of that one are left out.", listed(lost)
        )


def _tell(table: AnnData, rows: np.ndarray, prediction: Prediction, keys: Keys, where: str) -> None:
    """Say what was predicted, what was not, and what is not to be trusted."""
    predicted = np.isfinite(prediction.values).all(axis=1)
    if not predicted.all():
        logger.warning(
            "%d of %d spots have no usable image: their predictions are NaN. obs[%r] says which are predicted; scanpy "
            "and squidpy go on with those alone: table[table.obs[%r]].copy().",
            (~predicted).sum(),
            len(rows),
            keys.predicted,
            keys.predicted,
        )
    novelty = prediction.novelty
    if novelty is not None and np.isnan(novelty).all():
        logger.warning(
            "obs[%r] is NaN: the model trains its encoder, or was saved by an earlier version, and does not know what "
            "the features of its training tissue look like. A slide unlike it would not be noticed.",
            keys.novelty,
        )
    elif novelty is not None and not prediction.cross_fitted:  # whose scores are those of the spots themselves
        regions = table.obs[table.uns["spatialdata_attrs"]["region_key"]].astype(str).to_numpy()[rows]
        for region in pd.unique(regions):
            own = novelty[(regions == region) & np.isfinite(novelty)]
            unlike = np.mean(own > 1) if len(own) else 0.0
            if unlike > 0.5:
                logger.warning(
                    "%.0f %% of section %r look unlike the training sections (novelty above 1): another tissue, stain "
                    "or focus? Its predictions are not to be trusted, and the scores of the genes do not hold for it.",
                    100 * unlike,
                    region,
                )
    logger.info(
        "Predicted %d genes in %d spots; mean Pearson on held-out tissue %.3f (%s). Written to %s.",
        len(prediction.genes),
        predicted.sum(),
        prediction.about.get("mean_pearson", np.nan),
        prediction.about.get("held_out", "not known of which"),
        where,
    )
