from __future__ import annotations

import ctypes
import subprocess
import sys

import pytest

GLIBC = sys.platform == "linux" and hasattr(ctypes.CDLL(None), "mallopt")
CODE = """
from pathlib import Path
import torch
from nh2st_scverse.train.memory import kept_memory

def resident_mb():
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096 / 2**20

torch.ones(2**20)
before = resident_mb()
try:
    with kept_memory({wanted}):
        torch.ones(2**26)  # 256 MB
        print(resident_mb() > before + 200)
        raise KeyError
except KeyError:
    print(resident_mb() > before + 50)
torch.ones(2**26)
print(resident_mb() > before + 50)
"""


@pytest.mark.skipif(not GLIBC, reason="the memory of glibc")
@pytest.mark.parametrize("wanted", [True, False])
def test_memory_is_kept_in_between_and_given_back_at_the_end(wanted: bool) -> None:
    """In a process of its own: what others left free would be taken first."""
    code = CODE.format(wanted=wanted)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == [str(wanted), "False", "False"]
