"""Nuclei from haematoxylin: colour deconvolution, a local threshold, a watershed of distance to the rim and stain."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from scipy import ndimage
from skimage.color import rgb2hed
from skimage.feature import peak_local_max
from skimage.filters import threshold_otsu
from skimage.measure import find_contours
from skimage.morphology import remove_small_holes, remove_small_objects
from skimage.segmentation import watershed

from nh2st_scverse.data.geometry import Level

BLUR_UM = 0.5  # smooths chromatin, and the noise of the camera
AROUND_UM = 8.0  # a nucleus is darker than what is this near: the width of a Gaussian
ABOVE = 0.1  # of the contrast of the slide, by which it is
PALEST = -0.25  # of the contrast, beside the threshold of the slide: what is paler is never a nucleus
DARKEST = 0.5  # what is darker always is
HOLE_UM2 = 20.0  # in a nucleus; a ring of nuclei round a lumen has larger ones
APART_UM = 2.4  # centres of two nuclei, at least
SHALLOW_UM = 0.3  # blur of the distance to the rim: rough outlines have several peaks
BODY_UM = 1.0  # blur of the stain: where nuclei touch, each is darkest in its middle
LEAST_UM2, MOST_UM2 = 9.0, 500.0
RIM_UM = 4 * AROUND_UM  # round a tile, so that no nucleus is cut
GLASS = 5.0  # of 255: pixels that vary less show no tissue
SAMPLES = 5  # windows along each side of the slide that its contrast is measured in


def haematoxylin(pixels: np.ndarray, microns: float) -> np.ndarray:
    """Density of haematoxylin (h, w), smoothed, of pixels (h, w, 3) uint8."""
    return np.asarray(ndimage.gaussian_filter(rgb2hed(pixels)[..., 0].astype(np.float32), BLUR_UM / microns))


def contrast(level: Level) -> tuple[float, float]:
    """Haematoxylin that parts nuclei from the rest of the slide, and how far the two are apart."""
    (width, height), side = level.size, round(100 / level.microns_per_pixel)
    values = []
    for top in np.linspace(0, max(height - side, 0), SAMPLES).astype(int):
        for left in np.linspace(0, max(width - side, 0), SAMPLES).astype(int):
            pixels = _read(level, left, top, left + side, top + side)
            if pixels.std() > GLASS:
                values.append(haematoxylin(pixels, level.microns_per_pixel)[::2, ::2].ravel())
    if not values:
        return np.inf, 0.0
    found = np.concatenate(values)
    threshold = float(threshold_otsu(found))
    return threshold, float(found[found > threshold].mean() - found[found <= threshold].mean())


def nuclei_in(stain: np.ndarray, microns: float, threshold: float, apart: float) -> np.ndarray:
    """Labels (h, w) of the nuclei in a map of haematoxylin; 0 is none."""
    around = ndimage.gaussian_filter(stain, AROUND_UM / microns)
    dark = stain > np.clip(around + ABOVE * apart, threshold + PALEST * apart, threshold + DARKEST * apart)
    dark = ndimage.binary_opening(dark, iterations=max(1, round(0.5 / microns)))
    dark = remove_small_holes(dark, max_size=max(1, int(HOLE_UM2 / microns**2)))
    dark = remove_small_objects(dark, max_size=max(1, int(LEAST_UM2 / microns**2)))
    inside = ndimage.gaussian_filter(ndimage.distance_transform_edt(dark).astype(np.float32), SHALLOW_UM / microns)
    inside = inside * microns + ndimage.gaussian_filter(stain, BODY_UM / microns) / apart  # µm, and contrasts
    peaks = peak_local_max(
        inside, min_distance=max(1, round(APART_UM / microns)), labels=dark.astype(int), exclude_border=False
    )
    seeds = np.zeros(stain.shape, np.int32)
    seeds[tuple(peaks.T)] = np.arange(1, len(peaks) + 1)
    return np.asarray(watershed(-inside, seeds, mask=dark))


def find_nuclei(level: Level, tile_um: float) -> Iterator[np.ndarray]:
    """Outlines (k, 2), x and y in pixels of a level, of all nuclei; tile by tile."""
    microns, (width, height) = level.microns_per_pixel, level.size
    threshold, apart = contrast(level)
    if not apart > 0:
        return
    side, rim = max(64, round(tile_um / microns)), round(RIM_UM / microns)
    for y in range(0, height, side):
        for x in range(0, width, side):
            left, top = max(x - rim, 0), max(y - rim, 0)
            pixels = _read(level, left, top, min(x + side + rim, width), min(y + side + rim, height))
            if pixels.std() < GLASS:
                continue
            labels = nuclei_in(haematoxylin(pixels, microns), microns, threshold, apart)
            for label, window in enumerate(ndimage.find_objects(labels), start=1):
                if window is None:
                    continue
                one = np.pad(labels[window] == label, 1)
                area = one.sum() * microns**2
                row, column = (np.array(ndimage.center_of_mass(one)) - 0.5) + [window[0].start, window[1].start]
                if not LEAST_UM2 <= area <= MOST_UM2 or not (
                    x <= left + column < x + side and y <= top + row < y + side
                ):
                    continue  # too small or large, or of the next tile
                outline = max(find_contours(one.astype(np.float32), 0.5), key=len)
                yield outline[:, ::-1] + [left + window[1].start - 0.5, top + window[0].start - 0.5]


def _read(level: Level, left: int, top: int, right: int, bottom: int) -> np.ndarray:
    part = level.array.isel(y=slice(top, bottom), x=slice(left, right)).transpose("y", "x", "c")
    return level.colours.to_rgb(part.values)
