"""Draw one section of H&E-like tissue: cytoplasm, fibres, vacuoles, nuclei, stain, sensor.

Colours are made as in a microscope: a map of haematoxylin and one of eosin, turned into light by the Beer-Lambert law.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy import ndimage
from scipy.spatial import cKDTree

from nh2st_scverse.datasets._layout import (
    ADIPOCYTE_UM,
    FAT,
    IMMUNE,
    IMMUNE_SCORE,
    NESTS_UM,
    STROMA,
    TUMOUR,
    TUMOUR_SCORE,
    at,
    fat_cells,
    jittered,
    layout,
    noise,
    regions,
    upsample,
)

HAEMATOXYLIN = (0.58, 0.72, 0.38)  # optical density per unit of stain in red, green, blue
EOSIN = (0.16, 0.82, 0.50)

# shape of nuclei: length in µm (mean, relative spread), width / length, haematoxylin, contrast of the chromatin
NUCLEI = {
    "tumour": (10.5, 0.13, (0.68, 1.0), 1.30, 0.30),
    "stroma": (14.0, 0.20, (0.18, 0.32), 1.45, 0.10),
    "immune": (6.0, 0.08, (0.85, 1.0), 1.95, 0.16),
}
N_TEMPLATES = 160


@dataclass(frozen=True)
class Tissue:
    """One drawn section: what is seen (``image``) and the truth behind it."""

    image: np.ndarray  # (3, height, width) uint8
    labels: np.ndarray  # (height, width) uint8, index into REGIONS or BACKGROUND (255)
    nuclei: np.ndarray  # (n, 2) centres, x and y in µm
    kinds: np.ndarray  # (n,) index into NUCLEI


def draw_tissue(
    width_um: float, microns_per_pixel: float, rng: np.random.Generator, nests_um: float = NESTS_UM
) -> Tissue:
    """Draw a square section of tissue on a white slide.

    Parameters
    ----------
    width_um
        Width and height of the image in µm.
    microns_per_pixel
        Resolution of the image.
    rng
        Source of everything random: layout, cells and stain.
    nests_um
        Size of nests.

    Returns
    -------
    The image, the region of every pixel and the nuclei.
    """
    size = round(width_um / microns_per_pixel)
    fields = layout(width_um, rng, nests_um)
    inside = upsample(fields["outline"], size, microns_per_pixel)
    labels = regions(fields, inside, size, microns_per_pixel)
    gap, labels, adipocytes = fat_cells(fields["fat"], labels, microns_per_pixel, rng)

    eosin = np.zeros((size, size), np.float32)
    haematoxylin = np.zeros((size, size), np.float32)
    _cytoplasm(eosin, haematoxylin, labels, fields, microns_per_pixel, rng)
    _adipocytes(eosin, haematoxylin, labels, gap, microns_per_pixel)

    nuclei, kinds, angles = _place_nuclei(fields, labels, adipocytes, microns_per_pixel, rng)
    _stamp_nuclei(eosin, haematoxylin, nuclei, kinds, angles, microns_per_pixel, rng)

    # section thickness varies slowly; the rim of tissue takes up a little more dye
    thickness = upsample(1 + 0.06 * fields["thickness"], size, microns_per_pixel)
    thickness *= 1 + 0.25 * np.exp(-np.clip(inside, 0, None) / 12)
    thickness *= np.clip(inside / 3 + 0.5, 0, 1)
    eosin *= thickness
    haematoxylin *= thickness
    return Tissue(_develop(eosin, haematoxylin, microns_per_pixel, rng), labels, nuclei, kinds)


# ------------------------------------------------------------------------------------------------- cytoplasm and matrix


def _cytoplasm(
    eosin: np.ndarray,
    haematoxylin: np.ndarray,
    labels: np.ndarray,
    fields: dict[str, np.ndarray],
    microns_per_pixel: float,
    rng: np.random.Generator,
) -> None:
    size = labels.shape[0]
    grain = noise(size, (1.3 / microns_per_pixel,) * 2, rng)
    clumps = noise(size, (6 / microns_per_pixel,) * 2, rng)

    tumour = labels == TUMOUR
    eosin[tumour] = 0.50 + 0.05 * grain[tumour] + 0.07 * clumps[tumour]
    haematoxylin[tumour] = 0.26 + 0.05 * grain[tumour] + 0.05 * clumps[tumour]
    immune = labels == IMMUNE
    eosin[immune] = 0.30 + 0.05 * grain[immune] + 0.07 * clumps[immune]
    haematoxylin[immune] = 0.16 + 0.03 * grain[immune]

    stroma = labels == STROMA
    fibre, cleft = _fibres(fields, stroma, microns_per_pixel, rng)
    eosin[stroma] = (0.52 + 0.13 * fibre) * (1 - 0.85 * cleft) + 0.02 * grain[stroma]
    haematoxylin[stroma] = 0.05 + 0.015 * fibre

    # nests shrink when fixed: here and there a clear cleft parts them from the stroma
    score = upsample(fields["tumour"], size, microns_per_pixel)
    edge = np.exp(-(((score - TUMOUR_SCORE) / 0.035) ** 2))
    edge *= np.clip(noise(size, (25 / microns_per_pixel,) * 2, rng) - 0.4, 0, 1)
    edge[(labels == FAT) | (labels == IMMUNE)] = 0
    eosin *= 1 - 0.8 * edge
    haematoxylin *= 1 - 0.8 * edge
    np.clip(eosin, 0.02, None, out=eosin)
    np.clip(haematoxylin, 0.01, None, out=haematoxylin)


def _fibres(
    fields: dict[str, np.ndarray], where: np.ndarray, microns_per_pixel: float, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """Collagen at the pixels `where`: density of fibres (unit variance) and clear clefts between bundles (0 to 1)."""
    size, period = where.shape[0], 1024
    along = upsample(fields["along"], size, microns_per_pixel)[where]
    across = upsample(fields["across"], size, microns_per_pixel)[where]
    across += 2.5 * np.sin(along / 9 + 2 * np.sin(across / 37))  # crimp
    fine = noise(period, (1.3, 22), rng) + 0.9 * noise(period, (3.5, 50), rng) + 0.7 * noise(period, (11, 90), rng)
    fine /= fine.std()
    clefts = noise(period, (2.2, 34), rng)
    position = np.stack([across, along])
    fibre = ndimage.map_coordinates(fine, position, order=1, mode="grid-wrap")
    cleft = ndimage.map_coordinates(clefts, position, order=1, mode="grid-wrap")
    return fibre, np.clip((cleft - 1.45) / 0.4, 0, 1)


def _adipocytes(
    eosin: np.ndarray, haematoxylin: np.ndarray, labels: np.ndarray, gap: np.ndarray, microns_per_pixel: float
) -> None:
    """Empty the adipocytes, leaving their walls; blurring the lumen before the cut rounds its corners."""
    fat = labels == FAT
    lumen = ndimage.gaussian_filter((fat & (gap > 1.0)).astype(np.float32), 3.0 / microns_per_pixel)
    lumen = np.clip((lumen - 0.62) * 5, 0, 1)
    wall = fat & (lumen < 1)
    eosin[fat] = 0.03
    eosin[wall] = 0.55 * (1 - lumen[wall]) + 0.03
    haematoxylin[fat] = 0.015
    haematoxylin[wall] += 0.10 * (1 - lumen[wall])


# --------------------------------------------------------------------------------------------------------------- nuclei


def _place_nuclei(
    fields: dict[str, np.ndarray],
    labels: np.ndarray,
    adipocytes: np.ndarray,
    microns_per_pixel: float,
    rng: np.random.Generator,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Centres (µm), kind (index into NUCLEI) and angle of all nuclei."""
    width_um = labels.shape[0] * microns_per_pixel

    def candidates(pitch_um: float, jitter: float) -> tuple[np.ndarray, np.ndarray]:
        xy = jittered(width_um, pitch_um, jitter, rng)
        column, row = (xy / microns_per_pixel).astype(int).T
        return xy, labels[row, column]

    xy, label = candidates(12.3, 0.24)
    tumour = xy[(label == TUMOUR) & (rng.random(len(xy)) < 0.93)]
    xy, label = candidates(7.4, 0.22)
    # lymphocytes thin out round their aggregates and a few wander through stroma and nests
    score = at(fields["immune"], xy)
    stray = np.where(label == STROMA, 0.02 + 0.5 * np.exp((score - IMMUNE_SCORE) * 6), 0.012)
    chance = np.where(label == IMMUNE, 0.90, np.where(label < FAT, stray, 0))
    immune = xy[rng.random(len(xy)) < chance]
    xy, label = candidates(20.0, 0.42)
    stroma = xy[((label == STROMA) & (rng.random(len(xy)) < 0.9)) | ((label == IMMUNE) & (rng.random(len(xy)) < 0.12))]
    walls, wall_angle = _wall_points(adipocytes, labels, microns_per_pixel, rng)

    # spindle nuclei lie along the fibres, at right angles to the gradient of `across`
    across, dx, dy = fields["across"], np.array([4.0, 0.0]), np.array([0.0, 4.0])
    gradient_x = at(across, stroma + dx) - at(across, stroma - dx)
    gradient_y = at(across, stroma + dy) - at(across, stroma - dy)
    angle = np.arctan2(gradient_x, -gradient_y) + 0.2 * rng.standard_normal(len(stroma))

    groups = [immune, tumour, np.concatenate([stroma, walls])]  # later ones give way to earlier ones
    xy = np.concatenate(groups)
    kinds = np.repeat([2, 0, 1], [len(group) for group in groups])
    angles = np.concatenate([rng.uniform(0, np.pi, len(immune) + len(tumour)), angle, wall_angle])
    keep = np.ones(len(xy), bool)
    pairs = cKDTree(xy).query_pairs(5.5, output_type="ndarray")
    keep[pairs.max(axis=1)] = False
    margin = 20 * max(microns_per_pixel, 1.0)
    keep &= ((xy > margin) & (xy < width_um - margin)).all(axis=1)
    return xy[keep], kinds[keep], angles[keep]


