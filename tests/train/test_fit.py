from __future__ import annotations

import inspect
import logging
import math
import os
import random
import signal
import sys
import time
import tracemalloc
import warnings
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import lightning as L
import numpy as np
import pytest
import torch
from scipy.spatial.distance import pdist
from scipy.stats import norm, pearsonr, rankdata
from sklearn.decomposition import PCA
from sklearn.kernel_ridge import KernelRidge
from sklearn.linear_model import Ridge
from sklearn.metrics.pairwise import rbf_kernel
from spatialdata import SpatialData

import nh2st_scverse as nh
from nh2st_scverse._options import Run
from nh2st_scverse.data.feature_cache import on_disk
from nh2st_scverse.data.neighbours import neighbourhoods
from nh2st_scverse.data.targets import Targets
from nh2st_scverse.model import Card
from nh2st_scverse.model.ensemble import fit as fit_model
from nh2st_scverse.nn import Config, Member
from nh2st_scverse.nn.config import Standardise
from nh2st_scverse.nn.projection import Projection, principal_components
from nh2st_scverse.nn.ridge import ridge_inputs
from nh2st_scverse.train import best as best_module
from nh2st_scverse.train import fit, tensors
from nh2st_scverse.train.best import Best, KeepBest
from nh2st_scverse.train.checkpoint import data_hash
from nh2st_scverse.train.data import Data
from nh2st_scverse.train.fit import Fitted, fit_member, refit_ridges
from nh2st_scverse.train.scores import gene_pearson, section_pearson
from nh2st_scverse.train.task import Task, predict_batch
from nh2st_scverse.train.tensors import Blocks, components, section_features, stack

Alone = Callable[[Data, int], Data]
FitFirst = Callable[..., Fitted]


# ------------------------------------------------------------------------------------------------ before the network


def test_components_are_those_of_sklearn_scaled_as_one() -> None:
    rng = np.random.default_rng(0)
    x = (rng.normal(size=(60, 4)) @ rng.normal(size=(4, 10)) + 0.1 * rng.normal(size=(60, 10)) + 3).astype(np.float32)
    mean, matrix = principal_components(torch.from_numpy(x), 4)
    found = (torch.from_numpy(x) - mean).numpy() @ matrix.numpy()
    pca = PCA(4).fit((x - x.mean(axis=0)) / x.std(axis=0, ddof=1))
    expected = pca.transform((x - x.mean(axis=0)) / x.std(axis=0, ddof=1))
    expected /= expected.std()
    for i in range(4):
        assert abs(np.corrcoef(found[:, i], expected[:, i])[0, 1]) == pytest.approx(1, abs=1e-4)
        assert found[:, i].std() == pytest.approx(expected[:, i].std(), rel=0.02)


def test_features_that_say_nothing_are_refused() -> None:
    with pytest.raises(ValueError, match="The features are the same for every training spot"):
        principal_components(torch.full((40, 6), 0.3), 3)


def test_features_are_standardised_within_a_section_and_checked(data: Data) -> None:
    there = np.arange(data.sections[0].n_spots) != 3
    section, features = replace(data.sections[0], usable=there), data.inputs[0].copy()
    features[3] = np.nan
    given = features.copy()
    x = section_features(section, features, standardise="section")
    assert (x[3] == 0).all()
    assert np.allclose(x[section.usable].mean(axis=0), 0, atol=1e-4)
    assert np.allclose(x[section.usable].std(axis=0), 1, atol=1e-2)
    assert np.array_equal(section_features(section, features, standardise="none")[5], features[5])
    assert np.array_equal(features, given, equal_nan=True)  # what was passed is as it was
    features[7, 0] = np.inf
    with pytest.raises(ValueError, match="Expected finite features of section 'section_0_spots'"):
        section_features(section, features, standardise="section")


