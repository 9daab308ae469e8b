"""In which unit a matrix of expression is, told from its values, and the way from one unit to another."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

import numpy as np
import scipy.sparse as sp
from anndata import AnnData

from nh2st_scverse._constants import LOG_UNIT, TARGET_SUM
from nh2st_scverse.data.expression import is_logged, matrix, to_dense

UNKNOWN_LOGS = "as given (logarithm)"
UNKNOWN = "not known"  # of what another tool predicted
BASES = {"log1p": np.e, "log2": 2.0, "log10": 10.0}
N_ROWS = 1000  # spots that tell the unit
SAME_SIZE = 2e-3  # relative difference of library sizes that rounding makes


@dataclass(frozen=True)
class Unit:
    """Counts of each spot scaled to a sum, and their logarithm to a base; None of the two is left as it is."""

    total: float | None = None  # None: raw counts
    base: float | None = None  # None: no logarithm

    def __str__(self) -> str:
        if self.total is None:
            return "counts"
        counts = f"counts per {self.total:,.0f}"
        if self.base is None:
            return counts
        return f"log1p({counts})" if self.base == np.e else f"log{self.base:.0f}(1 + {counts})"

    @classmethod
    def parse(cls, text: str) -> Unit | None:
        """The unit of a text as :meth:`__str__` writes it; None for another one."""
        found = re.fullmatch(r"(?:(log1p|log2|log10)\((?:1 \+ )?)?counts per ([\d,]+)\)?", text)
        if found is None:
            return None
        return cls(float(found[2].replace(",", "")), BASES[found[1]] if found[1] else None)


LOG = Unit(TARGET_SUM, np.e)
"""That of the default target."""


def rescale(logs: Any, found: Unit | None, wanted: Unit) -> Any:
    """Logarithms (n, G) of counts per one sum as those per another; sparse where they are."""
    assert found is not None and found.base and found.total and wanted.base and wanted.total
    x = logs.copy()
    values = x.data if sp.issparse(x) else x
    values[...] = np.log1p((found.base ** values.astype(float) - 1) * (wanted.total / found.total)) / np.log(
        wanted.base
    )
    return x


def unit_of(x: Any) -> Unit | None:
    """The unit of a matrix (n_spots, n_genes) of all genes; None for logarithms that do not tell theirs."""
    part = x[:: -(-x.shape[0] // N_ROWS)] if x.shape[0] > N_ROWS else x
    values = part.data if sp.issparse(part) else np.asarray(part)
    if not values.size or not np.any(values % 1):
        return Unit()
    for base in (None, *BASES.values()) if values.max() < 50 else (None,):
        sums = _row_sums(part, base)
        sums = sums[sums > 0]
        if len(sums) > 2 and np.ptp(sums) < SAME_SIZE * np.median(sums):
            return Unit(float(f"{np.median(sums):.4g}"), base)
    return None if is_logged(x) else Unit()


def _row_sums(x: Any, base: float | None) -> np.ndarray:
    """Sum of each row (n,) once the logarithm is undone."""
    if sp.issparse(x):
        x = sp.csr_matrix(x, dtype=np.float64, copy=True)
        x.data = x.data if base is None else base**x.data - 1
    else:
        x = np.asarray(x, dtype=np.float64)
        x = x if base is None else base**x - 1
    return np.asarray(x.sum(axis=1)).ravel()


@dataclass(frozen=True)
class Measured:
    """Measured values of n spots and G genes, read when they are asked for."""

    unit: str  # the wanted one, or another where there is no way from the table to it
    counted: np.ndarray  # (n,) bool: the spot has any counts
    as_stored: Any  # (n, G) of the table
    library: np.ndarray  # (n,) sum over all genes of the table
    found: Unit | None  # unit of the table
    wanted: Unit | None

    def values(self, columns: Any = slice(None)) -> np.ndarray:
        """Values of some of the genes, (n, G) float32 in `unit`."""
        values = to_dense(self.as_stored[:, columns])
        if self.found is None or self.wanted is None or self.found == self.wanted:
            return values
        return _convert(values, self.found, self.wanted, self.library)


def measure(
    adata: AnnData, layer: str | None, columns: np.ndarray, unit: str, rows: np.ndarray | None = None
) -> Measured:
    """Measured values of some genes and spots (None: all) in a wanted unit, as far as the table allows."""
    x = matrix(adata, layer)
    found, wanted = unit_of(x), Unit.parse(unit)
    if rows is not None and not np.array_equal(rows, np.arange(x.shape[0])):
        x = x[rows]
    library = np.asarray(x.sum(axis=1), dtype=np.float64).ravel()
    x = x[:, columns].tocsc() if sp.issparse(x) else x[:, columns]
    if found is None:  # logarithms of some kind
        told = unit if wanted is None else UNKNOWN_LOGS
    elif wanted is None and unit == UNKNOWN_LOGS and found.base is not None:
        told = unit  # an earlier version did not say which
    else:
        wanted = wanted or Unit.parse(LOG_UNIT)
        told = str(wanted)
    return Measured(told, library > 0, x, library, found, wanted)


def _convert(values: np.ndarray, found: Unit, wanted: Unit, library: np.ndarray) -> np.ndarray:
    """Values (n, G) in another unit; `library` (n,) is the sum of all genes in the unit that was found."""
    counts = values.astype(np.float64)
    if found.base is not None:
        counts = found.base**counts - 1
    total = library if found.total is None else np.full(len(values), found.total)
    scale = np.full(len(values), wanted.total or 1.0)  # what is parsed has a total
    counts *= np.divide(scale, total, out=np.zeros(len(values)), where=total > 0)[:, None]
    if wanted.base is not None:
        counts = np.log1p(counts) / np.log(wanted.base)
    return counts.astype(np.float32)
