from __future__ import annotations

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")  # small arrays: on a shared machine several threads wait for each other

import gc
import multiprocessing
import runpy
from collections.abc import Callable, Iterator
from copy import deepcopy
from functools import cache, wraps
from importlib.metadata import entry_points
from multiprocessing import forkserver
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
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
            for image in drawn[key].images.values():
                for level in image.children.values():  # smaller ones are made from the largest once
                    level["image"].data = level["image"].data.persist()
        return deepcopy(drawn[key])  # the lazy pixels, which nobody can change, are shared

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(nh.datasets, "synthetic", synthetic)
        yield


@pytest.fixture(scope="session", autouse=True)
def _nothing_takes_time_again_and_again() -> Iterator[None]:
    """Small pictures in reports; entry points of all packages, for which each Trainer looks, are found once."""
    gc.freeze()  # what was imported stays: no search for what can be freed goes through it again, and it is rarer
    gc.set_threshold(2000)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("nh2st_scverse.tl._report.DPI", 40)
        patch.setattr("lightning.fabric.utilities.registry.entry_points", cache(entry_points))
        yield


@pytest.fixture(autouse=True)
def _no_figure_is_left_open() -> Iterator[None]:
    """Whatever test comes next in this process: some count the open figures."""
    yield
    plt.close("all")


class Colours:
    """An encoder that takes no time: means and spreads of the colours of a patch and of its middle."""

    name, input_size, dim, weights_hash = "colours", 16, 12, "none"

    def __call__(self, patches: np.ndarray) -> np.ndarray:
        x = patches.astype(np.float32) / 255
        middle = x[:, 4:12, 4:12]
        return np.concatenate([part(v, axis=(1, 2)) for v in (x, middle) for part in (np.mean, np.std)], axis=1)


@pytest.fixture(scope="session")
def tiny() -> dict[str, Any]:
    """Settings of a training of a second."""
    small = {"embedding": 16, "hidden": 16, "bottleneck": 16, "n_members": 1, "max_epochs": 1, "fields": (1.0,)}
    return {"encoder": Colours(), "n_genes": 10, "progress": False, "device": "cpu", **small}


@pytest.fixture(scope="session")
def fine() -> SpatialData:
    """A drawn section with spots, bins and cells: not to be changed."""
    return nh.datasets.synthetic(width_um=700, n_genes=20, bins_um=(8, 16), cells=True, seed=1)


@pytest.fixture(scope="session")
def legacy(fine) -> list[SpatialData]:
    """Two sections as on legacy arrays, of 100 µm every 200 µm in rows and columns: not to be changed."""
    made = []
    for drawn in (fine, nh.datasets.synthetic(width_um=700, n_genes=20, bins_um=16, seed=2)):
        sdata = deepcopy(drawn)
        nh.pp.pseudospots(sdata, table_key="square_016um", size_um=50, pitch_um=100, shape="square")
        table, pixels = (
            sdata["pseudospots"],
            sdata["section_0_image"]["scale0"]["image"].transpose("y", "x", "c").values,
        )
        table.obs = table.obs[["array_row", "array_col"]].set_axis(
            [f"{x}x{y}" for x, y in zip(table.obs["array_col"], table.obs["array_row"], strict=True)]
        )
        table.var = table.var[[]]
        made.append(nh.io.from_anndata(table, pixels, microns_per_pixel=2, spot_diameter=100, section="section_0"))
    return made


IMPORTED = ["lightning", "nh2st_scverse.archive", "nh2st_scverse.cli", "nh2st_scverse.datasets._synthetic"]
IMPORTED += ["nh2st_scverse.encoders", "nh2st_scverse.tl._train", "spatialdata", "squidpy.experimental.im"]


@pytest.fixture(scope="session")
def forked() -> multiprocessing.context.BaseContext:
    """Starts processes of their own that have imported the package: imports would be most of their time."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(IMPORTED)
    forkserver.ensure_running()  # what other libraries would import first comes too late
    return context


@pytest.fixture(scope="session")
def start(forked: multiprocessing.context.BaseContext) -> Callable[[str, Path], BaseProcess]:
    """Runs code, as ``folder/script.py``, in a process of its own; what it prints goes to ``folder/said``."""
    begin = """import os, sys
os.chdir({folder!r})
sys.argv = [{path!r}]
for number in (1, 2):
    os.dup2(os.open("said", os.O_WRONLY | os.O_CREAT | os.O_APPEND), number)
"""

    def run(code: str, folder: Path) -> BaseProcess:
        folder.mkdir(exist_ok=True)
        path = folder / "script.py"
        path.write_text(begin.format(folder=str(folder), path=str(path)) + code)
        process = forked.Process(target=runpy.run_path, args=(str(path),), kwargs={"run_name": "__main__"}, daemon=True)
        process.start()
        return process

    return run


@pytest.fixture(scope="session")
def data_dir() -> Path:
    """The folder of real sections; tests that use it skip where it is absent."""
    path = Path(os.environ.get("NH2ST_DATA") or ROOT.parent / "shared" / "data")
    if not path.is_dir():
        pytest.skip("real sections are not here: set NH2ST_DATA to their folder")
    return path
