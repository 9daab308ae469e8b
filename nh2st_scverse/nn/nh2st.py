"""The NH2ST network: a query branch, a neighbour branch, and the contrast of image and expression in both.

Qu et al., "Spatially Gene Expression Prediction using Dual-Scale Contrastive Learning", MICCAI 2025. Written from the
description; names follow it: p image of the query spot, g its expression, n image of its neighbourhood, m the
expression of it; 0 before and 1 after cross-attention.

    B spots of a batch, K nodes of a neighbourhood (the spot itself first), D features of an image, E embedding, G genes
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from nh2st_scverse.nn.attention import CrossAttention
from nh2st_scverse.nn.config import Config
from nh2st_scverse.nn.hypergraph import HypergraphEncoder, incidence, masked_mean
from nh2st_scverse.nn.losses import info_nce, pearson_loss


@dataclass
class Images:
    """What the images alone give."""

    p0: Tensor  # (B, E) the spot
    n0: Tensor  # (B, E) its neighbourhood
    hyperedges: Tensor  # (B, K nodes, K hyperedges)
    prediction: Tensor  # (B, G)
    tokens: Tensor | None = None  # (B, K, E) the nodes as the spot sees them for its prediction; None without context


@dataclass
class Contrast:
    """The pairs that the contrastive losses draw together: (B, E) each."""

    g0: Tensor
    m0: Tensor
    p1: Tensor
    g1: Tensor
    n1: Tensor
    m1: Tensor


class NH2STNetwork(nn.Module):
    """Image features of spots and their neighbours in, expression out.

    Parameters
    ----------
    config
        Settings; ``Config.preset("paper")`` is the published network.
    n_features
        D, length of the features of one image.
    n_genes
        G, size of the panel.
    """

    def __init__(self, config: Config, n_features: int, n_genes: int) -> None:
        super().__init__()
        self.config = config
        E = config.embedding
        self.input_dropout = nn.Dropout(config.input_dropout)
        self.query_projection = nn.Linear(n_features, E)
        self.gene_encoder = nn.Sequential(nn.Linear(n_genes, E), nn.Linear(E, E))  # g, shared by both branches
        dropout = config.dropout if config.context else 0.0
        self.image_hypergraph = HypergraphEncoder(n_features, config.hidden, E, dropout)
        self.expression_hypergraph = HypergraphEncoder(E, config.hidden, E)
        self.attention = CrossAttention(E, config.heads, config.mlp_ratio, config.dropout)  # C, used four times
        if config.context:
            self.node_projection = nn.Linear(n_features, E)
            self.position = nn.Linear(4, E)  # x, y, distance, and whether it is the spot itself
            self.context = CrossAttention(E, config.heads, config.mlp_ratio, config.dropout)
            self.decoder_dropout = nn.Dropout(config.dropout)
        self.decoder = nn.Sequential(nn.Linear(E, config.bottleneck), nn.Linear(config.bottleneck, n_genes))

    def forward(self, query: Tensor, nodes: Tensor, mask: Tensor, offsets: Tensor) -> Images:
        """Predict from images.

        Parameters
        ----------
        query
            (B, D) features of the spots.
        nodes
            (B, K, D) features of their neighbourhoods.
        mask
            (B, K) bool: the node exists.
        offsets
            (B, K, 2) x and y from the spot, in spot spacings.
        """
        if self.config.context:  # one draw of dropout for a spot as query and as node
            nodes = self.input_dropout(nodes)
            query = nodes[:, 0]
        p0 = self.query_projection(query)  # (B, E)
        hyperedges = incidence(nodes, mask, self.config.n_similar)
        states = self.image_hypergraph(nodes, hyperedges)  # (B, K, E)
        n0 = masked_mean(states, mask)
        if not self.config.context:
            return Images(p0, n0, hyperedges, self.decoder(p0))  # as published: the spot's own image only

        # beyond the paper: the spot looks at the images around it, at where they are and at what they have in common
        itself = torch.zeros_like(offsets[..., :1]).index_fill_(1, torch.tensor([0], device=offsets.device), 1.0)
        place = torch.cat([offsets, offsets.norm(dim=-1, keepdim=True), itself], dim=-1)  # (B, K, 4)
        tokens = self.node_projection(nodes) + self.position(place) + states  # (B, K, E)
        own = F.gelu(p0)
        seen = self.context(kv=tokens, q=own[:, None], mask=mask)[:, 0]  # (B, E)
        return Images(p0, n0, hyperedges, self.decoder(self.decoder_dropout(own + seen)), tokens)

    def looks_at(self, images: Images, mask: Tensor) -> Tensor:
        """Attention of each spot to its nodes (B, K), mean over the heads: 0 where there is none, sums to 1."""
        if images.tokens is None:
            raise ValueError(f"Preset {self.config.name!r} predicts from the spot alone: expected context=True.")
        return self.context.weights(kv=images.tokens, q=F.gelu(images.p0)[:, None], mask=mask).mean(dim=1)[:, 0]

    def contrast(self, images: Images, expression: Tensor, nodes_expression: Tensor, mask: Tensor) -> Contrast:
        """Meet the images with the expression, (B, G) of the spots and (B, K, G) of their neighbourhoods."""
        g0 = self.gene_encoder(expression)  # (B, E)
        states = self.expression_hypergraph(self.gene_encoder(nodes_expression), images.hyperedges)
        m0 = masked_mean(states, mask)  # (B, E)
        p1 = self._attend(kv=g0, q=images.p0)
        g1 = self._attend(kv=p1, q=g0)  # sequential: this one uses the updated first
        n1 = self._attend(kv=m0, q=images.n0)
        m1 = self._attend(kv=n1, q=m0)
        return Contrast(g0, m0, p1, g1, n1, m1)

    def _attend(self, kv: Tensor, q: Tensor) -> Tensor:
        return self.attention(kv=kv[:, None], q=q[:, None])[:, 0]  # one token each

    def losses(self, images: Images, expression: Tensor, nodes_expression: Tensor, mask: Tensor) -> dict[str, Tensor]:
        """Every term of the loss by name, unweighted, and their weighted sum as ``loss``."""
        c = self.config
        terms = {"mse": F.mse_loss(images.prediction, expression)}
        if c.pearson:
            terms["pearson"] = pearson_loss(images.prediction, expression)
        if c.query_contrast or c.neighbour_contrast:
            pairs = self.contrast(images, expression, nodes_expression, mask)
            terms["query_contrast"] = info_nce(pairs.p1, pairs.g1, c.temperature, c.negatives)
            terms["neighbour_contrast"] = info_nce(pairs.n1, pairs.m1, c.temperature, c.negatives)
        terms["loss"] = torch.stack([getattr(c, name) * term for name, term in terms.items()]).sum()
        return terms
