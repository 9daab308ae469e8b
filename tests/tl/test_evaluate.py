from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from spatialdata import SpatialData

import nh2st_scverse as nh
from nh2st_scverse import metrics
from nh2st_scverse.data.expression import measured

COLUMNS = ["pearson", "spearman", "mse", "mae", "variance_ratio", "ceiling", "of_ceiling"]


@pytest.fixture
def predicted(two: SpatialData) -> SpatialData:
    """A prediction made by hand: the measured values with noise, for 5 genes, without the last two spots."""
    table = two.tables["table"]
    rng = np.random.default_rng(0)
    table.layers["mine"] = np.full(table.shape, np.nan, dtype=np.float32)
    table.layers["mine"][:-2, :5] = measured(table)[:-2, :5] + rng.normal(0, [0.1, 0.5, 1, 2, 4], (table.n_obs - 2, 5))
    table.var["mine"] = np.arange(300) < 5
    table.uns["mine"] = {"unit": "any", "json": json.dumps({"config": {}})}
    return two


def test_scores_are_those_of_the_sections_averaged(predicted: SpatialData, snapshot: Callable) -> None:
    before = snapshot(predicted)
    found = nh.tl.evaluate(predicted, key="mine")
    table = predicted.tables["table"]
    assert list(found) == COLUMNS and found.index.name == "gene"
    assert set(found.index) == set(table.var_names[:5])
    assert found["pearson"].is_monotonic_decreasing
    regions = table.obs["region"].to_numpy()
    usable = np.arange(table.n_obs) < table.n_obs - 2
    for name in ("pearson", "spearman", "mse", "mae", "variance_ratio"):
        by_hand = np.mean(
            [
                getattr(metrics, name)(measured(table)[at][:, :5], table.layers["mine"][at][:, :5])
                for at in ((regions == region) & usable for region in np.unique(regions))
            ],
            axis=0,
        )
        assert np.allclose(found.loc[table.var_names[:5], name], by_hand)
        column = table.var["mine_evaluated_pearson" if name == "pearson" else f"mine_{name}"]
        assert np.allclose(column.iloc[:5], by_hand) and column.iloc[5:].isna().all()
    assert found["ceiling"].between(0, 1).all()
    assert np.allclose(found["of_ceiling"], found["pearson"] / found["ceiling"])
    assert table.uns["mine_scores"]["mean_pearson"] == pytest.approx(found["pearson"].mean())
    assert (table.uns["mine_scores"]["n_genes"], table.uns["mine_scores"]["n_sections"]) == (5, 2)
    after = snapshot(predicted)
    names = {f"table.var.mine_{name}" for name in ("evaluated_pearson", *COLUMNS[1:-1])} | {"table.uns.mine_scores"}
    assert set(after) - set(before) == names and {k: after[k] for k in before} == before


def test_ceiling_needs_counts(predicted: SpatialData, caplog: pytest.LogCaptureFixture) -> None:
    table = predicted.tables["table"]
    with_counts = nh.tl.evaluate(predicted, key="mine")
    table.layers["counts"] = table.X.copy()
    table.X = measured(table)
    found = nh.tl.evaluate(predicted, key="mine")
    assert found["ceiling"].isna().all() and np.allclose(found["pearson"], with_counts["pearson"])
    assert "No raw counts: the noise ceiling is NaN. Pass layer=" in caplog.text
    again = nh.tl.evaluate(predicted, key="mine", layer="counts")
    assert np.allclose(again, with_counts)


def test_scores_of_a_cross_fitted_prediction(two: SpatialData, quick: dict[str, Any]) -> None:
    nh.tl.predict_expression(two, **quick)
    found = nh.tl.evaluate(two)
    assert len(found) == 20
    var = two.tables["table"].var
    assert np.allclose(found["pearson"], var.loc[found.index, "nh2st_pearson"], atol=1e-6)  # the same number twice


def test_errors(predicted: SpatialData, snapshot: Callable) -> None:
    table = predicted.tables["table"]
    table.layers["counts"] = table.X.copy()
    before = snapshot(predicted)
    for key in ("nh2st", "counts"):
        with pytest.raises(
            KeyError, match=f"No table has a prediction '{key}'; found .*'mine', 'counts'.*predict_expression"
        ):
            nh.tl.evaluate(predicted, key=key)
    with pytest.raises(
        KeyError, match=r"table_key='x' is not there. Available tables with a prediction 'mine': \['table'\]"
    ):
        nh.tl.evaluate(predicted, key="mine", table_key="x")
    with pytest.raises(TypeError, match="one SpatialData object, found AnnData"):
        nh.tl.evaluate(table, key="mine")  # type: ignore[arg-type]
    assert snapshot(predicted) == before
    table.uns["mine"]["json"] = json.dumps({"config": {"smooth": True}})
    with pytest.raises(ValueError, match=r"'mine' is in the unit 'any' of preset 'paper'.*cross_validate"):
        nh.tl.evaluate(predicted, key="mine")
    table.uns["mine"]["json"] = json.dumps({"config": {}})
    table.layers["mine"][2:] = np.nan
    with pytest.raises(ValueError, match="at least 3 predicted spots in a section"):
        nh.tl.evaluate(predicted, key="mine")
