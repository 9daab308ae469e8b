"""Checkpoints of a training that can go on after its process was killed."""

from __future__ import annotations

import hashlib
import json
import os
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
import torch
from lightning.pytorch.utilities import rank_zero_only

from nh2st_scverse._logging import logger
from nh2st_scverse._options import check_checkpoints
from nh2st_scverse.data.feature_cache import PART, release
from nh2st_scverse.train.data import Data

ABOUT = "training.json"


class SaveEpochs(L.Callback):
    """Leaves a checkpoint after every epoch, in one file that is whole at any time."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Write beside the last one, then take its place."""
        new = self.path.with_suffix(".new")
        try:
            trainer.save_checkpoint(new)
            if trainer.is_global_zero:
                os.replace(new, self.path)
        except (OSError, RuntimeError) as error:  # torch raises the second on a full disk
            new.unlink(missing_ok=True)
            raise OSError(
                f"Epoch {trainer.current_epoch} could not be kept in {self.path}: {error}. Make room, and go on with "
                "the same call and resume=True."
            ) from error


@rank_zero_only
def claim(folder: Path, about: dict[str, Any], *, resume: bool) -> None:
    """Make a folder the place of a training, or check that it is.

    Raises
    ------
    FileExistsError
        The folder holds something, and nobody asked to go on with it.
    ValueError
        What it holds is another training.
    """
    check_checkpoints(folder, resume=resume)
    about = json.loads(json.dumps(about))
    found = _begun(folder)
    if found is None:
        _begin(folder, about)
        return
    other = sorted(name for name in about.keys() | found.keys() if about.get(name) != found.get(name))
    if other:
        first = other[0]
        raise ValueError(
            f"checkpoint_dir={str(folder)!r} holds a training with other {', '.join(other)}: found {first} "
            f"{_short(found.get(first))}, now {_short(about.get(first))}. Repeat the call as it was, or choose "
            "another folder."
        )


def _begun(folder: Path) -> dict[str, Any] | None:
    """What a folder says of its training; None when no epoch ended in it, whatever a full disk or a kill left."""
    try:
        found = json.loads((folder / ABOUT).read_text(encoding="utf-8"))
        if not isinstance(found, dict):
            raise ValueError(f"{ABOUT} has {_short(found)}")
        return found
    except (OSError, ValueError) as error:
        if list(folder.glob("fold_*")):
            raise ValueError(
                f"checkpoint_dir={str(folder)!r} holds no training of one model, but the folds of several: go on with "
                "the call that made them, or choose another folder."
            ) from error
        epochs = sorted(path.name for path in folder.glob("member_*.ckpt"))
        if epochs:
            raise ValueError(
                f"checkpoint_dir={str(folder)!r} holds no training that can go on: {ABOUT} is damaged ({error}), so "
                f"that nothing tells what {epochs} belong to. Remove the folder to begin anew."
            ) from error
        return None


def _begin(folder: Path, about: dict[str, Any]) -> None:
    """Write what a folder is for; when that fails, nothing is left of it."""
    made = [one for one in (folder, *folder.parents) if not one.exists()]
    folder.mkdir(parents=True, exist_ok=True)
    new = (folder / ABOUT).with_suffix(".new")
    try:
        new.write_text(json.dumps(about, indent=1), encoding="utf-8")
        os.replace(new, folder / ABOUT)
    except BaseException:
        with suppress(OSError):
            new.unlink(missing_ok=True)
            for one in made:
                one.rmdir()
        raise


def whole(checkpoint: Path | None) -> Path | None:
    """A checkpoint that is there and can be read. One that was cut off is left out: its member begins anew."""
    if checkpoint is None or not checkpoint.exists():
        return None
    try:
        torch.load(checkpoint, map_location="cpu", weights_only=True)
    except Exception as error:  # whatever a damaged file leads to
        logger.warning("Checkpoint %s is damaged: its member is trained from the beginning. (%s)", checkpoint, error)
        return None
    return checkpoint


def _short(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) < 80 else text[:77] + "..."


def data_hash(data: Data) -> str:
    """Short hash of what spots give to a training: images, expression, neighbourhoods."""
    digest = hashlib.sha256()
    for i, section in enumerate(data.sections):
        for values in (partial(data.input, i), partial(data.target, i), section.neighbours.nodes.__getitem__):
            for start in range(0, section.n_spots, PART):
                digest.update(np.ascontiguousarray(values(slice(start, start + PART))).tobytes())
                release(data.inputs[i])
    return digest.hexdigest()[:16]
