"""The Lightning task: a step of training and of validation."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import lightning as L
import numpy as np
import torch
from torch import Tensor

from nh2st_scverse.encoders._torch import as_images, in_parts
from nh2st_scverse.nn import Member
from nh2st_scverse.train.best import Best
from nh2st_scverse.train.likeness import likeness
from nh2st_scverse.train.tensors import Tensors

AT_ONCE = 512  # spots that are predicted at a time
Part = tuple[slice, Tensor]  # which of the spots, and what is said of them


class Task(L.LightningModule):
    """Trains a member on spots that lie ready on the device; a batch is their positions (B,)."""

    def __init__(self, member: Member, train: Tensors, validation: Tensors, best: Best, seed: int = 0) -> None:
        super().__init__()
        self.member, self.config, self.seed = member, member.config, seed
        self.spots, self.held, self.best = train, validation, best
        self.epoch_terms: list[dict[str, Tensor]] = []
        self.predicted: list[Tensor] = []

    def on_fit_start(self) -> None:
        """Move the data once, not batch by batch."""
        self.spots, self.held = self.spots.to(self.device), self.held.to(self.device)

    def training_step(self, batch: Tensor, batch_idx: int) -> Tensor:
        """Loss of a batch of spots."""
        if batch_idx == 0:  # dropout and flips depend on seed and epoch alone: a training may go on later
            state = np.random.SeedSequence([self.seed, self.current_epoch, self.share()[0]]).generate_state(1)
            torch.manual_seed(int(state[0]))
        spots, member = self.spots, self.member
        nodes, mask = spots.nodes[batch], spots.mask[batch]  # (B, K)
        inputs, local = encode_once(member, spots, nodes, augment=self.config.augment, half=self.config.half)
        images = member.images(inputs, local, mask, spots.offsets[batch])
        target, around = spots.targets[batch], spots.targets[nodes]  # (B, G), (B, K, G)
        if self.config.scale_target:  # of the batch alone: a step must not take longer where there are more spots
            target, around = ((t - member.target_mean) / member.target_scale for t in (target, around))
        terms = member.network.losses(images, target, around, mask)
        self.epoch_terms.append({name: term.detach() for name, term in terms.items()})
        return terms["loss"]

    def validation_step(self, batch: Tensor) -> None:
        """Predict held-out spots."""
        self.predicted.append(predict_batch(self.member, self.held, batch))

    def end_epoch(self) -> tuple[dict[str, float], Tensor]:
        """Mean of each term of the loss, over all processes, and the predictions of the held-out spots."""
        names = list(self.epoch_terms[0]) if self.epoch_terms else []
        parts = [torch.stack([t[name] for t in self.epoch_terms]).mean() for name in names]
        means = torch.stack(parts) if parts else torch.empty(0)
        if self.share()[1] > 1:
            torch.distributed.all_reduce(means)
            means = means / self.share()[1]
        predicted = torch.cat(self.predicted)
        self.predicted, self.epoch_terms = [], []
        return dict(zip(names, means.tolist(), strict=True)), predicted

    def epoch_now(self) -> int:
        """The epoch, for the order of the batches."""
        return self.current_epoch

    def share(self) -> tuple[int, int]:
        """Rank of this process, and how many there are."""
        if torch.distributed.is_available() and torch.distributed.is_initialized():
            return torch.distributed.get_rank(), torch.distributed.get_world_size()
        return 0, 1

    def get_extra_state(self) -> dict[str, Any]:
        """The best epoch so far goes with the weights: into checkpoints, and back from other processes."""
        return self.best.state()

    def set_extra_state(self, state: dict[str, Any]) -> None:
        """Read :meth:`get_extra_state`."""
        self.best.set(state)

    def configure_optimizers(self) -> Any:
        """AdamW with one cycle of the learning rate, or the published Adam with a step decay."""
        c, trunk = self.config, self.member.trunk
        ours = [p for name, p in self.member.named_parameters() if not name.startswith("trunk.")]
        groups: list[dict[str, Any]] = [{"params": ours, "lr": c.lr}]
        if trunk is not None:
            groups.append({"params": list(trunk.parameters()), "lr": c.lr * c.encoder_lr})
        if c.optimizer == "adam":
            adam = torch.optim.Adam(groups, fused=True)
            return [adam], [torch.optim.lr_scheduler.StepLR(adam, 50, 0.9)]
        optimizer = torch.optim.AdamW(groups, weight_decay=c.weight_decay, fused=True)
        steps = int(self.trainer.estimated_stepping_batches)
        cycle = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: one_cycle(step, steps))
        return [optimizer], [{"scheduler": cycle, "interval": "step"}]


def one_cycle(step: int, steps: int) -> float:
    """Factor of the learning rate: a straight rise over the first tenth of the steps, then half a cosine down to 0."""
    rise = max(1, steps // 10)
    if step < rise:
        return (step + 1) / rise
    return 0.5 * (1 + math.cos(math.pi * min(1.0, (step - rise) / max(1, steps - rise))))


def encode_once(
    member: Member, spots: Tensors, nodes: Tensor, *, augment: bool = False, half: bool = False
) -> tuple[Tensor, Tensor]:
    """Inputs of a batch and the positions of its nodes (B, K) among them; each patch passes the trunk once."""
    if member.trunk is None:
        return spots.inputs, nodes
    needed, local = nodes.unique(return_inverse=True)  # (U,), (B, K)
    # without gradients nothing need be kept: a few patches at a time
    device = needed.device.type
    parts = (needed,) if torch.is_grad_enabled() else in_parts(needed, device)
    found = []
    for some in parts:
        images = as_images(spots.inputs[some])
        with torch.autocast(device, torch.bfloat16, enabled=half and has_bfloat16(device)):
            found.append(member.trunk(vary(flip(images), member.config.stain_jitter) if augment else images).float())
    features = torch.cat(found)  # (U, F), or maps (U, channels, h, w)
    return (features if member.projection is None else member.projection(features.flatten(1))), local


def has_bfloat16(device: str) -> bool:
    """Whether a device computes in 16 bits faster than in 32, at the range of 32."""
    if device == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    return device == "cpu" and bool(getattr(torch.cpu, "_is_avx512_bf16_supported", bool)())


def flip(images: Tensor) -> Tensor:
    """Turn each image (U, 3, side, side) by a quarter turn and flip it, or not, at random."""
    for dims in ((2,), (3,)):
        which = torch.rand(len(images), device=images.device) < 0.5
        images = torch.where(which[:, None, None, None], images.flip(dims), images)
    which = torch.rand(len(images), device=images.device) < 0.5
    return torch.where(which[:, None, None, None], images.transpose(2, 3), images)


def vary(images: Tensor, jitter: float) -> Tensor:
    """Stain images (U, 3, side, side) of 0 to 1 stronger or weaker, each colour by a factor of its own."""
    if not jitter:
        return images
    factors = 1 + jitter * torch.randn(len(images), 3, 1, 1, device=images.device)
    return images.clamp(min=1 / 255) ** factors.clamp(min=0.1)  # light that passes is exp(-density)


def predict_batch(member: Member, spots: Tensors, batch: Tensor, likeness: float = 1.0) -> Tensor:
    """Expression (B, G) of some spots, in the unit of the target."""
    nodes = spots.nodes[batch]
    inputs, local = encode_once(member, spots, nodes)
    return member.predict(inputs, local, spots.mask[batch], spots.offsets[batch], likeness)


def predict_parts(member: Member, spots: Tensors) -> Iterator[Part]:
    """Expression (B, G) of some spots at a time, with the share of the network that the section's likeness allows."""
    alike = likeness(member, spots)
    for rows, batch in _batches(spots):
        yield rows, predict_batch(member, spots, batch, alike)


def attend_parts(member: Member, spots: Tensors) -> Iterator[Part]:
    """Attention (B, K) of some spots at a time to their nodes."""
    for rows, batch in _batches(spots):
        inputs, local = encode_once(member, spots, spots.nodes[batch])
        yield rows, member.attention(inputs, local, spots.mask[batch], spots.offsets[batch])


def _batches(spots: Tensors) -> Iterator[Part]:
    every = torch.arange(len(spots.nodes), device=spots.nodes.device)
    for start in range(0, len(every), AT_ONCE):
        rows = slice(start, start + AT_ONCE)
        yield rows, every[rows]
