"""Sections as tensors on one device: everything that training and prediction index into."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from nh2st_scverse.data.section import Section

COLUMNS = 256  # features that are standardised at a time: what is held beside them stays small


@dataclass
class Spots:
    """N spots of one or several sections, one behind the other."""

    inputs: Tensor  # (N, F) features, or (N, side, side, 3) uint8 patches for a trunk that is trained
    nodes: Tensor  # (N, K) positions among the N
    mask: Tensor  # (N, K) bool
    offsets: Tensor  # (N, K, 2)
    targets: Tensor  # (N, G)
    trainable: Tensor  # (N,) bool
    section: Tensor  # (N,) which section

    def to(self, device: torch.device | str) -> Spots:
        """The same on another device."""
        return Spots(*(getattr(self, name).to(device) for name in self.__dataclass_fields__))


def stack(sections: Sequence[Section], *, standardise: bool) -> Spots:
    """Join sections; features are standardised within each when asked for."""
    starts = np.cumsum([0, *(s.n_spots for s in sections)])[:-1]

    def joined(parts: Sequence[np.ndarray], dtype: torch.dtype) -> Tensor:
        return torch.as_tensor(np.concatenate(parts) if len(parts) > 1 else parts[0]).to(dtype)

    if sections[0].patches is not None:
        inputs = torch.from_numpy(np.concatenate([s.patches for s in sections if s.patches is not None]))
    else:
        inputs = joined([section_features(s, standardise) for s in sections], torch.float32)
    no_target = [np.zeros((s.n_spots, 0), dtype=np.float32) for s in sections]
    return Spots(
        inputs=inputs,
        nodes=joined([s.neighbours.nodes + start for s, start in zip(sections, starts, strict=True)], torch.long),
        mask=joined([s.neighbours.mask for s in sections], torch.bool),
        offsets=joined([s.neighbours.offsets for s in sections], torch.float32),
        targets=joined(
            [none if s.expression is None else s.expression for s, none in zip(sections, no_target, strict=True)],
            torch.float32,
        ),
        trainable=joined([s.trainable if len(s.trainable) else s.usable for s in sections], torch.bool),
        section=joined([np.full(s.n_spots, i) for i, s in enumerate(sections)], torch.long),
    )


def section_features(section: Section, standardise: bool) -> np.ndarray:
    """Features (n, F), mean 0 and variance 1 over the usable spots if asked for; 0 for spots without an image."""
    if section.features is None:
        raise ValueError(f"Section {section.name!r} has no features yet: encode it first.")
    x = section.features
    if not np.isfinite(x).all(axis=1)[section.usable].all():
        raise ValueError(
            f"Expected finite features of section {section.name!r}, found NaN or infinite: is it the encoder?"
        )
    x = np.array(x, dtype=np.float32)
    if standardise:  # stain and scanner shift and stretch features; composition does so less
        for some in range(0, x.shape[1], COLUMNS):
            columns = x[:, some : some + COLUMNS]  # a view
            usable = columns if section.usable.all() else columns[section.usable]
            mean, spread = usable.mean(axis=0), usable.std(axis=0)
            columns -= mean
            columns /= np.where(spread > 1e-6, spread, np.inf)  # a constant feature says nothing: 0
    x[~section.usable] = 0
    return x
