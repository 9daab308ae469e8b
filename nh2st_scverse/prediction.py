"""One prediction as a value: written into a table all at once, and read back by everything that scores or draws it."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
import pandas as pd
from anndata import AnnData
from spatialdata import SpatialData
from spatialdata.models import TableModel

from nh2st_scverse._constants import FEATURES, KEY, LEVELS, LOG_UNIT, SCORES
from nh2st_scverse._keys import Keys, Place
from nh2st_scverse._logging import logger
from nh2st_scverse._validators import choose_key
from nh2st_scverse.data.expression import to_dense

LARGEST_LAYER = 2**34  # bytes of a layer
NEW_TABLE = "pass table_added='predicted' for a new table of the predicted genes alone, or "
JOIN = 'join tables with merge="same", uns_merge="same", in anndata.concat and spatialdata.concatenate alike'
HELD_OUT, HERE = "held-out correlation", "correlation on these spots"
MORAN = {"section", "gene", "measured", "predicted"}  # columns of what tl.biology leaves


@dataclass(frozen=True)
class Prediction:
    """Predicted expression of n spots and G genes, with all that tells how far to trust it."""

    genes: Sequence[str]
    values: np.ndarray  # (n, G) float32, NaN where there is no usable image
    pearson: np.ndarray  # (G,) on tissue that the predictor never saw
    embedding: np.ndarray | None  # (n, C)
    border: np.ndarray | None  # (n,) bool: the patch reaches over the border of the image
    about: Mapping[str, Any]  # where it comes from: flat values, and the rest as one JSON string
    std: np.ndarray | None = None  # (n, G)
    widths: np.ndarray | None = None  # (levels, G) standard deviations that hold LEVELS of the measured values
    novelty: np.ndarray | None = None  # (n,)
    evaluated: pd.DataFrame | None = None  # scores by gene against the measured values, after tl.evaluate
    moran: pd.DataFrame | None = None  # Moran's I of measured and predicted genes, after tl.biology

    @property
    def unit(self) -> str:
        """Unit of the values."""
        return str(self.about.get("unit", LOG_UNIT))

    @cached_property
    def described(self) -> dict[str, Any]:
        """Settings, training sections and versions; empty where they are not known."""
        return _described(self.about)

    @property
    def config(self) -> dict[str, Any]:
        """Settings of the model."""
        return dict(self.described.get("config", {}))

    @property
    def cross_fitted(self) -> bool:
        """Whether every spot was predicted by a model that never saw it."""
        return bool(self.about.get("cross_fitted", False))

    @property
    def foreign(self) -> bool:
        """Whether another tool made it: nothing is known of what its model saw."""
        return bool(self.about.get("foreign", False))

    @property
    def score(self) -> np.ndarray:
        """Correlation by which genes are ranked (G,): on held-out tissue; of another tool that of tl.evaluate."""
        known = self.foreign and self.evaluated is not None and "pearson" in self.evaluated
        return self.evaluated["pearson"].to_numpy() if known else self.pearson  # type: ignore[index]

    @property
    def score_name(self) -> str:
        """What `score` is."""
        return HERE if self.foreign else HELD_OUT

    def of(self, genes: Sequence[str]) -> np.ndarray:
        """Values of some genes: (n, len(genes))."""
        return self.values[:, self.at(genes)]

    def mean_of(self, genes: Sequence[str]) -> np.ndarray:
        """Value of some genes as one set: (n,)."""
        return np.asarray(self.of(genes).mean(axis=1))

    def at(self, genes: Sequence[str]) -> np.ndarray:
        """Positions of some genes."""
        return np.asarray(pd.Index(self.genes).get_indexer(list(genes)))

    def ceiling(self) -> np.ndarray:
        """Noise ceiling of the genes (G,), NaN where tl.evaluate did not tell."""
        known = self.evaluated is not None and "ceiling" in self.evaluated
        return self.evaluated["ceiling"].to_numpy() if known else _unknown(len(self.genes))  # type: ignore[index]


# --- before any work ---


def check_size(table: AnnData, remedy: str = NEW_TABLE) -> None:
    """A layer holds a value for every gene of the table, predicted or not: too much for half a million bins."""
    size = 4 * table.n_obs * table.n_vars
    if size > LARGEST_LAYER:
        raise ValueError(
            f"A layer for {table.n_obs} spots x {table.n_vars} genes would take {size / 2**30:.0f} GB of memory: "
            + remedy
            + "keep fewer genes in the table."
        )


def check_genes(genes: Sequence[str], table: AnnData) -> None:
    """Raise ValueError when a table has none of the genes, say how many it lacks otherwise."""
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


def check_free(table: AnnData, key: str, places: Sequence[Place] | None = None, *, argument: str = "key_added") -> None:
    """Raise ValueError when names of a key hold what no prediction of this key wrote, or are those of another one.

    `places` are the names in question; None: all that belong to the key.
    """
    keys = Keys(key)
    places = keys.places if places is None else places
    if ("uns", FEATURES) in places:
        raise ValueError(
            f"{argument}={key!r} is where the features of the images are kept. Choose another {argument}=."
        )
    mine = written(table, key)
    taken = [place for place in places if _is_there(table, place) and place not in mine]
    if taken:
        raise ValueError(
            f"{argument}={key!r} would overwrite {_listed(taken)} of the table, which no prediction wrote. "
            + (f"If one did, its record was lost when tables were joined: {JOIN}. " if _lost_record(table, key) else "")
            + f"Choose another {argument}=, or rename or delete these first."
        )
    for other in predictions_of(table):
        shared = set(places) & set(Keys(other).places)
        if other != key and shared:
            raise ValueError(
                f"{argument}={key!r} shares {_listed(sorted(shared))} with the prediction {other!r} of the table. "
                f"Choose another {argument}=."
            )
    for place, name in places:  # a zarr store on a disk that ignores case has one place for both
        alike = [n for n in getattr(table, place) if n is not None and n != name and str(n).lower() == name.lower()]
        if alike:
            raise ValueError(
                f"{argument}={key!r} would write {place}[{name!r}] beside {place}[{alike[0]!r}], which differs in "
                f"capital letters only and cannot be stored beside it. Choose another {argument}=."
            )


def check_added(sdata: SpatialData, table_added: str, key: str) -> None:
    """Raise ValueError when the name of a new table is taken by anything but an earlier prediction under the key."""
    elements = [name for _, name, _ in sdata.gen_elements()]
    alike = [name for name in elements if name.lower() == table_added.lower() and name != table_added]
    if alike:
        raise ValueError(
            f"table_added={table_added!r} differs from {alike[0]!r} in capital letters only and cannot be stored "
            "beside it: choose another name."
        )
    if table_added not in elements:
        return
    if table_added not in sdata.tables or not in_x(sdata.tables[table_added], key):
        raise ValueError(f"table_added={table_added!r} is there already, among {elements}: choose another name.")
    others = [other for other in predictions_of(sdata.tables[table_added]) if other != key]
    if others:
        raise ValueError(
            f"Table {table_added!r} holds the predictions {others} too, which would be lost: choose another name."
        )


# --- what is there ---


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
    if not isinstance(sdata, SpatialData):
        raise TypeError(
            f"Expected a SpatialData object, found {type(sdata).__name__}. Make one with nh.io.from_anndata(adata, "
            "image, microns_per_pixel=...) or spatialdata_io.visium(path), or read a store with "
            "spatialdata.read_zarr(path)."
        )
    having = [name for name, table in sdata.tables.items() if has_prediction(table, key, recorded=recorded)]
    if table_key is not None and table_key not in having and (table_key not in sdata.tables or not having):
        what = f"tables with a prediction {key!r}" if recorded and having else "tables"
        choose_key(having if recorded and having else sdata.tables, table_key, what=what, argument="table_key")
    if not having or table_key not in (None, *having):
        tables = {name: table for name, table in sdata.tables.items() if table_key in (None, name)}
        layers = {name: [layer for layer in table.layers if layer is not None] for name, table in tables.items()}
        others = sorted({n for table in tables.values() for n in table.uns if n != key and has_prediction(table, n)})
        lost = any(_lost_record(table, key) for table in tables.values())
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
    lost = [f"uns[{key!r}]"] if _lost_record(table, key) else []
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
    var = table.var.iloc[columns]

    def of_genes(name: str) -> np.ndarray:
        return pd.to_numeric(var[name], errors="coerce").to_numpy(dtype=float) if name in var else _unknown(len(var))

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
            found, pearson=_unknown(len(var)), embedding=None, border=None, std=None, widths=None, novelty=None
        )
    return found


def provenance(table: AnnData, key: str) -> tuple[Mapping[str, Any], dict[str, Any]]:
    """Where a prediction comes from, and the settings of its model; both empty where that is not known."""
    about = table.uns.get(key)
    about = about if _is_record(about) else {}
    return about, dict(_described(about).get("config", {}))


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
    return {place for place in found if _is_there(table, place)}


# --- writing ---


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
    before = {(place, name): getattr(table, place)[name] for place, name in inside if _is_there(table, (place, name))}
    try:
        yield
    except BaseException:  # an interruption too
        for axis, frame in frames.items():
            setattr(table, axis, frame)
        for place, name in inside:
            if (place, name) in before:
                getattr(table, place)[name] = before[place, name]
            elif _is_there(table, (place, name)):
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
    region_key = attributes["region_key"]
    obs[region_key] = obs[region_key].astype(str).astype("category")
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
        instance_key=attributes["instance_key"],
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
            "The new table has other spots or genes than the earlier one: %s of that one are left out.", _listed(lost)
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


# --- parts ---


def _is_record(about: Any) -> bool:
    return isinstance(about, Mapping) and "unit" in about


def _described(about: Mapping[str, Any]) -> dict[str, Any]:
    return dict(json.loads(str(about["json"]))) if "json" in about else {}


def _has_record(table: AnnData, key: str) -> bool:
    """Whether uns says that a prediction was written under a key, by this or an earlier version."""
    about = table.uns.get(key)
    return _is_record(about) and ("written" in about or "json" in about)


def _lost_record(table: AnnData, key: str) -> bool:
    """Whether a prediction was written under a key and uns no longer says so."""
    keys = Keys(key)
    return key in table.layers and keys.embedding in table.obsm and not _is_record(table.uns.get(key))


def _is_moran(found: Any) -> bool:
    return isinstance(found, pd.DataFrame) and set(found) >= MORAN


def _is_there(table: AnnData, place: Place) -> bool:
    return place[1] in getattr(table, place[0])


def _listed(places: Sequence[Place]) -> str:
    return ", ".join(f"{place}[{name!r}]" for place, name in places)


def _unknown(n: int) -> np.ndarray:
    return np.full(n, np.nan)


def _columns(table: AnnData, key: str) -> np.ndarray:
    """Positions in the table of the genes that were predicted."""
    keys = Keys(key)
    if keys.predicted_gene in table.var:
        return np.flatnonzero(table.var[keys.predicted_gene].eq(True).to_numpy())
    if in_x(table, key):
        return np.arange(table.n_vars)
    return np.flatnonzero(~np.isnan(to_dense(table.layers[keys.layer])).all(axis=0))
