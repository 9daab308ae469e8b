"""The best epoch of a training, and when to stop."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any, get_args

import lightning as L
import torch
from torch import Tensor, nn

from nh2st_scverse.nn import Config
from nh2st_scverse.nn.config import Preset
from nh2st_scverse.train.scores import section_pearson

# Settings that can make a training diverge.
STEERING = (
    "lr",
    "encoder_lr",
    "weight_decay",
    "temperature",
    "mse",
    "pearson",
    "query_contrast",
    "neighbour_contrast",
    "negatives",
    "stain_jitter",
)


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


def check_finite(terms: Mapping[str, float], predicted: Tensor, config: Config, epoch: int) -> None:
    """Raise ValueError when a training diverged, which its settings explain and the images do not."""
    bad = [f"{name} {value}" for name, value in terms.items() if not math.isfinite(value)]
    lost = int((~torch.isfinite(predicted)).any(dim=1).sum())
    if not bad and not lost:
        return
    usual = Config.preset(config.name if config.name in get_args(Preset) else "default")
    changed = [n for n in STEERING if getattr(config, n) != getattr(usual, n)]
    told = [f"{n}={getattr(config, n):g} (usually {getattr(usual, n):g})" for n in changed]
    raise ValueError(
        f"Training diverged in epoch {epoch}: {', '.join(bad) or 'the loss is finite'}, and {lost} of {len(predicted)} "
        f"held-out predictions are not finite. Found {', '.join(told) or 'the usual ones'}: "
        f"give a lower lr than {config.lr:g}, or gradient_clip_val in trainer_kwargs="
        + (f", or leave {', '.join(changed)} as usual." if changed else ".")
    )


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
        skips = getattr(trainer.precision_plugin, "scaler", None) is not None  # steps that overflow 16 bits
        check_finite({} if skips else row, predicted, task.config, trainer.current_epoch)
        score = section_pearson(predicted, task.held, self.wanted.to(predicted.device))
        row |= {"epoch": float(trainer.current_epoch), "validation_pearson": score}
        task.best.add(task.member, predicted, row)
        if task.best.is_past:
            trainer.should_stop = True
        if self.on_epoch is not None:
            self.on_epoch(row, trainer.max_epochs or 0)
