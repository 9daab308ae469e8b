"""Image files and arrays as lazy RGB pyramids: the one reader that all others share.

A TIFF (svs, ndpi, ome-tif, ...) is read tile by tile, with the levels that it has; any other file is decoded as a whole
when its pixels are first needed. What a file is, its first bytes say, not its name. Colours are those that the file
means: opacity lies on white, channels are put in the order red, green, blue by their names, and what is no picture of a
bright-field stain is refused with the reason.
"""

from __future__ import annotations

import contextlib
import mmap
import os
import threading
import xml.etree.ElementTree as ET
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import dask.array as da
import numpy as np
import PIL.Image
import tifffile
import zarr
from dask.base import tokenize
from numpy.typing import NDArray

from nh2st_scverse._logging import logger
from nh2st_scverse._validators import as_file
from nh2st_scverse.data.images import Seen
from nh2st_scverse.data.pixels import DARK, ORIGINAL, on_white, order_of

IMAGE_SUFFIXES = (".svs", ".ndpi", ".tif", ".tiff", ".btf", ".scn", ".bif", ".jpg", ".jpeg", ".png")
CHUNK = 1024
COARSEST = 512
"""Longest side, roughly, of the coarsest level of an image."""

TIFF = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")  # first bytes, the last two of BigTIFF
JPEG_CODECS = {6, 7, 34892, 33007}  # decoded to RGB, whatever they hold
APERIO_YCBCR = 33003  # JPEG 2000 whose colours nobody but its readers turns into RGB
ORIENTATION = 274  # the tag, and that of EXIF
NO_STAIN = f"There is no H&E stain to learn from. {ORIGINAL}"
EIGHT_BITS = (
    "expected 8 bits per channel (uint8). Convert it, or pass an array of uint8: "
    '`(image / image.max() * 255).astype("uint8")`.'
)
CUT_OFF = "is cut off: its end is missing. Copy or download it again."
NO_PICTURE = (
    "expected svs, ndpi, tif, ome-tif, jpg or png. Convert other formats to ome-tif, for instance with QuPath or "
    "bfconvert."
)

ImageLike = str | os.PathLike[str] | NDArray[Any] | da.Array


@dataclass(frozen=True)
class Picture:
    """An image in RGB on white."""

    levels: list[da.Array]  # (3, y, x) uint8, finest first
    series: int | None = None  # of the TIFF that it was read from


@dataclass(frozen=True)
class Source:
    """Where the pixels of one level are, and how they become RGB: all that a task of dask needs."""

    path: str
    version: int  # modification time when it was read first
    series: int | None = None  # of a TIFF; None: Pillow decodes the file
    level: int = 0
    whole: bool = True  # it has no tiles: decode it once and keep it
    to_yxc: tuple[int, ...] = (0, 1, 2)  # axes that are y, x and channel
    channels: tuple[int, ...] = ()  # that are red, green, blue and opacity, if they are not all in this order
    premultiplied: bool = False  # by the opacity
    ycbcr: bool = False

    def read(self, rows: slice, columns: slice) -> NDArray[np.uint8]:
        """RGB (y, x, 3) of a part.

        Raises
        ------
        OSError
            The file has changed, has gone or is damaged.
        """
        if not os.path.isfile(self.path) or os.stat(self.path).st_mtime_ns != self.version:
            raise OSError(f"{self.path} has changed or gone since it was read: read it again.")
        try:
            with _opening:  # several threads want chunks of one file: the first one decodes, the others wait for it
                array = _decoded(self) if self.whole else _opened(self)
            part: list[Any] = [0] * array.ndim
            part[self.to_yxc[0]], part[self.to_yxc[1]], part[self.to_yxc[2]] = rows, columns, slice(None)
            pixels = np.asarray(array[tuple(part)])
        except Exception as error:  # of any codec
            raise OSError(f"{self.path} cannot be decoded, it is damaged ({error}): copy it again.") from error
        kept = sorted(self.to_yxc)
        pixels = pixels.transpose([kept.index(axis) for axis in self.to_yxc])
        if self.channels:
            pixels = pixels[..., list(self.channels)]
        if self.ycbcr:
            height, width = pixels.shape[:2]
            pixels = np.asarray(PIL.Image.frombytes("YCbCr", (width, height), pixels.tobytes()).convert("RGB"))
        return on_white(pixels, premultiplied=self.premultiplied)

    def lazy(self, height: int, width: int, step: Sequence[int] = (CHUNK, CHUNK)) -> da.Array:
        """RGB (3, y, x) in chunks of `step` pixels."""
        return da.map_blocks(
            _read_block,
            chunks=((3,), *da.core.normalize_chunks(tuple(step), (height, width))),
            dtype=np.uint8,
            meta=np.empty((0, 0, 0), np.uint8),
            name=f"image-{tokenize(self)}",
            source=self,
        )


