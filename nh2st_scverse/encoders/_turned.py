"""An encoder that does not mind which way up a patch is."""

from __future__ import annotations

import numpy as np

from nh2st_scverse.encoders._base import Encoder


class Turned:
    """An encoder that sees each patch in several orientations, and gives the mean of its features."""

    def __init__(self, encoder: Encoder, orientations: int) -> None:
        self.encoder, self.orientations = encoder, orientations
        self.name, self.input_size, self.dim = encoder.name, encoder.input_size, encoder.dim
        self.weights_hash = f"{encoder.weights_hash} x {orientations}"

    def __call__(self, patches: np.ndarray) -> np.ndarray:
        """Encode (n, side, side, 3) into (n, dim) as many times: quarter turns, after four of them mirrored."""
        views = (np.rot90(patches if i < 4 else patches[:, :, ::-1], i, axes=(1, 2)) for i in range(self.orientations))
        found = [self.encoder(np.ascontiguousarray(view)) for view in views]
        return np.asarray(np.mean(found, axis=0, dtype=np.float32))
