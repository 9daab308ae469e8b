from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from nh2st_scverse._options import Run
from nh2st_scverse.encoders import _torch
from nh2st_scverse.encoders._torch import as_images
from nh2st_scverse.nn import Config, Member
from nh2st_scverse.train import fit, task
from nh2st_scverse.train.best import Best
from nh2st_scverse.train.data import Data
from nh2st_scverse.train.fit import Fitted
from nh2st_scverse.train.task import encode_once, flip, one_cycle, predict_batch
from nh2st_scverse.train.tensors import Tensors, stack


class Trunk(nn.Module):
    """A tiny trunk that counts what passes."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 2, 8, stride=8)
        self.calls: list[int] = []
        self.modes: set[bool] = set()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.calls.append(len(x))
        self.modes.add(self.training)
        return self.conv(x).tanh()


@pytest.fixture
def tiny(patch_data: Data, small: dict[str, Any]) -> tuple[Member, Tensors]:
    torch.manual_seed(0)
    spots = stack(patch_data, standardise="none")
    config = Config.preset("paper", **small | {"dropout": 0.0})
    member = Member(config, 32, 32, spots.targets.shape[1], Trunk()).double().eval()
    spots.offsets, spots.targets = spots.offsets.double(), spots.targets.double()
    return member, spots


def test_each_patch_passes_the_trunk_once(tiny: tuple[Member, Tensors]) -> None:
    member, spots = tiny
    member.float()
    batch = torch.tensor([3, 4, 5, 20, 41, 42])
    inputs, local = encode_once(member, spots, spots.nodes[batch])
    different = len(set(spots.nodes[batch].flatten().tolist()))
    assert member.trunk.calls == [different]
    assert different < spots.nodes[batch].numel()  # neighbourhoods overlap
    direct = member.trunk(as_images(spots.inputs[spots.nodes[batch].flatten()]))
    assert torch.allclose(inputs[local].flatten(0, 1), direct, atol=1e-6)


def test_gradients_equal_those_of_encoding_every_node_separately(tiny: tuple[Member, Tensors]) -> None:
    member, spots = tiny
    batch = torch.tensor([3, 4, 5, 20, 41, 42])
    nodes, mask = spots.nodes[batch], spots.mask[batch]

    def gradients(inputs: torch.Tensor, local: torch.Tensor) -> list[torch.Tensor]:
        images = member.images(inputs, local, mask, spots.offsets[batch])
        loss = member.network.losses(images, spots.targets[batch], spots.targets[nodes], mask)["loss"]
        return list(torch.autograd.grad(loss, list(member.parameters())))

    def as_double(x: torch.Tensor) -> torch.Tensor:
        return as_images(x).double()

    needed, local = nodes.unique(return_inverse=True)
    once = gradients(member.trunk(as_double(spots.inputs[needed])), local)
    every = torch.cat([member.trunk(as_double(spots.inputs[node][None])) for node in nodes.flatten()])
    separately = gradients(every, torch.arange(nodes.numel()).reshape(nodes.shape))
    found, expected = (torch.cat([g.flatten() for g in part]) for part in (once, separately))
    assert expected.abs().max() > 0
    assert torch.allclose(found, expected, rtol=1e-8, atol=1e-12)
    ours, positions = encode_once(member.float(), spots, nodes)
    assert torch.equal(positions, local)
    assert torch.allclose(ours, member.trunk(as_images(spots.inputs[needed])))


class OnlyIndexed:
    """A tensor of which only some rows can be had."""

    def __init__(self, values: torch.Tensor) -> None:
        self.values = values

    def __getitem__(self, at: torch.Tensor) -> torch.Tensor:
        return self.values[at]


@pytest.mark.parametrize("scale", [True, False])
def test_a_step_does_not_take_longer_where_there_are_more_spots(
    tiny: tuple[Member, Tensors], small: dict[str, Any], scale: bool
) -> None:
    _, spots = tiny
    config = Config.preset("default", **small | {"scale_target": scale, "ridge": 0.0, "n_components": None})
    spots.inputs = torch.rand(len(spots.inputs), 6)
    spots.offsets, spots.targets = spots.offsets.float(), spots.targets.float()
    spots.targets = OnlyIndexed(spots.targets)  # type: ignore[assignment]
    member = Member(config, 6, 6, spots.targets.values.shape[1])
    step = task.Task(member, spots, spots, Best(1))
    assert torch.isfinite(step.training_step(torch.arange(8), 1))


def test_prediction_takes_a_few_patches_at_a_time(
    tiny: tuple[Member, Tensors], monkeypatch: pytest.MonkeyPatch
) -> None:
    member, spots = tiny
    member.float()
    spots.offsets, batch = spots.offsets.float(), torch.arange(60)
    with torch.inference_mode():
        whole = predict_batch(member, spots, batch)
        monkeypatch.setattr(_torch, "AT_ONCE_ON_CPU", 7)
        member.trunk.calls.clear()
        parts = predict_batch(member, spots, batch)
    assert max(member.trunk.calls) == 7
    assert sum(member.trunk.calls) == 60
    assert torch.allclose(whole, parts, atol=1e-6)


def test_the_trunk_is_trained_in_training_mode(
    patch_data: Data, fit_first: Callable[..., Fitted], small: dict[str, Any]
) -> None:
    trunk = Trunk()
    before = trunk.conv.weight.detach().clone()
    config = Config.preset("paper", max_epochs=1, **small)
    fitted = fit_first(config, Run(), data=patch_data, trunk=trunk)
    assert trunk.modes == {True, False}  # learning, and sizing or validation
    assert fitted.member.trunk is trunk
    assert not torch.equal(before, trunk.conv.weight)
    assert np.isfinite(fitted.history[0]["loss"])
    spots = stack(patch_data, standardise="none")
    assert fit._prepare(spots, config, trunk).trunk.training


def test_augmentation_is_one_of_the_eight_turns_and_flips() -> None:
    torch.manual_seed(0)
    patch = torch.arange(3 * 4 * 4).reshape(3, 4, 4)
    eight = [torch.rot90(p, k, (1, 2)) for p in (patch, patch.flip(2)) for k in range(4)]
    found = flip(patch.expand(400, -1, -1, -1))
    counts = [int((found == one).flatten(1).all(dim=1).sum()) for one in eight]
    assert sum(counts) == 400
    assert min(counts) > 20  # each about 50 times


def test_learning_rate_rises_and_falls() -> None:
    factors = np.array([one_cycle(step, 200) for step in range(201)])
    assert factors.argmax() in range(18, 21)
    assert factors.max() == pytest.approx(1)
    assert (np.diff(factors[:19]) > 0).all()
    assert (np.diff(factors[21:]) < 0).all()
    assert factors[0] < 0.1
    assert factors[-1] == pytest.approx(0, abs=1e-9)
    assert np.isfinite([one_cycle(step, 1) for step in range(4)]).all()
