"""Files that replace those of a folder together: after a kill at any moment, all are old or all are new.

New files are written to ``.saving-<random>`` inside the folder. Its renaming to ``.saved`` makes them valid, in one
step: from then on a file counts where it stands in ``.saved``. They move to their places one by one, and the rest of
``.saved`` goes. Whatever a kill leaves behind is finished or removed by the next save.
"""

from __future__ import annotations

import os
import secrets
import shutil
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from pathlib import Path

WRITING, VALID, BEFORE = ".saving-", ".saved", "old"


def find(folder: Path, name: str) -> Path:
    """Where a file of a folder stands that :func:`write` wrote."""
    waiting = folder / VALID / name
    return waiting if waiting.exists() else folder / name


def write(folder: Path, writers: Mapping[str, Callable[[Path], object]], *, overwrite: bool) -> None:
    """Write files to a folder, whole or not at all; each writer gets the path to write to.

    Raises
    ------
    FileExistsError
        The folder holds something, and `overwrite` is False.
    OSError
        A file could not be written; the folder is as it was.
    """
    if folder.exists() and not folder.is_dir():
        raise FileExistsError(f"{folder} exists and is a file: choose another folder.")
    if folder.is_dir() and not overwrite and any(not path.name.startswith(WRITING) for path in folder.iterdir()):
        raise FileExistsError(f"{folder} exists: choose another folder, or pass overwrite=True.")
    made = [one for one in (folder, *folder.parents) if not one.exists()]
    new = folder / f"{WRITING}{secrets.token_hex(4)}"
    try:
        new.mkdir(parents=True)
        _tidy(folder, writers, but=new)
        for name, writer in writers.items():
            writer(new / name)
            shutil.copymode(new / next(iter(writers)), new / name)  # some libraries shut out everyone else
            _flush(new / name)
        (new / BEFORE).mkdir()
        os.replace(new, folder / VALID)
    except BaseException:
        _remove(new, made)
        raise
    try:
        _flush(folder)
        _move_in(folder, writers)
    except BaseException:
        _move_out(folder, writers)
        os.replace(folder / VALID, new)
        _remove(new, made)
        raise
    shutil.rmtree(folder / VALID, ignore_errors=True)  # at worst the next save does it


def _move_in(folder: Path, names: Iterable[str]) -> None:
    """Put valid files in their places, and those that were there aside."""
    for name in names:
        if (folder / VALID / name).exists():
            if (folder / name).exists():
                os.replace(folder / name, folder / VALID / BEFORE / name)
            os.replace(folder / VALID / name, folder / name)
    _flush(folder)


def _move_out(folder: Path, names: Iterable[str]) -> None:
    """Undo :func:`_move_in`."""
    for name in names:
        if not (folder / VALID / name).exists():
            os.replace(folder / name, folder / VALID / name)
        if (folder / VALID / BEFORE / name).exists():
            os.replace(folder / VALID / BEFORE / name, folder / name)


def _tidy(folder: Path, names: Iterable[str], *, but: Path) -> None:
    """Finish or remove what saves left that were killed."""
    if (folder / VALID).exists():
        (folder / VALID / BEFORE).mkdir(exist_ok=True)
        _move_in(folder, names)
        shutil.rmtree(folder / VALID)
    for path in folder.glob(f"{WRITING}*"):
        if path != but:
            shutil.rmtree(path)


def _remove(new: Path, made: Iterable[Path]) -> None:
    """Remove a folder, and those around it that were made for it."""
    shutil.rmtree(new, ignore_errors=True)
    for one in made:
        with suppress(OSError):
            one.rmdir()


def _flush(path: Path) -> None:
    """Let a file, or the names in a folder, reach the disk: a rename must not overtake what it makes valid."""
    if os.name == "nt" and path.is_dir():
        return
    handle = os.open(path, os.O_RDWR if path.is_file() else os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
