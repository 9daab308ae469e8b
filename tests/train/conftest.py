from __future__ import annotations

from collections.abc import Callable
from copy import copy
from typing import Any

import numpy as np
import pytest
from spatialdata import SpatialData

import nh2st_scverse as nh
from nh2st_scverse.data.section import Section
from nh2st_scverse.nn import Config
from nh2st_scverse.tl._prepare import Prepared, add_expression, add_images, collect

SMALL = {"embedding": 16, "hidden": 16, "bottleneck": 16, "heads": 2}


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
def prepared(sdata: SpatialData, encoder: Colours) -> Prepared:
    config = Config.preset()
    made = collect(sdata, n_nodes=config.n_nodes)
    panel = [f"{program}0{i}" for program in ("TUMOR", "STROMA", "IMMUNE", "CONTEXT") for i in (1, 2, 3)]
    add_expression(made, config, genes=panel, n_genes=None, layer=None)
    add_images(made, config, encoder, progress=False)
    return made


@pytest.fixture
def sections(prepared: Prepared) -> list[Section]:
    """Two sections of about 100 spots with features of 48 and expression of 12 genes."""
    return [copy(section) for section in prepared.sections]


@pytest.fixture
def patch_sections(sections: list[Section]) -> list[Section]:
    """Two sections of 30 spots with patches of 32 pixels, for a trunk that is trained."""
    rng = np.random.default_rng(0)
    kept = [section.keep(np.argsort(section.xy_um @ [1, 0.1])[:30]) for section in sections]
    for section in kept:
        section.features = None
        section.patches = rng.integers(0, 256, (30, 32, 32, 3), dtype=np.uint8)
    return kept


@pytest.fixture
def held_out() -> Callable[[Section], list[tuple[Section, np.ndarray]]]:
    return lambda section: [(section, np.arange(section.n_spots))]
