"""Sections that are read when they are asked for."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping

from spatialdata import SpatialData

from nh2st_scverse._validators import examples

Read = Callable[[], SpatialData]


class Sections(Mapping[str, SpatialData]):
    """Sections by name; each is read when it is asked for, and kept."""

    def __init__(self, readers: Mapping[str, Read], *, what: str = "sections") -> None:
        self._readers, self._what = dict(readers), what
        self._read: dict[str, SpatialData] = {}

    def __getitem__(self, name: str) -> SpatialData:
        if name not in self._readers:
            raise KeyError(f"Expected one of the {self._what} {examples(list(self), 10)}, found {name!r}.")
        if name not in self._read:
            self._read[name] = self._readers[name]()
        return self._read[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._readers)

    def __len__(self) -> int:
        return len(self._readers)

    def __repr__(self) -> str:
        return f"{len(self)} {self._what}: {examples(list(self), 10)}"
