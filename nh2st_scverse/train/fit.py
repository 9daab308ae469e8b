"""Fit one member of a model: scale, ridge, network, with early stopping on held-out spots."""

from __future__ import annotations

import math
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
import torch
from torch import Tensor, nn

from nh2st_scverse._options import Run, quiet
from nh2st_scverse._threads import threads
from nh2st_scverse.encoders._torch import as_images, in_parts
from nh2st_scverse.nn import Config, Member
from nh2st_scverse.nn.ridge import AT_ONCE, ridge_inputs
from nh2st_scverse.train.batches import Batches, InOrder
from nh2st_scverse.train.best import Best, KeepBest
from nh2st_scverse.train.checkpoint import SaveEpochs, whole
from nh2st_scverse.train.data import Data
from nh2st_scverse.train.likeness import apart
from nh2st_scverse.train.memory import kept_memory
from nh2st_scverse.train.scores import section_pearson
from nh2st_scverse.train.task import Task
from nh2st_scverse.train.tensors import Tensors, components, stack

PENALTIES = 10.0 ** np.arange(-5, 4.5, 0.5)  # as parts of the mean eigenvalue
MOST_SPOTS = 50_000  # spots that tell a closed form what it can learn, and held-out ones that judge a member
COMPONENT_SPOTS = 1000  # spots on which the components of a trunk's features are found

_alone = threading.RLock()  # the random state of torch is that of all threads


@dataclass(frozen=True)
class Fitted:
    """A trained member, and what it says of tissue that it never saw."""

    member: Member  # with its best weights
    predicted: tuple[np.ndarray, ...]  # of the held-out spots (m, G) of each section; none before an epoch ended
    history: tuple[dict[str, float], ...]  # a row for each epoch
    stopped: bool  # by the user


def fit_member(
    train: Data,
    held_out: Data,
    wanted: Sequence[np.ndarray],
    config: Config,
    run: Run,
    *,
    trunk: nn.Module | None = None,
    on_epoch: Callable[[dict[str, float], int], None] | None = None,
    checkpoint: Path | None = None,
) -> Fitted:
    """Train on some sections, stop by others.

    Parameters
    ----------
    train
        Spots with inputs and targets.
    held_out, wanted
        Whole sections, and the positions of their spots that decide when to stop.
    config
        Settings.
    run
        Seed of initial weights, batches and dropout; the global random state is left as it was. Device and arguments
        for ``lightning.Trainer``.
    trunk
        Image encoder to train with the network.
    on_epoch
        Called with the terms of every epoch, and the number of epochs at most.
    checkpoint
        File to leave a checkpoint in after every epoch. If it is there, training goes on from it.
    """
    projected = trunk is None and config.n_components is not None
    spots, held = (stack(some, standardise=config.standardise, projected=projected) for some in (train, held_out))
    starts = np.cumsum([0, *(section.n_spots for section in held_out.sections)])[:-1]
    at = torch.cat([torch.as_tensor(some) + start for some, start in zip(wanted, starts, strict=True)])

    # The network alone is too small to gain from several threads, and waits for them when the processor is shared:
    # training can then take ten times as long.
    with seeded(run.seed), quiet(), threads(1 if trunk is None else None):
        member = _prepare(spots, config, trunk, run.torch_device, train.blocks)
        if trunk is None and member.projection is not None:
            spots.inputs = components(spots.inputs, member.projection)
            held.inputs = components(held.inputs, member.projection, held.nodes[at].unique())
        if member.linear is not None:
            member.variance.copy_(spots.inputs[spots.trainable, : len(member.variance)].var(dim=0))
            member.apart.fill_(apart(member, held, at[held.trainable[at]]))
        if config.ridge:
            _fit_ridges(member, spots, held, at)
        best = Best(config.patience)
        task = Task(member, spots, held, best, run.seed)
        batches = Batches(
            torch.nonzero(spots.trainable)[:, 0],
            size=config.batch_size,
            places=None if trunk is None else [section.xy_um for section in train.sections],
            seed=run.seed,
            epoch=task.epoch_now,
            share=task.share,
        )
        ours = [KeepBest(at, on_epoch), *([SaveEpochs(checkpoint)] if checkpoint else [])]
        options: dict[str, Any] = {
            "max_epochs": n_epochs(config, len(batches)),
            "gradient_clip_val": 5.0 if config.optimizer == "adamw" else None,
        } | run.trainer_options()
        given = options.get("callbacks") or []
        options["callbacks"] = [*ours, *([given] if isinstance(given, L.Callback) else given)]
        trainer = L.Trainer(**options)
        on_cpu = trainer.strategy.root_device.type == "cpu"
        with _compiled(member, config), kept_memory(trunk is not None and on_cpu):
            stopped = _run(trainer, task, batches, InOrder(at, 512), checkpoint)
        best.restore(member)
        member.cpu().eval()
        del task.spots, task.held  # they may be many, and the trainer holds the task until it is collected
    sizes = [len(some) for some in wanted]
    predicted = tuple(part.numpy() for part in best.predicted.split(sizes)) if best.history else ()
    return Fitted(member, predicted, tuple(best.history), stopped)


