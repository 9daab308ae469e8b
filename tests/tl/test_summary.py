from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

import nh2st_scverse as nh
from nh2st_scverse.tl._summary import N_TOP

GENES = [f"g{i:03}" for i in range(80)]


def frame(smoothed: bool = False) -> pd.DataFrame:
    """Two methods on 2 folds of 2 sections, "ours" better by 0.1; "flat" predicts constants."""
    rng = np.random.default_rng(0)
    parts = []
    for fold in "ab":
        for section in "12":
            base, ceiling = rng.uniform(0, 0.6, 80), rng.uniform(0.6, 1, 80)
            for method, value in {"ours": base + 0.1, "other": base, "flat": np.full(80, np.nan)}.items():
                scores = {"pearson": value, "mse": 1 - np.nan_to_num(value)}
                scores |= {"pearson_smoothed": value + 0.2} if smoothed else {}
                for metric, values in scores.items():
                    about = {"fold": fold, "section": f"{fold}{section}", "method": method, "gene": GENES}
                    parts.append(pd.DataFrame(about | {"metric": metric, "value": values, "ceiling": ceiling}))
    return pd.concat(parts, ignore_index=True)


@pytest.fixture
def scores() -> pd.DataFrame:
    return frame()


def test_means_lie_in_their_intervals(scores: pd.DataFrame) -> None:
    before = scores.copy()
    found = nh.tl.summarise(scores)
    assert list(found.index) == ["ours", "other", "flat"] and found.index.name == "method"
    assert found.loc["ours", "pearson"] - found.loc["other", "pearson"] == pytest.approx(0.1)
    pearson = scores[(scores["method"] == "ours") & (scores["metric"] == "pearson")]
    assert found.loc["ours", "pearson"] == pytest.approx(pearson["value"].mean())
    assert found.loc["ours", "of_ceiling"] == pytest.approx(pearson["value"].mean() / pearson["ceiling"].mean())
    for name in [c for c in found if not c.endswith(("_low", "_high"))]:
        inside = found[f"{name}_low"] <= found[name] + 1e-9, found[name] <= found[f"{name}_high"] + 1e-9
        assert np.logical_and(*inside).all(), name
    assert 0.01 < found.loc["ours", "pearson_high"] - found.loc["ours", "pearson_low"] < 0.2
    pd.testing.assert_frame_equal(nh.tl.summarise(scores), found)  # the same seed
    assert not nh.tl.summarise(scores, seed=1).equals(found)
    pd.testing.assert_frame_equal(scores, before)


def test_a_constant_prediction_counts_as_zero(scores: pd.DataFrame) -> None:
    """It must not gain by having no correlation where it fails."""
    lost = (scores["method"] == "ours") & (scores["metric"] == "pearson") & (scores["value"] < 0.4)
    kept = scores.loc[~lost & (scores["method"] == "ours") & (scores["metric"] == "pearson"), "value"]
    scores.loc[lost, "value"] = np.nan
    found = nh.tl.summarise(scores)
    assert found.loc["flat", "pearson"] == 0
    assert found.loc["ours", "pearson"] == pytest.approx(kept.sum() / 320)
    scores.loc[(scores["gene"] == "g000") & (scores["metric"] == "pearson"), "value"] = np.nan  # measured is constant
    others = scores[(scores["metric"] == "pearson") & (scores["method"] == "other")]["value"]
    assert nh.tl.summarise(scores).loc["other", "pearson"] == pytest.approx(others.mean())


def test_top_genes_by_ceiling_and_by_test_score(scores: pd.DataFrame) -> None:
    found = nh.tl.summarise(scores)
    own = scores[(scores["method"] == "other") & (scores["metric"] == "pearson")]
    measurable = [part.nlargest(N_TOP, "ceiling")["value"].mean() for _, part in own.groupby("section")]
    assert found.loc["other", "pearson_measurable50"] == pytest.approx(np.mean(measurable))
    best = own.groupby(["fold", "gene"])["value"].mean().groupby("fold").apply(lambda s: s.nlargest(N_TOP).mean())
    assert found.loc["other", "pearson_top50_published"] == pytest.approx(best.mean())
    # against the target that the model was trained on, where that is another one
    smoothed = nh.tl.summarise(frame(smoothed=True))
    assert smoothed.loc["other", "pearson_top50_published"] == pytest.approx(best.mean() + 0.2)
    assert smoothed.loc["other", "pearson_smoothed"] == pytest.approx(found.loc["other", "pearson"] + 0.2)
    assert smoothed.loc["other", "pearson"] == pytest.approx(found.loc["other", "pearson"])


def test_without_counts_there_is_no_ceiling(scores: pd.DataFrame) -> None:
    found = nh.tl.summarise(scores.assign(ceiling=np.nan))
    assert found.filter(like="of_ceiling").isna().all(axis=None) and found["pearson_measurable50"].isna().all()
    assert found["pearson"].notna().all()


def test_paired_differences(scores: pd.DataFrame) -> None:
    found = nh.tl.paired_differences(scores, method="ours").set_index("other")
    assert found.loc["other", ["difference", "low", "high"]].astype(float).to_numpy() == pytest.approx(0.1)
    assert found.loc["other", "greater"] == 1 and found.loc["other", "n"] == 320
    assert found.loc["flat", "low"] < found.loc["flat", "difference"] < found.loc["flat", "high"]
    by_section = nh.tl.paired_differences(scores, method="ours", by="section", n_resamples=100)
    assert list(by_section["section"]) == ["a1", "a2", "b1", "b2"] * 2 and (by_section["n"] == 80).all()
    by_gene = nh.tl.paired_differences(scores, method="ours", by="gene", n_resamples=100)
    assert list(by_gene["gene"]) == GENES * 2 and (by_gene["n"] == 4).all()
    flat = by_gene[by_gene["other"] == "flat"]
    assert (flat["low"] < flat["high"]).all()
    worse = nh.tl.paired_differences(scores, method="other", metric="mse").set_index("other")
    assert worse.loc["ours", "difference"] == pytest.approx(0.1)


def test_wrong_arguments(scores: pd.DataFrame) -> None:
    for function in (nh.tl.summarise, nh.tl.paired_differences):
        with pytest.raises(KeyError, match=r"columns .*of nh.tl.cross_validate.*found no \['fold', 'ceiling'\]"):
            function(scores.drop(columns=["fold", "ceiling"]))
    with pytest.raises(ValueError, match=r"method to be one of \['ours', 'other', 'flat'\], found 'nh2st'"):
        nh.tl.paired_differences(scores)
    with pytest.raises(ValueError, match=r"metric to be one of .*found 'ssim'"):
        nh.tl.paired_differences(scores, method="ours", metric="ssim")
    with pytest.raises(ValueError, match=r"by to be one of .*found 'fold'"):
        nh.tl.paired_differences(scores, method="ours", by="fold")
    with pytest.raises(ValueError, match="another method beside 'ours', found none"):
        nh.tl.paired_differences(scores[scores["method"] == "ours"], method="ours")
