"""Texture of a patch in numbers: which colours meet, and how brightness and stain vary from fine to coarse."""

from __future__ import annotations

import numpy as np
from scipy.fft import rfft2

from nh2st_scverse.encoders._statistics import DENSITY, SIDE, STAINS, describe, halved

N_BINS = 8  # of density, and of hue
MOST_DENSE = 1.6  # optical density of the last bin
N_RINGS = 12  # of the spectrum, half an octave each
N_BANDS = 4  # of the blobs, an octave each
N_PATTERNS = 10  # local binary patterns: none to eight brighter neighbours in a row, and all others
N_SCALES = 3  # of the patterns
BRIGHTER = 0.01  # of a neighbour that counts: less is noise
PERCENTILES = (5, 25, 50, 75, 95, 99)
AROUND = ((-1, -1), (-1, 0), (-1, 1), (0, 1), (1, 1), (1, 0), (1, -1), (0, -1))  # a turn


def _patterns() -> np.ndarray:
    """Pattern of each of 256 codes: how many neighbours are brighter where they lie in a row, else the last."""
    bits = (np.arange(256)[:, None] >> np.arange(8)) & 1
    in_a_row = (bits != np.roll(bits, 1, axis=1)).sum(axis=1) <= 2
    return np.where(in_a_row, bits.sum(axis=1), N_PATTERNS - 1)


def _rings() -> np.ndarray:
    """Ring (side * (side // 2 + 1), N_RINGS) of each frequency of :func:`rfft2`, 0 or 1."""
    down, across = np.fft.fftfreq(SIDE)[:, None] * SIDE, np.fft.rfftfreq(SIDE)[None] * SIDE
    ring = np.clip(2 * np.log2(np.maximum(np.hypot(down, across), 1)), 0, N_RINGS - 1).astype(int)
    return (ring.ravel()[:, None] == np.arange(N_RINGS)).astype(np.float32)


PATTERNS = (_patterns()[:, None] == np.arange(N_PATTERNS)).astype(np.float32)  # (256, N_PATTERNS) of codes, 0 or 1
RINGS = _rings()
WINDOW = np.outer(np.hanning(SIDE), np.hanning(SIDE)).astype(np.float32)


class Texture:
    """Histograms of colours, and how brightness and stain vary, of a patch; needs no weights.

    Histograms, as square roots of shares: of optical density by hue (64), and of red, green and blue, four bins each
    (64). Of brightness and of haematoxylin: the power of 12 rings of the spectrum (24); of what differs from its
    surroundings at four scales, six percentiles, spread and skewness (64); uniform local binary patterns at three
    scales (Ojala et al. 2002; 60). The two kinds enter a model with the same total variance.

    See Also
    --------
    Statistics : colours and gradients.
    Joined : several descriptions side by side.

    Examples
    --------
    >>> import numpy as np, nh2st_scverse as nh
    >>> encoder = nh.encoders.Texture()
    >>> encoder(np.zeros((2, 80, 80, 3), dtype=np.uint8)).shape
    (2, 276)
    """

    name = "texture"
    input_size = SIDE
    blocks = (N_BINS**2 + 4**3, 2 * (N_RINGS + N_BANDS * (len(PERCENTILES) + 2) + N_SCALES * N_PATTERNS))
    dim = sum(blocks)
    weights_hash = "1"  # of the definition: another one gives other features

    def __call__(self, patches: np.ndarray) -> np.ndarray:
        """Describe (n, 80, 80, 3) uint8 by (n, 276) float32."""
        return describe(_describe, patches, self.dim)


def _describe(patches: np.ndarray) -> np.ndarray:
    """Texture (n, 276) of patches (n, side, side, 3)."""
    density = DENSITY[patches]
    red, green, blue = np.moveaxis(density, -1, 0)
    total = red + green + blue  # several times as fast as a sum over the last axis
    dense = np.minimum(total * (N_BINS / 3 / MOST_DENSE), N_BINS - 1).astype(np.uint8)
    hue = np.clip(N_BINS * ((red - blue) / (total + 0.1)) + N_BINS / 2, 0, N_BINS - 1).astype(np.uint8)
    parts = [np.sqrt(_shares(N_BINS * dense + hue, N_BINS**2))]
    red, green, blue = np.moveaxis(patches >> 6, -1, 0)
    parts.append(np.sqrt(_shares(16 * red + 4 * green + blue, 64)))
    red, green, blue = np.moveaxis(patches, -1, 0).astype(np.float32)
    for image in ((red + green + blue) / np.float32(3) / 255, np.ascontiguousarray((density @ STAINS)[..., 0])):
        spectrum = rfft2((image - image.mean(axis=(1, 2), keepdims=True)) * WINDOW, axes=(1, 2))
        power = np.square(np.abs(spectrum)).reshape(len(image), -1) @ RINGS
        parts.append(np.log(power + 1e-3))
        for scale in range(N_BANDS):
            parts.append(_blobs(image))
            if scale < N_SCALES:
                parts.append(_shares(_codes(image), 256) @ PATTERNS)
            image = halved(image)
    return np.concatenate(parts, axis=1).astype(np.float32)


def _shares(which: np.ndarray, n: int) -> np.ndarray:
    """Share (patches, n) of the pixels of each patch in each of n bins."""
    flat = which.reshape(len(which), -1)
    return np.stack([np.bincount(one, minlength=n) for one in flat]) / flat.shape[1]


def _codes(images: np.ndarray) -> np.ndarray:
    """Which neighbours of each inner pixel of images (n, side, side) are brighter, a bit for each."""
    centre = images[:, 1:-1, 1:-1] + np.float32(BRIGHTER)
    code = np.zeros(centre.shape, dtype=np.uint8)
    height, width = images.shape[1:]
    for bit, (down, right) in enumerate(AROUND):
        neighbour = images[:, 1 + down : height - 1 + down, 1 + right : width - 1 + right]
        code |= (neighbour > centre).view(np.uint8) << np.uint8(bit)
    return code


def _blobs(images: np.ndarray) -> np.ndarray:
    """How images (n, side, side) differ from their surroundings: percentiles, spread, skewness (n, 8)."""
    rows = images[:, :-2] + images[:, 1:-1] + images[:, 2:]
    around = (rows[:, :, :-2] + rows[:, :, 1:-1] + rows[:, :, 2:]) / 9
    found = np.sort((images[:, 1:-1, 1:-1] - around).reshape(len(images), -1), axis=1)
    ranks = np.rint(np.array(PERCENTILES) / 100 * (found.shape[1] - 1)).astype(int)
    spread = found.std(axis=1, keepdims=True)
    scaled = found / (spread + 1e-6)
    skewness = (scaled * scaled * scaled).mean(axis=1, keepdims=True)  # a power of 3 takes many times as long
    return np.concatenate([found[:, ranks], spread, skewness], axis=1)
