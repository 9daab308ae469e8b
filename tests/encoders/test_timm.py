from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from huggingface_hub.errors import GatedRepoError, LocalEntryNotFoundError
from safetensors.torch import save_file
from spatialdata import SpatialData

import nh2st_scverse as nh
from nh2st_scverse.encoders import Encoder, Timm


@pytest.fixture(scope="module")
def patches() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (2, 160, 160, 3), dtype=np.uint8)


@pytest.fixture(scope="module")
def vit() -> torch.nn.Module:
    torch.manual_seed(0)
    return timm.create_model("test_vit", num_classes=10).eval()


@pytest.fixture(scope="module")
def file(vit: torch.nn.Module, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("weights") / "vit.safetensors"
    save_file(vit.state_dict(), path)
    return path


def test_features_are_those_of_the_network(vit: torch.nn.Module, file: Path, patches: np.ndarray) -> None:
    mean, std = (0.5, 0.4, 0.3), (0.2, 0.25, 0.3)
    images = (torch.from_numpy(patches) / 255 - torch.tensor(mean)) / torch.tensor(std)
    with torch.no_grad():
        tokens = vit.forward_features(images.permute(0, 3, 1, 2))
    own, others = tokens[:, 0], tokens[:, vit.num_prefix_tokens :].mean(dim=1)
    expected = {"class": own, "mean": others, "class+mean": torch.cat([own, others], dim=1)}
    hashes = set()
    for pooling, features in expected.items():
        encoder = Timm("test_vit", weights=file, pooling=pooling, mean=mean, std=std)
        assert isinstance(encoder, Encoder)
        assert (encoder.input_size, encoder.dim) == (160, features.shape[1])
        assert np.allclose(encoder(patches), features, atol=1e-4)
        hashes.add((encoder.name, encoder.weights_hash))
    assert len(hashes) == 3


@pytest.mark.parametrize("nested", ["bare", "state_dict", "model"])
def test_a_file_of_torch_save_is_read_too(vit: torch.nn.Module, tmp_path: Path, nested: str, file: Path) -> None:
    state: dict[str, Any] = vit.state_dict()
    torch.save(state if nested == "bare" else {nested: state, "epoch": 3}, tmp_path / "vit.pth")
    first, second = Timm("test_vit", weights=tmp_path / "vit.pth"), Timm("test_vit", weights=file)
    assert first.weights_hash == second.weights_hash


def test_files_that_do_not_fit(vit: torch.nn.Module, file: Path, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"Expected the weights of 'test_vit' at .*nowhere"):
        Timm("test_vit", weights=tmp_path / "nowhere.pth")
    with pytest.raises(ValueError, match=r"do not fit 'test_resnet': \d+ of \d+ tensors are missing"):
        Timm("test_resnet", weights=file)
    (tmp_path / "broken.safetensors").write_bytes(file.read_bytes()[:5000])
    with pytest.raises(ValueError, match="cannot be read"):
        Timm("test_vit", weights=tmp_path / "broken.safetensors")
    torch.save({"code": Path}, tmp_path / "code.pth")
    with pytest.raises(ValueError, match="cannot be read"):
        Timm("test_vit", weights=tmp_path / "code.pth")


def test_names_and_poolings_that_do_not_exist(file: Path) -> None:
    with pytest.raises(ValueError, match=r"Expected a model of timm, found 'resnet_999'.*Similar: \['"):
        Timm("resnet_999", weights=file)
    with pytest.raises(ValueError, match=r"pooling to be one of \['model', 'class', 'mean', 'class\+mean'\]"):
        Timm("test_vit", weights=file, pooling="cls")


def test_pooling_of_tokens_needs_a_transformer(tmp_path: Path) -> None:
    save_file(timm.create_model("test_resnet", num_classes=0).state_dict(), tmp_path / "resnet.safetensors")
    with pytest.raises(ValueError, match="pooling='class' needs a transformer, 'test_resnet' is none"):
        Timm("test_resnet", weights=tmp_path / "resnet.safetensors", pooling="class")


@pytest.mark.parametrize(
    ("error", "kind", "match"),
    [
        (
            GatedRepoError.__new__(GatedRepoError, "403 Client Error"),
            PermissionError,
            "gated: accept their terms at https://huggingface.co/MahmoodLab/UNI, then log in with `hf auth login`",
        ),
        (
            LocalEntryNotFoundError("no connection"),
            ConnectionError,
            r"cannot be downloaded; .*local-dir:folder",
        ),
    ],
)
def test_what_the_hub_refuses_is_told_with_a_way_out(
    monkeypatch: pytest.MonkeyPatch, error: Exception, kind: type[Exception], match: str
) -> None:
    def refuse(*args: Any, **kwargs: Any) -> None:
        raise error

    monkeypatch.setattr(timm, "create_model", refuse)
    with pytest.raises(kind, match=match):
        Timm("hf-hub:MahmoodLab/UNI", init_values=1e-5)


def test_it_goes_the_whole_way(file: Path) -> None:
    sdata: SpatialData = nh.datasets.synthetic(width_um=1200, n_sections=2)
    encoder = Timm("test_vit", weights=file, input_size=None)
    small = {"embedding": 16, "hidden": 16, "bottleneck": 16, "heads": 2, "max_epochs": 1, "n_members": 1}
    model = nh.tl.train(sdata, encoder=encoder, n_genes=5, fields=(1.0,), progress=False, **small)
    assert (model.encoder, model.encoder_hash) == ("test_vit", encoder.weights_hash)
    nh.tl.predict_expression(sdata, model=model, encoder=encoder, progress=False)
    with pytest.raises(ValueError, match="trained with encoder 'test_vit': pass it as encoder="):
        nh.tl.predict_expression(sdata, model=model, progress=False)
