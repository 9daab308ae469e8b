"""What is scored, what a result says it is about, and which doubts it tells, with the same words everywhere."""

from __future__ import annotations

import json
import logging
from collections import Counter
from collections.abc import Callable
from typing import Any

import dask.array as da
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
from anndata import AnnData
from shapely import Point
from spatialdata import SpatialData
from spatialdata.models import TableModel

import nh2st_scverse as nh
from nh2st_scverse._constants import LOG_UNIT
from nh2st_scverse._options import Elements
from nh2st_scverse.data import targets
from nh2st_scverse.data.checks import LOW_R
from nh2st_scverse.data.cohort import Cohort, Sample, collect, counts_of
from nh2st_scverse.data.copies import Piece, apart, marks
from nh2st_scverse.data.expression import measured
from nh2st_scverse.data.section import locate_sections
from nh2st_scverse.data.targets import Counts, choose_panel
from nh2st_scverse.model.card import held_out_tissue
from nh2st_scverse.prediction import Prediction, write
from nh2st_scverse.tl._evaluate import compare


class Colours:
    """Mean colours and their spread."""

    name, input_size, dim, weights_hash = "colours", 16, 6, "none"

    def __call__(self, patches: np.ndarray) -> np.ndarray:
        x = patches.astype(np.float32) / 255
        return np.concatenate([x.mean(axis=(1, 2)), x.std(axis=(1, 2))], axis=1)


def cohort_of(sdata: SpatialData) -> Cohort:
    """The sections of an object as they are, without a look at their images."""
    return Cohort(tuple(Sample(one, sdata.tables["table"], sdata) for one in locate_sections(sdata)), 75.0)


def predicted_by_hand(sdata: SpatialData, **described: Any) -> None:
    """A prediction of 6 genes as a model leaves it."""
    table = sdata.tables["table"]
    values = measured(table)[:, :6] + np.random.default_rng(0).normal(0, 0.5, (table.n_obs, 6)).astype(np.float32)
    about = {"unit": LOG_UNIT, "cross_fitted": False, "json": json.dumps({"config": {}, **described})}
    write(
        sdata,
        table,
        np.arange(table.n_obs),
        Prediction(list(table.var_names[:6]), values, np.ones(6), None, None, about),
    )


# --- the same spots count wherever something is learnt or scored ---


def off_tissue(values: Callable[[np.ndarray], Any]) -> Callable[[AnnData], None]:
    return lambda t: t.obs.insert(0, "in_tissue", values(np.arange(t.n_obs) % 7 > 0))


def empty(t: AnnData) -> None:
    x = t.X.toarray()
    x[::7] = 0
    t.X = sp.csr_matrix(x)


SPOTS = {
    "off the tissue": off_tissue(lambda on: on.astype(int)),
    "off the tissue, in words": off_tissue(lambda on: np.where(on, "True", "False")),
    "off the tissue, as a category": off_tissue(lambda on: pd.Categorical(on.astype(int))),
    "without counts": empty,
}


@pytest.mark.parametrize("kind", SPOTS)
def test_spots_that_do_not_count_do_not_count_anywhere(two: SpatialData, kind: str) -> None:
    table = two.tables["table"]
    SPOTS[kind](table)
    counted = np.arange(table.n_obs) % 7 > 0
    panel = list(table.var_names[:6])
    trained = targets.measure(Counts.of(cohort_of(two), None), panel).trainable
    assert np.array_equal(np.concatenate(trained), counted)
    predicted_by_hand(two)
    assert np.array_equal(compare(two, key="nh2st", table_key=None, layer=None).scored, counted)
    assert nh.tl.biology(two)["n_spots"].sum() == counted.sum()
    inside = table[counted].copy()
    found = nh.tl.evaluate(two)
    two.tables["table"] = inside
    for name, values in nh.tl.evaluate(two).loc[found.index].items():
        assert np.allclose(values, found[name], rtol=0.02 if "ceiling" in str(name) else 1e-5), name


def test_background_chooses_no_genes(two: SpatialData) -> None:
    table = two.tables["table"]
    table.obs["in_tissue"] = np.arange(table.n_obs) % 2
    x = table.X.toarray()
    x[::2, :5], x[1::2, :5] = 900, 0  # molecules that lie on glass alone
    table.X = sp.csr_matrix(x)
    panel = choose_panel(Counts.of(cohort_of(two), None), "highest_mean", 20)
    assert len(panel) == 20 and not set(panel) & set(table.var_names[:5])


