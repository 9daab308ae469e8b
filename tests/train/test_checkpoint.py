"""Training that is killed goes on, and gives what it would have given."""

from __future__ import annotations

import json
import os
import shutil
import signal
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
import pytest
import torch
from spatialdata import SpatialData

import nh2st_scverse as nh
from nh2st_scverse.train.checkpoint import claim

SCRIPT = '''
import os, signal, sys
sys.path[:0] = {paths!r}
import lightning as L
import torch
import nh2st_scverse as nh
from test_checkpoint import settings

class Die(L.Callback):
    """In the middle of an epoch."""
    def on_train_batch_end(self, trainer, *rest):
        if trainer.current_epoch == 3 and trainer.global_step % 2:
            os.kill(os.getpid(), signal.SIGKILL)

if __name__ == "__main__":
    torch.set_num_threads({threads})
    nh.tl.train(
        nh.datasets.synthetic(width_um=1200, n_sections=2), checkpoint_dir={folder!r},
        trainer_kwargs={{"callbacks": [Die()]}}, **settings({preset!r}),
    )
'''


class Quarters:
    """Mean and spread of the colours of the quarters of a patch."""

    name, input_size, dim, weights_hash = "quarters", 16, 24, "none"

    def __call__(self, patches: np.ndarray) -> np.ndarray:
        quarters = (patches / 255).reshape(len(patches), 2, 8, 2, 8, 3)
        return np.concatenate([f(quarters, axis=(2, 4)).reshape(len(patches), -1) for f in (np.mean, np.std)], axis=1)


class Turning:
    """An encoder that is trained, from random weights: its maps (n, 6, 4, 4) are those of one convolution."""

    name, input_size, dim, weights_hash = "turning", 16, 6, "none"

    def __call__(self, patches: np.ndarray) -> np.ndarray:
        raise AssertionError("what is trained has no features of its own")

    def trunk(self) -> torch.nn.Module:
        return torch.nn.Sequential(torch.nn.Conv2d(3, 6, 4, stride=4), torch.nn.BatchNorm2d(6), torch.nn.ReLU())


def settings(preset: str) -> dict[str, Any]:
    """A training of a moment, with dropout, early stopping, an ensemble, and a trunk in preset "paper"."""
    small = {"embedding": 16, "hidden": 16, "bottleneck": 16, "heads": 2}
    common = {"n_genes": 8, "progress": False, "preset": preset, **small}
    if preset == "default":
        return common | {"encoder": Quarters(), "max_epochs": 6, "batch_size": 32, "patience": 2, "lr": 0.02}
    return common | {"encoder": Turning(), "max_epochs": 4, "n_members": 1, "batch_size": 32}


@pytest.mark.parametrize("preset", ["default", "paper"])
def test_a_killed_training_goes_on_to_the_same_model(
    preset: str, sdata: SpatialData, tmp_path: Path, start: Any
) -> None:
    """On as many threads as before: a trunk sums in another order on another number."""
    folder = tmp_path / "checkpoints"
    paths = [str(Path(nh.__file__).parents[1]), str(Path(__file__).parent)]
    threads = torch.get_num_threads()
    killed = start(SCRIPT.format(paths=paths, folder=str(folder), preset=preset, threads=threads), tmp_path / "call")
    killed.join(300)
    assert killed.exitcode == -signal.SIGKILL, (tmp_path / "call" / "said").read_text()
    left = torch.load(folder / "member_0.ckpt", weights_only=True)
    assert left["epoch"] == 2

    model = nh.tl.train(sdata, checkpoint_dir=folder, resume=True, **settings(preset))
    whole = nh.tl.train(sdata, **settings(preset))
    assert model.identifier == whole.identifier  # a hash of the weights
    assert np.array_equal(model.history, whole.history)
    assert model.scores.equals(whole.scores)

    again = nh.tl.train(sdata, checkpoint_dir=folder, resume=True, **settings(preset))  # nothing is left to do
    assert again.identifier == whole.identifier
    assert np.array_equal(again.history, whole.history)


def test_a_training_on_features_on_disk_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("nh2st_scverse.data.inputs.MANY", 30)
    sdata = nh.datasets.synthetic(width_um=1200, n_sections=2)
    given = settings("default") | {"max_epochs": 3, "n_members": 1, "cache_dir": tmp_path / "cache"}

    class Fail(L.Callback):
        def on_train_epoch_start(self, trainer: L.Trainer, *_: Any) -> None:
            if trainer.current_epoch == 2:
                raise MemoryError("another program")

    with pytest.raises(MemoryError):
        nh.tl.train(sdata, checkpoint_dir=tmp_path / "c", trainer_kwargs={"callbacks": [Fail()]}, **given)
    model = nh.tl.train(sdata, checkpoint_dir=tmp_path / "c", resume=True, **given)
    assert "nh2st_features" not in sdata["table"].obsm
    assert model.identifier == nh.tl.train(sdata, **given).identifier


def test_a_folder_belongs_to_one_training(sdata: SpatialData, tmp_path: Path) -> None:
    folder = tmp_path / "checkpoints"
    given = settings("default") | {"max_epochs": 1, "n_members": 1}
    nh.tl.train(sdata, checkpoint_dir=folder, resume=True, **given)  # nothing to go on with: it begins
    assert sorted(path.name for path in folder.iterdir()) == ["member_0.ckpt", "training.json"]
    with pytest.raises(FileExistsError, match="pass resume=True to go on with the training in it, or choose another"):
        nh.tl.train(sdata, checkpoint_dir=folder, **given)
    with pytest.raises(ValueError, match=r"holds a training with other seed: found seed 0, now 1\. Repeat the call"):
        nh.tl.train(sdata, checkpoint_dir=folder, resume=True, seed=1, **given)
    with pytest.raises(ValueError, match="other config, data, genes: found config"):
        nh.tl.train(sdata, checkpoint_dir=folder, resume=True, **given | {"n_genes": 7, "dropout": 0.1})
    (folder / "training.json").write_text("{")
    with pytest.raises(ValueError, match="holds no training"):
        nh.tl.train(sdata, checkpoint_dir=folder, resume=True, **given)


