"""Checks of what the user passes. Each error says what was expected, found and available, and what mends it."""

from __future__ import annotations

import math
import os
import re
from collections.abc import Collection, Iterable, Mapping, Sequence, Set
from numbers import Integral, Real
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

ALLOWANCES = ("coarse", "off_tissue", "other_stain")
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
            f"Expected unique {what}, found {len(twice)} of {len(values)} more than once, e.g. {twice[:5].tolist()}. "
            f"Mend with {remedy}."
        )


def check_one_of(value: Any, options: Collection[Any], *, argument: str) -> None:
    """Raise ValueError when `value` is not among `options`."""
    if not isinstance(value, str | None) or value not in options:
        raise ValueError(f"Expected {argument} to be one of {list(options)}, found {value!r}.")


def check_positive(value: Any, *, argument: str) -> None:
    """Raise ValueError unless `value` is a finite number above zero."""
    if isinstance(value, bool | np.bool_) or not isinstance(value, Real) or not 0 < float(value) < math.inf:
        raise ValueError(f"Expected {argument} to be a number above 0, found {value!r}.")


def check_sizes(**values: Any) -> None:
    """Raise ValueError when one of the named numbers is given (not None) and is not a finite number above zero."""
    for argument, value in values.items():
        if value is not None:
            check_positive(value, argument=argument)


def check_name(name: Any, *, argument: str, beside: Iterable[str] = ()) -> None:
    """Raise ValueError unless zarr and any disk can hold `name`, beside the names that are there.

    Some disks do not tell ``nh2st`` from ``NH2ST``, and names that are derived from it must fit into 255 bytes. One of
    `beside` itself may be given again: whether it can be replaced is another question.
    """
    fits = isinstance(name, str) and re.fullmatch(r"(?!__)[\w.-]*\w[\w.-]*", name, flags=re.ASCII)
    if not fits or len(name) > LONGEST_NAME:
        mended = re.sub(r"[^\w.-]+", "_", str(name), flags=re.ASCII).strip("_.")[:LONGEST_NAME]
        long = isinstance(name, str) and len(name) > LONGEST_NAME
        raise ValueError(
            f"Expected {argument} to be a name of letters, digits, '.', '-' and '_', at most {LONGEST_NAME} characters "
            f"(it is written to zarr, and begins names that are longer), found "
            + (f"{len(name)}: {name[:20]!r}..." if long else repr(name))
            + (f": use {argument}={mended!r}." if mended and not long else ".")
        )
    alike = [other for other in beside if other != name and str(other).lower() == name.lower()]
    if alike:
        raise ValueError(
            f"{argument}={name!r} differs from {alike[0]!r} in capitals only, which not every disk can hold beside it: "
            "choose another name."
        )


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:40]}... ({len(text)} characters)"


def as_label(value: Any, *, argument: str) -> str:
    """The name of a group or object as text.

    Raises
    ------
    ValueError
        It is missing (None, NaN) or empty.
    TypeError
        It is no text or number.
    """
    value = value.item() if isinstance(value, np.generic) else value
    if value is None or value is pd.NA or value is pd.NaT or value != value:
        raise ValueError(f"Expected a name for every part of {argument}, found {value!r}: name it, or leave it out.")
    if not isinstance(value, str | Integral | Real | np.bool_):
        raise TypeError(f"Expected the names in {argument} to be texts or numbers, found {_short(value)}.")
    if not str(value).strip():
        raise ValueError(f"Expected a name for every part of {argument}, found {value!r}: name it, or leave it out.")
    return str(value)


def as_sequence(values: Any, *, argument: str) -> list[Any]:
    """A list, tuple, array, Index or Series (one dimension) as a list.

    Raises
    ------
    TypeError
        It is something else: a set has no order, and a text is not a list of letters.
    """
    if isinstance(values, Set):
        raise TypeError(f"Expected {argument} in an order, found a set, which has none: pass sorted({argument}).")
    arrays = isinstance(values, np.ndarray | pd.Index | pd.Series | pd.api.extensions.ExtensionArray)
    listed = arrays or (isinstance(values, Sequence) and not isinstance(values, str | bytes))
    if not listed or getattr(values, "ndim", 1) != 1:
        raise TypeError(f"Expected {argument} to be a list, found {type(values).__name__}: {_short(values)}.")
    return list(values)


def by_text(values: Mapping[Any, Any], *, argument: str) -> dict[str, Any]:
    """The same mapping with its keys as texts.

    Raises
    ------
    ValueError
        A key is missing (None, NaN), or two are one text, as 1 and "1".
    """
    found: dict[str, Any] = {}
    for key, value in values.items():
        label = as_label(key, argument=argument)
        if label in found:
            raise ValueError(f"Expected keys of {argument} that differ as texts, found {label!r} twice: rename one.")
        found[label] = value
    return found