# --- what scores are about ---


@pytest.mark.parametrize(
    ("groups", "words"),
    [
        ({"a": "a"}, "blocks of one section; nothing is said of other patients"),
        ({"a": "p1", "b": "p1"}, "blocks of 2 sections of one group, 'p1'; nothing is said of other patients"),
        ({"a": "a", "b": "b"}, "whole sections; where they are of one patient, animal or slide"),
        ({"a": "p1", "b": "p2", "c": "p2"}, "whole groups: p1, p2"),
    ],
)
def test_held_out_tissue_is_told_in_words(groups: dict[str, str], words: str) -> None:
    assert held_out_tissue(groups).startswith(words)


def test_models_say_what_their_scores_are_about(model: nh.NH2ST) -> None:
    assert "whole sections; where they are of one patient" in repr(model)
    assert "whole sections; where they are of one patient" in model._repr_html_()
    assert set(model.card.tissue) == set(model.trained_on) and all(model.card.tissue.values())
    assert model.provenance()["held_out"] == held_out_tissue(model.trained_on)


def test_a_frozen_encoder_is_not_given_to_load(model: nh.NH2ST, tmp_path: Any) -> None:
    with pytest.raises(ValueError, match=r"was frozen and is no part of it: pass encoder= to nh.tl.predict_expression"):
        nh.NH2ST.load(model.save(tmp_path / "model"), encoder="efficientnet_lite0")


# --- one cross-fit of expression that has nothing to do with the image ---


@pytest.fixture(scope="module")
def unrelated(_two: SpatialData) -> tuple[SpatialData, list[str]]:
    """Rows in another order than the spots, cross-fitted; and what was logged."""
    sdata = SpatialData(
        images=dict(_two.images), shapes=dict(_two.shapes), tables={"table": _two.tables["table"].copy()}
    )
    table = sdata.tables["table"]
    table.X = table.X[np.random.default_rng(1).permutation(table.n_obs)]
    said: list[str] = []
    handler = logging.Handler()
    handler.emit = lambda record: said.append(record.getMessage())  # type: ignore[method-assign]
    log = logging.getLogger("nh2st_scverse")
    log.addHandler(handler)
    try:
        nh.tl.cross_fit(
            sdata,
            encoder=Colours(),
            n_genes=20,
            max_epochs=2,
            n_members=1,
            embedding=16,
            hidden=16,
            bottleneck=16,
            progress=False,
        )
    finally:
        log.removeHandler(handler)
    return sdata, said


def test_a_cross_fit_that_found_nothing_says_so_with_likely_causes(unrelated: tuple[SpatialData, list[str]]) -> None:
    sdata, said = unrelated
    about = sdata.tables["table"].uns["nh2st"]
    assert about["mean_pearson"] < LOW_R
    assert "tells next to nothing" in about["warning"] and "rows of the table in another order" in about["warning"]
    assert about["held_out"].startswith("whole sections; where they are of one patient")
    assert sum("tells next to nothing" in line for line in said) == 1
    assert not any("novelty above 1" in line for line in said)  # its scores are of these very spots


def test_nothing_is_said_twice(unrelated: tuple[SpatialData, list[str]]) -> None:
    assert max(Counter(unrelated[1]).values()) == 1


# --- the same tissue twice ---


def second_region(sdata: SpatialData, rows: np.ndarray) -> SpatialData:
    """The first section in two regions: some of its spots are `other_spots`, on the same image."""
    table = sdata.tables["table"]
    table = table[(table.obs["region"] == "section_0_spots").to_numpy()].copy()
    table.obs["region"] = pd.Categorical(np.where(rows, "other_spots", "section_0_spots"))
    del table.uns["spatialdata_attrs"]
    names = ["section_0_spots", "other_spots"]
    return SpatialData(
        images={"section_0_image": sdata.images["section_0_image"]},
        shapes=dict.fromkeys(names, sdata.shapes["section_0_spots"]),
        tables={"table": TableModel.parse(table, region=names, region_key="region", instance_key="spot_id")},
    )


