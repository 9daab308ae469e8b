from __future__ import annotations

from pathlib import Path

import pytest
import torch

import nh2st_scverse.nn.nh2st as module
from nh2st_scverse.nn import Config, Member, NH2STNetwork
from nh2st_scverse.nn.ridge import ridge_inputs

B, K, D, G = 5, 9, 12, 7
SMALL = {"embedding": 16, "hidden": 16, "bottleneck": 16, "heads": 2}


def network(preset: str = "default", **settings: object) -> NH2STNetwork:
    torch.manual_seed(0)
    return NH2STNetwork(Config.preset(preset, **SMALL, **settings), D, G).eval()


@pytest.fixture
def batch() -> dict[str, torch.Tensor]:
    rng = torch.Generator().manual_seed(1)
    nodes = torch.randn(B, K, D, generator=rng)
    mask = torch.rand(B, K, generator=rng) < 0.7
    mask[0] = True
    mask[-1] = False
    mask[:, 0] = True
    offsets = torch.randn(B, K, 2, generator=rng)
    offsets[:, 0] = 0
    return {"query": nodes[:, 0], "nodes": nodes, "mask": mask, "offsets": offsets}


def test_shapes(batch: dict[str, torch.Tensor]) -> None:
    found = network()(**batch)
    assert found.p0.shape == found.n0.shape == (B, 16)
    assert found.hyperedges.shape == (B, K, K)
    assert found.prediction.shape == (B, G)


def test_order_of_the_neighbours_does_not_matter(batch: dict[str, torch.Tensor]) -> None:
    net = network()
    order = torch.tensor([0, 5, 3, 8, 1, 2, 7, 4, 6])  # the spot itself stays first
    other = {name: value if name == "query" else value[:, order] for name, value in batch.items()}
    assert torch.allclose(net(**batch).prediction, net(**other).prediction, atol=1e-5)
    assert torch.allclose(net(**batch).n0, net(**other).n0, atol=1e-5)


@pytest.mark.parametrize("preset", ["default", "paper"])
def test_missing_neighbours_do_not_matter(batch: dict[str, torch.Tensor], preset: str) -> None:
    net, there = network(preset), batch["mask"][..., None]
    other = batch | {
        "nodes": torch.where(there, batch["nodes"], 50 * torch.ones(B, K, D)),
        "offsets": torch.where(there, batch["offsets"], -3 * torch.ones(B, K, 2)),
    }
    y = torch.rand(B, K, G, generator=torch.Generator().manual_seed(2))
    changed = torch.where(there, y, y + 10)
    a, b = net(**batch), net(**other)
    assert torch.equal(a.prediction, b.prediction)
    assert torch.equal(a.n0, b.n0)
    losses = net.losses(a, y[:, 0], y, batch["mask"]), net.losses(b, y[:, 0], changed, batch["mask"])
    assert all(torch.equal(losses[0][name], losses[1][name]) for name in losses[0])


def test_the_neighbourhood_reaches_the_prediction_only_in_default(batch: dict[str, torch.Tensor]) -> None:
    other = batch | {"nodes": torch.cat([batch["nodes"][:, :1], batch["nodes"][:, 1:] + 1], dim=1)}
    moved = batch | {"offsets": 2 * batch["offsets"]}
    has_neighbours = batch["mask"].sum(dim=1) > 1
    paper, without, default = network("paper"), network(context=False), network()
    assert torch.equal(paper(**batch).prediction, paper(**other).prediction)
    assert torch.equal(without(**batch).prediction, without(**other).prediction)
    for changed in (other, moved):
        gap = (default(**batch).prediction - default(**changed).prediction).abs().amax(dim=1)
        assert torch.equal(gap > 1e-4, has_neighbours)


def test_a_spot_looks_at_nodes_that_exist_and_at_those_that_matter(batch: dict[str, torch.Tensor]) -> None:
    net, mask = network(), batch["mask"]
    images = net(**batch)
    attention = net.looks_at(images, mask)
    assert torch.allclose(attention.sum(dim=1), torch.ones(B)) and torch.equal(attention > 0, mask)
    assert attention[-1, 0] == 1  # a spot without neighbours
    assert attention[0].std() > 1e-3
    query = torch.nn.functional.gelu(images.p0)[:, None]
    heads = net.context.weights(kv=images.tokens, q=query, mask=mask)[:, :, 0]  # (B, heads, K)
    assert torch.allclose(attention, (heads[:, 0] + heads[:, 1]) / 2)
    with pytest.raises(ValueError, match=r"Preset 'paper' predicts from the spot alone: expected context=True"):
        network("paper").looks_at(network("paper")(**batch), mask)


@pytest.mark.parametrize("preset", ["default", "paper"])
def test_spots_of_a_batch_are_independent(batch: dict[str, torch.Tensor], preset: str) -> None:
    net = network(preset)
    together = net(**batch).prediction
    alone = torch.cat([net(**{name: v[i : i + 1] for name, v in batch.items()}).prediction for i in range(B)])
    assert torch.allclose(together, alone, atol=1e-6)


