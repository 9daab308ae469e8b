"""What is held out together: whole groups when there are several, else blocks of tissue with a margin."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from nh2st_scverse.data.neighbours import apart_from, spatial_blocks
from nh2st_scverse.data.section import Section

N_BLOCKS = 4
FEWEST_SPOTS = 24  # spots that a training set must have
LEAST_GAP_UM = 1e-6  # µm
SHARE_TO_TRAIN = 1 / 3  # of a section, to train on, where a margin may shrink instead

Spots = tuple[tuple[int, np.ndarray], ...]
"""Some spots of several sections: (position of the section, positions of its spots)."""


@dataclass(frozen=True)
class Fold:
    """Spots to train on, and spots that these never saw."""

    name: str
    train: Spots
    held_out: Spots
    apart: bool = True  # nothing is shared: what is found on the held-out spots may be reported


def make_folds(
    sections: Sequence[Section],
    *,
    field_um: float,
    max_folds: int | None = None,
    seed: int = 0,
    strict: bool = True,
) -> list[Fold]:
    """Split sections into folds.

    With several groups every fold holds out whole groups; several groups share a fold when there are more than
    `max_folds`. With one group every fold holds out a compact block of each section, and the training spots are those
    that share neither a neighbour nor a pixel with it.

    Parameters
    ----------
    sections
        All sections; each knows its group.
    field_um
        Side of the largest field of view, in µm.
    max_folds
        None: as many folds as groups, or as blocks. Fewer folds than blocks leave some blocks in no fold; a single
        fold holds out a quarter of the groups, at least one.
    seed
        Which groups share a fold.
    strict
        False where a fold only decides when to stop: a margin that leaves too little of a section shrinks to the
        spots that held-out ones look at, then to nothing. What is scored and reported is always strict.

    Raises
    ------
    ValueError
        Too little is left to train on.
    """
    names = list(dict.fromkeys(section.group for section in sections))
    if len(names) == 1:
        some = range(min(N_BLOCKS, max_folds or N_BLOCKS))
        return [_block_fold(sections, block, field_um, strict) for block in some]
    order = (
        np.random.default_rng(seed).permutation(len(names))
        if max_folds and len(names) > max_folds
        else range(len(names))
    )
    folds = []
    n_folds = min(len(names), max_folds or len(names))
    n_parts = n_folds if n_folds > 1 else min(len(names), N_BLOCKS)
    for part in np.array_split(np.asarray(order), n_parts)[:n_folds]:
        held = {names[i] for i in part}
        stay = [i for i, section in enumerate(sections) if section.group not in held]
        n_left = sum(int(sections[i].usable.sum()) for i in stay)
        if n_left < FEWEST_SPOTS:
            raise ValueError(
                f"Too little tissue without {sorted(held)}: expected at least {FEWEST_SPOTS} spots to train on, found "
                f"{n_left} in {[sections[i].name for i in stay]}. Give larger sections, or join groups."
            )
        out = [i for i in range(len(sections)) if i not in stay]
        train, held_out = (tuple((i, np.arange(sections[i].n_spots)) for i in some) for some in (stay, out))
        folds.append(Fold(", ".join(sorted(held)), train, held_out))
    return folds


def some_of(spots: Spots, most: int, seed: int = 0) -> Spots:
    """At most so many spots, drawn alike from all sections; themselves where they are not more."""
    share = most / max(1, sum(len(at) for _, at in spots))
    if share >= 1:
        return spots
    rng = np.random.default_rng(seed)
    return tuple((i, np.sort(rng.permutation(at)[: int(share * len(at))])) for i, at in spots)


def _block_fold(sections: Sequence[Section], block: int, field_um: float, strict: bool) -> Fold:
    train, held_out, apart = [], [], True
    for i, section in enumerate(sections):
        inside = spatial_blocks(section.xy_um, N_BLOCKS) == block
        few = max(FEWEST_SPOTS, SHARE_TO_TRAIN * section.n_spots)
        stay = np.flatnonzero(apart_from(inside, section.neighbours, section.xy_um, field_um) & section.usable)
        if not strict and len(stay) < few:
            apart = False
            stay = np.flatnonzero(apart_from(inside, section.neighbours, section.xy_um, LEAST_GAP_UM) & section.usable)
        if not strict and len(stay) < few:
            stay = np.flatnonzero(~inside & section.usable)
        held_out.append((i, np.flatnonzero(inside)))
        if len(stay) >= FEWEST_SPOTS:
            train.append((i, stay))
    if not train:
        found = ", ".join(f"{s.name}: {s.n_spots} spots" for s in sections)
        raise ValueError(
            f"Too little tissue to hold out a block with a margin: fewer than {FEWEST_SPOTS} spots of {found} are left "
            "to train on. Give more sections, name at least two groups=, or pass a model trained on other sections."
        )
    return Fold(f"block {block}", tuple(train), tuple(held_out), apart)
