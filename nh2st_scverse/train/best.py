"""The best epoch of a training, and when to stop."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import lightning as L
import torch
from torch import Tensor, nn

from nh2st_scverse.train.scores import section_pearson


class Best:
    """Weights and held-out predictions of the best epoch, and the history of all."""

    def __init__(self, patience: int) -> None:
        self.patience = patience
        self.score, self.epoch = -math.inf, -1
        self.weights: dict[str, Tensor] = {}
        self.predicted = torch.empty(0)
        self.history: list[dict[str, float]] = []

    def add(self, module: nn.Module, predicted: Tensor, row: dict[str, float]) -> None:
        """Take note of an epoch that ended."""
        score, epoch = row["validation_pearson"], int(row["epoch"])
        self.history.append(row)
        if score > self.score or not self.weights:
            self.score, self.epoch = -math.inf if math.isnan(score) else score, epoch
            self.weights = {k: v.detach().cpu().clone() for k, v in module.state_dict().items()}
            self.predicted = predicted.cpu()

    @property
    def is_past(self) -> bool:
        """The best epoch is long past: stop."""
        return bool(self.history) and self.history[-1]["epoch"] - self.epoch >= self.patience

    def restore(self, module: nn.Module) -> None:
        """Give a module its best weights."""
        if self.weights:
            module.load_state_dict(self.weights)

    def state(self) -> dict[str, Any]:
        """Everything but the patience, as values that load without unpickling."""
        return {k: v for k, v in vars(self).items() if k != "patience"}

    def set(self, state: dict[str, Any]) -> None:
        """Read :meth:`state`."""
        vars(self).update(state)


class KeepBest(L.Callback):
    """Scores every epoch on the held-out spots, and stops when the best one is long past."""

    def __init__(self, wanted: Tensor, on_epoch: Callable[[dict[str, float], int], None] | None = None) -> None:
        self.wanted, self.on_epoch = wanted, on_epoch

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """A training that goes on may have been at its end."""
        task: Any = pl_module
        trainer.should_stop = trainer.should_stop or task.best.is_past

    def on_validation_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Score the epoch that ended."""
        task: Any = pl_module
        row, predicted = task.end_epoch()
        score = section_pearson(predicted, task.held, self.wanted.to(predicted.device))
        row |= {"epoch": float(trainer.current_epoch), "validation_pearson": score}
        task.best.add(task.member, predicted, row)
        if task.best.is_past:
            trainer.should_stop = True
        if self.on_epoch is not None:
            self.on_epoch(row, trainer.max_epochs or 0)
