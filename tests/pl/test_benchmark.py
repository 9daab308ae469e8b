from __future__ import annotations

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest

import nh2st_scverse as nh

METHODS = {"ridge": 0.3, "nh2st": 0.35, "ridge@patch": 0.2, "mean": np.nan}


@pytest.fixture
def scores() -> pd.DataFrame:
    rng = np.random.default_rng(0)
    parts = []
    for section in ("a", "b", "c"):
        for method, level in METHODS.items():
            for metric, value in {"pearson": level, "mse": 1 - np.nan_to_num(level)}.items():
                about = {"fold": section, "section": section, "method": method, "gene": [f"g{i}" for i in range(20)]}
                values = value + 0.02 * rng.normal(size=20)
                parts.append(pd.DataFrame(about | {"metric": metric, "value": values, "ceiling": 0.7}))
    return pd.concat(parts, ignore_index=True)


def test_methods_stand_in_their_order_with_dots_for_sections(scores):
    before = scores.copy()
    (ax,) = nh.pl.benchmark(scores, return_ax=True)
    names = [text.get_text() for text in ax.get_yticklabels()]
    assert names == ["nh2st", "ridge", "ridge@patch", "mean"]
    own = scores[scores["metric"] == "pearson"].fillna({"value": 0})  # a constant prediction has no correlation
    for i, method in enumerate(names):
        expected = own[own["method"] == method].groupby("section")["value"].mean()
        dots = [np.asarray(c.get_offsets()) for c in ax.collections if len(c.get_offsets()) == 3]
        at = next(d[:, 0] for d in dots if abs(d[:, 1] - i).max() < 0.4)
        np.testing.assert_allclose(np.sort(at), np.sort(expected))
        means = [x for line in ax.lines for x, y in zip(*line.get_data(), strict=True) if y == i and np.isfinite(x)]
        assert np.isclose(means, expected.mean()).any()
    assert ax.get_xlabel() == "Pearson correlation"
    assert [text.get_text() for text in ax.texts] == ["noise ceiling 0.70"]
    pd.testing.assert_frame_equal(scores, before)


def test_the_same_picture_twice(scores):
    pictures = [nh.pl.benchmark(scores, return_ax=True)[0] for _ in range(2)]
    first, second = ([np.asarray(c.get_offsets()) for c in ax.collections] for ax in pictures)
    assert len(first) >= len(METHODS)
    assert all(np.array_equal(a, b) for a, b in zip(first, second, strict=True))


def test_several_metrics_share_the_methods(scores, tmp_path):
    axes = nh.pl.benchmark(scores, metric=["mse", "pearson"], save=tmp_path / "benchmark.pdf", return_ax=True)
    assert [ax.get_xlabel() for ax in axes] == ["mean squared error (less is better)", "Pearson correlation"]
    assert [text.get_text() for text in axes[0].get_yticklabels()] == ["nh2st", "ridge", "ridge@patch", "mean"]
    assert not axes[0].texts and len(axes[1].texts) == 1
    assert (tmp_path / "benchmark.pdf").stat().st_size > 0


def test_given_axes_and_no_ceiling(scores):
    _, ax = plt.subplots()
    assert nh.pl.benchmark(scores.drop(columns="ceiling"), ax=ax) is None
    assert ax.lines and not ax.texts and len(plt.get_fignums()) == 1


def test_wrong_arguments(scores):
    with pytest.raises(KeyError, match=r"columns .*cross_validate.*found no \['method'\]"):
        nh.pl.benchmark(scores.drop(columns="method"))
    with pytest.raises(ValueError, match=r"metric to be one of \['pearson', 'mse'\], found 'ssim'"):
        nh.pl.benchmark(scores, metric="ssim")
    with pytest.raises(ValueError, match="Expected one metric, found"):
        nh.pl.benchmark(scores, metric=[])
    assert not plt.get_fignums()
    with pytest.raises(ValueError, match="Expected one metric for the given axes"):
        nh.pl.benchmark(scores, metric=["pearson", "mse"], ax=plt.subplots()[1])
