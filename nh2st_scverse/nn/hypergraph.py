"""The hypergraph of a neighbourhood: which nodes look alike, and a convolution over it."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F


def incidence(features: Tensor, mask: Tensor, n_similar: int = 3) -> Tensor:
    """Hyperedges from the similarity of image features.

    Hyperedge i joins node i and the `n_similar` nodes most similar to it by cosine, itself excluded.

    Parameters
    ----------
    features
        (B, K, D) of the nodes of each neighbourhood.
    mask
        (B, K) bool: the node exists. Nodes that do not are in no hyperedge and have none.
    n_similar
        Nodes that a hyperedge joins to its own.

    Returns
    -------
    (B, K nodes, K hyperedges), 1 where the node is in the hyperedge.
    """
    n_nodes = features.shape[1]
    itself = torch.eye(n_nodes, dtype=torch.bool, device=features.device)
    unit = F.normalize(features, dim=-1)
    similarity = unit @ unit.transpose(1, 2)  # (B, K, K)
    similarity = similarity.masked_fill(itself | ~mask[:, None, :], -torch.inf)
    alike = similarity.topk(min(n_similar, n_nodes - 1), dim=-1).indices  # (B, K hyperedges, n_similar)
    joined = torch.zeros_like(similarity).scatter(2, alike, 1.0)  # (B, K hyperedges, K nodes)
    joined = joined.masked_fill(itself, 1.0)  # where fewer others exist than asked for, topk may name the node itself
    both = mask[:, :, None] & mask[:, None, :]
    return (joined * both).transpose(1, 2)


class HypergraphConv(nn.Module):
    """``X' = Dv^-1 H De^-1 H^T (X W) + b``: nodes to the mean of each hyperedge, hyperedges to the mean at each node.

    Bai et al., "Hypergraph convolution and hypergraph attention", 2021.
    """

    def __init__(self, n_in: int, n_out: int) -> None:
        super().__init__()
        self.linear = nn.Linear(n_in, n_out, bias=False)
        self.bias = nn.Parameter(torch.zeros(n_out))

    def forward(self, nodes: Tensor, hyperedges: Tensor) -> Tensor:
        """(B, K, n_in) and (B, K nodes, K hyperedges) give (B, K, n_out)."""
        members = hyperedges.sum(dim=1).clamp(min=1)  # De: (B, K) nodes per hyperedge
        degree = hyperedges.sum(dim=2).clamp(min=1)  # Dv: (B, K) hyperedges per node
        edges = hyperedges.transpose(1, 2) @ self.linear(nodes) / members[..., None]  # (B, K hyperedges, n_out)
        return hyperedges @ edges / degree[..., None] + self.bias


class HypergraphEncoder(nn.Module):
    """Two convolutions with ReLU over one hypergraph."""

    def __init__(self, n_in: int, hidden: int, n_out: int, dropout: float = 0.0) -> None:
        super().__init__()
        self.first = HypergraphConv(n_in, hidden)
        self.second = HypergraphConv(hidden, n_out)
        self.dropout = nn.Dropout(dropout)

    def forward(self, nodes: Tensor, hyperedges: Tensor) -> Tensor:
        """(B, K, n_in) gives (B, K, n_out)."""
        hidden = self.dropout(self.first(nodes, hyperedges).relu())
        return self.second(hidden, hyperedges).relu()


def masked_mean(nodes: Tensor, mask: Tensor) -> Tensor:
    """Mean over the nodes that exist: (B, K, E) gives (B, E)."""
    weight = mask.to(nodes.dtype)[..., None]
    return (nodes * weight).sum(dim=1) / weight.sum(dim=1)


def masked_spread(nodes: Tensor, mask: Tensor) -> Tensor:
    """Standard deviation over the nodes that exist: (B, K, E) gives (B, E)."""
    return masked_mean((nodes - masked_mean(nodes, mask)[:, None]) ** 2, mask).sqrt()
