"""How tools run: on which device, what an interruption leaves, which fields of view, and what belongs to training."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import lightning as L
import numpy as np
import pytest
from spatialdata import SpatialData

import nh2st_scverse as nh
from nh2st_scverse import _options
from nh2st_scverse._options import Run
from nh2st_scverse.encoders import _base
from nh2st_scverse.nn import Config

FEATURES = "nh2st_features"
WIDE = (1.0, 2.5, 6.0)


# --------------------------------------------------------------------------------------------- features are kept


def test_features_of_a_slide_without_spots_are_reused(two: SpatialData, model: nh.NH2ST, encoder: Any) -> None:
    slide = SpatialData(images={"section_1_image": two.images["section_1_image"]})
    nh.tl.predict_expression(slide, model=model, encoder=encoder, progress=False)
    n, first = encoder.n_patches, slide.tables["table"].X.copy()
    assert n == len(WIDE) * slide.tables["table"].n_obs
    nh.tl.predict_expression(slide, model=model, encoder=encoder, progress=False)
    assert encoder.n_patches == n  # nothing was encoded again
    assert np.array_equal(slide.tables["table"].X, first)


def test_features_of_places_beside_spots_are_reused(two: SpatialData, model: nh.NH2ST, encoder: Any) -> None:
    nh.pp.grid(two, spacing_um=150.0, image_key="section_1_image")
    options = {"model": model, "encoder": encoder, "progress": False, "allow": "off_tissue", "table_added": "places"}
    nh.tl.predict_expression(two, shapes_key="nh2st_grid", **options)
    n, first = encoder.n_patches, two.tables["places"].X.copy()
    nh.tl.predict_expression(two, shapes_key="nh2st_grid", table_key="places", **options)
    assert encoder.n_patches == n
    assert np.array_equal(two.tables["places"].X, first)


class Stop(L.Callback):
    """The stop button of a notebook, in the second epoch of the first or the second model."""

    def __init__(self, fit: int) -> None:
        self.fit, self.fits = fit, -1

    def on_fit_start(self, *_: Any) -> None:
        self.fits += 1

    def on_train_batch_end(self, trainer: L.Trainer, *_: Any) -> None:
        if trainer.current_epoch == 1 and self.fits == self.fit:
            raise KeyboardInterrupt


@pytest.mark.parametrize("tool", ["predict_expression", "cross_validate"])
@pytest.mark.parametrize("fit", [0, 2])
def test_an_interrupted_call_leaves_the_features_and_nothing_else(
    two: SpatialData, quick: dict[str, Any], snapshot: Callable, tool: str, fit: int
) -> None:
    before = snapshot(two)
    with pytest.raises(KeyboardInterrupt, match=r"interrupted.*features of the images are kept"):
        getattr(nh.tl, tool)(two, trainer_kwargs={"callbacks": [Stop(fit)]}, **quick)
    after = snapshot(two)
    assert set(after) - set(before) == {f"table.obsm.{FEATURES}", f"table.uns.{FEATURES}"}
    assert {name: after[name] for name in before} == before
    n = quick["encoder"].n_patches
    assert n == len(WIDE) * two.tables["table"].n_obs
    nh.tl.predict_expression(two, **quick)
    assert quick["encoder"].n_patches == n  # nothing was encoded again


def test_an_interrupted_training_leaves_its_features(two: SpatialData, quick: dict[str, Any]) -> None:
    class AtOnce(L.Callback):
        def on_train_start(self, *_: Any) -> None:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt, match="before its first epoch ended: no model"):
        nh.tl.train(two, trainer_kwargs={"callbacks": [AtOnce()]}, **quick)
    n = quick["encoder"].n_patches
    nh.tl.train(two, **quick)
    assert quick["encoder"].n_patches == n


def test_a_training_that_fails_leaves_nothing(two: SpatialData, quick: dict[str, Any], snapshot: Callable) -> None:
    class Fail(L.Callback):
        def on_train_start(self, *_: Any) -> None:
            raise MemoryError("full")

    before = snapshot(two)
    for tool in (nh.tl.train, nh.tl.predict_expression, nh.tl.cross_validate):
        with pytest.raises(MemoryError, match="full"):
            tool(two, trainer_kwargs={"callbacks": [Fail()]}, **quick)
        assert snapshot(two) == before


# ------------------------------------------------------------------------------------------------ fields of view


def test_fields_that_the_user_chose_are_not_cut(two: SpatialData, quick: dict[str, Any]) -> None:
    """Even if they are those of the preset, which are cut on sections of this size."""
    assert Config().fields == WIDE
    together = quick | {"groups": ["same"] * 2, "max_epochs": 1, "n_members": 1}
    cut = nh.tl.train(two, **together)
    assert cut.config.fields == WIDE[: len(cut.config.fields)] and len(cut.config.fields) < len(WIDE)
    chosen = nh.tl.train(two, fields=WIDE, **together)
    assert chosen.config.fields == WIDE
    assert chosen.members[0].n_features == 15 * len(WIDE)
    assert two.tables["table"].obsm[FEATURES].shape[1] == 15 * len(WIDE)


def test_chosen_fields_reach_cross_fitting_and_cross_validation(one: SpatialData, quick: dict[str, Any]) -> None:
    nh.tl.predict_expression(one, fields=WIDE[:2], **quick)
    assert json.loads(one["table"].uns["nh2st"]["json"])["config"]["fields"] == list(WIDE[:2])
    del one["table"].obsm[FEATURES]
    nh.tl.cross_validate(one, baselines=["mean"], fields=WIDE[:2], **quick)
    assert one["table"].obsm[FEATURES].shape[1] == 15 * 2


def test_training_on_one_section_has_scores_on_held_out_tissue(quick: dict[str, Any]) -> None:
    section = nh.datasets.synthetic(width_um=3000)
    model = nh.tl.train(section, **quick)
    assert model.config.fields == WIDE[:2]  # the margin of the widest would leave no tissue to score on
    assert len(model.trained_on) == 1
    assert model.scores["pearson"].notna().all() and model.residuals is not None
    assert list(model.history["held_out"].unique()) == ["block 0", "block 1"]


# -------------------------------------------------------------------------------------------------------- device


class Probe:
    """An encoder that is made by its name, and takes note of where."""

    name, input_size, dim, weights_hash = "probe", 16, 3, "none"
    made: ClassVar[list[str]] = []

    def __init__(self, *, device: str) -> None:
        self.made.append(device)

    def __call__(self, patches: np.ndarray) -> np.ndarray:
        return patches.mean(axis=(1, 2)) / 255


@dataclass
class Devices:
    """Where encoders were made, trainings ran, and models predicted."""

    encoder: list[str]
    training: list[str]
    prediction: list[str]


@pytest.fixture
def devices(monkeypatch: pytest.MonkeyPatch) -> Iterator[Devices]:
    """Another device is believed to be here; what is sent to it is noted, and computed on the processor."""
    seen = Devices([], [], [])
    options, over_members, by_member = Run.trainer_options, nh.NH2ST._over_members, nh.NH2ST._by_member

    def on_processor(self: Run) -> dict[str, Any]:
        seen.training.append(self.device)
        return options(self.but(device="cpu"))

    def predict(self: nh.NH2ST, of: Any, section: Any, inputs: Any, device: str) -> Any:
        seen.prediction.append(device)
        return over_members(self, of, section, inputs, "cpu")

    def member(self: nh.NH2ST, of: Any, section: Any, inputs: Any, device: str) -> Any:
        return by_member(self, of, section, inputs, "cpu")

    monkeypatch.setattr(_options, "as_device", str)
    monkeypatch.setattr(nh.NH2ST, "_by_member", member)
    monkeypatch.setattr(Run, "trainer_options", on_processor)
    monkeypatch.setattr(nh.NH2ST, "_over_members", predict)
    monkeypatch.setitem(_base.NAMED, "probe", ("Probe", {}))
    monkeypatch.setattr(nh.encoders, "Probe", Probe, raising=False)
    monkeypatch.setattr(Probe, "made", seen.encoder)
    _base._named.cache_clear()
    yield seen
    _base._named.cache_clear()


@pytest.mark.parametrize("device", ["cuda:1", "mps"])
def test_the_device_reaches_the_encoder_the_training_and_the_prediction_of_every_fold(
    two: SpatialData, quick: dict[str, Any], devices: Devices, device: str, tmp_path: Path
) -> None:
    settings = quick | {"encoder": "probe", "device": device}
    nh.tl.predict_expression(two, **settings)
    assert devices.encoder == [device]
    assert len(devices.training) >= 2 and set(devices.training) == {device}
    assert devices.prediction == [device] * 2  # a section for each fold

    devices.training.clear(), devices.prediction.clear()
    nh.tl.cross_validate(two, baselines=["mean"], **settings)
    assert len(devices.training) >= 2 and set(devices.training) == {device}
    assert devices.prediction == [device] * 2

    devices.training.clear(), devices.prediction.clear()
    model = nh.tl.train(two, **settings)
    assert len(devices.training) >= 2 and set(devices.training) == {device}
    loaded = nh.NH2ST.load(model.save(tmp_path / "model"))
    _base._named.cache_clear()
    devices.encoder.clear(), devices.prediction.clear()
    del two["table"].obsm[FEATURES], two["table"].uns[FEATURES]
    nh.tl.predict_expression(two, model=loaded, device=device, progress=False)
    nh.tl.predict_expression(two, model=loaded, device=device, uncertainty=True, progress=False)
    assert devices.encoder == [device]
    assert devices.prediction == [device] * 4  # both sections, twice


# ---------------------------------------------------------------------------------------- what belongs to training

OF_TRAINING: dict[str, Any] = {
    "groups": ["a", "b"],
    "genes": ["TUMOR01"],
    "n_genes": 20,
    "preset": "default",
    "patch_um": 75.0,
    "layer": "counts",
    "seed": 0,
    "checkpoint_dir": "checkpoints",
    "resume": True,
    "trainer_kwargs": {"max_epochs": 1},
    "max_epochs": 3,
    "fields": (1.0,),
}


@pytest.mark.parametrize("name", OF_TRAINING)
def test_arguments_of_training_are_refused_with_a_model(
    two: SpatialData,
    model: nh.NH2ST,
    encoder: Any,
    snapshot: Callable,
    name: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    before = snapshot(two)
    told = rf"\['{name}'\] belong to training and have no meaning with a model: pass them to nh\.tl\.train"
    with pytest.raises(ValueError, match=told):
        nh.tl.predict_expression(two, model=model, encoder=encoder, progress=False, **{name: OF_TRAINING[name]})
    assert snapshot(two) == before and encoder.n_patches == 0 and not list(tmp_path.iterdir())