def n_epochs(config: Config, batches: int) -> int:
    """Epochs that keep to the steps of the config, but 10 of them where that takes ten times the steps at most."""
    if config.max_steps is None:
        return config.max_epochs
    wanted = math.ceil(config.max_steps / batches)
    return min(config.max_epochs, max(wanted, min(10, math.ceil(10 * config.max_steps / batches))))


def _prepare(
    spots: Tensors, config: Config, trunk: nn.Module | None, device: str = "cpu", blocks: Sequence[int] = ()
) -> Member:
    """A member whose scaling is that of the training spots."""
    ready = torch.nonzero(spots.trainable)[:, 0]
    features = spots.inputs if trunk is None else _first_features(trunk, spots, ready, config, device)
    ready = _some(ready)
    known = ready if trunk is None else slice(None)
    n_features, n_genes = features.shape[1], spots.targets.shape[1]
    n_inputs = min(config.n_components, n_features, len(features[known]) - 1) if config.n_components else n_features
    n_landmarks = min(config.landmarks or 0, len(ready))
    member = Member(config, n_features, n_inputs, n_genes, trunk, n_landmarks)
    if member.projection is not None:
        member.projection.fit(features[known], blocks if trunk is None else ())
    if config.scale_target:
        targets = spots.targets[ready]
        member.target_mean.copy_(targets.mean(dim=0))
        member.target_scale.copy_(targets.std(dim=0) + 1e-3)
    return member


def _first_features(trunk: nn.Module, spots: Tensors, ready: Tensor, config: Config, device: str) -> Tensor:
    """Features (n, F) of some training spots before the trunk is trained: its components are found on them."""
    some = ready[torch.randperm(len(ready))[: COMPONENT_SPOTS if config.n_components else 1]]
    trunk.to(device).eval()
    with torch.no_grad():
        parts = [trunk(as_images(spots.inputs[at].to(device))).flatten(1).cpu() for at in in_parts(some, device)]
    trunk.cpu().train()  # Lightning leaves the mode as it is
    return torch.cat(parts)


def _fit_ridges(member: Member, spots: Tensors, held: Tensors, wanted: Tensor) -> None:
    """Give a member the closed-form ridges whose penalties correlate best on the held-out spots."""
    x, y = _ridge_data(member, spots, _some(torch.nonzero(spots.trainable)[:, 0]))
    for ridge in (member.ridge, member.linear):
        if ridge is None:
            continue
        weights, genes = ridge.fit(x, y, PENALTIES.tolist(), member.config.rank)
        terms = (ridge.terms(_seen(member, held, some)) for some in wanted.split(AT_ONCE))
        found = torch.cat([torch.einsum("nm,pmr->pnr", x, weights) for x in terms], dim=1)  # (penalties, spots, rank)
        scores = [section_pearson(one @ genes.T, held, wanted) for one in found]
        best = int(np.nanargmax(scores)) if np.isfinite(scores).any() else len(PENALTIES) // 2
        ridge.keep(weights[best], genes, float(PENALTIES[best]))