def spots_of(sdata: SpatialData) -> np.ndarray:
    table = sdata.tables["table"]
    return table.obsm["spatial"][(table.obs["region"] == "section_0_spots").to_numpy()]


TOUCHING = {
    "two halves": lambda xy: xy[:, 0] > np.median(xy[:, 0]),
    "every second spot": lambda xy: np.arange(len(xy)) % 2 == 0,
    "a piece in the middle": lambda xy: (np.abs(xy - xy.mean(axis=0)) < 260).all(axis=1),
    "two strips": lambda xy: np.abs(xy[:, 1] - xy[:, 1].mean()) < 220,
}


@pytest.mark.parametrize("kind", TOUCHING)
def test_regions_that_touch_are_lines_of_a_check(two: SpatialData, kind: str) -> None:
    line = nh.pp.check(second_region(two, TOUCHING[kind](spots_of(two)))).set_index("check").loc["neighbours"]
    assert line["status"] == "warning" and "are on one picture" in line["found"] and "groups=" in line["remedy"]


def as_copy(change: Callable[[AnnData], Any]) -> Callable[[AnnData], AnnData]:
    def make(table: AnnData) -> AnnData:
        copy = table.copy()
        change(copy)
        return copy

    return make


COPIES = {
    "as it is": as_copy(lambda t: None),
    "lazy": as_copy(lambda t: setattr(t, "X", da.from_array(t.X.toarray(), chunks=(20, -1)))),
    "of objects": as_copy(lambda t: setattr(t, "X", t.X.toarray().astype(object))),
    "in another order": lambda t: t[::-1].copy(),
    "without some spots": lambda t: t[10:].copy(),
    "of another type": as_copy(lambda t: setattr(t, "X", sp.csc_matrix(t.X.astype(np.int64)))),
}


@pytest.mark.parametrize("kind", COPIES)
def test_copies_are_noticed_whatever_they_are_kept_in(two: SpatialData, kind: str) -> None:
    section = locate_sections(two)[0]
    table = two.tables["table"][section.rows].copy()
    copy = COPIES[kind](table)
    pieces = [
        Piece(name, name, section.geometry, 100.0, counts_of(t, np.arange(t.n_obs)))
        for name, t in {"a": table, "b": copy}.items()
    ]
    first = apart(pieces)[0]
    assert (first.check, first.status) == ("copies", "error") and "same counts" in first.found


def test_copies_are_lines_of_a_check(two: SpatialData) -> None:
    copy = SpatialData.init_from_elements(copied_under_another_name(two))
    (line,) = nh.pp.check(copy).query("check == 'copies'").to_dict("records")
    assert line["status"] == "error" and line["section"] == "" and "groups=" in line["remedy"]
    assert "copies" not in set(nh.pp.check(two)["check"])


def copied_under_another_name(sdata: SpatialData) -> dict[str, Any]:
    """The second section with the counts, the image and the places of the first."""
    table = sdata.tables["table"].copy()
    first, second = ((table.obs["region"] == f"section_{i}_spots").to_numpy() for i in (0, 1))
    n = min(first.sum(), second.sum())
    x = table.X.toarray()
    x[np.flatnonzero(second)[:n]] = x[np.flatnonzero(first)[:n]]
    table.X = sp.csr_matrix(x)
    return {**sdata.images, **sdata.shapes, "table": table}


# --- units ---


def in_unit(x: np.ndarray, kind: str) -> Any:
    library = x.sum(axis=1, keepdims=True)
    return {
        "log2(1 + counts per 1,000,000)": lambda: np.log2(1 + x / library * 1e6),
        "log10(1 + counts per 10,000)": lambda: np.log10(1 + x / library * 1e4),
        "log1p(counts per 5,000)": lambda: np.log1p(x / library * 5e3),
        "as given (logarithm)": lambda: np.log1p(x / library * 1e4) * np.linspace(0.5, 1, len(x))[:, None],
    }[kind]()


KINDS = ["log2(1 + counts per 1,000,000)", "log10(1 + counts per 10,000)", "log1p(counts per 5,000)"]


