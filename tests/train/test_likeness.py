"""How like the training tissue a section is."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.stats import pearsonr

from nh2st_scverse.nn import Config, Member
from nh2st_scverse.nn.ridge import ridge_inputs
from nh2st_scverse.train import likeness as module
from nh2st_scverse.train.likeness import agreement, likeness
from nh2st_scverse.train.task import predict_batch, predict_section
from nh2st_scverse.train.tensors import Tensors

N, C, G, K = 60, 6, 4, 3


@pytest.fixture
def spots() -> Tensors:
    """A section without counts."""
    rng = torch.Generator().manual_seed(0)
    nodes = torch.randint(0, N, (N, K), generator=rng)
    nodes[:, 0] = torch.arange(N)
    return Tensors(
        inputs=torch.randn(N, C, generator=rng),
        nodes=nodes,
        mask=torch.ones(N, K, dtype=torch.bool),
        offsets=torch.randn(N, K, 2, generator=rng),
        targets=torch.zeros(N, 0),
        trainable=torch.arange(N) != 5,
        section=torch.zeros(N, dtype=torch.long),
    )


@pytest.fixture
def member() -> Member:
    """One whose ridges say different things."""
    torch.manual_seed(1)
    config = Config.preset(embedding=8, hidden=8, bottleneck=8, heads=2, n_components=None, n_nodes=K)
    found = Member(config, C, C, G, None, 20).eval()
    for ridge in (found.ridge, found.linear):
        ridge.weights.normal_()
    found.ridge.landmarks.normal_()
    found.ridge.width.fill_(1)
    return found


def test_agreement_is_the_correlation_of_both_ridges(member: Member, spots: Tensors) -> None:
    at = torch.arange(10, 50)
    x = ridge_inputs(spots.inputs, spots.nodes[at], spots.mask[at])
    pairs = zip(member.ridge(x).T.numpy(), member.linear(x).T.numpy(), strict=True)
    expected = np.mean([pearsonr(a, b)[0] for a, b in pairs])
    assert abs(expected) < 0.9
    assert agreement(member, spots, at) == pytest.approx(expected, abs=1e-5)
    assert agreement(member, spots, at[: module.FEWEST - 1]) == 1  # chance


@pytest.mark.parametrize(("now", "alike"), [(0.95, 1.0), (0.9, 0.991), (0.82, 0.5), (0.6, 0.0), (-0.3, 0.0)])
def test_likeness_falls_with_disagreement_in_that_at_home(
    member: Member, spots: Tensors, now: float, alike: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []
    monkeypatch.setattr(module, "agreement", lambda *given: asked.append(given[2]) or now)
    member.agreement.fill_(0.9)
    assert likeness(member, spots) == pytest.approx(alike, abs=5e-3)
    assert asked[0].tolist() == [i for i in range(N) if i != 5]  # a spot without an image is not asked
    member.linear = None
    assert likeness(member, spots) == 1


def test_a_section_is_predicted_with_the_share_that_its_likeness_allows(
    member: Member, spots: Tensors, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("nh2st_scverse.train.task.likeness", lambda *_: 0.3)
    monkeypatch.setattr("nh2st_scverse.train.task.AT_ONCE", 16)
    with torch.inference_mode():
        whole = predict_batch(member, spots, torch.arange(N), 0.3)
        assert torch.allclose(predict_section(member, spots), whole, atol=1e-5)
        assert not torch.allclose(whole, predict_batch(member, spots, torch.arange(N)), atol=1e-2)
