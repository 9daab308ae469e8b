"""Where the spots are: affine from shapes to pixels of every pyramid level, and µm per pixel."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from geopandas import GeoDataFrame
from scipy.spatial import cKDTree
from spatialdata import SpatialData
from spatialdata.transformations import get_transformation
from xarray import DataArray, DataTree

from nh2st_scverse._constants import MICRONS_SUFFIX, VISIUM_PITCH_UM
from nh2st_scverse._logging import logger
from nh2st_scverse._validators import check_positive, choose_key
from nh2st_scverse.data.technologies import microns_of, unaligned, why_no_stain

UNALIGNED = "no alignment: pixels of the H&E image are taken for pixels of the fluorescence"
XY = ("x", "y")


@dataclass(frozen=True)
class Level:
    """One resolution of an image."""

    array: DataArray  # (c, y, x)
    from_shapes: np.ndarray  # (3, 3) affine: shapes coordinates (x, y, 1) -> pixels (x, y, 1) of this level
    microns_per_pixel: float

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

    @property
    def microns_per_pixel(self) -> float:
        """Resolution of the finest level, in µm per pixel."""
        return self.levels[0].microns_per_pixel

    def pixels(self, level: int = 0) -> np.ndarray:
        """Centres of the spots in pixels of a level: (n, 2), x and y."""
        return apply_affine(self.levels[level].from_shapes, self.coordinates)


def apply_affine(affine: np.ndarray, xy: np.ndarray) -> np.ndarray:
    """Map points: (3, 3) applied to (n, 2) gives (n, 2)."""
    return xy @ affine[:2, :2].T + affine[:2, 2]


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
    scale = np.sqrt(abs(np.linalg.det(geometry.levels[0].from_shapes[:2, :2]))) * geometry.microns_per_pixel
    return float(wide * scale)


def image_levels(image: DataArray | DataTree) -> list[DataArray]:
    """The resolutions of a single or multiscale image, finest first."""
    if isinstance(image, DataTree):
        arrays = [next(iter(image[scale].data_vars.values())) for scale in image.children]
        return sorted(arrays, key=lambda a: -a.sizes["x"])
    return [image]


def _affine(element: Any, system: str) -> np.ndarray:
    transformation = get_transformation(element, to_coordinate_system=system)
    return np.asarray(transformation.to_affine_matrix(XY, XY), dtype=float)


def _systems(element: Any) -> set[str]:
    return set(get_transformation(element, get_all=True))


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
        Image in ``sdata.images``; None takes the only one that shares a coordinate system with the spots. Downscaled
        copies of the same picture count as one, of which the finest is taken.
    microns_per_pixel
        Of the full resolution of the image.

    Raises
    ------
    KeyError
        No image, or several different ones.
    ValueError
        The coordinate systems contradict each other, or µm per pixel is unknown.
    """
    shapes = sdata.shapes[shapes_key]
    image_key = _choose_image(sdata, shapes_key, image_key)
    arrays = image_levels(sdata.images[image_key])
    _check_rgb(arrays[0], image_key, sdata)
    shared = sorted(_systems(shapes) & _systems(arrays[0]))

    coordinates = shapes.geometry.centroid.get_coordinates().to_numpy(dtype=float)  # (n, 2)
    if len(coordinates) < len(shapes) or not np.isfinite(coordinates).all():
        raise ValueError(
            f"Expected finite coordinates of all {len(shapes)} spots of {shapes_key!r}, found NaN or empty "
            "ones. Drop these "
            "spots: sdata.shapes[...] = shapes[shapes.is_valid & ~shapes.is_empty]."
        )
    maps = [np.linalg.inv(_affine(arrays[0], s)) @ _affine(shapes, s) for s in shared]
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
    microns, source = _microns_per_pixel(arrays[0], moved[0], microns_per_pixel, image_key, known)
    base = np.sqrt(abs(np.linalg.det(_affine(arrays[0], shared[0])[:2, :2])))
    levels = []
    for array in arrays:
        to_system = _affine(array, shared[0])  # every level carries its own scale
        scale = np.sqrt(abs(np.linalg.det(to_system[:2, :2]))) / base
        levels.append(Level(array, np.linalg.inv(to_system) @ _affine(shapes, shared[0]), microns * scale))
    doubt = UNALIGNED if unaligned(sdata, image_key, arrays[0]) else ""
    return Geometry(image_key, tuple(levels), coordinates, shapes.index.to_numpy(), source, doubt)


