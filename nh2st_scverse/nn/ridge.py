"""Ridge regression in closed form, on likeness to some training spots or on the inputs themselves."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from scipy.sparse.linalg import eigsh
from torch import Tensor, nn

from nh2st_scverse.nn.hypergraph import masked_mean, masked_spread

AT_ONCE = 8192  # spots in double precision at a time: a large table as a whole would not fit
MANY = 1000  # genes or spots, of which the first axes alone are computed: all of 5,000 would take minutes
PAIRED = 1000  # landmarks whose distances to each other tell the width of the kernel
SLOPES = 500  # landmarks at which the slopes of a prediction are taken
AXES = 50  # of what it predicts, at most, whose slopes are taken
SMOOTH = 1e-2  # penalty of that prediction, as a part of the mean eigenvalue


class KernelRidge(nn.Module):
    """``y = (k(x) - mean) @ weights``, where ``k(x)`` (M,) tells how alike x is to each of M landmarks.

    ============== ====================================================================================
    ``laplacian``  ``k_j = exp(-|x - l_j| / width) / sum_i exp(-|x - l_i| / width)``: shares, which do not fade far from
                   all landmarks, where the nearest still count most
    ``gaussian``   ``k_j = exp(-|x - l_j|² / width²)``: far from all landmarks nothing is predicted
    ``linear``     ``k(x) = x``, without landmarks
    ============== ====================================================================================

    Parameters
    ----------
    kernel
        One of these.
    n_inputs
        D, length of x.
    n_genes
        G.
    n_landmarks
        M at most.
    rounds
        In which :func:`learnt_metric` finds how much each difference of x counts; 0: all alike.
    """

    landmarks: Tensor  # (M, D) in the metric
    metric: Tensor  # (D, D)
    width: Tensor
    mean: Tensor
    weights: Tensor

    def __init__(self, kernel: str, n_inputs: int, n_genes: int, n_landmarks: int = 0, rounds: int = 0) -> None:
        super().__init__()
        self.kernel, self.rounds = kernel, 0 if kernel == "linear" else rounds
        self.penalty = 1.0  # as a part of the mean eigenvalue; needed to fit again only
        n_terms = n_inputs if kernel == "linear" else n_landmarks
        if kernel != "linear":
            self.register_buffer("landmarks", torch.zeros(n_landmarks, n_inputs))
            self.register_buffer("width", torch.ones(()))
        if self.rounds:
            self.register_buffer("metric", torch.eye(n_inputs))
        self.register_buffer("mean", torch.zeros(n_terms))
        self.register_buffer("weights", torch.zeros(n_terms, n_genes))

    def forward(self, x: Tensor) -> Tensor:
        """Predict (B, G) from (B, D)."""
        return self.terms(x) @ self.weights

    def terms(self, x: Tensor) -> Tensor:
        """What the prediction is linear in: (B, D) gives (B, M), or (B, D) without landmarks."""
        return self._likeness(x) - self.mean

    def _likeness(self, x: Tensor) -> Tensor:
        if self.kernel == "linear":
            return x
        away = distances(x @ self.metric if self.rounds else x, self.landmarks) / self.width
        return (-away).softmax(dim=1) if self.kernel == "laplacian" else torch.exp(-(away**2))

    def fit(self, x: Tensor, y: Tensor, penalties: Sequence[float], rank: int | None = None) -> tuple[Tensor, Tensor]:
        """Weights for each penalty (P, M, rank), and the genes (G, rank) of what they predict.

        Landmarks are drawn from the spots; where each is one, the solution is exact. Predicted are the principal
        components of y: what genes share is less noisy than each gene.

        Parameters
        ----------
        x
            (N, D) inputs.
        y
            (N, G) targets, of mean 0.
        penalties
            As parts of the mean eigenvalue of ``k(x).T @ k(x)``.
        rank
            Components of y; None: every gene by itself.
        """
        genes = principal_axes(y, rank)
        span = None if self.kernel == "linear" else self._place(x, y, genes)
        xx, xy, sums, total = (torch.zeros((), dtype=torch.float64) for _ in range(4))
        for some in torch.arange(len(x)).split(AT_ONCE):
            k, target = self._likeness(x[some]).double(), y[some].double() @ genes  # (n, M), (n, rank)
            xx, xy = xx + k.T @ k, xy + k.T @ target
            sums, total = sums + k.sum(dim=0), total + target.sum(dim=0)
        if self.kernel == "laplacian":  # what all spots share says nothing
            self.mean = (sums / len(x)).float()
            centre = self.mean.double()
            xx = xx - torch.outer(sums, centre) - torch.outer(centre, sums) + len(x) * torch.outer(centre, centre)
            xy = xy - torch.outer(centre, total)
        if span is not None:
            xx, xy = span.T @ xx @ span, span.T @ xy
        values, vectors = torch.linalg.eigh(xx)
        rotated = vectors.T @ xy
        back = vectors if span is None else span @ vectors
        weights = torch.stack([back @ (rotated / (values + p * values.mean())[:, None]) for p in penalties])
        return weights.float(), genes.float()

    def keep(self, weights: Tensor, genes: Tensor, penalty: float) -> None:
        """Predict by weights (M, rank) of genes (G, rank), found with a penalty."""
        self.weights, self.penalty = weights @ genes.T, penalty

    def _place(self, x: Tensor, y: Tensor, genes: Tensor) -> Tensor | None:
        """Choose landmarks, metric and width; a matrix (M, M') that gives likenesses to landmarks unit covariance."""
        self.landmarks = x[torch.randperm(len(x))[: len(self.landmarks)]]
        if self.rounds:
            some = slice(None, None, -(-len(x) // AT_ONCE))
            self.metric = learnt_metric(x[some], y[some].double() @ genes, self.landmarks, self.rounds).float()
            self.landmarks = self.landmarks @ self.metric
        self.width = _width(self.landmarks)
        self.mean = torch.zeros(len(self.landmarks))
        if self.kernel == "laplacian":  # shares are no inner products: they are inputs like others
            return None
        values, vectors = torch.linalg.eigh(self._likeness(self.landmarks).double())
        kept = values > 1e-6 * values.max()
        return vectors[:, kept] / values[kept].sqrt()


def learnt_metric(x: Tensor, y: Tensor, landmarks: Tensor, rounds: int) -> Tensor:
    """A matrix (D, D): after x @ matrix, differences of x (N, D) count as much as y (N, R) changes with them.

    In every round a kernel ridge on landmarks (M, D) is fitted in the metric so far; the root of the mean outer product
    of its slopes is the next one (recursive feature machine: Radhakrishnan et al., Science 2024).
    """
    x, y, landmarks = x.double(), y.double(), landmarks.double()
    metric = torch.eye(x.shape[1], dtype=torch.float64)
    for _ in range(rounds):
        marks = landmarks @ metric
        width = _width(marks)
        k = torch.exp(-torch.cdist(x @ metric, marks) / width)  # (N, M)
        k = k - k.mean(dim=0)
        kk = k.T @ k
        kk.diagonal().add_(SMOOTH * kk.diagonal().mean() + 1e-12)
        weights = torch.linalg.solve(kk, k.T @ y)  # (M, R)
        if weights.shape[1] > AXES:  # slopes of genes are those of their axes, turned
            u, s, _ = torch.linalg.svd(weights, full_matrices=False)
            weights = (u * s)[:, :AXES]
        places = marks[:SLOPES]
        away = torch.cdist(places, marks)
        fall = torch.where(away > 1e-6 * width, torch.exp(-away / width) / (width * away), 0)  # none at the tip
        products = torch.zeros_like(metric)
        for of_one in weights.T:
            pull = fall * of_one  # (places, M)
            slopes = pull @ marks - pull.sum(dim=1, keepdim=True) * places  # (places, D)
            products += slopes.T @ slopes
        values, vectors = torch.linalg.eigh(metric @ products @ metric)  # of x: the metric is symmetric
        root = (vectors * values.clamp(min=0) ** 0.25) @ vectors.T
        if not root.any():  # nothing follows x
            break
        metric = root * (len(root) ** 0.5 / root.norm())
    return metric


def _width(landmarks: Tensor) -> Tensor:
    """The median distance between landmarks (M, D)."""
    apart = torch.pdist(landmarks[:PAIRED])
    return apart.median() if apart.any() else torch.ones((), dtype=landmarks.dtype)


def principal_axes(y: Tensor, rank: int | None) -> Tensor:
    """What varies together most in y (N, G) of mean 0: axes (G, rank) in double precision; None: each gene."""
    n_genes = y.shape[1]
    if rank is None or rank >= min(y.shape):
        return torch.eye(n_genes, dtype=torch.float64)
    if n_genes > MANY and len(y) < n_genes:  # the same axes from what is alike among spots: (N, N)
        y = y.double()
        axes = y.T @ _first_vectors(y @ y.T, rank)
        return axes / axes.norm(dim=0)
    return _first_vectors(sum(some.double().T @ some.double() for some in y.split(AT_ONCE)), rank)  # (G, G)


def _first_vectors(matrix: Tensor, number: int) -> Tensor:
    """Eigenvectors (n, number) of the largest eigenvalues of a symmetric matrix (n, n)."""
    if len(matrix) > MANY:
        return torch.from_numpy(eigsh(matrix.numpy(), number, v0=np.ones(len(matrix)))[1][:, ::-1].copy())
    return torch.linalg.eigh(matrix).eigenvectors.flip(1)[:, :number]


def distances(x: Tensor, landmarks: Tensor) -> Tensor:
    """Distances (B, M), in double precision where there is one: in single, that of a spot to itself is far from 0."""
    if x.device.type == "mps":
        return torch.cdist(x, landmarks, compute_mode="donot_use_mm_for_euclid_dist")
    return torch.cdist(x.double(), landmarks.double()).to(x.dtype)


def ridge_inputs(inputs: Tensor, nodes: Tensor, mask: Tensor, spread: bool = False) -> Tensor:
    """What a ridge sees: a spot and the mean of its neighbourhood, (B, 2 C), and its spread if wanted, (B, 3 C)."""
    around = inputs[nodes]  # (B, K, C)
    seen = [around[:, 0], masked_mean(around, mask)]
    return torch.cat([*seen, masked_spread(around, mask)] if spread else seen, dim=1)
