"""Where things are in a drawn section: the outline, the regions, the adipocytes, the run of the fibres.

Lengths are in µm and are turned into pixels only where something is rasterised, so the layout of a section does not
depend on its resolution.
"""

from __future__ import annotations

import numpy as np
from scipy import fft, ndimage
from scipy.spatial import cKDTree

REGIONS = ("tumour", "stroma", "immune", "fat")
TUMOUR, STROMA, IMMUNE, FAT, BACKGROUND = 0, 1, 2, 3, 255

LAYOUT_UM = 4.0  # the smooth fields that decide what is where are drawn on a grid this fine
ADIPOCYTE_UM = 54.0
# a place belongs to a region where its score (standard deviation about 1) is above this; stroma is the rest
TUMOUR_SCORE, IMMUNE_SCORE, FAT_SCORE = 0.15, 0.75, 1.05


def field(n: int, scale_um: float, rng: np.random.Generator) -> np.ndarray:
    """Smooth Gaussian random field on the layout grid: mean 0, standard deviation 1."""
    return smooth_noise((n, n), (scale_um / LAYOUT_UM,) * 2, rng)


def smooth_noise(shape: tuple[int, int], scale: tuple[float, float], rng: np.random.Generator) -> np.ndarray:
    """Periodic white noise under a Gaussian of the given width (rows, columns); in Fourier space any width is cheap."""
    spectrum = fft.rfft2(rng.standard_normal(shape, dtype=np.float32))
    for axis, frequency in enumerate((fft.fftfreq(shape[0])[:, None], fft.rfftfreq(shape[1])[None, :])):
        weight = np.exp(-2 * (np.pi * scale[axis] * frequency) ** 2).astype(np.float32)
        spectrum.real *= weight  # a third of the time of complex numbers
        spectrum.imag *= weight
    spectrum[0, 0] = 0
    noise = fft.irfft2(spectrum, s=shape)
    return noise / noise.std()


NESTS_UM = 40.0  # regions of about two spot pitches: what surrounds a spot cannot be told from the spot itself


