"""What the readers share: the lazy image, the geometry of the spots, and the SpatialData of one section."""

from __future__ import annotations

import contextlib
import os
import re
import threading
from collections.abc import Collection, Iterator, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import dask.array as da
import numpy as np
import PIL.Image
from anndata import AnnData
from dask.base import tokenize
from numpy.typing import NDArray
from scipy.spatial import cKDTree
from spatialdata import SpatialData
from spatialdata.models import Image2DModel, ShapesModel, TableModel
from spatialdata.transformations import BaseTransformation, Identity, Scale
from xarray import DataTree

from nh2st_scverse._constants import MICRONS_SUFFIX
from nh2st_scverse._logging import logger

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".tif", ".tiff")
CHUNK = 1024
COARSEST = 512
"""Longest side, roughly, of the coarsest level of an image."""

ImageLike = str | os.PathLike[str] | NDArray[Any] | da.Array


# ---------------------------------------------------------------------------------------------------------------------
# images
# ---------------------------------------------------------------------------------------------------------------------
def read_image(image: ImageLike) -> da.Array:
    """Any RGB image as a lazy array.

    Parameters
    ----------
    image
        Path of a jpg, png or tif file, or an array (y, x, c): uint8, or float between 0 and 1. A fourth channel is
        taken as opacity and laid on white.

    Returns
    -------
    Dask array (3, y, x) of uint8 in chunks of (3, 1024, 1024). A file is decoded when a chunk is first needed; the last
    two decoded files are kept in memory, so that one crop after the other does not decode the file again.

    Raises
    ------
    FileNotFoundError
        If there is no such file.
    ValueError
        If the image is not RGB, or does not have 8 bits per channel.
    TypeError
        If `image` is neither a path nor an array.
    """
    if isinstance(image, str | os.PathLike):
        return _from_file(Path(image))
    if isinstance(image, np.ndarray | da.Array):
        return _from_array(image)
    raise TypeError(f"`image` must be a path or an array (y, x, c), found {type(image).__name__}.")


def _from_file(path: Path) -> da.Array:
    if not path.is_file():
        beside = sorted(p.name for p in path.parent.glob("*") if p.suffix.lower() in IMAGE_SUFFIXES)
        there = f"Images in that folder: {examples(beside)}." if beside else "There is no image in that folder."
        raise FileNotFoundError(f"There is no image file {path}. {there}")
    path = path.resolve()
    height, width = _image_size(path)
    version = path.stat().st_mtime_ns
    return da.map_blocks(
        _read_block,
        chunks=((3,), *da.core.normalize_chunks((CHUNK, CHUNK), (height, width))),
        dtype=np.uint8,
        meta=np.empty((0, 0, 0), np.uint8),
        name=f"image-{tokenize(str(path), version)}",
        path=str(path),
        version=version,
        size=(height, width),
    )


def _read_block(path: str, version: int, size: tuple[int, int], block_info: Any = None) -> NDArray[np.uint8]:
    _, (y0, y1), (x0, x1) = block_info[None]["array-location"]
    with _decoding:  # chunks are read from several threads: the first one decodes, the others wait for it
        pixels = _decode(path, version)
    if pixels.shape[:2] != size:
        raise OSError(f"{path} has changed since it was read: read the section again.")
    return np.ascontiguousarray(pixels[y0:y1, x0:x1].transpose(2, 0, 1))


_decoding = threading.Lock()


@lru_cache(maxsize=2)
def _decode(path: str, version: int) -> NDArray[np.uint8]:
    """The whole file as (y, x, 3); `version` is its modification time, so a changed file is not taken from memory."""
    if not os.path.isfile(path) or os.stat(path).st_mtime_ns != version:
        raise OSError(f"{path} has changed or gone since it was read: read the section again.")
    with _no_pixel_limit(), contextlib.suppress(PIL.UnidentifiedImageError), PIL.Image.open(path) as image:
        if not _is_grey(image):
            if image.has_transparency_data:
                rgba = image.convert("RGBA")
                white = PIL.Image.new("RGB", rgba.size, "white")
                white.paste(rgba, mask=rgba.getchannel("A"))
                return np.asarray(white)
            return np.asarray(image.convert("RGB"))
    return _composite(_read_tiff(Path(path), pixels=True))


