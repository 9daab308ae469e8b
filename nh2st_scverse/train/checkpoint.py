"""Checkpoints of a training that can go on after its process was killed."""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
from lightning.pytorch.utilities import rank_zero_only

from nh2st_scverse.train.data import Data

ABOUT = "training.json"


class SaveEpochs(L.Callback):
    """Leaves a checkpoint after every epoch, in one file that is whole at any time."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Write beside the last one, then take its place."""
        new = self.path.with_suffix(".new")
        trainer.save_checkpoint(new)
        if trainer.is_global_zero:
            os.replace(new, self.path)


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
    about = json.loads(json.dumps(about))
    described = folder / ABOUT
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        if not resume:
            raise FileExistsError(
                f"checkpoint_dir={str(folder)!r} exists: pass resume=True to go on with the training in it, or choose "
                "another folder."
            )
        try:
            found = json.loads(described.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise ValueError(f"checkpoint_dir={str(folder)!r} holds no training: {error}.") from error
        other = sorted(name for name in about.keys() | found.keys() if about.get(name) != found.get(name))
        if other:
            first = other[0]
            raise ValueError(
                f"checkpoint_dir={str(folder)!r} holds a training with other {', '.join(other)}: found {first} "
                f"{_short(found.get(first))}, now {_short(about.get(first))}. Repeat the call as it was, or choose "
                "another folder."
            )
        return
    folder.mkdir(parents=True, exist_ok=True)
    new = described.with_suffix(".new")
    new.write_text(json.dumps(about, indent=1), encoding="utf-8")
    os.replace(new, described)


def _short(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) < 80 else text[:77] + "..."


def data_hash(data: Data) -> str:
    """Short hash of what spots give to a training: images, expression, neighbourhoods."""
    digest = hashlib.sha256()
    for i, section in enumerate(data.sections):
        for values in (data.input(i), data.target(i), section.neighbours.nodes):
            digest.update(np.ascontiguousarray(values).tobytes())
    return digest.hexdigest()[:16]
