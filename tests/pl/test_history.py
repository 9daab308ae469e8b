from __future__ import annotations

from types import SimpleNamespace

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest

import nh2st_scverse as nh


@pytest.fixture
def model() -> SimpleNamespace:
    rng = np.random.default_rng(0)
    names = ["loss", "mse", "pearson", "query_contrast", "neighbour_contrast", "validation_pearson"]
    table = pd.DataFrame(rng.random((14, 6)), columns=names)
    table.insert(0, "member", [0] * 8 + [1] * 6)
    table.insert(1, "held_out", ["s0"] * 8 + ["s1"] * 6)
    table.insert(2, "epoch", [*range(8), *range(6)])
    return SimpleNamespace(history=table)


def test_one_panel_per_term_and_one_line_per_member(model):
    before = model.history.copy()
    axes = nh.pl.history(model, return_ax=True)
    titles = [ax.get_title() for ax in axes]
    assert titles[0] == "validation: Pearson"
    assert len(set(titles)) == 6
    for ax, term in zip(axes[:3], ["validation_pearson", "loss", "mse"], strict=True):
        for member in (0, 1):
            line = next(line for line in ax.lines if line.get_label() == str(member))
            np.testing.assert_array_equal(line.get_ydata(), model.history.query("member == @member")[term])
    (legend,) = axes[0].figure.legends
    assert [text.get_text() for text in legend.get_texts()] == ["0", "1"]
    pd.testing.assert_frame_equal(model.history, before)


def test_the_best_epoch_is_marked(model):
    axes = nh.pl.history(model, return_ax=True)
    dots = [(line.get_xdata()[0], line.get_ydata()[0]) for line in axes[0].lines if line.get_marker() == "o"]
    best = model.history.loc[model.history.groupby("member")["validation_pearson"].idxmax()]
    assert dots == list(zip(best["epoch"], best["validation_pearson"], strict=True))


def test_terms_that_are_not_used_are_left_out(model, tmp_path):
    model.history["pearson"] = np.nan
    model.history = model.history.drop(columns=["query_contrast", "neighbour_contrast"]).query("member == 1")
    axes = nh.pl.history(model, return_ax=True, save=tmp_path / "history.png")
    assert [ax.get_title() for ax in axes] == [
        "validation: Pearson",
        "training: loss, all terms",
        "training: squared error",
    ]
    assert not axes[0].figure.legends
    assert (tmp_path / "history.png").stat().st_size > 0
    assert nh.pl.history(model) is None


def test_wrong_arguments(model):
    with pytest.raises(TypeError, match=r"Expected a trained model.*found str.*nh\.tl\.train"):
        nh.pl.history("model")
    with pytest.raises(ValueError, match="found 0 rows"):
        nh.pl.history(SimpleNamespace(history=model.history.iloc[:0]))
    with pytest.raises(ValueError, match=r"'validation_pearson', found 14 rows of \['epoch'\]"):
        nh.pl.history(SimpleNamespace(history=model.history[["epoch"]]))
    assert not plt.get_fignums()
