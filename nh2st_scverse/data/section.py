"""One tissue section: its spots, where they lie on the image, and their neighbourhoods. No pixel is read."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from spatialdata import SpatialData

from nh2st_scverse._constants import N_NODES
from nh2st_scverse._logging import info_once, logger
from nh2st_scverse._options import ANY, Elements
from nh2st_scverse._validators import check_link, check_unique, choose_key
from nh2st_scverse.data.checks import on_image
from nh2st_scverse.data.geometry import Geometry, kind_of_shapes, locate, spot_diameter, spot_spacing
from nh2st_scverse.data.neighbours import Neighbours, alone, neighbourhoods
from nh2st_scverse.data.technologies import regions_of


@dataclass(frozen=True)
class Section:
    """The spots of one section, in the order of their rows in the table."""

    name: str  # what it is called among others
    shapes_key: str
    rows: np.ndarray  # (n,) rows of the table
    geometry: Geometry  # its spots in the order of `rows`
    spacing_um: float
    usable: np.ndarray  # (n,) bool: the centre lies on the image
    neighbours: Neighbours
    group: str  # what it is held out with
    diameter_um: float = 0.0  # of the places at which expression is measured

    @property
    def n_spots(self) -> int:
        """Number of spots."""
        return len(self.rows)

    @property
    def xy_um(self) -> np.ndarray:
        """Centres in µm, in the axes of the image: (n, 2)."""
        return self.geometry.pixels() * self.geometry.microns_per_pixel

    def take(self, positions: np.ndarray) -> Section:
        """The section with only some of its spots, (m,) positions; neighbours are looked up again among them."""
        geometry = self.geometry.take(positions)
        usable = self.usable[positions]
        xy_um = geometry.pixels() * geometry.microns_per_pixel
        neighbours = neighbourhoods(xy_um, self.spacing_um, usable, self.neighbours.nodes.shape[1])
        return replace(self, rows=self.rows[positions], geometry=geometry, usable=usable, neighbours=neighbours)


def check_sdata(sdata: object) -> None:
    """Raise TypeError for anything but a SpatialData object."""
    if not isinstance(sdata, SpatialData):
        raise TypeError(
            f"Expected a SpatialData object, found {type(sdata).__name__}. Make one with nh.io.from_anndata(adata, "
            "image, microns_per_pixel=...) or spatialdata_io.visium(path), or read a store with "
            "spatialdata.read_zarr(path)."
        )


def choose_table(sdata: SpatialData, table_key: str | None) -> str:
    """The key of the table that annotates spots.

    Raises
    ------
    TypeError
        Not a SpatialData object.
    KeyError
        None, or several.
    """
    check_sdata(sdata)
    annotating = [key for key, table in sdata.tables.items() if table.uns.get("spatialdata_attrs")]
    if table_key is None and not annotating:
        raise KeyError(
            f"Expected a table that annotates spots, found none among {list(sdata.tables)}. Make it one with "
            "spatialdata.models.TableModel.parse(adata, region=..., region_key=..., instance_key=...), or predict "
            "a slide without counts with model=."
        )
    return choose_key(annotating, table_key, what="tables that annotate spots", argument="table_key")


def choose_places(sdata: SpatialData, elements: Elements) -> list[str]:
    """The shapes that look like spots (an array, a grid, cells) where no table says which are; those that are named.

    Raises
    ------
    KeyError
        There are none, or only shapes of other outlines, as regions that somebody drew.
    """
    keys = list(sdata.shapes)
    if elements.shapes is not None:
        return [choose_key(keys, elements.shapes, what="shapes", argument="shapes_key")]
    spots = [key for key in keys if kind_of_shapes(sdata.shapes[key], _microns(sdata, key, elements))]
    others = [key for key in keys if key not in spots]
    if not spots:
        raise KeyError(
            f"Expected shapes that look like spots (an array, a grid or cells), found {others} "
            f"({', '.join(str(len(sdata.shapes[key])) for key in others)} outlines of other kinds, as regions that "
            "somebody drew). Pass shapes_key= to predict at their centres all the same; for all of the tissue call "
            "nh.pp.grid(sdata, model=model) first, and pass shapes_key='nh2st_grid'."
        )
    if others:
        info_once(f"Shapes {spots} are taken for spots; {others} look like something else.")
    return spots


def _microns(sdata: SpatialData, key: str, elements: Elements) -> float | None:
    """µm per unit of the coordinates of shapes; None where it is not known, which is told when they are chosen."""
    try:
        image, microns = elements.image_of(key), elements.microns_per_pixel
        return locate(sdata, key, image_key=image, microns_per_pixel=microns).microns
    except (KeyError, ValueError):
        return None


def locate_sections(sdata: SpatialData, elements: Elements = ANY, *, n_nodes: int = N_NODES) -> list[Section]:
    """Find the sections that a table annotates: each of its regions, in their order.

    Parameters
    ----------
    sdata
        Images, spots and a table that annotates the spots.
    elements
        Which of them; without shapes every region of the table is a section.
    n_nodes
        Spots of a neighbourhood, the spot itself included.

    Raises
    ------
    TypeError, KeyError
        No SpatialData object; missing or ambiguous keys.
    ValueError
        Duplicated names, instances that do not exist, too few spots, spots at one place.
    """
    table_key = choose_table(sdata, elements.table)
    table = sdata.tables[table_key]
    check_unique(table.obs_names, what="spot names", remedy="table.obs_names_make_unique()")
    check_unique(table.var_names, what="gene names", remedy="table.var_names_make_unique()")

    check_link(table, table_key)
    attributes = table.uns["spatialdata_attrs"]
    regions, absent = regions_of(sdata, table)
    if elements.shapes is not None:
        known = [region.shapes_key for region in regions]
        chosen = choose_key(known, elements.shapes, what="shapes that the table annotates", argument="shapes_key")
        regions = [region for region in regions if region.shapes_key == chosen]
    if not regions:
        centres = next((name for name in absent if name in sdata.labels), None)
        remedy = "" if centres is None else f" (of labels, spatialdata.to_circles(sdata.labels[{centres!r}]))"
        raise KeyError(
            f"Table {table_key!r} annotates {attributes['region']!r}, which is not among the shapes "
            f"{list(sdata.shapes)}. Add these shapes{remedy}, or name others with "
            "sdata.set_table_annotates_spatialelement(table_key, region=...)."
        )
    if absent and elements.shapes is None:
        logger.warning("Table %r annotates %s, which are no shapes: their rows are left out.", table_key, absent)
    sections = []
    for region in regions:
        rows = np.flatnonzero((table.obs[attributes["region_key"]] == region.name).to_numpy())
        if len(rows):
            instances = table.obs[region.id_column].to_numpy()[rows]
            sections.append(locate_section(sdata, region.shapes_key, rows, instances, elements, n_nodes=n_nodes))
    if not sections:
        found = sorted(set(table.obs[attributes["region_key"]].astype(str)))
        raise ValueError(
            f"Expected rows of table {table_key!r} for {[one.name for one in regions]}, found none. Its rows are of "
            f"{found}: choose with shapes_key=, or mend the table with sdata.set_table_annotates_spatialelement(...)."
        )
    return sections


def locate_section(
    sdata: SpatialData,
    shapes_key: str,
    rows: np.ndarray,
    instances: np.ndarray,
    elements: Elements,
    *,
    n_nodes: int = N_NODES,
) -> Section:
    """Find the image under the spots of a shapes element, and their neighbours.

    Parameters
    ----------
    sdata
        The object.
    shapes_key
        The spots.
    rows, instances
        (n,) rows of the table, and the spot of the shapes that each is of.
    elements
        Which image, and its µm per pixel.
    n_nodes
        Spots of a neighbourhood, the spot itself included.
    """
    if len(rows) < n_nodes:
        raise ValueError(
            f"Expected at least {n_nodes} spots in section {shapes_key!r} (a spot and its {n_nodes - 1} nearest), "
            f"found {len(rows)}. Join it with the other pieces of its slide, or choose other sections with shapes_key=."
        )
    shapes = sdata.shapes[shapes_key]
    if instances.dtype == object and len({isinstance(one, str) for one in instances}) > 1:
        raise ValueError(
            f"The ids of {shapes_key!r} in the table are texts and numbers, which have no order and cannot be written. "
            "Make them texts, in the index of the shapes too: table.obs[instance_key] = "
            "table.obs[instance_key].astype(str)."
        )
    check_unique(instances, what=f"instance ids of {shapes_key!r} in the table", remedy="one row of the table per spot")
    check_unique(shapes.index, what=f"index of shapes {shapes_key!r}", remedy="sdata.shapes[...].reset_index()")
    geometry = locate(
        sdata, shapes_key, image_key=elements.image_of(shapes_key), microns_per_pixel=elements.microns_per_pixel
    )
    position = shapes.index.get_indexer(instances)  # rows and spots are matched by id, never by order
    if (position < 0).any():
        lacking = instances[position < 0]
        kinds = {"text" if isinstance(one, str) else "numbers" for one in (instances[0], shapes.index[0])}
        if len(kinds) == 2 and np.isin(instances.astype(str), shapes.index.astype(str)).all():
            column = "table.obs[instance_key]"
            raise ValueError(
                f"The ids of {shapes_key!r} are text in one place and numbers in the other: "
                f"{instances[:2].tolist()} in the table, {list(shapes.index[:2])} in the shapes. Give both one type: "
                f"{column} = {column}.astype({str(shapes.index.dtype)!r})."
            )
        raise ValueError(
            f"{len(lacking)} of {len(rows)} rows of the table name a spot that shapes {shapes_key!r} does not have, "
            f"e.g. {lacking[:5].tolist()}; it has e.g. {geometry.instances[:5].tolist()}. Mend with "
            "spatialdata.match_sdata_to_table(sdata, ...)."
        )
    geometry = replace(geometry, coordinates=geometry.coordinates[position], instances=instances)
    xy_um = geometry.pixels() * geometry.microns_per_pixel
    spacing = spot_spacing(xy_um)
    if not spacing > 0:
        raise ValueError(
            f"Expected the spots of {shapes_key!r} at different places, found most of them on top of each other. Are "
            "the coordinates x and y in pixels? Give the shapes others, or one row for each place."
        )
    usable = on_image(geometry)
    enough = int(usable.sum()) >= n_nodes  # else a check says so: what is wrong is not the neighbours
    neighbours = neighbourhoods(xy_um, spacing, usable, n_nodes) if enough else alone(len(rows), n_nodes)
    wide = spot_diameter(shapes, geometry)
    return Section(shapes_key, shapes_key, rows, geometry, spacing, usable, neighbours, shapes_key, wide)
