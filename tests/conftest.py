from __future__ import annotations

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")  # small arrays: on a shared machine several threads wait for each other

from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="session")
def data_dir() -> Path:
    """The folder of real sections; tests that use it skip where it is absent."""
    path = Path(os.environ.get("NH2ST_DATA") or ROOT.parent / "shared" / "data")
    if not path.is_dir():
        pytest.skip("real sections are not here: set NH2ST_DATA to their folder")
    return path
