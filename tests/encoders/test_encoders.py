from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import nh2st_scverse as nh
from nh2st_scverse.encoders import Encoder, _openvino, _torch, get
from nh2st_scverse.encoders._turned import Turned


class MeanColour:
    name, input_size, dim, weights_hash = "mean_colour", 8, 3, "none"

    def __call__(self, patches: np.ndarray) -> np.ndarray:
        return patches.mean(axis=(1, 2), dtype=np.float32)


@pytest.fixture(scope="module")
def patches() -> np.ndarray:
    blocks = np.random.default_rng(0).integers(0, 256, (3, 14, 14, 3), dtype=np.uint8)
    return blocks.repeat(16, axis=1).repeat(16, axis=2)


class Corner:
    """What depends on the orientation: the corner that is up and left."""

    name, input_size, dim, weights_hash = "corner", 8, 3, "none"

    def __call__(self, patches: np.ndarray) -> np.ndarray:
        assert patches.flags["C_CONTIGUOUS"]  # torch takes no others
        return patches[:, 0, 0].astype(np.float32)


# -------------------------------------------------------------------------------------------------- orientations


def test_orientations_are_all_eight_and_each_once() -> None:
    patches = np.random.default_rng(0).integers(0, 256, (5, 8, 8, 3), dtype=np.uint8)
    corners = patches[:, [0, 0, 7, 7], [0, 7, 7, 0]].astype(np.float32)  # (5, 4, 3), clockwise
    assert np.allclose(Turned(Corner(), 2)(patches), corners[:, :2].mean(axis=1))
    for n in (4, 8):
        assert np.allclose(Turned(Corner(), n)(patches), corners.mean(axis=1))

    class Beside(Corner):
        def __call__(self, patches: np.ndarray) -> np.ndarray:
            return patches[:, 0, 1].astype(np.float32)  # next to a corner: in eight places

    edges = patches[:, [0, 0, 1, 6, 7, 7, 6, 1], [1, 6, 7, 7, 6, 1, 0, 0]].astype(np.float32)
    assert np.allclose(Turned(Beside(), 8)(patches), edges.mean(axis=1))
    assert not np.allclose(Turned(Beside(), 4)(patches), edges.mean(axis=1))


def test_features_of_all_orientations_do_not_mind_which_way_up_a_patch_is(patches: np.ndarray) -> None:
    encoder = Turned(get(), 8)
    found = encoder(patches)
    assert found.shape == (3, encoder.dim) and found.dtype == np.float32
    for other in (np.rot90(patches, axes=(1, 2)), patches[:, ::-1], patches.transpose(0, 2, 1, 3)):
        assert np.allclose(encoder(other), found, atol=1e-4)
        assert not np.allclose(get()(other), get()(patches), atol=1e-2)
    assert encoder.weights_hash != get().weights_hash


# ------------------------------------------------------------------------------------------------------- default


def test_default_gives_finite_features_of_the_stated_length(patches: np.ndarray) -> None:
    encoder = get()
    found = encoder(patches)
    assert isinstance(encoder, Encoder)
    assert found.shape == (3, 771) == (3, encoder.dim)
    assert encoder.blocks == (424, 71, 128, 148)
    assert encoder.name == "efficientnet_lite0_stages+statistics+texture"
    assert found.dtype == np.float32
    assert np.isfinite(found).all()
    assert np.array_equal(found, encoder(patches))
    assert np.allclose(found[1:2], encoder(patches[1:2]), atol=1e-4)  # a patch does not depend on the others
    assert found.std(axis=0).max() > 0.1


def test_lite0_is_timms_network_pooled(patches: np.ndarray) -> None:
    encoder = get("efficientnet_lite0")
    images = torch.from_numpy((patches.transpose(0, 3, 1, 2) / 255 - 0.5) / 0.5).float().to(encoder.device)
    with torch.inference_mode():
        last = encoder.frozen.network.forward_features(images).mean(dim=(2, 3)).cpu().numpy()
    found = encoder(patches)
    assert found.shape == (3, 1704) == (3, encoder.dim)
    assert np.allclose(found[:, :1280], last, atol=1e-4)
    stages = nh.encoders.EfficientNetLite0(head=False)
    assert stages.name != encoder.name and stages.dim == 424
    assert np.allclose(stages(patches), found[:, 1280:], atol=1e-5)
    assert np.allclose(get()(patches)[:, :424], found[:, 1280:], atol=1e-5)  # the first block of the default


