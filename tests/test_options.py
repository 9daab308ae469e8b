"""How a call runs: what cannot be is refused before any work, and says what would do."""

from __future__ import annotations

import asyncio
import os
import re
from dataclasses import FrozenInstanceError
from pathlib import Path
from typing import Any, get_type_hints

import lightning as L
import numpy as np
import pytest
import torch
from distributed import Client, LocalCluster

from nh2st_scverse._options import Run, RunOptions


def test_options_are_plain_values_that_stay() -> None:
    given: dict[str, Any] = {"max_epochs": 2}
    run = Run(seed=np.int64(3), resume=np.bool_(False), device=torch.device("cpu"), trainer_kwargs=given)
    given["devices"] = 4
    assert (run.seed, type(run.seed), run.resume, run.device) == (3, int, False, "cpu")
    assert run.trainer_kwargs == {"max_epochs": 2}
    with pytest.raises(FrozenInstanceError):
        run.seed = 4  # type: ignore[misc]
    assert Run(trainer_kwargs=None).trainer_kwargs == {}


def test_the_keywords_are_those_of_the_fields() -> None:
    assert list(get_type_hints(RunOptions)) == list(Run.__dataclass_fields__)


@pytest.mark.parametrize(
    ("options", "error", "match"),
    [
        ({"seed": -1}, ValueError, "seed to be a whole number from 0 to 4294967295, found -1"),
        ({"seed": 2**32}, ValueError, "found 4294967296"),
        ({"seed": None}, TypeError, "seed to be a whole number .*found None"),
        ({"seed": 1.0}, TypeError, r"found 1\.0"),
        ({"seed": True}, TypeError, "found True"),
        ({"seed": "1"}, TypeError, "found '1'"),
        ({"device": "tpu"}, ValueError, r"device to be one of \['auto', 'cpu'.*found 'tpu'"),
        ({"device": "cuda:x"}, ValueError, "device to be one of"),
        ({"device": "cpu:1"}, ValueError, "device to be one of"),
        ({"device": None}, ValueError, "device to be one of .* found None"),
        ({"device": 1}, ValueError, "device to be one of .* found 1"),
        ({"progress": "no"}, TypeError, "progress to be True or False, found 'no'"),
        ({"resume": 1}, TypeError, "resume to be True or False, found 1"),
        ({"resume": True}, ValueError, "resume=True goes on with the training in checkpoint_dir="),
        ({"cache_dir": ""}, TypeError, "cache_dir to be the path of a folder, found ''"),
        ({"checkpoint_dir": 3}, TypeError, "checkpoint_dir to be the path of a folder, found 3"),
        ({"client": "tcp://here:8786"}, TypeError, r"client=distributed\.Client.*found str"),
        ({"trainer_kwargs": [1]}, TypeError, "trainer_kwargs= to be a dict"),
        ({"trainer_kwargs": {"max_time_": 3}}, TypeError, r"found \['max_time_'\]\. Similar: \['max_time'"),
        ({"trainer_kwargs": {"precision": "7"}}, ValueError, r"lightning\.Trainer refuses .*'precision': '7'"),
        ({"trainer_kwargs": {"devices": 0}}, ValueError, r"lightning\.Trainer refuses"),
        ({"trainer_kwargs": {"strategy": "dpp"}}, ValueError, r"lightning\.Trainer refuses .*dpp"),
        ({"trainer_kwargs": {"strategy": "ddp_spawn"}}, ValueError, "Strategies that spawn processes"),
        ({"trainer_kwargs": {"max_epochs": "three"}}, ValueError, "max_epochs is NoneType or int, found 'three'"),
        ({"trainer_kwargs": {"max_steps": True}}, ValueError, "max_steps is int, found True"),
        ({"trainer_kwargs": {"callbacks": ["x"]}}, ValueError, r"callbacks has \['x'\], no lightning\.Callback"),
    ],
    ids=str,
)
def test_what_cannot_be_is_refused(options: dict[str, Any], error: type[Exception], match: str) -> None:
    with pytest.raises(error, match=match):
        Run(**options)