def as_genes(genes: Any, *, argument: str = "genes") -> list[str]:
    """Names of genes, each once.

    Raises
    ------
    TypeError
        No list, or names that are no texts.
    ValueError
        None at all, or one twice.
    """
    names = as_sequence(genes, argument=argument)
    strange = [name for name in names if not isinstance(name, str)]
    if strange:
        raise TypeError(f"Expected {argument} to be names of genes, found {_short(strange[0])}.")
    if not names:
        raise ValueError(
            f"Expected {argument} to be a panel of genes, found an empty list: name some, or pass 'highest_mean'."
        )
    twice = sorted({name for name in names if names.count(name) > 1}) if len(set(names)) < len(names) else []
    if twice:
        raise ValueError(
            f"Expected every gene of the panel once, found {twice[:5]} more than once. "
            f"Mend with list(dict.fromkeys({argument}))."
        )
    return [str(name) for name in names]


def as_count(value: Any, *, argument: str, least: int = 1) -> int:
    """A whole number; numpy's too, and 3.0, but not True or "3".

    Raises
    ------
    ValueError
        It is something else, or less than `least`.
    """
    number = isinstance(value, Real) and not isinstance(value, bool | np.bool_)
    if not number or not float(value).is_integer() or value < least:
        raise ValueError(f"Expected {argument} to be a whole number of at least {least}, found {value!r}.")
    return int(value)


def as_path(path: Any, *, argument: str) -> Path:
    """The path, with ``~`` as the home of the user; raise TypeError unless it is one."""
    if not isinstance(path, str | os.PathLike) or not os.fspath(path):
        raise TypeError(f"Expected {argument} to be a path, found {type(path).__name__} {_short(path)}.")
    return Path(path).expanduser()


def check_link(table: Any, name: str) -> None:
    """Raise unless a table says, by columns that it has, which spots its rows are of.

    Raises
    ------
    KeyError
        A key of ``uns["spatialdata_attrs"]`` or a column of ``obs`` is missing.
    ValueError
        Some rows have no id.
    """
    attributes = table.uns["spatialdata_attrs"]
    remedy = (
        "Mend with sdata.set_table_annotates_spatialelement(table_name, region=..., region_key=..., instance_key=...)"
    )
    keys = ("region", "region_key", "instance_key")
    lacking = [k for k in keys if not isinstance(attributes, Mapping) or attributes.get(k) is None]
    if lacking:
        raise KeyError(
            f"Expected {list(keys)} in uns['spatialdata_attrs'] of table {name!r}, found no {lacking}. {remedy}."
        )
    for key in keys[1:]:
        column = attributes[key]
        if column not in table.obs:
            raise KeyError(
                f"Expected the column {column!r} ({key} of table {name!r}) in its obs, found {list(table.obs)[:10]}. "
                + remedy
            )
    missing = int(table.obs[attributes["instance_key"]].isna().sum())
    if missing:
        raise ValueError(
            f"Expected an id of its spot for every row of table {name!r}, found {missing} without one in "
            f"obs[{attributes['instance_key']!r}]. Leave those rows out."
        )


def whole_ids(ids: pd.Series) -> pd.Series:
    """Ids that are whole numbers, kept as any type, as integers; others as they are."""
    if ids.dtype == np.int64:
        return ids
    try:
        whole = ids.astype(np.int64)
    except (TypeError, ValueError):
        return ids
    return whole if whole.eq(ids.astype(object)).all() else ids  # the text "1" is no number


def as_file(path: Any, *, argument: str, suffixes: Collection[str] = ()) -> Path:
    """The path of a file that is there.

    Raises
    ------
    TypeError
        It is no path.
    FileNotFoundError
        There is no such file; says which there are, with the endings `suffixes`.
    """
    file = as_path(path, argument=argument)
    if "\0" in str(file) or not file.is_file():
        parent = file.parent if "\0" not in str(file) else Path("nowhere")
        beside = sorted(p.name for p in parent.glob("*") if p.suffix.lower() in suffixes and p.is_file())
        here = f" In that folder: {examples(beside)}." if beside else ""
        what = "It is a folder." if "\0" not in str(file) and file.is_dir() else here.strip()
        raise FileNotFoundError(f"Expected {argument} to be a file, found none at {str(file)!r}. {what}".rstrip())
    return file


def examples(names: Collection[Any], n: int = 5) -> str:
    """The first `n` names for a message."""
    return ", ".join(str(name) for name in list(names)[:n]) + (f", ... ({len(names)} in all)" if len(names) > n else "")


def as_allowances(allow: str | Iterable[str]) -> frozenset[str]:
    """Normalise the `allow` argument: which known problems the caller accepts."""
    if not isinstance(allow, str | Iterable):
        raise ValueError(f"Expected allow to be among {list(ALLOWANCES)}, or (), found {allow!r}.")
    allowed = frozenset([allow] if isinstance(allow, str) else allow)
    for name in allowed:
        check_one_of(name, ALLOWANCES, argument="allow")
    return allowed
