"""An encoder that does not mind which way up a patch is."""

from __future__ import annotations

from typing import Any

import numpy as np

from nh2st_scverse.encoders._base import Encoder, parts_of


class Turned:
    """An encoder that sees each patch in several orientations, and gives the mean of its features."""

    def __init__(self, encoder: Encoder, orientations: int) -> None:
        self.encoder, self.orientations = encoder, orientations
        self.name, self.input_size, self.dim = encoder.name, encoder.input_size, encoder.dim
        self.weights_hash = f"{encoder.weights_hash} x {orientations}"
        self.n_maps = getattr(encoder, "n_maps", 0)

    def __call__(self, patches: np.ndarray) -> np.ndarray:
        """Encode (n, side, side, 3) into (n, dim) as many times: quarter turns, after four of them mirrored."""
        views = (np.rot90(patches if i < 4 else patches[:, :, ::-1], i, axes=(1, 2)) for i in range(self.orientations))
        found = [self.encoder(np.ascontiguousarray(view)) for view in views]
        return np.asarray(np.mean(found, axis=0, dtype=np.float32))

    @property
    def parts(self) -> list[Encoder]:
        """Each of those that are joined in the encoder, turned."""
        return [Turned(part, self.orientations) for part in parts_of(self.encoder)]

    def maps(self, tile: np.ndarray) -> list[np.ndarray]:
        """The mean of the maps over a tile (side, side, 3) that it has in each orientation, turned back."""
        inner: Any = self.encoder
        total: list[Any] = []
        for i in range(self.orientations):
            view = np.ascontiguousarray(np.rot90(tile if i < 4 else tile[:, ::-1], i))
            back = [np.rot90(one, -i) for one in inner.maps(view)]
            back = [one if i < 4 else one[:, ::-1] for one in back]
            total = [a + b for a, b in zip(total, back, strict=True)] if total else back
        return [one / self.orientations for one in total]

    def pooled(self, means: np.ndarray) -> np.ndarray:
        """Features (n, dim) of the means of the maps over windows."""
        inner: Any = self.encoder
        found: np.ndarray = inner.pooled(means)
        return found
