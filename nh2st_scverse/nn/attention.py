"""Cross-attention between two sets of tokens."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class CrossAttention(nn.Module):
    """One pre-norm layer of cross-attention and feed-forward, each with a residual, and a final norm.

    One LayerNorm serves queries and keys/values; projections of queries, keys and values have no bias.
    """

    def __init__(self, size: int, heads: int, mlp_ratio: float, dropout: float) -> None:
        super().__init__()
        self.heads = heads
        self.norm = nn.LayerNorm(size)
        self.query = nn.Linear(size, size, bias=False)
        self.key_value = nn.Linear(size, 2 * size, bias=False)
        self.output = nn.Linear(size, size)
        self.feed_forward = nn.Sequential(
            nn.LayerNorm(size),
            nn.Linear(size, int(size * mlp_ratio)),
            nn.GELU(),
            nn.Dropout(dropout),
            nn.Linear(int(size * mlp_ratio), size),
            nn.Dropout(dropout),
        )
        self.dropout = nn.Dropout(dropout)
        self.final_norm = nn.LayerNorm(size)

    def forward(self, kv: Tensor, q: Tensor, mask: Tensor | None = None) -> Tensor:
        """Let `q` (B, N, E) look at `kv` (B, M, E), at those of `mask` (B, M): (B, N, E)."""
        queries, keys, values = self._project(kv, q)
        visible = None if mask is None else mask[:, None, None, :]
        seen = F.scaled_dot_product_attention(queries, keys, values, visible)
        q = q + self.dropout(self.output(seen.transpose(1, 2).flatten(2)))
        return self.final_norm(q + self.feed_forward(q))

    def weights(self, kv: Tensor, q: Tensor, mask: Tensor | None = None) -> Tensor:
        """How much of each of `kv` enters `q` in :meth:`forward`: (B, heads, N, M), sums to 1 over M."""
        queries, keys, _ = self._project(kv, q)
        scores = queries @ keys.transpose(2, 3) / queries.shape[-1] ** 0.5
        if mask is not None:
            scores = scores.masked_fill(~mask[:, None, None, :], -torch.inf)
        return scores.softmax(dim=-1)

    def _project(self, kv: Tensor, q: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Queries (B, heads, N, E / heads), keys and values (B, heads, M, E / heads)."""

        def split(x: Tensor) -> Tensor:
            return x.unflatten(-1, (self.heads, -1)).transpose(1, 2)

        keys, values = self.key_value(self.norm(kv)).chunk(2, dim=-1)
        return split(self.query(self.norm(q))), split(keys), split(values)