@pytest.mark.parametrize("preset", ["default", "paper"])
def test_every_parameter_gets_a_gradient(batch: dict[str, torch.Tensor], preset: str) -> None:
    net = network(preset).train()
    y = torch.rand(B, K, G)
    net.losses(net(**batch), y[:, 0], y, batch["mask"])["loss"].backward()
    nothing = [name for name, p in net.named_parameters() if p.grad is None]
    zero = {name for name, p in net.named_parameters() if p.grad is not None and not p.grad.abs().max() > 1e-10}
    assert not nothing
    assert zero <= {"attention.query.weight"}  # with one key there is nothing to choose


def test_losses_are_the_weighted_sum_of_the_terms(batch: dict[str, torch.Tensor]) -> None:
    net = network(mse=2.0, pearson=3.0, query_contrast=0.7, neighbour_contrast=0.2)
    y = torch.rand(B, K, G)
    with torch.no_grad():
        terms = net.losses(net(**batch), y[:, 0], y, batch["mask"])
    weights = {"mse": 2.0, "pearson": 3.0, "query_contrast": 0.7, "neighbour_contrast": 0.2}
    assert set(terms) == {*weights, "loss"}
    assert float(terms["loss"]) == pytest.approx(sum(w * float(terms[name]) for name, w in weights.items()), rel=1e-5)
    assert set(network("paper").losses(net(**batch), y[:, 0], y, batch["mask"])) == {*weights, "loss"} - {"pearson"}


def test_expression_of_the_training_spots_is_not_needed_to_predict(batch: dict[str, torch.Tensor]) -> None:
    net = network()
    before = net(**batch).prediction
    for name, p in net.named_parameters():
        if name.startswith(("gene_encoder", "expression_hypergraph", "attention")):
            torch.nn.init.normal_(p)
    assert torch.equal(before, net(**batch).prediction)


@pytest.mark.parametrize(("kernel", "landmarks"), [("linear", None), ("gaussian", 6), ("laplacian", 6)])
def test_member_mixes_network_and_ridge_in_the_unit_of_the_target(
    batch: dict[str, torch.Tensor], kernel: str, landmarks: int | None
) -> None:
    inputs = torch.randn(20, D)
    nodes, mask = torch.randint(0, 20, (B, K)), batch["mask"]
    chosen = {} if landmarks is None else {"kernel": kernel}
    config = Config.preset(**SMALL, ridge=0.25, landmarks=landmarks, **chosen)
    member = Member(config, D, D, G, None, landmarks or 0).eval()
    for buffer in (member.target_mean, member.target_scale, member.ridge.weights, member.ridge.mean):
        buffer.uniform_(0.5, 2)
    if landmarks:
        member.ridge.landmarks.normal_()
        member.ridge.width.fill_(5)
        member.linear.weights.uniform_(0.5, 2)
    given = inputs, nodes, mask, batch["offsets"]
    seen = torch.stack([torch.cat([inputs[n[0]], inputs[n[m]].mean(dim=0)]) for n, m in zip(nodes, mask, strict=True)])
    assert torch.allclose(ridge_inputs(inputs, nodes, mask), seen, atol=1e-6)
    terms = seen
    if landmarks:
        squared = (seen[:, None] - member.ridge.landmarks).square().sum(dim=2)
        terms = torch.exp(-squared / 25) if kernel == "gaussian" else torch.exp(-squared.sqrt() / 5)
        terms = terms if kernel == "gaussian" else terms / terms.sum(dim=1, keepdim=True)
    near = (terms - member.ridge.mean) @ member.ridge.weights
    scaled = 0.75 * member.images(*given).prediction + 0.25 * near
    assert torch.allclose(member.predict(*given), scaled * member.target_scale + member.target_mean, atol=1e-5)
    assert (member.linear is None) == (landmarks is None)
    if landmarks:  # a section that is a fifth like the training tissue
        away = 0.2 * scaled + 0.8 * (near + seen @ member.linear.weights) / 2
        found = member.predict(*given, likeness=0.2)
        assert torch.allclose(found, away * member.target_scale + member.target_mean, atol=1e-5)


def test_query_is_flattened_by_position_and_nodes_by_channel(batch: dict[str, torch.Tensor]) -> None:
    config = Config.preset("paper", **SMALL)
    maps = torch.randn(4, 3, 2, 2)  # (patches, channels, h, w)
    member = Member(config, 12, 12, G, trunk=torch.nn.Identity()).eval()
    nodes, mask = torch.tensor([[2, 1, 3]]), torch.ones(1, 3, dtype=torch.bool)
    query = torch.stack([maps[2, c, i, j] for i in range(2) for j in range(2) for c in range(3)])
    around = torch.stack(
        [torch.stack([maps[n, c, i, j] for c in range(3) for i in range(2) for j in range(2)]) for n in (2, 1, 3)]
    )
    expected = member.network(query[None], around[None], mask, torch.zeros(1, 3, 2))
    found = member.images(maps, nodes, mask, torch.zeros(1, 3, 2))
    assert torch.equal(found.prediction, expected.prediction)
    assert torch.equal(found.n0, expected.n0)


def test_the_network_is_one_short_file() -> None:
    assert len(Path(module.__file__).read_text().splitlines()) < 250
