"""The memory of a training on a processor."""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Iterator
from contextlib import contextmanager

TRIM_THRESHOLD, MMAP_MAX = -1, -4  # what mallopt calls them
DEFAULTS = {TRIM_THRESHOLD: 2**26, MMAP_MAX: 2**16}  # the first is the highest that glibc goes to by itself


@contextmanager
def kept_memory(wanted: bool = True) -> Iterator[None]:
    """Let freed memory wait for the next step; at the end it is given back.

    glibc gives large arrays back to the system as soon as they are freed. To get them anew takes 7 % of a step of a
    ResNet18. Where the C library is another one, nothing is changed.
    """
    library = ctypes.CDLL(None) if wanted and sys.platform == "linux" else None
    if not (hasattr(library, "mallopt") and hasattr(library, "malloc_trim")):
        yield
        return
    assert library is not None
    try:
        library.malloc_trim(0)
        library.mallopt(TRIM_THRESHOLD, -1)  # never
        library.mallopt(MMAP_MAX, 0)  # large arrays too come from the heap
        yield
    finally:
        for name, value in DEFAULTS.items():
            library.mallopt(name, value)
        library.malloc_trim(0)
