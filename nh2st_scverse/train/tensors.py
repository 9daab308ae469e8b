"""Spots as tensors on one device: everything that training and prediction index into."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from scipy.stats import norm
from torch import Tensor

from nh2st_scverse._threads import in_workers
from nh2st_scverse.data.feature_cache import PART, release
from nh2st_scverse.data.section import Section
from nh2st_scverse.nn.config import Standardise
from nh2st_scverse.nn.projection import Projection
from nh2st_scverse.train.data import At, Data

COLUMNS = 256  # features that are standardised at a time: what is held beside them stays small
FLAT = 1e-6  # spread of a feature that is constant but for rounding
RANKED = 1000  # spots of a section among which the others find their rank, where they are more


@dataclass
class Tensors:
    """N spots of one or several sections, one behind the other."""

    inputs: Tensor  # (N, F) features, or (N, side, side, 3) uint8 patches for a trunk that is trained
    nodes: Tensor  # (N, K) positions among the N
    mask: Tensor  # (N, K) bool
    offsets: Tensor  # (N, K, 2)
    targets: Tensor  # (N, G)
    trainable: Tensor  # (N,) bool
    section: Tensor  # (N,) which section

    def to(self, device: torch.device | str) -> Tensors:
        """The same on another device."""
        return Tensors(*(getattr(self, name).to(device) for name in self.__dataclass_fields__))


def stack(data: Data, *, standardise: Standardise, projected: bool = False) -> Tensors:
    """Join sections; features are standardised within each, or not.

    Where they are to be `projected`, those that are many stay where they are, as :class:`Blocks`.
    """
    sections = data.sections
    starts = np.cumsum([0, *(s.n_spots for s in sections)])[:-1]
    each = range(len(sections))

    def joined(parts: Sequence[np.ndarray], dtype: torch.dtype) -> Tensor:
        return torch.as_tensor(np.concatenate(parts) if len(parts) > 1 else parts[0]).to(dtype)

    inputs: Any
    if data.has_patches:
        inputs = joined([data.input(i) for i in each], torch.uint8)
    elif projected and data.is_many:
        inputs = Blocks(data, standardise)
    else:
        inputs = joined([section_features(sections[i], data.input(i), standardise) for i in each], torch.float32)
    return Tensors(
        inputs=inputs,
        nodes=joined([s.neighbours.nodes + start for s, start in zip(sections, starts, strict=True)], torch.long),
        mask=joined([s.neighbours.mask for s in sections], torch.bool),
        offsets=joined([s.neighbours.offsets for s in sections], torch.float32),
        targets=joined([data.target(i) for i in each], torch.float32),
        trainable=joined([data.trainable(i) for i in each], torch.bool),
        section=joined([np.full(s.n_spots, i) for i, s in enumerate(sections)], torch.long),
    )


class Blocks:
    """Features (N, F) of the spots of all sections as :func:`section_features` gives them, read a few at a time."""

    def __init__(self, data: Data, standardise: Standardise) -> None:
        self.data = data
        self.starts = np.cumsum([0, *(section.n_spots for section in data.sections)])
        self.shape = int(self.starts[-1]), data.inputs[0].shape[1]
        self.scaling = [self._scaling(i, standardise) for i in range(len(data.sections))]

    def __len__(self) -> int:
        return self.shape[0]

    def to(self, device: torch.device | str) -> Blocks:
        """Themselves: what is projected goes to a device, part by part."""
        return self

    def __getitem__(self, at: Tensor) -> Tensor:
        """Features (n, F) of spots at positions (n,)."""
        found = np.empty((len(at), self.shape[1]), dtype=np.float32)
        order = np.argsort(at.numpy())  # near each other on disk: what is read takes few pages
        which = np.searchsorted(self.starts, at.numpy()[order], side="right") - 1  # section of each
        for i in np.unique(which):
            for rows in np.array_split(order[which == i], -(-len(at) // PART)):
                found[rows] = self._standardised(i, at.numpy()[rows] - self.starts[i])
        return torch.from_numpy(found)

    def project(self, projection: Projection, wanted: Tensor | None = None) -> Tensor:
        """Components (N, C), of the `wanted` spots alone: pages of memory that nothing is written to take none."""
        device = projection.mean.device
        found = torch.from_numpy(np.zeros((len(self), projection.matrix.shape[1]), dtype=np.float32))
        parts = (torch.arange(len(self)) if wanted is None else wanted).split(PART)

        def projected(at: Tensor) -> Tensor:
            return projection(self[at].to(device)).cpu()

        done = in_workers(projected, parts) if device.type == "cpu" else map(projected, parts)  # ranks take their time
        for at, values in zip(parts, done, strict=True):
            found[at] = values
        return found.to(device)

    def _standardised(self, i: int, at: np.ndarray) -> np.ndarray:
        x = self._read(i, at)
        self.scaling[i].apply(x)
        x[~self.data.sections[i].usable[at]] = 0
        return x

    def _read(self, i: int, at: At) -> np.ndarray:
        x = np.array(self.data.input(i, at), dtype=np.float32)
        release(self.data.inputs[i])
        return x

    def _scaling(self, i: int, standardise: Standardise) -> Linear | Ranks:
        """How features are standardised among the usable spots of a section."""
        section = self.data.sections[i]

        def parts() -> Iterator[np.ndarray]:
            for start in range(0, section.n_spots, PART):
                rows = slice(start, start + PART)
                yield self._read(i, rows)[section.usable[rows]]

        number = section.usable.sum()
        mean = sum(x.sum(axis=0, dtype=np.float64) for x in parts()) / number
        _check_finite(section, bool(np.isfinite(mean).all()))
        if standardise == "none":
            return Linear(np.zeros(self.shape[1], dtype=np.float32), np.ones(self.shape[1], dtype=np.float32))
        if standardise == "ranks":
            return Ranks.of(self._read(i, _ranked(section)))
        mean = mean.astype(np.float32)
        spread = np.sqrt(sum(np.square(x - mean).sum(axis=0, dtype=np.float64) for x in parts()) / number)
        return Linear(mean, np.where(spread > FLAT, spread, np.inf).astype(np.float32))


@dataclass(frozen=True)
class Linear:
    """Features to mean 0 and variance 1."""

    mean: np.ndarray  # (F,)
    spread: np.ndarray  # (F,), infinite where there is none: a constant feature says nothing

    @classmethod
    def of(cls, x: np.ndarray) -> Linear:
        """As some spots (n, F) are."""
        spread = x.std(axis=0)
        return cls(x.mean(axis=0), np.where(spread > FLAT, spread, np.inf))

    def apply(self, x: np.ndarray) -> None:
        """Standardise features (n, F) in place."""
        x -= self.mean
        x /= self.spread


@dataclass(frozen=True)
class Ranks:
    """Features to the places of their ranks in a normal distribution: how they are spread does not matter."""

    known: np.ndarray  # (F, m) values among which others find their rank, from the least
    scores: np.ndarray  # (2 m + 1,) of the ranks in halves: between two values, or as one of them
    spread: np.ndarray  # (F,) of the scores, infinite where there is none

    @classmethod
    def of(cls, x: np.ndarray) -> Ranks:
        """As some spots (m, F) are."""
        m = len(x)
        known = np.sort(x.T, axis=1)
        scores = norm.ppf(np.clip(np.arange(2 * m + 1), 1, 2 * m - 1) / (2 * m)).astype(np.float32)
        spread = [scores[_rank(one, one)].std() if one.std() > FLAT else np.inf for one in known]
        return cls(known, scores, np.array(spread, dtype=np.float32))

    def apply(self, x: np.ndarray) -> None:
        """Standardise features (n, F) in place; a value between two known ones has the rank between theirs."""
        for f, known in enumerate(self.known):
            x[:, f] = self.scores[_rank(known, x[:, f])] / self.spread[f]


def _rank(known: np.ndarray, values: np.ndarray) -> np.ndarray:
    """How many sorted values (m,) are below each of some values (n,) and how many at most as large, added up."""
    below = np.searchsorted(known, values)
    rank = 2 * below
    equal = known[np.minimum(below, len(known) - 1)] == values
    rank[equal] = below[equal] + np.searchsorted(known, values[equal], side="right")
    return rank


def _ranked(section: Section) -> np.ndarray:
    """Positions of the usable spots; of very many some, by place, so that the order of the rows does not matter."""
    spots = np.flatnonzero(section.usable)
    if len(spots) <= RANKED:
        return spots
    return spots[np.lexsort(section.geometry.coordinates[spots].T)[:: -(-len(spots) // RANKED)]]


def components(inputs: Any, projection: Projection, wanted: Tensor | None = None) -> Tensor:
    """Components (N, C) of features (N, F), of the `wanted` ones at least."""
    return inputs.project(projection, wanted) if isinstance(inputs, Blocks) else projection(inputs)


def _check_finite(section: Section, finite: bool) -> None:
    if not finite:
        raise ValueError(
            f"Expected finite features of section {section.name!r}, found NaN or infinite: is it the encoder?"
        )


def section_features(section: Section, features: np.ndarray, standardise: Standardise) -> np.ndarray:
    """A copy of features (n, F), standardised among the usable spots or not; 0 without an image."""
    _check_finite(section, bool(np.isfinite(features).all(axis=1)[section.usable].all()))
    x = np.array(features, dtype=np.float32)
    # stain and scanner shift and stretch features; composition does so less
    if standardise != "none" and section.usable.any():
        how: type[Linear | Ranks] = Ranks if standardise == "ranks" else Linear
        among = _ranked(section) if how is Ranks else slice(None) if section.usable.all() else section.usable
        for some in range(0, x.shape[1], COLUMNS):
            columns = x[:, some : some + COLUMNS]  # a view
            how.of(columns[among]).apply(columns)
    x[~section.usable] = 0
    return x
