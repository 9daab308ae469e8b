"""Many slides, one after the other: what is done is skipped, what fails is told, and a kill loses one slide at most.

Results of a folder belong together: ``nh2st_state.json`` beside them says from which command and settings they are,
which slides are done and which failed. A result is written under a hidden name and renamed when it is whole.
"""

from __future__ import annotations

import json
import os
import shutil
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
import spatialdata
from spatialdata import SpatialData
from tqdm.auto import tqdm

from nh2st_scverse import io
from nh2st_scverse._logging import logger, quiet
from nh2st_scverse.io._image import IMAGE_SUFFIXES
from nh2st_scverse.io._section import name_of

STATE = "nh2st_state.json"
SLIDES = "nh2st_slides.csv"  # the same as a table
UNFINISHED = ".unfinished-"
COUNTS = "*filtered_feature_bc_matrix.h5"


@dataclass(frozen=True)
class Source:
    """A slide or a section on disk."""

    name: str
    path: Path

    @property
    def stamp(self) -> list[int]:
        """Changes when the files do: size and time of a file, or of what is in a folder."""
        files = [self.path] if self.path.is_file() else sorted(p for p in self.path.iterdir() if p.is_file())
        return [number for file in files for number in (file.stat().st_size, file.stat().st_mtime_ns)]


def find(paths: Iterable[str | Path]) -> list[Source]:
    """Slides and sections among paths and directly inside folders, by name.

    Parameters
    ----------
    paths
        SpatialData stores (``*.zarr``), H&E slides (svs, tif, ...), Space Ranger folders, and folders of these.

    Raises
    ------
    FileNotFoundError
        No such path, or nothing in it.
    ValueError
        Two of one name: their results would be one.
    """
    found: list[Source] = []
    for path in map(Path, paths):
        if not path.exists():
            raise FileNotFoundError(f"Expected a slide or a folder of slides at {path}: there is nothing.")
        inside = (
            [path] if _is_source(path) else sorted(p for p in path.iterdir() if _is_source(p)) if path.is_dir() else []
        )
        if not inside:
            raise FileNotFoundError(
                f"Expected SpatialData stores (*.zarr), Space Ranger folders or H&E slides "
                f"({', '.join(IMAGE_SUFFIXES)}) at {path}, found none."
            )
        found += [Source(path.stem if path.suffix == ".zarr" else name_of(path), path) for path in inside]
    names = [one.name.casefold() for one in found]  # of files that some disks hold to be the same
    twice = [str(one.path) for one in found if names.count(one.name.casefold()) > 1]
    if twice:
        raise ValueError(f"Expected slides of different names, found {twice}: rename some, or run them apart.")
    return sorted(found, key=lambda one: one.name)


def _is_source(path: Path) -> bool:
    if path.name.startswith("."):
        return False
    if path.is_dir():
        return path.suffix == ".zarr" or _is_space_ranger(path)
    return path.name.lower().endswith(IMAGE_SUFFIXES)


def _is_space_ranger(path: Path) -> bool:
    return (path / "spatial").is_dir() and any(path.glob(COUNTS))


def read(source: Source, microns_per_pixel: float | None = None) -> SpatialData:
    """A source as an object; pixels stay on disk. Raises what the readers raise."""
    with quiet():
        if source.path.suffix == ".zarr":
            return spatialdata.read_zarr(source.path)
        if source.path.is_dir():
            import spatialdata_io

            sdata = spatialdata_io.visium(source.path, dataset_id=source.name)
            for table in sdata.tables.values():
                table.var_names_make_unique()
            return sdata
    return io.slide(source.path, microns_per_pixel=microns_per_pixel, section=source.name)