def _image_size(path: Path) -> tuple[int, int]:
    """Height and width from the header; raises when the file is not an 8-bit RGB image."""
    tiff = path.suffix.lower() in (".tif", ".tiff")
    with _decoding, _no_pixel_limit():
        try:
            with PIL.Image.open(path) as image:
                if not _is_grey(image):
                    if _has_16_bits(image):
                        raise ValueError(
                            f"{path} has 16 bits per channel: expected 8. Convert it, or pass an array of uint8: "
                            '`(image / image.max() * 255).astype("uint8")`.'
                        )
                    if image.getexif().get(0x0112, 1) != 1:
                        logger.warning(
                            f"{path.name} asks to be shown rotated (EXIF orientation). This is ignored: pixel "
                            "coordinates must refer to the image as it is stored."
                        )
                    return image.height, image.width
                mode = image.mode
        except PIL.UnidentifiedImageError as error:
            if not tiff:
                raise ValueError(
                    f"{path} is not an image that can be read: expected a jpg, png or tif file."
                ) from error
            mode = "unknown to Pillow"
    if tiff:  # channels stored as pages, or 16 bits: tifffile knows them
        return _read_tiff(path, pixels=False).shape[:2]
    raise ValueError(
        f"{path} is not an RGB image (mode {mode}): expected a colour image of 8 bits per channel. "
        "A greyscale image has no H&E stain to learn from: use the original colour image."
    )


def _is_grey(image: PIL.Image.Image) -> bool:
    return image.mode in ("1", "L", "LA", "La", "I", "F") or image.mode.startswith("I;")


def _has_16_bits(image: PIL.Image.Image) -> bool:
    """Pillow would keep the upper 8 bits in silence, which leaves nothing of a 12-bit camera image."""
    arguments = [tile[3] for tile in getattr(image, "tile", [])[:1]]
    return any(";16" in str(a if isinstance(a, str) else a[:1]) for a in arguments if a)


def _read_tiff(path: Path, *, pixels: bool) -> NDArray[Any]:
    """First series of a TIFF file at full resolution as (y, x, c); without `pixels` an empty stand-in of that shape."""
    import tifffile

    with tifffile.TiffFile(path) as tiff:
        level = tiff.series[0].levels[0]
        axes, shape = level.axes, level.shape
        keep = [i for i, (axis, n) in enumerate(zip(axes, shape, strict=True)) if axis in "YX" or n > 1]
        names = "".join("C" if axes[i] not in "YX" else axes[i] for i in keep)
        if sorted(names) != ["C", "X", "Y"]:
            raise ValueError(
                f"{path} is not an RGB image: expected the axes y, x and 3 channels, found {axes} of shape {shape}."
            )
        array = level.asarray() if pixels else np.broadcast_to(np.zeros((), level.dtype), shape)
    array = array.reshape([shape[i] for i in keep]).transpose([names.index(axis) for axis in "YXC"])
    _check_array(array, what=str(path))
    if array.dtype != np.uint8:
        raise ValueError(
            f"{path} is {array.dtype}: expected 8 bits per channel (uint8). Convert it, or pass it as an array."
        )
    return array


@contextlib.contextmanager
def _no_pixel_limit() -> Iterator[None]:
    """Pillow refuses images of more than 179 million pixels; slides have more. The user's limit is put back."""
    limit = PIL.Image.MAX_IMAGE_PIXELS
    PIL.Image.MAX_IMAGE_PIXELS = None
    try:
        yield
    finally:
        PIL.Image.MAX_IMAGE_PIXELS = limit


