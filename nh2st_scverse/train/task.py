"""The Lightning task: a step of training and of validation."""

from __future__ import annotations

import math
from typing import Any

import lightning as L
import torch
from torch import Tensor

from nh2st_scverse.nn import Member
from nh2st_scverse.train.spots import Spots

CHUNK = 64  # patches that pass the trunk together when nothing is learnt
IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))


class Task(L.LightningModule):
    """Trains a member on spots that lie ready on the device; a batch is their positions (B,)."""

    def __init__(self, member: Member, train: Spots, validation: Spots | None, steps: int) -> None:
        super().__init__()
        self.member, self.config, self.steps = member, member.config, steps
        self.spots, self.held = train, validation
        self.epoch_terms: list[dict[str, Tensor]] = []
        self.predicted: list[Tensor] = []

    def on_fit_start(self) -> None:
        """Move the data once, not batch by batch."""
        self.spots = self.spots.to(self.device)
        self.held = self.held.to(self.device) if self.held is not None else None

    def training_step(self, batch: Tensor) -> Tensor:
        """Loss of a batch of spots."""
        spots, member = self.spots, self.member
        nodes, mask = spots.nodes[batch], spots.mask[batch]  # (B, K)
        inputs, local = encode_once(member, spots, nodes, augment=self.config.augment)
        images = member.images(inputs, local, mask, spots.offsets[batch])
        target = (
            (spots.targets - member.target_mean) / member.target_scale if self.config.scale_target else spots.targets
        )
        terms = member.network.losses(images, target[batch], target[nodes], mask)
        self.epoch_terms.append({name: term.detach() for name, term in terms.items()})
        return terms["loss"]

    def validation_step(self, batch: Tensor) -> None:
        """Predict held-out spots."""
        if self.held is not None:
            self.predicted.append(predict_batch(self.member, self.held, batch))

    def configure_optimizers(self) -> Any:
        """AdamW with one cycle of the learning rate, or the published Adam with a step decay."""
        c = self.config
        if c.optimizer == "adam":
            adam = torch.optim.Adam(self.member.parameters(), lr=c.lr)
            return [adam], [torch.optim.lr_scheduler.StepLR(adam, 50, 0.9)]
        optimizer = torch.optim.AdamW(self.member.parameters(), lr=c.lr, weight_decay=c.weight_decay, fused=True)
        cycle = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: one_cycle(step, self.steps))
        return [optimizer], [{"scheduler": cycle, "interval": "step"}]


def one_cycle(step: int, steps: int) -> float:
    """Factor of the learning rate: a straight rise over the first tenth of the steps, then half a cosine down to 0."""
    rise = max(1, steps // 10)
    if step < rise:
        return (step + 1) / rise
    return 0.5 * (1 + math.cos(math.pi * min(1.0, (step - rise) / max(1, steps - rise))))


def encode_once(member: Member, spots: Spots, nodes: Tensor, *, augment: bool = False) -> tuple[Tensor, Tensor]:
    """Inputs of a batch and the positions of its nodes (B, K) among them; each patch passes the trunk once."""
    if member.trunk is None:
        return spots.inputs, nodes
    needed, local = nodes.unique(return_inverse=True)  # (U,), (B, K)
    # without gradients nothing need be kept: a few patches at a time
    parts = [needed] if torch.is_grad_enabled() else needed.split(CHUNK)
    return torch.cat([member.trunk(trunk_input(spots.inputs[some], augment)) for some in parts]), local


def trunk_input(patches: Tensor, augment: bool) -> Tensor:
    """Patches (U, side, side, 3) uint8 to (U, 3, side, side), scaled as for ImageNet."""
    scaled = patches.permute(0, 3, 1, 2).float() / 255
    mean, std = (torch.tensor(v, device=patches.device)[:, None, None] for v in IMAGENET)
    scaled = (scaled - mean) / std
    return flip(scaled) if augment else scaled


def flip(patches: Tensor) -> Tensor:
    """Turn each patch (U, 3, side, side) by a quarter turn and flip it, or not, at random."""
    for dims in ((2,), (3,)):
        which = torch.rand(len(patches), device=patches.device) < 0.5
        patches = torch.where(which[:, None, None, None], patches.flip(dims), patches)
    which = torch.rand(len(patches), device=patches.device) < 0.5
    return torch.where(which[:, None, None, None], patches.transpose(2, 3), patches)


def predict_batch(member: Member, spots: Spots, batch: Tensor) -> Tensor:
    """Expression (B, G) of some spots, in the unit of the target."""
    nodes = spots.nodes[batch]
    inputs, local = encode_once(member, spots, nodes)
    return member.predict(inputs, local, spots.mask[batch], spots.offsets[batch])
