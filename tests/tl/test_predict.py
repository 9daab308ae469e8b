from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
import spatialdata
from spatialdata import SpatialData
from spatialdata.models import ShapesModel, TableModel
from spatialdata.transformations import get_transformation, set_transformation

import nh2st_scverse as nh
from nh2st_scverse._constants import LOG_UNIT
from nh2st_scverse.data.cohort import collect
from nh2st_scverse.data.expression import measured
from nh2st_scverse.data.targets import Counts, choose_panel
from nh2st_scverse.metrics import pearson
from nh2st_scverse.nn import Config
from nh2st_scverse.tl._setup import outer_folds, sight_that_fits

WRITTEN = {
    "table.layers.nh2st",
    "table.var.nh2st",
    "table.var.nh2st_pearson",
    "table.obs.nh2st_border",
    "table.obs.nh2st_predicted",
    "table.obs.nh2st_novelty",
    "table.obsm.X_nh2st",
    "table.uns.nh2st",
    "table.obsm.nh2st_features",
    "table.uns.nh2st_features",
}


def spot_values(sdata: SpatialData, key: str = "nh2st") -> pd.DataFrame:
    """Predictions by spot name, genes in alphabetical order."""
    table = sdata.tables["table"]
    genes = sorted(table.var_names[table.var[key]])
    return pd.DataFrame(table[:, genes].layers[key], table.obs_names, genes).sort_index()


# --- what is written ---


def test_cross_fitting_writes_what_it_says_and_nothing_else(
    two: SpatialData, quick: dict[str, Any], snapshot: Callable
) -> None:
    before, x = snapshot(two), two.tables["table"].X
    assert nh.tl.predict_expression(two, **quick) is None
    after = snapshot(two)
    assert set(after) - set(before) == WRITTEN
    assert {k: after[k] for k in before} == before
    table = two.tables["table"]
    assert table.X is x

    layer = table.layers["nh2st"]
    assert layer.dtype == np.float32 and layer.shape == table.shape
    chosen = table.var["nh2st"]
    assert chosen.dtype == bool and chosen.sum() == 20
    assert np.isfinite(layer[:, chosen]).all() and np.isnan(layer[:, ~chosen]).all()
    trust = table.var["nh2st_pearson"]
    assert trust[chosen].between(-1, 1).all() and trust[~chosen].isna().all()
    regions = table.obs["region"].to_numpy()
    by_hand = [
        pearson(measured(table)[regions == r][:, chosen], layer[regions == r][:, chosen]) for r in np.unique(regions)
    ]
    assert np.allclose(trust[chosen], np.mean(by_hand, axis=0), atol=1e-5)
    assert table.obs["nh2st_border"].dtype == bool
    assert table.obsm["X_nh2st"].dtype == np.float32 and np.isfinite(table.obsm["X_nh2st"]).all()
    assert np.linalg.matrix_rank(table.obsm["X_nh2st"]) >= 10  # an embedding of 20 genes, not a constant

    about = table.uns["nh2st"]
    assert about["unit"] == LOG_UNIT
    assert (about["patch_um"], about["spacing_um"]) == pytest.approx((75.0, 100.0))
    assert about["cross_fitted"] is True and json.loads(about["folds"]) == ["section_0_spots", "section_1_spots"]
    assert all(isinstance(value, str | bool | int | float) for value in about.values())
    described = json.loads(about["json"])
    assert set(described["genes"]) == set(table.var_names[chosen])
    assert described["config"]["embedding"] == 32
    assert table.obsm["nh2st_features"].shape == (table.n_obs, 15 * len(Config().fields))


def test_the_panel_has_the_size_that_was_asked_for(two: SpatialData, quick: dict[str, Any]) -> None:
    cohort = collect(two)
    counts = Counts.of(cohort, None)
    within = [fold.train for fold in outer_folds(cohort.sections, Config(), cohort.patch_um, 0)]
    means = [
        measured(two.tables["table"])[two.tables["table"].obs["region"] == s.name].mean(axis=0) for s in cohort.sections
    ]
    worst = np.maximum(*[np.argsort(np.argsort(-m, kind="stable")) for m in means])
    for n in (1, 20, 100):
        panel = choose_panel(counts, "highest_mean", n, within)
        assert len(panel) == n
        assert worst[two.tables["table"].var_names.get_indexer(panel)].max() == np.sort(worst)[n - 1]
    assert len(choose_panel(counts, "highest_mean", None, within)) == 300