def read_image(image: ImageLike) -> Picture:
    """Any RGB image, lazily.

    Parameters
    ----------
    image
        Path of an image, or an array (y, x, c): uint8, or float between 0 and 1. A fourth channel of an array is taken
        as opacity.

    Returns
    -------
    Its levels, those of the file, or halves down to about 512 px.

    Raises
    ------
    FileNotFoundError
        If there is no such file.
    ValueError
        If the image is not RGB with 8 bits per channel, shows no stain in bright light, or is damaged.
    TypeError
        If `image` is neither a path nor an array.
    """
    if isinstance(image, np.ndarray | da.Array):
        return Picture(pyramid([_from_array(image)]))
    if not isinstance(image, str | os.PathLike):
        raise TypeError(
            f"Expected image to be a path or an array (y, x, c), found {type(image).__name__}. "
            "Pass other pictures as np.asarray(image), of shape (y, x, 3)."
        )
    path = as_file(image, argument="image", suffixes=IMAGE_SUFFIXES).resolve()
    with path.open("rb") as file:
        tiff = file.read(4) in TIFF
    found = _read_tiff(path) if tiff else None
    if found is None:  # Pillow knows palettes, CMYK and more, but no tiles
        found = Picture([_read_other(path)])
    return Picture(pyramid(found.levels), found.series)


def pyramid(levels: list[da.Array]) -> list[da.Array]:
    """The same levels and halves of the last one, down to about 512 px."""
    levels = list(levels)
    while max(levels[-1].shape[1:]) > COARSEST * 2**0.5:
        levels.append(_halve(levels[-1]))
    return levels


def _read_block(source: Source, block_info: Any = None) -> NDArray[np.uint8]:
    _, (y0, y1), (x0, x1) = block_info[None]["array-location"]
    return np.ascontiguousarray(source.read(slice(y0, y1), slice(x0, x1)).transpose(2, 0, 1))


_opening = threading.RLock()


@lru_cache(maxsize=32)
def _opened(source: Source) -> Any:
    """One level of a TIFF as a zarr array."""
    assert source.series is not None
    return zarr.open_array(tifffile.TiffFile(source.path).series[source.series].aszarr(level=source.level), mode="r")


@lru_cache(maxsize=2)
def _decoded(source: Source) -> NDArray[np.uint8]:
    """The whole picture; two are kept, so that one crop after the other does not decode it again."""
    if source.series is not None:
        return np.asarray(_opened(source)[...])
    with _no_pixel_limit(), PIL.Image.open(source.path) as image:
        return np.asarray(image.convert("RGBA" if image.has_transparency_data else "RGB"))


