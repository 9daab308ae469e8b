"""Image patches of a given size in µm, resampled to the input of an encoder."""

from __future__ import annotations

import hashlib
import os
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import product
from typing import TypeVar
from weakref import WeakKeyDictionary

import dask
import dask.array as da
import numpy as np
from PIL import Image
from xarray import DataArray

from nh2st_scverse.data.geometry import Geometry, Level, apply_affine
from nh2st_scverse.data.pixels import PLAIN, Colours

BLOCK = 2048  # px: patches are cut block by block of the image, so that neighbouring ones use the same pixels
BATCH = 64  # patches
MOST_HELD = 2**29  # bytes of pixels kept for later patches at most, however large the slide
AT_ONCE = 2**27  # bytes of pixels read at a time: some readers decode the whole file for any part of it
BACKGROUND = 255  # glass, beyond the border of the image

_pictures: WeakKeyDictionary[Level, dict[int, np.ndarray]] = WeakKeyDictionary()  # of levels, by their step

T = TypeVar("T")
Chunk = tuple[int, int]  # its column and row among those of an image


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
    some = batches(geometry, spots, size_um=size_um, size_px=size_px)
    yield from zip(some, cut(geometry, [(batch, size_um) for batch in some], size_px=size_px), strict=True)


def batches(geometry: Geometry, spots: np.ndarray, *, size_um: float, size_px: int) -> list[np.ndarray]:
    """Spots (m,) in batches of nearly equal size, block by block of the level that `size_um` is cut from.

    They depend on where spots are, not on their order.
    """
    if not len(spots):
        return []
    xy = apply_affine(best_level(geometry, size_um, size_px).from_shapes, geometry.coordinates[spots])
    block = xy // BLOCK
    order = spots[np.lexsort((xy[:, 1], xy[:, 0], block[:, 1], block[:, 0]))]
    return np.array_split(order, np.ceil(len(order) / BATCH))


def cut(geometry: Geometry, work: Sequence[tuple[np.ndarray, float]], *, size_px: int) -> Iterator[np.ndarray]:
    """Cut batches of patches, each from the pyramid level that fits its size.

    Every chunk of the image is read once, some before the first patch needs them, and kept until the last one has it:
    several fields of view that come from one level share its pixels.

    Parameters
    ----------
    geometry
        Where the spots are.
    work
        (b,) positions of spots, and the side of their patches in µm, for each batch.
    size_px
        Side of the returned patches in pixels.

    Yields
    ------
    (b, size_px, size_px, 3) uint8 for each batch.
    """
    windows = [windows_of(geometry, spots, size_um, size_px) for spots, size_um in work]
    pixels = readers(windows)
    for one in windows:
        with pixels[id(one.level)].load(one.corners, one.side) as window:
            patches = resized(window, len(one.corners), size_px)
        yield patches


@dataclass(frozen=True)
class Windows:
    """Squares of one side on a level of an image."""

    level: Level
    corners: np.ndarray  # (b, 2) upper left ones, x and y in px
    side: int  # in px

    @property
    def left_um(self) -> float:
        """Where the leftmost begins, in µm of the image."""
        return float(self.corners[:, 0].min() * self.level.microns_per_pixel)


def windows_of(geometry: Geometry, spots: np.ndarray, size_um: float, size_px: int) -> Windows:
    """What patches of spots (b,) are cut from: squares of `size_um` on the level that fits `size_px`."""
    level = best_level(geometry, size_um, size_px)
    side = max(1, round(size_um / level.microns_per_pixel))
    centres = apply_affine(level.from_shapes, geometry.coordinates[spots])  # (b, 2) x, y
    return Windows(level, np.round(centres - side / 2).astype(int), side)


def readers(windows: Sequence[Windows]) -> dict[int, Pixels]:
    """What reads the windows of each level, by the identity of the level."""
    levels = {id(one.level): one.level for one in windows}
    return {
        key: Pixels(level, [(one.corners, one.side) for one in windows if one.level is level])
        for key, level in levels.items()
    }


