from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from spatialdata import SpatialData

import nh2st_scverse as nh
from nh2st_scverse.data.expression import log_normalise
from nh2st_scverse.tl import _cross_fit, _cross_validate, _retrieval

METRICS = {"partial_pearson", "pearson", "spearman", "mse", "mae", "variance_ratio", "ssim"}


def test_scores_of_all_methods_are_tidy(two: SpatialData, quick: dict[str, Any], snapshot: Callable) -> None:
    before = snapshot(two)
    scores = nh.tl.cross_validate(two, baselines=("mean", "knn", "ridge"), **quick)
    assert list(scores) == ["fold", "section", "method", "gene", "metric", "value", "ceiling"]
    assert set(scores["method"]) == {"nh2st", "mean", "knn", "ridge"}
    assert set(scores["metric"]) == METRICS
    assert scores["ceiling"].between(0, 1).mean() > 0.9
    assert (scores.groupby(["section", "gene"])["ceiling"].nunique() <= 1).all()
    assert not scores.duplicated(["fold", "section", "method", "gene", "metric"]).any()
    assert set(scores["fold"]) == set(scores["section"]) == {"section_0_spots", "section_1_spots"}
    assert (scores["fold"] == scores["section"]).all()
    assert (scores.groupby(["fold", "method", "metric"])["gene"].nunique() == 20).all()

    means = scores.groupby(["method", "metric"])["value"].mean().unstack()
    assert np.isnan(means.loc["mean", "pearson"])
    assert means.loc["ridge", "pearson"] > 0.1 and means.loc["nh2st", "pearson"] > 0.1
    after = snapshot(two)
    assert {k: after[k] for k in before} == before
    assert set(after) - set(before) == {"table.obsm.nh2st_features", "table.uns.nh2st_features"}


def test_the_panel_of_a_fold_is_chosen_without_it(two: SpatialData, quick: dict[str, Any]) -> None:
    table = two.tables["table"]
    x = table.X.toarray()
    x[np.ix_(table.obs["region"] == "section_1_spots", table.var_names == "NOISE01")] = (
        10000  # the highest of all there
    )
    x[:, table.var_names == "NOISE01"] += np.random.default_rng(0).integers(0, 9, (table.n_obs, 1))
    table.X = x
    scores = nh.tl.cross_validate(two, baselines=(), **quick | {"n_genes": 5})
    of = scores.groupby("fold")["gene"].agg(set)
    assert "NOISE01" in of["section_0_spots"]  # chosen on section 1
    assert "NOISE01" not in of["section_1_spots"]


def test_several_groups_in_one_fold(split: Callable, quick: dict[str, Any]) -> None:
    objects = [nh.datasets.synthetic(width_um=1200, seed=seed) for seed in (1, 2, 3)]
    scores = nh.tl.cross_validate(objects, groups=["a", "b", "a"], baselines=["ridge"], **quick)
    assert set(scores["fold"]) == {"a", "b"}
    held = scores.groupby("fold")["section"].agg(lambda s: sorted(set(s))).to_dict()
    assert held == {"a": ["2:section_0_spots", "section_0_spots"], "b": ["1:section_0_spots"]}


