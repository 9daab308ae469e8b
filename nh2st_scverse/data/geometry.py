"""Where the spots are: affine from shapes to pixels of every pyramid level, and µm per pixel."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from geopandas import GeoDataFrame
from scipy.spatial import cKDTree
from spatialdata import SpatialData
from xarray import DataArray

from nh2st_scverse._constants import N_NODES, VISIUM_PITCH_UM
from nh2st_scverse._validators import check_positive
from nh2st_scverse.data.images import (
    affine_of,
    apply_affine,
    choose_image,
    choose_slide,
    colours,
    consistent_levels,
    image_levels,
    systems_of,
)
from nh2st_scverse.data.pixels import PLAIN, Colours
from nh2st_scverse.data.technologies import MICRONS, microns_of, unaligned, where_microns

UNALIGNED = "no alignment: pixels of the H&E image are taken for pixels of the fluorescence"
LARGEST_CELL = 40.0  # µm


@dataclass(frozen=True, eq=False)
class Level:
    """One resolution of an image."""

    array: DataArray  # (c, y, x)
    from_shapes: np.ndarray  # (3, 3) affine: shapes coordinates (x, y, 1) -> pixels (x, y, 1) of this level
    microns_per_pixel: float
    colours: Colours = PLAIN  # how its channels become RGB

    @property
    def size(self) -> tuple[int, int]:
        """Width and height in pixels."""
        return self.array.sizes["x"], self.array.sizes["y"]


@dataclass(frozen=True)
class Geometry:
    """The spots of one section on its image."""

    image_key: str
    levels: tuple[Level, ...]  # finest first
    coordinates: np.ndarray  # (n, 2) x, y in the coordinates of the shapes
    instances: np.ndarray  # (n,) index of the shapes element
    microns_source: str  # where µm per pixel comes from
    doubt: str = ""  # about how the spots lie on the image
    system: str = ""  # the coordinate system in which spots and image meet
    why: str = ""  # the image was chosen among several
    left_out: str = ""  # of the image: levels, channels

    @property
    def microns_per_pixel(self) -> float:
        """Resolution of the finest level, in µm per pixel."""
        return self.levels[0].microns_per_pixel

    @property
    def microns(self) -> float:
        """µm per unit of the coordinates of the shapes."""
        return float(np.sqrt(abs(np.linalg.det(self.levels[0].from_shapes[:2, :2]))) * self.microns_per_pixel)

    def pixels(self, level: int = 0) -> np.ndarray:
        """Centres of the spots in pixels of a level: (n, 2), x and y."""
        return apply_affine(self.levels[level].from_shapes, self.coordinates)

    def take(self, positions: np.ndarray) -> Geometry:
        """With only some of the spots, (m,) positions."""
        return replace(self, coordinates=self.coordinates[positions], instances=self.instances[positions])


def spot_spacing(xy: np.ndarray) -> float:
    """Distance between adjacent spots, in the unit of `xy` (n, 2).

    The median over all neighbours about as near as the nearest: the nearest alone is too near where spots jitter.
    """
    near = cKDTree(xy).query(xy, min(7, len(xy)))[0][:, 1:]  # (n, 6)
    return float(np.median(near[near <= 1.25 * near[:, :1]]))


def is_hexagonal(xy: np.ndarray) -> bool:
    """Whether neighbouring spots lie at multiples of 60° from each other, as on a Visium slide.

    Angles tell it where counts of neighbours do not: in scattered pieces of tissue few spots have all six.
    """
    six, four = _symmetry(xy)
    return six > 0.8 and four < 0.5


def is_square(xy: np.ndarray) -> bool:
    """Whether neighbouring spots lie at multiples of 90° from each other, as on a legacy array."""
    six, four = _symmetry(xy)
    return four > 0.8 and six < 0.5


def _symmetry(xy: np.ndarray) -> tuple[float, float]:
    """How nearly all angles between neighbours are multiples of 60°, and of 90°: 1 when they are."""
    if len(xy) < 20:
        return 0.0, 0.0
    near, far = cKDTree(xy).query_pairs(1.15 * spot_spacing(xy), output_type="ndarray").T
    if len(near) < len(xy) / 2:
        return 0.0, 0.0
    step = xy[far] - xy[near]
    angle = np.arctan2(step[:, 1], step[:, 0])
    return float(abs(np.exp(6j * angle).mean())), float(abs(np.exp(4j * angle).mean()))


def spot_diameter(shapes: GeoDataFrame, geometry: Geometry) -> float:
    """Mean width of circles, or of polygons, in µm."""
    bounds = shapes.geometry.bounds  # of polygons; squares that touch do not overlap
    wide = shapes["radius"].mean() * 2 if "radius" in shapes else (bounds["maxx"] - bounds["minx"]).mean()
    return float(wide * geometry.microns)


def kind_of_shapes(shapes: GeoDataFrame, microns: float | None = None) -> str:
    """What shapes look like: an ``"array"``, a ``"grid"`` of :func:`nh2st_scverse.pp.grid`, ``"cells"``, or nothing.

    Parameters
    ----------
    shapes
        Circles or polygons.
    microns
        µm per unit of their coordinates; without it cells are not known.
    """
    if {"array_row", "array_col"} <= set(shapes.columns):
        return "grid"
    xy = shapes.geometry.centroid.get_coordinates().to_numpy(dtype=float)
    if len(xy) < N_NODES or len(xy) < len(shapes) or not np.isfinite(xy).all():
        return ""
    bounds = shapes.geometry.bounds
    width = (
        shapes["radius"] * 2
        if "radius" in shapes
        else np.maximum(*(bounds[f"max{a}"] - bounds[f"min{a}"] for a in "xy"))
    )
    spacing = spot_spacing(xy)
    nearest = cKDTree(xy).query(xy, 2)[0][:, 1]
    regular = spacing > 0 and np.mean(np.abs(nearest / spacing - 1) < 0.25) > 0.8
    if regular and width.std() <= 0.1 * width.mean():
        return "array"
    return "cells" if microns is not None and width.median() * microns <= LARGEST_CELL else ""


def locate(
    sdata: SpatialData,
    shapes_key: str,
    *,
    image_key: str | None = None,
    microns_per_pixel: float | None = None,
) -> Geometry:
    """Find the image under the spots of a shapes element, and how the two map on each other.

    The map is ``inv(image -> system) @ (shapes -> system)`` through the coordinate systems that both elements are in;
    all of them must agree. µm per pixel is the given value, else that of a coordinate system whose name ends in
    ``microns``, else follows from squares of Visium HD or shapes of Xenium, else from the 100 µm pitch when the spots
    form a Visium grid.

    Parameters
    ----------
    sdata
        The object.
    shapes_key
        Circles or polygons in ``sdata.shapes``.
    image_key
        Image in ``sdata.images``; None takes the one that shares a coordinate system with the spots. Of several, copies
        of one picture count as one, of which the finest is taken, and those that are no H&E do not count; then the
        place of the spots decides, then names.
    microns_per_pixel
        Of the full resolution of the image.

    Raises
    ------
    KeyError
        No image, or several different ones.
    ValueError
        The image has no colours of a stain, the coordinate systems contradict each other, or µm per pixel is unknown.
    """
    shapes = sdata.shapes[shapes_key]
    image_key, why = choose_image(sdata, shapes_key, image_key)
    arrays, how, left_out = _read(sdata, image_key)
    shared = sorted(systems_of(shapes) & systems_of(arrays[0]))

    coordinates = shapes.geometry.centroid.get_coordinates().to_numpy(dtype=float)  # (n, 2)
    if len(coordinates) < len(shapes) or not np.isfinite(coordinates).all():
        raise ValueError(
            f"Expected finite coordinates of all {len(shapes)} spots of {shapes_key!r}, found NaN or empty "
            "ones. Drop these "
            "spots: sdata.shapes[...] = shapes[shapes.is_valid & ~shapes.is_empty]."
        )
    maps = [np.linalg.inv(affine_of(arrays[0], s)) @ affine_of(shapes, s) for s in shared]
    moved = [apply_affine(m, coordinates) for m in maps]
    disagreement = max(float(np.abs(m - moved[0]).max()) for m in moved)
    if disagreement > 0.01 * max(arrays[0].sizes["x"], arrays[0].sizes["y"]):
        raise ValueError(
            f"The coordinate systems {shared} put the spots of {shapes_key!r} up to {disagreement:.0f} px apart on "
            f"{image_key!r}. Keep the right one and drop the others with "
            "spatialdata.transformations.remove_transformation(element, to_coordinate_system=...)."
        )

    known = microns_of(sdata, shapes_key)
    if known is not None:  # per unit of the shapes -> per pixel
        known = known[0] / float(np.sqrt(abs(np.linalg.det(maps[0][:2, :2])))), known[1]
    hint = where_microns(shapes_key)
    microns, source = _microns_per_pixel(arrays[0], moved[0], microns_per_pixel, image_key, known, hint)
    base = np.sqrt(abs(np.linalg.det(affine_of(arrays[0], shared[0])[:2, :2])))
    levels = []
    for array in arrays:
        to_system = affine_of(array, shared[0])  # every level carries its own scale
        scale = np.sqrt(abs(np.linalg.det(to_system[:2, :2]))) / base
        levels.append(Level(array, np.linalg.inv(to_system) @ affine_of(shapes, shared[0]), microns * scale, how))
    doubt = UNALIGNED if unaligned(sdata, image_key, arrays[0]) else ""
    instances = shapes.index.to_numpy()
    return Geometry(image_key, tuple(levels), coordinates, instances, source, doubt, shared[0], why, left_out)


def locate_image(
    sdata: SpatialData, *, image_key: str | None = None, microns_per_pixel: float | None = None
) -> Geometry:
    """The geometry of an image without spots; its coordinates are pixels of the finest level.

    Parameters
    ----------
    sdata
        The object.
    image_key
        Image in ``sdata.images``; None takes the only one that is H&E, or the finest of several copies of it.
    microns_per_pixel
        Of the full resolution of the image, when neither a coordinate system ending in ``microns`` tells nor shapes
        on it, as squares of Visium HD.

    Raises
    ------
    KeyError
        No image, or several different ones.
    ValueError
        µm per pixel is unknown, or the image is not RGB.
    """
    image_key, why = choose_slide(sdata, image_key)
    arrays, how, left_out = _read(sdata, image_key)
    given, none = microns_per_pixel, np.empty((0, 2))
    try:
        microns, source = _microns_per_pixel(arrays[0], none, given, image_key)
    except ValueError:
        if given is not None or (known := _by_shapes(sdata, image_key)) is None:
            raise
        microns, source = known
    system = min(systems_of(arrays[0]))
    base = affine_of(arrays[0], system)
    levels = []
    for array in arrays:
        from_base = np.linalg.inv(affine_of(array, system)) @ base
        levels.append(Level(array, from_base, microns / np.sqrt(abs(np.linalg.det(from_base[:2, :2]))), how))
    return Geometry(image_key, tuple(levels), none, np.empty(0), source, "", system, why, left_out)


def _by_shapes(sdata: SpatialData, image_key: str) -> tuple[float, str] | None:
    """µm per pixel of an image from shapes on it that tell, and from which."""
    for key in sdata.shapes:
        try:
            found = locate(sdata, key, image_key=image_key)
        except (KeyError, ValueError):  # not on this image, or they do not tell
            continue
        return found.microns_per_pixel, found.microns_source
    return None


def _read(sdata: SpatialData, image_key: str) -> tuple[list[DataArray], Colours, str]:
    """The levels of an image that show one thing, how their channels become RGB, and what is left out."""
    arrays, how = image_levels(sdata.images[image_key]), colours(sdata, image_key)
    keep = consistent_levels(arrays, how)
    other = [i for i in range(len(arrays)) if i not in keep]
    levels = f"levels {other}, which show something else than the finest one" if other else ""
    return [arrays[i] for i in keep], how, ", ".join(filter(None, [how.note, levels]))


def _microns_per_pixel(
    array: DataArray,
    spots: np.ndarray,
    given: float | None,
    image_key: str,
    known: tuple[float, str] | None = None,
    hint: str = "",
) -> tuple[float, str]:
    if given is not None:
        check_positive(given, argument="microns_per_pixel")
        return float(given), "given"
    for system in sorted(systems_of(array)):
        if MICRONS.search(system):
            return float(np.sqrt(abs(np.linalg.det(affine_of(array, system)[:2, :2])))), f"coordinate system {system!r}"
    if known is not None:
        return known
    if is_hexagonal(spots):
        return VISIUM_PITCH_UM / spot_spacing(spots), "Visium grid of 100 µm pitch"
    raise ValueError(
        f"The resolution of image {image_key!r} is unknown: no coordinate system ends in 'microns' and the spots do "
        "not form a Visium grid. Pass microns_per_pixel=, the size in µm of one pixel at full resolution (spot pitch "
        f"in µm divided by spot pitch in pixels; legacy Spatial Transcriptomics has 200 µm).{hint}"
    )
