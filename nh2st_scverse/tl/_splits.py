"""Which groups are left out together: each in turn, shuffled into folds, or as published."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from sklearn.model_selection import KFold

from nh2st_scverse._validators import check_one_of


class Split(NamedTuple):
    """A published split: None for the seed leaves each group out once, None for the groups takes any number."""

    n_folds: int
    seed: int | None
    n_groups: int | None
    group: str


SPLITS = {
    "stnet": Split(8, 2021, 23, "patient"),
    "skin": Split(4, None, 4, "patient"),
    "pcw": Split(3, None, 3, "age"),
    "mouse": Split(4, 42, None, "slide"),
    "int": Split(8, 42, None, "slide"),
    "zen": Split(3, 42, 10, "slide"),
}


def outer_groups(groups: Sequence[str], folds: int | str | None, seed: int) -> list[str]:
    """Group of each section for the outer split: those that share a fold get one name, ``"a, b"``.

    Raises
    ------
    ValueError
        An unknown split, or a number of groups that does not fit.
    """
    if folds is None:
        return list(groups)
    names = np.array(sorted(set(groups)))
    if isinstance(folds, str):
        check_one_of(folds, SPLITS, argument="folds")
        split = SPLITS[folds]
        if len(names) < split.n_folds or split.n_groups not in (None, len(names)):
            expected = f"at least {split.n_folds} groups" if split.n_groups is None else f"{split.n_groups} groups"
            raise ValueError(
                f"Expected {expected} (one for each {split.group}) for the published split folds={folds!r}, found "
                f"{len(names)}: {list(map(str, names[:10]))}. Name them with groups=, or pass a number of folds and "
                "fold_seed= instead."
            )
        if split.seed is None:
            return list(groups)
        folds, seed = split.n_folds, split.seed
    if isinstance(folds, bool) or not isinstance(folds, int | np.integer) or not 2 <= folds <= len(names):
        raise ValueError(
            f"Expected folds to be None, a number from 2 to that of the groups, which is {len(names)}, or one of "
            f"{list(SPLITS)}, found {folds!r}."
        )
    together: dict[str, str] = {}
    for _, held in KFold(folds, shuffle=True, random_state=seed).split(names):
        together |= dict.fromkeys(names[held].tolist(), ", ".join(names[held]))
    return [together[group] for group in groups]
