"""Stain normalisation: sections take the colours of the training sections, by squidpy's methods.

A stain normalisation maps every colour to another one; which, depends on the section as a whole. The map of all 256^3
colours is found once for a section, on a thumbnail, and looked up for every patch at any resolution.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Any

import numpy as np
from spatialdata import SpatialData
from spatialdata.models import Image2DModel, Labels2DModel
from xarray import Dataset, DataTree

from nh2st_scverse.data.geometry import Geometry
from nh2st_scverse.data.patches import thumbnail
from nh2st_scverse.data.pixels import tissue_of
from nh2st_scverse.data.section import Section
from nh2st_scverse.encoders import Encoder
from nh2st_scverse.encoders._base import parts_of

METHODS = ("none", "reinhard", "macenko", "vahadane")
SIDE = 4096  # px of an image that shows all 256^3 colours once


class Restained:
    """An encoder that sees the patches of a section in other colours."""

    def __init__(self, encoder: Encoder, colours: np.ndarray) -> None:
        self.encoder, self.colours = encoder, colours
        self.name, self.input_size, self.dim = encoder.name, encoder.input_size, encoder.dim
        self.n_maps = getattr(encoder, "n_maps", 0)
        self.weights_hash = encoder.weights_hash + hashlib.sha256(colours.tobytes()).hexdigest()[:16]

    def __call__(self, patches: np.ndarray) -> np.ndarray:
        """Encode patches in their new colours."""
        return self.encoder(recolour(patches, self.colours))

    @property
    def parts(self) -> list[Encoder]:
        """Each of those that are joined in the encoder, in the new colours."""
        return [Restained(part, self.colours) for part in parts_of(self.encoder)]

    def maps(self, tile: np.ndarray) -> list[np.ndarray]:
        """Maps over a tile in its new colours."""
        inner: Any = self.encoder
        return list(inner.maps(recolour(tile, self.colours)))

    def pooled(self, means: np.ndarray) -> np.ndarray:
        """Features (n, dim) of the means of the maps over windows."""
        inner: Any = self.encoder
        return np.asarray(inner.pooled(means))


def recolour(patches: np.ndarray, colours: np.ndarray) -> np.ndarray:
    """Give every pixel of (..., 3) uint8 its colour in the map (256, 256, 256, 3)."""
    return colours[patches[..., 0], patches[..., 1], patches[..., 2]]


def fit_reference(sections: Sequence[Section], method: str) -> dict[str, Any]:
    """The stain of some sections, their mean: plain values, for JSON.

    Raises
    ------
    ValueError
        The method cannot tell the stains of a section apart.
    """
    import squidpy.experimental.im as sqim

    fitted = []
    for section in sections:
        pictures = _pictures(section.geometry)
        try:
            one = sqim.fit_stain_reference(pictures, "thumbnail", method=method, tissue_mask_key="tissue")
        except RuntimeError as error:  # squidpy's StainFittingError
            raise _unfit(method, section, error) from error
        fitted.append(one)
    names = ("stain_matrix", "mu", "sigma", "white_point")
    mean = {k: np.mean([getattr(f, k) for f in fitted], axis=0) for k in names if getattr(fitted[0], k) is not None}
    if "stain_matrix" in mean:
        mean["stain_matrix"] /= np.linalg.norm(mean["stain_matrix"], axis=0)
    return {"method": method} | {k: v.tolist() for k, v in mean.items()}


def colour_map(section: Section, reference: dict[str, Any]) -> np.ndarray:
    """What becomes of every colour of a section: (256, 256, 256, 3) uint8.

    Raises
    ------
    ValueError
        The method cannot tell the stains of the section apart.
    """
    import squidpy.experimental.im as sqim
    from squidpy.experimental.im import StainReference

    values = {k: np.array(v) for k, v in reference.items() if k != "method"}
    try:
        found = sqim.normalize_stains(
            _with_colours(_pictures(section.geometry)),
            "colours",
            StainReference(method=reference["method"], **values),
            inplace=False,
            tissue_mask_key="tissue",
            preserve_background=False,
        )
    except RuntimeError as error:
        raise _unfit(reference["method"], section, error) from error
    return found.transpose("y", "x", "c").to_numpy().reshape(256, 256, 256, 3)


def _pictures(geometry: Geometry) -> SpatialData:
    """A thumbnail with its tissue."""
    picture = thumbnail(geometry)[0]
    small = Image2DModel.parse(picture.transpose(2, 0, 1), dims=("c", "y", "x"))
    tissue = Labels2DModel.parse(tissue_of(picture).astype(np.uint8), dims=("y", "x"))
    return SpatialData(images={"thumbnail": small}, labels={"tissue": tissue})


def _with_colours(pictures: SpatialData) -> SpatialData:
    """All colours beside them, as the finest level of an image whose coarsest is the thumbnail."""
    each = np.arange(256, dtype=np.uint8)
    every = np.stack(np.meshgrid(each, each, each, indexing="ij")).reshape(3, SIDE, SIDE)
    levels = {"scale0": Image2DModel.parse(every, dims="cyx"), "scale1": pictures["thumbnail"]}
    tree = DataTree.from_dict({name: Dataset({"image": level}) for name, level in levels.items()})
    return SpatialData(images={**pictures.images, "colours": tree}, labels=dict(pictures.labels))


def _unfit(method: str, section: Section, error: Exception) -> ValueError:
    return ValueError(
        f"stain={method!r} cannot be fitted to section {section.name!r}: {error} Use stain='reinhard' or 'none'."
    )
