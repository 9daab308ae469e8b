"""Several encoders as one: their features side by side."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from PIL import Image

from nh2st_scverse._threads import in_workers
from nh2st_scverse.encoders._base import Encoder, blocks_of, get, parts_of


class Joined:
    """The features of several encoders, one behind the other; each encoder is a block of its own.

    Blocks enter a model with equal total variance, however many features they have. Patches are cut for the encoder
    that wants the most pixels, and made smaller for the others.

    Parameters
    ----------
    encoders
        At least two encoders, or their names.
    device
        Where those that are named compute; an object keeps its own.

    See Also
    --------
    Statistics : colours and gradients, to stand beside the features of a network.
    get : takes a list of encoders, too.

    Examples
    --------
    >>> import nh2st_scverse as nh
    >>> encoder = nh.encoders.Joined(["efficientnet_lite0_stages", "statistics"])
    >>> encoder.blocks
    (424, 71)
    """

    def __init__(self, encoders: Sequence[str | Encoder], *, device: str = "auto") -> None:
        self.encoders = [get(encoder, device=device) for encoder in encoders]
        names = [encoder.name for encoder in self.encoders]
        if len(set(names)) < max(2, len(names)):
            raise ValueError(f"Expected at least two encoders of different names to join, found {names}.")
        lacking = [encoder.name for encoder in self.encoders if not encoder.input_size or not encoder.dim]
        if lacking:
            raise ValueError(
                f"Expected encoders that see patches, found {lacking}: features that are there already cannot be "
                "joined with others. Concatenate the arrays in one .obsm key instead."
            )
        self.name = "+".join(names)
        self.input_size = max(encoder.input_size for encoder in self.encoders)
        self.blocks = tuple(size for encoder in self.encoders for size in blocks_of(encoder))
        self.dim = sum(self.blocks)
        self.weights_hash = "+".join(encoder.weights_hash for encoder in self.encoders)

    def __call__(self, patches: np.ndarray) -> np.ndarray:
        """Encode (n, input_size, input_size, 3) uint8 into (n, dim) float32."""
        of_side = {side: _resized(patches, side) for side in {encoder.input_size for encoder in self.encoders}}
        found = [encoder(of_side[encoder.input_size]) for encoder in self.encoders]
        return np.concatenate(found, axis=1, dtype=np.float32)

    @property
    def parts(self) -> list[Encoder]:
        """All encoders. Each goes its own way over a slide that is encoded once for all of its places."""
        return [part for encoder in self.encoders for part in parts_of(encoder)]


def _resized(patches: np.ndarray, side: int) -> np.ndarray:
    """Patches (n, s, s, 3) uint8 at another side; each pixel is the mean of those it covers."""
    if patches.shape[1] == side or not len(patches):
        return patches

    return np.stack(list(in_workers(lambda patch: _smaller(patch, side), patches)))


def _smaller(image: np.ndarray, side: int) -> np.ndarray:
    if len(image) == side:
        return image
    return np.asarray(Image.fromarray(image).resize((side, side), Image.Resampling.BILINEAR))
