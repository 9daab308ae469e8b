"""Whether tissue of one group is in another: copies, by counts and pictures, and regions that touch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any

import numpy as np
import pandas as pd
from scipy.spatial import cKDTree

from nh2st_scverse.data.checks import Problem, finite_numbers, has_genes
from nh2st_scverse.data.feature_cache import PART
from nh2st_scverse.data.geometry import Geometry
from nh2st_scverse.data.patches import thumbnail

N_MARKS = 16  # spots that tell a section


@dataclass(frozen=True)
class Piece:
    """What tells one section from another: its counts, its picture and where its spots are."""

    name: str
    group: str
    geometry: Geometry
    spacing_um: float
    counts: Any = None  # (n, G)


def repeated(pieces: Sequence[Piece]) -> list[Problem]:
    """Sections of different groups with the same counts: held out, they are still learnt from."""
    if len({piece.group for piece in pieces}) < 2:
        return []
    marks = [(piece, _marks(piece.counts)) for piece in pieces]
    problems = []
    for (a, first), (b, second) in combinations(marks, 2):
        fewer = min(len(first), len(second))
        if a.group != b.group and fewer >= 9 and len(first & second) > 0.5 * fewer:
            problems.append(
                Problem(
                    "copies",
                    f"{len(first & second)} spots of {a.name!r} have the same counts as spots of {b.name!r}, and their "
                    "groups differ: what is held out would be learnt from",
                    "error",
                    "Leave one of them out, or give both one group with groups=",
                )
            )
    return problems


def apart(pieces: Sequence[Piece]) -> list[Problem]:
    """Whether something of one group is in another: copies, or tissue side by side."""
    return [*repeated(pieces), *touching(pieces)]


def _marks(counts: Any) -> set[tuple[float, float, int]]:
    """Of each spot that has more than a few counts: their sum, the sum of their squares and how many are not 0."""
    values = finite_numbers(counts) if has_genes(counts) else None
    if values is None:
        return set()
    total, squares = (np.asarray(v.sum(axis=1), dtype=np.float64).ravel() for v in (values, values.multiply(values)))
    n = values.getnnz(axis=1)
    enough = n > 10
    each = (np.round(total, 3), np.round(squares, 2), n)
    return set(zip(*(v[enough].tolist() for v in each), strict=True))


def marks(values: np.ndarray, counted: np.ndarray | None = None, most: int | None = N_MARKS) -> list[str]:
    """Hashes of rows of expression (n, G), the smallest of them: a section is known again by a few of its spots."""
    hashes = []
    for start in range(0, len(values), PART):  # in double precision, many rows would not fit
        some = values[start : start + PART]
        some = some if counted is None else some[counted[start : start + PART]]
        about = {
            "total": np.round(some.sum(axis=1, dtype=np.float64), 1),
            "spread": np.round(some.std(axis=1, dtype=np.float64), 3),
            "genes": (some > 0).sum(axis=1),
        }
        hashes.append(pd.util.hash_pandas_object(pd.DataFrame(about), index=False).to_numpy()[about["spread"] > 0])
    return [f"{one:016x}" for one in np.unique(np.concatenate(hashes))[:most]] if hashes else []


def touching(pieces: Sequence[Piece]) -> list[Problem]:
    """Sections of different groups on one picture whose spots overlap or lie side by side."""
    problems = []
    pictures: dict[int, bytes] = {}

    def picture(piece: Piece) -> bytes:
        key = id(piece.geometry.levels[0].array)
        if key not in pictures:
            pictures[key] = thumbnail(piece.geometry, 256)[0].tobytes()
        return pictures[key]

    for a, b in combinations(pieces, 2):
        same_size = a.geometry.levels[0].size == b.geometry.levels[0].size
        if a.group == b.group or not same_size or picture(a) != picture(b):
            continue
        apart = cKDTree(a.geometry.pixels()).query(b.geometry.pixels())[0] * a.geometry.microns_per_pixel
        spacing = max(a.spacing_um, b.spacing_um)
        where = f"{a.name!r} and {b.name!r}, of different groups, are on one picture and"
        if (apart < 0.25 * spacing).mean() > 0.5:
            remedy = "Leave one of them out, or give both one group with groups="
            problems.append(Problem("copies", f"{where} have their spots at the same places", "error", remedy))
        elif apart.min() < 2.5 * spacing:
            found = f"{where} are {apart.min():.0f} µm apart: what is held out borders on what is learnt from"
            remedy = "Give both one group with groups=, or leave out the spots between them"
            problems.append(Problem("neighbours", found, "warning", remedy))
    return problems
