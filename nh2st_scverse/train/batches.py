"""The batches of an epoch: spots at random, or compact groups of them when their patches are encoded in training."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import numpy as np
import torch
from torch import Tensor

GROUP = 16  # spots of a group, at most: in large groups more patches are shared, in small ones negatives differ more


class Batches:
    """Positions (B,) of the training spots, batch by batch, in another order in every epoch.

    The order depends on the seed and the epoch alone, so that a training that goes on later goes on alike. Of several
    processes each takes its part of the batches. Lightning takes any iterable with a length for a loader.

    Parameters
    ----------
    ready
        (R,) positions of the spots to train on.
    size
        B, spots of a batch.
    places
        (N, 2) positions of all spots in µm, section by section: batches are then made of compact groups, so that
        neighbourhoods share patches. None: of any spots.
    seed
        Of the order.
    epoch
        Tells the present epoch.
    share
        Tells the rank of this process, and how many there are.
    """

    def __init__(
        self,
        ready: Tensor,
        *,
        size: int,
        places: Sequence[np.ndarray] | None = None,
        seed: int = 0,
        epoch: Callable[[], int] = lambda: 0,
        share: Callable[[], tuple[int, int]] = lambda: (0, 1),
    ) -> None:
        self.size, self.seed, self.epoch, self.share = min(size, len(ready)), seed, epoch, share
        self.ready = ready.numpy()
        self.places, self.group = places, min(GROUP, self.size)

    def __len__(self) -> int:
        return max(1, len(self.ready) // self.size // self.share()[1])

    def __iter__(self) -> Iterator[Tensor]:
        rank, processes = self.share()
        order = self.order(self.epoch())
        for i in range(rank, len(self) * processes, processes):
            i %= len(order) // self.size  # fewer batches than processes: some are given twice
            yield torch.from_numpy(order[i * self.size : (i + 1) * self.size])

    def order(self, epoch: int) -> np.ndarray:
        """Positions (R,) of all training spots, in the order of an epoch."""
        rng = np.random.default_rng([self.seed, epoch])
        if self.places is None:
            return rng.permutation(self.ready)
        groups: list[np.ndarray] = []
        start = 0
        for xy in self.places:
            at = self.ready[(self.ready >= start) & (self.ready < start + len(xy))]
            groups += [at[some] for some in compact_groups(xy[at - start], self.group, rng)]
            start += len(xy)
        groups = [groups[i] for i in rng.permutation(len(groups))]  # a batch has groups of several sections
        groups.sort(key=len, reverse=True)  # whole groups first, so that few are cut by the end of a batch
        order = np.concatenate(groups)
        if self.group < self.size:
            return order
        # A batch of one group still has negatives from elsewhere: it begins with some spots of the group before it.
        return np.roll(order, max(1, self.group // 8))


class InOrder:
    """Positions (M,) in batches, as they are; Lightning would take a list for several loaders."""

    def __init__(self, positions: Tensor, size: int) -> None:
        self.parts = positions.split(size)

    def __len__(self) -> int:
        return len(self.parts)

    def __iter__(self) -> Iterator[Tensor]:
        return iter(self.parts)


def compact_groups(xy: np.ndarray, size: int, rng: np.random.Generator) -> list[np.ndarray]:
    """Cut points (n, 2) into compact groups of `size`, one of them smaller.

    The points are halved across their longer side, again and again, at a random angle.
    """
    angle = rng.uniform(0, 2 * np.pi)
    turned = xy @ np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])

    def cut(members: np.ndarray) -> list[np.ndarray]:
        if len(members) <= size:
            return [members]
        along = turned[members, np.ptp(turned[members], axis=0).argmax()]
        members = members[np.argsort(along, kind="stable")]
        half = -(-len(members) // size) // 2 * size
        return cut(members[:half]) + cut(members[half:])

    return cut(np.arange(len(xy)))
