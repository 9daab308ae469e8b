"""``pp.nuclei``: outlines of the nuclei of an H&E slide, to predict at cells."""

from __future__ import annotations

import geopandas as gpd
import numpy as np
import shapely
from spatialdata import SpatialData
from spatialdata.models import ShapesModel

from nh2st_scverse._validators import check_positive
from nh2st_scverse.data.geometry import Level, apply_affine, locate_image
from nh2st_scverse.data.nuclei import find_nuclei
from nh2st_scverse.pp._grid import add_grid, check_new_shapes, image_systems

WANTED_UM = 0.5  # µm per pixel that is fine enough
COARSEST_UM = 1.3  # that nuclei can still be told apart in
SIMPLER_PX = 0.3  # by which outlines may be off


def nuclei(
    slide: SpatialData,
    *,
    image_key: str | None = None,
    microns_per_pixel: float | None = None,
    key_added: str = "nuclei",
    tile_um: float = 500.0,
) -> None:
    """Find the nuclei of an H&E slide: haematoxylin by colour deconvolution, a local threshold, a watershed.

    Good enough to place predictions at cells; for shapes and kinds of cells take a trained method, and read what it
    found with :func:`nh2st_scverse.io.cells`. What a model that was trained on spots predicts at a cell is what a spot
    round this cell would have: it tells niches apart, not two neighbours of different kinds.

    Parameters
    ----------
    slide
        An object with an H&E image of at most 1.3 µm per pixel.
    image_key
        Image in ``slide.images``; None means the only candidate.
    microns_per_pixel
        Of the image at full resolution, when the object does not tell.
    key_added
        Name of the new shapes.
    tile_um
        Side of the parts that are in memory one at a time.

    Returns
    -------
    None. Written is ``slide.shapes[key_added]``, polygons in pixels of the image, in all its coordinate systems.

    Raises
    ------
    KeyError
        Missing or ambiguous images.
    ValueError
        Unknown µm per pixel, an image too coarse, a name that is taken, no nuclei.

    See Also
    --------
    nh2st_scverse.io.cells, grid, nh2st_scverse.tl.predict_expression

    Examples
    --------
    >>> import nh2st_scverse as nh
    >>> slide = nh.datasets.synthetic(width_um=600).subset(["section_0_image"])
    >>> nh.pp.nuclei(slide)
    >>> len(slide["nuclei"]) > 500
    True
    """
    check_new_shapes(slide, key_added, old="the old nuclei")
    check_positive(tile_um, argument="tile_um")
    geometry = locate_image(slide, image_key=image_key, microns_per_pixel=microns_per_pixel)
    if geometry.microns_per_pixel > COARSEST_UM:
        raise ValueError(
            f"Expected an image of at most {COARSEST_UM} µm per pixel, where nuclei can be told apart, found "
            f"{geometry.microns_per_pixel:.3g} in {geometry.image_key!r}. Is there one at full resolution?"
        )
    level = _level(geometry.levels)
    to_image = np.linalg.inv(level.from_shapes)  # the coordinates of an image without spots are its finest pixels
    found = [shapely.Polygon(apply_affine(to_image, outline)) for outline in find_nuclei(level, tile_um)]
    if not found:
        raise ValueError(
            f"No nuclei were found in {geometry.image_key!r}: is it H&E, and {level.microns_per_pixel:.3g} "
            "µm per pixel right?"
        )
    polygons = shapely.simplify(np.array(found), SIMPLER_PX * abs(to_image[0, 0]))
    systems = image_systems(slide, geometry)
    shapes = ShapesModel.parse(gpd.GeoDataFrame(geometry=polygons), transformations=systems)
    add_grid(slide, key_added, shapes, geometry.image_key)


def _level(levels: tuple[Level, ...]) -> Level:
    """The coarsest level that is fine enough, or the finest."""
    enough = [level for level in levels if level.microns_per_pixel <= WANTED_UM]
    return enough[-1] if enough else levels[0]