def _wall_points(
    adipocytes: np.ndarray, labels: np.ndarray, microns_per_pixel: float, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """Points half way between neighbouring adipocytes, with the direction of the wall between them."""
    if len(adipocytes) < 2:
        return np.empty((0, 2)), np.empty(0)
    pairs = cKDTree(adipocytes).query_pairs(1.25 * ADIPOCYTE_UM, output_type="ndarray")
    pairs = pairs[rng.random(len(pairs)) < 0.45]
    a, b = adipocytes[pairs[:, 0]], adipocytes[pairs[:, 1]]
    middle = (a + b) / 2
    inside = ((middle >= 0) & (middle < labels.shape[0] * microns_per_pixel)).all(axis=1)
    a, b, middle = a[inside], b[inside], middle[inside]
    column, row = (middle / microns_per_pixel).astype(int).T
    fat = labels[row, column] == FAT
    direction = (b - a)[fat]
    return middle[fat], np.arctan2(direction[:, 0], -direction[:, 1])


def _template(
    kind: str, angle: float, microns_per_pixel: float, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """One nucleus: how much of each pixel it covers, and its haematoxylin."""
    length, spread, roundness, stain, contrast = NUCLEI[kind]
    length = length * np.exp(spread * rng.standard_normal()) / microns_per_pixel
    width = length * rng.uniform(*roundness)
    fine = 3  # drawn three times finer, then averaged
    half = int(np.ceil(length * 0.65)) + 2
    y, x = (np.mgrid[: 2 * half * fine, : 2 * half * fine] + 0.5) / fine - half
    u, v = x * np.cos(angle) + y * np.sin(angle), -x * np.sin(angle) + y * np.cos(angle)
    waves = [(k, rng.normal(0, 0.05 / k), rng.uniform(0, 6.3)) for k in (2, 3, 4)]  # of its outline
    reach = (1 + 1 / width) * (1 + sum(abs(height) for _, height, _ in waves))  # beyond this it covers nothing
    near = (u / (length / 2)) ** 2 + (v / (width / 2)) ** 2 < 1.001 * reach**2
    u, v = u[near], v[near]
    theta = np.arctan2(v / width, u / length)
    wobble = sum(height * np.cos(k * theta + shift) for k, height, shift in waves)
    rho = np.hypot(u / (length / 2), v / (width / 2)) / (1 + wobble)
    cover = np.clip((1 - rho) * width / 2 + 0.5, 0, 1)

    chromatin = ndimage.gaussian_filter(rng.standard_normal(near.shape), fine * 0.9 / microns_per_pixel)
    chromatin = 1 + contrast * chromatin[near] / chromatin.std() * 0.6
    if kind == "tumour":  # vesicular: a dark membrane round pale chromatin, with nucleoli
        chromatin *= 0.82 + 0.35 * np.exp(-(((rho - 0.88) / 0.16) ** 2))
        for _ in range(rng.integers(0, 3)):
            x0, y0 = rng.uniform(-0.2, 0.2, 2) * length
            chromatin += 0.8 * np.exp(-((u - x0) ** 2 + (v - y0) ** 2) / (2 * (0.9 / microns_per_pixel) ** 2))
    stain = stain * np.exp(0.14 * rng.standard_normal())
    density = cover * stain * np.clip(chromatin, 0.4, 1.9)

    def shrink(a: np.ndarray) -> np.ndarray:
        whole = np.zeros(near.shape)
        whole[near] = a
        return whole.reshape(2 * half, fine, 2 * half, fine).mean(axis=(1, 3)).astype(np.float32)

    return shrink(cover), shrink(density)


def _stamp_nuclei(
    eosin: np.ndarray,
    haematoxylin: np.ndarray,
    xy: np.ndarray,
    kinds: np.ndarray,
    angles: np.ndarray,
    microns_per_pixel: float,
    rng: np.random.Generator,
) -> None:
    """Stamp pre-drawn nuclei; template i has angle pi * i / N_TEMPLATES, so an angle picks its template."""
    bank = [
        [_template(kind, np.pi * i / N_TEMPLATES, microns_per_pixel, rng) for i in range(N_TEMPLATES)]
        for kind in NUCLEI
    ]
    picks = np.round(angles / np.pi * N_TEMPLATES).astype(int) % N_TEMPLATES
    for (column, row), kind, pick in zip((xy / microns_per_pixel).astype(int).tolist(), kinds, picks, strict=True):
        cover, density = bank[kind][pick]
        half = cover.shape[0] // 2
        window = np.s_[row - half : row + half, column - half : column + half]
        np.maximum(haematoxylin[window], density, out=haematoxylin[window])
        eosin[window] *= 1 - 0.55 * cover


# ---------------------------------------------------------------------------------------------------------------- light


def _develop(
    eosin: np.ndarray, haematoxylin: np.ndarray, microns_per_pixel: float, rng: np.random.Generator
) -> np.ndarray:
    """Stain maps -> (3, height, width) uint8, with the stain, focus, light and noise of this section."""
    vectors = np.array([HAEMATOXYLIN, EOSIN]) * np.exp(rng.normal(0, 0.06, (2, 3)))
    vectors *= np.array([rng.uniform(0.82, 1.2), rng.uniform(0.8, 1.25)])[:, None]
    vectors, white = vectors.astype(np.float32), (242 + rng.uniform(-3, 3, 3)).astype(np.float32)
    blur = 0.55 / min(microns_per_pixel, 1.0)
    size, halo = len(eosin), int(np.ceil(4 * blur))
    image = np.empty((3, *eosin.shape), np.uint8)
    for start in range(0, size, 128):  # in strips that stay in the processor's cache, with a rim for the blur
        top, stop = max(start - halo, 0), min(start + 128, size)
        strip = slice(top, stop + halo)
        for channel in range(3):
            light = vectors[0, channel] * haematoxylin[strip]
            light += vectors[1, channel] * eosin[strip]
            np.exp(-light, out=light)
            light *= white[channel]
            light = ndimage.gaussian_filter(light, blur)[start - top : stop - top]
            light += 1.8 * rng.standard_normal(light.shape, dtype=np.float32) + 0.5
            image[channel, start:stop] = np.clip(light, 0, 255)
    return image