def test_a_listed_panel_is_predicted_in_any_order(two: SpatialData, quick: dict[str, Any]) -> None:
    panel = ["TUMOR05", "FAT01", "IMMUNE03"]
    nh.tl.predict_expression(two, genes=panel, key_added="mine", **quick)
    table = two.tables["table"]
    assert set(table.var_names[table.var["mine"]]) == set(panel)
    assert json.loads(table.uns["mine"]["json"])["genes"] == panel
    assert {"mine", "mine_pearson"} <= set(table.var) and "X_mine" in table.obsm and "mine_border" in table.obs
    assert "nh2st" not in table.layers


def test_one_section_is_cross_fitted_by_blocks(one: SpatialData, quick: dict[str, Any]) -> None:
    nh.tl.predict_expression(one, **quick)
    table = one.tables["table"]
    assert np.isfinite(table.layers["nh2st"][:, table.var["nh2st"]]).all()
    assert json.loads(table.uns["nh2st"]["folds"]) == [f"block {i}" for i in range(4)]
    assert table.var["nh2st_pearson"].mean() > 0.1


def test_the_default_encoder_runs(two: SpatialData, quick: dict[str, Any]) -> None:
    quick.pop("encoder")
    nh.tl.predict_expression(two, **quick | {"fields": (1.0,), "max_epochs": 5})
    assert two.tables["table"].uns["nh2st"]["encoder"] == nh.encoders.get().name
    assert two.tables["table"].var["nh2st_pearson"].mean() > 0.15
    assert two.tables["table"].obsm["nh2st_features"].shape[1] == nh.encoders.get().dim


def test_results_are_the_same_for_the_same_seed(two: SpatialData, quick: dict[str, Any]) -> None:
    other = spatialdata.deepcopy(two)
    nh.tl.predict_expression(two, seed=3, **quick)
    nh.tl.predict_expression(other, seed=3, **quick)
    assert np.array_equal(two.tables["table"].layers["nh2st"], other.tables["table"].layers["nh2st"], equal_nan=True)
    assert two.tables["table"].uns["nh2st"] == other.tables["table"].uns["nh2st"]
    nh.tl.predict_expression(other, seed=4, **quick)
    assert not np.array_equal(spot_values(two), spot_values(other))


def test_predicting_again_replaces_the_old_result(two: SpatialData, quick: dict[str, Any]) -> None:
    nh.tl.predict_expression(two, **quick)
    nh.tl.predict_expression(two, **quick | {"n_genes": 5})
    table = two.tables["table"]
    assert table.var["nh2st"].sum() == 5
    assert np.isfinite(table.layers["nh2st"]).sum() == 5 * table.n_obs
    assert table.var["nh2st_pearson"].notna().sum() == 5


