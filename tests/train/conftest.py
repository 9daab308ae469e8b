from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from spatialdata import SpatialData

import nh2st_scverse as nh
from nh2st_scverse._options import Run
from nh2st_scverse.data.cohort import collect
from nh2st_scverse.data.inputs import Encoding, KeptFeatures, Recipe, encode
from nh2st_scverse.data.targets import Counts, Targets, measure
from nh2st_scverse.model import Card
from nh2st_scverse.nn import Config
from nh2st_scverse.train.data import Data
from nh2st_scverse.train.fit import Fitted, fit_member

SMALL = {"embedding": 16, "hidden": 16, "bottleneck": 16, "heads": 2}
PANEL = [f"{program}0{i}" for program in ("TUMOR", "STROMA", "IMMUNE", "CONTEXT") for i in (1, 2, 3)]


class Colours:
    """Mean and spread of the colours of a patch and of its quarters."""

    name, input_size, dim, weights_hash = "colours", 16, 24, "none"

    def __call__(self, patches: np.ndarray) -> np.ndarray:
        quarters = (patches / 255).reshape(len(patches), 2, 8, 2, 8, 3)
        return np.concatenate([f(quarters, axis=(2, 4)).reshape(len(patches), -1) for f in (np.mean, np.std)], axis=1)


@pytest.fixture(scope="session")
def encoder() -> Colours:
    return Colours()


@pytest.fixture(scope="session")
def small() -> dict[str, Any]:
    """Settings of a network that trains in a moment."""
    return dict(SMALL)


@pytest.fixture(scope="session")
def sdata() -> SpatialData:
    return nh.datasets.synthetic(width_um=1200, n_sections=2)


@pytest.fixture(scope="session")
def data(sdata: SpatialData, encoder: Colours) -> Data:
    """Two sections of about 100 spots, a group each, with features of 72 and expression of 12 genes."""
    cohort = collect(sdata)
    recipe = Recipe(encoder, cohort.patch_um, Config().fields)
    inputs = encode(cohort, recipe, KeptFeatures(cohort), Encoding(progress=False))
    return Data(cohort.sections, inputs, measure(Counts.of(cohort, None), PANEL))


@pytest.fixture(scope="session")
def patch_data(data: Data) -> Data:
    """Two sections of 30 spots with patches of 32 pixels, for a trunk that is trained."""
    rng = np.random.default_rng(0)
    few = data.take(tuple((i, np.argsort(s.xy_um @ [1, 0.1])[:30]) for i, s in enumerate(data.sections)))
    patches = tuple(rng.integers(0, 256, (30, 32, 32, 3), dtype=np.uint8) for _ in few.sections)
    values, trainable = (tuple(of(i) for i in range(2)) for of in (few.target, few.trainable))
    return Data(few.sections, patches, Targets(data.targets.genes, data.targets.unit, values, trainable))


@pytest.fixture(scope="session")
def alone() -> Callable[[Data, int], Data]:
    """One of the sections of some data."""
    return lambda data, i: data.whole(((i, np.arange(0)),))


@pytest.fixture(scope="session")
def fit_first(data: Data, alone: Callable[[Data, int], Data]) -> Callable[..., Fitted]:
    """Train a member on the first section, stopped by the second."""

    def fit(config: Config, run: Run | None = None, *, data: Data = data, **options: Any) -> Fitted:
        held_out = alone(data, 1)
        wanted = [np.arange(held_out.sections[0].n_spots)]
        return fit_member(alone(data, 0), held_out, wanted, config, run or Run(), **options)

    return fit


@pytest.fixture(scope="session")
def card(data: Data) -> Card:
    """What a model of the two sections is made from."""
    return Card(
        unit=data.targets.unit,
        patch_um=75.0,
        spacing_um=100.0,
        encoder="colours",
        encoder_hash="none",
        encoder_dim=24,
        patch_px=16,
        trained_on={section.name: section.group for section in data.sections},
    )
