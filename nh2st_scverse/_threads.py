"""The number of threads that torch computes on."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def threads(number: int | None = None) -> Iterator[None]:
    """Compute on so many threads, and afterwards on as many as before.

    None: on as many as before, whatever is called. numba raises the number for the whole process when it starts its
    threads, so scanpy does too: a later training would wait for them on a busy machine, and sum in another order.
    """
    import torch

    before = torch.get_num_threads()
    try:
        if number is not None:
            torch.set_num_threads(number)
        yield
    finally:
        torch.set_num_threads(before)
