"""``tl.modules``: sets of genes, predicted and scored as one."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from spatialdata import SpatialData

from nh2st_scverse import metrics
from nh2st_scverse._constants import KEY
from nh2st_scverse._docs import documented
from nh2st_scverse._keys import Keys, Place
from nh2st_scverse._logging import logger
from nh2st_scverse._validators import as_count, as_path, check_unique
from nh2st_scverse.data.expression import matrix
from nh2st_scverse.prediction import check_free, find_prediction, in_x, put, read
from nh2st_scverse.tl._evaluate import Pair, compare, has_counts

LEVEL = 0.8  # of the measured values that the width of an interval holds


@documented()
def modules(
    sdata: SpatialData,
    gene_sets: Mapping[str, Sequence[str]] | str | Path,
    *,
    key: str = KEY,
    table_key: str | None = None,
    layer: str | None = None,
    min_genes: int = 3,
    reference: pd.DataFrame | None = None,
) -> pd.DataFrame:
    """Score sets of genes as one: the mean of their predicted values in each spot.

    The errors of single genes, counting noise most of all, average out over a set: it is often predicted well where
    none of its genes is. Each set has a correlation, a noise ceiling and an interval of its own, measured on this
    object where it has counts; a slide without counts takes them from a `reference`.

    Parameters
    ----------
    sdata
        Object with a prediction.
    gene_sets
        Names and their genes, or a GMT file (name, description, genes; separated by tabs; a slash in a name becomes an
        underscore).
    $prediction
    layer
        Layer with the counts; None means X.
    min_genes
        Predicted genes that a set must have; others are left out, which is logged.
    reference
        What this function returned for sections with counts, whose prediction had not seen them.

    Returns
    -------
    One row for each set: ``n_genes``, ``n_predicted``, ``pearson`` (with the mean of the measured genes, within
    sections), ``ceiling``, ``of_ceiling``, ``mean_gene_pearson`` (mean correlation of its genes, by the same spots),
    ``width`` (half an interval that holds 80 % of the measured values) and ``genes``; best sets first. The correlations
    are those of held-out tissue where the prediction was cross-fitted or is of sections that the model never saw.
    Written is ``table.obsm[key + "_modules"]``, a frame (n_spots, sets) in the unit of the prediction, as decoupler
    writes scores.

    Raises
    ------
    KeyError
        No such prediction.
    ValueError
        No set with enough predicted genes; a file that is no GMT file.

    See Also
    --------
    evaluate : the same for single genes.
    region : what is high inside a region.
    nh2st_scverse.pl.modules : draws them on the tissue.

    Examples
    --------
    >>> import nh2st_scverse as nh
    >>> sdata = nh.datasets.synthetic(width_um=1500)
    >>> nh.tl.predict_expression(sdata, n_genes=40, max_epochs=2, progress=False)
    >>> genes = sdata["table"].var_names[sdata["table"].var["nh2st"]]
    >>> found = nh.tl.modules(sdata, {"tumour": [g for g in genes if g.startswith("TUMOR")]})
    >>> sdata["table"].obsm["nh2st_modules"].shape
    (158, 1)
    """
    min_genes = as_count(min_genes, argument="min_genes")
    sets = (
        _read_gmt(as_path(gene_sets, argument="gene_sets"))
        if isinstance(gene_sets, str | Path)
        else _checked(gene_sets)
    )
    table_key = find_prediction(sdata, key, table_key)
    table = sdata.tables[table_key]
    keys, prediction = Keys(key), read(table, key)
    check_free(table, key, keys.of_modules, argument="key")
    known = {name: [gene for gene in genes if gene in set(prediction.genes)] for name, genes in sets.items()}
    used = {name: genes for name, genes in known.items() if len(genes) >= min_genes}
    if not used:
        found = {name: len(genes) for name, genes in known.items()}
        raise ValueError(
            f"Expected sets with at least {min_genes} predicted genes, found {found}: predict more genes (n_genes=), "
            "or check that names are of the same kind (symbols or identifiers)."
        )
    if len(used) < len(sets):
        left_out = sorted(set(sets) - set(used))
        logger.info(
            "%d of %d sets have fewer than %d predicted genes: %s.", len(left_out), len(sets), min_genes, left_out
        )
    values = {name: prediction.mean_of(genes) for name, genes in used.items()}
    scores = pd.DataFrame(
        {
            "n_genes": [len(sets[name]) for name in used],
            "n_predicted": [len(genes) for genes in used.values()],
        },
        index=pd.Index(list(used), name="module"),
    )
    if reference is not None:
        columns = ["pearson", "ceiling", "of_ceiling", "mean_gene_pearson", "width"]
        scores = scores.join(reference.reindex(columns=columns))
    else:
        pair = _measured_pair(sdata, key, table_key, layer)
        rows = {name: _scored(pair, genes, layer) for name, genes in used.items()} if pair else {}
        columns = ["pearson", "ceiling", "mean_gene_pearson", "width"]
        scores = scores.join(pd.DataFrame.from_dict(rows, orient="index", columns=columns, dtype=float))
        scores.insert(4, "of_ceiling", scores["pearson"] / scores["ceiling"])
    scores["genes"] = [", ".join(genes) for genes in used.values()]
    frame = pd.DataFrame(values, index=table.obs_names).astype(np.float32)
    entries: dict[Place, Any] = {("obsm", keys.modules): frame, ("uns", keys.modules): {"n_modules": len(used)}}
    put(table, key, entries, clear=keys.of_modules)
    return scores.sort_values("pearson", ascending=False, kind="stable")


def _checked(gene_sets: Mapping[str, Sequence[str]]) -> dict[str, list[str]]:
    if not isinstance(gene_sets, Mapping) or not gene_sets:
        raise TypeError(
            f"Expected gene_sets= to map names to genes, or a GMT file, found {type(gene_sets).__name__}: give "
            '{"name": ["GENE1", "GENE2"]}.'
        )
    sets = {}
    for name, genes in gene_sets.items():
        if not isinstance(name, str) or isinstance(genes, str) or not isinstance(genes, Iterable):
            raise TypeError(f"Expected gene_sets= to map names to lists of genes, found {name!r}: {genes!r}.")
        written = _column(name)
        if written != name:
            raise ValueError(f"Expected names of sets that can be written to zarr, found {name!r}: use {written!r}.")
        sets[name] = [str(gene) for gene in genes]
        check_unique(sets[name], what=f"genes of the set {name!r}", remedy="list(dict.fromkeys(genes))")
    return sets


def _column(name: str) -> str:
    """A name that the column of a set can have in a zarr store: ``"G1/S transition"`` would be a folder in it."""
    return re.sub(r"[/\0]", "_", name) if name.strip(". ") else f"set{name.replace('.', '_')}"


def _read_gmt(path: Path) -> dict[str, list[str]]:
    """Sets of a GMT file: a set in a line, with its name, a description and its genes, separated by tabs."""
    if not path.is_file():
        raise FileNotFoundError(f"Expected a GMT file at {path}: there is none.")
    lines = [line.split("\t") for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
    if not lines or any(len(line) < 3 for line in lines):
        raise ValueError(
            f"Expected {path.name} to be a GMT file (a line for each set: name, description, genes, separated by tabs)."
        )
    return {_column(line[0]): list(dict.fromkeys(gene for gene in line[2:] if gene)) for line in lines}


def _measured_pair(sdata: SpatialData, key: str, table_key: str, layer: str | None) -> Pair | None:
    """Predicted and measured values; None on a slide without counts."""
    others = [name for name in sdata.tables if name != table_key]
    if in_x(sdata.tables[table_key], key) and not others:
        return None
    return compare(sdata, key=key, table_key=table_key, layer=layer)


def _scored(pair: Pair, genes: Sequence[str], layer: str | None) -> tuple[float, float, float, float]:
    """Correlation, noise ceiling, mean correlation of the genes, and half an interval, of a set."""
    at = [pair.genes.index(gene) for gene in genes if gene in pair.genes]
    rows = []
    for name in pd.unique(pair.regions):
        some = (pair.regions == name) & pair.scored
        if some.sum() < 3 or not at:
            continue
        measured, predicted = pair.measured[some][:, at], pair.predicted[some][:, at]
        residual = measured.mean(axis=1) - predicted.mean(axis=1)
        rows.append(
            (
                *metrics.set_scores(measured, predicted, *_counts(pair, pair.rows[some], at, layer)),
                metrics.pearson(measured, predicted, constant=0.0).mean(),
                np.quantile(np.abs(residual - residual.mean()), LEVEL),
            )
        )
    found = np.array(rows or [(np.nan,) * 4]).mean(axis=0)
    return float(found[0]), float(found[1]), float(found[2]), float(found[3])


def _counts(pair: Pair, rows: np.ndarray, at: Sequence[int], layer: str | None) -> tuple[Any, np.ndarray]:
    """Raw counts of some genes (None where there are none), and those of all genes together (n,)."""
    if not has_counts(pair.source, layer):
        return None, np.empty(0)
    counts = matrix(pair.source, layer)[rows]
    columns = pair.source.var_names.get_indexer([pair.genes[i] for i in at])
    return counts[:, columns], np.asarray(counts.sum(axis=1), dtype=float).ravel()
