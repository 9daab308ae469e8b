from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from spatialdata import SpatialData

import nh2st_scverse as nh


def test_scores_of_all_methods_are_tidy(two: SpatialData, quick: dict[str, Any], snapshot: Callable) -> None:
    before = snapshot(two)
    scores = nh.tl.cross_validate(two, baselines=("mean", "knn", "ridge"), **quick)
    assert list(scores) == ["fold", "section", "method", "gene", "metric", "value"]
    assert set(scores["method"]) == {"nh2st", "mean", "knn", "ridge"}
    assert set(scores["metric"]) == {"pearson", "spearman", "mse", "mae"}
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


def test_unknown_baselines(two: SpatialData, quick: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"baselines to be one of .*'ridge'.* found 'forest'"):
        nh.tl.cross_validate(two, baselines=["forest"], **quick)
