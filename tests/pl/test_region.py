from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

import nh2st_scverse as nh


@pytest.fixture
def found() -> pd.DataFrame:
    n = 40
    auc = np.linspace(0.05, 0.95, n)
    frame = pd.DataFrame({"auc": auc, "pearson": np.linspace(0.7, -0.1, n)}, index=[f"G{i}" for i in range(n)])
    frame["q"] = np.where(abs(auc - 0.5) > 0.2, 0.001, 0.5)
    frame["trusted"] = abs(auc - 0.5) * frame["pearson"].clip(lower=0)
    return frame.sample(frac=1, random_state=0)


def test_genes_stand_by_difference_and_trust(found):
    ax = nh.pl.region(found, n_top=3, return_ax=True)
    drawn = {c.get_label().split(" (")[0]: c.get_offsets() for c in ax.collections}
    for label, some in (("q < 0.05", found["q"] < 0.05), ("not told from chance", found["q"] >= 0.05)):
        np.testing.assert_allclose(drawn[label], found.loc[some, ["auc", "pearson"]].to_numpy())
    sure = found[(found["q"] < 0.05) & (found["trusted"] > 0)].sort_values("trusted", ascending=False)
    named = {text.get_text() for text in ax.texts}
    assert named == {*sure.index[sure["auc"] < 0.5][:3], *sure.index[sure["auc"] > 0.5][:3]}


def test_genes_that_differ_by_chance_are_not_named(found):
    ax = nh.pl.region(found.assign(q=0.9), return_ax=True)
    assert not ax.texts and len(ax.collections) == 1


def test_what_cannot_be_drawn_is_told(found):
    with pytest.raises(ValueError, match=r"what nh\.tl\.region returned, with columns .*found \['auc'\]"):
        nh.pl.region(found[["auc"]])
    with pytest.raises(ValueError, match="NaN for every gene"):
        nh.pl.region(found.assign(pearson=np.nan))
    with pytest.raises(ValueError, match="n_top of 0 or more"):
        nh.pl.region(found, n_top=-1)
