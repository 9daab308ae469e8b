"""How like the training tissue a section is: whether two ridges that learnt from the same spots still say the same."""

from __future__ import annotations

import torch
from torch import Tensor

from nh2st_scverse.nn import Member
from nh2st_scverse.nn.ridge import ridge_inputs
from nh2st_scverse.train.scores import gene_pearson
from nh2st_scverse.train.tensors import Tensors

FEWEST = 24  # spots that tell a correlation
MOST = 5000  # spots that are looked at
LEAST = 0.02  # of disagreement at home: less is chance
HALF, STEEP = 1.8, 8  # disagreement, in that at home, at which a section is half alike; and how fast it gets so


def agreement(member: Member, spots: Tensors, at: Tensor) -> float:
    """Correlation of the predictions of both ridges over some spots (n,), mean over genes; 1 where they are too few."""
    if member.ridge is None or member.linear is None or len(at) < FEWEST:
        return 1.0
    some = at[:: -(-len(at) // MOST)]
    x = ridge_inputs(spots.inputs, spots.nodes[some], spots.mask[some])
    found = float(gene_pearson(member.ridge(x), member.linear(x)).nanmean())
    return found if found == found else 1.0


def likeness(member: Member, spots: Tensors) -> float:
    """Likeness of a section to the training tissue, 1 down to 0.

    Two ridges, one linear and one not, agree where they interpolate and part where they must guess. Their disagreement
    is compared with that on held-out training tissue. Blurred, recoloured and coarser copies of sections disagree 1.0
    to 1.4 times as much and are predicted as well as before; sections of other organs 2 to 4 times, and are not.
    """
    if member.linear is None:
        return 1.0
    apart = 1 - agreement(member, spots, torch.nonzero(spots.trainable)[:, 0])
    home = max(1 - float(member.agreement), LEAST)
    return 1 / (1 + (max(apart, 0.0) / home / HALF) ** STEEP)