# ---------------------------------------------------------------------------------------------------------------------
# TIFF
# ---------------------------------------------------------------------------------------------------------------------
def _read_tiff(path: Path) -> Picture | None:
    """The largest picture of a TIFF; None if its colours are of a kind that Pillow must decode."""
    try:
        tiff = tifffile.TiffFile(path)
        areas = [
            np.prod([n for axis, n in zip(series.axes, series.shape, strict=True) if axis in "YX"])
            for series in tiff.series
        ]
        which = int(np.argmax(areas))
    except Exception as error:  # whatever a damaged header leads to
        raise ValueError(f"{path} is not an image that can be read ({error}): {NO_PICTURE}") from error
    with tiff:
        series = tiff.series[which]
        for page in [page for level in series.levels for page in level.pages if page is not None]:
            ends = [at + n for at, n in zip(page.dataoffsets, page.databytecounts, strict=False)]
            if max(ends, default=0) > page.parent.filehandle.size:
                raise ValueError(f"{path} {CUT_OFF}")
        alike = [i for i, area in enumerate(areas) if i != which and area > 0.5 * areas[which]]
        if alike:
            logger.warning(
                f"{path.name} holds {1 + len(alike)} pictures of like size: the largest is read, number {which}, and "
                f"not {alike}. Save others to files of their own."
            )
        turned = series.keyframe.tags.valueof(ORIENTATION, 1) != 1
        how = _colours(path, tiff, which)
        if how is None and (which > 0 or turned):
            kind = tifffile.PHOTOMETRIC(series.keyframe.photometric).name
            raise ValueError(f"{path} has colours of the kind {kind}: save it as RGB.")
        if how is None:
            return None
        if turned:
            _warn_of_orientation(path)
        shapes = [(level.axes, level.shape) for level in series.levels]
    named = how.pop("named")
    levels: list[tuple[Source, da.Array]] = []
    for i, (axes, shape) in enumerate(shapes):
        source, lazy = _level(Source(str(path), path.stat().st_mtime_ns, which, i, **how), axes, shape)
        if levels and not _agree(levels[0], (source, lazy)):
            logger.warning(f"{path.name}: level {i} shows something else than the finest one, and is left out.")
            continue
        levels.append((source, lazy))
    brightest = (part.max(axis=2).ravel() for part in _seen(*levels[-1]).places())
    if not named and np.median(np.concatenate([*brightest])) < DARK:
        raise ValueError(f"{path} is not H&E: its ground is dark, as in fluorescence. {ORIGINAL}")
    return Picture([lazy for _, lazy in levels], which)


def _colours(path: Path, tiff: tifffile.TiffFile, which: int) -> dict[str, Any] | None:
    """How the channels of a picture become RGB; None for colours that Pillow must decode.

    Raises
    ------
    ValueError
        It shows no stain in bright light, or has other than 8 bits.
    """
    series = tiff.series[which]
    page, kind = series.keyframe, int(series.keyframe.photometric)
    n = max([size for axis, size in zip(series.axes, series.shape, strict=True) if axis not in "YX"], default=1)
    inverted = " and inverted (photometric interpretation MINISWHITE)" if kind == 0 else ""
    if kind in (0, 1) and n == 1:
        raise ValueError(f"{path} is greyscale{inverted}: expected the axes y, x and 3 channels. {NO_STAIN}")
    names = _channel_names(tiff, page.imagewidth)
    order = order_of(names, what=str(path))
    if kind == 0 or n == 2 or (kind == 1 and n != 3):
        raise ValueError(
            f"{path} is not an RGB image{inverted}: expected the axes y, x and 3 channels, found {series.axes} of "
            f"shape {series.shape}. {ORIGINAL}"
        )
    if page.dtype != np.uint8 or page.bitspersample != 8:
        raise ValueError(f"{path} is {page.dtype}, {page.bitspersample} bits per channel: {EIGHT_BITS}")
    jpeg = page.compression in JPEG_CODECS
    if kind not in (1, 2, 6) or (kind == 6 and not jpeg and page.is_subsampled):
        return None
    extra = tuple(map(int, page.extrasamples)) if n > 3 else ()
    opacity = next((i for i, one in enumerate(extra) if one in (1, 2)), None)
    if extra and opacity is None:
        logger.warning(f"{path.name} has {n - 3} channel(s) more than red, green and blue, not opacity: left out.")
    alpha = () if opacity is None else (n - len(extra) + opacity,)
    return {
        "channels": () if n == 3 and not order else (*(order or (0, 1, 2)), *alpha),
        "premultiplied": opacity is not None and extra[opacity] == 1,
        "ycbcr": page.compression == APERIO_YCBCR or (kind == 6 and not jpeg),
        "named": kind != 1 or order is not None,
    }


