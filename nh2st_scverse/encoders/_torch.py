"""Encoders made of a torch network: frozen, or as the start of a trunk that is trained."""

from __future__ import annotations

from collections.abc import Sequence
from copy import deepcopy

import numpy as np
import torch
from torch import Tensor, nn

from nh2st_scverse.encoders._base import Encoder

AT_ONCE = 64  # patches that pass a network together when nothing is learnt
AT_ONCE_ON_CPU = 2  # the layers of more are so large that the system clears their memory anew each time
IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))


class Trunk(nn.Module):
    """Images (n, 3, side, side) of 0 to 1 to features (n, dim) or feature maps (n, channels, h, w).

    The scaling that a network expects is part of the trunk; its subclasses implement ``features``.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, mean: Sequence[float], std: Sequence[float]) -> None:
        super().__init__()
        self.register_buffer("mean", torch.tensor(mean)[:, None, None], persistent=False)
        self.register_buffer("std", torch.tensor(std)[:, None, None], persistent=False)

    def forward(self, images: Tensor) -> Tensor:
        """Scale and encode."""
        # channels last: a sixth faster in training on a CPU, and the native order of tensor cores
        scaled = (images - self.mean) / self.std
        return self.features(scaled.contiguous(memory_format=torch.channels_last))

    def features(self, scaled: Tensor) -> Tensor:
        """Encode scaled images."""
        raise NotImplementedError


class TorchEncoder:
    """A trunk as an :class:`nh2st_scverse.encoders.Encoder`: feature maps are averaged."""

    def __init__(
        self, trunk: Trunk, *, name: str, input_size: int, dim: int, weights_hash: str, device: str = "auto"
    ) -> None:
        self.name, self.input_size, self.dim, self.weights_hash = name, input_size, dim, weights_hash
        self.device = torch.device(pick_device(device))
        trunk = trunk.to(self.device).eval().requires_grad_(False)
        self.frozen: Trunk = trunk.to(memory_format=torch.channels_last)  # type: ignore[call-overload]

    def __call__(self, patches: np.ndarray) -> np.ndarray:
        """Encode (n, input_size, input_size, 3) uint8 into (n, dim) float32."""
        given = torch.from_numpy(np.ascontiguousarray(patches))
        parts = []
        with torch.inference_mode():
            for some in in_parts(given, self.device.type):
                found = self.frozen(as_images(some.to(self.device)))
                parts.append((found.mean(dim=(2, 3)) if found.dim() == 4 else found).float().cpu())
        return torch.cat(parts).numpy()

    def trunk(self) -> Trunk:
        """A copy of the network on the CPU, to be trained."""
        copy: Trunk = deepcopy(self.frozen).cpu()
        return copy.requires_grad_(True)


def trunk_of(encoder: Encoder) -> nn.Module:
    """The layers of an encoder, to be trained."""
    if not hasattr(encoder, "trunk"):
        raise TypeError(
            f"Expected an encoder that can be trained, found {encoder.name!r} without trunk(). Available: "
            "'efficientnet_lite0', 'resnet18', or add trunk() as nh.encoders.Encoder describes."
        )
    trunk: nn.Module = encoder.trunk()
    return trunk


def as_images(patches: Tensor) -> Tensor:
    """Patches (n, side, side, 3) uint8 to images (n, 3, side, side) of 0 to 1."""
    return patches.permute(0, 3, 1, 2).float() / 255


def in_parts(items: Tensor, device: str) -> tuple[Tensor, ...]:
    """Patches, or their positions, in the parts that a device encodes best when nothing is learnt."""
    return items.split(AT_ONCE_ON_CPU if device == "cpu" else AT_ONCE)


def pick_device(device: str) -> str:
    """Resolve ``"auto"`` to the GPU when there is one."""
    return ("cuda" if torch.cuda.is_available() else "cpu") if device == "auto" else device
