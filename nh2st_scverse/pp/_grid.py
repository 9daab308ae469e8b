"""``pp.grid``: places to predict at, on a slide that has no spots."""

from __future__ import annotations

from typing import TYPE_CHECKING

import geopandas as gpd
import numpy as np
from spatialdata import SpatialData
from spatialdata.models import ShapesModel
from spatialdata.transformations import BaseTransformation, Scale, get_transformation, set_transformation

from nh2st_scverse._constants import MICRONS_SUFFIX, N_NODES, VISIUM_PITCH_UM
from nh2st_scverse._logging import logger
from nh2st_scverse._validators import check_name, check_one_of, check_positive
from nh2st_scverse.data.geometry import Geometry, locate_image
from nh2st_scverse.data.technologies import MICRONS
from nh2st_scverse.data.tissue import detect_tissue, given_tissue, lay_grid

if TYPE_CHECKING:
    from nh2st_scverse.model import NH2ST

GRID = "nh2st_grid"
SHAPES = ("hexagonal", "square")
MOST_PLACES = 5_000_000  # places: more are a wrong spacing or a wrong resolution


def grid(
    slide: SpatialData,
    *,
    model: NH2ST | None = None,
    spacing_um: float | None = None,
    shape: str = "hexagonal",
    image_key: str | None = None,
    microns_per_pixel: float | None = None,
    key_added: str = GRID,
    tissue_key: str | None = None,
    coverage: float = 0.5,
    min_piece_um: float = 200.0,
) -> None:
    """Lay a grid of circles over the tissue of an H&E slide, to predict at.

    ``nh.tl.predict_expression(slide, model=model)`` does this itself when there are no spots; call it for another
    spacing, another shape, or tissue that you have marked. A spacing that is a fraction of the model's gives a dense
    map: the neighbourhood of a place is then still taken at the model's spacing.

    Parameters
    ----------
    slide
        An object with an H&E image, for instance from :func:`nh2st_scverse.io.slide`.
    model
        Its spot spacing is taken.
    spacing_um
        Distance between the centres of adjacent circles in µm, instead; 100 without a model.
    shape
        ``"hexagonal"``, as on Visium slides, or ``"square"``.
    image_key
        Image in ``slide.images``; None means the only candidate.
    microns_per_pixel
        Of the image at full resolution, when the object does not tell.
    key_added
        Name of the new shapes.
    tissue_key
        Labels (0 is glass) or polygons that mark the tissue; None finds it with
        ``squidpy.experimental.im.detect_tissue``.
    coverage
        Least share of a circle that must be tissue.
    min_piece_um
        Side of the smallest piece of tissue in µm; smaller ones are taken for dust or fiducials.

    Returns
    -------
    None. Written is ``slide.shapes[key_added]``: touching circles (n,) in pixels of the image, in all coordinate
    systems of the image, with columns ``array_row`` and ``array_col``. Where the image has no coordinate system in µm
    and `microns_per_pixel` is given, image and circles get one, ``<image>_microns``. Nothing is written to disk.

    Raises
    ------
    KeyError
        Missing or ambiguous images, an unknown `tissue_key`.
    ValueError
        Unknown µm per pixel, a name that is taken, no tissue, too few or too many places for the spacing.

    See Also
    --------
    nh2st_scverse.io.slide, nh2st_scverse.tl.predict_expression

    Examples
    --------
    >>> import nh2st_scverse as nh
    >>> slide = nh.datasets.synthetic(width_um=1200).subset(["section_0_image"])
    >>> nh.pp.grid(slide, spacing_um=50)
    >>> float(slide["nh2st_grid"].radius[0])
    25.0
    """
    check_new_shapes(slide, key_added, old="the old grid")
    if model is not None and not hasattr(model, "spacing_um"):
        raise TypeError(
            f"Expected model= to be a model, found {type(model).__name__}: load one with nh.NH2ST.load(path)."
        )
    spacing = float(VISIUM_PITCH_UM if model is None else model.spacing_um) if spacing_um is None else spacing_um
    circles, image = make_grid(
        slide,
        spacing_um=spacing,
        shape=shape,
        image_key=image_key,
        microns_per_pixel=microns_per_pixel,
        tissue_key=tissue_key,
        coverage=coverage,
        min_piece_um=min_piece_um,
    )
    add_grid(slide, key_added, circles, image)


