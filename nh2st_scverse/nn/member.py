"""A network with the scaling of its inputs and outputs: one member of the ensemble that a model is."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from nh2st_scverse.nn.config import Config
from nh2st_scverse.nn.nh2st import Images, NH2STNetwork
from nh2st_scverse.nn.projection import Projection
from nh2st_scverse.nn.ridge import KernelRidge, ridge_inputs

N_ALIKE = 30  # components that tell whether a section is like the training tissue


class Member(nn.Module):
    """Projection of the features, the network, closed-form ridges beside it, and the scale of the target.

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
    variance: Tensor
    apart: Tensor

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
        kernel = config.kernel if config.landmarks else "linear"
        n_seen = (3 if config.spread else 2) * n_inputs
        self.ridge: KernelRidge | None = None
        if config.ridge:
            self.ridge = KernelRidge(kernel, n_seen, n_genes, n_landmarks, config.metric)
        self.linear: KernelRidge | None = None
        if self.ridge is not None and config.fallback and kernel != "linear" and self.projection is not None:
            self.linear = KernelRidge("linear", n_seen, n_genes)
            self.register_buffer("variance", torch.ones(min(N_ALIKE, n_inputs)))  # of the first inputs in training
            self.register_buffer("apart", torch.zeros(()))  # of held-out tissue: one minus its alignment
        self.register_load_state_dict_pre_hook(_rename)

    def images(self, inputs: Tensor, nodes: Tensor, mask: Tensor, offsets: Tensor) -> Images:
        """Run the network on inputs (U, C), or feature maps (U, channels, h, w), that `nodes` (B, K) index into."""
        if inputs.dim() == 2:
            around = F.embedding(nodes, inputs)  # like an index, but sums its gradients in a fixed order: (B, K, C)
            query = around[:, 0]
        else:  # as published: the map of the query is flattened by position, those of its nodes by channel
            around = F.embedding(nodes, inputs.flatten(1))  # (B, K, channels * h * w)
            query = around[:, 0].unflatten(1, inputs.shape[1:]).flatten(2).transpose(1, 2).flatten(1)
        return self.network(query, around, mask, offsets)

    def predict(self, inputs: Tensor, nodes: Tensor, mask: Tensor, offsets: Tensor, likeness: float = 1.0) -> Tensor:
        """Expression (B, G) in the unit of the target.

        `likeness` of the section to the training tissue, 1 down to 0, is the share of the network and the ridge beside
        it; the rest is that of ridges alone, which lose less where a section is unlike.
        """
        scaled = self.images(inputs, nodes, mask, offsets).prediction
        if self.ridge is not None:
            x = ridge_inputs(inputs, nodes, mask, self.config.spread)
            near = self.ridge(x)
            scaled = (1 - self.config.ridge) * scaled + self.config.ridge * near
            if self.linear is not None and likeness < 1:
                scaled = likeness * scaled + (1 - likeness) * (near + self.linear(x)) / 2
        return scaled * self.target_scale + self.target_mean

    def attention(self, inputs: Tensor, nodes: Tensor, mask: Tensor, offsets: Tensor) -> Tensor:
        """How much the network of a spot looks at each of its nodes: (B, K), sums to 1."""
        return self.network.looks_at(self.images(inputs, nodes, mask, offsets), mask)


def _rename(member: Member, state: dict[str, Tensor], prefix: str, *_: object) -> None:
    """Read a member that was saved by an earlier version."""
    if f"{prefix}ridge" in state:
        weights = state.pop(f"{prefix}ridge")
        state |= {f"{prefix}ridge.weights": weights, f"{prefix}ridge.mean": torch.zeros(len(weights))}
        for name in ("landmarks", "width"):
            if f"{prefix}{name}" in state:
                state[f"{prefix}ridge.{name}"] = state.pop(f"{prefix}{name}")
    if f"{prefix}variance" in state:  # earlier versions did not ask how far held-out tissue is
        state.setdefault(f"{prefix}apart", torch.zeros(()))