def test_lite0_is_trained_and_frozen() -> None:
    encoder = get("efficientnet_lite0")
    assert len(encoder.weights_hash) == 16
    assert not any(p.requires_grad for p in encoder.frozen.parameters())
    assert float(encoder.frozen.network.bn1.running_var.std()) > 0.01  # 0 before training


def test_making_the_default_leaves_the_random_state_alone() -> None:
    torch.manual_seed(1)
    before = torch.get_rng_state()
    nh.encoders.EfficientNetLite0(device="cpu")
    assert torch.equal(before, torch.get_rng_state())


# -------------------------------------------------------------------------------------------------------- workers


class Means(_torch.Trunk):
    """Mean colours of the quarters of an image, as maps (n, 3, 2, 2) of which encoders take the mean."""

    def __init__(self) -> None:
        super().__init__((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))

    def features(self, scaled: torch.Tensor) -> torch.Tensor:
        return torch.nn.functional.adaptive_avg_pool2d(scaled, 2)


def stand_in(**settings: Any) -> _torch.TorchEncoder:
    return _torch.TorchEncoder(Means(), name="means", input_size=8, dim=3, weights_hash="none", **settings)


def test_a_network_encodes_alike_by_any_number_of_workers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_torch, "compile_where_installed", lambda *_, **__: None)
    patches = np.random.default_rng(0).integers(0, 256, (7, 8, 8, 3), dtype=np.uint8)
    found = []
    for n in (1, 3):
        monkeypatch.setattr("nh2st_scverse._threads.n_workers", lambda n=n: n)
        found.append(stand_in(device="cpu")(patches))
    assert np.array_equal(*found)
    assert np.allclose(found[0], patches.mean(axis=(1, 2)) / 127.5 - 1, atol=1e-5)
    assert stand_in()(patches[:0]).shape == (0, 3)


def test_a_compiled_network_is_used_and_stays_in_its_process(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def compiled(network: torch.nn.Module, side: int, *, half: bool) -> Any:
        asked.append((side, half))
        return lambda image: [network(torch.from_numpy(image)) + 100]

    monkeypatch.setattr(_torch, "compile_where_installed", compiled)
    patches = np.random.default_rng(0).integers(0, 256, (3, 8, 8, 3), dtype=np.uint8)
    encoder = stand_in(device="cpu")
    assert np.allclose(encoder(patches), patches.mean(axis=(1, 2)) / 127.5 + 99, atol=1e-4)
    encoder(patches)
    assert asked == [(8, False)]  # once
    pickle.loads(pickle.dumps(encoder))(patches)  # a lambda cannot be pickled
    assert len(asked) == 2


def test_a_network_that_openvino_does_not_know_is_left_to_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: Any, **__: Any) -> None:
        raise RuntimeError("no such operator")

    monkeypatch.setattr(_openvino, "find_spec", lambda _: True)
    monkeypatch.setattr(_openvino, "Compiled", broken)
    assert _openvino.compile_where_installed(torch.nn.Identity(), 8, half=False) is None


