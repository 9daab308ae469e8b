"""The encoder of preset ``paper``: ResNet18, with self-supervised pathology weights if there are any."""

from __future__ import annotations

import hashlib
import pickle
import pickletools
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import IO, Any

import numpy as np
import timm
import torch
from torch import Tensor, nn

from nh2st_scverse.encoders._torch import IMAGENET, TorchEncoder, Trunk

PREFIX = "model.resnet."  # of the keys in the public checkpoint tenpercent_resnet18.ckpt


class ResNet18(TorchEncoder):
    """ResNet18, with the weights of the self-supervised pathology ResNet18 (Ciga et al. 2022) or at random.

    As a trunk that is trained it gives feature maps (n, 512, 7, 7), as the paper uses them; as a frozen encoder their
    mean.

    Parameters
    ----------
    checkpoint
        The public ``tenpercent_resnet18.ckpt``, a Lightning checkpoint with keys ``model.resnet.*``. Reading it runs no
        code of the file: only tensors are taken, whatever else it holds. None: random weights, to be trained.
    device
        ``"auto"`` takes a GPU when there is one.

    Raises
    ------
    FileNotFoundError
        No such file.
    ValueError
        The file is not such a checkpoint.

    See Also
    --------
    Timm : other networks.
    nh2st_scverse.tl.train : with ``preset="paper"`` it is trained too.

    Examples
    --------
    >>> import torch, nh2st_scverse as nh
    >>> nh.encoders.ResNet18().trunk()(torch.zeros(1, 3, 224, 224)).shape
    torch.Size([1, 512, 7, 7])
    """

    def __init__(self, checkpoint: str | Path | None = None, device: str = "auto") -> None:
        with torch.random.fork_rng(devices=[]):  # leave the user's random state alone
            network: Any = timm.create_model("resnet18", pretrained=False)
        network.reset_classifier(0)
        digest = "random"
        if checkpoint is not None:
            state = convert_checkpoint(_read(Path(checkpoint)), network.state_dict())
            network.load_state_dict(state)
            digest = hashlib.sha256(b"".join(v.numpy().tobytes() for v in state.values())).hexdigest()[:16]
        super().__init__(
            _ResNet18(network), name="resnet18", input_size=224, dim=512, weights_hash=digest, device=device
        )

    def __call__(self, patches: np.ndarray) -> np.ndarray:
        """Encode (n, 224, 224, 3) uint8 into (n, 512) float32."""
        if self.weights_hash == "random":
            raise ValueError(
                "This ResNet18 has random weights: pass checkpoint='tenpercent_resnet18.ckpt', or train it with "
                "fine_tune=True."
            )
        return super().__call__(patches)

    def trunk(self) -> Trunk:
        """A copy of the network, to be trained; random weights are drawn anew from torch's random state."""
        trunk: Any = super().trunk()
        if self.weights_hash == "random":
            trunk.resnet.init_weights()
        return trunk


class _ResNet18(Trunk):
    resnet: Any

    def __init__(self, network: nn.Module) -> None:
        super().__init__(*IMAGENET)
        self.resnet = network

    def features(self, scaled: Tensor) -> Tensor:
        """Feature maps (n, 512, h, w) before pooling."""
        network: Any = self.resnet
        found: Tensor = network.forward_features(scaled)
        return found

    def maps(self, scaled: Tensor) -> tuple[Tensor, ...]:
        """The same."""
        return (self.features(scaled),)


def _read(path: Path) -> Mapping[str, Any]:
    if not path.is_file():
        raise FileNotFoundError(f"Expected the checkpoint tenpercent_resnet18.ckpt at {path}, found no file.")
    try:
        inert: list[Any] = [type(name, (_Ignored,), {"__module__": module}) for module, name in _foreign(path)]
        with torch.serialization.safe_globals(inert):
            found = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # whatever a file of another kind leads to
        raise ValueError(
            f"Expected a Lightning checkpoint (tenpercent_resnet18.ckpt), but {path} cannot be read safely: {error}"
        ) from error
    state = found.get("state_dict", found) if isinstance(found, Mapping) else {}
    return (
        {key: value for key, value in state.items() if isinstance(value, Tensor)} if isinstance(state, Mapping) else {}
    )


class _Ignored:
    """Stands for everything in a checkpoint that is no tensor: settings, callbacks, loggers."""

    def __new__(cls, *args: Any, **kwargs: Any) -> _Ignored:
        return super().__new__(cls)

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        pass

    def __setstate__(self, state: Any) -> None:
        pass


def _foreign(path: Path) -> set[tuple[str, str]]:
    """Module and name of everything in a checkpoint that is not of torch, found without unpickling."""
    if not zipfile.is_zipfile(path):
        with path.open("rb") as file:
            return {name for _ in range(4) for name in _globals(file)}  # magic number, protocol, system, content
    with zipfile.ZipFile(path) as archive:
        content = next((name for name in archive.namelist() if name.endswith("data.pkl")), None)
        if content is None:
            raise pickle.UnpicklingError("no data.pkl in the archive")
        with archive.open(content) as file:
            return _globals(file)


def _globals(file: IO[bytes]) -> set[tuple[str, str]]:
    written = [
        argument.split(" ", 1) for code, argument, _ in pickletools.genops(file) if code.name == "GLOBAL" and argument
    ]
    named = {({"__builtin__": "builtins", "copy_reg": "copyreg"}.get(module, module), name) for module, name in written}
    return {(module, name) for module, name in named if module.split(".")[0] not in ("torch", "collections", "_codecs")}


def convert_checkpoint(state: Mapping[str, Tensor], wanted: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Rename the tensors of the public checkpoint to those of the trunk; its classifier is dropped.

    Raises
    ------
    ValueError
        Tensors are missing or have another shape.
    """
    named = {key.removeprefix(PREFIX): value for key, value in state.items() if key.startswith(PREFIX)}
    lacking = [k for k, v in wanted.items() if k not in named or named[k].shape != v.shape]
    lacking = [k for k in lacking if not k.endswith("num_batches_tracked")]
    if lacking:
        raise ValueError(
            f"Expected a ResNet18 with keys {PREFIX}*, found {len(state)} tensors of which {len(lacking)} needed ones "
            f"are missing or have another shape, e.g. {lacking[:3]}. Found keys e.g. {list(state)[:3]}."
        )
    return {k: named.get(k, v) for k, v in wanted.items()}
