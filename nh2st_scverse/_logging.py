"""The package's logger: short messages, visible in a terminal and in Jupyter."""

from __future__ import annotations

import builtins
import logging
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TextIO


class _Handler(logging.StreamHandler):  # type: ignore[type-arg]
    """Writes to the stream of the moment, and leaves a record to the root logger when that shows it already."""

    def __init__(self) -> None:
        logging.Handler.__init__(self)
        self.setFormatter(_Formatter())
        self.addFilter(lambda record: not _shown_by_root(record))

    # Looked up at each message: Jupyter and pytest replace sys.stdout and sys.stderr after the import.
    # stderr is a red box in a notebook, so messages go to stdout there.
    @property
    def stream(self) -> TextIO:  # type: ignore[override]
        return sys.stdout if _in_ipython() else sys.stderr


class _Formatter(logging.Formatter):
    """``message`` for information, ``WARNING: message`` for what needs attention, in colour where IPython shows it."""

    def format(self, record: logging.LogRecord) -> str:
        text = super().format(record)
        if record.levelno == logging.INFO:
            return text
        name = f"{record.levelname}:"
        colour = {logging.WARNING: 33, logging.ERROR: 31}.get(record.levelno)  # yellow, red
        if colour and _in_ipython():
            name = f"\x1b[{colour}m{name}\x1b[0m"
        return f"{name} {text}"


def _in_ipython() -> bool:
    return hasattr(builtins, "__IPYTHON__")


def _shown_by_root(record: logging.LogRecord) -> bool:
    """Whether a console handler of the root logger (``logging.basicConfig``, pytest's caplog) prints the record."""
    return any(
        isinstance(handler, logging.StreamHandler)
        and not isinstance(handler, logging.FileHandler)
        and record.levelno >= handler.level
        for handler in logging.getLogger().handlers
    )


logger = logging.getLogger("nh2st_scverse")
"""Messages of the package; ``logger.setLevel("WARNING")`` silences the informative ones."""

if not any(type(handler).__name__ == _Handler.__name__ for handler in logger.handlers):  # a reload adds no second one
    logger.addHandler(_Handler())
    if logger.level == logging.NOTSET:  # a level set before the first use stays
        logger.setLevel(logging.INFO)


_told: set[str] = set()


def info_once(text: str) -> None:
    """Log what is found again at each call of a session, the first time."""
    if text not in _told:
        _told.add(text)
        logger.info("%s", text)


@contextmanager
def quiet() -> Iterator[None]:
    """Without what squidpy and spatialdata say about their steps and their dependencies."""
    log = logging.getLogger("spatialdata._logging")
    before = log.level
    log.setLevel(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        log.setLevel(before)
