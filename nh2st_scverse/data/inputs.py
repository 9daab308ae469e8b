"""What the model sees of each section: features of its images, or patches for an encoder that is trained."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Any

import numpy as np
from anndata import AnnData

from nh2st_scverse._constants import FEATURES
from nh2st_scverse.data.cohort import Cohort, Sample
from nh2st_scverse.data.feature_cache import FeatureCache, on_disk
from nh2st_scverse.data.features import Sight, encode_section, look_up
from nh2st_scverse.data.lattice import PER_FIELD
from nh2st_scverse.data.maps import MARGIN
from nh2st_scverse.data.patches import image_fingerprint, iter_patches
from nh2st_scverse.data.section import Section
from nh2st_scverse.data.stain import Restained, colour_map, recolour
from nh2st_scverse.encoders import Encoder, Precomputed
from nh2st_scverse.encoders._base import has_maps, parts_of
from nh2st_scverse.encoders._turned import Turned
from nh2st_scverse.nn.config import Config, Maps

MANY = 100_000  # spots whose features are too many to be held, or to be left in a table
WIDE = 2.0  # patches: tiles of wider fields take less time than a patch for each spot, as far apart as on Visium


def _is_mapped(field: float, maps: Maps) -> bool:
    return field >= {"none": np.inf, "wide": WIDE, "all": 0.0}[maps]


def sight_um(config: Config, patch_um: float) -> float:
    """Side of the square that a place sees: its widest field of view, that of maps with a margin."""
    return patch_um * max(field * (1 + 2 * MARGIN if _is_mapped(field, config.maps) else 1) for field in config.fields)


@dataclass(frozen=True)
class Recipe:
    """How features are made: everything but the image and the places that they depend on."""

    encoder: Encoder
    patch_um: float
    fields: tuple[float, ...] = (1.0,)  # sides of the fields of view of a spot, in patches
    orientations: int = 1
    stain: dict[str, Any] | None = None  # the colours that sections take
    maps: Maps = "none"  # which fields of view are encoded once for all places

    def __post_init__(self) -> None:
        """Features that are there already can be neither turned nor computed anew."""
        if isinstance(self.encoder, Precomputed) and self.maps != "none":
            raise ValueError(
                f"Expected maps='none' with encoder {self.encoder.name!r}, found {self.maps!r}: its features are there "
                "already. Maps are for encoders that compute here."
            )
        if isinstance(self.encoder, Precomputed) and self.orientations > 1:
            raise ValueError(
                f"Expected orientations=1 with encoder {self.encoder.name!r}, found {self.orientations}: its features "
                "are there already. Average those of turned patches where they are computed."
            )

    def encoder_for(self, section: Section) -> Encoder:
        """The encoder as a section needs it: of turned patches, in the colours of the training sections."""
        used = self.encoder if self.orientations == 1 else Turned(self.encoder, self.orientations)
        return used if self.stain is None else Restained(used, colour_map(section, self.stain))

    @property
    def mapped(self) -> tuple[float, ...]:
        """The fields of view that are encoded once for all places."""
        return tuple(field for field in self.fields if _is_mapped(field, self.maps))

    def mark(self, section: Section, encoder: Encoder, names: Sequence[str]) -> str:
        """Hash of everything that features depend on: encoder, patch geometry, image, where each named spot is."""
        order = np.argsort(section.geometry.instances, kind="stable")  # the order of the rows does not matter
        patch = round(self.patch_um, 3), tuple(self.fields)
        about = (encoder.name, encoder.weights_hash, encoder.input_size, encoder.dim, *patch)
        digest = hashlib.sha256(repr(about).encode())
        if self.mapped:
            ways = [MARGIN if has_maps(part) else PER_FIELD for part in parts_of(encoder)]
            digest.update(repr(("maps", self.mapped, ways)).encode())
        digest.update(image_fingerprint(section.geometry, order).encode())
        digest.update(np.round(section.geometry.pixels()[order], 2).tobytes())
        # rows that were given another spot have other features
        digest.update(repr([str(names[i]) for i in order]).encode())
        return digest.hexdigest()[:24]


class KeptFeatures:
    """Features in the tables of a cohort: those that still fit are used, new ones are left for the next call.

    A context: what was encoded inside is written to the tables at its end, also when the user interrupts, but not when
    something fails.

    Parameters
    ----------
    cohort
        Whose tables.
    """

    def __init__(self, cohort: Cohort) -> None:
        self.cohort = cohort
        self.new: dict[int, _Column] = {}  # by table

    def __enter__(self) -> KeptFeatures:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        if kind is None or issubclass(kind, KeyboardInterrupt):
            for column in self.new.values():
                column.write(column.table)

    def get(self, sample: Sample, mark: str) -> np.ndarray | None:
        """Features (n_spots, F) of a section, if they are there and made in the same way."""
        column = self.new.get(id(sample.table)) or _Column.read(sample.table)
        if column is None or column.marks.get(sample.section.shapes_key) != mark:
            return None
        values = column.values if sample.is_whole_table else column.values[sample.section.rows]
        # a table that was joined or reindexed may have lost rows
        return values if np.isfinite(values[sample.section.usable]).all() else None

    def put(self, sample: Sample, mark: str, values: np.ndarray) -> None:
        """Take note of the features (n_spots, F) of a section."""
        table, key = sample.table, sample.section.shapes_key
        if sample.is_whole_table:
            self.new[id(table)] = _Column(table, {key: mark}, values)  # no copy: they are many
            return
        column = self.new.get(id(table)) or _Column.read(table, copy=True)
        if column is None or column.values.shape[1] != values.shape[1]:
            column = _Column(table, {}, np.full((table.n_obs, values.shape[1]), np.nan, np.float32))
        column.values[sample.section.rows] = values
        column.marks[key] = mark
        self.new[id(table)] = column

    def copy_to(self, table: AnnData, source: AnnData) -> None:
        """Leave what is noted of one table in another one with the same rows."""
        if id(source) in self.new:
            self.new[id(source)].write(table)


@dataclass(frozen=True)
class _Column:
    """The features in a table, and for each section the mark of how they were made."""

    table: AnnData
    marks: dict[str, str]
    values: np.ndarray  # (n_obs, F)

    @classmethod
    def read(cls, table: AnnData, *, copy: bool = False) -> _Column | None:
        """What is in a table."""
        if FEATURES not in table.uns or FEATURES not in table.obsm:
            return None
        try:
            marks = json.loads(table.uns[FEATURES])
            values = np.array(table.obsm[FEATURES], dtype=np.float32, copy=copy or None)
        except (TypeError, ValueError, RecursionError):
            marks = None
        if not isinstance(marks, dict):
            raise ValueError(
                f"Expected uns[{FEATURES!r}] and obsm[{FEATURES!r}] to be features that an earlier call left "
                "there, found something else. Rename them: the name is needed."
            )
        return cls(table, marks, values)

    def write(self, table: AnnData) -> None:
        """Leave it in a table."""
        table.obsm[FEATURES] = self.values
        table.uns[FEATURES] = json.dumps(self.marks)


@dataclass(frozen=True)
class Encoding:
    """Where features are computed, and where finished batches of them are kept."""

    progress: bool = True
    cache_dir: str | os.PathLike[str] | None = None
    client: Any = None
    spill: bool = False  # those of more than MANY spots in all on disk, in 16 bits; they are not left in the table


_begun: dict[str, np.ndarray] = {}  # by mark: the encoding that was interrupted last, for the same process

HERE = Encoding()
"""In this process, with a bar; nothing is kept on disk."""


def encode(cohort: Cohort, recipe: Recipe, kept: KeptFeatures, how: Encoding = HERE) -> tuple[np.ndarray, ...]:
    """Features (n_spots, F) float32 of every section, NaN for spots without a usable image.

    Those that are in the tables and still fit are taken from there. With a ``cache_dir`` finished batches are kept
    there: an interrupted encoding goes on where it stopped. With a ``client`` the workers of a dask cluster encode.
    """
    found = []
    spilled = how.spill and sum(section.n_spots for section in cohort.sections) > MANY
    for sample in cohort.samples:
        section, table = sample.section, sample.table
        if isinstance(recipe.encoder, Precomputed):
            found.append(look_up(section, table, sample.sdata.tables, recipe.encoder.key))
            continue
        encoder = recipe.encoder_for(section)
        mark = recipe.mark(section, encoder, table.obs_names[section.rows])
        features = kept.get(sample, mark)
        if features is None:
            features = _encode(section, encoder, recipe, mark, how, spilled)
        if not isinstance(features, np.memmap):
            kept.put(sample, mark, features)
        found.append(features)
    return tuple(found)


def _encode(section: Section, encoder: Encoder, recipe: Recipe, mark: str, how: Encoding, spilled: bool) -> np.ndarray:
    """Encode one section; what an interruption leaves is kept, on disk or in this process."""
    features = _begun.pop(mark, None)
    if features is None:
        shape = section.n_spots, len(recipe.fields) * encoder.dim
        features = on_disk(*shape) if spilled else np.full(shape, np.nan, dtype=np.float32)
    _begun.clear()
    try:
        return encode_section(
            section,
            encoder,
            sight=Sight(recipe.patch_um, recipe.fields, recipe.mapped),
            progress=how.progress,
            cache=None if how.cache_dir is None else _on_disk(section, encoder, recipe, mark, how.cache_dir),
            client=how.client,
            begun=features,
        )
    except KeyboardInterrupt:
        _begun[mark] = features
        where = "in this session" if how.cache_dir is None else f"in {how.cache_dir}"
        raise KeyboardInterrupt(  # without the frames of the encoder
            f"Encoding of {section.name!r} was interrupted; what is done is kept {where}: the same call goes on."
        ) from None


def cut_patches(
    cohort: Cohort, patch_um: float, size_px: int, stain: dict[str, Any] | None = None
) -> tuple[np.ndarray, ...]:
    """Patches (n_spots, size_px, size_px, 3) uint8 of every section, for an encoder that is trained."""
    found = []
    for section in cohort.sections:
        patches = np.zeros((section.n_spots, size_px, size_px, 3), dtype=np.uint8)
        usable = np.flatnonzero(section.usable)
        for which, cut in iter_patches(section.geometry, usable, size_um=patch_um, size_px=size_px):
            patches[which] = cut
        found.append(patches if stain is None else recolour(patches, colour_map(section, stain)))
    return tuple(found)


def _on_disk(
    section: Section, encoder: Encoder, recipe: Recipe, mark: str, folder: str | os.PathLike[str]
) -> FeatureCache:
    return FeatureCache(
        folder,
        section=section.name,
        mark=mark,
        n_patches=int(section.usable.sum()),
        n_fields=len(recipe.fields),
        dim=encoder.dim,
        about={
            "section": section.name,
            "image": section.geometry.image_key,
            "encoder": encoder.name,
            "weights": encoder.weights_hash,
            "patch_um": recipe.patch_um,
            "fields": list(recipe.fields),
            "maps": list(recipe.mapped),
        },
    )