def test_a_layer_that_no_memory_holds_is_refused(
    two: SpatialData, model: nh.NH2ST, encoder: Any, quick: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("nh2st_scverse.prediction.places.LARGEST_LAYER", 1000)
    for given in (quick, {"model": model, "encoder": encoder}):
        with pytest.raises(ValueError, match=r"would take 0 GB of memory: pass table_added='predicted'"):
            nh.tl.predict_expression(two, **given)
    assert "nh2st" not in two.tables["table"].layers and encoder.n_patches == 0


def test_table_added_writes_a_new_table(two: SpatialData, quick: dict[str, Any], snapshot: Callable) -> None:
    before = snapshot(two)
    nh.tl.predict_expression(two, table_added="predicted", **quick)
    after = snapshot(two)
    changed = {k for k in before if before[k] != after[k]}
    new = {k for k in after if k not in before and not k.startswith("predicted.")}
    assert changed == {"elements"} and new == {"table.obsm.nh2st_features", "table.uns.nh2st_features"}
    table, predicted = two.tables["table"], two.tables["predicted"]
    assert predicted.shape == (table.n_obs, 20) and predicted.X.dtype == np.float32
    assert list(predicted.obs_names) == list(table.obs_names)
    assert predicted.uns["spatialdata_attrs"]["instance_key"] == "spot_id"
    assert predicted.uns["nh2st"]["unit"] == LOG_UNIT
    nh.tl.predict_expression(two, table_key="table", **quick)
    genes = list(predicted.var_names)
    assert np.array_equal(predicted.X, table[:, genes].layers["nh2st"])


def test_chosen_sections_are_predicted_and_the_others_are_nan(
    one: SpatialData, two: SpatialData, quick: dict[str, Any]
) -> None:
    model = nh.tl.train(one, **quick)
    nh.tl.predict_expression(two, model=model, encoder=quick["encoder"], shapes_key="section_1_spots", progress=False)
    table = two.tables["table"]
    second = (table.obs["region"] == "section_1_spots").to_numpy()
    values = table.layers["nh2st"][:, table.var["nh2st"]]
    assert np.isfinite(values[second]).all() and np.isnan(values[~second]).all()
    assert np.isnan(table.obsm["X_nh2st"][~second]).all()


# --- with a model ---


def test_a_model_predicts_a_new_object(two: SpatialData, model: nh.NH2ST, encoder: Any, snapshot: Callable) -> None:
    new = nh.datasets.synthetic(width_um=1200, seed=7)
    before = snapshot(new)
    nh.tl.predict_expression(new, model=model, encoder=encoder, progress=False)
    after = snapshot(new)
    assert set(after) - set(before) == WRITTEN and {k: after[k] for k in before} == before
    table = new.tables["table"]
    assert set(table.var_names[table.var["nh2st"]]) == set(model.genes)
    assert np.allclose(table.var.loc[model.genes, "nh2st_pearson"], model.scores["pearson"], equal_nan=True)
    assert table.uns["nh2st"]["model"] == model.identifier and table.uns["nh2st"]["cross_fitted"] is False


def test_a_model_says_that_it_was_trained_on_what_it_predicts(
    two: SpatialData, model: nh.NH2ST, encoder: Any, caplog: pytest.LogCaptureFixture
) -> None:
    nh.tl.predict_expression(two, model=model, encoder=encoder, progress=False)
    assert "expression of ['section_0_spots', 'section_1_spots']: what it says of this tissue is no pred" in caplog.text
    caplog.clear()
    new = nh.datasets.synthetic(width_um=1200, seed=5)
    nh.tl.predict_expression(new, model=model, encoder=encoder, progress=False)
    assert "was trained on the expression" not in caplog.text


def test_genes_are_matched_by_name(two: SpatialData, model: nh.NH2ST, encoder: Any) -> None:
    permuted = spatialdata.deepcopy(two)
    order = np.random.default_rng(0).permutation(300)
    permuted.tables["table"] = two.tables["table"][:, order].copy()
    for sdata in (two, permuted):
        nh.tl.predict_expression(sdata, model=model, encoder=encoder, progress=False)
    pd.testing.assert_frame_equal(spot_values(two), spot_values(permuted))
    a, b = (s.tables["table"].var["nh2st_pearson"].sort_index() for s in (two, permuted))
    pd.testing.assert_series_equal(a, b)


def test_a_table_with_some_of_the_genes_gets_those(
    two: SpatialData, model: nh.NH2ST, encoder: Any, caplog: pytest.LogCaptureFixture
) -> None:
    full = spatialdata.deepcopy(two)
    nh.tl.predict_expression(full, model=model, encoder=encoder, progress=False)
    keep = [g for g in two.tables["table"].var_names if g not in model.genes[3:]]
    two.tables["table"] = two.tables["table"][:, keep].copy()
    nh.tl.predict_expression(two, model=model, encoder=encoder, progress=False)
    assert "17 of 20 genes of the model are not in the table and left out" in caplog.text
    assert "table_added=" in caplog.text
    found = spot_values(two)
    assert set(found) == set(model.genes[:3])
    pd.testing.assert_frame_equal(found, spot_values(full)[list(found)])
    nh.tl.predict_expression(two, model=model, encoder=encoder, table_added="all", progress=False)
    assert list(two.tables["all"].var_names) == model.genes


def test_a_table_without_its_genes_is_refused(
    two: SpatialData, model: nh.NH2ST, encoder: Any, snapshot: Callable
) -> None:
    two.tables["table"].var_names = [f"ENSG{i:05d}" for i in range(300)]
    before = snapshot(two)
    with pytest.raises(
        ValueError, match=r"None of the 20 genes of the model .* is in the table, which has e.g.*ENSG00000.*Rename"
    ):
        nh.tl.predict_expression(two, model=model, encoder=encoder, progress=False)
    assert snapshot(two) == before


def test_spots_without_a_table_get_one(two: SpatialData, model: nh.NH2ST, encoder: Any) -> None:
    nh.tl.predict_expression(two, model=model, encoder=encoder, progress=False)
    table = two.tables["table"]
    bare = SpatialData(
        images={"section_1_image": two.images["section_1_image"]},
        shapes={"section_1_spots": two.shapes["section_1_spots"]},
    )
    nh.tl.predict_expression(bare, model=model, encoder=encoder, progress=False)
    made = bare.tables["table"]
    assert list(made.var_names) == model.genes
    assert list(made.obs["spot_id"]) == list(two.shapes["section_1_spots"].index)
    second = table[table.obs["region"] == "section_1_spots"]
    assert np.allclose(made.X, second[:, model.genes].layers["nh2st"], atol=1e-5)
    with pytest.raises(KeyError, match=r"several shapes.*shapes_key= one of \['section_0_spots', 'section_1_spots'\]"):
        nh.tl.predict_expression(
            SpatialData(images=dict(two.images), shapes=dict(two.shapes)), model=model, encoder=encoder, progress=False
        )


def test_a_model_needs_its_own_encoder(two: SpatialData, model: nh.NH2ST, encoder: Any, snapshot: Callable) -> None:
    before = snapshot(two)
    with pytest.raises(ValueError, match="trained with encoder 'grid': pass it as encoder="):
        nh.tl.predict_expression(two, model=model, progress=False)
    encoder.weights_hash = "other"
    with pytest.raises(ValueError, match=r"'grid' \(weights none\), found 'grid' \(weights other\)"):
        nh.tl.predict_expression(two, model=model, encoder=encoder, progress=False)
    with pytest.raises(ValueError, match=r"\['patch_um', 'max_epochs'\] belong to training.*nh.tl.train"):
        nh.tl.predict_expression(two, model=model, encoder=encoder, patch_um=50.0, max_epochs=3, progress=False)
    assert snapshot(two) == before


def test_another_spot_spacing_is_warned_about(
    two: SpatialData, model: nh.NH2ST, encoder: Any, caplog: pytest.LogCaptureFixture
) -> None:
    nh.tl.predict_expression(two, model=model, encoder=encoder, microns_per_pixel=0.5, progress=False)
    assert "are 50 µm apart, those the model was trained on 100 µm: is microns_per_pixel right?" in caplog.text


# --- rows are matched by instance id ---


def permuted(sdata: SpatialData) -> SpatialData:
    """The same spots with the rows of the table and those of the shapes in other orders."""
    rng = np.random.default_rng(5)
    made = spatialdata.deepcopy(sdata)
    made.tables["table"] = made.tables["table"][rng.permutation(made.tables["table"].n_obs)].copy()
    for name, shapes in list(made.shapes.items()):
        systems = get_transformation(shapes, get_all=True)
        moved = ShapesModel.parse(shapes.iloc[rng.permutation(len(shapes))].copy())
        set_transformation(moved, systems, set_all=True)
        made.shapes[name] = moved
    return made


def test_the_order_of_rows_does_not_matter(two: SpatialData, model: nh.NH2ST, encoder: Any) -> None:
    other = permuted(two)
    assert list(other.shapes["section_0_spots"].index) != list(two.shapes["section_0_spots"].index)
    for sdata in (two, other):
        nh.tl.predict_expression(sdata, model=model, encoder=encoder, progress=False)
    a, b = two.tables["table"], other.tables["table"]
    at = b.obs_names.get_indexer(a.obs_names)
    assert np.array_equal(a.obsm["nh2st_features"], b.obsm["nh2st_features"][at])
    assert np.allclose(spot_values(two), spot_values(other), atol=1e-4)
    assert a.uns["nh2st_features"] == b.uns["nh2st_features"]


def test_training_does_not_depend_on_the_order_of_rows(two: SpatialData, quick: dict[str, Any]) -> None:
    # batches are drawn by position, so the network learns otherwise; the closed-form part is the same
    settings = quick | {"ridge": 1.0}
    other = permuted(two)
    for sdata in (two, other):
        nh.tl.predict_expression(sdata, genes=["TUMOR05", "FAT01", "IMMUNE03"], **settings)
    assert np.allclose(spot_values(two), spot_values(other), atol=1e-2)


@pytest.mark.parametrize("kind", ["csc", "dense", "int64", "float64"])
def test_the_kind_of_counts_does_not_matter(two: SpatialData, quick: dict[str, Any], kind: str) -> None:
    other = spatialdata.deepcopy(two)
    x = two.tables["table"].X
    made = {"csc": sp.csc_matrix(x), "dense": x.toarray(), "int64": x.astype(np.int64), "float64": x.astype(float)}[
        kind
    ]
    other.tables["table"].X = made
    for sdata in (two, other):
        nh.tl.predict_expression(sdata, **quick)
    assert np.array_equal(spot_values(two), spot_values(other))


def test_logged_layers_are_used_as_they_are(two: SpatialData, quick: dict[str, Any]) -> None:
    other = spatialdata.deepcopy(two)
    other.tables["table"].layers["logged"] = measured(two.tables["table"])
    nh.tl.predict_expression(two, **quick)
    nh.tl.predict_expression(other, layer="logged", **quick)
    assert np.array_equal(spot_values(two), spot_values(other))
    assert other.tables["table"].uns["nh2st"]["unit"] == two.tables["table"].uns["nh2st"]["unit"]  # it tells its kind


def test_several_objects_with_sections_of_the_same_name(
    one: SpatialData, quick: dict[str, Any], split: Callable
) -> None:
    objects = [nh.datasets.synthetic(width_um=1200, seed=seed) for seed in (1, 2)]
    model = nh.tl.train(objects, groups=["p1", "p2"], **quick)
    assert model.trained_on == {"section_0_spots": "p1", "1:section_0_spots": "p2"}
    n = quick["encoder"].n_patches
    assert n == len(Config().fields) * sum(o.tables["table"].n_obs for o in objects)
    nh.tl.train(objects, **quick)
    assert quick["encoder"].n_patches == n  # cached in both
    named = nh.tl.train({"a": objects[0], "b": objects[1]}, groups={"a": "x", "b": "y"}, **quick)
    assert sorted(named.trained_on.values()) == ["x", "y"]
    assert set(model.history["held_out"]) == {"p1", "p2"}


def test_sections_of_one_object_or_of_several_train_the_same_model(
    two: SpatialData, quick: dict[str, Any], split: Callable
) -> None:
    a, b = nh.tl.train(two, **quick), nh.tl.train(split(two), **quick)
    assert a.genes == b.genes and a.identifier == b.identifier


@pytest.mark.parametrize(
    ("groups", "expected"),
    [
        (None, ["section_0_spots", "section_1_spots"]),
        (["p", "q"], ["p", "q"]),
        ({"section_0_spots": "p", "section_1_spots": 2}, ["p", "2"]),
        (pd.Series({"section_1_spots": "q", "section_0_spots": "p"}), ["p", "q"]),
        (pd.Series(["p", "q"], index=[1, 0]), ["p", "q"]),
        ("patient", ["x", "y"]),
    ],
)
def test_groups_are_given_by_list_name_or_column(two: SpatialData, groups: Any, expected: list[str]) -> None:
    two.tables["table"].obs["patient"] = np.where(two.tables["table"].obs["region"] == "section_0_spots", "x", "y")
    assert [section.group for section in collect(two, groups=groups).sections] == expected


# --- borders ---


def test_spots_at_the_border_are_marked_and_those_outside_are_nan(
    two: SpatialData, model: nh.NH2ST, encoder: Any, caplog: pytest.LogCaptureFixture
) -> None:
    shapes = two.shapes["section_0_spots"]
    at = np.array([(p.x, p.y) for p in shapes.geometry])
    at[0], at[1] = (-30, 600), (20, 600)
    shapes.geometry = [shapes.geometry.iloc[0].__class__(*p) for p in at]
    nh.tl.predict_expression(two, model=model, encoder=encoder, progress=False)
    table = two.tables["table"]
    values = table.layers["nh2st"][:, table.var["nh2st"]]
    assert np.isnan(values[0]).all() and np.isfinite(values[1:]).all()
    assert np.isnan(table.obsm["X_nh2st"][0]).all()
    half = 75 * max(Config().fields) / 2  # of the largest field of view
    first = (table.obs["region"] == "section_0_spots").to_numpy()
    assert list(table.obs["nh2st_border"][first]) == list(((at < half) | (at > 1200 - half)).any(axis=1))
    assert "1 spots of 'section_0_spots' are outside the image: not predicted" in caplog.text
    assert "1 of 209 spots have no usable image: their predictions are NaN" in caplog.text


# --- fields of view of small sections ---


def test_wide_fields_are_left_out_where_their_margin_takes_too_much_of_a_section(
    two: SpatialData, quick: dict[str, Any], caplog: pytest.LogCaptureFixture
) -> None:
    cohort = collect(two)
    assert sight_that_fits(cohort.sections, Config(), cohort.patch_um, 0, ()) == Config()  # whole sections are held out
    alone = collect(two, groups=["same"] * 2).sections
    found = sight_that_fits(alone, Config(maps="all"), cohort.patch_um, 0, ())
    assert found.maps == "none"  # they see beyond their window
    assert found.fields == Config().fields[: len(found.fields)] and len(found.fields) < len(Config().fields)

    def left(*fields: float) -> int:
        folds = outer_folds(alone, replace(Config(), fields=fields), cohort.patch_um, 0)
        return min(sum(len(stay) for _, stay in fold.train) for fold in folds)

    with pytest.raises(ValueError, match="Too little tissue to hold out a block"):
        left(*Config().fields)
    assert left(*found.fields) >= 0.7 * left(1.0)
    with pytest.raises(ValueError, match="Too little tissue to hold out a block"):  # chosen by the user: not cut
        nh.tl.predict_expression(two, groups=["same"] * 2, fields=Config().fields, **quick)
    with caplog.at_level("INFO"):
        nh.tl.predict_expression(two, groups=["same"] * 2, **quick)
    assert f"Fields of view of {found.fields} patches instead of {Config().fields}" in caplog.text
    about = json.loads(two["table"].uns["nh2st"]["json"])
    assert tuple(about["config"]["fields"]) == found.fields


# --- nothing leaks ---


def test_predictions_of_held_out_spots_do_not_depend_on_their_counts(
    one: SpatialData, two: SpatialData, quick: dict[str, Any]
) -> None:
    panel = ["TUMOR05", "FAT01", "IMMUNE03", "STROMA02", "NOISE01"]
    for sdata in (one, two):
        cohort = collect(sdata)
        fold = outer_folds(cohort.sections, replace(Config(), fields=(1.0,)), cohort.patch_um, 0)[1]
        held_out = np.concatenate([cohort.sections[i].rows[at] for i, at in fold.held_out])
        changed = spatialdata.deepcopy(sdata)
        x = changed.tables["table"].X.toarray()
        x[held_out] = np.random.default_rng(0).poisson(30, (len(held_out), 300))
        changed.tables["table"].X = sp.csr_matrix(x)
        for each in (sdata, changed):
            nh.tl.predict_expression(each, genes=panel, **quick)
        before, after = (s.tables["table"][:, panel].layers["nh2st"] for s in (sdata, changed))
        assert np.array_equal(before[held_out], after[held_out])
        others = np.setdiff1d(np.arange(len(before)), held_out)
        assert not np.allclose(before[others], after[others])  # other folds were trained on the changed ones


def test_images_without_information_predict_nothing(one: SpatialData, quick: dict[str, Any]) -> None:
    class Noise:
        name, input_size, dim, weights_hash = "noise", 16, 15, "none"

        def __init__(self) -> None:
            self.rng = np.random.default_rng(0)

        def __call__(self, patches: np.ndarray) -> np.ndarray:
            return self.rng.normal(size=(len(patches), 15)).astype(np.float32)

    genes = {"genes": "highest_mean", "n_genes": 100}
    nh.tl.predict_expression(one, **quick | genes | {"encoder": Noise()})
    informed = spatialdata.deepcopy(one)
    nh.tl.predict_expression(informed, **quick | genes)
    assert one.tables["table"].var["nh2st_pearson"].mean() < 0.05  # below 0: blocks differ from the mean of the others
    assert informed.tables["table"].var["nh2st_pearson"].mean() > 0.2


def test_tables_are_found_among_others(two: SpatialData, quick: dict[str, Any]) -> None:
    other = TableModel.parse(two.tables["table"][:, :3].copy())
    del other.uns["spatialdata_attrs"]
    two.tables["loose"] = other
    nh.tl.predict_expression(two, **quick)
    assert "nh2st" in two.tables["table"].layers and "nh2st" not in two.tables["loose"].layers
