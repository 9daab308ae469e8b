"""The sections of one or several objects, each with the table and the object that it comes from."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import geopandas as gpd
import numpy as np
import pandas as pd
from anndata import AnnData
from spatialdata import SpatialData
from spatialdata.models import TableModel

from nh2st_scverse._constants import N_NODES
from nh2st_scverse._options import ANY, Elements
from nh2st_scverse._validators import as_label, as_sequence, by_text, check_positive
from nh2st_scverse.data import checks, copies
from nh2st_scverse.data.patches import best_level
from nh2st_scverse.data.section import Section, choose_table, locate_section, locate_sections

PATCH_PER_SPACING = 0.75  # default patch: 75 µm on Visium, 150 µm on legacy ST, about 1.5 spot diameters
LEAST_PATCH_UM = 56.0  # of bins and cells, which are read with what is around them: 224 px of a scan at 40x


@dataclass(frozen=True)
class Sample:
    """One section, with the table that annotates it and the object that holds both."""

    section: Section
    table: AnnData
    sdata: SpatialData

    @property
    def is_whole_table(self) -> bool:
        """Whether the section is all of its table, in its order: then nothing need be copied."""
        return np.array_equal(self.section.rows, np.arange(self.table.n_obs))


@dataclass(frozen=True)
class Cohort:
    """All sections that a tool works on, and the side of the patch of a spot."""

    samples: tuple[Sample, ...]
    patch_um: float

    @property
    def sections(self) -> tuple[Section, ...]:
        """The section of each sample."""
        return tuple(sample.section for sample in self.samples)

    @property
    def tables(self) -> list[AnnData]:
        """Every table once."""
        return list({id(sample.table): sample.table for sample in self.samples}.values())


def collect(
    sdata: SpatialData | Sequence[SpatialData] | Mapping[str, SpatialData],
    elements: Elements = ANY,
    *,
    groups: str | Sequence[str] | Mapping[str, str] | None = None,
    patch_um: float | None = None,
    n_nodes: int = N_NODES,
    layer: str | None = None,
) -> Cohort:
    """Find and check the sections of one object, a list or a dict of them.

    Parameters
    ----------
    sdata
        The objects.
    elements
        Which table, shapes and image of each.
    groups
        What is held out together: a name for each object or section, a dict by their names, or a column of ``.obs``.
        None: each section is a group.
    patch_um
        Side of the patch of a spot; None takes three quarters of the spot spacing.
    n_nodes
        Spots of a neighbourhood, the spot itself included.
    layer
        Layer with the counts, by which the places of spots are checked; None means X.

    Raises
    ------
    TypeError, KeyError, ValueError
        Whatever stops a tool before any work: see :func:`nh2st_scverse.tl.train`.
    """
    objects = as_dict(sdata)
    check_image_keys(elements.image, objects.values())
    if patch_um is not None:
        check_positive(patch_um, argument="patch_um")
    samples: list[Sample] = []
    owner: list[str] = []  # object of each section
    for name, one in objects.items():
        table = one.tables[choose_table(one, elements.table)]
        for section in locate_sections(one, elements, n_nodes=n_nodes):
            taken = len(objects) > 1 and any(section.name == sample.section.name for sample in samples)
            named = replace(section, name=f"{name}:{section.name}") if taken else section
            samples.append(Sample(named, table, one))
            owner.append(name)
    grouped = zip(samples, _groups(groups, samples, owner, list(objects)), strict=True)
    samples = [replace(sample, section=replace(sample.section, group=group)) for sample, group in grouped]
    cohort = Cohort(tuple(samples), patch_um or patch_size([sample.section for sample in samples]))
    _check(cohort, elements, layer)
    return cohort


def collect_places(
    sdata: SpatialData,
    shapes_key: str,
    shapes: gpd.GeoDataFrame,
    elements: Elements,
    *,
    patch_um: float,
    n_nodes: int = N_NODES,
) -> Cohort:
    """The one section of shapes that no table annotates, with a table of its places that has no genes.

    Parameters
    ----------
    sdata
        The object; its images are used.
    shapes_key, shapes
        Places to predict at; they need not be in the object yet.
    elements
        Which image, and its µm per pixel.
    patch_um, n_nodes
        As in :func:`collect`.
    """
    index = shapes.index
    obs = pd.DataFrame(
        {"region": pd.Categorical([shapes_key] * len(index)), "spot_id": index.to_numpy()}, index=index.astype(str)
    )
    obs.index.name = None
    for column in [c for c in ("array_row", "array_col") if c in shapes]:
        obs[column] = shapes[column].to_numpy()
    table = TableModel.parse(AnnData(obs=obs), region=shapes_key, region_key="region", instance_key="spot_id")
    images_and_places = SpatialData(images=dict(sdata.images), shapes={shapes_key: shapes})
    rows = np.arange(len(index))
    section = locate_section(images_and_places, shapes_key, rows, index.to_numpy(), elements, n_nodes=n_nodes)
    table.obsm["spatial"] = section.geometry.pixels()
    cohort = Cohort((Sample(section, table, images_and_places),), patch_um)
    _check(cohort, elements)
    return cohort


def _check(cohort: Cohort, elements: Elements, layer: str | None = None) -> None:
    """Raise what stops a tool before any work, and log what ``pp.check`` would warn of."""
    for sample in cohort.samples:
        section = sample.section
        name, obs = section.shapes_key, sample.table.obs.iloc[section.rows]
        counting = checks.counting(obs)
        geometry = section.geometry.take(counting)
        checks.raise_or_log(checks.image_kind(geometry), elements.allow, section=section.name)
        checks.raise_or_log(checks.placement(geometry, name), elements.allow, section=section.name)
        n_usable, n_nodes = int(section.usable.sum()), section.neighbours.nodes.shape[1]
        if n_usable < n_nodes:
            raise ValueError(
                f"Expected at least {n_nodes} spots with an image in section {section.name!r} (a spot and its "
                f"{n_nodes - 1} neighbours), found {n_usable}. Join the sections of a slide into larger ones."
            )
        found = checks.in_section(
            geometry,
            diameter_um=section.diameter_um,
            spacing_um=section.spacing_um,
            patch_um=cohort.patch_um,
            counts=counts_of(sample.table, section.rows[counting], layer),
            name=name,
        )
        found += checks.outlines(sample.sdata.shapes[name], geometry)
        checks.raise_or_log([*found, *checks.background(obs)], elements.allow, section=section.name)


def elements_of(cohort: Cohort) -> str:
    """What was used of each section, as JSON: table, shapes, image, its level, coordinate system and µm per pixel."""

    def used(sample: Sample) -> dict[str, Any]:
        geometry = sample.section.geometry
        level = best_level(geometry, cohort.patch_um, checks.INPUT_PX)
        return {
            "table": next((key for key, table in sample.sdata.tables.items() if table is sample.table), None),
            "shapes": sample.section.shapes_key,
            "image": geometry.image_key,
            "level": geometry.levels.index(level),
            "coordinate_system": geometry.system,
            "microns_per_pixel": geometry.microns_per_pixel,
            "microns_source": geometry.microns_source,
            "chosen": geometry.why,
        }

    return json.dumps({sample.section.name: used(sample) for sample in cohort.samples})


def check_apart(cohort: Cohort, layer: str | None = None) -> None:
    """Raise when a section of one group is a copy of one of another, and log where groups touch."""
    pieces = [
        copies.Piece(one.name, one.group, one.geometry, one.spacing_um, counts_of(sample.table, one.rows, layer))
        for sample in cohort.samples
        for one in [sample.section]
    ]
    checks.raise_or_log(copies.apart(pieces))


def counts_of(table: AnnData, rows: np.ndarray, layer: str | None = None) -> Any:
    """X or a layer of some rows, not read yet where it is lazy; None where it is not there."""
    x = table.X if layer is None else table.layers.get(layer)
    return x if x is None or np.array_equal(rows, np.arange(table.n_obs)) else x[rows]


def patch_size(sections: Iterable[Section]) -> float:
    """The default patch in µm, from the spacing of the spots of all sections.

    Raises
    ------
    ValueError
        The sections have different spot spacings, as two technologies have.
    """
    spacings = {section.name: section.spacing_um for section in sections}
    patches = [default_patch(spacing) for spacing in spacings.values()]
    if max(patches) > 1.25 * min(patches):
        raise ValueError(
            f"The sections have spots at different spacings: { {k: f'{v:.0f} µm' for k, v in spacings.items()} }. If "
            "that is right pass patch_um=; if not, microns_per_pixel is wrong in one of them."
        )
    return round(float(np.median(patches)), 1)


def default_patch(spacing_um: float) -> float:
    """Side of a patch in µm for spots at some spacing."""
    return max(PATCH_PER_SPACING * spacing_um, LEAST_PATCH_UM)


def check_image_keys(image_key: str | Mapping[str, str] | None, objects: Iterable[SpatialData]) -> None:
    """Raise KeyError when `image_key` maps shapes that none of the objects has."""
    if not isinstance(image_key, Mapping):
        return
    available = list(dict.fromkeys(name for sdata in objects for name in sdata.shapes))
    unknown = [name for name in image_key if name not in available]
    if unknown:
        raise KeyError(
            f"image_key= maps {unknown}, which are no shapes. Available shapes: {available}; expected "
            "{shapes: image, ...}."
        )


def as_dict(sdata: Any) -> dict[str, SpatialData]:
    """The objects by name."""
    if isinstance(sdata, SpatialData):
        return {"0": sdata}
    if isinstance(sdata, Mapping):
        objects = by_text(sdata, argument="the dict of objects")
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


def _groups(groups: Any, samples: Sequence[Sample], owner: Sequence[str], objects: Sequence[str]) -> list[str]:
    """Group of each section: given by object, by section, by name, or by a column of the table."""
    names = [sample.section.name for sample in samples]
    if isinstance(groups, pd.Series) and set(groups.index) & {*names, *objects}:  # named: the order says nothing
        groups = groups.to_dict()
    if groups is None:
        return names
    if isinstance(groups, str):
        found = []
        for sample in samples:
            table, section = sample.table, sample.section
            if groups not in table.obs:
                raise KeyError(f"groups={groups!r} is not a column of the table. Available: {list(table.obs)}.")
            values = table.obs[groups].iloc[section.rows].unique()
            if len(values) != 1:
                raise ValueError(f"Expected one {groups!r} in section {section.name!r}, found {list(values)}.")
            found.append(as_label(values[0], argument=f"groups={groups!r}"))
        return found
    if isinstance(groups, Mapping):
        named = by_text(groups, argument="groups")
        for label in (names, owner):
            if all(name in named for name in label):
                return [as_label(named[name], argument="groups") for name in label]
        raise KeyError(f"Expected a group for each of {names}, found {list(named)}.")
    listed = [as_label(group, argument="groups") for group in as_sequence(groups, argument="groups")]
    if len(listed) == len(objects) and len(objects) > 1:
        return [listed[objects.index(name)] for name in owner]
    if len(listed) == len(samples):
        return listed
    raise ValueError(
        f"Expected groups= with one name for each of the {len(objects)} objects or {len(samples)} sections {names}, "
        f"found {len(listed)}."
    )
