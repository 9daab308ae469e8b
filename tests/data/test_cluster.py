"""Encoding on a dask cluster gives what encoding here gives, whatever happens to its workers."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import cloudpickle
import dask
import numpy as np
import pytest
from distributed import Client, LocalCluster
from spatialdata import SpatialData, read_zarr

import nh2st_scverse as nh
from nh2st_scverse.data.cluster import _encode
from nh2st_scverse.data.features import Sight, encode_section
from nh2st_scverse.data.section import Section, locate_sections

cloudpickle.register_pickle_by_value(sys.modules[__name__])  # the workers cannot import this file


class Colours:
    """Mean and spread of the colours of a patch; kills its worker once when there is a file that asks for it."""

    name, input_size, dim, weights_hash = "colours", 32, 6, "v1"

    def __init__(self, kill: Path | None = None, main: int = 0) -> None:
        self.kill, self.main = kill, main

    def __call__(self, patches: np.ndarray) -> np.ndarray:
        if self.kill is not None and self.kill.exists() and os.getpid() != self.main:
            self.kill.unlink()
            os.kill(os.getpid(), signal.SIGKILL)
        scaled = patches / 255
        return np.concatenate([scaled.mean(axis=(1, 2)), scaled.std(axis=(1, 2))], axis=1)


@pytest.fixture(scope="module")
def client(forked: Any) -> Iterator[Client]:
    with (
        dask.config.set({"distributed.worker.multiprocessing-method": "forkserver"}),
        LocalCluster(n_workers=2, processes=True, threads_per_worker=1, dashboard_address=None) as cluster,
        Client(cluster) as client,
    ):
        yield client


@pytest.fixture(scope="module")
def sdata(tmp_path_factory: pytest.TempPathFactory) -> SpatialData:
    """A section on disk, as users have it."""
    path = tmp_path_factory.mktemp("data") / "section.zarr"
    nh.datasets.synthetic(width_um=2000, n_sections=2).write(path)
    return read_zarr(path)


@pytest.fixture(scope="module")
def section(sdata: SpatialData) -> Section:
    return locate_sections(sdata)[0]


@pytest.mark.slow
def test_a_cluster_encodes_the_same_even_when_it_loses_a_worker(
    client: Client, section: Section, tmp_path: Path
) -> None:
    settings = {"sight": Sight(75.0, (1.0, 2.5)), "progress": False}
    expected = encode_section(section, Colours(), **settings)
    assert section.n_spots > 3 * 64  # several batches
    assert np.array_equal(encode_section(section, Colours(), client=client, **settings), expected)
    kill = tmp_path / "kill"
    kill.touch()
    before = set(client.scheduler_info()["workers"])
    found = encode_section(section, Colours(kill, os.getpid()), client=client, **settings)
    assert not kill.exists()  # one was killed
    assert set(client.scheduler_info()["workers"]) != before
    assert np.array_equal(found, expected)


def test_a_task_encodes_a_batch(section: Section) -> None:
    places = np.array([3, 0])
    found = _encode(section.geometry, Colours(), (places, 75.0))
    every = encode_section(section, Colours(), sight=Sight(75.0, (1.0,)), progress=False)
    assert found.dtype == np.float32 and np.array_equal(found, every[places])


@pytest.mark.slow
def test_tools_take_a_client(client: Client, sdata: SpatialData) -> None:
    small = {"embedding": 16, "hidden": 16, "bottleneck": 16, "heads": 2, "max_epochs": 1, "n_genes": 5}
    model = nh.tl.train(sdata, encoder=Colours(), client=client, progress=False, **small)
    features = sdata["table"].obsm.pop("nh2st_features")
    sdata["table"].uns.pop("nh2st_features")
    nh.tl.predict_expression(sdata, model=model, encoder=Colours(), progress=False)
    assert np.array_equal(features, sdata["table"].obsm["nh2st_features"])


def test_what_is_no_client_is_refused(sdata: SpatialData) -> None:
    with pytest.raises(TypeError, match=r"Expected client=distributed\.Client\(\.\.\.\) of a dask cluster, found str"):
        nh.tl.train(sdata, encoder=Colours(), client="tcp://10.0.0.1:8786")
