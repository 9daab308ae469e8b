"""What an encoder is, and how one is named."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import Protocol, runtime_checkable

import numpy as np

from nh2st_scverse.encoders._precomputed import PREFIX, Precomputed

NAMED = {
    "efficientnet_lite0": ("EfficientNetLite0", {}),
    "efficientnet_lite0_stages": ("EfficientNetLite0", {"head": False}),
    "resnet18": ("ResNet18", {}),
    "statistics": ("Statistics", {}),
    "texture": ("Texture", {}),
}
DEFAULT = "efficientnet_lite0_stages+statistics+texture"


@runtime_checkable
class Encoder(Protocol):
    """Patches in, features out. Any object of this shape can be passed as ``encoder=``.

    One that also has ``trunk()``, a torch module that maps images (n, 3, side, side) of 0 to 1 to features (n, dim) or
    feature maps (n, channels, h, w), can be trained with the network (``fine_tune=True``). One whose features are of
    several kinds can tell their numbers as ``blocks``, a tuple that sums to `dim`: each kind then enters a model with
    the same total variance. One that also has ``n_maps``, a number, can encode a slide once for all of its
    places: ``maps(tile)`` gives maps (h, w, C) over a tile (side, side, 3) uint8 that is several times as wide as a
    patch, a list whose C sum to `n_maps` (arrays, or tensors where they
    are computed on a GPU), and ``pooled(means)`` makes features (n, dim) of their means (n, n_maps) over
    the windows of places. For one without, patches on a lattice over the tissue stand for those of all places
    between them.

    See Also
    --------
    Precomputed : features that are there already.
    Timm : networks that are there already.

    Examples
    --------
    >>> import numpy as np, nh2st_scverse as nh
    >>> class MeanColour:
    ...     name, input_size, dim, weights_hash = "mean_colour", 32, 3, "none"
    ...     def __call__(self, patches):
    ...         return patches.mean(axis=(1, 2), dtype=np.float32)
    >>> isinstance(MeanColour(), nh.encoders.Encoder)
    True
    """

    name: str
    input_size: int
    dim: int
    weights_hash: str

    def __call__(self, patches: np.ndarray) -> np.ndarray:
        """Encode (n, input_size, input_size, 3) uint8 into (n, dim) float32."""
        ...


def get(encoder: str | Encoder | Sequence[str | Encoder] = DEFAULT, *, device: str = "auto") -> Encoder:
    """Return the encoder of a name, several encoders joined, or the encoder itself.

    Parameters
    ----------
    encoder
        ``"efficientnet_lite0_stages+statistics+texture"``, the offline default; ``"efficientnet_lite0"``, its network
        with the last layer; ``"statistics"``; ``"texture"``; ``"resnet18"``, which is to be trained;
        ``"precomputed:<key>"``; or an object with the interface of :class:`Encoder`. A list, or
        names with ``+`` between them, gives their features side by side.

    device
        Where encoders that are named compute; an object keeps its own.

    Returns
    -------
    The encoder.

    Raises
    ------
    ValueError
        Unknown name; encoders that cannot be joined.
    TypeError
        An object that lacks part of the interface.

    See Also
    --------
    Encoder : what an encoder is.
    Joined : several encoders as one.

    Examples
    --------
    >>> import nh2st_scverse as nh
    >>> nh.encoders.get("efficientnet_lite0").dim, nh.encoders.get(["resnet18", "statistics"]).dim
    (1704, 583)
    """
    if isinstance(encoder, str):
        if encoder.startswith(PREFIX):
            return Precomputed(encoder.removeprefix(PREFIX))
        if not set(encoder.split("+")) <= set(NAMED):
            raise ValueError(
                f"Expected encoder= to be one of {list(NAMED)}, several of them joined by '+', or an encoder object, "
                f"found {encoder!r}. Wrap your own network as nh.encoders.Encoder describes."
            )
        return _named(encoder, device)
    if isinstance(encoder, list | tuple):
        from nh2st_scverse.encoders._joined import Joined

        return get(encoder[0], device=device) if len(encoder) == 1 else Joined(encoder, device=device)
    if isinstance(encoder, type):
        raise TypeError(f"Expected an encoder, found the class {encoder.__name__}: pass {encoder.__name__}(...).")
    lacking = [name for name in ("name", "input_size", "dim", "weights_hash") if not hasattr(encoder, name)]
    if lacking or not callable(encoder):
        raise TypeError(
            f"Expected an encoder with name, input_size, dim, weights_hash and a call, found {type(encoder).__name__} "
            f"without {lacking or ['__call__']}. See nh.encoders.Encoder."
        )
    return encoder


def has_maps(encoder: Encoder) -> bool:
    """Whether an encoder can give maps of tiles, too."""
    return bool(getattr(encoder, "n_maps", 0))


def on_gpu(encoder: Encoder) -> bool:
    """Whether an encoder computes on a GPU."""
    return str(getattr(encoder, "device", "cpu")).startswith("cuda")


def parts_of(encoder: Encoder) -> list[Encoder]:
    """The encoders that are joined in one, in the order of their features; else itself."""
    return list(getattr(encoder, "parts", None) or [encoder])


def blocks_of(encoder: Encoder) -> tuple[int, ...]:
    """Numbers of the features of each kind: they sum to ``encoder.dim``."""
    return tuple(getattr(encoder, "blocks", None) or (encoder.dim,))


def check_shape(encoder: Encoder, found: np.ndarray, n: int) -> None:
    """What an encoder says of n patches is (n, dim)."""
    if found.shape != (n, encoder.dim):
        raise ValueError(
            f"Expected encoder {encoder.name!r} to give features of shape {(n, encoder.dim)}, found {found.shape}. "
            "Does its dim say what it returns?"
        )


@lru_cache(maxsize=4)
def _named(name: str, device: str) -> Encoder:
    from nh2st_scverse import encoders

    if "+" in name:
        return encoders.Joined(name.split("+"), device=device)
    kind, options = NAMED[name]
    on = {} if kind in ("Statistics", "Texture") else {"device": device}  # these are for the processor
    made: Encoder = getattr(encoders, kind)(**options, **on)
    return made
