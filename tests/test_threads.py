"""The number of threads is left as it was."""

from __future__ import annotations

import pytest
import torch

from nh2st_scverse._threads import threads


@pytest.mark.parametrize("number", [None, 3])
def test_threads_are_as_many_as_before(number: int | None) -> None:
    before = torch.get_num_threads()
    with pytest.raises(KeyError), threads(number):
        assert torch.get_num_threads() == (number or before)
        torch.set_num_threads(2)  # as numba does, for the whole process
        raise KeyError
    assert torch.get_num_threads() == before