def test_a_gpu_that_is_not_here_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    with pytest.raises(ValueError, match=r"device='cuda:1' is not here: torch sees 0 GPU\(s\)\. Available: .*'cpu'"):
        Run(device="cuda:1")
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    run = Run(device="cuda:1")
    assert run.torch_device == "cuda:1"
    options = run.trainer_options()
    assert (options["accelerator"], options["devices"]) == ("gpu", [1])
    with pytest.raises(ValueError, match=r"torch sees 2 GPU\(s\)\. Available: .*'cuda:0', 'cuda:1'"):
        Run(device="cuda:2")
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    with pytest.raises(ValueError, match="torch sees no Apple GPU"):
        Run(device="mps")


def test_the_device_reaches_torch_and_lightning(monkeypatch: pytest.MonkeyPatch) -> None:
    assert Run(device="cpu").torch_device == "cpu"
    assert Run(device="cpu").trainer_options()["accelerator"] == "cpu"
    for there, device in ((False, "cpu"), (True, "cuda")):
        monkeypatch.setattr(torch.cuda, "is_available", lambda there=there: there)
        assert Run().torch_device == device
    callback = L.Callback()
    options = Run(device="cpu", trainer_kwargs={"callbacks": [callback], "devices": 2}).trainer_options()
    assert options["callbacks"] == [callback] and options["devices"] == 2 and options["logger"] is False


def test_folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    run = Run(cache_dir="~/features", checkpoint_dir=tmp_path / "a" / "b")
    assert (run.cache_dir, run.checkpoint_dir) == (tmp_path / "features", tmp_path / "a" / "b")
    assert not list(tmp_path.iterdir())  # nothing is made yet
    (tmp_path / "file").touch()
    for argument in ("cache_dir", "checkpoint_dir"):
        for path in ("file", "file/below/it"):
            with pytest.raises(NotADirectoryError, match=f"{argument}=.* to be a folder, but .*file is a file"):
                Run(**{argument: tmp_path / path})
    monkeypatch.chdir(tmp_path)
    assert Run(cache_dir="new").cache_dir == Path("new")
    monkeypatch.setattr(os, "access", lambda *_: False)
    with pytest.raises(PermissionError, match=r"cache_dir=.* cannot be written: .* is closed to you"):
        Run(cache_dir=tmp_path / "x")


def test_a_folder_of_something_else_is_no_place_for_checkpoints(tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("precious")
    with pytest.raises(FileExistsError, match=r"exists: pass resume=True to go on with the training in it"):
        Run(checkpoint_dir=tmp_path)
    with pytest.raises(ValueError, match=r"holds no training, but \['thesis\.txt'\]"):
        Run(checkpoint_dir=tmp_path, resume=True)
    for name in ("training.json", "fold_0", "training.new", "member_0.ckpt"):
        (tmp_path / name).touch()
        assert Run(checkpoint_dir=tmp_path, resume=True).resume
        (tmp_path / name).unlink()


def test_a_client_that_cannot_work_is_refused() -> None:
    with LocalCluster(n_workers=0, processes=False, dashboard_address=None) as cluster:
        client = Client(cluster)
        assert Run(client=client).client is client
        client.close()
        with pytest.raises(ValueError, match=r"a client that is connected, found one that is closed\. One on this"):
            Run(client=client)

    async def waiting() -> None:
        async with Client(asynchronous=True, n_workers=0, processes=False, dashboard_address=None) as client:
            with pytest.raises(ValueError, match="found one with asynchronous=True"):
                Run(client=client)

    asyncio.run(waiting())


def test_lightning_is_quiet_meanwhile(capsys: pytest.CaptureFixture[str], recwarn: pytest.WarningsRecorder) -> None:
    Run(device="cpu", trainer_kwargs={"max_epochs": 1})
    assert not re.search("GPU|TPU", "".join(capsys.readouterr())) and not recwarn.list
