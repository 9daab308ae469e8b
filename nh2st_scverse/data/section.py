"""One tissue section as arrays, checked: spots on their image, neighbourhoods, features, expression."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace

import numpy as np
from spatialdata import SpatialData

from nh2st_scverse._logging import logger
from nh2st_scverse._validators import as_allowances, check_unique, choose_key
from nh2st_scverse.data.checks import on_image, placement, raise_or_log
from nh2st_scverse.data.geometry import Geometry, locate, spot_spacing
from nh2st_scverse.data.neighbours import Neighbours, neighbourhoods
from nh2st_scverse.data.patches import overhang

PATCH_PER_SPACING = 0.75  # default patch: 75 µm on Visium, 150 µm on legacy ST, about 1.5 spot diameters


@dataclass
class Section:
    """The spots of one section, in the order of their rows in the table."""

    name: str  # key of the shapes element
    rows: np.ndarray  # (n,) rows of the table
    geometry: Geometry  # its spots in the order of `rows`
    spacing_um: float
    usable: np.ndarray  # (n,) bool: the centre lies on the image
    neighbours: Neighbours
    features: np.ndarray | None = None  # (n, F) float32
    patches: np.ndarray | None = None  # (n, side, side, 3) uint8, for encoders that are trained
    expression: np.ndarray | None = None  # (n, G) the target
    trainable: np.ndarray = field(
        default_factory=lambda: np.empty(0, dtype=bool)
    )  # (n,) usable, and not empty of counts

    @property
    def n_spots(self) -> int:
        """Number of spots."""
        return len(self.rows)

    @property
    def xy_um(self) -> np.ndarray:
        """Centres in µm, in the axes of the image: (n, 2)."""
        return self.geometry.pixels() * self.geometry.microns_per_pixel

    def border(self, patch_um: float) -> np.ndarray:
        """Spots whose patch reaches over the border of the image and is padded: (n,) bool."""
        return overhang(self.geometry, patch_um)

    def keep(self, members: np.ndarray) -> Section:
        """The section with only some of its spots, (m,) positions; neighbours are looked up again among them."""
        geometry = replace(
            self.geometry,
            coordinates=self.geometry.coordinates[members],
            instances=self.geometry.instances[members],
        )

        def some(values: np.ndarray | None) -> np.ndarray | None:
            return None if values is None else values[members]

        usable = self.usable[members]
        n_nodes = self.neighbours.nodes.shape[1]
        return Section(
            name=self.name,
            rows=self.rows[members],
            geometry=geometry,
            spacing_um=self.spacing_um,
            usable=usable,
            neighbours=neighbourhoods(geometry.pixels() * geometry.microns_per_pixel, self.spacing_um, usable, n_nodes),
            features=some(self.features),
            patches=some(self.patches),
            expression=some(self.expression),
            trainable=self.trainable[members] if len(self.trainable) else self.trainable,
        )


def find_sections(
    sdata: SpatialData,
    *,
    table_key: str | None = None,
    shapes_key: str | None = None,
    image_key: str | Mapping[str, str] | None = None,
    microns_per_pixel: float | None = None,
    allow: str | Iterable[str] = (),
    n_nodes: int = 9,
) -> tuple[str, list[Section]]:
    """Read the sections that a table annotates, and check that spots, image and table fit together.

    Parameters
    ----------
    sdata
        Images, spots and a table that annotates the spots.
    table_key, shapes_key, image_key
        Which elements; None means the only candidate. Without `shapes_key` every region of the table is a section.
        `image_key` may map shapes keys to images.
    microns_per_pixel
        Of the image at full resolution, when the object does not tell.
    allow
        Known problems to go on with: ``"coarse"``, ``"off_tissue"``.
    n_nodes
        Spots of a neighbourhood, the spot itself included.

    Returns
    -------
    The key of the table, and its sections in the order of its regions.

    Raises
    ------
    KeyError
        Missing or ambiguous keys.
    ValueError
        Duplicated names, instances that do not exist, spots outside the image or off the tissue, too few spots.
    """
    if not isinstance(sdata, SpatialData):
        raise TypeError(
            f"Expected a SpatialData object, found {type(sdata).__name__}. Make one with nh.io.from_anndata(adata, "
            "image, microns_per_pixel=...) or spatialdata_io.visium(path)."
        )
    allowed = as_allowances(allow)
    annotating = [key for key, table in sdata.tables.items() if table.uns.get("spatialdata_attrs")]
    if table_key is None and not annotating:
        raise KeyError(
            f"Expected a table that annotates spots, found none among {list(sdata.tables)}. Make it one with "
            "spatialdata.models.TableModel.parse(adata, region=..., region_key=..., instance_key=...), or predict "
            "a slide without counts with model=."
        )
    table_key = choose_key(annotating, table_key, what="tables that annotate spots", argument="table_key")
    table = sdata.tables[table_key]
    check_unique(table.obs_names, what="spot names", remedy="table.obs_names_make_unique()")
    check_unique(table.var_names, what="gene names", remedy="table.var_names_make_unique()")

    attributes = table.uns["spatialdata_attrs"]
    region = attributes["region"]
    regions = [region] if isinstance(region, str) else list(region)
    absent = [r for r in regions if r not in sdata.shapes]
    regions = [r for r in regions if r in sdata.shapes]
    if shapes_key is not None:
        regions = [choose_key(regions, shapes_key, what="shapes that the table annotates", argument="shapes_key")]
    if not regions:
        raise KeyError(
            f"Table {table_key!r} annotates {attributes['region']!r}, which is not among the shapes "
            f"{list(sdata.shapes)}. Add these shapes, or name others with "
            "sdata.set_table_annotates_spatialelement(table_key, region=...)."
        )
    if absent and shapes_key is None:
        logger.warning("Table %r annotates %s, which are no shapes: their rows are left out.", table_key, absent)
    sections = []
    for name in regions:
        rows = np.flatnonzero((table.obs[attributes["region_key"]] == name).to_numpy())
        if not len(rows):
            continue
        image = image_key.get(name) if isinstance(image_key, Mapping) else image_key
        instances = table.obs[attributes["instance_key"]].to_numpy()[rows]
        sections.append(_section(sdata, name, rows, instances, image, microns_per_pixel, allowed, n_nodes))
    if not sections:
        found = sorted(set(table.obs[attributes["region_key"]].astype(str)))
        raise ValueError(
            f"Expected rows of table {table_key!r} for {regions}, found none. Its rows are of {found}: choose with "
            "shapes_key=, or mend the table with sdata.set_table_annotates_spatialelement(...)."
        )
    return table_key, sections


def _section(
    sdata: SpatialData,
    name: str,
    rows: np.ndarray,
    instances: np.ndarray,
    image_key: str | None,
    microns_per_pixel: float | None,
    allowed: frozenset[str],
    n_nodes: int,
) -> Section:
    if len(rows) < n_nodes:
        raise ValueError(
            f"Expected at least {n_nodes} spots in section {name!r} (a spot and its {n_nodes - 1} nearest), found "
            f"{len(rows)}. Join it with the other pieces of its slide, or choose other sections with shapes_key=."
        )
    check_unique(instances, what=f"instance ids of {name!r} in the table", remedy="one row of the table per spot")
    check_unique(sdata.shapes[name].index, what=f"index of shapes {name!r}", remedy="sdata.shapes[...].reset_index()")
    geometry = locate(sdata, name, image_key=image_key, microns_per_pixel=microns_per_pixel)
    position = sdata.shapes[name].index.get_indexer(instances)  # rows and spots are matched by id, never by order
    if (position < 0).any():
        lacking = instances[position < 0]
        raise ValueError(
            f"{len(lacking)} of {len(rows)} rows of the table name a spot that shapes {name!r} does not have, e.g. "
            f"{list(lacking[:5])}; it has e.g. {list(geometry.instances[:5])}. Mend with "
            "spatialdata.match_sdata_to_table(sdata, ...)."
        )
    geometry = replace(geometry, coordinates=geometry.coordinates[position], instances=instances)
    raise_or_log(placement(geometry, name), allowed, section=name)
    usable = on_image(geometry)
    xy_um = geometry.pixels() * geometry.microns_per_pixel
    spacing = spot_spacing(xy_um)
    if not spacing > 0:
        raise ValueError(
            f"Expected the spots of {name!r} at different places, found most of them on top of each other. Are the "
            "coordinates x and y in pixels? Give the shapes others, or one row for each place."
        )
    return Section(name, rows, geometry, spacing, usable, neighbourhoods(xy_um, spacing, usable, n_nodes))


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


def patch_size(sections: Iterable[Section]) -> float:
    """The default patch in µm, from the spacing of the spots of all sections.

    Raises
    ------
    ValueError
        The sections have different spot spacings, as two technologies have.
    """
    spacings = {section.name: section.spacing_um for section in sections}
    low, high = min(spacings.values()), max(spacings.values())
    if high > 1.25 * low:
        raise ValueError(
            f"The sections have spots at different spacings: { {k: f'{v:.0f} µm' for k, v in spacings.items()} }. If "
            "that is right pass patch_um=; if not, microns_per_pixel is wrong in one of them."
        )
    return round(PATCH_PER_SPACING * float(np.median(list(spacings.values()))), 1)
