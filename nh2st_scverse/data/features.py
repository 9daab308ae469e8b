"""Features of the spots of a section, at one or several fields of view."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from anndata import AnnData
from tqdm.auto import tqdm

from nh2st_scverse.data.cluster import encode_on_cluster
from nh2st_scverse.data.expression import to_dense
from nh2st_scverse.data.feature_cache import PART, FeatureCache, release
from nh2st_scverse.data.geometry import Geometry
from nh2st_scverse.data.lattice import Nodes
from nh2st_scverse.data.maps import Tiled
from nh2st_scverse.data.patches import ahead, batches, cut
from nh2st_scverse.data.section import Section
from nh2st_scverse.data.sweep import Way, sweep
from nh2st_scverse.encoders import Encoder
from nh2st_scverse.encoders._base import check_shape, has_maps, parts_of


@dataclass(frozen=True)
class Sight:
    """What is seen of every spot."""

    patch_um: float  # side of a patch
    fields: tuple[float, ...] = (1.0,)  # sides of the fields of view, in patches; their features follow each other
    # those whose features are taken from maps of the tissue, or between the nodes of a lattice, not from own patches
    mapped: tuple[float, ...] = ()


def encode_section(
    section: Section,
    encoder: Encoder,
    *,
    sight: Sight,
    progress: bool = True,
    cache: FeatureCache | None = None,
    client: Any = None,
    begun: np.ndarray | None = None,
) -> np.ndarray:
    """Encode the patches of every usable spot.

    Patches are read and cut by a thread while the encoder works on those before. What is in memory does not depend on
    the size of the image.

    Parameters
    ----------
    section
        Spots on their image.
    encoder
        Patches to features.
    sight
        Patch and fields of view.
    progress
        Show a progress bar.
    cache
        Where finished batches are kept on disk; what it has already is not encoded again.
    client
        ``distributed.Client`` of a dask cluster that encodes, instead of this process.
    begun
        What an interrupted encoding left, NaN where it did not come: filled in place.

    Returns
    -------
    (n_spots, len(fields) * encoder.dim) float32, NaN for spots without a usable image.

    Raises
    ------
    ValueError
        The encoder returns another shape than it announces.
    """
    patch_um, fields = sight.patch_um, sight.fields
    width = len(fields) * encoder.dim
    features = np.full((section.n_spots, width), np.nan, dtype=np.float32) if begun is None else begun
    some = batches(
        section.geometry, np.flatnonzero(section.usable), size_um=patch_um * min(fields), size_px=encoder.input_size
    )
    columns = [slice(i * encoder.dim, (i + 1) * encoder.dim) for i in range(len(fields))]
    todo = []  # batch and field
    of_maps: dict[int, list[int]] = {field: [] for field, side in enumerate(fields) if side in sight.mapped}  # batches
    for at, spots in enumerate(some):
        for field in range(len(fields)):
            if begun is not None and np.isfinite(begun[spots, columns[field]]).all():
                continue
            release(features)
            known = None if cache is None else cache.get(at, field, len(spots))
            if known is not None:
                features[spots, columns[field]] = known
            elif field in of_maps:
                of_maps[field].append(at)
            else:
                todo.append((at, field))
    n_parts = len(parts_of(encoder))  # each of which goes its own way
    n_patches = sum(len(some[at]) for at, _ in todo)
    n_patches += sum(len(some[at]) for ats in of_maps.values() for at in ats) * n_parts
    with tqdm(
        total=n_patches,
        desc=f"encoding {section.name}",
        unit="patch",
        mininterval=0.5,
        dynamic_ncols=True,
        disable=not progress,
    ) as bar:
        work = [(some[at], patch_um * fields[field]) for at, field in todo]
        for i, found in _encoded(section.geometry, encoder, work, client):
            at, field = todo[i]
            features[some[at], columns[field]] = found
            release(features)
            if cache is not None:
                cache.put(at, field, found)
            bar.update(len(found))
        ways: list[Way] = []
        of_way, lacking = [], {}  # field and columns of each way; parts of each batch of a field that are to come
        batch = np.full((len(fields), section.n_spots), -1)  # of each spot
        for field, ats in of_maps.items():
            for at in ats:
                batch[field, some[at]] = at
            start, lacking[field] = columns[field].start, np.zeros(len(some), dtype=int)
            for part in parts_of(encoder):
                own = slice(start, start + part.dim)
                places = np.flatnonzero(_lacks(features, own.start) & (batch[field] >= 0))
                lacking[field] += np.bincount(batch[field, places], minlength=len(some))
                kind = Tiled if has_maps(part) else Nodes
                ways.append(kind(section.geometry, part, places, field_um=patch_um * fields[field]))
                of_way.append((field, own))
                start = own.stop
            bar.update(sum(len(some[at]) for at in ats) * n_parts - int(lacking[field].sum()))
        for way, which, found in sweep(ways, client):
            field, own = of_way[way]
            features[which, own] = found
            release(features)
            bar.update(len(found))
            for at, n in zip(*np.unique(batch[field, which], return_counts=True), strict=True):
                lacking[field][at] -= n
                if cache is not None and not lacking[field][at]:
                    cache.put(at, field, features[some[at], columns[field]])
    return features


def _lacks(features: np.ndarray, column: int) -> np.ndarray:
    """Which spots (n,) have no value in a column."""
    lacks = np.empty(len(features), dtype=bool)
    for start in range(0, len(features), PART):  # of what is on disk, little is in memory
        lacks[start : start + PART] = np.isnan(features[start : start + PART, column])
        release(features)
    return lacks


def _encoded(
    geometry: Geometry, encoder: Encoder, work: Sequence[tuple[np.ndarray, float]], client: Any
) -> Iterator[tuple[int, np.ndarray]]:
    """Encode batches of patches, here one after the other or on a cluster: position of the batch, its features."""
    given = geometry, encoder, work
    for i, found in _here(*given) if client is None else encode_on_cluster(*given, client):
        check_shape(encoder, found, len(work[i][0]))
        yield i, found


def _here(
    geometry: Geometry, encoder: Encoder, work: Sequence[tuple[np.ndarray, float]]
) -> Iterator[tuple[int, np.ndarray]]:
    for i, patches in enumerate(ahead(cut(geometry, work, size_px=encoder.input_size))):
        yield i, np.asarray(encoder(patches), dtype=np.float32)


def look_up(section: Section, table: AnnData, tables: Mapping[str, AnnData], key: str) -> np.ndarray:
    """Features (n_spots, dim) float32 of a section that were computed elsewhere.

    Parameters
    ----------
    section
        Its spots.
    table
        The table of the section; `key` may be in its ``.obsm``.
    tables
        All tables of the object; `key` may be one whose X holds features, matched by instance id or name.
    key
        Where the features are.

    Raises
    ------
    KeyError
        They are in neither.
    ValueError
        Some spots have none, or not all are finite.
    """
    if key in table.obsm:
        found = np.asarray(table.obsm[key], dtype=np.float32)
        if found.ndim != 2 or found.shape[1] < 2:
            raise ValueError(
                f"Expected features of several columns in obsm[{key!r}], found shape {found.shape}: one number for a "
                "spot tells no genes apart."
            )
        if not np.array_equal(section.rows, np.arange(len(found))):  # no copy of a large table
            found = found[section.rows]
    elif key in tables:
        other = tables[key]
        attributes = other.uns.get("spatialdata_attrs")
        if attributes:
            other = other[(other.obs[attributes["region_key"]].astype(str) == section.name).to_numpy()]
        names = other.obs[attributes["instance_key"]] if attributes else other.obs_names
        wanted = section.geometry.instances if attributes else table.obs_names[section.rows]
        at = pd.Index(names).astype(str).get_indexer(pd.Index(wanted).astype(str))
        if (at < 0).any():
            raise ValueError(
                f"Table {key!r} has no features for {int((at < 0).sum())} of {section.n_spots} spots of "
                f"{section.name!r}, e.g. {list(wanted[at < 0][:3])}; it has e.g. {list(names[:3])}."
            )
        found = to_dense(other.X)[at].astype(np.float32)
    else:
        raise KeyError(
            f"Expected features {key!r} in .obsm of the table or among the tables, found .obsm {list(table.obsm)} and "
            f"tables {list(tables)}."
        )
    lacking = ~np.isfinite(found).all(axis=1) & section.usable
    if lacking.any():
        raise ValueError(
            f"Expected finite features {key!r}, found NaN or infinite ones for {int(lacking.sum())} of "
            f"{section.n_spots} spots of {section.name!r}. Drop these rows of the table."
        )
    return found
