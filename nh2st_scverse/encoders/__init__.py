"""Image encoders: patches in, features out.

An encoder has a `name`, the side of its `input_size` in pixels, the length `dim` of its features and the
`weights_hash`, and is called with a batch of uint8 patches (n, side, side, 3) to give features (n, dim).
"""

from __future__ import annotations

from nh2st_scverse.encoders._base import Encoder, get
from nh2st_scverse.encoders._efficientnet import EfficientNetLite0
from nh2st_scverse.encoders._joined import Joined
from nh2st_scverse.encoders._precomputed import Precomputed
from nh2st_scverse.encoders._resnet import ResNet18
from nh2st_scverse.encoders._statistics import Statistics
from nh2st_scverse.encoders._texture import Texture
from nh2st_scverse.encoders._timm import Timm

__all__ = ["EfficientNetLite0", "Encoder", "Joined", "Precomputed", "ResNet18", "Statistics", "Texture", "Timm", "get"]


def __dir__() -> list[str]:
    return sorted(__all__)
