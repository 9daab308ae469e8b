"""Ridges in closed form, against scikit-learn."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.spatial.distance import cdist, pdist
from sklearn.linear_model import Ridge

from nh2st_scverse.nn import ridge as module
from nh2st_scverse.nn.ridge import KernelRidge


@pytest.fixture
def pairs() -> tuple[torch.Tensor, torch.Tensor]:
    """60 inputs of length 5 and 8 genes, of mean 0, that depend on them in bends."""
    torch.manual_seed(0)
    x = torch.randn(60, 5)
    y = torch.sin(2 * x @ torch.randn(5, 8)) + 0.1 * torch.randn(60, 8)
    return x, y - y.mean(dim=0)


@pytest.mark.parametrize("rank", [None, 3])
@pytest.mark.parametrize("n_landmarks", [60, 20])
def test_laplacian_ridge_is_a_ridge_on_shares_of_likeness(
    pairs: tuple[torch.Tensor, torch.Tensor], rank: int | None, n_landmarks: int
) -> None:
    x, y = pairs
    ridge = KernelRidge("laplacian", 5, 8, n_landmarks)
    weights, genes = ridge.fit(x, y, [0.1, 10.0], rank)
    marks = ridge.landmarks.numpy()
    assert len(marks) == n_landmarks and set(map(tuple, marks)) <= set(map(tuple, x.numpy()))
    assert float(ridge.width) == pytest.approx(np.median(pdist(marks)), rel=1e-2)

    def shares(points: np.ndarray) -> np.ndarray:
        alike = np.exp(-cdist(points, marks) / float(ridge.width))
        return np.asarray(alike / alike.sum(axis=1, keepdims=True))

    seen = shares(x.numpy())
    centred = seen - seen.mean(axis=0)
    axes = np.linalg.svd(y.numpy(), full_matrices=False)[2][:rank]
    new = np.random.default_rng(1).normal(size=(9, 5)).astype(np.float32)
    for penalty, one in zip((0.1, 10.0), weights, strict=True):
        alpha = penalty * np.linalg.eigvalsh(centred.T @ centred).mean()
        expected = Ridge(alpha=alpha, solver="cholesky").fit(seen, y.numpy() @ axes.T @ axes).predict(shares(new))
        ridge.keep(one, genes, penalty)
        assert ridge.penalty == penalty
        assert np.allclose(ridge(torch.from_numpy(new)), expected, atol=2e-3)


@pytest.mark.parametrize(("n", "many"), [(40, 1), (40, 1000), (20, 1), (20, 25)])
def test_axes_are_those_of_an_svd_of_many_genes_too(n: int, many: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MANY", many)
    monkeypatch.setattr(module, "AT_ONCE", 7)
    y = torch.from_numpy(np.random.default_rng(2).normal(size=(n, 30))) @ torch.diag(1 / torch.arange(1.0, 31)).double()
    found = module.principal_axes(y.float(), 4).numpy()
    assert np.allclose(abs(np.linalg.svd(y.numpy())[2][:4] @ found), np.eye(4), atol=1e-5)
    assert torch.equal(module.principal_axes(y, None), torch.eye(30).double())


@pytest.mark.parametrize("kernel", ["laplacian", "gaussian", "linear"])
def test_parts_of_a_large_table_give_what_it_gives_as_a_whole(
    pairs: tuple[torch.Tensor, torch.Tensor], kernel: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = []
    for size in (7, 1000):
        monkeypatch.setattr(module, "AT_ONCE", size)
        ridge = KernelRidge(kernel, 5, 8, 60)
        torch.manual_seed(1)
        weights, genes = ridge.fit(*pairs, [0.1])
        ridge.keep(weights[0], genes, 0.1)
        found.append(ridge(pairs[0]))
    assert torch.allclose(*found, atol=1e-3)


def test_shares_of_likeness_do_not_fade_far_from_all_landmarks(pairs: tuple[torch.Tensor, torch.Tensor]) -> None:
    x, y = pairs
    far = 30 * torch.eye(5)
    spread = {}
    for kernel in ("laplacian", "gaussian"):
        ridge = KernelRidge(kernel, 5, 8, 60)
        weights, genes = ridge.fit(x, y, [0.1])
        ridge.keep(weights[0], genes, 0.1)
        spread[kernel] = float(ridge(far).std(dim=0).mean() / ridge(x).std(dim=0).mean())
    assert spread["gaussian"] < 1e-3
    assert spread["laplacian"] > 0.2


def test_the_metric_is_the_root_of_the_mean_outer_product_of_slopes() -> None:
    rng = np.random.default_rng(3)
    x, marks, y = rng.normal(size=(40, 4)), rng.normal(size=(11, 4)), rng.normal(size=(40, 2))
    width = np.median(pdist(marks))  # of 55, so that there is one in the middle
    k = np.exp(-cdist(x, marks) / width)
    mean = k.mean(axis=0)
    alpha = module.SMOOTH * np.trace((k - mean).T @ (k - mean)) / 11
    ridge = Ridge(alpha=alpha, fit_intercept=False).fit(k - mean, y)

    def says(points: np.ndarray) -> np.ndarray:
        return np.asarray((np.exp(-cdist(points, marks) / width) - mean) @ ridge.coef_.T)

    steps = 1e-5 * np.eye(4)  # a landmark's own share has its tip there: both sides fall alike
    slopes = np.stack([(says(marks + step) - says(marks - step)) / 2e-5 for step in steps])  # (inputs, places, genes)
    values, vectors = np.linalg.eigh(np.einsum("ipg,jpg->ij", slopes, slopes))
    root = (vectors * values**0.25) @ vectors.T
    found = module.learnt_metric(*map(torch.from_numpy, (x, y, marks)), rounds=1).numpy()
    assert np.allclose(found, root * 2 / np.linalg.norm(root), atol=1e-4)


def test_many_genes_have_the_metric_of_their_axes(
    pairs: tuple[torch.Tensor, torch.Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    x, y = pairs
    y = y[:, :3] @ torch.randn(3, 40)
    every = module.learnt_metric(x, y, x[:20], 2)
    monkeypatch.setattr(module, "AXES", 3)
    assert torch.allclose(module.learnt_metric(x, y, x[:20], 2), every, atol=1e-6)


def test_what_does_not_count_is_learnt() -> None:
    torch.manual_seed(4)
    x, new = torch.randn(300, 12), torch.randn(200, 12)
    axes = torch.randn(2, 6)

    def truth(points: torch.Tensor) -> torch.Tensor:
        return torch.sin(points[:, :2] @ axes)

    y = truth(x) + 0.3 * torch.randn(300, 6)
    error = {}
    for rounds in (0, 2):
        ridge = KernelRidge("laplacian", 12, 6, 300, rounds)
        weights, genes = ridge.fit(x, y - y.mean(dim=0), [0.1, 1.0, 10.0])
        found = [ridge.terms(new) @ one @ genes.float().T + y.mean(dim=0) for one in weights]
        error[rounds] = min(float((one - truth(new)).square().mean()) for one in found)
    assert error[2] < 0.7 * error[0]
    size = ridge.metric.norm(dim=0)
    assert size[:2].min() > 2 * size[2:].max()
    assert ridge.metric.norm() == pytest.approx(12**0.5, rel=1e-4)


@pytest.mark.parametrize("of", ["inputs", "genes"])
def test_where_nothing_varies_all_differences_count_alike(of: str, pairs: tuple[torch.Tensor, torch.Tensor]) -> None:
    x, y = pairs
    x, y = (torch.ones_like(x), y) if of == "inputs" else (x, torch.zeros_like(y))
    assert torch.equal(module.learnt_metric(x, y, x[:20], 2), torch.eye(5).double())