def refit_ridges(members: Sequence[Member], data: Data, *, seed: int = 0) -> None:
    """Fit the ridges of trained members again on all sections, with the penalties found on the held-out ones.

    Closed form does not overfit by going on too long: once its penalty is known, no tissue need be kept from it.
    """
    config = members[0].config
    spots = stack(data, standardise=config.standardise, projected=config.n_components is not None)
    for i, member in enumerate(members):
        with seeded(seed + i), threads(1):
            inputs, ready = spots.inputs, _some(torch.nonzero(spots.trainable)[:, 0])
            if member.projection is not None:
                inputs = components(inputs, member.projection, spots.nodes[ready].unique())
            x, y = _ridge_data(member, replace(spots, inputs=inputs), ready)
            for ridge in (member.ridge, member.linear):
                if ridge is not None:
                    if ridge.kernel != "linear":  # there may be more of them
                        ridge.landmarks = x[: member.config.landmarks]
                    weights, genes = ridge.fit(x, y, [ridge.penalty], member.config.rank)
                    ridge.keep(weights[0], genes, ridge.penalty)


def _ridge_data(member: Member, spots: Tensors, ready: Tensor) -> tuple[Tensor, Tensor]:
    """Inputs (N, D) and scaled targets (N, G) of the training spots that are `ready`."""
    parts = [_seen(member, spots, some) for some in ready.split(AT_ONCE)]
    return torch.cat(parts), (spots.targets[ready] - member.target_mean) / member.target_scale


def _seen(member: Member, spots: Tensors, some: Tensor) -> Tensor:
    """What the ridges of a member see of some spots: (n, D)."""
    return ridge_inputs(spots.inputs, spots.nodes[some], spots.mask[some], member.config.spread)


def _some(ready: Tensor) -> Tensor:
    """Training spots, some of them where they are very many."""
    return ready if len(ready) <= MOST_SPOTS else ready[torch.randperm(len(ready))[:MOST_SPOTS]]


def _run(trainer: L.Trainer, task: Task, batches: Batches, validation: InOrder, checkpoint: Path | None) -> bool:
    """Run the trainer. Returns whether the user stopped it, which Lightning turns into an exit of the process."""
    handler = signal.getsignal(signal.SIGINT)
    try:
        trainer.fit(task, batches, validation, ckpt_path=whole(checkpoint), weights_only=True)
    except KeyboardInterrupt:
        return True
    except SystemExit as ended:
        if not isinstance(ended.__context__, KeyboardInterrupt):
            raise
        return True
    finally:
        if signal.getsignal(signal.SIGINT) is not handler:  # Lightning ignores further signals, and leaves it so
            signal.signal(signal.SIGINT, handler)
    return False


@contextmanager
def _compiled(member: Member, config: Config) -> Iterator[None]:
    """Let torch.compile make the training code of a member, if asked for; afterwards it is as it was."""
    modules: list[nn.Module] = [m for m in (member.network, member.trunk) if m is not None] if config.compile else []
    for module in modules:
        module.compile(dynamic=True)
    try:
        yield
    finally:
        for module in modules:
            module._compiled_call_impl = None


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Seed torch and compute in float32, and leave its global state as it was: that of one thread after the other."""
    with _alone, torch.random.fork_rng(devices=range(torch.cuda.device_count())):
        dtype = torch.get_default_dtype()
        torch.set_default_dtype(torch.float32)
        torch.manual_seed(seed)
        try:
            yield
        finally:
            torch.set_default_dtype(dtype)