def _from_array(image: NDArray[Any] | da.Array) -> da.Array:
    _check_array(image, what="`image`")
    if np.issubdtype(image.dtype, np.floating):
        low, high = float(image.min()), float(image.max())
        if not (low >= 0 and high <= 1):  # also NaN
            raise ValueError(
                f"`image` is {image.dtype} with values from {low:g} to {high:g}: expected uint8 (0 to 255), or float "
                'from 0 to 1. If these are 0 to 255, pass `image.round().astype("uint8")`.'
            )
    array = (image if isinstance(image, da.Array) else da.from_array(image, chunks=(CHUNK, CHUNK, -1))).transpose(
        2, 0, 1
    )
    array = array.rechunk((-1, CHUNK, CHUNK))
    if array.dtype == np.uint8 and array.shape[0] == 3:
        return array
    return array.map_blocks(
        lambda block: _composite(block.transpose(1, 2, 0)).transpose(2, 0, 1),
        dtype=np.uint8,
        chunks=((3,), *array.chunks[1:]),
        meta=np.empty((0, 0, 0), np.uint8),
    )


def _check_array(image: NDArray[Any] | da.Array, *, what: str) -> None:
    shape = tuple(image.shape)
    if image.ndim == 2 or (image.ndim == 3 and shape[-1] in (1, 2)):
        raise ValueError(
            f"{what} is greyscale (shape {shape}): expected a colour image (y, x, 3). "
            "A greyscale image has no H&E stain to learn from: use the original colour image."
        )
    if image.ndim != 3 or shape[-1] not in (3, 4):
        remedy = ""
        if image.ndim == 3 and shape[0] in (3, 4):
            remedy = " The channels are first: pass `np.moveaxis(image, 0, -1)`."
        raise ValueError(f"{what} has shape {shape}: expected (y, x, 3) or (y, x, 4).{remedy}")
    if 0 in shape:
        raise ValueError(f"{what} is empty (shape {shape}).")
    if image.dtype != np.uint8 and not np.issubdtype(image.dtype, np.floating):
        raise ValueError(
            f"{what} is {image.dtype}: expected 8 bits per channel (uint8). Convert it: "
            '`(image / image.max() * 255).astype("uint8")`, or `image.astype("uint8")` if no value is above 255.'
        )


def _composite(pixels: NDArray[Any]) -> NDArray[np.uint8]:
    """(y, x, 3 or 4), uint8 or float in [0, 1], to (y, x, 3) uint8; opacity on white."""
    if pixels.dtype == np.uint8 and pixels.shape[-1] == 3:
        return pixels
    values = pixels.astype(np.float32)
    if pixels.dtype == np.uint8:
        values /= 255
    if values.shape[-1] == 4:
        opacity = values[..., 3:]
        values = values[..., :3] * opacity + (1 - opacity)
    return np.rint(values * 255).astype(np.uint8)


def _pyramid(image: da.Array, systems: dict[str, BaseTransformation]) -> DataTree:
    """The multiscale image: (3, y, x) and its halves down to about 512 px, all lazy."""
    n_levels = max(0, round(np.log2(max(image.shape[1:]) / COARSEST)))
    tree = Image2DModel.parse(
        image,
        dims=("c", "y", "x"),
        c_coords=["r", "g", "b"],
        scale_factors=[2] * n_levels,
        chunks={"c": 3, "y": CHUNK, "x": CHUNK},
        transformations=systems,
    )
    # SpatialData halves in floating point and cuts off the decimals: five times slower, and darker with every level
    for k in range(1, n_levels + 1):
        image = _halve(image)
        tree[f"scale{k}"]["image"].data = image
    return tree


