"""Features of places from maps of the whole tissue: every tile is encoded once, however many places look at it.

A convolutional network says nearly the same of a window whether it sees the window alone or the tissue around it too.
So its maps are computed tile by tile, and what a place sees is their mean over its window, exactly: cells at the edge
count by the share that lies inside. The tiles of a field of view lie alike on an image for all places, so a place has
the same features among few others or many.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import product
from typing import Any

import dask
import numpy as np
import torch
from distributed import Client
from PIL import Image
from scipy import sparse
from torch import Tensor
from torch.nn import functional as F

from nh2st_scverse.data.cluster import on_cluster
from nh2st_scverse.data.geometry import Geometry
from nh2st_scverse.data.patches import Pixels, Windows, best_level
from nh2st_scverse.encoders import Encoder
from nh2st_scverse.encoders._base import on_gpu

# In sides of the field of view: 672 px with a margin of 64 where an encoder sees 224.
TILE = 3.0
MARGIN = 2 / 7  # of a tile, on each side, which is encoded and belongs to the tiles beside it
CORE = TILE - 2 * MARGIN


@dataclass(frozen=True)
class Tile:
    """A square of an image, and the parts of windows that lie in its core."""

    level: int  # of the image
    corner: np.ndarray  # (2,) x, y in pixels of the level
    side: float  # in pixels of the level
    windows: np.ndarray  # (m, 4) left, top, right, bottom, as shares of its side
    groups: tuple[tuple[int, int], ...]  # which places the windows are of: group, and number of its places


class Tiled:
    """Features of places (n,), positions in a geometry, by the maps of an encoder at one field of view.

    See :class:`nh2st_scverse.data.sweep.Way`.
    """

    def __init__(self, geometry: Geometry, encoder: Encoder, places: np.ndarray, *, field_um: float) -> None:
        self.geometry, self.encoder = geometry, encoder
        self.members, self.tiles = lay_tiles(geometry, places, field_um=field_um, size_px=encoder.input_size)
        self.windows = [_whole(geometry, tile) for tile in self.tiles]
        self.in_workers = not on_gpu(encoder)  # which one thread serves: others would only wait for it
        self.waiting: dict[int, Any] = {}  # sums of groups of places that lie in several tiles
        self.lacking = np.bincount([i for tile in self.tiles for i, _ in tile.groups], minlength=len(self.members))

    def see(self, piece: int, window: Callable[[int], np.ndarray]) -> np.ndarray:
        """The pixels under a tile."""
        return window(0)

    def draw(self, piece: int, seen: np.ndarray) -> np.ndarray:
        """The picture (side, side, 3) of a tile."""
        return _drawn(self.encoder, self.tiles[piece], seen)

    def encode(self, piece: int, drawn: np.ndarray) -> np.ndarray:
        """Parts of the means over the windows in a tile."""
        return _pool(self.encoder, self.tiles[piece], drawn)

    def on_cluster(self, client: Client) -> Iterator[tuple[int, np.ndarray]]:
        """The same of all tiles."""
        return on_cluster(_alone, (self.geometry, self.encoder), self.tiles, client)

    def collect(self, piece: int, found: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Places whose windows lie in tiles that are known now."""
        start = 0
        for group, n in self.tiles[piece].groups:
            self.waiting[group] = self.waiting.get(group, 0) + found[start : start + n]
            start += n
            self.lacking[group] -= 1
            if not self.lacking[group]:
                yield self.members[group], self.encoder.pooled(self.waiting.pop(group))  # type: ignore[attr-defined]


def lay_tiles(
    geometry: Geometry, places: np.ndarray, *, field_um: float, size_px: int
) -> tuple[list[np.ndarray], list[Tile]]:
    """The tiles under the windows of places, column by column, and the groups of places that lie in the same ones."""
    level = best_level(geometry, field_um, size_px)
    number = geometry.levels.index(level)
    field = field_um / level.microns_per_pixel
    centres = geometry.pixels(number)[places] / field  # (n, 2) in sides
    low, high = centres - 0.5, centres + 0.5
    first, last = np.floor(low / CORE).astype(int), np.ceil(high / CORE).astype(int) - 1  # tiles
    spans, group = np.unique(np.hstack([first, last]), axis=0, return_inverse=True)
    order = np.argsort(group, kind="stable")
    members = np.split(order, np.cumsum(np.bincount(group.ravel()))[:-1]) if len(order) else []
    under: dict[tuple[int, int], list[int]] = defaultdict(list)  # groups of each tile, by its column and row
    for i, (x0, y0, x1, y1) in enumerate(spans.tolist()):
        for at in product(range(x0, x1 + 1), range(y0, y1 + 1)):
            under[at].append(i)
    tiles = []
    for (column, row), groups in sorted(under.items()):  # as batches of patches lie: what is done is whole batches
        start = np.array([column, row]) * CORE  # of the core
        some = np.concatenate([members[i] for i in groups])
        inside = np.hstack([np.maximum(low[some], start), np.minimum(high[some], start + CORE)])
        windows = (inside - np.tile(start - MARGIN, 2)) / TILE
        sizes = tuple((i, len(members[i])) for i in groups)
        tiles.append(Tile(number, (start - MARGIN) * field, TILE * field, windows, sizes))
    return [places[some] for some in members], tiles


