"""Workers of one thread each; the number of threads is left as it was."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import pytest
import torch

from nh2st_scverse._threads import in_workers, n_workers, threads


@pytest.mark.parametrize("number", [None, 3])
def test_threads_are_as_many_as_before(number: int | None) -> None:
    before = torch.get_num_threads()
    with pytest.raises(KeyError), threads(number):
        assert torch.get_num_threads() == (number or before)
        torch.set_num_threads(2)  # as numba does, for the whole process
        raise KeyError
    assert torch.get_num_threads() == before


def test_workers_compute_on_one_thread_each_whatever_was_set(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("nh2st_scverse._threads.n_workers", lambda: 2)
    torch.set_num_threads(3)  # as numba does
    meet = threading.Barrier(2)  # passed by two workers at a time

    def work(i: int) -> tuple[int, int]:
        meet.wait(timeout=30)
        return i, torch.get_num_threads()

    assert list(in_workers(work, range(20))) == [(i, 1) for i in range(20)]
    assert torch.get_num_threads() == 3


def test_items_of_workers_are_made_when_they_are_needed_and_errors_reach_the_caller() -> None:
    made: list[int] = []

    def items() -> Iterator[int]:
        for i in range(1000):
            made.append(i)
            yield i

    found = in_workers(lambda i: 1 // (3 - i), items())
    assert [next(found) for _ in range(3)] == [0, 0, 1]
    with pytest.raises(ZeroDivisionError):
        next(found)
    assert len(made) < 100 + 4 * n_workers()


@pytest.mark.parametrize(("asked", "expected"), [("1", 1), ("1,4", 1), ("1000000", None), ("many", None), ("", None)])
def test_no_more_workers_than_asked_for(asked: str, expected: int | None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    cores = n_workers()
    monkeypatch.setenv("OMP_NUM_THREADS", asked)
    assert n_workers() == (expected or cores)
