"""Any network of timm as an encoder, with weights from its hub or from a file."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import timm
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from nh2st_scverse.encoders._torch import TorchEncoder, Trunk

POOLING = ("model", "class", "mean", "class+mean")


class Timm(TorchEncoder):
    """A network of `timm <https://huggingface.co/docs/timm>`_, pathology foundation models among them.

    Parameters
    ----------
    model
        Name for ``timm.create_model``, e.g. ``"resnet50"``, ``"hf-hub:MahmoodLab/UNI"``, or ``"local-dir:folder"`` for
        a repository of the hub that was downloaded as a folder.
    weights
        Local file with the weights (``.safetensors``, or a ``state_dict`` of ``torch.save``, read without unpickling)
        for an architecture of timm; None downloads those of the hub.
    pooling
        ``"model"``: what the model returns without its classifier. For transformers also ``"class"`` (class token),
        ``"mean"`` (of the patch tokens) or ``"class+mean"`` (both, one behind the other).
    mean, std
        Scaling of images in 0 to 1; None takes that of the model.
    input_size
        Side of a patch in pixels; None takes that of the model.
    device
        ``"auto"`` takes a GPU when there is one.
    half
        Compute in 16 bits where the device can: faster, and other features than those of 32 bits.
    kwargs
        More for ``timm.create_model``.

    Raises
    ------
    ValueError
        Unknown model, pooling that the model does not have, a file that does not fit it.
    FileNotFoundError
        No such file.
    PermissionError
        The weights are gated, and this machine is not logged in or not admitted.
    ConnectionError
        The hub cannot be reached.

    See Also
    --------
    ResNet18 : the encoder of the paper.
    Encoder : a network from another package.

    Examples
    --------
    Models that ask for a login: accept the terms on their page, then ``hf auth login``; or download the folder on
    another machine and name it as ``"local-dir:folder"``.

    >>> import PIL.Image, timm, torch
    >>> import nh2st_scverse as nh
    >>> uni = nh.encoders.Timm("hf-hub:MahmoodLab/UNI", init_values=1e-5, dynamic_img_size=True)  # doctest: +SKIP
    >>> virchow2 = nh.encoders.Timm(
    ...     "hf-hub:paige-ai/Virchow2",
    ...     pooling="class+mean",
    ...     mlp_layer=timm.layers.SwiGLUPacked,
    ...     act_layer=torch.nn.SiLU,
    ... )  # doctest: +SKIP
    >>> h_optimus = nh.encoders.Timm(
    ...     "hf-hub:bioptimus/H-optimus-0",
    ...     mean=(0.707223, 0.578729, 0.703617),
    ...     std=(0.211883, 0.230117, 0.177517),
    ...     init_values=1e-5,
    ...     dynamic_img_size=False,
    ... )  # doctest: +SKIP
    >>> phikon = nh.encoders.Timm("hf-hub:1aurent/vit_base_patch16_224.owkin_pancancer")  # doctest: +SKIP
    >>> model = nh.tl.train(sections, encoder=uni)  # doctest: +SKIP

    Virchow is called as Virchow2 is. CONCH has a package of its own (github.com/mahmoodlab/CONCH), and like any network
    from elsewhere it is an encoder in a few lines:

    >>> from conch.open_clip_custom import create_model_from_pretrained  # doctest: +SKIP
    >>> class Conch:  # doctest: +SKIP
    ...     name, input_size, dim, weights_hash = "conch", 448, 512, "MahmoodLab/conch"
    ...
    ...     def __init__(self):
    ...         self.network, self.scaled = create_model_from_pretrained("conch_ViT-B-16", "hf_hub:MahmoodLab/conch")
    ...
    ...     def __call__(self, patches):
    ...         images = torch.stack([self.scaled(PIL.Image.fromarray(patch)) for patch in patches])
    ...         with torch.inference_mode():
    ...             return self.network.encode_image(images, proj_contrast=False, normalize=False).numpy()
    >>> model = nh.tl.train(sections, encoder=Conch())  # doctest: +SKIP

    Features that were computed elsewhere are :class:`nh2st_scverse.encoders.Precomputed`.
    """

    def __init__(
        self,
        model: str,
        *,
        weights: str | Path | None = None,
        pooling: str = "model",
        mean: Sequence[float] | None = None,
        std: Sequence[float] | None = None,
        input_size: int | None = None,
        device: str = "auto",
        half: bool = False,
        **kwargs: Any,
    ) -> None:
        if pooling not in POOLING:
            raise ValueError(f"Expected pooling to be one of {list(POOLING)}, found {pooling!r}.")
        if weights is not None and not Path(weights).is_file():
            raise FileNotFoundError(f"Expected the weights of {model!r} at {weights}, found no file.")
        network = _create(model, pretrained=weights is None, **kwargs)
        if weights is not None:
            _fill(network, Path(weights), model)
        if pooling != "model" and not hasattr(network, "num_prefix_tokens"):
            raise ValueError(f"pooling={pooling!r} needs a transformer, {model!r} is none: use pooling='model'.")
        config = timm.data.resolve_model_data_config(network)
        size = input_size or int(config["input_size"][-1])
        trunk = _Pooled(network, pooling, mean or config["mean"], std or config["std"])
        with torch.inference_mode():
            dim = trunk.eval()(torch.zeros(1, 3, size, size)).shape[-1]
        digest = hashlib.sha256(repr((model, pooling, trunk.mean.tolist(), trunk.std.tolist())).encode())
        for value in network.state_dict().values():
            digest.update(value.numpy().tobytes())
        super().__init__(
            trunk,
            name=model if pooling == "model" else f"{model} ({pooling})",
            input_size=size,
            dim=dim,
            weights_hash=digest.hexdigest()[:16],
            device=device,
            half=half,
        )


class _Pooled(Trunk):
    def __init__(self, network: nn.Module, pooling: str, mean: Sequence[float], std: Sequence[float]) -> None:
        super().__init__(mean, std)
        self.network, self.pooling = network, pooling

    def features(self, scaled: Tensor) -> Tensor:
        """Features (n, dim)."""
        network: Any = self.network
        if self.pooling == "model":
            return cast(Tensor, network(scaled))
        tokens = network.forward_features(scaled)  # (n, tokens, dim), class and register tokens first
        own, mean = tokens[:, 0], tokens[:, network.num_prefix_tokens :].mean(dim=1)
        return {"class": own, "mean": mean, "class+mean": torch.cat([own, mean], dim=1)}[self.pooling]


def _create(model: str, *, pretrained: bool, **kwargs: Any) -> nn.Module:
    """The network without its classifier; what goes wrong at the hub is told in a way that helps."""
    repository = model.removeprefix("hf-hub:").removeprefix("hf_hub:")
    hint = "download its folder elsewhere and pass nh.encoders.Timm('local-dir:folder')"
    try:
        with torch.random.fork_rng(devices=[]):
            network: nn.Module = timm.create_model(model, pretrained=pretrained, num_classes=0, **kwargs)
            return network
    except RuntimeError as error:
        if "Unknown model" not in str(error) and "No pretrained weights" not in str(error):
            raise
        similar = timm.list_models(f"*{model.split('/')[-1].split('.')[0][:6]}*")[:5]
        raise ValueError(f"Expected a model of timm, found {model!r}: {error}. Similar: {similar}.") from error
    except Exception as error:
        names = {kind.__name__ for kind in type(error).__mro__}
        if "GatedRepoError" in names or "401" in str(error) or "403" in str(error):
            raise PermissionError(
                f"The weights of {model!r} are gated: accept their terms at https://huggingface.co/{repository}, then "
                f"log in with `hf auth login`; or {hint}."
            ) from error
        if names & {"OSError", "HTTPError"}:
            raise ConnectionError(f"The weights of {model!r} cannot be downloaded; {hint}. ({error})") from error
        raise


def _fill(network: nn.Module, path: Path, model: str) -> None:
    """Load weights of a file; those of a classifier are left out."""
    try:
        if path.suffix == ".safetensors":
            found: Any = load_file(path)
        else:
            found = torch.load(path, map_location="cpu", weights_only=True)
    except (SafetensorError, RuntimeError, EOFError, OSError, ValueError) as error:
        raise ValueError(f"Weights {path} cannot be read: {error}.") from error
    except Exception as error:  # pickles of other things
        raise ValueError(f"Weights {path} cannot be read safely: {error}.") from error
    while isinstance(found, Mapping) and (inner := next((k for k in ("state_dict", "model") if k in found), None)):
        found = found[inner]
    wanted = network.state_dict()
    state = {k: v for k, v in found.items() if k in wanted} if isinstance(found, Mapping) else {}
    lacking = [k for k, v in wanted.items() if k not in state or state[k].shape != v.shape]
    if lacking:
        raise ValueError(
            f"Weights {path} do not fit {model!r}: {len(lacking)} of {len(wanted)} tensors are missing or have another "
            f"shape, e.g. {lacking[:3]}."
        )
    network.load_state_dict(state)
