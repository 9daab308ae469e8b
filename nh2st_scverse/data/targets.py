"""Measured expression of the sections: checked once, the panel chosen on training spots, the target of a training."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from nh2st_scverse._constants import LOG_UNIT
from nh2st_scverse._logging import logger
from nh2st_scverse._validators import as_genes, check_one_of
from nh2st_scverse.data.checks import in_tissue
from nh2st_scverse.data.cohort import Cohort, Sample
from nh2st_scverse.data.expression import (
    PANELS,
    choose_genes,
    expression,
    is_logged,
    log_normalise,
    matrix,
    smooth,
    to_dense,
)
from nh2st_scverse.data.folds import Spots
from nh2st_scverse.data.geometry import is_hexagonal
from nh2st_scverse.data.units import LOG, UNKNOWN_LOGS, Unit, rescale, unit_of

HOUSEKEEPING = re.compile(r"(?i)mt-|rp[ls]\d|rp[ls]p\d|mrp[ls]\d")  # symbols of man and mouse
MOST_HOUSEKEEPING = 0.2  # of a panel that was chosen


@dataclass(frozen=True)
class Counts:
    """Expression of every section of a cohort, in the unit of the default target."""

    cohort: Cohort
    layer: str | None
    values: tuple[Any, ...]  # of each section (n_spots, n_genes) float32, sparse where the table is
    unit: str  # of the values
    logged: bool  # the tables hold logarithms

    @classmethod
    def of(cls, cohort: Cohort, layer: str | None) -> Counts:
        """Read and check the counts of all sections.

        Raises
        ------
        KeyError
            No such layer.
        ValueError
            Values that are neither counts nor logarithms, or counts in one table and logarithms in another.
        """
        found = {id(table): matrix(table, layer) for table in cohort.tables}
        units = {at: unit_of(x) if is_logged(x) else Unit() for at, x in found.items()}
        # shares of a spot are as small as logarithms, and none
        logged = {unit is None or unit.base is not None for unit in units.values()}
        if len(logged) > 1:
            raise ValueError(
                "Expected counts in all tables or logarithms in all, found both: pass layer= with the counts."
            )
        are_logs = logged.pop()
        expressed = {at: expression(x, logged=are_logs) for at, x in found.items()}
        unit = LOG_UNIT
        if are_logs:
            unit, expressed = _of_one_kind(expressed, units)
        values = tuple(_rows(expressed[id(sample.table)], sample) for sample in cohort.samples)
        return cls(cohort, layer, values, unit, are_logs)

    def within(self, i: int) -> np.ndarray:
        """Spots of a section that are on its image and not off the tissue: (n_spots,) bool."""
        sample = self.cohort.samples[i]
        return np.asarray(sample.section.usable & in_tissue(sample.table.obs.iloc[sample.section.rows]))

    @property
    def names(self) -> list[list[str]]:
        """Genes of each section."""
        return [list(sample.table.var_names) for sample in self.cohort.samples]


@dataclass(frozen=True)
class Targets:
    """What a training aims at, or a prediction is compared with."""

    genes: tuple[str, ...]
    unit: str
    values: tuple[np.ndarray, ...]  # of each section (n_spots, G) float32
    trainable: tuple[np.ndarray, ...]  # (n_spots,) bool: on the image, and not empty of counts


def check_panel(genes: Any, n_genes: Any) -> None:
    """Raise TypeError or ValueError for what cannot name or choose a panel, before anything is read."""
    whole = isinstance(n_genes, int | np.integer) and not isinstance(n_genes, bool)
    if n_genes is not None and (not whole or n_genes < 1):
        raise ValueError(f"Expected n_genes to be at least 1, or None for all genes, found {n_genes!r}.")
    if isinstance(genes, str):
        check_one_of(genes, PANELS, argument="genes")
    else:
        as_genes(genes)


def choose_panel(
    counts: Counts, genes: str | Sequence[str], n_genes: int | None, within: Sequence[Spots] | None = None
) -> list[str]:
    """Choose the gene panel.

    Parameters
    ----------
    counts
        Of all sections.
    genes
        ``"highest_mean"``, ``"highly_variable"``, ``"spatially_variable"`` (Moran's I), or the panel itself.
    n_genes
        Size of a chosen panel; None takes all genes that every section has.
    within
        Sets of training spots: the panel then has the genes that rank high in all of them. None: all spots.

    Raises
    ------
    ValueError
        An empty panel, no gene in common, or listed genes that a section lacks.
    """
    names = counts.names
    if not isinstance(genes, str):
        return choose_genes(counts.values, names, genes, None)
    sets = within or [tuple((i, np.arange(s.n_spots)) for i, s in enumerate(counts.cohort.sections))]
    sets = [tuple((i, at[counts.within(i)[at]]) for i, at in spots) for spots in sets]
    ranked = [
        choose_genes(
            [_some(counts.values[i], at) for i, at in spots],
            [names[i] for i, _ in spots],
            genes,
            None,
            [counts.cohort.sections[i].xy_um[at] for i, at in spots],
        )
        for spots in sets
    ]
    # the lowest rank of a gene over the training sets counts: the best are near the top in all of them
    ranks = [{gene: rank for rank, gene in enumerate(one)} for one in ranked]
    shared = set(names[0]).intersection(*names[1:], *ranked)
    panel = sorted(shared, key=lambda gene: (max(r[gene] for r in ranks), ranks[0][gene]))[:n_genes]
    if not panel:
        raise ValueError("Expected a gene panel, found none: no gene varies on every training set. Pass genes=.")
    house = [gene for gene in panel if HOUSEKEEPING.match(gene)]
    if len(house) > MOST_HOUSEKEEPING * len(panel):
        logger.info(
            "%d of %d genes of the panel are mitochondrial or ribosomal, e.g. %s: they follow the number of cells and "
            'the quality of a spot more than its kind. Consider genes="spatially_variable", or a list of yours.',
            len(house),
            len(panel),
            house[:3],
        )
    return panel


def measure(counts: Counts, panel: Sequence[str], *, library: str = "genome", smoothed: bool = False) -> Targets:
    """The expression of a panel as a training aims at it.

    Parameters
    ----------
    counts
        Of all sections.
    panel
        Genes.
    library
        Counts per ten thousand of all genes (``"genome"``), or of the ``"panel"`` alone.
    smoothed
        Average every spot with the adjacent spots of the array.
    """
    if counts.logged and library == "panel":
        raise ValueError(
            "Preset 'paper' normalises counts within the panel, but found logarithms: pass layer= with counts."
        )
    unit = "log1p(1e4 of the panel)" if library == "panel" else counts.unit
    values, trainable = [], []
    for i, (sample, expressed) in enumerate(zip(counts.cohort.samples, counts.values, strict=True)):
        section, table = sample.section, sample.table
        columns = table.var_names.get_indexer(list(panel))
        target = to_dense(expressed[:, columns])
        if library == "panel":
            target = log_normalise(to_dense(matrix(table, counts.layer)[section.rows][:, columns]))
        if smoothed:
            target = smooth(target, *_array_positions(sample))
        values.append(target)
        trainable.append(counts.within(i) & (np.asarray(expressed.sum(axis=1)).ravel() > 0))
    return Targets(tuple(panel), unit + (", smoothed" if smoothed else ""), tuple(values), tuple(trainable))


def _of_one_kind(logs: dict[int, Any], units: dict[int, Unit | None]) -> tuple[str, dict[int, Any]]:
    """The unit of the logarithms of all tables, and their values in it; those of known kinds are brought to one."""
    kinds = set(units.values())
    if len(kinds) > 1 and None not in kinds:
        logger.info("The tables hold %s: all are brought to %s.", " and ".join(sorted(map(str, kinds))), LOG_UNIT)
        return LOG_UNIT, {at: rescale(x, units[at], LOG) for at, x in logs.items()}
    if len(kinds) > 1:
        told = ", ".join(sorted(str(kind) for kind in kinds if kind is not None))
        logger.warning(
            "Some tables hold %s, others logarithms that do not tell their kind: are they the same? Pass layer= with "
            "the counts to be sure.",
            told,
        )
        return UNKNOWN_LOGS, logs
    (kind,) = kinds
    if kind is None:
        logger.info(
            "The expression is logarithms that do not tell their kind, used as they are. layer= with the counts gives "
            "%s.",
            LOG_UNIT,
        )
    return UNKNOWN_LOGS if kind is None else str(kind), logs


def _rows(values: Any, sample: Sample) -> Any:
    return values if sample.is_whole_table else values[sample.section.rows]


def _some(values: Any, positions: np.ndarray) -> Any:
    """Some rows of a matrix; itself, not a copy, where they are all of them."""
    return values if np.array_equal(positions, np.arange(values.shape[0])) else values[positions]


def _array_positions(sample: Sample) -> tuple[np.ndarray, np.ndarray, bool]:
    """Row and column of each spot on the array, and whether the array is hexagonal."""
    section, table = sample.section, sample.table
    lacking = [c for c in ("array_row", "array_col") if c not in table.obs]
    if lacking:
        raise KeyError(f"Smoothing the target needs obs columns array_row and array_col, found no {lacking}.")
    at = table.obs.iloc[section.rows]
    return at["array_row"].to_numpy(), at["array_col"].to_numpy(), is_hexagonal(section.xy_um)