def _channel_names(tiff: tifffile.TiffFile, width: int) -> list[str]:
    """Names of the channels as OME-XML or ImageJ give them."""
    pixels = ome_pixels(tiff, width)
    if pixels is not None:
        names = [one.get("Name") or one.get("Fluor") or "" for one in pixels if one.tag.endswith("}Channel")]
    else:
        names = [str(name) for name in (tiff.imagej_metadata or {}).get("Labels", [])]
    return names


def ome_pixels(tiff: tifffile.TiffFile, width: int) -> Any:
    """What OME-XML says of the picture that is `width` px wide; None if nothing."""
    try:
        every = list(ET.fromstring(tiff.ome_metadata).iter()) if tiff.ome_metadata else []
    except ET.ParseError:
        return None
    return next((one for one in every if one.tag.endswith("}Pixels") and one.get("SizeX") == str(width)), None)


def _level(source: Source, axes: str, shape: tuple[int, ...]) -> tuple[Source, da.Array]:
    keep = [i for i, (axis, n) in enumerate(zip(axes, shape, strict=True)) if axis in "YX" or n > 1]
    order = ["YXC".index(axes[i]) if axes[i] in "YX" else 2 for i in keep]
    if sorted(order) != [0, 1, 2]:
        raise ValueError(
            f"{source.path} is not an RGB image: expected the axes y, x and 3 channels, found {axes} of shape {shape}."
        )
    to_yxc = tuple(keep[order.index(i)] for i in range(3))
    height, width = shape[to_yxc[0]], shape[to_yxc[1]]
    with _opening:
        tiles = [_opened(source).chunks[i] for i in to_yxc[:2]]
    whole = tiles[0] >= height and tiles[1] >= width
    source = replace(source, to_yxc=to_yxc, whole=whole)
    # whole tiles: none is decoded twice
    step = [CHUNK if whole else max(1, round(CHUNK / tile)) * tile for tile in tiles]
    return source, source.lazy(height, width, step)


def _agree(finest: tuple[Source, da.Array], other: tuple[Source, da.Array]) -> bool:
    """Whether two levels have one shape, and one colour at the same places."""
    first, second = _seen(*finest), _seen(*other)
    # one that is whole would be decoded for this alone
    return second.has_shape_of(first) and (finest[0].whole or second.shows(first))


def _seen(source: Source, lazy: da.Array) -> Seen:
    _, height, width = lazy.shape
    return Seen(height, width, lambda parts: [source.read(y, x) for y, x in parts])


# ---------------------------------------------------------------------------------------------------------------------
# other files
# ---------------------------------------------------------------------------------------------------------------------
def _read_other(path: Path) -> da.Array:
    """A file that is decoded as a whole: (3, y, x), lazy."""
    if not _is_complete(path):
        raise ValueError(f"{path} {CUT_OFF}")
    try:
        with _no_pixel_limit(), PIL.Image.open(path) as image:
            mode, size = image.mode, (image.height, image.width)
            deep = _has_16_bits(image)
            lacks = image.format == "PNG" and "exif" not in image.info  # it would decode the image to look further
            if not lacks and image.getexif().get(ORIENTATION, 1) != 1:
                _warn_of_orientation(path)
    except Exception as error:  # whatever a damaged header leads to
        raise ValueError(f"{path} is not an image that can be read ({error}): {NO_PICTURE}") from error
    if mode in ("1", "L", "LA", "La", "I", "F") or mode.startswith("I;"):
        raise ValueError(f"{path} is greyscale (mode {mode}), not an RGB image. {NO_STAIN}")
    if deep:
        raise ValueError(f"{path} has 16 bits per channel: {EIGHT_BITS}")
    if mode not in ("RGB", "RGBA", "RGBa", "RGBX", "P", "PA", "CMYK", "YCbCr"):
        raise ValueError(f"{path} has colours of the kind {mode}: save it as RGB.")
    return Source(str(path), path.stat().st_mtime_ns).lazy(*size)


