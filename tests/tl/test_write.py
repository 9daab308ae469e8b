"""What a prediction writes into a table, what the next one leaves of it, and what it never touches."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import anndata
import numpy as np
import pandas as pd
import pytest
import scanpy as sc
import spatialdata
from spatialdata import SpatialData

import nh2st_scverse as nh
from nh2st_scverse._constants import LOG_UNIT
from nh2st_scverse._keys import Keys
from nh2st_scverse.prediction import Prediction, find_prediction, read, write, written

PLACES = ("layers", "var", "obs", "obsm", "uns")


def made(sdata: SpatialData, n_genes: int = 8, *, uncertainty: bool = False, seed: int = 0, **about: Any) -> Prediction:
    """A prediction of some genes, without training; the last two spots have no image."""
    table = sdata.tables["table"]
    rng = np.random.default_rng(seed)
    values = rng.random((table.n_obs, n_genes), dtype=np.float32)
    values[-2:] = np.nan
    config = {"config": {"standardise": "section"}, "trained_on": {}}
    return Prediction(
        genes=list(table.var_names[:n_genes][::-1]),
        values=values,
        pearson=np.linspace(0.1, 0.6, n_genes),
        embedding=values[:, :3],
        border=np.arange(table.n_obs) < 5,
        about={"unit": LOG_UNIT, "cross_fitted": True, "mean_pearson": 0.35, "json": json.dumps(config)} | about,
        std=values + 1 if uncertainty else None,
        widths=np.ones((3, n_genes)) if uncertainty else None,
        novelty=values[:, 0] if uncertainty else None,
    )


def put(sdata: SpatialData, prediction: Prediction, **settings: Any) -> None:
    table = sdata.tables["table"]
    write(sdata, table, np.arange(table.n_obs), prediction, **settings)


def names(sdata: SpatialData) -> dict[str, list[str]]:
    """Everything in a table whose name says that it belongs to a prediction."""
    table = sdata.tables["table"]
    return {place: sorted(n for n in getattr(table, place) if "nh2st" in str(n)) for place in PLACES}


def earlier_version(sdata: SpatialData, key: str = "nh2st") -> None:
    """Make a table look as the version did that kept no list of what it wrote."""
    table = sdata.tables["table"]
    table.uns[key] = {k: v for k, v in table.uns[key].items() if k not in ("written", "values_in")}
    if f"{key}_predicted" in table.obs:
        del table.obs[f"{key}_predicted"]


# --- a second prediction ---


@pytest.mark.parametrize("old", [False, True], ids=["this version", "an earlier one"])
def test_a_second_prediction_leaves_nothing_of_the_first(two: SpatialData, old: bool) -> None:
    fresh = spatialdata.deepcopy(two)
    second = made(two, 5, seed=1)
    put(fresh, second)
    put(two, made(two, uncertainty=True))
    nh.tl.evaluate(two)
    nh.tl.biology(two)
    assert {"nh2st_ceiling", "nh2st_z80"} <= set(two.tables["table"].var) and len(names(two)["uns"]) == 3
    if old:
        earlier_version(two)
    put(two, second)
    assert names(two) == names(fresh)
    table = two.tables["table"]
    assert np.isfinite(table.layers["nh2st"]).sum() == 5 * (table.n_obs - 2)
    assert table.var["nh2st_pearson"].notna().sum() == table.var["nh2st"].sum() == 5


def test_a_second_prediction_leaves_what_the_user_added(two: SpatialData) -> None:
    put(two, made(two))
    table = two.tables["table"]
    table.obs["leiden"], table.obsm["X_umap"] = "1", np.zeros((table.n_obs, 2))
    table.layers["scaled"] = np.ones(table.shape)
    put(two, made(two, 4))
    assert {"leiden"} <= set(table.obs) and "X_umap" in table.obsm and "scaled" in table.layers


def test_rows_say_which_spots_are_predicted(two: SpatialData) -> None:
    table = two.tables["table"]
    some = np.arange(table.n_obs)[10:60][::-1]
    whole = made(two)
    part = replace(whole, values=whole.values[some], embedding=whole.embedding[some], border=whole.border[some])
    part.values[0] = np.nan
    write(two, table, some, part)
    assert table.obs["nh2st_predicted"].dtype == bool
    assert list(np.flatnonzero(table.obs["nh2st_predicted"])) == sorted(some[1:])
    found = read(table)
    assert np.array_equal(found.of(part.genes)[some], part.values, equal_nan=True)
    assert np.isnan(np.delete(found.values, some, axis=0)).all()


# --- what is not ours ---

OF_THE_USER: dict[str, tuple[str, str]] = {
    "the layer": ("layers", "nh2st"),
    "standard deviations": ("layers", "nh2st_std"),
    "a column of genes": ("var", "nh2st"),
    "scores": ("var", "nh2st_pearson"),
    "widths": ("var", "nh2st_z80"),
    "evaluated scores": ("var", "nh2st_evaluated_pearson"),
    "ceilings": ("var", "nh2st_ceiling"),
    "the border": ("obs", "nh2st_border"),
    "which are predicted": ("obs", "nh2st_predicted"),
    "novelty": ("obs", "nh2st_novelty"),
    "the embedding": ("obsm", "X_nh2st"),
    "provenance": ("uns", "nh2st"),
    "mean scores": ("uns", "nh2st_scores"),
    "Moran's I": ("uns", "nh2st_moran"),
}


def add(sdata: SpatialData, place: str, name: str) -> None:
    table = sdata.tables["table"]
    value = {"layers": np.ones(table.shape), "obsm": np.ones((table.n_obs, 2))}.get(place, "mine")
    getattr(table, place)[name] = value


@pytest.mark.parametrize("what", OF_THE_USER)
def test_what_the_user_has_is_refused_before_any_work(
    two: SpatialData, quick: dict[str, Any], model: nh.NH2ST, encoder: Any, snapshot: Callable, what: str
) -> None:
    place, name = OF_THE_USER[what]
    add(two, place, name)
    before = snapshot(two)
    for given in (quick, {"model": model, "encoder": encoder, "progress": False}):
        with pytest.raises(ValueError, match=rf"would overwrite .*{place}\['{name}'\].* which no prediction wrote"):
            nh.tl.predict_expression(two, **given)
    assert snapshot(two) == before and encoder.n_patches == 0


@pytest.mark.parametrize("what", ["evaluated scores", "ceilings", "mean scores"])
def test_evaluate_refuses_what_the_user_has(two: SpatialData, snapshot: Callable, what: str) -> None:
    put(two, made(two))
    add(two, *OF_THE_USER[what])
    before = snapshot(two)
    with pytest.raises(ValueError, match="which no prediction wrote"):
        nh.tl.evaluate(two)
    assert snapshot(two) == before


@pytest.mark.parametrize(("first", "second"), [("a_std", "a"), ("a", "a_std"), ("a_scores", "a"), ("a", "a_pearson")])
def test_other_predictions_are_refused(two: SpatialData, snapshot: Callable, first: str, second: str) -> None:
    put(two, made(two), key=first)
    before = snapshot(two)
    with pytest.raises(ValueError, match=rf"key_added='{second}'.*(which no prediction wrote|prediction '{first}')"):
        put(two, made(two, seed=1), key=second)
    assert snapshot(two) == before


@pytest.mark.parametrize(
    ("key", "message"),
    [
        (".", "name of letters"),
        ("..", "name of letters"),
        ("a" * 300, "at most 200 characters.*found 300"),
        ("nh2st_features", "where the features of the images are kept"),
        ("NH2ST", r"differs in capital letters only"),
        ("Nh2sT", r"differs in capital letters only"),
    ],
)
def test_names_that_cannot_be_written_are_refused(
    two: SpatialData, quick: dict[str, Any], snapshot: Callable, key: str, message: str
) -> None:
    put(two, made(two))
    before = snapshot(two)
    with pytest.raises(ValueError, match=message):
        nh.tl.predict_expression(two, key_added=key, **quick)
    assert snapshot(two) == before


@pytest.mark.parametrize("name", [".", "..", "Table", "b" * 201, "SECTION_0_spots"])
def test_names_of_tables_that_cannot_be_written_are_refused(
    two: SpatialData, quick: dict[str, Any], snapshot: Callable, name: str
) -> None:
    before = snapshot(two)
    with pytest.raises(ValueError, match=r"table_added"):
        nh.tl.predict_expression(two, table_added=name, **quick)
    assert snapshot(two) == before


# --- all or nothing ---


class Stop(BaseException):
    """Stands for a full disk as for an interruption."""


@pytest.mark.parametrize("again", [False, True], ids=["first", "second"])
@pytest.mark.parametrize("step", [0, 1, 2, 3, 5, 7, 8, 11])  # each kind of place but uns, the last to be written
def test_a_failure_in_the_middle_leaves_the_table_as_it_was(
    two: SpatialData, snapshot: Callable, monkeypatch: pytest.MonkeyPatch, step: int, again: bool
) -> None:
    if again:
        put(two, made(two, uncertainty=True))
        nh.tl.evaluate(two)
    before, order = snapshot(two), [list(getattr(two.tables["table"], place)) for place in ("obs", "var")]
    keys = Keys()
    places = [*keys.of_prediction, *keys.of_uncertainty]
    place, name = places[step]
    table = two.tables["table"]
    kind = type(getattr(table, place))
    store = kind.__setitem__
    stopped = []

    def fail(self: Any, key: Any, value: Any) -> None:
        if key == name and not stopped:
            stopped.append(key)
            raise Stop
        store(self, key, value)

    with monkeypatch.context() as patched, pytest.raises(Stop):
        patched.setattr(kind, "__setitem__", fail)
        put(two, made(two, 3, uncertainty=True, seed=2))
    assert stopped and snapshot(two) == before
    assert [list(getattr(two.tables["table"], place)) for place in ("obs", "var")] == order


def test_columns_of_one_name_are_refused_and_nothing_is_left(two: SpatialData, quick: dict[str, Any]) -> None:
    table = two.tables["table"]
    table.var = pd.DataFrame(np.zeros((table.n_vars, 2)), index=table.var_names, columns=["nh2st_pearson"] * 2)
    with pytest.raises(ValueError, match=r"would overwrite var\['nh2st_pearson'\]"):
        nh.tl.predict_expression(two, **quick)
    assert names(two) == {"layers": [], "var": ["nh2st_pearson"] * 2, "obs": [], "obsm": [], "uns": []}


# --- back from disk, and tables of their own ---


@pytest.mark.parametrize("table_added", [None, "predicted"])
def test_what_was_written_is_read_back(two: SpatialData, tmp_path: Path, table_added: str | None) -> None:
    prediction = made(two, uncertainty=True)
    put(two, prediction, table_added=table_added)
    two.write(tmp_path / "two.zarr")
    again = spatialdata.read_zarr(tmp_path / "two.zarr")
    name = find_prediction(again, "nh2st", None)
    assert name == (table_added or "table")
    found = read(again.tables[name])
    order = [list(prediction.genes).index(gene) for gene in found.genes]
    assert sorted(found.genes) == sorted(prediction.genes)
    for one in ("values", "std"):
        assert np.array_equal(getattr(found, one), getattr(prediction, one)[:, order], equal_nan=True)
    assert np.allclose(found.pearson, prediction.pearson[order]) and found.widths.shape == (3, 8)
    assert np.array_equal(found.border, prediction.border)
    assert np.allclose(found.novelty, prediction.novelty, equal_nan=True)
    assert np.allclose(found.embedding, prediction.embedding, equal_nan=True)
    assert (found.unit, found.cross_fitted, found.config) == (LOG_UNIT, True, {"standardise": "section"})
    kept = written(two.tables[name], "nh2st")
    assert written(again.tables[name], "nh2st") == kept and len(kept) >= 11
    put(again, made(again, 3), table_added=table_added)
    assert len(read(again.tables[name]).genes) == 3


def test_a_table_of_its_own_is_replaced_and_keeps_what_the_user_added(
    two: SpatialData, caplog: pytest.LogCaptureFixture
) -> None:
    put(two, made(two, uncertainty=True), table_added="predicted")
    first = two.tables["predicted"]
    first.obs["leiden"], first.var["mine"], first.uns["mine"] = "1", 2.0, "3"
    first.layers["scaled"] = first.X.copy()
    put(two, made(two, seed=1), table_added="predicted")
    second = two.tables["predicted"]
    assert (second.obs["leiden"] == "1").all() and (second.var["mine"] == 2).all() and second.uns["mine"] == "3"
    assert "scaled" in second.layers and "nh2st_std" not in second.layers and "nh2st_novelty" not in second.obs
    assert not np.array_equal(first.X, second.X, equal_nan=True) and "left out" not in caplog.text
    put(two, made(two, 3), table_added="predicted")
    assert "of that one are left out" in caplog.text and "layers['scaled']" in caplog.text
    assert (two.tables["predicted"].obs["leiden"] == "1").all()
    with pytest.raises(ValueError, match="table_added='table' is there already"):
        put(two, made(two), table_added="table")


# --- after joining and cutting ---


def joined(how: str, **settings: str) -> tuple[SpatialData | None, Any]:
    """Two sections, predicted one by one by one model and joined afterwards."""
    both = nh.datasets.synthetic(n_sections=2, width_um=800, n_genes=40)
    parts = [both.filter_by_coordinate_system(f"section_{k}") for k in (0, 1)]
    for part in parts:
        put(part, made(part, cross_fitted=False))
    if how == "anndata":
        return None, anndata.concat([part.tables["table"] for part in parts], **settings)
    whole = spatialdata.concatenate(parts, concatenate_tables=True, **settings)
    return whole, whole.tables["table"]


@pytest.mark.filterwarnings("ignore::UserWarning", "ignore::FutureWarning")
@pytest.mark.parametrize("how", ["anndata", "spatialdata"])
def test_joined_tables_keep_predictions_or_say_what_was_lost(how: str, caplog: pytest.LogCaptureFixture) -> None:
    whole, table = joined(how, merge="same", uns_merge="same")
    found = read(table)
    assert len(found.genes) == 8 and np.isfinite(found.pearson).all() and found.unit == LOG_UNIT
    assert table.obs["nh2st_predicted"].sum() == table.n_obs - 4 and "joining" not in caplog.text
    if whole is not None:
        assert nh.tl.evaluate(whole).shape == (8, 7)
        put(whole, made(whole, 3))
        assert len(read(table).genes) == 3

    whole, table = joined(how)
    found = read(table)
    assert len(found.genes) == 8 and np.isnan(found.pearson).all()
    assert 'merge="same", uns_merge="same"' in caplog.text and "uns['nh2st']" in caplog.text
    if whole is not None:
        columns = list(table.var)
        with pytest.raises(KeyError, match=r'lost when tables were joined.*merge="same", uns_merge="same"'):
            nh.tl.evaluate(whole)
        with pytest.raises(ValueError, match=r'its record was lost when tables were joined.*merge="same"'):
            put(whole, made(whole))
        assert list(table.var) == columns


def test_predictions_survive_cuts_and_h5ad(two: SpatialData, tmp_path: Path) -> None:
    put(two, made(two, uncertainty=True))
    expected = read(two.tables["table"])
    some = two.tables["table"][20:60]  # a view
    assert np.array_equal(read(some).values, expected.values[20:60], equal_nan=True)
    two.tables["table"].write_h5ad(tmp_path / "table.h5ad")
    again = anndata.read_h5ad(tmp_path / "table.h5ad")
    assert np.array_equal(read(again).std, expected.std, equal_nan=True)
    assert written(again, "nh2st") == written(two.tables["table"], "nh2st")
    cut = two.query.bounding_box(
        axes=("x", "y"), min_coordinate=[0, 0], max_coordinate=[600, 600], target_coordinate_system="section_0"
    )
    found = read(cut.tables["table"])
    assert 0 < len(found.values) < len(expected.values) and found.genes == expected.genes


def test_scanpy_goes_on_with_the_spots_that_are_predicted(two: SpatialData, caplog: pytest.LogCaptureFixture) -> None:
    put(two, made(two))
    table = two.tables["table"]
    assert "2 of 209 spots have no usable image: their predictions are NaN" in caplog.text
    assert "table[table.obs['nh2st_predicted']].copy()" in caplog.text
    good = table[table.obs["nh2st_predicted"]].copy()
    sc.pp.pca(good, layer="nh2st", mask_var="nh2st", n_comps=3)
    assert good.n_obs == table.n_obs - 2 and np.isfinite(good.obsm["X_pca"]).all()
    assert np.isfinite(good.obsm["X_nh2st"]).all()


@pytest.mark.parametrize("kind", ["float64", "object"])
def test_a_new_table_takes_ids_of_any_type(two: SpatialData, kind: str) -> None:
    table = two.tables["table"]
    table.obs["spot_id"] = table.obs["spot_id"].astype(kind)
    put(two, made(two), table_added="predicted")
    assert two["predicted"].obs["spot_id"].dtype == np.int64
    assert nh.tl.evaluate(two, table_key="predicted", n_splits=1).shape == (8, 7)
