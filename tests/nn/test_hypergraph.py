from __future__ import annotations

import numpy as np
import pytest
import torch
import torch_geometric.nn as geometric

from nh2st_scverse.nn import HypergraphConv, incidence
from nh2st_scverse.nn.hypergraph import HypergraphEncoder, masked_mean, masked_spread

B, K, D = 6, 9, 5


def neighbourhoods(seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """Features and masks: full neighbourhoods, some with holes, one with a single neighbour, one with none."""
    rng = torch.Generator().manual_seed(seed)
    mask = torch.rand(B, K, generator=rng) < 0.7
    mask[:2] = True
    mask[-2], mask[-1] = False, False
    mask[-2, 4] = True
    mask[:, 0] = True
    return torch.randn(B, K, D, generator=rng), mask


def expected_incidence(x: np.ndarray, mask: np.ndarray, n_similar: int) -> np.ndarray:
    """(K nodes, K hyperedges) of one neighbourhood, spelt out."""
    found = np.zeros((K, K))
    for edge in range(K):
        if not mask[edge]:
            continue
        cosine = {
            node: x[edge] @ x[node] / np.linalg.norm(x[edge]) / np.linalg.norm(x[node])
            for node in range(K)
            if node != edge and mask[node]
        }
        alike = sorted(cosine, key=lambda node: -cosine[node])[:n_similar]
        for node in [edge, *alike]:
            found[node, edge] = 1
    return found


def expected_convolution(x: np.ndarray, h: np.ndarray, weight: np.ndarray, bias: np.ndarray) -> np.ndarray:
    """Bai et al. node by node: mean over the hyperedges of a node of the mean over their nodes."""
    lin = x @ weight.T
    out = np.tile(bias, (len(x), 1))
    for node in range(len(x)):
        edges = np.flatnonzero(h[node])
        for edge in edges:
            members = np.flatnonzero(h[:, edge])
            out[node] += sum(lin[m] for m in members) / len(members) / len(edges)
    return out


@pytest.mark.parametrize("n_similar", [1, 3, 8, 20])
def test_incidence_equals_the_definition_also_where_nodes_are_missing(n_similar: int) -> None:
    x, mask = neighbourhoods()
    found = incidence(x, mask, n_similar)
    for i in range(B):
        assert np.array_equal(found[i], expected_incidence(x[i].numpy(), mask[i].numpy(), n_similar))


def test_a_spot_without_neighbours_is_alone_in_its_hyperedge() -> None:
    x, mask = neighbourhoods()
    only = torch.zeros(K, K)
    only[0, 0] = 1
    assert torch.equal(incidence(x, mask)[-1], only)


@pytest.mark.parametrize("other", range(1, K))
def test_with_one_neighbour_both_are_in_both_hyperedges(other: int) -> None:
    x, mask = neighbourhoods()
    mask[:] = False
    mask[:, [0, other]] = True
    pair = (mask[:, :, None] & mask[:, None, :]).float()
    assert torch.equal(incidence(x, mask), pair)


def test_features_of_missing_nodes_do_not_matter() -> None:
    x, mask = neighbourhoods()
    changed = torch.where(mask[..., None], x, torch.full_like(x, 7.0))
    assert torch.equal(incidence(x, mask), incidence(changed, mask))


def test_convolution_equals_loops_over_nodes_and_hyperedges() -> None:
    x, mask = neighbourhoods(1)
    h = incidence(x, mask)
    conv = HypergraphConv(D, 4)
    torch.nn.init.normal_(conv.bias)
    found = conv(x, h).detach().numpy()
    weight, bias = conv.linear.weight.detach().numpy(), conv.bias.detach().numpy()
    for i in range(B):
        assert np.allclose(found[i], expected_convolution(x[i].numpy(), h[i].numpy(), weight, bias), atol=1e-5)


def test_convolution_equals_torch_geometric() -> None:
    h = (torch.rand(1, K, K, generator=torch.Generator().manual_seed(0)) < 0.4).float()  # any hypergraph
    x = torch.randn(1, K, D, generator=torch.Generator().manual_seed(1))
    ours, theirs = HypergraphConv(D, 4), geometric.HypergraphConv(D, 4)
    theirs.lin.weight.data.copy_(ours.linear.weight.data)
    theirs.bias.data.normal_()
    ours.bias.data.copy_(theirs.bias.data)
    assert torch.allclose(ours(x, h)[0], theirs(x[0], h[0].nonzero().T), atol=1e-5)


def test_encoder_is_two_convolutions_with_relu() -> None:
    x, mask = neighbourhoods(2)
    h = incidence(x, mask)
    encoder = HypergraphEncoder(D, 7, 3, dropout=0.5).eval()
    assert torch.equal(encoder(x, h), encoder.second(encoder.first(x, h).relu(), h).relu())


def test_masked_mean_is_the_mean_of_what_exists() -> None:
    x, mask = neighbourhoods(3)
    found = masked_mean(x, mask)
    for i in range(B):
        assert torch.allclose(found[i], x[i][mask[i]].mean(dim=0), atol=1e-6)


def test_masked_spread_is_the_standard_deviation_of_what_exists() -> None:
    x, mask = neighbourhoods(3)
    found = masked_spread(x, mask)
    for i in range(B):
        assert np.allclose(found[i], x[i][mask[i]].numpy().std(axis=0), atol=1e-6)
    alone = torch.zeros_like(mask)
    alone[:, 0] = True
    assert not masked_spread(x, alone).any()
