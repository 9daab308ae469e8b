from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.stats import pearsonr

from nh2st_scverse.nn import info_nce, pearson_loss


@pytest.mark.parametrize(("temperature", "negatives"), [(0.05, 0.1), (0.5, 1.0)])
def test_info_nce_equals_numpy(temperature: float, negatives: float) -> None:
    rng = np.random.default_rng(0)
    a, b = rng.normal(size=(2, 6, 4))
    expected = 0.0
    for i in range(6):
        s = [a[i] @ b[j] / np.linalg.norm(a[i]) / np.linalg.norm(b[j]) / temperature for j in range(6)]
        s = [value if j == i else negatives * value for j, value in enumerate(s)]
        expected -= (s[i] - np.log(np.sum(np.exp(s)))) / 6
    found = info_nce(torch.from_numpy(a), torch.from_numpy(b), temperature, negatives)
    assert float(found) == pytest.approx(expected, rel=1e-6)


def test_info_nce_goes_from_image_to_gene() -> None:
    a, b = torch.randn(2, 5, 4, generator=torch.Generator().manual_seed(0))
    assert not torch.isclose(info_nce(a, b), info_nce(b, a))


def test_pearson_loss_equals_scipy() -> None:
    rng = np.random.default_rng(0)
    p = rng.normal(size=(20, 3))
    m = p + rng.normal(size=(20, 3))
    expected = 1 - np.mean([pearsonr(p[:, g], m[:, g])[0] for g in range(3)])
    assert float(pearson_loss(torch.from_numpy(p), torch.from_numpy(m))) == pytest.approx(expected, rel=1e-6)


def test_pearson_loss_of_constant_genes_is_finite_and_so_is_its_gradient() -> None:
    p = torch.ones(8, 2, requires_grad=True)
    loss = pearson_loss(p, torch.zeros(8, 2))
    loss.backward()
    assert float(loss.detach()) == 1
    assert torch.isfinite(p.grad).all()