def test_ranks_are_those_of_scipy_whatever_the_spread(data: Data, monkeypatch: pytest.MonkeyPatch) -> None:
    there = np.arange(data.sections[0].n_spots) != 3
    section, features = replace(data.sections[0], usable=there), data.inputs[0].copy()
    features[:, 0] = np.round(features[:, 0], 1)  # many are equal
    features[:, 1] = 0.5
    features[3] = np.nan
    x = section_features(section, features, standardise="ranks")
    expected = norm.ppf((rankdata(features[there], axis=0) - 0.5) / there.sum())
    expected[:, 1] = 0
    assert np.allclose(x[there], expected / np.where(expected.std(axis=0) > 0, expected.std(axis=0), 1), atol=1e-4)
    assert (x[3] == 0).all()
    nowhere = replace(section, usable=np.zeros_like(there))
    assert (section_features(nowhere, features, standardise="ranks") == 0).all()
    bent = section_features(section, np.exp(3 * features), standardise="ranks")
    assert np.array_equal(x, bent)

    monkeypatch.setattr(tensors, "RANKED", 20)  # the others find their rank among some
    some = section_features(section, features, standardise="ranks")
    assert 10 < len(np.unique(some[there, 2])) <= 41
    alike = [np.corrcoef(some[there, f], x[there, f])[0, 1] for f in range(2, x.shape[1])]
    assert min(alike) > 0.9
    order = np.random.default_rng(0).permutation(len(features))
    moved = replace(section.take(order), usable=there[order])
    assert np.array_equal(section_features(moved, features[order], standardise="ranks"), some[order])


