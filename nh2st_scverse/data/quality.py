"""Focus and stain of an image, from a few tiles of its tissue."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import lru_cache

import numpy as np
from spatialdata import SpatialData
from spatialdata.models import Image2DModel

from nh2st_scverse._logging import quiet
from nh2st_scverse.data.geometry import Geometry, apply_affine
from nh2st_scverse.data.patches import iter_patches
from nh2st_scverse.data.tissue import Tissue

N_TILES = 24
TILE_UM = 128.0
METRICS = ("tenengrad", "variance", "hematoxylin_mean", "eosin_mean", "brightness_mean")
FINEST = 1.0  # µm per pixel: focus is told at this resolution, or at that of a coarser image


@dataclass(frozen=True)
class Quality:
    """Medians over tiles of tissue."""

    detail_um: float  # size of the finest details; infinite where all is of one colour
    pixel_um: float  # of the picture that it was told from
    stain: float  # haematoxylin and eosin, in units of optical density
    brightness: float  # 0 to 255


def image_quality(geometry: Geometry, places: np.ndarray) -> Quality:
    """Measure focus and stain of an image by ``squidpy.experimental.im.qc_image``.

    squidpy measures tiles of a whole pyramid level: coarse levels are sharp whatever the focus was, and the finest
    takes minutes on a slide. So it gets a picture that is put together of some tiles, cut where tissue is.

    The finest details come from the energy of the gradients (tenengrad) over the variance of the pixels, which is the
    inverse square of a length. It does not depend on how strong the stain is.

    Parameters
    ----------
    geometry
        An image.
    places
        (n, 2) x, y of places on tissue, in pixels of the finest level.
    """
    resolution = max(FINEST, geometry.microns_per_pixel)
    side = round(TILE_UM / resolution)
    some = places[np.unique(np.linspace(0, len(places) - 1, N_TILES).astype(int))]
    back = np.linalg.inv(geometry.levels[0].from_shapes)
    at = replace(geometry, coordinates=apply_affine(back, some), instances=np.arange(len(some)))
    cut = iter_patches(at, np.arange(len(some)), size_um=side * resolution, size_px=side)
    strip = np.concatenate([tile for _, tiles in cut for tile in tiles], axis=1)  # (side, n * side, 3)

    gradient, variance, haematoxylin, eosin, brightness = _metrics(strip.tobytes(), side)
    seen = np.minimum(gradient, variance) > 1e-3  # else of one colour, but for rounding
    length = np.full(len(seen), np.inf)
    length[seen] = 2 * resolution * np.sqrt(variance[seen] / gradient[seen])  # Sobel's differences are over two pixels
    return Quality(
        detail_um=float(np.median(length)),
        pixel_um=float(resolution),
        stain=float(np.median(haematoxylin + eosin)),
        brightness=float(np.median(brightness)),
    )


@lru_cache(maxsize=16)  # of about a megabyte each: check, training and prediction look at the same sections in turn
def _metrics(strip: bytes, side: int) -> list[np.ndarray]:
    """Metrics (n,) of tiles side by side, a strip (side, n * side, 3) of bytes: METRICS, each of all tiles."""
    pixels = np.frombuffer(strip, np.uint8).reshape(side, -1, 3)
    sdata = SpatialData(images={"tiles": Image2DModel.parse(pixels.transpose(2, 0, 1), dims=("c", "y", "x"))})
    with quiet():
        from squidpy.experimental.im import QCMetric, qc_image

        qc_image(
            sdata,
            "tiles",
            scale="scale0",
            metrics=[QCMetric(name) for name in METRICS],
            tile_size=(side, side),
            detect_outliers=False,
            detect_tissue=False,
            progress=False,
            preview=False,
        )
    measured = sdata.tables["qc_img_tiles"].to_df()
    return [measured[f"qc_{name}"].to_numpy() for name in METRICS]


def places_on(tissue: Tissue) -> np.ndarray:
    """Some places (n, 2) on tissue that was detected, in pixels of the finest level."""
    assert tissue.mask is not None
    y, x = np.nonzero(tissue.mask)
    return apply_affine(np.linalg.inv(tissue.to_mask), np.stack([x + 0.5, y + 0.5], axis=1))
