"""What another tool predicted, as a layer or a table, goes the way of our own predictions: scores, figures, report."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import anndata as ad
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
from scipy.spatial import cKDTree
from spatialdata import SpatialData
from spatialdata.models import TableModel

import nh2st_scverse as nh
from nh2st_scverse._constants import LOG_UNIT
from nh2st_scverse.data.expression import measured
from nh2st_scverse.prediction import read

Snapshot = Callable[[SpatialData], dict[str, str]]


@pytest.fixture(scope="session")
def _drawn() -> SpatialData:
    return nh.datasets.synthetic(2, width_um=900, n_genes=20, microns_per_pixel=2)


@pytest.fixture
def sdata(_drawn: SpatialData) -> SpatialData:
    """Two sections; beside the counts a layer that another tool left, of 12 of 20 genes, without the last two spots."""
    made = SpatialData(images=dict(_drawn.images), shapes=dict(_drawn.shapes), tables={"table": _drawn["table"].copy()})
    table = made["table"]
    table.layers["tool"] = smooth(table)
    table.layers["tool"][:, 12:] = np.nan
    table.layers["tool"][-2:] = np.nan
    return made


def smooth(table: ad.AnnData) -> np.ndarray:
    """Means over neighbours within a section."""
    at = np.column_stack([table.obsm["spatial"], 1e6 * table.obs["region"].cat.codes])
    return measured(table)[cKDTree(at).query(at, 6)[1]].mean(axis=1)


def as_table(table: ad.AnnData, values: np.ndarray) -> ad.AnnData:
    """A table of the same spots in another order, with two genes that were not measured."""
    genes = [*table.var_names[:12], "not_measured_1", "not_measured_2"]
    x = np.hstack([values[:, :12], np.ones((len(values), 2), dtype=np.float32)])
    other = ad.AnnData(x, obs=table.obs[["region", "spot_id"]].copy(), var=pd.DataFrame(index=genes))
    other = other[np.random.default_rng(0).permutation(table.n_obs - 2)].copy()
    other.obs_names = [f"tile_{i}" for i in range(other.n_obs)]
    regions = list(other.obs["region"].cat.categories)
    return TableModel.parse(other, region=regions, region_key="region", instance_key="spot_id")


def test_a_layer_is_scored_and_found_by_all_that_draws(
    sdata: SpatialData, snapshot: Snapshot, caplog: pytest.LogCaptureFixture
) -> None:
    table, before = sdata["table"], snapshot(sdata)
    found = nh.tl.evaluate(sdata, predicted="tool", unit=LOG_UNIT)
    assert sorted(found.index) == sorted(table.var_names[:12]) and found["ceiling"].notna().all()
    assert "12 of 20 measured genes" in caplog.text and f"in {table.n_obs - 2} of {table.n_obs} spots" in caplog.text
    assert "whether its model saw this tissue is not known" in caplog.text and "was trained on" not in caplog.text
    assert found.attrs["in_sample"] is None and table.uns["tool_scores"]["in_sample"] == "not known"
    after = snapshot(sdata)
    assert {name: after[name] for name in before} == before
    new = {name.removeprefix("table.") for name in set(after) - set(before)}
    scores = ("evaluated_pearson", "spearman", "mse", "mae", "variance_ratio", "ceiling")
    assert new == {"var.tool", "obs.tool_predicted", "uns.tool", "uns.tool_scores", *(f"var.tool_{n}" for n in scores)}
    # all scores are those of a prediction of our own with these values
    table.layers["own"] = table.layers["tool"]
    table.var["own"] = table.var["tool"]
    table.uns["own"] = {"unit": LOG_UNIT, "json": "{}"}
    assert nh.tl.evaluate(sdata, key="own").equals(found)

    best = found.index[0]
    axes = nh.pl.scatter(sdata, key="tool", return_ax=True)
    assert axes[0].get_title().replace("\n", " ").startswith(f"{best}  r here = {found['pearson'].iloc[0]:.2f} of")
    for drawn in (found, sdata):
        ax = nh.pl.gene_scores(drawn, key="tool", return_ax=True)
        assert "correlation on these spots" in [t.get_text() for t in ax.get_legend().get_texts()]
        assert "held-out" not in " ".join([ax.get_title(), ax.get_ylabel(), ax.get_xlabel()])
    assert nh.pl.expression(sdata, best, key="tool", shapes_key="section_0_spots", return_ax=True).shape == (1, 3)
    plt.close("all")


def test_a_table_is_laid_beside_the_counts(
    sdata: SpatialData, snapshot: Snapshot, caplog: pytest.LogCaptureFixture
) -> None:
    table = sdata["table"]
    sdata["other"] = as_table(table, table.layers["tool"])
    sdata["other"].X = sp.csr_matrix(np.nan_to_num(sdata["other"].X))
    spots = sdata["other"].obs["spot_id"].astype(str) + sdata["other"].obs["region"].astype(str)
    in_order = (table.obs["spot_id"].astype(str) + table.obs["region"].astype(str)).isin(set(spots)).to_numpy()
    assert in_order.sum() == table.n_obs - 2
    table.layers["tool"] = np.where(in_order[:, None], np.nan_to_num(table.layers["tool"]), np.nan)
    table.layers["tool"][:, 12:] = np.nan
    wanted = nh.tl.evaluate(sdata, predicted="tool", unit=LOG_UNIT)
    before = snapshot(sdata)
    found = nh.tl.evaluate(sdata, predicted="other", unit=LOG_UNIT)
    assert found.equals(wanted)
    assert "2 of 14 genes of table 'other' are not measured in table 'table' and left out" in caplog.text
    assert np.array_equal(table.layers["other"], table.layers["tool"].astype(np.float32), equal_nan=True)
    first = snapshot(sdata)
    assert {name: first[name] for name in before} == before
    assert nh.tl.evaluate(sdata, predicted="other", unit=LOG_UNIT).equals(found) and snapshot(sdata) == first
    assert nh.tl.evaluate(sdata, key="other").equals(found)
    sdata["other"].X = sdata["other"].X * 0.5  # the tool ran again
    table.obsm["other_modules"], table.uns["other_modules"] = np.zeros((table.n_obs, 1)), {"n_modules": 1}
    assert nh.tl.evaluate(sdata, predicted="other", unit=LOG_UNIT)["mse"].mean() > found["mse"].mean()
    assert "other_modules" not in table.obsm  # was of other values
    del sdata["other"]
    with pytest.raises(KeyError, match="kept of a table of this name is scored by key='other'"):
        nh.tl.evaluate(sdata, predicted="other", unit=LOG_UNIT)


def test_a_table_without_regions_is_matched_by_names(sdata: SpatialData) -> None:
    table = sdata["table"]
    plain = ad.AnnData(smooth(table), obs=pd.DataFrame(index=table.obs_names), var=table.var[[]])[::-1].copy()
    sdata["other"] = TableModel.parse(plain)
    assert len(nh.tl.evaluate(sdata, predicted="other", unit=LOG_UNIT)) == 20
    assert np.allclose(table.layers["other"], smooth(table))


def test_counts_are_brought_to_the_unit(sdata: SpatialData, caplog: pytest.LogCaptureFixture) -> None:
    table = sdata["table"]
    logs = nh.tl.evaluate(sdata, predicted="tool", unit=LOG_UNIT)
    assert "The mean of the predicted values" not in caplog.text
    noise = np.random.default_rng(0).normal(1, 0.05, table.shape)
    table.layers["cpm"] = np.log2(1 + noise * np.expm1(measured(table)) * 100)
    found = nh.tl.evaluate(sdata, predicted="cpm", unit="log2(1 + counts per 1,000,000)")
    assert found["variance_ratio"].between(0.9, 1.1).all() and found["mse"].max() < 0.2
    assert "The mean of the predicted values" not in caplog.text
    nh.tl.evaluate(sdata, predicted="cpm", unit="counts per 10,000")
    assert "in the unit counts per 10,000 is" in caplog.text and "Is unit= that of the tool?" in caplog.text
    caplog.clear()
    table.layers["tool"] = table.layers["tool"] * 2 - 9  # no unit at all
    free = nh.tl.evaluate(sdata, predicted="tool", unit="not known")
    assert np.allclose(free["pearson"], logs.loc[free.index, "pearson"], atol=1e-6)
    assert free[["mse", "mae", "variance_ratio"]].isna().all(axis=None) and "Is unit=" not in caplog.text
    assert nh.tl.evaluate(sdata, key="tool").equals(free)  # the record tells


def test_columns_that_the_tool_left_are_not_read_as_ours(sdata: SpatialData, caplog: pytest.LogCaptureFixture) -> None:
    table = sdata["table"]
    table.var["tool_pearson"], table.obsm["X_tool"] = 0.9, np.zeros((table.n_obs, 2))
    nh.tl.evaluate(sdata, predicted="tool", unit=LOG_UNIT)
    found = read(table, "tool")
    assert np.isnan(found.pearson).all() and found.embedding is None and found.score.max() < 0.9
    assert (table.var["tool_pearson"] == 0.9).all() and "is not there" not in caplog.text
    with pytest.raises(ValueError, match=r"would overwrite layers\['tool'\]"):
        nh.tl.predict_expression(sdata, key_added="tool", progress=False)
    assert nh.tl.region(sdata, np.arange(table.n_obs) % 2 == 0, key="tool")["pearson"].notna().all()


def test_a_gene_that_is_0_everywhere_is_told(sdata: SpatialData, caplog: pytest.LogCaptureFixture) -> None:
    sdata["table"].layers["tool"][:, 3] = 0
    found = nh.tl.evaluate(sdata, predicted="tool", unit=LOG_UNIT)
    assert found.loc[sdata["table"].var_names[3], "pearson"] == 0
    assert "1 genes are 0 in every spot of layers['tool']" in caplog.text


def test_the_record_is_stored(sdata: SpatialData, tmp_path: Path) -> None:
    found = nh.tl.evaluate(sdata, predicted="tool", unit=LOG_UNIT)
    sdata["table"].write_h5ad(tmp_path / "table.h5ad")
    table = ad.read_h5ad(tmp_path / "table.h5ad")
    again = read(table, "tool")
    assert again.foreign and again.unit == LOG_UNIT
    assert np.allclose(again.score, found.loc[again.genes, "pearson"])


def test_mistakes(sdata: SpatialData, snapshot: Snapshot) -> None:
    table = sdata["table"]
    table.layers["counts"] = table.X.copy()
    table.layers["logs"] = measured(table)
    table.layers["none"] = np.full(table.shape, np.nan)
    table.layers["taken"], table.var["taken"] = table.layers["tool"], 1
    sdata["twice"] = as_table(table, table.layers["tool"])
    table.layers["twice"] = table.layers["tool"]
    sdata["genes"] = as_table(table, table.layers["tool"])
    sdata["genes"].var_names = [f"ENSG{i}" for i in range(14)]
    sdata["own"] = table.copy()
    sdata["own"].uns["mine"] = {"unit": LOG_UNIT, "values_in": "X", "json": "{}"}
    for name in list(sdata["own"].layers):
        del sdata["own"].layers[name]
    table.layers["ours"], table.uns["ours"] = (
        table.layers["tool"],
        {"unit": LOG_UNIT, "written": '[["layers", "ours"]]'},
    )
    before = snapshot(sdata)
    for options, told in [
        ({"predicted": "tool"}, r"Expected unit= to say.*found None.*log1p\(counts per 10,000\).*not known"),
        ({"predicted": "tool", "unit": "counts"}, "found 'counts'.*normalize_total"),
        ({"predicted": "tool", "unit": "counts per 0"}, "found 'counts per 0'"),
        ({"unit": LOG_UNIT}, "Expected unit= beside predicted= alone"),
        ({"predicted": "tool", "key": "x", "unit": LOG_UNIT}, "key='x' and predicted='tool': pass one"),
        ({"predicted": "counts", "unit": LOG_UNIT}, "found the prediction 'counts' itself"),
        ({"predicted": "logs", "unit": LOG_UNIT}, "found the prediction 'logs' itself"),
        ({"predicted": "none", "unit": LOG_UNIT}, "found NaN for every spot"),
        ({"predicted": "taken", "unit": LOG_UNIT}, r"predicted='taken' would overwrite var\['taken'\]"),
        ({"predicted": "twice", "unit": LOG_UNIT}, "'twice' is a table and a layer"),
        ({"predicted": "genes", "unit": LOG_UNIT}, "spots and genes of table 'genes'.*found none"),
        ({"predicted": "own", "unit": LOG_UNIT}, r"prediction 'mine' of this package: .*key='mine'"),
        ({"predicted": "ours", "unit": LOG_UNIT}, r"prediction 'ours' of this package"),
        ({"predicted": "tool", "unit": LOG_UNIT, "layer": "logs", "n_splits": 0}, "n_splits"),
    ]:
        with pytest.raises(ValueError, match=told):
            nh.tl.evaluate(sdata, **options)  # type: ignore[arg-type]
    with pytest.raises(KeyError, match="found no 'x' among the layers"):
        nh.tl.evaluate(sdata, predicted="x", unit=LOG_UNIT)
    with pytest.raises(KeyError, match=r"is known after nh.tl.evaluate\(sdata, predicted='tool', unit=...\)"):
        nh.tl.report(sdata, "page.html", key="tool")
    assert snapshot(sdata) == before