@pytest.mark.parametrize("standardise", ["ranks", "section", "none"])
def test_features_that_are_many_are_projected_some_at_a_time(
    data: Data, standardise: Standardise, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("nh2st_scverse.train.tensors.PART", 7)
    monkeypatch.setattr("nh2st_scverse.train.data.MANY", 30)
    there = np.arange(data.sections[0].n_spots) != 3
    section, features = replace(data.sections[0], usable=there), data.inputs[0].copy()
    features[3] = np.nan
    projection = Projection(features.shape[1], 2)
    projection.matrix.copy_(torch.randn(projection.matrix.shape))
    whole = projection(torch.from_numpy(section_features(section, features, standardise)))
    second = projection(torch.from_numpy(section_features(data.sections[1], data.inputs[1], standardise)))
    many = Data((section, data.sections[1]), (features, data.inputs[1]))
    blocks = stack(many, standardise=standardise, projected=True).inputs
    assert isinstance(blocks, Blocks)
    assert torch.allclose(components(blocks, projection), torch.cat([whole, second]), atol=1e-3)
    some = torch.arange(50, section.n_spots + 9)
    assert torch.allclose(components(blocks, projection, some)[some], torch.cat([whole, second])[some], atol=1e-3)
    features[7, 0] = np.inf
    with pytest.raises(ValueError, match="Expected finite features of section 'section_0_spots'"):
        stack(many, standardise=standardise, projected=True)


def test_features_on_disk_train_without_standing_in_memory(
    data: Data, small: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("nh2st_scverse.train.tensors.PART", 64)
    monkeypatch.setattr("nh2st_scverse.train.checkpoint.PART", 64)
    monkeypatch.setattr(fit, "MOST_SPOTS", 200)
    monkeypatch.setattr(tensors, "RANKED", 50)
    rng, n = np.random.default_rng(0), 2000
    xy, every = np.stack(np.divmod(np.arange(n), 50), axis=1) * 100.0, np.ones(n, dtype=bool)
    near = neighbourhoods(xy, 100.0, every)
    geometry = replace(data.sections[0].geometry, coordinates=xy)
    section = replace(data.sections[0], rows=np.arange(n), usable=every, neighbours=near, geometry=geometry)
    hidden = rng.normal(size=(n, 4)).astype(np.float32)
    features = on_disk(n, 2000)
    features[:] = hidden @ rng.normal(size=(4, 2000)).astype(np.float32)
    there = Data((section,), (features,), Targets(("A", "B"), "log", (hidden[:, :2],), (every,)))
    here = replace(there, inputs=(np.array(features, dtype=np.float32),))
    config = Config.preset(n_components=4, max_epochs=1, landmarks=50, **small)

    def trained(some: Data) -> Fitted:
        found = fit_member(some, some, [np.arange(0, n, 9)], config, Run())
        refit_ridges([found.member], some)
        assert data_hash(some)
        return found

    other = trained(here)
    tracemalloc.start()
    one = trained(there)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < features.nbytes / 2
    assert one.history[0]["validation_pearson"] > 0.5
    assert one.history[0] == pytest.approx(other.history[0], abs=0.01)
    assert torch.allclose(one.member.ridge.weights, other.member.ridge.weights, atol=0.1)


def test_stacked_neighbours_stay_in_their_section(data: Data) -> None:
    spots = stack(data, standardise="section")
    assert torch.equal(spots.section[spots.nodes], spots.section[:, None].expand_as(spots.nodes))
    first = data.sections[0].n_spots
    assert np.array_equal(spots.nodes[first:] - first, data.sections[1].neighbours.nodes)
    assert np.array_equal(spots.targets[first:], data.target(1))


def _seen_by_ridges(spots: tensors.Tensors, spread: bool) -> np.ndarray:
    """A spot, the mean and, if wanted, the standard deviation of its nodes, one spot after the other."""
    parts = []
    for nodes, mask in zip(spots.nodes, spots.mask, strict=True):
        around = spots.inputs[nodes[mask]].numpy().astype(float)  # (nodes, C)
        own = spots.inputs[nodes[0]].numpy().astype(float)
        parts.append(np.concatenate([own, around.mean(axis=0), *([around.std(axis=0)] if spread else [])]))
    return np.stack(parts)


@pytest.mark.parametrize("spread", [False, True])
def test_ridge_is_sklearns_at_the_penalty_that_does_best_on_held_out_spots(
    data: Data, alone: Alone, spread: bool
) -> None:
    config = Config.preset(n_components=10, landmarks=None, rank=None, spread=spread)
    spots, held = (stack(alone(data, i), standardise="section") for i in (0, 1))
    wanted = torch.arange(data.sections[1].n_spots)
    member = fit._prepare(spots, config, None)
    spots.inputs, held.inputs = member.projection(spots.inputs), member.projection(held.inputs)
    fit._fit_ridges(member, spots, held, wanted)
    found = member.ridge.weights.numpy()

    x, x_held = (_seen_by_ridges(spots, spread) for spots in (spots, held))
    y = ((spots.targets - member.target_mean) / member.target_scale).numpy().astype(float)
    assert np.allclose(y.mean(axis=0), 0, atol=1e-5)
    alphas = fit.PENALTIES * np.linalg.eigvalsh(x.T @ x).mean()
    models = [Ridge(alpha=alpha, fit_intercept=False).fit(x, y) for alpha in alphas]
    scores = [
        np.mean([pearsonr(model.predict(x_held)[:, g], data.target(1)[:, g])[0] for g in range(12)]) for model in models
    ]
    best = models[int(np.argmax(scores))].coef_.T
    assert np.ptp(scores) > 0.02  # the choice matters
    assert np.allclose(found, best, atol=1e-4)


@pytest.mark.parametrize("rank", [None, 3])
def test_kernel_ridge_is_sklearns_on_the_principal_components_of_the_expression(
    data: Data, alone: Alone, rank: int | None
) -> None:
    config = Config.preset(n_components=10, rank=rank, kernel="gaussian", metric=0)
    spots, held = (stack(alone(data, i), standardise="section") for i in (0, 1))
    member = fit._prepare(spots, config, None)
    spots.inputs, held.inputs = member.projection(spots.inputs), member.projection(held.inputs)
    fit._fit_ridges(member, spots, held, torch.arange(data.sections[1].n_spots))
    predicted = member.ridge(ridge_inputs(held.inputs, held.nodes, held.mask))

    x, x_held = (ridge_inputs(s.inputs, s.nodes, s.mask).numpy().astype(float) for s in (spots, held))
    assert float(member.ridge.width) == pytest.approx(np.median(pdist(x)), rel=1e-4)
    y = ((spots.targets - member.target_mean) / member.target_scale).numpy().astype(float)
    genes = np.linalg.svd(y, full_matrices=False)[2][:rank]
    gamma = 1 / float(member.ridge.width) ** 2
    alphas = fit.PENALTIES * np.linalg.eigvalsh(rbf_kernel(x, gamma=gamma)).mean()
    found = [
        KernelRidge(kernel="rbf", gamma=gamma, alpha=alpha).fit(x, y @ genes.T @ genes).predict(x_held)
        for alpha in alphas
    ]
    scores = [np.mean([pearsonr(p[:, g], data.target(1)[:, g])[0] for g in range(12)]) for p in found]
    assert np.ptp(scores) > 0.02  # the choice matters
    assert np.allclose(predicted, found[int(np.argmax(scores))], atol=0.02)


def test_kernel_ridge_with_few_landmarks_is_near_the_whole_one(data: Data, alone: Alone) -> None:
    spots, held = (stack(alone(data, i), standardise="section") for i in (0, 1))
    predicted = {}
    for landmarks in (50, 1000):  # there are fewer spots than the latter
        member = fit._prepare(spots, Config.preset(n_components=10, landmarks=landmarks), None)
        inputs, held_inputs = member.projection(spots.inputs), member.projection(held.inputs)
        given = replace(spots, inputs=inputs), replace(held, inputs=held_inputs)
        fit._fit_ridges(member, *given, torch.arange(data.sections[1].n_spots))
        assert len(member.ridge.landmarks) == min(landmarks, data.sections[0].n_spots)
        predicted[landmarks] = member.ridge(ridge_inputs(held_inputs, held.nodes, held.mask))
    assert np.corrcoef(predicted[50].ravel(), predicted[1000].ravel())[0, 1] > 0.9


def test_a_model_that_sees_the_spread_predicts_the_same_once_loaded(data: Data, card: Card, tmp_path: Path) -> None:
    small = {"max_epochs": 1, "embedding": 16, "hidden": 16, "bottleneck": 16, "n_components": 10}
    features = data.inputs[0]
    predicted = {}
    for spread in (False, True):
        config = Config.preset(fields=(1.0,), ridge=1.0, spread=spread, **small)
        model = fit_model(data, config, card, Run(device="cpu", progress=False), nh.encoders.Precomputed("some"))
        predicted[spread] = model.predict(data.sections[0], features)
        model.save(tmp_path / str(spread))
        assert np.array_equal(
            nh.NH2ST.load(tmp_path / str(spread)).predict(data.sections[0], features), predicted[spread]
        )
    assert not np.allclose(predicted[False], predicted[True], atol=1e-3)


def test_the_ridge_learns_from_all_groups_but_is_scored_on_those_it_did_not_see(data: Data, card: Card) -> None:
    rng = np.random.default_rng(0)  # nothing to learn but the training spots themselves
    noise = tuple(rng.normal(size=(section.n_spots, 40)).astype(np.float32) for section in data.sections)
    config = Config.preset(fields=(1.0,), ridge=1.0, max_epochs=1, embedding=16, hidden=16, bottleneck=16)
    given, run = replace(data, inputs=noise), Run(device="cpu", progress=False)
    model = fit_model(given, config, card, run, nh.encoders.Precomputed("noise"))
    predicted = [model.predict(*pair) for pair in zip(given.sections, noise, strict=True)]
    seen = [pearsonr(p.ravel(), data.target(i).ravel())[0] for i, p in enumerate(predicted)]
    assert abs(model.scores["pearson"].mean()) < 0.1
    for i, r in enumerate(seen):
        mean = np.broadcast_to(data.target(i).mean(axis=0), data.target(i).shape)
        assert r > pearsonr(mean.ravel(), data.target(i).ravel())[0]
    assert min(seen) > 0
    for member in model.members:  # each spot is a landmark of each member
        assert len(member.ridge.landmarks) == sum(section.n_spots for section in data.sections)


def test_ridge_does_without_held_out_counts(data: Data, alone: Alone) -> None:
    config = Config.preset(n_components=10)
    spots, held = (stack(alone(data, i), standardise="section") for i in (0, 1))
    held.targets = torch.zeros_like(held.targets)
    member = fit._prepare(spots, config, None)
    spots.inputs, held.inputs = member.projection(spots.inputs), member.projection(held.inputs)
    fit._fit_ridges(member, spots, held, torch.arange(20))
    assert torch.isfinite(member.ridge.weights).all()


# -------------------------------------------------------------------------------------------------------- scores


def test_pearson_by_section_is_scipys(data: Data) -> None:
    held = stack(data, standardise="section")
    held.trainable[4] = False
    wanted = torch.arange(2, len(held.targets) - 5)
    predicted = held.targets[wanted] + torch.randn(len(wanted), 12, generator=torch.Generator().manual_seed(0))
    each = []
    for which in (0, 1):
        at = [i for i, w in enumerate(wanted) if held.section[w] == which and held.trainable[w]]
        pairs = [(predicted[at, g], held.targets[wanted[at], g]) for g in range(12)]
        each.append(np.mean([pearsonr(*pair)[0] for pair in pairs]))
    assert section_pearson(predicted, held, wanted) == pytest.approx(np.mean(each), abs=1e-5)


def test_constants_have_no_or_no_good_correlation(data: Data, alone: Alone) -> None:
    measured = torch.randn(9, 3)
    measured[:, 1] = 0
    predicted = torch.randn(9, 3)
    predicted[:, 2] = 5
    r = gene_pearson(predicted, measured)
    assert r[0] == pytest.approx(pearsonr(predicted[:, 0], measured[:, 0])[0], abs=1e-5)
    assert math.isnan(r[1])
    assert r[2] == 0
    held = stack(alone(data, 0), standardise="section")
    held.targets = torch.zeros_like(held.targets)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert math.isnan(section_pearson(torch.randn(20, 12), held, torch.arange(20)))


def epochs(scores: list[float], patience: int, monkeypatch: pytest.MonkeyPatch) -> tuple[Best, Member, list[bool]]:
    """Run the callback through epochs of given validation scores; in epoch i all weights are i."""
    member = Member(Config.preset(embedding=4, heads=1, hidden=4, bottleneck=4), 3, 3, 2)
    best = Best(patience)
    task = Task(member, SimpleNamespace(), SimpleNamespace(), best)
    callback = KeepBest(torch.arange(2))
    stops = []
    for i, score in enumerate(scores):
        for p in member.parameters():
            torch.nn.init.constant_(p, float(i))
        monkeypatch.setattr(best_module, "section_pearson", lambda *_, s=score: s)
        task.predicted = [torch.full((2, 2), float(i))]
        task.epoch_terms = [{"mse": torch.tensor(1.0 + i)}, {"mse": torch.tensor(2.0 + i)}]
        trainer = SimpleNamespace(current_epoch=i, should_stop=False, max_epochs=9, precision_plugin=None)
        callback.on_validation_epoch_end(trainer, task)
        stops.append(trainer.should_stop)
    return best, member, stops


def test_the_best_epoch_is_kept_and_the_end_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    best, member, stops = epochs([0.1, 0.5, 0.3, 0.4], 2, monkeypatch)
    best.restore(member)
    assert all((p == 1).all() for p in member.parameters())
    assert (best.predicted == 1).all()
    assert stops == [False, False, False, True]
    assert best.history[2] == {"mse": 3.5, "epoch": 2.0, "validation_pearson": 0.3}


def test_an_epoch_without_a_score_is_replaced_by_one_with(monkeypatch: pytest.MonkeyPatch) -> None:
    best, member, _ = epochs([math.nan, -0.2, math.nan], 5, monkeypatch)
    best.restore(member)
    assert all((p == 1).all() for p in member.parameters())


# ------------------------------------------------------------------------------------------------------ training


def test_member_returns_the_weights_that_made_its_held_out_predictions(
    data: Data, alone: Alone, fit_first: FitFirst, small: dict[str, Any]
) -> None:
    config = Config.preset(max_epochs=4, lr=0.05, **small)  # a rate at which the last epoch is not the best
    fitted = fit_first(config)
    member, (predicted,) = fitted.member, fitted.predicted
    scores = [row["validation_pearson"] for row in fitted.history]
    held = stack(alone(data, 1), standardise="ranks")
    held.inputs = member.projection(held.inputs)
    with torch.inference_mode():
        again = predict_batch(member, held, torch.arange(data.sections[1].n_spots))
    assert not member.training
    assert not fitted.stopped
    assert np.allclose(again, predicted, atol=1e-5)
    assert section_pearson(again, held, torch.arange(len(again))) == pytest.approx(max(scores), abs=1e-5)
    assert [row["epoch"] for row in fitted.history] == [0, 1, 2, 3]


def test_training_lowers_the_loss(fit_first: FitFirst, small: dict[str, Any]) -> None:
    config = Config.preset(max_epochs=40, lr=0.01, **small)
    history = fit_first(config).history
    for name in ("mse", "pearson", "query_contrast", "neighbour_contrast"):
        assert history[-1][name] < 0.9 * history[0][name]


def test_seeds_decide_and_the_global_random_states_stay(fit_first: FitFirst, small: dict[str, Any]) -> None:
    config = Config.preset(max_epochs=2, **small)

    def weights(seed: int) -> dict[str, torch.Tensor]:
        return fit_first(config, Run(seed=seed)).member.state_dict()

    random.seed(5)
    np.random.seed(5)  # noqa: NPY002
    torch.manual_seed(5)
    states = random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist()  # noqa: NPY002
    first = weights(3)
    after = random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist()  # noqa: NPY002
    assert after == states
    torch.manual_seed(6)
    second, third = weights(3), weights(4)
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert not torch.equal(first["network.decoder.0.weight"], third["network.decoder.0.weight"])


def test_a_trained_trunk_depends_on_the_seed_alone(patch_data: Data, card: Card, small: dict[str, Any]) -> None:
    config = Config.preset("paper", max_epochs=1, n_members=1, **small)

    def model(seed: int) -> nh.NH2ST:
        run = Run(seed=seed, progress=False)
        return fit_model(patch_data, config, card, run, nh.encoders.get("resnet18"))

    before = torch.get_num_threads()
    try:
        torch.set_num_threads(2)  # sums of several threads must not depend on which comes first
        torch.manual_seed(1)
        state = torch.get_rng_state()
        first = model(0)
        assert torch.equal(torch.get_rng_state(), state)
        torch.manual_seed(2)
        assert model(0).identifier == first.identifier
        assert model(1).identifier != first.identifier
    finally:
        torch.set_num_threads(before)


def test_features_without_components_enter_as_they_are(data: Data, alone: Alone, small: dict[str, Any]) -> None:
    train = data.take(((0, np.arange(30)),))  # fewer spots than features
    config = Config.preset(n_components=None, max_epochs=1, **small)
    fitted = fit_member(train, alone(data, 1), [np.arange(data.sections[1].n_spots)], config, Run())
    assert fitted.member.projection is None
    assert np.isfinite(fitted.predicted[0]).all()


def test_nothing_is_printed_warned_or_left_behind(
    fit_first: FitFirst,
    small: dict[str, Any],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        fit_first(Config.preset(max_epochs=2, **small))
        fit_first(Config.preset("paper", max_epochs=2, fine_tune=False, **small))
    assert list(tmp_path.iterdir()) == []
    assert capfd.readouterr() == ("", "")


def test_settings_of_the_trainer_reach_it(fit_first: FitFirst, small: dict[str, Any]) -> None:
    seen: list[L.Trainer] = []

    class Look(L.Callback):
        def on_fit_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
            seen.append(trainer)

    options = {"max_epochs": 1, "gradient_clip_val": 0.1, "callbacks": Look()}
    config = Config.preset(max_epochs=9, **small)
    assert len(fit_first(config, Run(trainer_kwargs=options)).history) == 1
    assert seen[0].gradient_clip_val == 0.1
    assert isinstance(options["callbacks"], Look)  # what the user passed is as it was


# --------------------------------------------------------------------------------------------------- interruption


class Stop(L.Callback):
    """The stop button of a notebook, in the middle of an epoch of a member."""

    def __init__(self, epoch: int, member: int = 0) -> None:
        self.epoch, self.member, self.fits = epoch, member, 0

    def on_fit_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self.fits += 1

    def on_train_batch_end(self, trainer: L.Trainer, *_: Any) -> None:
        if trainer.current_epoch == self.epoch and self.fits == self.member + 1:
            raise KeyboardInterrupt


@pytest.mark.parametrize(("member", "rows"), [(0, [2]), (1, [4, 2])])
def test_interrupted_training_gives_the_best_model_so_far(
    sdata: SpatialData,
    encoder: Any,
    small: dict[str, Any],
    caplog: pytest.LogCaptureFixture,
    member: int,
    rows: list[int],
) -> None:
    handler = signal.getsignal(signal.SIGINT)
    options = {"callbacks": [Stop(2, member)]}
    settings = {"n_genes": 8, "encoder": encoder, "max_epochs": 4, "progress": False, **small}
    with caplog.at_level(logging.WARNING, logger="nh2st_scverse"):
        model = nh.tl.train(sdata, trainer_kwargs=options, **settings)
    assert f"Interrupted: the model is made of the {member + 1} of 2 members so far" in caplog.text
    assert signal.getsignal(signal.SIGINT) is handler
    assert model.history.groupby("member").size().tolist() == rows
    assert len(model.members) == member + 1
    assert model.scores["pearson"].notna().all()
    whole = nh.tl.train(sdata, trainer_kwargs={"max_epochs": 4}, **settings)
    same = whole.history[whole.history["member"] == 0].head(rows[0])
    assert np.allclose(model.history.head(rows[0])["loss"], same["loss"])


@pytest.mark.parametrize(("member", "stops"), [(0, True), (1, False)])
def test_interrupted_in_the_first_epoch(
    sdata: SpatialData, encoder: Any, small: dict[str, Any], member: int, stops: bool
) -> None:
    handler = signal.getsignal(signal.SIGINT)

    def run() -> nh.NH2ST:
        options = {"callbacks": [Stop(0, member)]}
        return nh.tl.train(
            sdata, n_genes=8, encoder=encoder, max_epochs=2, progress=False, trainer_kwargs=options, **small
        )

    if stops:
        with pytest.raises(KeyboardInterrupt, match="before its first epoch ended"):
            run()
    else:
        assert len(run().members) == 1
    assert signal.getsignal(signal.SIGINT) is handler


def test_an_exit_that_is_no_interruption_goes_through(fit_first: FitFirst, small: dict[str, Any]) -> None:
    class Leave(L.Callback):
        def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
            sys.exit(3)

    with pytest.raises(SystemExit, match="3"):
        fit_first(Config.preset(**small), Run(trainer_kwargs={"callbacks": [Leave()]}))


SCRIPT = """
import signal, sys
signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background job ignores it, and so do its children
sys.path.insert(0, {root!r})
import lightning as L
import nh2st_scverse as nh
{colours}
class Tell(L.Callback):
    def on_train_epoch_start(self, trainer, pl_module):
        if trainer.current_epoch == 3:
            print("training", flush=True)
model = nh.tl.train(
    nh.datasets.synthetic(width_um=1200, n_sections=2), n_genes=8, encoder=Colours(), progress=False,
    max_epochs=100_000, max_steps=None, patience=100_000, embedding=8, hidden=8, bottleneck=8, heads=2,
    trainer_kwargs={{"callbacks": [Tell()]}},
)
print("members", len(model.members), "epochs", len(model.history) >= 3, flush=True)
"""


@pytest.mark.skipif(os.name == "nt", reason="SIGINT of another process")
def test_ctrl_c_in_a_terminal_returns_the_model(encoder: Any, start: Any, tmp_path: Path) -> None:
    root = str(Path(nh.__file__).parents[1])
    code = SCRIPT.format(root=root, colours="import numpy as np\n" + inspect.getsource(type(encoder)))
    process, said = start(code, tmp_path), tmp_path / "said"
    try:
        while process.is_alive() and not (said.is_file() and "training\n" in said.read_text()):
            time.sleep(0.05)
        assert process.is_alive(), said.read_text()
        os.kill(process.pid, signal.SIGINT)
        process.join(300)
    finally:
        process.kill()
    assert said.read_text().endswith("members 1 epochs True\n")
    assert "Interrupted: the model is made of the 1 of 2 members so far" in said.read_text()
    assert process.exitcode == 0


def test_what_is_flat_in_training_cannot_explode_elsewhere() -> None:
    generator = torch.Generator().manual_seed(0)
    seen = torch.randn(40, 60, generator=generator)
    seen[:, :10] = 0.5  # features that no training spot shows
    seen[:20] -= seen[:20].mean(dim=0)  # two standardised sections: the last components have no variance at all
    seen[20:] -= seen[20:].mean(dim=0)
    mean, matrix = principal_components(seen, 39)
    other = torch.randn(40, 60, generator=generator)
    inside, outside = (seen - mean) @ matrix, (other - mean) @ matrix
    assert inside.std() == pytest.approx(1.0, rel=1e-3)
    assert outside.abs().max() < 10
    assert torch.equal(matrix[:10], torch.zeros(10, 39))


def test_seeds_decide_in_threads_side_by_side_and_whatever_floats_are_the_default(
    fit_first: FitFirst, small: dict[str, Any]
) -> None:
    config = Config.preset(**small, max_epochs=2)
    expected = fit_first(config).predicted[0]
    with ThreadPoolExecutor(2) as pool:
        found = [one.predicted[0] for one in pool.map(fit_first, [config] * 2)]
    torch.set_default_dtype(torch.float64)
    try:
        found.append(fit_first(config).predicted[0])
        assert torch.get_default_dtype() == torch.float64
    finally:
        torch.set_default_dtype(torch.float32)
    assert all(np.array_equal(one, expected) for one in found)
