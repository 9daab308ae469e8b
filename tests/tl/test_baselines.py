from __future__ import annotations

import warnings
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from nh2st_scverse.data.neighbours import neighbourhoods
from nh2st_scverse.data.targets import Targets
from nh2st_scverse.metrics import pearson
from nh2st_scverse.tl import _baselines, _retrieval
from nh2st_scverse.tl._baselines import BASELINES, METHODS, inputs, predict
from nh2st_scverse.train.data import Data

DIM = 6


def section(seed: int, shift: float = 0.0) -> Any:
    """144 spots with two fields of view of 6 features; genes depend on the first, the second, and the spots around."""
    rng = np.random.default_rng(seed)
    xy = np.stack(np.meshgrid(np.arange(12.0), np.arange(12.0)), axis=-1).reshape(-1, 2)
    usable = np.ones(144, dtype=bool)
    usable[5] = False
    near = neighbourhoods(xy, 1.0, usable)
    x = rng.normal(size=(144, 2 * DIM)).astype(np.float32)
    around = x[near.nodes[:, 1:]].mean(axis=1)
    y = np.stack([x[:, 0], x[:, DIM], 2 * around[:, 0]], axis=1) + 0.1 * rng.normal(size=(144, 3))
    features = np.where(usable[:, None], x + shift, np.nan)
    return SimpleNamespace(
        name=f"s{seed}",
        n_spots=144,
        features=features,
        usable=usable,
        neighbours=near,
        xy_um=xy,
        expression=y.astype(np.float32),
        group=f"g{seed}",
    )


def data_of(*sections: Any) -> Data:
    targets = Targets(
        ("own", "wide", "around"),
        "none",
        tuple(one.expression for one in sections),
        tuple(one.usable for one in sections),
    )
    return Data(tuple(sections), tuple(one.features for one in sections), targets)


def test_inputs_are_what_the_name_says() -> None:
    one = section(0, shift=3.0)
    data = data_of(one)
    own = inputs(data, 0, "", standardise="section", dim=DIM)
    assert own.shape == (144, 12) and np.allclose(own[one.usable].mean(axis=0), 0, atol=1e-5)
    context = inputs(data, 0, "_context", standardise="section", dim=DIM)
    assert np.array_equal(context[:, :12], own)
    nodes = one.neighbours.nodes[70, 1:]  # in the middle, where none is missing
    assert np.allclose(context[70, 12:], own[nodes].mean(axis=0), atol=1e-6)
    corner = one.neighbours.nodes[0, 1:][one.neighbours.mask[0, 1:]]
    assert np.allclose(context[0, 12:], own[corner].mean(axis=0), atol=1e-6)
    patch = inputs(data, 0, "@patch", standardise="section", dim=DIM)
    assert np.array_equal(patch[one.usable], one.features[one.usable, :DIM]) and not patch[5].any()


def test_each_baseline_finds_what_its_input_shows(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_retrieval, "EPOCHS", 30)
    train, test = data_of(*[section(i) for i in range(3)]), section(3)
    names = [name for name in BASELINES if name not in ("mean", "composition", "position")]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = predict(names, train, data_of(test, section(4)), standardise="section", dim=DIM, seed=0)
    assert set(found) == set(names) and all(len(parts) == 2 for parts in found.values())
    at = test.usable
    for name, (predicted, other) in found.items():
        assert predicted.shape == other.shape == (144, 3) and not np.allclose(predicted, other)
        first, second, around = pearson(test.expression[at], predicted[at])
        assert first > 0.3, name
        assert (second > 0.3) == ("@patch" not in name), name
        if name.startswith(("ridge", "mlp")):
            assert (around > 0.6) == name.endswith("_context"), name
    again = predict(["retrieval"], train, data_of(test), standardise="section", dim=DIM, seed=0)
    assert np.array_equal(again["retrieval"][0], found["retrieval"][0])


def test_components_are_those_of_the_training_spots(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []

    def spy(x: np.ndarray, y: np.ndarray, groups: np.ndarray, x_test: np.ndarray, seed: int) -> np.ndarray:
        seen.append((x, groups))
        return METHODS["mean"](x, y, groups, x_test, seed)

    monkeypatch.setitem(_baselines.BASELINES, "ridge", (spy, ""))
    train = data_of(section(0), section(1))
    for test in (section(2), section(3, shift=100.0)):
        predict(["ridge"], train, data_of(test), standardise="none", dim=DIM, seed=0)
    assert np.array_equal(seen[0][0], seen[1][0])
    assert list(seen[0][1]) == ["g0"] * 143 + ["g1"] * 143


def test_controls_know_the_kind_of_tissue_or_the_place_and_nothing_else() -> None:
    sections = []
    for seed in range(3):
        one = section(seed)
        rng = np.random.default_rng(seed + 10)
        kind = rng.integers(0, 3, 144)  # three kinds of tissue, told by all features
        one.features = np.where(one.usable[:, None], 9 * np.eye(3)[kind].repeat(4, axis=1) + one.features, np.nan)
        x, y = one.xy_um.T / 5.5 - 1
        one.expression = np.stack([kind, x * y - x, rng.normal(size=144)], axis=1).astype(np.float32)
        one.expression += 0.05 * rng.normal(size=(144, 3)).astype(np.float32)
        sections.append(one)
    test = sections[2]
    train, held = data_of(*sections[:2]), data_of(test)
    found = predict(["composition", "position"], train, held, standardise="section", dim=DIM, seed=0)
    at = test.usable
    of_kind, of_place, _ = pearson(test.expression[at], found["composition"][0][at])
    assert of_kind > 0.9 and abs(of_place) < 0.5
    assert len(np.unique(found["composition"][0][at].round(4), axis=0)) <= _baselines.N_KINDS
    of_kind, of_place, _ = pearson(test.expression[at], found["position"][0][at])
    assert of_place > 0.9 and abs(of_kind) < 0.5


def test_kinds_of_features_enter_with_equal_total_variance(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []

    def spy(x: np.ndarray, y: np.ndarray, groups: np.ndarray, x_test: np.ndarray, seed: int) -> np.ndarray:
        seen.append(x.var(axis=0).sum())
        return METHODS["mean"](x, y, groups, x_test, seed)

    monkeypatch.setitem(_baselines.BASELINES, "ridge", (spy, ""))
    train = data_of(section(0), section(1))
    for blocks in ((DIM,), (5, 1)):
        given = replace(train, blocks=blocks)
        predict(["ridge"], given, data_of(section(2)), standardise="section", dim=DIM, seed=0)
    # two fields of view: six features of variance 1 each, or two kinds of variance 1 in all
    assert seen == pytest.approx([2 * DIM, 2 * 2], rel=1e-3)
