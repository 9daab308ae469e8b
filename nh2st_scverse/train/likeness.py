"""How like the training tissue a section is: whether its images vary together in the same way."""

from __future__ import annotations

from torch import Tensor

from nh2st_scverse.nn import Member
from nh2st_scverse.train.tensors import Tensors

FEWEST_SPOTS = 50  # spots that tell what varies together
MOST_SPOTS = 50_000  # that are asked: more tell the same
HALF_ALIKE, STEEPNESS = 0.14, 8  # of one minus the alignment: where a section is half alike, and how fast it gets so
TWICE = 2.0  # as far from the training tissue as held-out tissue is: half alike, too


def alignment(components: Tensor, variance: Tensor) -> float:
    """Cosine between the covariance of components (n, C) and that of the training spots, where it is diagonal: (C,)."""
    centred = components - components.mean(dim=0)
    covariance = centred.T @ centred / len(centred)
    return float((covariance.diagonal() * variance).sum() / (covariance.norm() * variance.norm()).clamp(min=1e-12))


def apart(member: Member, spots: Tensors, at: Tensor) -> float:
    """One minus the alignment of some spots (n,) with the training spots, 0 where they are too few to tell."""
    if len(at) < FEWEST_SPOTS:
        return 0.0
    at = at[:: 1 + len(at) // MOST_SPOTS]
    return max(1 - alignment(spots.inputs[at, : len(member.variance)], member.variance), 0.0)


def likeness(member: Member, spots: Tensors) -> float:
    """Likeness of a section to the training tissue, 1 down to 0; 1 where it is not known.

    Other tissue has other structures: what varies together in training does not there. The alignment of held-out
    sections, also blurred, recoloured or of another animal, is .90 to .98, that of other organs .61 to .81. Where the
    training sections themselves differ more (organoids: .84), they tell how far apart sections of one kind are.
    """
    if member.linear is None:
        return 1.0
    half = max(HALF_ALIKE, TWICE * float(member.apart))
    return 1 / (1 + (apart(member, spots, spots.trainable.nonzero()[:, 0]) / half) ** STEEPNESS)
