"""Features on disk, batch by batch, so that an interrupted encoding goes on where it stopped."""

from __future__ import annotations

import mmap
import os
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import zarr
from zarr.codecs import Crc32cCodec

from nh2st_scverse._logging import logger
from nh2st_scverse.data.patches import BATCH

PART = 2048  # spots whose features are in memory at a time, where all of them are many


def on_disk(n: int, width: int) -> np.ndarray:
    """An array (n, width) of NaN in 16 bits, in a file that goes away with it."""
    with tempfile.TemporaryFile() as file:
        values = np.memmap(file, np.float16, "w+", shape=(n, width))
    for start in range(0, n, PART):
        values[start : start + PART] = np.nan
        release(values)
    return values


def release(values: np.ndarray) -> None:
    """Let what was read or written of an array on disk leave the memory of the process."""
    if isinstance(values, np.memmap) and hasattr(mmap, "MADV_DONTNEED"):
        values._mmap.madvise(mmap.MADV_DONTNEED)  # type: ignore[attr-defined]


class FeatureCache:
    """A zarr store ``<folder>/<section>/<mark>.zarr`` with one checksummed chunk for each batch and field of view.

    A chunk is written when its batch is encoded. Chunks that are missing, cut off or damaged count as not encoded.

    Parameters
    ----------
    folder
        Made if it does not exist.
    section
        Name of the section.
    mark
        Hash of everything features depend on; features of another image, patch or encoder are in another store.
    n_patches, n_fields, dim
        Number of patches of a field of view, number of fields, length of the features of one.
    about
        What the features were made from, for people: kept in the attributes of the store.
    """

    def __init__(
        self,
        folder: str | os.PathLike[str],
        *,
        section: str,
        mark: str,
        n_patches: int,
        n_fields: int,
        dim: int,
        about: dict[str, Any],
    ) -> None:
        name = "".join(c if c.isalnum() or c in "._-" else "_" for c in section)
        self.path = Path(folder) / name / f"{mark}.zarr"
        self.damaged = 0
        others = [path.name for path in self.path.parent.glob("*.zarr") if path != self.path]
        if others and not self.path.exists():
            logger.info(
                "%s holds features of another image, patch, encoder or other spots (%s): encoding %r anew.",
                self.path.parent,
                ", ".join(sorted(others)),
                section,
            )
        shape, chunks = (-(-n_patches // BATCH), n_fields, BATCH, dim), (1, 1, BATCH, dim)
        self.array: Any = self._open(shape, chunks)
        if self.array is None:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self.array = zarr.create_array(
                self.path,
                shape=shape,
                chunks=chunks,
                dtype=np.float32,
                fill_value=np.nan,
                compressors=[Crc32cCodec()],  # features do not compress; a checksum tells a damaged chunk
                attributes=about,
                overwrite=True,
            )

    def _open(self, shape: tuple[int, ...], chunks: tuple[int, ...]) -> Any:
        if not self.path.exists():
            return None
        try:
            array = zarr.open_array(self.path, mode="r+")
            if array.shape == shape and array.chunks == chunks and array.dtype == np.dtype(np.float32):
                return array
        except Exception as error:  # whatever a damaged store leads to
            logger.warning("%s cannot be read (%s): encoding anew.", self.path, error)
        return None

    def get(self, at: int, field: int, n: int) -> np.ndarray | None:
        """Features (n, dim) of a batch at a field of view; None when they are not there or damaged."""
        try:
            values = self.array[at, field, :n]
        except Exception:  # cut off, or another checksum
            self.damaged += 1
            if self.damaged == 1:
                logger.warning("%s has damaged chunks: their patches are encoded again.", self.path)
            return None
        return values if np.isfinite(values).all() else None

    def put(self, at: int, field: int, features: np.ndarray) -> None:
        """Keep the features (n, dim) of a batch."""
        whole = np.full(self.array.chunks[2:], np.nan, dtype=np.float32)
        whole[: len(features)] = features
        self.array[at, field] = whole
