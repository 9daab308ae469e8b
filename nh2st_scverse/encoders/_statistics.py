"""Colour and texture of a patch as plain statistics: what a network trained on photographs does not look at."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from skimage.color import hed_from_rgb

from nh2st_scverse._threads import in_workers

SIDE = 80  # px of a patch: finer ones tell no more
AT_ONCE = 8  # patches: their pixels stay in the cache of a processor
PERCENTILES = (5, 25, 50, 75, 95)
CORRELATED = ((0, 1), (0, 2), (1, 2), (3, 4))  # channels: the colours with each other, haematoxylin with eosin
N_SCALES = 4  # of the gradients: each has half the resolution of the one before
GLASS = 220  # of 255: pixels that are brighter in all colours are no tissue
CELL = 4  # px of the maps
BINS = 40  # of their histograms
LOWEST = (0.0, 0.0, 0.0, -0.1, -1.0, 0.0)  # of the six channels: what is beyond is in the first or last bin
HIGHEST = (1.0, 1.0, 1.0, 4.0, 0.8, 3.0)
DENSITY = -np.log((np.arange(256, dtype=np.float32) + 1) / 256)  # optical density of each value of a pixel
STAINS = hed_from_rgb[:, :2].astype(np.float32)  # densities of red, green and blue to haematoxylin and eosin


class Statistics:
    """Colours, stains and gradients of a patch in numbers; needs no weights.

    Of red, green, blue, haematoxylin, eosin and the mean optical density: mean, standard deviation and five percentiles
    (42). Correlations between the colours, and of haematoxylin with eosin (4). The share of glass (1). Of brightness
    and of haematoxylin, at four scales: mean and standard deviation of the gradient, and the mean size of the
    Laplacian (24).

    See Also
    --------
    Joined : statistics beside the features of a network.
    EfficientNetLite0 : a network that needs no download.

    Examples
    --------
    >>> import numpy as np, nh2st_scverse as nh
    >>> encoder = nh.encoders.Statistics()
    >>> encoder(np.zeros((2, 80, 80, 3), dtype=np.uint8)).shape
    (2, 71)
    """

    name = "statistics"
    input_size = SIDE
    dim = 6 * (2 + len(PERCENTILES)) + len(CORRELATED) + 1 + 2 * 3 * N_SCALES
    n_maps = 6 * (2 + BINS) + len(CORRELATED) + 1 + 2 * 3 * N_SCALES
    weights_hash = "1"  # of the definition: another one gives other features

    def __call__(self, patches: np.ndarray) -> np.ndarray:
        """Describe (n, 80, 80, 3) uint8 by (n, 71) float32."""
        return describe(_describe, patches, self.dim)

    def maps(self, tile: np.ndarray) -> list[np.ndarray]:
        """Moments and gradients, and histograms, in cells of a tile (side, side, 3) uint8: (h, w, C) each.

        All but the percentiles follow from means over a window as from its pixels, but for its border; percentiles
        from the mean histogram.
        """
        channels: Any = _channels(tile)  # (6, side, side)
        n = len(tile) // CELL
        moments = [channels, np.square(channels), np.stack([channels[i] * channels[j] for i, j in CORRELATED])]
        glass = _is_glass(tile)[None].astype(np.float32)
        images = np.stack([channels[:3].mean(axis=0), channels[3]])[:, None]
        gradients = []
        for _ in range(N_SCALES):
            around = np.pad(images, ((0, 0), (0, 0), (1, 1), (1, 1)), mode="edge")
            gradient, laplacian = _differences(around)
            gradients += [_cells(one[:, 0], n) for one in (gradient, np.square(gradient), laplacian)]
            images = halved(images)
        means = np.concatenate([_cells(one, n) for one in (*moments, glass)] + gradients)
        # what is subtracted from each other later is summed in 64 bits
        return [np.ascontiguousarray(np.moveaxis(means, 0, -1), dtype=np.float64), _histograms(channels, n)]

    def pooled(self, means: np.ndarray) -> np.ndarray:
        """Statistics (n, 71) float32 of the means of the maps over windows (n, n_maps)."""
        starts = np.cumsum([6, 6, len(CORRELATED), 1, 6 * N_SCALES])
        mean, square, product, glass, gradients, histograms = np.split(means, starts, axis=1)
        spread = _spread(mean, square)
        i, j = np.array(CORRELATED).T
        pairs = (product - mean[:, i] * mean[:, j]) / np.maximum(spread[:, i] * spread[:, j], 1e-6)
        percentiles = _percentiles(histograms.reshape(-1, 6, BINS))  # (n, 5, 6)
        scales = gradients.reshape(-1, N_SCALES, 3, 2)  # brightness and haematoxylin
        scales[:, :, 1] = _spread(scales[:, :, 0], scales[:, :, 1])
        parts = [mean, spread, percentiles.reshape(len(means), -1), pairs, glass, scales.reshape(len(means), -1)]
        return np.concatenate(parts, axis=1).astype(np.float32)


def describe(some: Callable[[np.ndarray], np.ndarray], patches: np.ndarray, dim: int) -> np.ndarray:
    """What a function says of some patches, of all of them (n, dim) float32: numpy lets other threads run."""
    parts = (patches[i : i + AT_ONCE] for i in range(0, len(patches), AT_ONCE))
    return np.concatenate([np.empty((0, dim), dtype=np.float32), *in_workers(some, parts)])


def _spread(mean: np.ndarray, square: np.ndarray) -> np.ndarray:
    return np.sqrt(np.maximum(square - np.square(mean), 0))


def _cells(images: np.ndarray, n: int) -> np.ndarray:
    """Images (..., side, side) in n x n cells: means of the pixels of each, or the pixel that it is part of."""
    side = images.shape[-1]
    if side < n:
        return images.repeat(n // side, axis=-2).repeat(n // side, axis=-1)
    step = side // n
    rows: Any = sum(images[..., i::step, :] for i in range(step))  # many times as fast as a mean over two axes
    cells: Any = sum(rows[..., i::step] for i in range(step))
    return np.asarray(cells / np.float32(step**2))


def _histograms(channels: np.ndarray, n: int) -> np.ndarray:
    """Shares of the pixels of each cell in each bin: (n, n, 6 * BINS) of channels (6, side, side)."""
    side = channels.shape[-1]
    cell = np.arange(side) // (side // n)
    bins = np.empty(channels.shape, dtype=np.intp)  # of all cells and channels
    for i, (channel, low, high) in enumerate(zip(channels, LOWEST, HIGHEST, strict=True)):
        bins[i] = np.clip((channel - low) * (BINS / (high - low)), 0, BINS - 1)
        bins[i] += ((cell[:, None] * n + cell) * 6 + i) * BINS
    counts = np.bincount(bins.ravel(), minlength=n * n * 6 * BINS).reshape(n, n, 6 * BINS)
    return np.multiply(counts, (n / side) ** 2, dtype=np.float32)


def _percentiles(histograms: np.ndarray) -> np.ndarray:
    """Percentiles (n, 5, 6) of histograms (n, 6, BINS), as if the pixels of a bin were evenly spread in it."""
    below = np.cumsum(histograms, axis=-1)
    low, high = np.array(LOWEST), np.array(HIGHEST)
    found = []
    for share in PERCENTILES:
        wanted = share / 100 * below[..., -1]
        at = np.minimum((below < wanted[..., None]).sum(axis=-1), BINS - 1)[..., None]  # the bin that it is in
        inside = np.take_along_axis(histograms, at, axis=-1)[..., 0]
        over = np.take_along_axis(below, at, axis=-1)[..., 0] - wanted
        place = at[..., 0] + 1 - np.clip(over / np.maximum(inside, 1e-9), 0, 1)
        found.append(low + place * (high - low) / BINS)
    return np.stack(found, axis=1)


def _channels(patches: np.ndarray) -> np.ndarray:
    """Red, green, blue, haematoxylin, eosin and optical density of patches (..., 3): (6, ...)."""
    density = DENSITY[patches]
    channels = np.empty((6, *patches.shape[:-1]), dtype=np.float32)
    channels[:3] = np.moveaxis(patches, -1, 0) / np.float32(255)
    channels[3:5] = np.moveaxis(density @ STAINS, -1, 0)
    channels[5] = (density[..., 0] + density[..., 1] + density[..., 2]) / 3  # several times as fast as a mean
    return channels


def _is_glass(images: np.ndarray) -> np.ndarray:
    """Whether each pixel of images (..., 3) is bright in all colours."""
    red, green, blue = np.moveaxis(images > GLASS, -1, 0)
    return np.asarray(red & green & blue)


def _describe(patches: np.ndarray) -> np.ndarray:
    """Statistics (n, 71) of patches (n, side, side, 3)."""
    channels = _channels(patches)
    pixels = channels.reshape(6, len(patches), -1)
    mean = pixels.mean(axis=-1)  # (6, n)
    centred = pixels - mean[..., None]
    spread = np.sqrt(np.square(centred).mean(axis=-1))
    ranks = np.rint(np.array(PERCENTILES) / 100 * (pixels.shape[-1] - 1)).astype(int)
    percentiles = np.sort(pixels, axis=-1)[..., ranks]  # (6, n, 5)
    pairs = [
        (centred[i] * centred[j]).mean(axis=-1) / np.maximum(spread[i] * spread[j], 1e-6)  # of one colour: 0
        for i, j in CORRELATED
    ]
    glass = _is_glass(patches).mean(axis=(1, 2))

    parts = [mean, spread, *np.moveaxis(percentiles, -1, 0), np.stack([*pairs, glass])]
    images = np.stack([channels[:3].mean(axis=0), channels[3]])  # (2, n, side, side) brightness, haematoxylin
    for _ in range(N_SCALES):
        parts += _gradients(images)
        images = halved(images)
    return np.concatenate(parts).T.astype(np.float32)


def _gradients(images: np.ndarray) -> list[np.ndarray]:
    """Mean and spread of the gradient, and mean size of the Laplacian, of images (2, n, side, side): (2, n) each."""
    gradient, laplacian = _differences(images)
    return [gradient.mean(axis=(2, 3)), gradient.std(axis=(2, 3)), laplacian.mean(axis=(2, 3))]


def _differences(images: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Size of the gradient and of the Laplacian at the inner pixels of images (..., side, side)."""
    inner = images[..., 1:-1, 1:-1]
    left, right = images[..., 1:-1, :-2], images[..., 1:-1, 2:]
    above, below = images[..., :-2, 1:-1], images[..., 2:, 1:-1]
    gradient = np.sqrt(np.square(right - left) + np.square(below - above)) / 2
    return gradient, np.abs(left + right + above + below - 4 * inner)


def halved(images: np.ndarray) -> np.ndarray:
    """Images (..., side, side) at half the resolution."""
    return (images[..., ::2, ::2] + images[..., 1::2, ::2] + images[..., ::2, 1::2] + images[..., 1::2, 1::2]) / 4
