from __future__ import annotations

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
from matplotlib.text import Text

import nh2st_scverse as nh


@pytest.fixture
def scores() -> pd.DataFrame:
    pearson = np.random.default_rng(0).permutation(np.linspace(-0.1, 0.8, 60))
    frame = pd.DataFrame(
        {"pearson": pearson, "ceiling": np.minimum(pearson + 0.3, 1)}, index=[f"G{i}" for i in range(60)]
    )
    frame.loc["lost"] = np.nan
    return frame


def points(ax, label):
    return next(c for c in ax.collections if c.get_label().startswith(label)).get_offsets()


def test_genes_are_ranked(scores):
    ax = nh.pl.gene_scores(scores, n_top=5, return_ax=True)
    ordered = scores.dropna().sort_values("pearson", ascending=False)
    np.testing.assert_allclose(points(ax, "held-out"), np.column_stack([np.arange(1, 61), ordered["pearson"]]))
    np.testing.assert_allclose(points(ax, "noise ceiling"), np.column_stack([np.arange(1, 61), ordered["ceiling"]]))
    assert [text.get_text() for text in ax.texts] == [*ordered.index[:5], *ordered.index[-5:]]
    assert [text.xy[1] for text in ax.texts[:5]] == list(ordered["pearson"][:5])
    labels = [text.get_text() for text in ax.get_legend().get_texts()]
    assert labels == ["noise ceiling (mean 0.64)", "held-out correlation", "mean of 60 genes: 0.35"]
    mean = next(line for line in ax.lines if line.get_label().startswith("mean"))
    np.testing.assert_allclose(mean.get_ydata(), scores["pearson"].mean())


@pytest.mark.parametrize("spread", [0, 0.001, 1])
def test_names_do_not_overlap(scores, spread):
    scores["pearson"] = 0.5 + spread * (scores["pearson"] - 0.5)
    ax = nh.pl.gene_scores(scores, n_top=10, return_ax=True)
    ax.figure.canvas.draw()
    area = ax.get_window_extent()
    boxes = [Text.get_window_extent(text) for text in ax.texts]  # without the line to the point
    for i, one in enumerate(boxes):
        assert area.y0 - 2 <= one.y0 < one.y1 <= area.y1 + 2
        assert area.x0 < one.x0 < one.x1 < area.x1
        assert not any(one.overlaps(other) for other in boxes[i + 1 :])


def test_from_the_object_and_its_table(sdata):
    var = sdata["table"].var
    var["nh2st_ceiling"] = var["nh2st_pearson"] + 0.1
    for data in (sdata, sdata["table"]):
        ax = nh.pl.gene_scores(data, return_ax=True)
        np.testing.assert_allclose(points(ax, "held-out")[:, 1], np.linspace(0.8, -0.1, 40))
        np.testing.assert_allclose(points(ax, "noise ceiling")[:, 1], np.linspace(0.9, 0, 40), atol=1e-9)


def test_without_ceilings_and_few_genes():
    scores = pd.DataFrame({"pearson": [0.1, 0.6, 0.3]}, index=["a", "b", "c"])
    ax = nh.pl.gene_scores(scores, return_ax=True)
    assert [text.get_text() for text in ax.texts] == ["b", "c", "a"]
    assert len(ax.collections) == 1
    ax = nh.pl.gene_scores(scores.iloc[:1], return_ax=True)
    assert [text.get_text() for text in ax.texts] == ["a"]
    assert not nh.pl.gene_scores(scores, n_top=0, return_ax=True).texts


def test_given_axes_and_file(scores, tmp_path):
    before = scores.copy()
    _, ax = plt.subplots()
    assert nh.pl.gene_scores(scores, ax=ax, save=tmp_path / "scores") is None
    assert ax.collections
    assert len(plt.get_fignums()) == 1
    assert (tmp_path / "scores.png").stat().st_size > 0
    pd.testing.assert_frame_equal(scores, before)


def test_wrong_arguments(sdata, scores):
    with pytest.raises(KeyError, match=r"Expected a column 'pearson'.*\['ceiling'\].*nh\.tl\.evaluate"):
        nh.pl.gene_scores(scores[["ceiling"]])
    with pytest.raises(ValueError, match="NaN for every gene"):
        nh.pl.gene_scores(scores.loc[["lost"]])
    with pytest.raises(ValueError, match="n_top of 0 or more, found -1"):
        nh.pl.gene_scores(scores, n_top=-1)
    with pytest.raises(TypeError, match="Expected a SpatialData object, found dict"):
        nh.pl.gene_scores({})
    with pytest.raises(KeyError, match=r"key='other'.*nh\.tl\.predict_expression\(sdata\)"):
        nh.pl.gene_scores(sdata, key="other")
    assert not plt.get_fignums()