def resized(window: Callable[[int], np.ndarray], n: int, size_px: int) -> np.ndarray:
    """Patches (n, size_px, size_px, 3) of windows, by several threads: Pillow lets others run."""

    def one(i: int) -> np.ndarray:
        # bicubic with Pillow's support scaled to the reduction: no aliasing
        return np.asarray(Image.fromarray(window(i)).resize((size_px, size_px), Image.Resampling.BICUBIC))

    with ThreadPoolExecutor(max(1, min(8, (os.cpu_count() or 1) // 2))) as pool:
        return np.stack(list(pool.map(one, range(n))))


class Pixels:
    """Windows of an image, in an order known beforehand.

    Parameters
    ----------
    level
        Of an image, lazy or in memory.
    windows
        Upper left corners (b, 2) in x, y, and side, of every batch that will be read.
    """

    def __init__(self, level: Level, windows: Iterable[tuple[np.ndarray, int]]) -> None:
        self.image, self.colours = level.array.transpose("c", "y", "x"), level.colours
        self.lazy = isinstance(self.image.data, da.Array)
        if self.lazy:
            self.edges = [np.cumsum((0, *sizes)) for sizes in self.image.data.chunks[:0:-1]]  # x, y
            self.held: dict[Chunk, np.ndarray] = {}
            self.due: Counter[Chunk] = Counter()  # windows that each chunk is still needed for, in the order of need
            for corners, side in windows:
                self.due.update(chunk for chunks in self._under(corners, side) for chunk in chunks)

    def _under(self, corners: np.ndarray, side: int) -> list[list[Chunk]]:
        """Chunks (column, row) under each window; none under those beyond the image."""
        first, last = [], []
        for start, edges in zip(corners.T, self.edges, strict=True):
            low, high = np.maximum(start, 0), np.minimum(start + side, edges[-1])
            first.append(np.searchsorted(edges, low, "right") - 1)
            last.append(np.where(low < high, np.searchsorted(edges, high, "left"), 0))
        bounds = np.stack([*first, *last], axis=1).tolist()  # (b, 4) x, y of the first chunk and behind the last
        return [list(product(range(x0, x1), range(y0, y1))) for x0, y0, x1, y1 in bounds]

    @contextmanager
    def load(self, corners: np.ndarray, side: int) -> Iterator[Callable[[int], np.ndarray]]:
        """Read what a batch needs; gives a function from its position to its window (side, side, 3), uint8.

        What lies beyond the image is white.
        """
        if not self.lazy:
            yield lambda i: read_pixels(self.image, corners[i], corners[i] + side, self.colours)
            return
        under = self._under(corners, side)
        self._read([chunk for chunk in dict.fromkeys(c for chunks in under for c in chunks) if chunk not in self.held])
        yield lambda i: self._window(corners[i], side, under[i])
        self.due.subtract(chunk for chunks in under for chunk in chunks)
        self.held = {chunk: pixels for chunk, pixels in self.held.items() if self.due[chunk] > 0}
        while sum(pixels.nbytes for pixels in self.held.values()) > MOST_HELD:  # oldest first; read again if need be
            del self.held[next(iter(self.held))]

    def _read(self, lacking: list[Chunk]) -> None:
        """Read the chunks that a batch lacks and, but for the first, which is waited for, those that come next."""
        if not lacking:
            return
        size = sum(self._n_bytes(chunk) for chunk in lacking)
        wanted = dict.fromkeys(lacking)
        for chunk, n in self.due.items() if self.held else ():
            if n > 0 and chunk not in wanted and chunk not in self.held:
                size += self._n_bytes(chunk)
                if size > AT_ONCE:
                    break
                wanted[chunk] = None
        blocks = self.image.data.blocks
        for chunk, pixels in zip(wanted, dask.compute(*(blocks[:, y, x] for x, y in wanted)), strict=True):
            # as windows are: they are cut from it many times
            self.held[chunk] = np.ascontiguousarray(self.colours.to_rgb(pixels.transpose(1, 2, 0)))

    def _n_bytes(self, chunk: Chunk) -> int:
        width, height = (edges[at + 1] - edges[at] for edges, at in zip(self.edges, chunk, strict=True))
        return int(3 * width * height)

    def _window(self, corner: np.ndarray, side: int, chunks: list[Chunk]) -> np.ndarray:
        window = np.full((side, side, 3), BACKGROUND, dtype=np.uint8)
        for x, y in chunks:
            origin = np.array([self.edges[0][x], self.edges[1][y]])
            pixels = self.held[x, y]
            low = np.maximum(corner, origin)
            high = np.minimum(corner + side, origin + pixels.shape[1::-1])
            (left, top), (right, bottom) = low - corner, high - corner
            (x0, y0), (x1, y1) = low - origin, high - origin
            window[top:bottom, left:right] = pixels[y0:y1, x0:x1]
        return window


def ahead(items: Iterator[T], n: int = 3) -> Iterator[T]:
    """The same items, made by a thread while the caller works on those before; at most `n` wait."""
    end = object()
    pool = ThreadPoolExecutor(1)
    try:
        waiting = deque(pool.submit(next, items, end) for _ in range(n))
        while (item := waiting.popleft().result()) is not end:
            waiting.append(pool.submit(next, items, end))
            yield item  # type: ignore[misc]
    finally:
        pool.shutdown(cancel_futures=True)


def read_pixels(image: DataArray, start: np.ndarray, stop: np.ndarray, colours: Colours = PLAIN) -> np.ndarray:
    """Read [start, stop) in x, y as (h, w, 3) uint8; what lies beyond the image is white."""
    size = np.array([image.sizes["x"], image.sizes["y"]])
    low, high = np.clip(start, 0, size), np.clip(stop, 0, size)
    width, height = stop - start
    pixels = np.full((height, width, 3), BACKGROUND, dtype=np.uint8)
    if (high > low).all():
        part = image.isel(x=slice(low[0], high[0]), y=slice(low[1], high[1])).transpose("y", "x", "c").values
        (x, y), (w, h) = low - start, high - low
        pixels[y : y + h, x : x + w] = colours.to_rgb(part)
    return pixels


def thumbnail(geometry: Geometry, longest: int = 1024) -> tuple[np.ndarray, Level]:
    """A small picture (h, w, 3) of the whole image, and the level whose pixels it strides over."""
    level = next((lv for lv in geometry.levels if max(lv.size) <= longest), geometry.levels[-1])
    step = max(1, max(level.size) // longest)
    read = _pictures.setdefault(level, {})  # smaller levels are often made from the largest whenever they are read
    if step not in read:
        read[step] = level.colours.to_rgb(level.array[:, ::step, ::step].transpose("y", "x", "c").values)
        read[step].flags.writeable = False  # others look at it, too
    return read[step], level


def image_fingerprint(geometry: Geometry, order: np.ndarray, n_samples: int = 16, side: int = 32) -> str:
    """A short hash of the image under the spots, to notice that it changed without reading all of it.

    `order` sorts the spots, so that the order of the rows of a table does not matter.
    """
    level = geometry.levels[0]
    digest = hashlib.sha256(repr((level.size, np.round(geometry.microns_per_pixel, 6))).encode())
    centres = geometry.pixels()[order]
    corners = np.round(centres[np.linspace(0, len(centres) - 1, n_samples).astype(int)] - side / 2).astype(int)
    with Pixels(level, [(corners, side)]).load(corners, side) as window:
        for i in range(n_samples):
            digest.update(window(i).tobytes())
    digest.update(thumbnail(geometry)[0].tobytes())
    return digest.hexdigest()[:16]