@pytest.mark.parametrize("kind", [*KINDS, "as given (logarithm)"])
def test_logarithms_that_tell_their_kind_keep_it(two: SpatialData, kind: str) -> None:
    table = two.tables["table"]
    table.X = in_unit(table.X.toarray().astype(float), kind)
    counts = Counts.of(cohort_of(two), None)
    assert targets.measure(counts, list(table.var_names[:4])).unit == kind and counts.logged


def test_logarithms_of_several_kinds_are_brought_to_one(
    two: SpatialData, split: Callable, caplog: pytest.LogCaptureFixture
) -> None:
    def together(*kinds: str | None) -> Counts:
        parts = split(two)
        for part, kind in zip(parts, kinds, strict=True):
            x = part.tables["table"].X.toarray().astype(float)
            part.tables["table"].X = sp.csr_matrix(x if kind is None else in_unit(x, kind))
        samples = [sample for part in parts for sample in cohort_of(part).samples]
        return Counts.of(Cohort(tuple(samples), 75.0), None)

    found = together(KINDS[0], KINDS[2])
    expected = together(None, None)
    assert found.unit == LOG_UNIT and "all are brought to" in caplog.text
    for a, b in zip(found.values, expected.values, strict=True):
        assert np.allclose(a.toarray(), b.toarray(), atol=2e-3)
    assert together(KINDS[0], "as given (logarithm)").unit == "as given (logarithm)"
    assert "do not tell their kind: are they the same?" in caplog.text
    with pytest.raises(ValueError, match="found both"):
        together(None, KINDS[0])


def test_shares_are_counts_and_no_logarithms(two: SpatialData) -> None:
    table = two.tables["table"]
    expected = Counts.of(cohort_of(two), None)
    x = table.X.toarray().astype(float)
    table.X = x / x.sum(axis=1, keepdims=True)
    found = Counts.of(cohort_of(two), None)
    assert (found.unit, found.logged) == (LOG_UNIT, False)
    assert np.allclose(found.values[0], expected.values[0].toarray(), atol=1e-4)


# --- tissue that a model saw ---


SAME = {
    "under another name": lambda s: None,
    "in another order": lambda s: s.tables.__setitem__("table", s.tables["table"][::-1].copy()),
    "some of its spots": lambda s: s.tables.__setitem__("table", s.tables["table"][::2].copy()),
    "as logarithms": lambda s: setattr(s.tables["table"], "X", measured(s.tables["table"])),
}


@pytest.mark.parametrize("kind", SAME)
def test_tissue_that_a_model_saw_is_known_by_its_expression(
    two: SpatialData, kind: str, caplog: pytest.LogCaptureFixture
) -> None:
    table = two.tables["table"]
    first = (table.obs["region"] == "section_0_spots").to_numpy()
    kept = marks(measured(table)[first][:, :6])
    predicted_by_hand(two, trained_on={"another": "a"}, tissue={"another": kept})
    SAME[kind](two)
    found = nh.tl.evaluate(two)
    assert found.attrs["in_sample"] and "was trained on the expression of ['section_0_spots']. So these" in caplog.text


def test_other_tissue_is_not_taken_for_it(two: SpatialData, caplog: pytest.LogCaptureFixture) -> None:
    other = nh.datasets.synthetic(width_um=1200, seed=5).tables["table"]
    predicted_by_hand(two, trained_on={"another": "a"}, tissue={"another": marks(measured(other)[:, :6])})
    assert not nh.tl.evaluate(two).attrs["in_sample"] and "was trained on" not in caplog.text


# --- placement is told by the counts that are used ---


def test_places_are_checked_by_the_layer_that_is_used(two: SpatialData, caplog: pytest.LogCaptureFixture) -> None:
    table, shapes = two.tables["table"], two.shapes["section_0_spots"]
    shapes.geometry = [Point(1200 - p.x, p.y) for p in shapes.geometry]
    table.layers["counts"] = table.X.copy()
    table.X = table.X.toarray() - 1.0  # as scaled values are
    elements = Elements(shapes="section_0_spots", allow=frozenset({"coarse"}))
    collect(two, elements)
    assert "mirrored" not in caplog.text
    collect(two, elements, layer="counts")
    assert "section_0_spots, fit: the spots look mirrored in x" in caplog.text
    found = nh.pp.check(two, layer="counts").query("check == 'fit'").set_index("section")["status"]
    assert found.to_dict() == {"section_0_spots": "warning", "section_1_spots": "ok"}
