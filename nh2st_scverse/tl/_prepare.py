"""What every tool does first: find the sections, check them as ``pp.check`` does, encode images, read expression."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from anndata import AnnData
from spatialdata import SpatialData

from nh2st_scverse._constants import FEATURES, LOG_UNIT
from nh2st_scverse._logging import logger
from nh2st_scverse._validators import check_positive
from nh2st_scverse.data.checks import in_section, raise_or_log
from nh2st_scverse.data.cluster import check_client
from nh2st_scverse.data.expression import choose_genes, expression, is_logged, log_normalise, matrix, smooth, to_dense
from nh2st_scverse.data.feature_cache import FeatureCache
from nh2st_scverse.data.features import encode, look_up
from nh2st_scverse.data.geometry import is_hexagonal, spot_diameter
from nh2st_scverse.data.patches import image_fingerprint, iter_patches
from nh2st_scverse.data.section import Section, check_image_keys, find_sections, patch_size
from nh2st_scverse.data.stain import Restained, colour_map, fit_reference, recolour
from nh2st_scverse.encoders import Encoder, Precomputed
from nh2st_scverse.encoders._turned import Turned
from nh2st_scverse.nn import Config


@dataclass
class Prepared:
    """Sections of one or several objects, with the table that each comes from."""

    sections: list[Section]
    tables: list[AnnData]  # of each section
    groups: list[str]  # of each section
    objects: list[SpatialData]  # of each section
    patch_um: float = 0.0
    stain: dict[str, Any] | None = None  # the colours that sections take
    unit: str = LOG_UNIT
    caches: dict[int, dict[str, Any]] = field(default_factory=dict)  # features to leave in a table, by id(table)


def collect(
    sdata: SpatialData | Sequence[SpatialData] | Mapping[str, SpatialData],
    *,
    groups: str | Sequence[str] | Mapping[str, str] | None = None,
    patch_um: float | None = None,
    allow: str | Iterable[str] = (),
    **keys: Any,
) -> Prepared:
    """Find and check the sections of one object, a list or a dict of them."""
    objects = _as_dict(sdata)
    check_image_keys(keys.get("image_key"), objects.values())
    if patch_um is not None:
        check_positive(patch_um, argument="patch_um")
    sections: list[Section] = []
    tables: list[AnnData] = []
    owner: list[str] = []
    for name, one in objects.items():
        table_key, found = find_sections(one, allow=allow, **keys)
        for section in found:
            if len(objects) > 1 and any(section.name == s.name for s in sections):
                section.name = f"{name}:{section.name}"
            sections.append(section)
            tables.append(one.tables[table_key])
            owner.append(name)
    named = _groups(groups, sections, tables, owner, list(objects))
    size = patch_size(sections) if patch_um is None else patch_um
    for section, name in zip(sections, owner, strict=True):
        diameter = spot_diameter(objects[name].shapes[section.name.split(":")[-1]], section.geometry)
        problems = in_section(section.geometry, diameter_um=diameter, spacing_um=section.spacing_um, patch_um=size)
        raise_or_log(problems, allow, section=section.name)
    return Prepared(sections, tables, named, [objects[name] for name in owner], size)


def _as_dict(sdata: Any) -> dict[str, SpatialData]:
    if isinstance(sdata, SpatialData):
        return {"0": sdata}
    if isinstance(sdata, Mapping):
        objects = {str(k): v for k, v in sdata.items()}
    elif isinstance(sdata, Sequence) and not isinstance(sdata, str):
        objects = {str(i): v for i, v in enumerate(sdata)}
    else:
        objects = {}
    strange = [type(v).__name__ for v in objects.values() if not isinstance(v, SpatialData)]
    if not objects or strange:
        raise TypeError(
            "Expected a SpatialData object, a list or a dict of them, found "
            f"{strange or type(sdata).__name__}. Make one "
            "with nh.io.from_anndata(adata, image, microns_per_pixel=...) or spatialdata_io.visium(path)."
        )
    if len({id(v) for v in objects.values()}) < len(objects):
        raise ValueError("Expected each SpatialData object once, found one twice: it would be held out from itself.")
    return objects


def _groups(
    groups: Any, sections: list[Section], tables: list[AnnData], owner: list[str], objects: list[str]
) -> list[str]:
    """Group of each section: given by object, by section, by name, or by a column of the table."""
    names = [section.name for section in sections]
    if groups is None:
        return names
    if isinstance(groups, str):
        found = []
        for section, table in zip(sections, tables, strict=True):
            if groups not in table.obs:
                raise KeyError(f"groups={groups!r} is not a column of the table. Available: {list(table.obs)}.")
            values = table.obs[groups].iloc[section.rows].astype(str).unique()
            if len(values) != 1:
                raise ValueError(f"Expected one {groups!r} in section {section.name!r}, found {list(values)}.")
            found.append(values[0])
        return found
    if isinstance(groups, Mapping):
        for label in (names, owner):
            if all(name in groups for name in label):
                return [str(groups[name]) for name in label]
        raise KeyError(f"Expected a group for each of {names}, found {list(groups)}.")
    listed = [str(group) for group in groups]
    if len(listed) == len(objects) and len(objects) > 1:
        return [listed[objects.index(name)] for name in owner]
    if len(listed) == len(sections):
        return listed
    raise ValueError(
        f"Expected groups= with one name for each of the {len(objects)} objects or {len(sections)} sections {names}, "
        f"found {len(listed)}."
    )


def fit_stain(prepared: Prepared, config: Config, sections: Sequence[Section]) -> None:
    """Let all sections take the colours of some, if the settings ask for it."""
    if config.stain != "none":
        prepared.stain = fit_reference(sections, config.stain)


def add_images(
    prepared: Prepared,
    config: Config,
    encoder: Encoder | None,
    *,
    patch_px: int = 0,
    progress: bool = True,
    cache_dir: str | os.PathLike[str] | None = None,
    client: Any = None,
) -> None:
    """Give every section its features, from the table when they are there and still fit.

    Where the encoder is trained too, give it its patches, as large as the encoder wants them, or of `patch_px`. With
    `cache_dir` finished batches of features are kept there: an interrupted encoding goes on where it stopped. With
    `client` the workers of a dask cluster encode.
    """
    if client is not None:
        check_client(client)
    if isinstance(encoder, Precomputed) and config.orientations > 1:
        raise ValueError(
            f"Expected orientations=1 with encoder {encoder.name!r}, found {config.orientations}: its features are "
            "there already. Average those of turned patches where they are computed."
        )
    for section, table, sdata in zip(prepared.sections, prepared.tables, prepared.objects, strict=True):
        if isinstance(encoder, Precomputed) and not config.fine_tune:
            section.features = look_up(section, table, sdata.tables, encoder.key)
            continue
        colours = None if prepared.stain is None else colour_map(section, prepared.stain)
        if encoder is None or config.fine_tune:
            section.patches = _patches(section, prepared.patch_um, encoder.input_size if encoder else patch_px)
            if colours is not None:
                section.patches = recolour(section.patches, colours)
            continue
        used = encoder if config.orientations == 1 else Turned(encoder, config.orientations)
        used = used if colours is None else Restained(used, colours)
        mark = fingerprint(section, used, prepared.patch_um, config.fields, table.obs_names[section.rows])
        cached = _cached(section, table, mark)
        if cached is None:
            on_disk = None if cache_dir is None else _on_disk(cache_dir, section, used, prepared, config, mark)
            cached = encode(
                section,
                used,
                patch_um=prepared.patch_um,
                fields=config.fields,
                progress=progress,
                cache=on_disk,
                client=client,
            )
        section.features = cached
        if len(section.rows) == table.n_obs and np.array_equal(section.rows, np.arange(table.n_obs)):
            keep = prepared.caches[id(table)] = {
                "table": table,
                "marks": {},
                "values": cached,
            }  # no copy: they are many
        else:
            keep = prepared.caches.get(id(table)) or _new_cache(table, cached.shape[1])
            prepared.caches[id(table)] = keep
            keep["values"][section.rows] = cached
        keep["marks"][section.name.split(":")[-1]] = mark


def _on_disk(
    folder: str | os.PathLike[str], section: Section, encoder: Encoder, prepared: Prepared, config: Config, mark: str
) -> FeatureCache:
    return FeatureCache(
        folder,
        section=section.name,
        mark=mark,
        n_patches=int(section.usable.sum()),
        n_fields=len(config.fields),
        dim=encoder.dim,
        about={
            "section": section.name,
            "image": section.geometry.image_key,
            "encoder": encoder.name,
            "weights": encoder.weights_hash,
            "patch_um": prepared.patch_um,
            "fields": list(config.fields),
        },
    )


def _patches(section: Section, patch_um: float, size_px: int) -> np.ndarray:
    patches = np.zeros((section.n_spots, size_px, size_px, 3), dtype=np.uint8)
    for which, cut in iter_patches(section.geometry, np.flatnonzero(section.usable), size_um=patch_um, size_px=size_px):
        patches[which] = cut
    return patches


def fingerprint(
    section: Section, encoder: Encoder, patch_um: float, fields: Sequence[float], names: Sequence[str]
) -> str:
    """Hash of everything that features depend on: encoder, patch geometry, image, and where each named spot is."""
    order = np.argsort(section.geometry.instances, kind="stable")  # the order of the rows does not matter
    about = (encoder.name, encoder.weights_hash, encoder.input_size, encoder.dim, round(patch_um, 3), tuple(fields))
    digest = hashlib.sha256(repr(about).encode())
    digest.update(image_fingerprint(section.geometry, order).encode())
    digest.update(np.round(section.geometry.pixels()[order], 2).tobytes())
    digest.update(
        repr([str(names[i]) for i in order]).encode()
    )  # rows that were given another spot have other features
    return digest.hexdigest()[:24]


def _new_cache(table: AnnData, width: int) -> dict[str, Any]:
    """Features (n_obs, width) and marks to leave in a table, beginning with those of its other sections."""
    marks, values = {}, np.full((table.n_obs, width), np.nan, np.float32)
    if FEATURES in table.uns and FEATURES in table.obsm and table.obsm[FEATURES].shape[1] == width:
        marks, values = json.loads(table.uns[FEATURES]), np.array(table.obsm[FEATURES], dtype=np.float32)
    return {"table": table, "marks": marks, "values": values}


def _cached(section: Section, table: AnnData, mark: str) -> np.ndarray | None:
    if FEATURES not in table.obsm or FEATURES not in table.uns:
        return None
    marks = json.loads(table.uns[FEATURES])
    if marks.get(section.name.split(":")[-1]) != mark:
        return None
    values = _some(np.asarray(table.obsm[FEATURES], dtype=np.float32), section.rows)
    # a table that was joined or reindexed may have lost rows
    return values if np.isfinite(values[section.usable]).all() else None


def border(prepared: Prepared, config: Config) -> np.ndarray:
    """Spots of all sections whose widest patch reaches over the border of the image: (n,) bool."""
    field_um = prepared.patch_um * max(config.fields)
    return np.concatenate([section.border(field_um) for section in prepared.sections])


def leave_features(prepared: Prepared) -> None:
    """Keep the features in the tables, for the next call."""
    for keep in prepared.caches.values():
        keep["table"].obsm[FEATURES] = keep["values"]
        keep["table"].uns[FEATURES] = json.dumps(keep["marks"])


def add_expression(
    prepared: Prepared,
    config: Config,
    *,
    genes: str | Sequence[str],
    n_genes: int | None,
    layer: str | None,
    splits: Sequence[Sequence[tuple[int, np.ndarray]]] | None = None,
) -> list[str]:
    """Choose the panel and give every section its target. Returns the panel.

    `splits` are sets of training spots, (section, positions) each: the panel then has the genes that rank high in all.
    """
    if n_genes is not None and (not isinstance(n_genes, int | np.integer) or n_genes < 1):
        raise ValueError(f"Expected n_genes to be at least 1, or None for all genes, found {n_genes!r}.")
    unique = {id(table): table for table in prepared.tables}
    logged = {key: is_logged(matrix(table, layer)) for key, table in unique.items()}
    if len(set(logged.values())) > 1:
        raise ValueError("Expected counts in all tables or logarithms in all, found both: pass layer= with the counts.")
    already = next(iter(logged.values()))
    if already and config.library == "panel":
        raise ValueError(
            "Preset 'paper' normalises counts within the panel, but found logarithms: pass layer= with counts."
        )
    if already:
        logger.info("The expression is logarithms already: used as it is.")
    values = {key: expression(table, layer) for key, table in unique.items()}  # sparse where the table is
    per_section = [_some(values[id(t)], s.rows) for s, t in zip(prepared.sections, prepared.tables, strict=True)]
    names = [list(t.var_names) for t in prepared.tables]

    everything = [(i, np.arange(s.n_spots)) for i, s in enumerate(prepared.sections)]
    if not isinstance(genes, str):
        panel = choose_genes(per_section, names, genes, None)
    else:  # the lowest rank of a gene over the training sets counts: the best are near the top in all of them
        ranked = [
            choose_genes([_some(per_section[i], at) for i, at in split], [names[i] for i, _ in split], genes, None)
            for split in (splits or [everything])
        ]
        ranks = [{gene: rank for rank, gene in enumerate(one)} for one in ranked]
        shared = set(names[0]).intersection(*names[1:], *ranked)
        panel = sorted(shared, key=lambda gene: (max(r[gene] for r in ranks), ranks[0][gene]))[:n_genes]
    if not panel:
        raise ValueError("Expected a gene panel, found none: no gene varies on every training set. Pass genes=.")
    prepared.unit = "as given (logarithm)" if already else LOG_UNIT
    if config.library == "panel":
        prepared.unit = "log1p(1e4 of the panel)"
    prepared.unit += ", smoothed" if config.smooth else ""

    for i, (section, table) in enumerate(zip(prepared.sections, prepared.tables, strict=True)):
        columns = table.var_names.get_indexer(panel)
        target = to_dense(per_section[i][:, columns])
        section.trainable = section.usable & (np.asarray(per_section[i].sum(axis=1)).ravel() > 0)
        if config.library == "panel":
            target = log_normalise(to_dense(matrix(table, layer)[section.rows][:, columns]))
        if config.smooth:
            target = smooth(target, *array_positions(section, table))
        section.expression = target
    return panel


def _some(values: Any, rows: np.ndarray) -> Any:
    """Some rows of a matrix; itself, not a copy, where they are all of them."""
    return values if np.array_equal(rows, np.arange(values.shape[0])) else values[rows]


def array_positions(section: Section, table: AnnData) -> tuple[np.ndarray, np.ndarray, bool]:
    """Row and column of each spot on the array, and whether the array is hexagonal."""
    lacking = [c for c in ("array_row", "array_col") if c not in table.obs]
    if lacking:
        raise KeyError(f"Smoothing the target needs obs columns array_row and array_col, found no {lacking}.")
    at = table.obs.iloc[section.rows]
    return at["array_row"].to_numpy(), at["array_col"].to_numpy(), is_hexagonal(section.xy_um)