def test_other_folders_are_left_alone(tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("precious")
    with pytest.raises(FileExistsError):
        claim(tmp_path, {"seed": 0}, resume=False)
    with pytest.raises(ValueError, match="holds no training"):
        claim(tmp_path, {"seed": 0}, resume=True)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.txt"]


def test_cross_fitting_leaves_a_folder_for_each_fold(tmp_path: Path) -> None:
    sdata = nh.datasets.synthetic(width_um=1200, n_sections=3)
    given = settings("default") | {"max_epochs": 2, "n_members": 1, "checkpoint_dir": tmp_path / "folds"}
    nh.tl.predict_expression(sdata, **given)
    first = sdata["table"].layers["nh2st"].copy()
    assert sorted(path.name for path in (tmp_path / "folds").iterdir()) == ["fold_0", "fold_1", "fold_2"]
    assert json.loads((tmp_path / "folds" / "fold_1" / "training.json").read_text())["seed"] == 0
    nh.tl.predict_expression(sdata, resume=True, **given)
    assert np.array_equal(first, sdata["table"].layers["nh2st"], equal_nan=True)


FULL = OSError(28, "No space left on device")


def test_a_folder_that_was_begun_on_a_full_disk_begins_again(
    sdata: SpatialData, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given = settings("default") | {"max_epochs": 1, "n_members": 1}

    def full(*_: Any, **__: Any) -> None:
        raise FULL

    for name in ("replace", "write_text"):
        with monkeypatch.context() as patch:
            patch.setattr(*((os, name) if name == "replace" else (Path, name)), full)
            with pytest.raises(OSError, match="No space left"):
                claim(tmp_path / "in" / "new", {"seed": 0}, resume=False)
        assert not (tmp_path / "in").exists()
    for left in ({"training.new": ""}, {"training.json": ""}, {"training.json": '{"se'}, {"member_0.new": "PK"}):
        folder = tmp_path / "killed"
        folder.mkdir()
        for name, text in left.items():
            (folder / name).write_text(text)
        with pytest.raises(FileExistsError, match="pass resume=True"):
            claim(folder, {"seed": 0}, resume=False)
        claim(folder, {"seed": 0}, resume=True)
        assert json.loads((folder / "training.json").read_text()) == {"seed": 0}
        shutil.rmtree(folder)

    folder = tmp_path / "checkpoints"
    folder.mkdir()
    (folder / "training.json").touch()
    model = nh.tl.train(sdata, checkpoint_dir=folder, resume=True, **given)
    checkpoint = (folder / "member_0.ckpt").read_bytes()
    (folder / "training.json").write_text("")  # now it has an epoch of nobody knows what
    with pytest.raises(ValueError, match=r"holds no training that can go on: .*\['member_0.ckpt'\].*Remove the folder"):
        nh.tl.train(sdata, checkpoint_dir=folder, resume=True, **given)
    assert (folder / "member_0.ckpt").read_bytes() == checkpoint and model.genes


@pytest.mark.parametrize("left", [0, 300, -1])
def test_a_checkpoint_that_was_cut_off_begins_again(
    left: int, sdata: SpatialData, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    given = settings("default") | {"max_epochs": 2, "n_members": 1}
    first = nh.tl.train(sdata, checkpoint_dir=tmp_path / "c", **given)
    path = tmp_path / "c" / "member_0.ckpt"
    path.write_bytes(path.read_bytes()[:left])
    again = nh.tl.train(sdata, checkpoint_dir=tmp_path / "c", resume=True, **given)
    assert f"{path} is damaged: its member is trained from the beginning" in caplog.text
    assert again.identifier == first.identifier
    assert torch.load(path, weights_only=True)["epoch"] == 1


def test_an_epoch_that_finds_no_space_says_how_to_go_on(
    sdata: SpatialData, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given = settings("default") | {"max_epochs": 3, "n_members": 1}
    whole = nh.tl.train(sdata, **given)
    replace, calls = os.replace, []

    def full(source: Path, target: Path) -> None:
        calls.append(Path(target).name)
        if calls.count("member_0.ckpt") == 2:
            raise FULL
        replace(source, target)

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", full)
        with pytest.raises(OSError, match=r"Epoch 1 could not be kept in .*member_0.*No space left.*resume=True"):
            nh.tl.train(sdata, checkpoint_dir=tmp_path / "c", **given)
    assert sorted(path.name for path in (tmp_path / "c").iterdir()) == ["member_0.ckpt", "training.json"]
    assert nh.tl.train(sdata, checkpoint_dir=tmp_path / "c", resume=True, **given).identifier == whole.identifier


def test_the_folds_of_a_cross_fitting_are_no_training(tmp_path: Path) -> None:
    claim(tmp_path / "c" / "fold_0", {"seed": 0}, resume=False)
    with pytest.raises(ValueError, match="holds no training of one model, but the folds of several"):
        claim(tmp_path / "c", {"seed": 0}, resume=True)
