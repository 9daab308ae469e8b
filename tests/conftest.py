from __future__ import annotations

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")  # small arrays: on a shared machine several threads wait for each other

from collections.abc import Iterator
from copy import deepcopy
from functools import wraps
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import pytest
import torch
from spatialdata import SpatialData

import nh2st_scverse as nh

ROOT = Path(__file__).parents[1]
THREADS = torch.get_num_threads()


@pytest.fixture(autouse=True)
def _same_number_of_threads() -> None:
    """Compute every test on as many threads as the processes that tests start: the order of sums depends on it.

    scanpy's first use of numba raises the number for the whole process, in whichever test that is.
    """
    torch.set_num_threads(THREADS)


@pytest.fixture(scope="session", autouse=True)
def _sections_are_drawn_once() -> Iterator[None]:
    """``nh.datasets.synthetic`` draws each section once and gives copies: most tests begin with one of a few.

    tests/datasets imports the function itself, and so tests the drawing.
    """
    draw, drawn = nh.datasets.synthetic, {}

    @wraps(draw)
    def synthetic(*args: Any, **settings: Any) -> SpatialData:
        key = repr((args, sorted(settings.items())))  # not the values: True is no 1
        if key not in drawn:
            drawn[key] = draw(*args, **settings)
        return deepcopy(drawn[key])  # the lazy pixels, which nobody can change, are shared

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(nh.datasets, "synthetic", synthetic)
        yield


@pytest.fixture(autouse=True)
def _no_figure_is_left_open() -> Iterator[None]:
    """Whatever test comes next in this process: some count the open figures."""
    yield
    plt.close("all")


@pytest.fixture(scope="session")
def data_dir() -> Path:
    """The folder of real sections; tests that use it skip where it is absent."""
    path = Path(os.environ.get("NH2ST_DATA") or ROOT.parent / "shared" / "data")
    if not path.is_dir():
        pytest.skip("real sections are not here: set NH2ST_DATA to their folder")
    return path
