"""Threads: how many torch computes on, and workers that each compute on one."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from typing import TypeVar

T = TypeVar("T")
R = TypeVar("R")


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


def n_workers() -> int:
    """Threads that compute side by side: the cores of this process, or fewer where OMP_NUM_THREADS asks for fewer."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    asked = os.environ.get("OMP_NUM_THREADS", "").split(",")[0].strip()
    return max(1, min(cores, int(asked))) if asked.isdigit() else cores


def in_workers(call: Callable[[T], R], items: Iterable[T]) -> Iterator[R]:
    """``call`` of every item, in their order, by threads that each compute on one core.

    Several threads of one operator wait for each other at its end, hundreds of times for a patch: where other programs
    take a core, they all but stand still. Workers wait for nobody. Results do not depend on how many there are.
    """
    import torch

    def alone(item: T) -> R:
        if torch.get_num_threads() != 1:  # of this thread; asking first lets torch begin with the default
            torch.set_num_threads(1)
        return call(item)

    n = n_workers()
    waiting: deque[Future[R]] = deque()
    pool = ThreadPoolExecutor(n)
    with threads():  # new threads of others begin with as many as before
        try:
            for item in items:
                if len(waiting) > 2 * n:
                    yield waiting.popleft().result()
                waiting.append(pool.submit(alone, item))
            while waiting:
                yield waiting.popleft().result()
        finally:
            pool.shutdown(cancel_futures=True)