def layout(width_um: float, rng: np.random.Generator, nests_um: float = NESTS_UM) -> dict[str, np.ndarray]:
    """Fields on the layout grid: outline (µm from the edge of tissue, roughly) and a score for each region."""
    n = int(np.ceil(width_um / LAYOUT_UM)) + 2
    half = width_um / 2
    axis = np.arange(n) * LAYOUT_UM / half - 1
    power = 2.6  # between a circle and a square
    radius = (np.abs(axis[:, None]) ** power + np.abs(axis[None, :]) ** power) ** (1 / power)
    rim = 0.065 * field(n, width_um / 10, rng) + 0.018 * field(n, width_um / 40, rng)
    outline = (0.86 + rim - radius) * half + 5 * field(n, 14, rng)
    labelled, _ = ndimage.label(outline > 0)
    outline[(labelled != labelled[n // 2, n // 2]) & (outline > 0)] = -1.0  # one piece, no crumbs

    larger = nests_um / NESTS_UM
    ragged = field(n, 14, rng)
    tumour = field(n, 40 * larger, rng) + 0.15 * field(n, 300, rng) + 0.10 * ragged
    immune = field(n, 38 * larger, rng) + 0.1 * field(n, 300, rng) + 0.22 * field(n, 12, rng)
    fat = field(n, 52 * larger, rng) + 0.3 * field(n, 300, rng)

    # coordinates along (u) and across (v) the fibres; v follows the tumour score, so fibres run round the nests
    turn = rng.uniform(0, np.pi)
    x, y = np.meshgrid(np.arange(n) * LAYOUT_UM, np.arange(n) * LAYOUT_UM)
    along = x * np.cos(turn) + y * np.sin(turn) + 90 * field(n, 160, rng)
    across = -x * np.sin(turn) + y * np.cos(turn) + 150 * field(n, 190, rng) + 55 * tumour
    return {
        "outline": outline,
        "tumour": tumour,
        "immune": immune,
        "fat": fat,
        "along": along,
        "across": across,
        "thickness": field(n, 500, rng),
    }


def upsample(values: np.ndarray, size: int, microns_per_pixel: float) -> np.ndarray:
    """Bilinear interpolation of a layout field at the centres of the pixels: (size, size) float32."""
    position = (np.arange(size) + 0.5) * microns_per_pixel / LAYOUT_UM
    low = position.astype(int)
    weight = (position - low).astype(np.float32)
    values = values.astype(np.float32)
    columns = values[:, low] * (1 - weight) + values[:, low + 1] * weight
    out = np.empty((size, size), np.float32)
    for start in range(0, size, 64):  # in blocks that stay in the processor's cache
        block = slice(start, start + 64)
        w = weight[block, None]
        out[block] = columns[low[block]] * (1 - w) + columns[low[block] + 1] * w
    return out


def at(values: np.ndarray, xy: np.ndarray) -> np.ndarray:
    """Values of a layout field at points in µm."""
    return ndimage.map_coordinates(values, xy.T[::-1] / LAYOUT_UM, order=1, mode="nearest")


def regions(fields: dict[str, np.ndarray], inside: np.ndarray, size: int, microns_per_pixel: float) -> np.ndarray:
    labels = np.full((size, size), STROMA, np.uint8)
    labels[upsample(fields["immune"], size, microns_per_pixel) > IMMUNE_SCORE] = IMMUNE
    labels[upsample(fields["tumour"], size, microns_per_pixel) > TUMOUR_SCORE] = TUMOUR
    labels[inside <= 0] = BACKGROUND
    return labels


def jittered(width_um: float, pitch_um: float, jitter: float, rng: np.random.Generator) -> np.ndarray:
    """Points on a hexagonal lattice, moved at random by up to `jitter` pitches: crowded, yet never on one another."""
    rows = int(np.ceil(width_um / (pitch_um * 0.866))) + 1
    columns = int(np.ceil(width_um / pitch_um)) + 1
    row, column = np.mgrid[:rows, :columns]
    xy = np.stack([(column + 0.5 * (row % 2)) * pitch_um, row * pitch_um * 0.866], axis=-1).reshape(-1, 2)
    xy += rng.uniform(-jitter, jitter, xy.shape) * pitch_um
    return xy[((xy > 0) & (xy < width_um)).all(axis=1)]


def fat_cells(
    score: np.ndarray, labels: np.ndarray, microns_per_pixel: float, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Fill the fat region with adipocytes, the cells of a weighted Voronoi diagram.

    Returns the distance of every pixel to the nearest wall (µm), the labels with whole adipocytes as fat, and the
    centres of all cells considered, so that walls can be found again.
    """
    size = labels.shape[0]
    seeds = jittered(size * microns_per_pixel, ADIPOCYTE_UM, 0.36, rng)
    is_fat = at(score, seeds) > FAT_SCORE
    if is_fat.any():  # other cells matter only where they bound an adipocyte
        near = cKDTree(seeds[is_fat]).query(seeds)[0] < 3 * ADIPOCYTE_UM
        seeds, is_fat = seeds[near], is_fat[near]
    radius = rng.uniform(0.8, 1.25, len(seeds)) * ADIPOCYTE_UM / 2
    first = np.full(labels.shape, 9.0, np.float32)  # distance to the nearest centre, in radii of that cell
    second = np.full(labels.shape, 9.0, np.float32)
    fat = np.zeros(labels.shape, bool)
    reach = round(1.05 * ADIPOCYTE_UM / microns_per_pixel)
    for (x, y), r, member in zip(seeds / microns_per_pixel, radius / microns_per_pixel, is_fat, strict=True):
        top, left = max(int(y) - reach, 0), max(int(x) - reach, 0)
        window = np.s_[top : int(y) + reach, left : int(x) + reach]
        height, width = first[window].shape
        dy = (np.arange(top, top + height, dtype=np.float32) + 0.5 - y) / r
        dx = (np.arange(left, left + width, dtype=np.float32) + 0.5 - x) / r
        distance = np.sqrt(dy[:, None] ** 2 + dx[None, :] ** 2)
        nearer = distance < first[window]
        second[window] = np.where(nearer, first[window], np.minimum(second[window], distance))
        first[window] = np.minimum(first[window], distance)
        fat[window] = np.where(nearer, member & (distance < 1.45), fat[window])
    labels = np.where(fat & (labels != BACKGROUND), FAT, labels).astype(np.uint8)
    return (second - first) * (ADIPOCYTE_UM / 4), labels, seeds


def noise(size: int, scale: tuple[float, float], rng: np.random.Generator, period: int = 1024) -> np.ndarray:
    """Noise of unit variance with the given smoothness (rows, columns; pixels), one tile repeated over the image."""
    tile = smooth_noise((period, period), scale, rng)
    repeat = -(-size // period)
    return np.tile(tile, (repeat, repeat))[:size, :size]
