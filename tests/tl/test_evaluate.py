from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import dask.array as da
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
from spatialdata import SpatialData

import nh2st_scverse as nh
from nh2st_scverse import metrics
from nh2st_scverse._constants import LOG_UNIT
from nh2st_scverse.data.expression import measured
from nh2st_scverse.prediction import Prediction, read, write

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


# --- held-out scores stay, whatever is measured ---


def by_model(sdata: SpatialData, trained_on: dict[str, str], **about: Any) -> None:
    """A prediction of 5 genes as a model leaves it, with held-out scores of its own."""
    table = sdata.tables["table"]
    noise = np.random.default_rng(0).normal(0, 0.5, (table.n_obs, 5))
    values = np.abs(measured(table)[:, :5] + noise).astype(np.float32)
    described = {"config": {}, "trained_on": trained_on}
    about = {"unit": LOG_UNIT, "cross_fitted": False, "mean_pearson": 0.3, "json": json.dumps(described)} | about
    genes = list(table.var_names[:5])
    prediction = Prediction(genes, values, np.full(5, 0.3), values[:, :2], np.zeros(table.n_obs, bool), about)
    write(sdata, table, np.arange(table.n_obs), prediction)


@pytest.mark.parametrize(
    ("trained_on", "cross_fitted", "seen"),
    [
        ({"section_0_spots": "p1", "section_1_spots": "p2"}, False, True),
        ({"first:section_1_spots": "p1", "second:section_1_spots": "p2"}, False, True),
        ({"another_spots": "p1"}, False, False),
        ({"section_0_spots": "p1"}, True, False),
        ({}, False, False),
    ],
)
def test_held_out_scores_are_never_replaced_and_seen_tissue_is_noticed(
    two: SpatialData, caplog: pytest.LogCaptureFixture, trained_on: dict[str, str], cross_fitted: bool, seen: bool
) -> None:
    by_model(two, trained_on, cross_fitted=cross_fitted)
    var = two.tables["table"].var
    before = var["nh2st_pearson"].copy()
    found = nh.tl.evaluate(two)
    assert var["nh2st_pearson"].equals(before)
    assert np.allclose(var.loc[found.index, "nh2st_evaluated_pearson"], found["pearson"])
    assert found["pearson"].mean() > 0.5
    assert two.tables["table"].uns["nh2st_scores"]["in_sample"] is seen
    assert ("was trained on sections of these names" in caplog.text) is seen
    assert found.attrs["in_sample"] is seen


def test_spots_without_counts_are_not_scored(two: SpatialData) -> None:
    table = two.tables["table"]
    by_model(two, {})
    full = nh.tl.evaluate(two)
    x = table.X.toarray()
    x[::5] = 0
    table.X = sp.csr_matrix(x)
    found = nh.tl.evaluate(two)
    at = np.arange(table.n_obs) % 5 > 0
    regions = table.obs["region"].to_numpy()
    scores = [
        metrics.pearson(*(v[at & (regions == r)][:, :5] for v in (measured(table), table.layers["nh2st"])))
        for r in np.unique(regions)
    ]
    assert np.allclose(found.loc[table.var_names[:5], "pearson"], np.mean(scores, axis=0))
    assert abs(found["pearson"].mean() - full["pearson"].mean()) < 0.05


def test_a_constant_prediction_counts_as_no_correlation(two: SpatialData) -> None:
    by_model(two, {})
    table = two.tables["table"]
    table.layers["nh2st"][:, 0] = 1.0
    found = nh.tl.evaluate(two)
    assert found.loc[table.var_names[0], ["pearson", "spearman"]].tolist() == [0, 0]
    x = table.X.toarray()
    x[:, 1] = 0
    table.X = sp.csr_matrix(x)
    assert np.isnan(nh.tl.evaluate(two).loc[table.var_names[1], "pearson"])  # nothing to be right about


# --- units ---


def scaled(x: np.ndarray, total: float | None) -> np.ndarray:
    library = x.sum(axis=1, keepdims=True)
    total = float(np.median(library)) if total is None else total
    return np.divide(x * total, library, out=np.zeros_like(x), where=library > 0)


CONVERTED = {
    "log2 of counts per million": lambda x: np.log2(1 + scaled(x, 1e6)),
    "log10": lambda x: np.log10(1 + scaled(x, 1e5)),
    "log1p of another sum": lambda x: np.log1p(scaled(x, None)),
    "normalised without logarithm": lambda x: scaled(x, 1e4),
    "shares": lambda x: scaled(x, 1.0),
    "lazy": lambda x: da.from_array(x, chunks=(50, -1)),
    "lazy and sparse": lambda x: da.from_array(x, chunks=(50, -1)).map_blocks(sp.csr_matrix),
    "objects": lambda x: x.astype(object),
    "by coordinates": lambda x: sp.csc_matrix(x),
    "whole numbers of few bits": lambda x: x.astype(np.uint16),
    "floats of few bits": lambda x: x.astype(np.float16),
}


