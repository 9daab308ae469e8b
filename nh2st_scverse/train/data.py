"""What a model is trained on, or predicts: sections, what is seen of them, and what is to be said of them."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from nh2st_scverse.data.folds import Spots
from nh2st_scverse.data.inputs import MANY
from nh2st_scverse.data.section import Section
from nh2st_scverse.data.targets import Targets

At = slice | np.ndarray  # which of the spots of a section
EVERY = slice(None)


@dataclass(frozen=True)
class Data:
    """Some spots of some sections. :meth:`take` copies neither inputs nor targets.

    Parameters
    ----------
    sections
        Sections of these spots.
    inputs
        Of each section as a whole: features (N, F), float32 or on disk in 16 bits, or patches (N, side, side, 3) uint8
        for an encoder that is trained.
    targets
        Of each section as a whole; None where there is nothing measured.
    blocks
        Numbers of features of each kind in one field of view; each kind enters a model with equal total variance.
    positions
        For each section those of its spots (n,) among the N of the whole, None where it is whole.
    """

    sections: tuple[Section, ...]
    inputs: tuple[np.ndarray, ...]
    targets: Targets | None = None
    blocks: tuple[int, ...] = ()
    positions: tuple[np.ndarray | None, ...] = ()

    def __post_init__(self) -> None:
        """Sections are whole unless said otherwise."""
        if not self.positions:
            object.__setattr__(self, "positions", (None,) * len(self.sections))

    @property
    def groups(self) -> list[str]:
        """What each section is held out with."""
        return [section.group for section in self.sections]

    @property
    def has_patches(self) -> bool:
        """Whether inputs are patches."""
        return self.inputs[0].ndim == 4

    @property
    def is_many(self) -> bool:
        """Whether features are on disk, or too many to stand in memory a second time."""
        spots = sum(section.n_spots for section in self.sections)
        return not self.has_patches and (isinstance(self.inputs[0], np.memmap) or spots > MANY)

    def input(self, i: int, at: At = EVERY) -> np.ndarray:
        """Features (n, F) or patches of some spots of a section: those of the whole, or a copy of some."""
        return self._some(self.inputs[i], i, at)

    def target(self, i: int, at: At = EVERY) -> np.ndarray:
        """Expression (n, G) of some spots of a section; (n, 0) without targets."""
        if self.targets is None:
            return np.zeros((self.sections[i].n_spots, 0), dtype=np.float32)[at]
        return self._some(self.targets.values[i], i, at)

    def trainable(self, i: int) -> np.ndarray:
        """Which spots of a section may be trained on and scored: (n,) bool."""
        return self.sections[i].usable if self.targets is None else self._some(self.targets.trainable[i], i)

    def take(self, spots: Spots) -> Data:
        """Only some spots; neighbours are looked up again among them."""
        sections, positions = [], []
        for i, at in spots:
            section, before = self.sections[i], self.positions[i]
            whole = np.array_equal(at, np.arange(section.n_spots))
            sections.append(section if whole else section.take(at))
            positions.append(before if whole else at if before is None else before[at])
        chosen = [i for i, _ in spots]
        targets = self.targets
        if targets is not None:
            values = tuple(targets.values[i] for i in chosen)
            trainable = tuple(targets.trainable[i] for i in chosen)
            targets = Targets(targets.genes, targets.unit, values, trainable)
        inputs = tuple(self.inputs[i] for i in chosen)
        return Data(tuple(sections), inputs, targets, self.blocks, tuple(positions))

    def whole(self, spots: Spots) -> Data:
        """The sections that some spots are of, with all their spots."""
        return self.take(tuple((i, np.arange(self.sections[i].n_spots)) for i, _ in spots))

    def _some(self, values: np.ndarray, i: int, at: At = EVERY) -> np.ndarray:
        positions = self.positions[i]
        return values[at] if positions is None else values[positions[at]]