def window_means(values: np.ndarray | Tensor, windows: np.ndarray) -> np.ndarray:
    """The part (m, C) of the means over windows that a map (h, w, C) over a tile gives; summed where the map is.

    Windows (m, 4) are left, top, right, bottom, as shares of the tile. Sums over any box are differences of sums from
    the corner, linear between the edges of cells: 16 numbers of the map for each window. They are as exact as the map.
    """
    h, w, n = values.shape
    at, weight = zip(*(_edges(windows[:, i::2], size) for i, size in ((0, w), (1, h))), strict=True)
    columns = (at[1][:, :, None] * (w + 1) + at[0][:, None, :]).reshape(len(windows), 16)
    weights = (weight[1][:, :, None] * weight[0][:, None, :]).reshape(len(windows), 16)
    chosen = weights.ravel(), columns.ravel(), np.arange(0, columns.size + 1, 16)
    shape = len(windows), (h + 1) * (w + 1)
    if isinstance(values, Tensor):
        sums = F.pad(values.double().cumsum(dim=0).cumsum(dim=1), (0, 0, 1, 0, 1, 0)).reshape(-1, n)
        data, cells, starts = (torch.from_numpy(one).to(values.device) for one in chosen)
        means = (torch.sparse_csr_tensor(starts, cells, data, shape) @ sums).cpu().numpy()
    else:
        kind = np.result_type(values, np.float32)
        given = torch.from_numpy(np.ascontiguousarray(values, dtype=kind))
        # faster than cumsum; by torch, since numpy's products take all cores whatever a worker is told
        down, right = (torch.ones(size + 1, size, dtype=given.dtype).tril(-1) for size in (h, w))
        corner = (right @ (down @ given.reshape(h, -1)).reshape(h + 1, w, n)).reshape(-1, n)
        means = sparse.csr_array(chosen, shape=shape, dtype=kind) @ corner.numpy()
    return np.asarray(means) * (TILE**2 / (h * w))


def _edges(sides: np.ndarray, size: int) -> tuple[np.ndarray, np.ndarray]:
    """Edges of cells beside the two sides of a window (m, 2), shares of a map of `size` cells: (m, 4), and weights."""
    place = sides * size
    below = np.clip(np.floor(place).astype(int), 0, size - 1)
    share = place - below
    weights = np.stack([share[:, 0] - 1, -share[:, 0], 1 - share[:, 1], share[:, 1]], axis=1)
    return np.stack([below[:, 0], below[:, 0] + 1, below[:, 1], below[:, 1] + 1], axis=1), weights


def _alone(geometry: Geometry, encoder: Encoder, tile: Tile) -> np.ndarray:
    """Encode one tile on a worker of a cluster."""
    here = _whole(geometry, tile)
    pixels = Pixels(here.level, [(here.corners, here.side)])
    # a task that waits for tasks would wait for its own worker
    with dask.config.set(scheduler="synchronous"), pixels.load(here.corners, here.side) as window:
        return _pool(encoder, tile, _drawn(encoder, tile, window(0)))


def _whole(geometry: Geometry, tile: Tile) -> Windows:
    """Whole pixels under a tile."""
    corners = np.floor(tile.corner).astype(int)[None]
    return Windows(geometry.levels[tile.level], corners, int(np.ceil(tile.side)) + 1)


def _drawn(encoder: Encoder, tile: Tile, pixels: np.ndarray) -> np.ndarray:
    """The picture (side, side, 3) of a tile that an encoder sees."""
    left, top = (tile.corner - np.floor(tile.corner)).tolist()
    box = left, top, left + tile.side, top + tile.side
    size = round(TILE * encoder.input_size)
    return np.asarray(Image.fromarray(pixels).resize((size, size), Image.Resampling.BICUBIC, box))


def _pool(encoder: Encoder, tile: Tile, image: np.ndarray) -> np.ndarray:
    """The parts of the means over windows that lie in a tile: (m, channels of all maps)."""
    maps: Callable[[np.ndarray], list[Any]] = encoder.maps  # type: ignore[attr-defined]
    return np.concatenate([window_means(one, tile.windows) for one in maps(image)], axis=1)
