"""Image patches of a given size in µm, resampled to the input of an encoder."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator

import numpy as np
from PIL import Image
from xarray import DataArray

from nh2st_scverse.data.geometry import Geometry, Level, apply_affine

BLOCK = 2048  # px: pixels are read in blocks of this size, so memory does not grow with the slide
BATCH = 64
BACKGROUND = 255  # glass, beyond the border of the image


def best_level(geometry: Geometry, size_um: float, size_px: int) -> Level:
    """The coarsest level that still has a pixel for every pixel of the patch; the finest if none has."""
    fine_enough = [level for level in geometry.levels if size_um / level.microns_per_pixel >= size_px]
    return fine_enough[-1] if fine_enough else geometry.levels[0]


def overhang(geometry: Geometry, size_um: float) -> np.ndarray:
    """Whether the patch of each spot reaches over the border of the image: (n,) bool."""
    half = size_um / geometry.microns_per_pixel / 2
    xy = geometry.pixels()
    return np.asarray(((xy < half) | (xy > np.array(geometry.levels[0].size) - half)).any(axis=1))


def iter_patches(
    geometry: Geometry, spots: np.ndarray, *, size_um: float, size_px: int
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Cut the patches of some spots, block by block of the image.

    Parameters
    ----------
    geometry
        Where the spots are.
    spots
        (m,) positions of the wanted spots in the geometry.
    size_um
        Side of a patch in µm.
    size_px
        Side of the returned patches in pixels.

    Yields
    ------
    (b,) positions of spots and (b, size_px, size_px, 3) uint8 patches. Beyond the image patches are white.
    """
    level = best_level(geometry, size_um, size_px)
    centres = apply_affine(level.from_shapes, geometry.coordinates[spots])  # (m, 2) x, y
    side = max(1, round(size_um / level.microns_per_pixel))
    corners = np.round(centres - side / 2).astype(int)
    blocks = corners // BLOCK
    for block in np.unique(blocks, axis=0):
        inside = np.flatnonzero((blocks == block).all(axis=1))
        start = corners[inside].min(axis=0)
        pixels = read_pixels(level.array, start, corners[inside].max(axis=0) + side)  # (h, w, 3)
        for some in np.array_split(inside, np.ceil(len(inside) / BATCH)):
            patches = np.empty((len(some), size_px, size_px, 3), dtype=np.uint8)
            for patch, (x, y) in zip(patches, corners[some] - start, strict=True):
                cut = Image.fromarray(np.ascontiguousarray(pixels[y : y + side, x : x + side]))
                # bicubic with Pillow's support scaled to the reduction: no aliasing
                patch[:] = np.asarray(cut.resize((size_px, size_px), Image.Resampling.BICUBIC))
            yield spots[some], patches


def read_pixels(image: DataArray, start: np.ndarray, stop: np.ndarray) -> np.ndarray:
    """Read [start, stop) in x, y as (h, w, 3) uint8; what lies beyond the image is white."""
    size = np.array([image.sizes["x"], image.sizes["y"]])
    low, high = np.clip(start, 0, size), np.clip(stop, 0, size)
    width, height = stop - start
    pixels = np.full((height, width, 3), BACKGROUND, dtype=np.uint8)
    if (high > low).all():
        part = image.isel(x=slice(low[0], high[0]), y=slice(low[1], high[1])).transpose("y", "x", "c").values
        (x, y), (w, h) = low - start, high - low
        pixels[y : y + h, x : x + w] = to_uint8(part)
    return pixels


def to_uint8(pixels: np.ndarray) -> np.ndarray:
    """RGB as uint8 from (y, x, c): 8 bit as it is, floats in [0, 1] scaled, an alpha channel dropped."""
    if pixels.shape[-1] not in (3, 4):
        raise ValueError(f"Expected an RGB image (3 channels), found {pixels.shape[-1]} channels: is it H&E?")
    pixels = pixels[..., :3]
    if pixels.dtype == np.uint8:
        return pixels
    highest = float(pixels.max(initial=0))
    if np.issubdtype(pixels.dtype, np.floating) and highest <= 1.5:  # resampling overshoots 1 a little
        return np.round(np.clip(pixels, 0, 1) * 255).astype(np.uint8)
    if highest <= 256:
        return np.clip(np.round(pixels), 0, 255).astype(np.uint8)
    raise ValueError(f"Expected 8-bit RGB or floats in [0, 1], found {pixels.dtype} up to {highest:g}: rescale it.")


def thumbnail(geometry: Geometry, longest: int = 1024) -> tuple[np.ndarray, Level]:
    """A small picture (h, w, 3) of the whole image, and the level whose pixels it strides over."""
    level = next((lv for lv in geometry.levels if max(lv.size) <= longest), geometry.levels[-1])
    step = max(1, max(level.size) // longest)
    return to_uint8(level.array[:, ::step, ::step].transpose("y", "x", "c").values), level


def image_fingerprint(geometry: Geometry, order: np.ndarray, n_samples: int = 16, side: int = 32) -> str:
    """A short hash of the image under the spots, to notice that it changed without reading all of it.

    `order` sorts the spots, so that the order of the rows of a table does not matter.
    """
    level = geometry.levels[0]
    digest = hashlib.sha256(repr((level.size, np.round(geometry.microns_per_pixel, 6))).encode())
    centres = geometry.pixels()[order]
    for x, y in centres[np.linspace(0, len(centres) - 1, n_samples).astype(int)]:
        corner = np.round([x - side / 2, y - side / 2]).astype(int)
        digest.update(read_pixels(level.array, corner, corner + side).tobytes())
    digest.update(thumbnail(geometry)[0].tobytes())
    return digest.hexdigest()[:16]