class State:
    """What is known of the slides of a folder of results; on disk after every change."""

    def __init__(self, out: Path, command: str, settings: dict[str, object]) -> None:
        self.path = out / STATE
        self.slides: dict[str, dict[str, Any]] = {}
        self.head = json.loads(json.dumps({"command": command, "settings": settings}))
        if out.exists() and not out.is_dir():
            raise NotADirectoryError(f"Expected a folder for the results at {out}, found a file: choose another --out.")
        if not self.path.exists():
            return
        try:
            known = json.loads(self.path.read_text(encoding="utf-8"))
            head, self.slides = known["head"], dict(known["slides"])
        except (ValueError, KeyError, TypeError) as error:
            raise ValueError(f"{self.path} is not a list of results: choose another --out, or remove it.") from error
        if head != self.head:
            before, now = _different(head.get("settings"), self.head["settings"])
            raise ValueError(
                f"{out} holds results of `nh2st {head.get('command')}` with {before}, expected those of "
                f"`nh2st {command}` with {now}: choose another --out."
            )

    def is_done(self, source: Source, target: Path) -> bool:
        """Whether the result is there and the slide is what it was."""
        known = self.slides.get(source.name, {})
        return known.get("status") == "done" and known.get("stamp") == source.stamp and target.exists()

    def note(self, source: Source, status: str, seconds: float, error: str = "") -> None:
        """Remember how it went."""
        self.slides[source.name] = {
            "input": str(source.path),
            "stamp": source.stamp if source.path.exists() else [],
            "status": status,
            "seconds": round(seconds, 1),
            "error": error,
        }
        new = self.path.with_name(f".{STATE}")
        new.write_text(json.dumps({"head": self.head, "slides": self.slides}, indent=1), encoding="utf-8")
        os.replace(new, self.path)

    def table(self, sources: Sequence[Source]) -> pd.DataFrame:
        """One row for each slide: input, status, seconds, error."""
        rows = {one.name: self.slides.get(one.name, {}) for one in sources}
        columns = ["input", "status", "seconds", "error"]
        return pd.DataFrame.from_dict(rows, orient="index").reindex(columns=columns).rename_axis("slide")


def each(
    sources: Sequence[Source],
    out: Path,
    suffix: str,
    *,
    command: str,
    settings: dict[str, object],
    job: Callable[[Source, Path], None],
    progress: bool = True,
) -> pd.DataFrame:
    """Do a job for each slide that is not done, and keep account.

    Parameters
    ----------
    sources
        From :func:`find`.
    out
        Folder of the results, ``<name><suffix>``, and of the account.
    suffix
        ``".zarr"``, ``".html"``, ...
    command, settings
        What the results come from: those of others are not mixed with them.
    job
        Gets a slide and the path to write to. What it raises is noted, and the next slide is done.
    progress
        Show a progress bar of all slides.

    Returns
    -------
    One row for each slide: ``input``, ``status`` (``"done"`` or ``"failed"``), ``seconds``, ``error``; also in
    ``nh2st_slides.csv`` beside the results.

    Raises
    ------
    NotADirectoryError, ValueError
        The folder is none, or holds other results.
    """
    state = State(out, command, settings)
    out.mkdir(parents=True, exist_ok=True)
    for path in out.glob(f"{UNFINISHED}*"):  # of a call that was killed
        _remove(path)
    left = [one for one in sources if not state.is_done(one, out / f"{one.name}{suffix}")]
    if len(left) < len(sources):
        logger.info("%d of %d slides are done already: %s.", len(sources) - len(left), len(sources), out)
    started = time.perf_counter()
    n_done = 0
    try:
        for source in _shown(left, progress):
            begun = time.perf_counter()
            unfinished, target = out / f"{UNFINISHED}{source.name}{suffix}", out / f"{source.name}{suffix}"
            try:
                job(source, unfinished)
                _remove(target)
                os.replace(unfinished, target)
            except Exception as error:
                _remove(unfinished)
                text = str(error.args[0]) if error.args else ""
                state.note(source, "failed", time.perf_counter() - begun, f"{type(error).__name__}: {text}")
                logger.warning("%s failed and is left out: %s", source.name, text or repr(error))
            else:
                state.note(source, "done", time.perf_counter() - begun)
                n_done += 1
    except KeyboardInterrupt:
        logger.warning("Stopped: finished slides are in %s; the same command goes on with the others.", out)
        raise
    finally:
        table = state.table(sources)
        table.to_csv(out / SLIDES)
    minutes = (time.perf_counter() - started) / 60
    if n_done and minutes >= 1:
        logger.info("%d slides in %.1f minutes: %.1f slides per hour.", n_done, minutes, 60 * n_done / minutes)
    return table


def _different(before: Any, now: Any) -> tuple[Any, Any]:
    """What differs of two settings."""
    if not (isinstance(before, dict) and isinstance(now, dict)):
        return before, now
    names = [name for name in {**before, **now} if before.get(name) != now.get(name)]
    return {name: before.get(name) for name in names}, {name: now.get(name) for name in names}


def _shown(sources: Sequence[Source], progress: bool) -> Iterator[Source]:
    with tqdm(total=len(sources), desc="slides", unit="slide", disable=not progress) as bar:
        for source in sources:
            bar.set_postfix_str(source.name)
            yield source
            bar.update()


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
