"""One sweep over a slide: every part of an image is read once for all encoders and fields of view.

Pieces of all of them are encoded in the order in which they lie, from left to right. To read means to decode, and
coarse levels are often made from the finest whenever they are read: else that is done for each field of view.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any, Protocol

import numpy as np
from distributed import Client

from nh2st_scverse._threads import in_workers
from nh2st_scverse.data.patches import Windows, ahead, readers


class Way(Protocol):
    """How an encoder describes places at one field of view, piece by piece."""

    @property
    def windows(self) -> Sequence[Windows]:
        """Where each piece is read."""
        ...

    @property
    def in_workers(self) -> bool:
        """Whether what is drawn is encoded by the same thread; else by the one that asks, in turn."""
        ...

    @property
    def draw(self) -> Callable[[int, np.ndarray], np.ndarray] | None:
        """What the encoder sees of a piece, made by one of several threads; None: what was taken, as it is."""
        ...

    def see(self, piece: int, window: Callable[[int], np.ndarray]) -> np.ndarray:
        """Take what is needed of the windows of a piece, while they are there."""
        ...

    def encode(self, piece: int, drawn: np.ndarray) -> np.ndarray:
        """What the encoder says of it."""
        ...

    def on_cluster(self, client: Client) -> Iterator[tuple[int, np.ndarray]]:
        """The same of all pieces, by the workers of a cluster: piece, and what the encoder says."""
        ...

    def collect(self, piece: int, found: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Places (m,) that are known now, and their features (m, dim) float32."""
        ...


def sweep(ways: Sequence[Way], client: Any = None) -> Iterator[tuple[int, np.ndarray, np.ndarray]]:
    """Features of places in several ways, some places at a time: which way, (m,) places, (m, dim) float32.

    What is in memory depends neither on the size of the image nor on the number of places.
    """
    for at, piece, found in _here(ways) if client is None else _there(ways, client):
        for places, features in ways[at].collect(piece, found):
            yield at, places, features


def _there(ways: Sequence[Way], client: Client) -> Iterator[tuple[int, int, np.ndarray]]:
    for at, way in enumerate(ways):
        for piece, found in way.on_cluster(client):
            yield at, piece, found


def _here(ways: Sequence[Way]) -> Iterator[tuple[int, int, np.ndarray]]:
    """Encode in this process: pixels are read by a thread while workers encode those before."""
    steps = [(at, piece) for at, way in enumerate(ways) for piece in range(len(way.windows))]
    steps.sort(key=lambda step: ways[step[0]].windows[step[1]].left_um)
    pixels = readers([ways[at].windows[piece] for at, piece in steps])

    def read() -> Iterator[tuple[int, int, np.ndarray]]:
        for at, piece in steps:
            here = ways[at].windows[piece]
            with pixels[id(here.level)].load(here.corners, here.side) as window:
                taken = ways[at].see(piece, window)
            yield at, piece, taken

    def begun() -> Iterator[tuple[int, int, np.ndarray]]:
        for at, piece, taken in ahead(read()):  # what is not drawn is encoded at once: many would fill the memory
            yield at, piece, taken if ways[at].draw else ways[at].encode(piece, taken)

    def work(step: tuple[int, int, np.ndarray]) -> tuple[int, int, np.ndarray]:
        at, piece, taken = step
        draw = ways[at].draw
        if draw is None:
            return step
        picture = draw(piece, taken)
        return at, piece, ways[at].encode(piece, picture) if ways[at].in_workers else picture

    for at, piece, found in in_workers(work, begun()):
        later = ways[at].draw and not ways[at].in_workers
        yield at, piece, ways[at].encode(piece, found) if later else found