@pytest.mark.parametrize("what", CONVERTED)
def test_measured_values_are_brought_to_the_unit_of_the_prediction(two: SpatialData, what: str) -> None:
    by_model(two, {})
    table = two.tables["table"]
    expected = nh.tl.evaluate(two)
    table.X = CONVERTED[what](table.X.toarray().astype(np.float64))
    found = nh.tl.evaluate(two)
    for name in ("pearson", "mse", "mae", "variance_ratio"):
        assert np.allclose(found[name], expected[name], rtol=2e-3), name


@pytest.mark.parametrize("unit", ["log2(1 + counts per 1,000,000)", "log1p(counts per 5,000)", "counts per 10,000"])
def test_counts_are_brought_to_another_unit_of_a_model(two: SpatialData, unit: str) -> None:
    table = two.tables["table"]
    x = table.X.toarray().astype(np.float64)
    values = {"log2": np.log2(1 + scaled(x, 1e6)), "log1p": np.log1p(scaled(x, 5000)), "counts": scaled(x, 1e4)}
    by_model(two, {}, unit=unit)
    table.layers["nh2st"][:, :5] = 0.9 * values[unit.split("(")[0].split(" ")[0]][:, :5]
    found = nh.tl.evaluate(two)
    assert np.allclose(found["pearson"], 1, atol=1e-4) and np.allclose(found["variance_ratio"], 0.81, atol=1e-3)


REFUSED: dict[str, tuple[Callable[[Any], None], str, str]] = {
    "a model of unknown logarithms and counts": (
        lambda t: None,
        "as given (logarithm)",
        "in the unit 'as given .logarithm.', found counts in X.* Pass layer= with the same logarithms as in training",
    ),
    "logarithms of some genes": (
        lambda t: setattr(t, "X", np.log1p(scaled(t.X.toarray(), 1e4)) * np.linspace(0.5, 1, t.n_obs)[:, None]),
        LOG_UNIT,
        "found logarithms of another kind, or of some genes only in X.*Pass layer= with the counts",
    ),
    "scaled, with logarithms in raw": (
        lambda t: (setattr(t, "raw", t.copy()), setattr(t, "X", t.X.toarray() - 1.0)),
        LOG_UNIT,
        r"negative values.*Scaled data cannot be used.*adata.raw\[:, adata.var_names\].X",
    ),
    "the prediction itself": (
        lambda t: setattr(t, "X", np.nan_to_num(t.layers["nh2st"])),
        LOG_UNIT,
        "Expected measured values in X of table 'table', found the prediction 'nh2st' itself. Pass layer=",
    ),
    "words": (
        lambda t: setattr(t, "X", np.full(t.shape, "many", dtype=object)),
        LOG_UNIT,
        "Expected numbers in X, found values of type object",
    ),
}


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("what", REFUSED)
def test_what_is_no_measured_value_is_refused(two: SpatialData, what: str) -> None:
    change, unit, message = REFUSED[what]
    by_model(two, {}, unit=unit)
    table = two.tables["table"]
    change(table)
    columns = list(table.var)
    with pytest.raises(ValueError, match=message):
        nh.tl.evaluate(two)
    assert list(table.var) == columns and "nh2st_scores" not in table.uns


# --- tables of predictions alone ---


def test_a_table_of_predictions_is_compared_with_the_counts_of_the_other(two: SpatialData) -> None:
    by_model(two, {})
    table = two.tables["table"]
    expected = nh.tl.evaluate(two)
    prediction = read(table)
    rows = np.arange(table.n_obs)[::-1]
    values = prediction.values[rows]
    turned = Prediction(prediction.genes[::-1], values[:, ::-1], np.full(5, 0.3), None, None, prediction.about)
    write(two, table, rows, turned, key="other", table_added="predicted")
    found = nh.tl.evaluate(two, key="other")
    pd.testing.assert_frame_equal(found[COLUMNS[:5]], expected[COLUMNS[:5]], check_exact=False, rtol=1e-5)
    added = two.tables["predicted"]
    assert {"other_evaluated_pearson", "other_ceiling"} <= set(added.var) and "other_scores" in added.uns
    assert "other_scores" not in table.uns
    nh.tl.biology(two, key="other")
    assert set(added.uns["other_moran"]["gene"]) <= set(added.var_names)
    del two.tables["table"]
    with pytest.raises(ValueError, match=r"holds predictions only .in X., and the tables \[\] with measured values"):
        nh.tl.evaluate(two, key="other")
