"""Encoding on a dask cluster: a task for each batch of patches, read and encoded where a worker is free."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import dask
import numpy as np
from distributed import Client, as_completed

from nh2st_scverse.data.geometry import Geometry
from nh2st_scverse.data.patches import cut
from nh2st_scverse.encoders import Encoder


def encode_on_cluster(
    geometry: Geometry, encoder: Encoder, work: Sequence[tuple[np.ndarray, float]], client: Client
) -> Iterator[tuple[int, np.ndarray]]:
    """Encode batches (positions of spots, side of their patches in µm).

    Yields
    ------
    Position of the batch and its features (b, dim), in the order in which they are done.
    """
    yield from on_cluster(_encode, (geometry, encoder), work, client)


def on_cluster(
    call: Callable[..., np.ndarray], shared: Sequence[Any], work: Sequence[Any], client: Client
) -> Iterator[tuple[int, np.ndarray]]:
    """``call(*shared, one)`` for each piece of work, on a cluster; dask gives those of a lost worker to others.

    Yields
    ------
    Position of the piece and what the call gives, in the order in which they are done.
    """
    # on every worker, so that the loss of one loses neither; under new names, since old ones may just be going
    there = client.scatter(list(shared), broadcast=True, hash=False)
    futures = {client.submit(call, *there, one, pure=False): i for i, one in enumerate(work)}
    try:
        for future, found in as_completed(list(futures), with_results=True):
            yield futures[future], found
    finally:
        client.cancel(list(futures))


def _encode(geometry: Geometry, encoder: Encoder, batch: tuple[np.ndarray, float]) -> np.ndarray:
    with dask.config.set(scheduler="synchronous"):  # a task that waits for tasks would wait for its own worker
        patches = next(cut(geometry, [batch], size_px=encoder.input_size))
    return np.asarray(encoder(patches), dtype=np.float32)