def check_new_shapes(slide: SpatialData, key_added: str, *, old: str) -> None:
    """Raise TypeError or ValueError where shapes of this name cannot be added to a slide."""
    if not isinstance(slide, SpatialData):
        raise TypeError(
            f"Expected a SpatialData object, found {type(slide).__name__}: read one with nh.io.slide(path)."
        )
    elements = [name for _, name, _ in slide.gen_elements()]
    check_name(key_added, argument="key_added", beside=elements)
    if key_added in elements:
        raise ValueError(
            f"key_added={key_added!r} is there already, among {elements}: choose another name, or delete {old} "
            f"with del sdata.shapes[{key_added!r}]."
        )


def make_grid(
    slide: SpatialData,
    *,
    spacing_um: float,
    shape: str = "hexagonal",
    image_key: str | None = None,
    microns_per_pixel: float | None = None,
    tissue_key: str | None = None,
    coverage: float = 0.5,
    min_piece_um: float = 200.0,
) -> tuple[gpd.GeoDataFrame, str]:
    """The circles of :func:`grid` and the image they lie on; nothing is written."""
    check_positive(spacing_um, argument="spacing_um")
    check_positive(coverage, argument="coverage")
    if coverage > 1:
        raise ValueError(f"Expected coverage to be a share of a place, at most 1, found {coverage!r}.")
    check_positive(min_piece_um, argument="min_piece_um")
    check_one_of(shape, SHAPES, argument="shape")
    geometry = locate_image(slide, image_key=image_key, microns_per_pixel=microns_per_pixel)
    microns = geometry.microns_per_pixel
    if tissue_key is None:
        tissue = detect_tissue(geometry, min_piece_um)
    else:
        tissue = given_tissue(slide, tissue_key, geometry.image_key)
    extent = np.ptp(tissue.bounds(), axis=0) * microns  # µm; NaN without tissue
    if np.isnan(extent).any():
        raise ValueError(
            f"No tissue was found in {geometry.image_key!r}. Mark it as labels or polygons and pass tissue_key=, or "
            "lower min_piece_um=."
        )
    if np.prod(extent / spacing_um) > MOST_PLACES:
        raise ValueError(
            f"A grid of {spacing_um:g} µm over {extent[0]:.0f} x {extent[1]:.0f} µm of tissue has more than "
            f"{MOST_PLACES} places: expected a wider spacing_um=, or another microns_per_pixel= than {microns:.4g} "
            f"({geometry.microns_source})."
        )
    xy, array = lay_grid(tissue, spacing_um / microns, shape, coverage)
    if len(xy) < N_NODES:
        raise ValueError(
            f"Expected at least {N_NODES} places on tissue, found {len(xy)} at {spacing_um:g} µm on "
            f"{extent[0]:.0f} x {extent[1]:.0f} µm of tissue. Pass a smaller spacing_um=, or check "
            f"microns_per_pixel= ({microns:.4g}, {geometry.microns_source})."
        )
    circles = make_circles(slide, geometry, xy, spacing_um)
    circles["array_row"], circles["array_col"] = array.T
    return circles, geometry.image_key


def make_circles(sdata: SpatialData, geometry: Geometry, xy: np.ndarray, diameter_um: float) -> gpd.GeoDataFrame:
    """Circles round places (n, 2) in pixels of an image."""
    return ShapesModel.parse(
        xy,
        geometry=0,
        radius=diameter_um / geometry.microns_per_pixel / 2,
        index=np.arange(len(xy)),
        transformations=image_systems(sdata, geometry),
    )


def image_systems(sdata: SpatialData, geometry: Geometry) -> dict[str, BaseTransformation]:
    """The coordinate systems of an image, and one in µm where it has none."""
    systems = dict(get_transformation(sdata.images[geometry.image_key], get_all=True))
    if not any(MICRONS.search(system) for system in systems):
        scale = [geometry.microns_per_pixel] * 2
        systems[f"{geometry.image_key}{MICRONS_SUFFIX}"] = Scale(scale, axes=("x", "y"))
    return systems


def add_grid(slide: SpatialData, key: str, circles: gpd.GeoDataFrame, image_key: str) -> None:
    """Write the circles, and their coordinate system in µm to an image that has none."""
    slide.shapes[key] = circles
    image = slide.images[image_key]
    for system in set(get_transformation(circles, get_all=True)) - set(get_transformation(image, get_all=True)):
        transformation = get_transformation(circles, to_coordinate_system=system)
        set_transformation(image, transformation, to_coordinate_system=system)
    logger.info("%d places on the tissue of %r: shapes %r.", len(circles), image_key, key)
