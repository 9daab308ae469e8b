"""How like the training tissue a section is."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from nh2st_scverse.nn import Config, Member
from nh2st_scverse.train import likeness as module
from nh2st_scverse.train.likeness import alignment, likeness
from nh2st_scverse.train.task import predict_batch, predict_parts
from nh2st_scverse.train.tensors import Tensors

N, C, G, K = 200, 6, 4, 3


@pytest.fixture
def spots() -> Tensors:
    """A section without counts, whose inputs have the variances 6, 5 ... 1."""
    rng = torch.Generator().manual_seed(0)
    nodes = torch.randint(0, N, (N, K), generator=rng)
    nodes[:, 0] = torch.arange(N)
    inputs = torch.randn(N, C, generator=rng) * torch.arange(C, 0, -1).sqrt() + 3
    return Tensors(
        inputs=inputs,
        nodes=nodes,
        mask=torch.ones(N, K, dtype=torch.bool),
        offsets=torch.randn(N, K, 2, generator=rng),
        targets=torch.zeros(N, 0),
        trainable=torch.arange(N) != 5,
        section=torch.zeros(N, dtype=torch.long),
    )


@pytest.fixture
def member() -> Member:
    """One that knows these variances, and whose ridges say different things."""
    torch.manual_seed(1)
    config = Config.preset(embedding=8, hidden=8, bottleneck=8, heads=2, n_components=C, n_nodes=K)
    found = Member(config, C, C, G, None, 20).eval()
    found.projection.matrix.copy_(torch.eye(C))
    found.variance.copy_(torch.arange(C, 0, -1.0))
    for ridge in (found.ridge, found.linear):
        ridge.weights.normal_()
    found.ridge.landmarks.normal_()
    return found


def test_alignment_is_the_cosine_of_two_covariances(spots: Tensors) -> None:
    variance = torch.arange(C, 0, -1.0)
    own, known = np.cov(spots.inputs.numpy().T, bias=True), np.diag(variance.numpy())
    expected = (own * known).sum() / np.linalg.norm(own) / np.linalg.norm(known)
    assert alignment(spots.inputs, variance) == pytest.approx(expected, abs=1e-5)
    assert expected > 0.95
    mixed = spots.inputs[:, :1] + 0.1 * spots.inputs  # all inputs vary with the first
    assert alignment(mixed, variance) < 0.7
    assert alignment(torch.zeros(9, C), variance) == 0


@pytest.mark.parametrize(("now", "alike"), [(1.0, 1.0), (0.92, 0.989), (0.86, 0.5), (0.75, 0.01), (0.1, 0.0)])
def test_likeness_falls_with_the_alignment(
    member: Member, spots: Tensors, now: float, alike: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []
    monkeypatch.setattr(module, "alignment", lambda *given: asked.append(given) or now)
    assert likeness(member, spots) == pytest.approx(alike, abs=5e-3)
    there = [i for i in range(N) if i != 5]  # a spot without an image is not asked
    assert torch.equal(asked[0][0], spots.inputs[there]) and torch.equal(asked[0][1], member.variance)
    spots.trainable[module.FEWEST_SPOTS + 1 :] = False
    assert likeness(member, spots) == pytest.approx(alike, abs=5e-3)
    spots.trainable[module.FEWEST_SPOTS :] = False
    assert likeness(member, spots) == 1  # chance
    member.linear, spots.trainable[:] = None, True
    assert likeness(member, spots) == 1


@pytest.mark.parametrize(("held_out", "alike"), [(0.0, 0.038), (0.06, 0.038), (0.1, 0.404), (0.2, 0.994)])
def test_sections_are_as_far_apart_as_those_of_training_may_be(
    member: Member, spots: Tensors, held_out: float, alike: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "alignment", lambda *_: 0.79)
    member.apart.fill_(held_out)
    assert likeness(member, spots) == pytest.approx(alike, abs=5e-3)


def test_a_section_is_predicted_with_the_share_that_its_likeness_allows(
    member: Member, spots: Tensors, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("nh2st_scverse.train.task.AT_ONCE", 16)
    strange = spots.inputs[:, :1] + 0.1 * spots.inputs
    with torch.inference_mode():
        home = torch.cat([part for _, part in predict_parts(member, spots)])
        assert torch.allclose(home, predict_batch(member, spots, torch.arange(N)), atol=0.05)
        spots.inputs = strange
        away = torch.cat([part for _, part in predict_parts(member, spots)])
        assert torch.allclose(away, predict_batch(member, spots, torch.arange(N), 0.0), atol=0.05)
        assert not torch.allclose(away, predict_batch(member, spots, torch.arange(N)), atol=0.5)
