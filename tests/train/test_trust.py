"""How far predictions may be off, and how unlike the training tissue a spot looks."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from scipy.stats import norm
from spatialdata import SpatialData

import nh2st_scverse as nh
from nh2st_scverse.data.section import locate_sections
from nh2st_scverse.train.data import Data
from nh2st_scverse.train.trust import LEVELS, Novelty, Residuals


def test_spread_is_found_where_the_truth_is_known() -> None:
    rng = np.random.default_rng(0)
    predicted = rng.uniform(0, 3, (4000, 3)).astype(np.float32)
    truth = np.stack([[0.2, 0.05, 0.4], [0.1, 0.5, 0.0]])
    measured = predicted + rng.normal(size=predicted.shape) * np.sqrt(truth[0] + truth[1] * predicted)
    found = Residuals.fit(predicted[:2000], measured[:2000])
    assert np.allclose(found.line, truth, atol=0.07)
    z = (measured[2000:] - predicted[2000:]) / found.std(predicted[2000:])
    assert z.std(axis=0) == pytest.approx(np.ones(3), rel=0.05)
    normal = norm.ppf(0.5 + np.array(LEVELS) / 2)
    assert np.allclose(found.widths, normal[:, None], rtol=0.1)
    for level, width in zip(LEVELS, found.widths, strict=True):
        assert (np.abs(z) < width).mean(axis=0) == pytest.approx(np.full(3, level), abs=0.03)


def test_intervals_hold_for_sparse_genes_too() -> None:
    rng = np.random.default_rng(0)
    rate = rng.gamma(2, 0.1, (6000, 2))
    measured, predicted = np.log1p(3 * rng.poisson(rate)), np.log1p(3 * rate) * 0.6  # nine of ten values are zero
    found = Residuals.fit(predicted[:3000], measured[:3000])
    away = np.abs(measured[3000:] - predicted[3000:]) / found.std(predicted[3000:])
    assert (away < norm.ppf(0.75)).mean() > 0.6  # a normal distribution would be wrong
    for level, width in zip(LEVELS, found.widths, strict=True):
        assert (away < width).mean(axis=0) == pytest.approx(np.full(2, level), abs=0.03)


def test_residuals_are_kept_and_those_of_earlier_versions_are_read() -> None:
    rng = np.random.default_rng(0)
    found = Residuals.fit(rng.normal(size=(50, 4)), rng.normal(size=(50, 4)))
    again = Residuals.of(found.array())
    assert np.array_equal(again.line, found.line) and np.array_equal(again.widths, found.widths)
    earlier = Residuals.of(found.array()[:2])
    assert np.array_equal(earlier.line, found.line)
    assert np.allclose(earlier.widths, np.array([[0.674], [1.282], [1.960]]), atol=1e-3)


def test_spread_is_never_zero() -> None:
    same = np.ones((20, 2), dtype=np.float32)
    measured = np.stack([np.ones(20), np.arange(20)], axis=1).astype(np.float32)
    found = Residuals.fit(same, measured)
    assert (found.std(same) > 0).all()
    assert (found.std(-5 * same) > 0).all()


def test_the_mean_of_members_is_less_far_off_than_they_are() -> None:
    rng = np.random.default_rng(0)
    truth = rng.uniform(1, 3, (6000, 2))
    measured = truth + rng.normal(size=truth.shape)
    noise = np.array([0.5, 1.5])  # of the members, in each gene; that of the measured values is 1
    members = truth + noise * rng.normal(size=(3, *truth.shape))
    found = Residuals.fit(members[0, :3000], measured[:3000])  # residuals of one member
    mean = members[:, 3000:].mean(axis=0)
    disagreement = ((members[:, 3000:] - mean) ** 2).mean(axis=(0, 1))
    std = found.std(mean, disagreement)
    assert ((measured[3000:] - mean) / std).std(axis=0) == pytest.approx(np.ones(2), rel=0.05)
    wide = ((measured[3000:] - mean) / found.std(mean)).std(axis=0)
    assert wide == pytest.approx(np.sqrt((1 + noise**2 / 3) / (1 + noise**2)), rel=0.05)  # without it: .93 and .73
    assert np.allclose(found.std(mean, 100.0), found.std(mean) * np.sqrt(0.5))  # much of it makes nothing certain


def test_what_the_mean_of_the_members_gains_is_that_of_the_section(
    several: SpatialData, encoder: Any, small: dict[str, Any]
) -> None:
    settings = {"encoder": encoder, "n_genes": 10, "max_epochs": 2, "progress": False, **small}
    model = nh.tl.train(several, **settings)
    section = locate_sections(several)[0]
    features = several["table"].obsm["nh2st_features"][section.rows]
    predicted = model.predict(section, features)
    members, alone = model.members, []
    for member in members:
        model.members = [member]
        alone.append(model.predict(section, features))
        told, std, _ = model.uncertainty(section, features)
        assert np.array_equal(told, alone[-1]) and np.array_equal(std, model.residuals.std(alone[-1]))
    model.members = members
    assert np.allclose(np.mean(alone, axis=0), predicted, atol=1e-5)
    expected = model.residuals.std(predicted, np.var(alone, axis=0).mean(axis=0))
    told, std, novelty = model.uncertainty(section, features)
    assert np.array_equal(told, predicted)
    assert np.allclose(std, expected, rtol=1e-4)
    assert (expected < model.residuals.std(predicted)).all()
    assert np.array_equal(novelty, model.novelty.score(features))


def test_novelty_is_high_for_what_training_did_not_show(data: Data) -> None:
    novelty = Novelty.fit(data)
    x = data.inputs[0]
    own = novelty.score(x)
    assert np.median(own) < 1
    noise = np.random.default_rng(0).normal(size=x.shape)
    for other in (x + 5 * x.std(axis=0), noise * x.std() * 5):
        assert np.median(novelty.score(other)) > 1.5
    again = Novelty.of(novelty.arrays())
    assert np.allclose(again.score(x), own, rtol=1e-5)


def test_one_group_judges_itself_by_halves(data: Data) -> None:
    one = replace(data, sections=tuple(replace(section, group="a") for section in data.sections))
    novelty = Novelty.fit(one)
    assert (novelty.score(data.inputs[0]) > 1).mean() < 0.15
    assert np.median(novelty.score(data.inputs[0][:, ::-1])) > 1.5


def test_features_without_variance_do_not_make_everything_novel(data: Data) -> None:
    flat = tuple(np.concatenate([x, np.full((len(x), 3), 0.7)], axis=1) for x in data.inputs)
    novelty = Novelty.fit(replace(data, inputs=flat))
    other = flat[0].copy()
    other[:, -3:] += 1e-3
    assert np.allclose(novelty.score(other), novelty.score(flat[0]), rtol=1e-3)


@pytest.fixture(scope="module")
def several() -> SpatialData:
    return nh.datasets.synthetic(width_um=1200, n_sections=3)


def test_uncertainty_is_written_and_covers(
    several: SpatialData, encoder: Any, small: dict[str, Any], tmp_path: Any
) -> None:
    table = several["table"]
    settings = {"encoder": encoder, "n_genes": 30, "max_epochs": 10, "progress": False, **small}
    nh.tl.predict_expression(several, uncertainty=True, **settings)
    panel = table.var["nh2st"].to_numpy()
    std, predicted = (table.layers[key][:, panel] for key in ("nh2st_std", "nh2st"))
    assert (std > 0).all()
    assert np.isnan(table.layers["nh2st_std"][:, ~panel]).all()
    z = np.abs(nh.data.expression.measured(table)[:, panel] - predicted) / std
    for level in (50, 80, 95):
        width = table.var[f"nh2st_z{level}"]
        assert width[~panel].isna().all()
        assert (z < width[panel].to_numpy()).mean() == pytest.approx(level / 100, abs=0.05)
    assert np.isfinite(table.obs["nh2st_novelty"]).all()
    nh.pl.uncertainty(several, list(table.var_names[panel][:1]))

    model = nh.tl.train(several, **settings)
    loaded = nh.NH2ST.load(model.save(tmp_path / "model"))
    nh.tl.predict_expression(several, model=model, encoder=encoder, uncertainty=True, progress=False)
    first = table.layers["nh2st_std"].copy(), table.obs["nh2st_novelty"].copy()
    nh.tl.predict_expression(
        several, model=loaded, encoder=encoder, uncertainty=True, table_added="new", progress=False
    )
    assert np.array_equal(several["new"].layers["nh2st_std"], first[0][:, table.var_names.get_indexer(loaded.genes)])
    assert np.allclose(several["new"].obs["nh2st_novelty"], first[1], rtol=1e-4)
    assert several["new"].var["nh2st_z80"].equals(table.var["nh2st_z80"][loaded.genes])
    del several.tables["new"]
    nh.tl.predict_expression(several, model=model, encoder=encoder, progress=False)  # what was is not left behind
    assert "nh2st_std" not in table.layers
    assert np.array_equal(table.obs["nh2st_novelty"], first[1])  # always told
    assert not [name for name in table.var if name.startswith("nh2st_z")]


def test_one_section_alone_has_uncertainty_from_its_other_blocks(encoder: Any, small: dict[str, Any]) -> None:
    one = nh.datasets.synthetic(width_um=1800, seed=5)
    settings = {"encoder": encoder, "n_genes": 20, "max_epochs": 5, "progress": False, **small}
    nh.tl.predict_expression(one, uncertainty=True, **settings)
    table = one["table"]
    panel = table.var["nh2st"].to_numpy()
    away = np.abs(nh.data.expression.measured(table) - table.layers["nh2st"])[:, panel]
    within = away < (table.var["nh2st_z80"].to_numpy() * table.layers["nh2st_std"])[:, panel]
    assert within.mean() == pytest.approx(0.8, abs=0.05)
    assert np.isfinite(table.obs["nh2st_novelty"]).all()


def test_a_slide_unlike_the_training_sections_is_warned_about(
    several: SpatialData, encoder: Any, small: dict[str, Any], caplog: pytest.LogCaptureFixture
) -> None:
    settings = {"encoder": encoder, "n_genes": 10, "max_epochs": 1, "progress": False, **small}
    model = nh.tl.train(several, **settings)
    other = nh.datasets.synthetic(width_um=1200, seed=3)
    image = other["section_0_image"]
    for level in image:  # recoloured
        image[level]["image"] = image[level]["image"].isel(c=[1, 2, 0]).assign_coords(c=image[level]["c"].values)
    nh.tl.predict_expression(
        other, model=model, encoder=encoder, uncertainty=True, allow=("off_tissue", "other_stain"), progress=False
    )
    assert "look unlike the training sections" in caplog.text
    assert other["table"].obs["nh2st_novelty"].median() > 1


def test_a_model_that_knows_no_familiar_tissue_says_so(
    several: SpatialData, encoder: Any, small: dict[str, Any], caplog: pytest.LogCaptureFixture
) -> None:
    settings = {"encoder": encoder, "n_genes": 10, "max_epochs": 1, "progress": False, **small}
    model = nh.tl.train(several, **settings)
    nh.tl.predict_expression(several, model=model, encoder=encoder, uncertainty=True, progress=False)
    assert "is NaN" not in caplog.text
    model.trust = replace(model.trust, novelty=None)  # as of a model that was saved by an earlier version
    nh.tl.predict_expression(several, model=model, encoder=encoder, uncertainty=True, progress=False)
    assert several["table"].obs["nh2st_novelty"].isna().all()
    assert "obs['nh2st_novelty'] is NaN" in caplog.text


def test_uncertainty_without_held_out_tissue_is_refused_before_any_work(
    several: SpatialData, encoder: Any, small: dict[str, Any]
) -> None:
    settings = {"encoder": encoder, "n_genes": 10, "max_epochs": 1, "progress": False, **small}
    model = nh.tl.train(several, **settings)
    model.trust = replace(model.trust, residuals=None)  # as after training on one group of small sections
    other = nh.datasets.synthetic(width_um=1200, seed=4)
    with pytest.raises(ValueError, match=r"no residuals on held-out tissue.*several groups"):
        nh.tl.predict_expression(other, model=model, encoder=encoder, uncertainty=True, progress=False)
    assert not other["table"].layers
    assert not [key for key in other["table"].obsm if key.startswith("nh2st")]