def _halve(image: da.Array) -> da.Array:
    """(3, y, x) to (3, y // 2, x // 2): means of 2 x 2 pixels, rounded."""
    _, height, width = image.shape
    even = image[:, : height // 2 * 2, : width // 2 * 2]
    halves = tuple(tuple(n // 2 for n in sizes) for sizes in even.chunks[1:])
    return even.map_blocks(
        _mean_of_4, dtype=np.uint8, chunks=(even.chunks[0], *halves), meta=np.empty((0, 0, 0), np.uint8)
    ).rechunk((3, CHUNK, CHUNK))


def _mean_of_4(block: NDArray[np.uint8]) -> NDArray[np.uint8]:
    rows = block[:, ::2].astype(np.uint16) + block[:, 1::2]
    total = rows[:, :, ::2] + rows[:, :, 1::2]
    return ((total + 1 + (total // 4) % 2) // 4).astype(np.uint8)  # half to even, so that no level is darker


# ---------------------------------------------------------------------------------------------------------------------
# spots
# ---------------------------------------------------------------------------------------------------------------------
def spacing(xy: NDArray[Any]) -> float:
    """Distance between the centres of neighbouring spots, in the unit of `xy` (n, 2); NaN for fewer than two spots.

    The nearest neighbour alone is biased when spots are jittered (legacy ST): the median is taken over all neighbours
    at about that distance, which are up to 4 on a square and 6 on a hexagonal grid.
    """
    if len(xy) < 2:
        return float("nan")
    distances = cKDTree(xy).query(xy, k=min(7, len(xy)))[0][:, 1:]
    nearest = np.median(distances[:, 0])
    return float(np.median(distances[distances <= 1.25 * nearest]))


def check_inside(xy: NDArray[Any], image: da.Array, *, swap: str, scales: Sequence[float] = ()) -> None:
    """Raise when spot centres `xy` (n, 2; px of the image) are not inside the image.

    Parameters
    ----------
    xy
        Spot centres in pixels of `image`.
    image
        (3, y, x).
    swap
        The code that swaps x and y, for the message.
    scales
        Known px of image per px of coordinates, e.g. Space Ranger's ``tissue_hires_scalef``.
    """
    size = np.array([image.shape[2], image.shape[1]])
    if not np.isfinite(xy).all():
        raise ValueError(f"{int((~np.isfinite(xy)).any(1).sum())} of {len(xy)} spots have no pixel coordinates (NaN).")

    def n_outside(points: NDArray[Any]) -> int:
        return int(((points < 0) | (points >= size)).any(1).sum())

    n_out = n_outside(xy)
    if not n_out:
        if len(xy) > 1 and (xy.max(0) < 0.35 * size).all():
            logger.warning(
                f"All spots are in the upper left corner of the image (x up to {xy[:, 0].max():.0f} of "
                f"{size[0]}, y up to {xy[:, 1].max():.0f} of {size[1]} px). If the coordinates belong to a "
                "smaller copy of the image, give `image_scale=` (px of this image per px of the coordinates, above 1)."
            )
        return
    (x0, y0), (x1, y1) = xy.min(0), xy.max(0)
    message = (
        f"{n_out} of {len(xy)} spots are outside the image, which is {size[0]} x {size[1]} px (width x height); "
        f"the spots reach from {x0:.0f} to {x1:.0f} in x and from {y0:.0f} to {y1:.0f} in y."
    )
    ratio = float(np.min(size / np.maximum(xy.max(0), 1)))
    known = [s for s in sorted(scales, reverse=True) if n_outside(xy * s) == 0]
    if known:
        message += f" The image is a downscaled copy: pass `image_scale={known[0]:.6g}` (from `uns['spatial']`)."
    elif n_outside(xy[:, ::-1]) == 0:
        message += f" With x and y swapped all spots are inside: {swap}."
    elif ratio < 0.9 and min(x0, y0) >= 0:
        message += (
            f" The image looks like a downscaled copy of the one the coordinates belong to: pass that image, or "
            f"`image_scale=` (px of this image per px of the coordinates; at most {ratio:.3g}. Space Ranger calls it "
            "tissue_hires_scalef)."
        )
    else:
        message += (
            " Check that image and coordinates belong together and that x and y are not swapped, or drop these spots."
        )
    raise ValueError(message)


def check_positive(**values: float | None) -> None:
    """Raise when one of the named numbers is given but is not a positive finite number."""
    for name, value in values.items():
        if value is not None and not (np.isfinite(value) and value > 0):
            raise ValueError(f"`{name}` must be a number above 0, found {value!r}.")


def check_unique(names: Collection[Any], *, what: str, remedy: str) -> None:
    """Raise when `names` has duplicates, naming them."""
    found, counts = np.unique(np.asarray(list(names), dtype=str), return_counts=True)
    twice = found[counts > 1]
    if len(twice):
        raise ValueError(f"{len(twice)} {what} are not unique: {examples(twice)}. {remedy}")


def examples(names: Collection[Any], n: int = 5) -> str:
    """The first `n` names for a message."""
    return ", ".join(str(name) for name in list(names)[:n]) + (f", ... ({len(names)} in all)" if len(names) > n else "")


# ---------------------------------------------------------------------------------------------------------------------
# section
# ---------------------------------------------------------------------------------------------------------------------
def section_name(name: str) -> str:
    """`name` itself when SpatialData can use it, else an error that offers one."""
    if not isinstance(name, str) or not re.fullmatch(r"(?!__)[\w.-]*\w[\w.-]*", name, flags=re.ASCII):
        mended = re.sub(r"[^\w.-]+", "_", str(name), flags=re.ASCII).strip("_.") or "section"
        raise ValueError(
            f"`section` must consist of letters, digits, '_', '.' and '-', found {name!r}: use section={mended!r}."
        )
    return name


def build_section(
    section: str,
    image: da.Array,
    xy: NDArray[Any],
    table: AnnData,
    *,
    microns_per_pixel: float,
    spot_diameter: float,
) -> SpatialData:
    """The SpatialData of one section.

    Parameters
    ----------
    section
        Its name, S.
    image
        (3, y, x) uint8, from :func:`read_image`.
    xy
        (n_spots, 2): x and y of the spot centres in pixels of `image`, in the order of `table`.
    table
        n_spots x genes. It becomes part of the result and is written to: pass a copy.
    microns_per_pixel
        Of `image`.
    spot_diameter
        In µm.

    Returns
    -------
    ``images["S_image"]``, ``shapes["S_spots"]``, ``tables["table"]``; coordinate systems ``S`` (px) and ``S_microns``.

    Raises
    ------
    ValueError
        If the spots would overlap, which means that the resolution, the diameter or the coordinates are wrong.
    """
    pitch = spacing(xy) * microns_per_pixel
    if pitch < 0.9 * spot_diameter:
        raise ValueError(
            f"Spots of {spot_diameter:g} µm would overlap: their centres are {pitch:.3g} µm apart with "
            f"{microns_per_pixel:.4g} µm per pixel (typical: legacy ST 100 µm spots every 200 µm, Visium 55 "
            "every 100). `microns_per_pixel`, `spot_diameter` or `image_scale` is wrong, or there is more than "
            "one section in the table: pass one section at a time."
        )

    systems = {section: Identity(), f"{section}{MICRONS_SUFFIX}": Scale([microns_per_pixel] * 2, axes=("x", "y"))}
    levels = _pyramid(image, systems)
    index = np.arange(len(xy))
    radius = spot_diameter / 2 / microns_per_pixel
    spots = ShapesModel.parse(
        np.asarray(xy, dtype=float), geometry=0, radius=radius, index=index, transformations=systems
    )
    table.obs["region"] = f"{section}_spots"
    table.obs["region"] = table.obs["region"].astype("category")
    table.obs["spot_id"] = index
    table.obsm["spatial"] = np.array(xy, dtype=float)
    table.uns.pop(TableModel.ATTRS_KEY, None)  # of the object the table was taken from
    table = TableModel.parse(table, region=f"{section}_spots", region_key="region", instance_key="spot_id")
    logger.info(
        f"{section}: {table.n_obs} spots x {table.n_vars} genes, image {image.shape[2]} x {image.shape[1]} px, "
        f"{microns_per_pixel:.4g} µm per pixel"
        + (f", spots {pitch:.4g} µm apart" if np.isfinite(pitch) else "")
        + f", {spot_diameter:g} µm wide"
    )
    return SpatialData(images={f"{section}_image": levels}, shapes={f"{section}_spots": spots}, tables={"table": table})