def test_several_groups_share_a_fold_but_not_a_validation(
    quick: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    objects = {name: nh.datasets.synthetic(width_um=800, seed=i) for i, name in enumerate("abcd")}
    seen = []
    fit = _cross_fit.fit

    def spy(train: Any, *args: Any, **kwargs: Any) -> Any:
        seen.append(train.groups)
        return fit(train, *args, **kwargs)

    monkeypatch.setattr(_cross_fit, "fit", spy)
    settings = quick | {"n_genes": 5}
    scores = nh.tl.cross_validate(objects, groups=list("abcd"), folds=2, baselines=[], **settings)
    folds = list(dict.fromkeys(scores["fold"]))
    assert len(folds) == 2 and sorted("".join(folds).replace(", ", "")) == list("abcd")
    # the groups that train together are held out one by one when a training is stopped
    assert [", ".join(groups) for groups in seen] == folds[::-1]
    assert (scores.groupby("fold")["section"].nunique() == 2).all()
    with pytest.raises(ValueError, match=r"Expected at least two folds= with each of the groups"):
        nh.tl.cross_validate(objects, groups=list("abcd"), folds=[["a"], ["b"]], **quick)


def test_smoothed_targets_are_scored_unsmoothed_and_beside_it_smoothed(
    two: SpatialData, quick: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    seen, smooth_seen = [], []
    score, smoothed_scores = _cross_validate._score, _cross_validate._smoothed_scores

    def spy(section: Any, spots: Any, target: Any, predicted: Any) -> Any:
        seen.append((section.rows[spots], target, predicted))
        return score(section, spots, target, predicted)

    def spy_smoothed(target: Any, predicted: Any) -> Any:
        smooth_seen.append(target)
        return smoothed_scores(target, predicted)

    monkeypatch.setattr(_cross_validate, "_score", spy)
    monkeypatch.setattr(_cross_validate, "_smoothed_scores", spy_smoothed)
    scores = nh.tl.cross_validate(two, baselines=["ridge"], smooth=True, library="panel", **quick)
    assert set(scores["metric"]) == METRICS | {"pearson_smoothed", "mse_smoothed"}
    table = two.tables["table"]
    (rows, honest, predicted), smoothed = seen[0], smooth_seen[0]
    panel = scores[scores["section"] == table.obs["region"].iloc[rows[0]]]["gene"].unique()
    counts = table.X.toarray()[rows][:, table.var_names.get_indexer(panel)]
    assert np.allclose(honest, log_normalise(counts))  # the unit that was trained on, but not smoothed
    assert smoothed.var() < 0.7 * honest.var()
    first = scores[(scores["section"] == table.obs["region"].iloc[rows[0]]) & (scores["method"] == "nh2st")]
    value = first[(first["gene"] == panel[0])].set_index("metric")["value"]
    assert value["pearson"] == pytest.approx(np.corrcoef(honest[:, 0], predicted[:, 0])[0, 1], abs=1e-5)
    assert value["pearson_smoothed"] == pytest.approx(np.corrcoef(smoothed[:, 0], predicted[:, 0])[0, 1], abs=1e-5)
    assert value["mse_smoothed"] < value["mse"]  # there is less noise to miss


ALL = ("knn", "ridge", "mlp", "retrieval", "ridge_context", "ridge@patch")


def shuffle_features(sdata: SpatialData) -> None:
    """Give every spot the image features of another one of its section."""
    table = sdata.tables["table"]
    features = table.obsm["nh2st_features"]
    for region in table.obs["region"].unique():
        rows = np.flatnonzero(table.obs["region"] == region)
        features[rows] = features[np.random.default_rng(0).permutation(rows)]


@pytest.mark.slow
def test_shuffled_images_score_zero_with_every_method(quick: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_retrieval, "EPOCHS", 30)
    sdata = nh.datasets.synthetic(n_sections=3, width_um=1500)
    settings = quick | {"n_genes": 40, "max_epochs": 8}
    true = nh.tl.cross_validate(sdata, baselines=ALL, **settings)
    shuffle_features(sdata)
    shuffled = nh.tl.cross_validate(sdata, baselines=ALL, **settings)
    for scores, low, high in ((true, 0.3, 1.0), (shuffled, -0.08, 0.08)):
        means = scores[scores["metric"] == "pearson"].groupby("method")["value"].mean()
        assert set(means.index) == {"nh2st", *ALL}
        assert means.between(low, high).all(), means


def what_a_fold_predicts(sdata: SpatialData, quick: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """Panel and predictions of every method for the second section."""
    seen: dict[str, Any] = {"predicted": []}

    def spy(section: Any, spots: Any, target: Any, predicted: Any) -> dict[str, np.ndarray]:
        if section.name == "section_1_spots":
            seen["predicted"].append(predicted)
        return {"pearson": np.zeros(predicted.shape[1])}

    with monkeypatch.context() as patch:
        patch.setattr(_cross_validate, "_score", spy)
        patch.setattr(_retrieval, "EPOCHS", 10)
        scores = nh.tl.cross_validate(sdata, baselines=["ridge", "mlp", "knn", "retrieval"], **quick)
    seen["panel"] = list(scores[scores["section"] == "section_1_spots"]["gene"].unique())
    return seen


def depends_on_held_out_counts(sdata: SpatialData, quick: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> bool:
    """Whether other counts in the second section change what models trained without it do there."""
    one = what_a_fold_predicts(sdata, quick, monkeypatch)
    table = sdata.tables["table"]
    x = table.X.toarray()
    held = np.flatnonzero(table.obs["region"] == "section_1_spots")
    x[held] = np.random.default_rng(0).permutation(x[held], axis=1)  # other genes
    table.X = x
    other = what_a_fold_predicts(sdata, quick, monkeypatch)
    assert len(one["predicted"]) == len(other["predicted"]) == 5
    same = all(np.array_equal(a, b) for a, b in zip(one["predicted"], other["predicted"], strict=True))
    return not (same and one["panel"] == other["panel"])


def test_nothing_that_predicts_has_seen_the_held_out_counts(
    two: SpatialData, quick: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert not depends_on_held_out_counts(two, quick, monkeypatch)


@pytest.mark.parametrize("leak", ["panel", "training"])
def test_the_guard_notices_a_leak(
    two: SpatialData, quick: dict[str, Any], monkeypatch: pytest.MonkeyPatch, leak: str
) -> None:
    choose, fit_fold, fit = _cross_validate.choose_panel, _cross_validate.fit_fold, _cross_fit.fit
    everything: list[Any] = []

    def leaky_choose(counts: Any, genes: Any, n_genes: Any, within: Any) -> list[str]:
        return choose(counts, genes, n_genes, None if leak == "panel" else within)

    def look(data: Any, *args: Any) -> nh.NH2ST:
        everything[:] = [data]
        return fit_fold(data, *args)

    def leaky_fit(train: Any, *args: Any, **kwargs: Any) -> nh.NH2ST:
        return fit(everything[0] if leak == "training" else train, *args, **kwargs)  # the held-out section too

    monkeypatch.setattr(_cross_validate, "choose_panel", leaky_choose)
    monkeypatch.setattr(_cross_validate, "fit_fold", look)
    monkeypatch.setattr(_cross_fit, "fit", leaky_fit)
    assert depends_on_held_out_counts(two, quick, monkeypatch)


def test_unknown_baselines(two: SpatialData, quick: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"baselines to be one of .*'ridge'.* found 'forest'"):
        nh.tl.cross_validate(two, baselines=["forest"], **quick)
