from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from nh2st_scverse.nn.attention import CrossAttention

B, N, M, E, HEADS = 3, 2, 5, 8, 4


@pytest.fixture
def layer() -> CrossAttention:
    torch.manual_seed(0)
    made = CrossAttention(E, HEADS, mlp_ratio=2.0, dropout=0.3).eval()
    for p in made.parameters():
        torch.nn.init.normal_(p, std=0.5)
    return made


@pytest.fixture
def tokens() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    rng = torch.Generator().manual_seed(1)
    mask = torch.tensor([[1, 1, 1, 1, 1], [1, 0, 1, 0, 0], [1, 0, 0, 0, 0]], dtype=torch.bool)
    return torch.randn(B, M, E, generator=rng), torch.randn(B, N, E, generator=rng), mask


def by_hand(layer: CrossAttention, kv: torch.Tensor, q: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """One sample, head by head: kv (M, E), q (N, E), mask (M,)."""
    weight = layer.key_value.weight
    queries = layer.norm(q) @ layer.query.weight.T
    keys, values = layer.norm(kv) @ weight[:E].T, layer.norm(kv) @ weight[E:].T
    seen = []
    for head in range(HEADS):
        at = slice(head * E // HEADS, (head + 1) * E // HEADS)
        scores = queries[:, at] @ keys[:, at].T / (E // HEADS) ** 0.5
        scores[:, ~mask] = -torch.inf
        seen.append(scores.softmax(dim=1) @ values[:, at])
    x = q + layer.output(torch.cat(seen, dim=1))
    norm, up, _, _, down, _ = layer.feed_forward
    return layer.final_norm(x + down(F.gelu(up(norm(x)))))


def test_equals_attention_written_out(layer: CrossAttention, tokens: tuple[torch.Tensor, ...]) -> None:
    kv, q, mask = tokens
    found = layer(kv, q, mask)
    for i in range(B):
        assert torch.allclose(found[i], by_hand(layer, kv[i], q[i], mask[i]), atol=1e-5)
    everything = torch.ones(B, M, dtype=torch.bool)
    assert torch.allclose(layer(kv, q), layer(kv, q, everything), atol=1e-6)


def test_weights_are_those_that_the_values_are_added_up_with(
    layer: CrossAttention, tokens: tuple[torch.Tensor, ...]
) -> None:
    kv, q, mask = tokens
    weights = layer.weights(kv, q, mask)
    assert weights.shape == (B, HEADS, N, M)
    assert torch.allclose(weights.sum(dim=-1), torch.ones(B, HEADS, N))
    assert (weights.movedim(-1, 1)[~mask] == 0).all() and (weights.movedim(-1, 1)[mask] > 0).all()
    queries, keys = layer.norm(q) @ layer.query.weight.T, layer.norm(kv) @ layer.key_value.weight[:E].T
    size = E // HEADS
    for i in range(B):
        for head in range(HEADS):
            at = slice(head * size, (head + 1) * size)
            raised = torch.exp(queries[i, :, at] @ keys[i, :, at].T / size**0.5) * mask[i]
            assert torch.allclose(weights[i, head], raised / raised.sum(dim=1, keepdim=True), atol=1e-5)

    values = (layer.norm(kv) @ layer.key_value.weight[E:].T).unflatten(-1, (HEADS, size)).transpose(1, 2)
    found: dict[str, torch.Tensor] = {}
    layer.output.register_forward_pre_hook(lambda _, given: found.update(seen=given[0]))
    layer(kv, q, mask)
    assert torch.allclose(found["seen"], (weights @ values).transpose(1, 2).flatten(2), atol=1e-5)


def test_masked_keys_have_no_influence(layer: CrossAttention, tokens: tuple[torch.Tensor, ...]) -> None:
    kv, q, mask = tokens
    changed = torch.where(mask[..., None], kv, 100 * torch.ones_like(kv))
    assert torch.equal(layer(kv, q, mask), layer(changed, q, mask))
    assert not torch.allclose(layer(kv, q), layer(changed, q))


def test_one_key_is_a_linear_map_of_its_norm(layer: CrossAttention, tokens: tuple[torch.Tensor, ...]) -> None:
    kv, q, _ = tokens
    found = {}
    layer.feed_forward.register_forward_pre_hook(lambda _, given: found.update(x=given[0]))
    layer(kv[:, :1], q)
    values = layer.norm(kv[:, :1]) @ layer.key_value.weight[E:].T  # whatever the query is
    assert torch.allclose(found["x"], q + layer.output(values), atol=1e-6)


def test_order_of_keys_does_not_matter(layer: CrossAttention, tokens: tuple[torch.Tensor, ...]) -> None:
    kv, q, mask = tokens
    order = torch.tensor([3, 1, 4, 0, 2])
    assert torch.allclose(layer(kv, q, mask), layer(kv[:, order], q, mask[:, order]), atol=1e-6)
