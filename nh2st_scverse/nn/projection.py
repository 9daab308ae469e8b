"""From the features of an encoder to the components that enter the network."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

FLAT = 1e-3  # of the largest spread: features that vary less are constant but for rounding
AT_ONCE = 8192  # spots that are projected at a time: beside the features of a large table stands no copy of them


class Projection(nn.Module):
    """``(x - mean) @ matrix``: features (N, F) to the components (N, C) that enter the network."""

    mean: Tensor
    matrix: Tensor

    def __init__(self, n_features: int, n_components: int) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(n_features))
        self.register_buffer("matrix", torch.zeros(n_features, n_components))

    def fit(self, features: Tensor, blocks: Sequence[int] = ()) -> None:
        """Take the principal components of features (N, F); `blocks` of them get equal total variance."""
        mean, matrix = principal_components(features, self.matrix.shape[1], blocks)
        self.mean.copy_(mean)
        self.matrix.copy_(matrix)

    def forward(self, features: Tensor) -> Tensor:
        """Project (N, F) to (N, C)."""
        parts = [(some - self.mean) @ self.matrix for some in features.split(AT_ONCE)]
        return torch.cat(parts) if len(parts) > 1 else parts[0]


def principal_components(features: Tensor, n: int, blocks: Sequence[int] = ()) -> tuple[Tensor, Tensor]:
    """Mean (F,) and matrix (F, n) that turn features (N, F) into n components of PCA, all scaled by one number.

    Components keep their own spread: at variance 1 each, the least of them would drown the rest. Features have variance
    1; those of `blocks`, the numbers of features of each kind, share it, so that no kind drowns another because it has
    more of them. Where F is a multiple of their sum, as with several fields of view, they come again and again.
    """
    mean, scale = features.mean(dim=0), features.std(dim=0)
    if torch.equal(features, features[:1].expand_as(features)):
        raise ValueError(
            "The features are the same for every training spot: is there tissue on the image, or is it the encoder?"
        )
    # what does not vary in training is left out: divided by almost nothing, it would explode on another section
    weight = torch.where(scale > FLAT * scale.max(), 1 / scale.clamp(min=1e-12), 0)
    if len(blocks) > 1:
        share = torch.tensor([size**-0.5 for size in blocks for _ in range(size)], device=features.device)
        weight = weight * share.repeat(len(weight) // len(share))
    parts = features.split(AT_ONCE)
    if len(features) > features.shape[1]:  # many spots: (F, F) is smaller than (N, F)
        products = torch.zeros(())
        for some in parts:
            scaled = (some - mean) * weight
            products = products + scaled.T @ scaled
        basis = torch.linalg.eigh(products).eigenvectors.flip(1)[:, :n]  # (F, n)
    else:
        basis = torch.linalg.svd((features - mean) * weight, full_matrices=False).Vh[:n].T
    matrix = basis * weight[:, None]
    return mean, matrix / torch.cat([(some - mean) @ matrix for some in parts]).std()
