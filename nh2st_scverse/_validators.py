"""Checks of what the user passes. Each error says what was expected, found and available, and what mends it."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Mapping
from numbers import Real
from typing import Any

import numpy as np

ALLOWANCES = ("coarse", "off_tissue")
LONGEST_NAME = 200  # a file system takes 255


def choose_key(found: Mapping[str, Any] | Iterable[str], key: str | None, *, what: str, argument: str) -> str:
    """Return `key` if it exists, the only candidate if `key` is None, and raise otherwise."""
    available = list(found)
    if key is not None:
        if key not in available:
            raise KeyError(f"{argument}={key!r} is not there. Available {what}: {available}.")
        return key
    if len(available) == 1:
        return available[0]
    if not available:
        raise KeyError(f"Expected one of the {what}, found none.")
    raise KeyError(f"Found several {what} and cannot choose: pass {argument}= one of {available}.")


def check_unique(names: Any, *, what: str, remedy: str) -> None:
    """Raise ValueError when a name occurs twice: rows and genes are matched by name."""
    values, counts = np.unique(np.asarray(names, dtype=object).astype(str), return_counts=True)
    if (counts > 1).any():
        twice = values[counts > 1]
        raise ValueError(
            f"Expected unique {what}, found {len(twice)} of {len(values)} more than once, e.g. {list(twice[:5])}. "
            f"Mend with {remedy}."
        )


def check_one_of(value: Any, options: Collection[Any], *, argument: str) -> None:
    """Raise ValueError when `value` is not among `options`."""
    if value not in options:
        raise ValueError(f"Expected {argument} to be one of {list(options)}, found {value!r}.")


def check_positive(value: float, *, argument: str) -> None:
    """Raise ValueError unless `value` is a finite number above zero."""
    if isinstance(value, bool) or not isinstance(value, Real) or not np.isfinite(value) or value <= 0:
        raise ValueError(f"Expected {argument} to be a number above 0, found {value!r}.")


def check_name(name: Any, *, argument: str) -> None:
    """Raise ValueError unless `name` can be written to zarr: letters, digits, dots, dashes and underscores."""
    if isinstance(name, str) and len(name) > LONGEST_NAME:
        raise ValueError(
            f"Expected {argument} to be a name of at most {LONGEST_NAME} characters (it is written to zarr, and begins "
            f"names that are longer), found {len(name)}: {name[:20]!r}..."
        )
    written = isinstance(name, str) and re.fullmatch(r"[\w.-]+", name, flags=re.ASCII)
    if not written or name.startswith("__") or not name.strip("."):
        raise ValueError(
            f"Expected {argument} to be a name of letters, digits, '.', '-' and '_' (it is written to zarr), "
            f"found {name!r}."
        )


def as_allowances(allow: str | Iterable[str]) -> frozenset[str]:
    """Normalise the `allow` argument: which known problems the caller accepts."""
    allowed = frozenset([allow] if isinstance(allow, str) else allow)
    for name in allowed:
        check_one_of(name, ALLOWANCES, argument="allow")
    return allowed
