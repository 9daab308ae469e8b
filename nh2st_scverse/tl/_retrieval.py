"""Retrieval as a baseline: images and expression in one space, and the mean of the nearest training spots.

The way of BLEEP (Xie et al., "Spatially resolved gene expression prediction from histology images via bi-modal
contrastive learning", NeurIPS 2023), on frozen features.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

EMBEDDING = 256
N_NEAREST = 50
EPOCHS = 100
BATCH = 256


class _Head(nn.Module):
    """Features (N, F) to unit vectors (N, EMBEDDING)."""

    def __init__(self, n_in: int) -> None:
        super().__init__()
        self.first = nn.Linear(n_in, EMBEDDING)
        self.second = nn.Sequential(nn.GELU(), nn.Linear(EMBEDDING, EMBEDDING), nn.Dropout(0.1))
        self.norm = nn.LayerNorm(EMBEDDING)

    def forward(self, x: Tensor) -> Tensor:
        first = self.first(x)
        return F.normalize(self.norm(first + self.second(first)), dim=1)


def retrieval(x: np.ndarray, y: np.ndarray, groups: np.ndarray, x_test: np.ndarray, seed: int) -> np.ndarray:
    """Mean expression of the training spots whose expression lies nearest to an image in the contrastive space."""
    spread = x.std()
    images, found = (torch.as_tensor(values / spread, dtype=torch.float32) for values in (x, x_test))
    expression = torch.as_tensor((y - y.mean(axis=0)) / (y.std(axis=0) + 1e-3), dtype=torch.float32)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        of_image, of_expression = _Head(images.shape[1]), _Head(expression.shape[1])
        temperature = nn.Parameter(torch.tensor(0.1).log())
        weights = [*of_image.parameters(), *of_expression.parameters(), temperature]
        optimizer = torch.optim.AdamW(weights, lr=1e-3, weight_decay=1e-2)
        for _ in range(EPOCHS):
            for batch in torch.randperm(len(images)).split(BATCH):
                if len(batch) < 2:
                    continue
                a, b = of_image(images[batch]), of_expression(expression[batch])
                # spots that are alike are not held against each other: targets are soft
                alike = ((a @ a.T + b @ b.T) / 2 / temperature.exp()).softmax(dim=1).detach()
                close = a @ b.T / temperature.exp()
                loss = F.cross_entropy(close, alike) + F.cross_entropy(close.T, alike.T)
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
    of_image.eval(), of_expression.eval()
    with torch.inference_mode():
        near = (of_image(found) @ of_expression(expression).T).topk(min(N_NEAREST, len(x)), dim=1).indices
    return y[near.numpy()].mean(axis=1)
