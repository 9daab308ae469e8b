"""Spots as tensors on one device: everything that training and prediction index into."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from nh2st_scverse.data.feature_cache import PART, release
from nh2st_scverse.data.section import Section
from nh2st_scverse.nn.projection import Projection
from nh2st_scverse.train.data import Data

COLUMNS = 256  # features that are standardised at a time: what is held beside them stays small


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


def stack(data: Data, *, standardise: bool) -> Tensors:
    """Join sections; features are standardised within each when asked for."""
    sections = data.sections
    starts = np.cumsum([0, *(s.n_spots for s in sections)])[:-1]
    each = range(len(sections))

    def joined(parts: Sequence[np.ndarray], dtype: torch.dtype) -> Tensor:
        return torch.as_tensor(np.concatenate(parts) if len(parts) > 1 else parts[0]).to(dtype)

    if data.has_patches:
        inputs = joined([data.input(i) for i in each], torch.uint8)
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


def project(section: Section, features: np.ndarray, standardise: bool, projection: Projection) -> Tensor:
    """Components (N, C) of features (N, F) that are many: those of :func:`section_features`, some spots at a time."""
    usable, n = section.usable, len(features)

    def parts() -> Iterator[tuple[slice, np.ndarray]]:
        for start in range(0, n, PART):
            rows = slice(start, start + PART)
            yield rows, np.array(features[rows], dtype=np.float32)
            release(features)

    mean = sum(x[usable[rows]].sum(axis=0, dtype=np.float64) for rows, x in parts()) / usable.sum()
    _check_finite(section, bool(np.isfinite(mean).all()))
    if standardise:
        squares = sum(np.square(x[usable[rows]] - mean).sum(axis=0) for rows, x in parts())
        spread = np.sqrt(squares / usable.sum())
    else:
        mean, spread = np.zeros(features.shape[1]), np.ones(features.shape[1])
    found = torch.empty(n, projection.matrix.shape[1], device=projection.mean.device)
    for rows, x in parts():
        x -= mean.astype(np.float32)
        x /= np.where(spread > 1e-6, spread, np.inf).astype(np.float32)
        x[~usable[rows]] = 0
        found[rows] = projection(torch.from_numpy(x).to(found.device))
    return found


def _check_finite(section: Section, finite: bool) -> None:
    if not finite:
        raise ValueError(
            f"Expected finite features of section {section.name!r}, found NaN or infinite: is it the encoder?"
        )


def section_features(section: Section, features: np.ndarray, standardise: bool) -> np.ndarray:
    """A copy of features (n, F), mean 0 and variance 1 over the usable spots if asked for; 0 without an image."""
    _check_finite(section, bool(np.isfinite(features).all(axis=1)[section.usable].all()))
    x = np.array(features, dtype=np.float32)
    if standardise:  # stain and scanner shift and stretch features; composition does so less
        for some in range(0, x.shape[1], COLUMNS):
            columns = x[:, some : some + COLUMNS]  # a view
            usable = columns if section.usable.all() else columns[section.usable]
            mean, spread = usable.mean(axis=0), usable.std(axis=0)
            columns -= mean
            columns /= np.where(spread > 1e-6, spread, np.inf)  # a constant feature says nothing: 0
    x[~section.usable] = 0
    return x
