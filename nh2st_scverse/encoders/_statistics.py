"""Colour and texture of a patch as plain statistics: what a network trained on photographs does not look at."""

from __future__ import annotations

import numpy as np
from skimage.color import hed_from_rgb

from nh2st_scverse._threads import in_workers

SIDE = 80  # px of a patch: finer ones tell no more
AT_ONCE = 8  # patches: their pixels stay in the cache of a processor
PERCENTILES = (5, 25, 50, 75, 95)
CORRELATED = ((0, 1), (0, 2), (1, 2), (3, 4))  # channels: the colours with each other, haematoxylin with eosin
N_SCALES = 4  # of the gradients: each has half the resolution of the one before
GLASS = 220  # of 255: pixels that are brighter in all colours are no tissue
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
    weights_hash = "1"  # of the definition: another one gives other features

    def __call__(self, patches: np.ndarray) -> np.ndarray:
        """Describe (n, 80, 80, 3) uint8 by (n, 71) float32."""
        some = (patches[i : i + AT_ONCE] for i in range(0, len(patches), AT_ONCE))  # numpy lets other threads run
        return np.concatenate([np.empty((0, self.dim), dtype=np.float32), *in_workers(_describe, some)])


def _describe(patches: np.ndarray) -> np.ndarray:
    """Statistics (n, 71) of patches (n, side, side, 3)."""
    density = DENSITY[patches]
    channels = np.empty((6, *patches.shape[:3]), dtype=np.float32)
    channels[:3] = np.moveaxis(patches, -1, 0) / np.float32(255)
    channels[3:5] = np.moveaxis(density @ STAINS, -1, 0)
    channels[5] = density.mean(axis=-1)

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
    glass = (patches > GLASS).all(axis=-1).mean(axis=(1, 2))

    parts = [mean, spread, *np.moveaxis(percentiles, -1, 0), np.stack([*pairs, glass])]
    images = np.stack([channels[:3].mean(axis=0), channels[3]])  # (2, n, side, side) brightness, haematoxylin
    for _ in range(N_SCALES):
        parts += _gradients(images)
        images = _halved(images)
    return np.concatenate(parts).T.astype(np.float32)


def _gradients(images: np.ndarray) -> list[np.ndarray]:
    """Mean and spread of the gradient, and mean size of the Laplacian, of images (2, n, side, side): (2, n) each."""
    inner = images[..., 1:-1, 1:-1]
    left, right = images[..., 1:-1, :-2], images[..., 1:-1, 2:]
    above, below = images[..., :-2, 1:-1], images[..., 2:, 1:-1]
    gradient = np.sqrt(np.square(right - left) + np.square(below - above)) / 2
    laplacian = np.abs(left + right + above + below - 4 * inner)
    return [gradient.mean(axis=(2, 3)), gradient.std(axis=(2, 3)), laplacian.mean(axis=(2, 3))]


def _halved(images: np.ndarray) -> np.ndarray:
    """Images (..., side, side) at half the resolution."""
    return (images[..., ::2, ::2] + images[..., 1::2, ::2] + images[..., ::2, 1::2] + images[..., 1::2, 1::2]) / 4
