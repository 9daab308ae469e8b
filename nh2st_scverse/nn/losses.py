"""The terms of the loss."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F


def info_nce(a: Tensor, b: Tensor, temperature: float = 0.05, negatives: float = 0.1) -> Tensor:
    """Contrast of matching rows of `a` and `b` (B, E): image -> gene, one direction.

    Cross-entropy of each row of ``S = a b^T / temperature`` (rows of unit length) against its own index, after the
    off-diagonal entries were multiplied by `negatives` (NH2ST, Qu et al. 2025).
    """
    similarity = F.normalize(a, dim=1) @ F.normalize(b, dim=1).T / temperature  # (B, B)
    own = torch.eye(len(a), device=a.device)
    similarity = similarity * (own + negatives * (1 - own))
    return F.cross_entropy(similarity, torch.arange(len(a), device=a.device))


def pearson_loss(predicted: Tensor, measured: Tensor) -> Tensor:
    """One minus the correlation of each gene over the spots of the batch, averaged over genes: (B, G) to a scalar."""
    p = predicted - predicted.mean(dim=0)
    m = measured - measured.mean(dim=0)
    return 1 - ((p * m).sum(dim=0) / (p.norm(dim=0) * m.norm(dim=0)).clamp(min=1e-6)).mean()
