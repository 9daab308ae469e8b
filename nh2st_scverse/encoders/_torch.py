"""Encoders made of a torch network: frozen, or as the start of a trunk that is trained."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from copy import deepcopy
from functools import cached_property
from threading import Lock
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from nh2st_scverse._threads import in_workers
from nh2st_scverse.encoders._base import Encoder
from nh2st_scverse.encoders._openvino import Compiled, compile_where_installed

AT_ONCE = 64  # patches that pass a network together when nothing is learnt
AT_ONCE_ON_CPU = 2  # the layers of more are so large that the system clears their memory anew each time
IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))


class Trunk(nn.Module):
    """Images (n, 3, side, side) of 0 to 1 to features (n, dim) or feature maps (n, channels, h, w).

    The scaling that a network expects is part of the trunk; its subclasses implement ``features``, and ``maps`` where
    features are the means of feature maps.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, mean: Sequence[float], std: Sequence[float]) -> None:
        super().__init__()
        self.register_buffer("mean", torch.tensor(mean)[:, None, None], persistent=False)
        self.register_buffer("std", torch.tensor(std)[:, None, None], persistent=False)

    maps: Any  # scaled images to a tuple of maps (n, channels, h, w)

    def forward(self, images: Tensor, *, maps: bool = False) -> Any:
        """Scale and encode, to features or to the maps that they are means of."""
        # channels last: a sixth faster in training on a CPU, and the native order of tensor cores
        scaled = (images - self.mean) / self.std
        scaled = scaled.contiguous(memory_format=torch.channels_last)
        return self.maps(scaled) if maps else self.features(scaled)

    def features(self, scaled: Tensor) -> Tensor:
        """Encode scaled images."""
        raise NotImplementedError

    def folded(self) -> Trunk:
        """The same for a processor that learns nothing, with less to do where that is known; else itself."""
        return self


class TorchEncoder:
    """A trunk as an :class:`nh2st_scverse.encoders.Encoder`: feature maps are averaged.

    On the processor several workers encode some patches each, on one core, compiled by OpenVINO where that is
    installed. `half` computes in 16 bits where the device can: other features, under another hash.
    """

    def __init__(
        self,
        trunk: Trunk,
        *,
        name: str,
        input_size: int,
        dim: int,
        weights_hash: str,
        device: str = "auto",
        half: bool = False,
    ) -> None:
        self.name, self.input_size, self.dim, self.half = name, input_size, dim, half
        self.weights_hash = f"{weights_hash} in 16 bits" if half else weights_hash
        self.device = torch.device(pick_device(device))
        trunk = trunk.to(self.device).eval().requires_grad_(False)
        self.frozen: Trunk = trunk.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.compiled: dict[tuple[int, bool], Compiled | None] = {}  # by the side of images, and whether to maps

    @cached_property
    def _quick(self) -> Trunk:
        """The network as it encodes on the device."""
        return self.frozen if self.half or self.device.type != "cpu" else self.frozen.folded()

    def __call__(self, patches: np.ndarray) -> np.ndarray:
        """Encode (n, input_size, input_size, 3) uint8 into (n, dim) float32."""
        if not len(patches):
            return np.empty((0, self.dim), dtype=np.float32)
        given = torch.from_numpy(np.ascontiguousarray(patches))
        if self.device.type == "cpu":
            size = AT_ONCE_ON_CPU if self._compiled(self.input_size) is None else 1
            parts = list(in_workers(self._encode, given.split(size)))
        else:
            parts = [self._encode(some) for some in given.split(AT_ONCE)]
        return torch.cat(parts).float().cpu().numpy()

    def _encode(self, patches: Tensor) -> Tensor:
        """Features (n, dim) of patches (n, side, side, 3), on the device."""
        compiled = self._compiled(self.input_size) if self.device.type == "cpu" else None
        if compiled is not None:
            return _mean(compiled(patches.numpy())[0])
        network, images = self._quick, _to(patches, self.device)
        with torch.inference_mode(), _precision(self.device.type, half=self.half):
            return _mean(network(as_images(images)))

    @property
    def n_maps(self) -> int:
        """Channels of the maps of the trunk, where it gives maps."""
        return self.dim if hasattr(self.frozen, "maps") else 0

    def maps(self, tile: np.ndarray) -> list[Any]:
        """Maps (h, w, C) over a tile (side, side, 3) uint8: their means over a window are its features.

        Arrays, or tensors on the GPU.
        """
        on_cpu = self.device.type == "cpu"
        compiled = self._compiled(len(tile), maps=True) if on_cpu else None
        if compiled is not None:
            found = compiled(tile[None])
        else:
            network, image = self._quick, _to(torch.from_numpy(np.array(tile))[None], self.device)
            with torch.inference_mode(), _precision(self.device.type, half=self.half):
                found = [one.float() for one in network(as_images(image), maps=True)]
        laid = [one[0].permute(1, 2, 0) for one in found]
        return [one.numpy() for one in laid] if on_cpu else laid

    def pooled(self, means: np.ndarray) -> np.ndarray:
        """Features (n, dim) float32 of the means of the maps over windows."""
        return means.astype(np.float32)

    def _compiled(self, side: int, *, maps: bool = False) -> Compiled | None:
        key = side, maps
        with _compiling:
            if key not in self.compiled:
                self.compiled[key] = compile_where_installed(_FromPixels(self.frozen, maps), side, half=self.half)
            return self.compiled[key]

    def __getstate__(self) -> dict[str, Any]:
        """Without what is compiled for this process."""
        return {name: value for name, value in vars(self).items() if name != "_quick"} | {"compiled": {}}

    def trunk(self) -> Trunk:
        """A copy of the network on the CPU, to be trained."""
        copy: Trunk = deepcopy(self.frozen).cpu()
        return copy.requires_grad_(True)


class _FromPixels(nn.Module):
    """A trunk that takes patches (n, side, side, 3) uint8, to features or to maps."""

    def __init__(self, trunk: Trunk, maps: bool) -> None:
        super().__init__()
        self.trunk, self.to_maps = trunk, maps

    def forward(self, patches: Tensor) -> Tensor | tuple[Tensor, ...]:
        images = as_images(patches)
        found: Tensor = self.trunk(images, maps=True) if self.to_maps else self.trunk(images)
        return found


def _mean(found: Tensor) -> Tensor:
    """Features (n, dim) of features, or of feature maps (n, dim, h, w)."""
    return found.mean(dim=(2, 3)) if found.dim() == 4 else found


def _to(patches: Tensor, device: torch.device) -> Tensor:
    """Patches on a device; a GPU fetches them while the processor goes on."""
    return patches.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else patches.to(device)


_compiling = Lock()
_gpu = Lock()  # what cuDNN may round is set for the whole process


@contextmanager
def _precision(device: str, *, half: bool) -> Iterator[None]:
    """Compute in 16 bits, or in all 32: some GPUs would round to 19 of them."""
    with _gpu if device == "cuda" else nullcontext(), torch.autocast(device, torch.bfloat16, enabled=half):
        before = torch.backends.cudnn.allow_tf32
        torch.backends.cudnn.allow_tf32 = half
        try:
            yield
        finally:
            torch.backends.cudnn.allow_tf32 = before


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
