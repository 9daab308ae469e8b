"""Which groups are left out together: each in turn, shuffled into folds, or as they are given."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from sklearn.model_selection import KFold

Folds = int | Sequence[Sequence[str]] | None


def outer_groups(groups: Sequence[str], folds: Folds, seed: int) -> list[str]:
    """Group of each section for the outer split: those that share a fold get one name, ``"a, b"``.

    Raises
    ------
    ValueError
        A number, or folds, that do not fit the groups.
    """
    if folds is None:
        return list(groups)
    names = np.array(sorted(set(groups)))
    if isinstance(folds, Sequence) and not isinstance(folds, str):
        return [_given(folds, names)[group] for group in groups]
    if isinstance(folds, bool) or not isinstance(folds, int | np.integer) or not 2 <= folds <= len(names):
        raise ValueError(
            f"Expected folds to be None, a number from 2 to that of the groups, which is {len(names)}, or the "
            f"groups of each fold, [['a', 'b'], ['c']], as nh.datasets.paper(...).folds has them, found {folds!r}."
        )
    together: dict[str, str] = {}
    for _, held in KFold(folds, shuffle=True, random_state=seed).split(names):
        together |= dict.fromkeys(names[held].tolist(), ", ".join(names[held]))
    return [together[group] for group in groups]


def _given(folds: Sequence[Sequence[str]], names: np.ndarray) -> dict[str, str]:
    """The name of the fold of each group."""
    listed = [str(group) for fold in folds for group in ([fold] if isinstance(fold, str) else fold)]
    if len(folds) < 2 or sorted(listed) != names.tolist():
        raise ValueError(
            f"Expected at least two folds= with each of the groups {names.tolist()} once, found "
            f"{[list(fold) for fold in folds]}."
        )
    return {str(group): ", ".join(fold) for fold in folds for group in fold}