def locate_image(
    sdata: SpatialData, *, image_key: str | None = None, microns_per_pixel: float | None = None
) -> Geometry:
    """The geometry of an image without spots; its coordinates are pixels of the finest level.

    Parameters
    ----------
    sdata
        The object.
    image_key
        Image in ``sdata.images``; None takes the only one, or the finest of several copies of one picture.
    microns_per_pixel
        Of the full resolution of the image, when no coordinate system ending in ``microns`` tells.

    Raises
    ------
    KeyError
        No image, or several different ones.
    ValueError
        µm per pixel is unknown, or the image is not RGB.
    """
    if (
        image_key is None
        and len(sdata.images) > 1
        and _copies(sdata, list(sdata.images), set(sdata.coordinate_systems))
    ):
        image_key = max(sdata.images, key=lambda k: image_levels(sdata.images[k])[0].sizes["x"])
    image_key = choose_key(sdata.images, image_key, what="images", argument="image_key")
    arrays = image_levels(sdata.images[image_key])
    _check_rgb(arrays[0], image_key, sdata)
    microns, source = _microns_per_pixel(arrays[0], np.empty((0, 2)), microns_per_pixel, image_key)
    system = min(_systems(arrays[0]))
    base = _affine(arrays[0], system)
    levels = []
    for array in arrays:
        from_base = np.linalg.inv(_affine(array, system)) @ base
        levels.append(Level(array, from_base, microns / np.sqrt(abs(np.linalg.det(from_base[:2, :2])))))
    return Geometry(image_key, tuple(levels), np.empty((0, 2)), np.empty(0), source)


def _check_rgb(array: DataArray, image_key: str, sdata: SpatialData) -> None:
    if array.sizes["c"] not in (3, 4):
        raise ValueError(
            f"Expected an RGB image (3 channels), found {array.sizes['c']} in {image_key!r}: is it H&E? "
            f"Available images: {list(sdata.images)}; pass image_key=."
        )


def _choose_image(sdata: SpatialData, shapes_key: str, image_key: str | None) -> str:
    systems = _systems(sdata.shapes[shapes_key])
    sharing = [k for k in sdata.images if _systems(image_levels(sdata.images[k])[0]) & systems]
    no_stain = {k: why for k in sharing if (why := why_no_stain(k, image_levels(sdata.images[k])[0]))}
    sharing = [k for k in sharing if k not in no_stain]
    if image_key in no_stain:
        raise ValueError(
            f"Image {image_key!r} is not the H&E to predict from: {no_stain[image_key]}. Images that may be: "
            f"{sharing}. Add the H&E image at full resolution."
        )
    if image_key is not None:
        if image_key not in sdata.images:
            raise KeyError(f"image_key={image_key!r} is not there. Available images: {list(sdata.images)}.")
        if image_key not in sharing:
            raise ValueError(
                f"Image {image_key!r} and spots {shapes_key!r} share no coordinate system (spots are in "
                f"{sorted(systems)}). Register them with spatialdata.transformations.set_transformation."
            )
        return image_key
    if not sharing:
        others = [f"{k} ({no_stain[k]})" if k in no_stain else k for k in sdata.images]
        raise KeyError(
            f"Expected an image that shares a coordinate system with {shapes_key!r} ({sorted(systems)}), found none. "
            f"Available images: {others}. Add the H&E image, or register it with "
            "spatialdata.transformations.set_transformation."
        )
    if len(sharing) > 1 and not _copies(sdata, sharing, systems):
        raise KeyError(
            f"Found several images under {shapes_key!r} and cannot choose: pass image_key= one of {sharing}."
        )
    finest = max(sharing, key=lambda k: image_levels(sdata.images[k])[0].sizes["x"])
    if len(sharing) > 1 and tuple(sharing) not in _told:  # a session asks for the same image many times
        _told.add(tuple(sharing))
        logger.info("%s are one picture at several resolutions; using the finest, %r.", sharing, finest)
    return finest


_told: set[tuple[str, ...]] = set()


def _copies(sdata: SpatialData, image_keys: list[str], systems: set[str]) -> bool:
    """Whether images are one picture at different resolutions: all of different size, on the same place."""
    arrays = [image_levels(sdata.images[key])[0] for key in image_keys]
    common = systems.intersection(*map(_systems, arrays))
    if not common or len({array.sizes["x"] for array in arrays}) < len(arrays):
        return False
    system = min(common)
    corners = [
        apply_affine(_affine(a, system), np.array([[0, 0], [a.sizes["x"], a.sizes["y"]]], dtype=float)) for a in arrays
    ]
    return all(np.allclose(c, corners[0], atol=0.02 * np.abs(corners[0]).max()) for c in corners)


def _microns_per_pixel(
    array: DataArray,
    spots: np.ndarray,
    given: float | None,
    image_key: str,
    known: tuple[float, str] | None = None,
) -> tuple[float, str]:
    if given is not None:
        check_positive(given, argument="microns_per_pixel")
        return float(given), "given"
    for system in sorted(_systems(array)):
        if system.endswith(MICRONS_SUFFIX.strip("_")):
            return float(np.sqrt(abs(np.linalg.det(_affine(array, system)[:2, :2])))), f"coordinate system {system!r}"
    if known is not None:
        return known
    if is_hexagonal(spots):
        return VISIUM_PITCH_UM / spot_spacing(spots), "Visium grid of 100 µm pitch"
    raise ValueError(
        f"The resolution of image {image_key!r} is unknown: no coordinate system ends in 'microns' and the "
        "spots do not "
        "form a Visium grid. Pass microns_per_pixel=, the size in µm of one pixel at full resolution (spot pitch in µm "
        "divided by spot pitch in pixels; legacy Spatial Transcriptomics has 200 µm)."
    )
