"""What is held out together: whole groups when there are several, else blocks of tissue with a margin."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from nh2st_scverse.data.neighbours import apart_from, spatial_blocks
from nh2st_scverse.data.section import Section

N_BLOCKS = 4
FEWEST = 24  # spots that a training set must have
ANY_GAP = 1e-6  # µm


@dataclass(frozen=True)
class Fold:
    """Sections to train on, and the spots that these never saw."""

    train: list[Section]
    train_groups: list[str]
    held_out: list[tuple[int, np.ndarray]]  # (position of the section, positions of its spots)
    name: str
    apart: bool = True  # nothing is shared: what is found on the held-out spots may be reported


def make_folds(
    sections: Sequence[Section],
    groups: Sequence[str],
    *,
    patch_um: float,
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
        All sections.
    groups
        What must be held out together, one name for each section.
    patch_um
        Side of the largest field of view, in µm.
    max_folds
        None: as many folds as groups, or as blocks. Fewer folds than blocks leave some blocks in no fold; a single
        fold holds out a quarter of the groups, at least one.
    seed
        Which groups share a fold.
    strict
        False where a fold only decides when to stop: a margin that leaves less than half of a section shrinks to the
        spots that held-out ones look at, then to nothing. What is scored and reported is always strict.

    Raises
    ------
    ValueError
        Too little is left to train on.
    """
    names = list(dict.fromkeys(groups))
    if len(names) == 1:
        some = range(min(N_BLOCKS, max_folds or N_BLOCKS))
        return [_block_fold(sections, groups, block, patch_um, strict) for block in some]
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
        stay = [i for i, group in enumerate(groups) if group not in held]
        n_left = sum(int(sections[i].usable.sum()) for i in stay)
        if n_left < FEWEST:
            raise ValueError(
                f"Too little tissue without {sorted(held)}: expected at least {FEWEST} spots to train on, found "
                f"{n_left} in {[sections[i].name for i in stay]}. Give larger sections, or join groups."
            )
        folds.append(
            Fold(
                train=[sections[i] for i in stay],
                train_groups=[groups[i] for i in stay],
                held_out=[(i, np.arange(s.n_spots)) for i, s in enumerate(sections) if groups[i] in held],
                name=", ".join(sorted(held)),
            )
        )
    return folds


def _block_fold(sections: Sequence[Section], groups: Sequence[str], block: int, patch_um: float, strict: bool) -> Fold:
    train, held_out, apart = [], [], True
    for i, section in enumerate(sections):
        inside = spatial_blocks(section.xy_um, N_BLOCKS) == block
        stay = np.flatnonzero(apart_from(inside, section.neighbours, section.xy_um, patch_um) & section.usable)
        if not strict and len(stay) < section.n_spots / 2:
            apart = False
            stay = np.flatnonzero(apart_from(inside, section.neighbours, section.xy_um, ANY_GAP) & section.usable)
        if not strict and len(stay) < section.n_spots / 2:
            stay = np.flatnonzero(~inside & section.usable)
        held_out.append((i, np.flatnonzero(inside)))
        if len(stay) >= FEWEST:
            train.append(section.keep(stay))
    if not train:
        found = ", ".join(f"{s.name}: {s.n_spots} spots" for s in sections)
        raise ValueError(
            f"Too little tissue to hold out a block with a margin: fewer than {FEWEST} spots of {found} are left to "
            "train on. Give more sections, name at least two groups=, or pass a model trained on other sections."
        )
    return Fold(train, [groups[0]] * len(train), held_out, f"block {block}", apart)
