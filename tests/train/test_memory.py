from __future__ import annotations

import ctypes
import sys
from pathlib import Path

import pytest
import torch

from nh2st_scverse.train.memory import kept_memory

GLIBC = sys.platform == "linux" and hasattr(ctypes.CDLL(None), "mallopt")


def resident_mb() -> float:
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096 / 2**20


@pytest.mark.skipif(not GLIBC, reason="the memory of glibc")
@pytest.mark.parametrize("wanted", [True, False])
def test_memory_is_kept_in_between_and_given_back_at_the_end(wanted: bool) -> None:
    before = resident_mb()
    with pytest.raises(KeyError), kept_memory(wanted):
        torch.ones(2**26)  # 256 MB
        assert (resident_mb() > before + 200) == wanted
        raise KeyError
    assert resident_mb() < before + 50
    torch.ones(2**26)
    assert resident_mb() < before + 50
