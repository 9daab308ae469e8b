"""A network with the scaling of its inputs and outputs: one member of the ensemble that a model is."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from nh2st_scverse.nn.config import Config
from nh2st_scverse.nn.hypergraph import masked_mean
from nh2st_scverse.nn.nh2st import Images, NH2STNetwork
from nh2st_scverse.nn.projection import Projection


class Member(nn.Module):
    """Projection of the features, the network, a closed-form ridge beside it, and the scale of the target.

    Parameters
    ----------
    config
        Settings.
    n_features
        F, length of the features of a spot (of the flattened map, when a trunk is trained).
    n_inputs
        C, what enters the network: the number of components, or F.
    n_genes
        G, size of the panel.
    trunk
        Image encoder that is trained with the network; None when features are given.
    n_landmarks
        M, training spots that the kernel of the ridge compares with.
    """

    target_mean: Tensor
    target_scale: Tensor
    landmarks: Tensor
    width: Tensor
    ridge: Tensor

    def __init__(
        self,
        config: Config,
        n_features: int,
        n_inputs: int,
        n_genes: int,
        trunk: nn.Module | None = None,
        n_landmarks: int = 0,
    ) -> None:
        super().__init__()
        self.config, self.n_features = config, n_features
        self.trunk = trunk
        self.projection = Projection(n_features, n_inputs) if config.n_components else None
        self.network = NH2STNetwork(config, n_inputs, n_genes)
        self.register_buffer("target_mean", torch.zeros(n_genes))
        self.register_buffer("target_scale", torch.ones(n_genes))
        self.penalty = 1.0  # of the ridge, as a part of the mean eigenvalue; needed to fit it again only
        if config.ridge and config.landmarks:
            self.register_buffer("landmarks", torch.zeros(n_landmarks, 2 * n_inputs))
            self.register_buffer("width", torch.ones(()))
        if config.ridge:
            self.register_buffer("ridge", torch.zeros(n_landmarks if config.landmarks else 2 * n_inputs, n_genes))

    def images(self, inputs: Tensor, nodes: Tensor, mask: Tensor, offsets: Tensor) -> Images:
        """Run the network on inputs (U, C), or feature maps (U, channels, h, w), that `nodes` (B, K) index into."""
        if inputs.dim() == 2:
            around = F.embedding(nodes, inputs)  # like an index, but sums its gradients in a fixed order: (B, K, C)
            query = around[:, 0]
        else:  # as published: the map of the query is flattened by position, those of its nodes by channel
            around = F.embedding(nodes, inputs.flatten(1))  # (B, K, channels * h * w)
            query = around[:, 0].unflatten(1, inputs.shape[1:]).flatten(2).transpose(1, 2).flatten(1)
        return self.network(query, around, mask, offsets)

    def predict(self, inputs: Tensor, nodes: Tensor, mask: Tensor, offsets: Tensor) -> Tensor:
        """Expression (B, G) in the unit of the target."""
        scaled = self.images(inputs, nodes, mask, offsets).prediction
        if self.config.ridge:
            closed_form = self.ridge_terms(inputs, nodes, mask) @ self.ridge
            scaled = (1 - self.config.ridge) * scaled + self.config.ridge * closed_form
        return scaled * self.target_scale + self.target_mean

    def attention(self, inputs: Tensor, nodes: Tensor, mask: Tensor, offsets: Tensor) -> Tensor:
        """How much the network of a spot looks at each of its nodes: (B, K), sums to 1."""
        return self.network.looks_at(self.images(inputs, nodes, mask, offsets), mask)

    def ridge_terms(self, inputs: Tensor, nodes: Tensor, mask: Tensor) -> Tensor:
        """What the ridge is linear in: likeness to the landmarks (B, M), or without them its inputs (B, 2 C)."""
        x = ridge_inputs(inputs, nodes, mask)
        return gaussian_kernel(x, self.landmarks, self.width) if self.config.landmarks else x


def gaussian_kernel(x: Tensor, landmarks: Tensor, width: Tensor) -> Tensor:
    """Likeness (B, M), 1 down to 0, of inputs (B, D) to landmarks (M, D): far from all of them nothing is predicted."""
    return torch.exp(-((torch.cdist(x, landmarks) / width) ** 2))


def ridge_inputs(inputs: Tensor, nodes: Tensor, mask: Tensor) -> Tensor:
    """What the ridge sees: a spot and the mean of its neighbourhood, (B, 2 C)."""
    return torch.cat([inputs[nodes[:, 0]], masked_mean(inputs[nodes], mask)], dim=1)