def test_openvino_gives_the_features_of_torch(patches: np.ndarray, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("openvino")
    encoder = nh.encoders.EfficientNetLite0("cpu", head=False)
    found = encoder(patches)
    assert encoder.compiled[224, False] is not None
    monkeypatch.setitem(encoder.compiled, (224, False), None)
    assert np.abs(found - encoder(patches)).max() < 1e-4


def test_a_processor_encodes_with_folded_norms(patches: np.ndarray, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_torch, "compile_where_installed", lambda *_, **__: None)
    for head in (False, True):
        encoder = nh.encoders.EfficientNetLite0("cpu", head=head)
        images = _torch.as_images(torch.from_numpy(patches[:2]))
        with torch.inference_mode():
            expected, maps = encoder.frozen(images), encoder.frozen(images[:1], maps=True)
        assert np.abs(encoder(patches[:2]) - expected.numpy()).max() < 1e-4
        for one, other in zip(encoder.maps(patches[0]), maps, strict=True):
            assert np.abs(one - other[0].permute(1, 2, 0).numpy()).max() < 1e-3 < other.max()
        kinds = {type(one) for one in encoder._quick.modules()}
        assert not any(issubclass(kind, torch.nn.BatchNorm2d) for kind in kinds)
        assert any(isinstance(one, torch.nn.BatchNorm2d) for one in encoder.trunk().modules())  # to be trained
        assert "_quick" not in encoder.__getstate__()


def test_sixteen_bits_are_other_features_under_another_name() -> None:
    patches = np.random.default_rng(0).integers(0, 256, (3, 8, 8, 3), dtype=np.uint8)
    exact, rough = stand_in(device="cpu"), stand_in(device="cpu", half=True)
    assert exact.weights_hash != rough.weights_hash and rough(patches).dtype == np.float32
    assert np.allclose(exact(patches), rough(patches), atol=0.05)


# ------------------------------------------------------------------------------------------------------ interface


def test_own_encoders_pass() -> None:
    own = MeanColour()
    assert get(own) is own
    assert isinstance(own, Encoder)
    assert get("efficientnet_lite0_stages+statistics+texture") is get()
    assert get(["statistics"]) is get("statistics")


def test_what_is_no_encoder_is_refused() -> None:
    with pytest.raises(ValueError, match=r"several of them joined by '\+', or an encoder object, found 'uni'"):
        get("uni")
    with pytest.raises(TypeError, match=r"found the class MeanColour: pass MeanColour\(\.\.\.\)"):
        get(MeanColour)
    with pytest.raises(TypeError, match=r"found function without \['name', 'input_size', 'dim', 'weights_hash'\]"):
        get(lambda patches: patches)

    class Silent:
        name, input_size, dim, weights_hash = "silent", 8, 3, "none"

    with pytest.raises(TypeError, match=r"found Silent without \['__call__'\]"):
        get(Silent())


# ------------------------------------------------------------------------------------------------------- resnet18


class Settings:
    """Like the settings and callbacks in a Lightning checkpoint: unpickling would run code."""

    def __reduce__(self) -> tuple[Any, ...]:
        return open, (str(Path.cwd() / "was_executed"), "w")


class Plain:
    """Unpickling would need its class, which others do not have."""

    def __init__(self) -> None:
        self.lr = 0.1


@pytest.fixture(scope="module")
def weights() -> dict[str, torch.Tensor]:
    torch.manual_seed(7)
    return {k: v + torch.rand(v.shape) if v.is_floating_point() else v + 5 for k, v in trunk_state().items()}


def trunk_state() -> dict[str, torch.Tensor]:
    return nh.encoders.ResNet18().trunk().resnet.state_dict()


def lightning(weights: dict[str, torch.Tensor], **more: Any) -> dict[str, Any]:
    named = {f"model.resnet.{k}": v for k, v in weights.items()}
    named |= {"model.resnet.fc.weight": torch.zeros(10, 512), "model.projection.weight": torch.zeros(4, 4)}
    return {"epoch": 9, "global_step": 100, "pytorch-lightning_version": "1.0.0", "state_dict": named, **more}


def assert_loaded(path: Path, weights: dict[str, torch.Tensor]) -> None:
    found = nh.encoders.ResNet18(path).trunk().resnet.state_dict()
    assert found.keys() == weights.keys()
    assert all(torch.equal(found[name], weights[name]) for name in weights)


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize("metadata", ["none", "namespace", "code"])
def test_lightning_checkpoint_loads_exactly_and_runs_nothing(
    weights: dict[str, torch.Tensor], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, zipped: bool, metadata: str
) -> None:
    from argparse import Namespace

    monkeypatch.chdir(tmp_path)
    more = {
        "none": {},
        "namespace": {
            "hyper_parameters": Namespace(lr=0.1, nested=Plain()),
            "callbacks": {Plain: {"best": np.float64(1)}},
        },
        "code": {"hyper_parameters": Settings()},
    }[metadata]
    path = tmp_path / "tenpercent_resnet18.ckpt"
    torch.save(lightning(weights, **more), path, _use_new_zipfile_serialization=zipped)
    assert_loaded(path, weights)
    assert not (tmp_path / "was_executed").exists()
    if metadata == "code":  # which it would have been
        torch.load(path, weights_only=False)
        assert (tmp_path / "was_executed").exists()


def test_batch_counts_may_be_missing(weights: dict[str, torch.Tensor], tmp_path: Path) -> None:
    path = tmp_path / "old.ckpt"
    torch.save(lightning({k: v for k, v in weights.items() if not k.endswith("num_batches_tracked")}), path)
    found = nh.encoders.ResNet18(path).trunk().resnet.state_dict()
    assert torch.equal(found["layer4.1.bn2.weight"], weights["layer4.1.bn2.weight"])
    assert found["bn1.num_batches_tracked"] == 0


@pytest.mark.parametrize(
    ("content", "match"),
    [
        (b"", "cannot be read safely"),
        (b"<html>404</html>", "cannot be read safely"),
        (b"PK\x03\x04 broken", "cannot be read safely"),
        (
            {"state_dict": {"backbone.conv1.weight": torch.zeros(3)}},
            r"keys model\.resnet\.\*, found 1 tensors of which",
        ),
        ({"state_dict": [1, 2]}, "found 0 tensors"),
        (torch.zeros(3), "found 0 tensors"),
        ({"state_dict": {"model.resnet.conv1.weight": "no tensor"}}, "found 0 tensors"),
    ],
)
def test_other_files_are_refused(tmp_path: Path, content: Any, match: str) -> None:
    path = tmp_path / "other.ckpt"
    if isinstance(content, bytes):
        path.write_bytes(content)
    else:
        torch.save(content, path)
    with pytest.raises(ValueError, match=match):
        nh.encoders.ResNet18(path)


def test_truncated_other_sized_and_missing_checkpoints(weights: dict[str, torch.Tensor], tmp_path: Path) -> None:
    path = tmp_path / "tenpercent_resnet18.ckpt"
    with pytest.raises(
        FileNotFoundError, match=r"Expected the checkpoint tenpercent_resnet18\.ckpt at .*, found no file"
    ):
        nh.encoders.ResNet18(path)
    torch.save(lightning(weights), path)
    path.write_bytes(path.read_bytes()[:100_000])
    with pytest.raises(ValueError, match="cannot be read safely"):
        nh.encoders.ResNet18(path)
    torch.save(lightning(weights | {"conv1.weight": torch.zeros(64, 1, 7, 7)}), path)
    with pytest.raises(
        ValueError, match=r"1 needed ones are missing or have another shape, e\.g\. \['conv1\.weight'\]"
    ):
        nh.encoders.ResNet18(path)


def test_trunk_gives_feature_maps() -> None:
    maps = nh.encoders.ResNet18().trunk()(torch.zeros(2, 3, 64, 64))
    assert maps.shape == (2, 512, 2, 2)


def test_random_weights_are_trained_only_and_drawn_anew(patches: np.ndarray) -> None:
    encoder = get("resnet18")
    with pytest.raises(ValueError, match=r"random weights: pass checkpoint='tenpercent_resnet18\.ckpt', or train it"):
        encoder(patches)
    torch.manual_seed(0)
    first, second = (encoder.trunk().resnet.conv1.weight for _ in range(2))
    torch.manual_seed(0)
    assert torch.equal(first, encoder.trunk().resnet.conv1.weight)
    assert not torch.equal(first, second)


def test_checkpoint_as_a_frozen_encoder_gives_the_mean_of_the_maps(tmp_path: Path, patches: np.ndarray) -> None:
    torch.save(lightning(trunk_state()), tmp_path / "tenpercent_resnet18.ckpt")
    encoder = nh.encoders.ResNet18(tmp_path / "tenpercent_resnet18.ckpt")
    with torch.no_grad():
        maps = encoder.trunk().eval()(torch.from_numpy(patches).permute(0, 3, 1, 2) / 255)
    assert encoder(patches).shape == (3, encoder.dim) == (3, 512)
    assert np.allclose(encoder(patches), maps.mean(dim=(2, 3)), rtol=1e-3, atol=1e-3)
    assert encoder.weights_hash != "random"


def test_images_are_scaled_as_for_imagenet() -> None:
    trunk = nh.encoders.ResNet18().trunk()
    trunk.features = lambda scaled: scaled  # type: ignore[method-assign]
    found = trunk(torch.tensor([0, 128, 255]).reshape(1, 3, 1, 1) / 255).flatten().numpy()
    assert np.allclose(
        found, (np.array([0, 128, 255]) / 255 - [0.485, 0.456, 0.406]) / [0.229, 0.224, 0.225], atol=1e-6
    )


def test_a_trunk_starts_as_the_frozen_encoder_and_is_a_copy(patches: np.ndarray) -> None:
    encoder = get("efficientnet_lite0")
    trunk = encoder.trunk().train()
    images = torch.from_numpy(patches).permute(0, 3, 1, 2) / 255
    found = trunk(images)
    assert np.allclose(found.detach().numpy(), encoder(patches), atol=1e-3)  # norms keep their statistics in training
    found.sum().backward()
    assert trunk.network.conv_stem.weight.grad.abs().sum() > 0
    with torch.no_grad():
        trunk.network.conv_stem.weight.zero_()
    assert encoder.frozen.network.conv_stem.weight.abs().sum() > 0