def _is_complete(path: Path) -> bool:
    """Whether a JPEG or PNG has its end; True for other files, which Pillow judges."""
    if not path.stat().st_size:
        return True
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        if data[:3] == b"\xff\xd8\xff":  # the last scan ends with a marker that data cannot hold
            return data.rfind(b"\xff\xd9") > data.rfind(b"\xff\xda")
        return data[:4] != b"\x89PNG" or data.rfind(b"IEND") > 0


def _has_16_bits(image: PIL.Image.Image) -> bool:
    """Pillow would keep the upper 8 bits in silence, which leaves nothing of a 12-bit camera image."""
    arguments = [tile[3] for tile in getattr(image, "tile", [])[:1]]
    return any(";16" in str(a if isinstance(a, str) else a[:1]) for a in arguments if a)


def _warn_of_orientation(path: Path) -> None:
    logger.warning(
        f"{path.name} asks to be shown rotated or mirrored (orientation of EXIF or TIFF). This is ignored: pixel "
        "coordinates must refer to the image as it is stored."
    )


@contextlib.contextmanager
def _no_pixel_limit() -> Iterator[None]:
    """Pillow refuses images of more than 179 million pixels; slides have more. The user's limit is put back."""
    limit = PIL.Image.MAX_IMAGE_PIXELS
    PIL.Image.MAX_IMAGE_PIXELS = None
    try:
        yield
    finally:
        PIL.Image.MAX_IMAGE_PIXELS = limit


# ---------------------------------------------------------------------------------------------------------------------
# arrays
# ---------------------------------------------------------------------------------------------------------------------
def _from_array(image: NDArray[Any] | da.Array) -> da.Array:
    shape = tuple(image.shape)
    if image.ndim == 2 or (image.ndim == 3 and shape[-1] in (1, 2)):
        raise ValueError(f"The image is greyscale (shape {shape}): expected a colour image (y, x, 3). {NO_STAIN}")
    if image.ndim != 3 or shape[-1] not in (3, 4):
        first = image.ndim == 3 and shape[0] in (3, 4)
        remedy = " The channels are first: pass `np.moveaxis(image, 0, -1)`." if first else ""
        raise ValueError(f"The image has shape {shape}: expected (y, x, 3) or (y, x, 4).{remedy}")
    if 0 in shape:
        raise ValueError(f"The image is empty (shape {shape}).")
    if image.dtype != np.uint8 and not np.issubdtype(image.dtype, np.floating):
        raise ValueError(f"The image is {image.dtype}: {EIGHT_BITS}")
    if np.issubdtype(image.dtype, np.floating):
        low, high = float(image.min()), float(image.max())
        if not (low >= 0 and high <= 1):  # also NaN
            scaled = "((image + 1) * 127.5)" if -1 <= low < 0 and high <= 1 else "image"
            raise ValueError(
                f"The image is {image.dtype} with values from {low:g} to {high:g}: expected uint8 (0 to 255), or float "
                f'from 0 to 1. If it is meant so, pass `{scaled}.round().astype("uint8")`.'
            )
    if shape[-1] == 4 and not np.asarray(image[:: max(1, shape[0] // 64), :: max(1, shape[1] // 64), 3]).any():
        logger.warning("The image has a fourth channel that is 0 everywhere: no opacity, left out.")
        image = image[..., :3]
    array = image if isinstance(image, da.Array) else da.from_array(image, chunks=(CHUNK, CHUNK, -1))
    array = array.transpose(2, 0, 1).rechunk((-1, CHUNK, CHUNK))
    if array.dtype == np.uint8 and len(array) == 3:
        return array
    return array.map_blocks(
        lambda block: on_white(block.transpose(1, 2, 0)).transpose(2, 0, 1),
        dtype=np.uint8,
        chunks=((3,), *array.chunks[1:]),
        meta=np.empty((0, 0, 0), np.uint8),
    )


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
