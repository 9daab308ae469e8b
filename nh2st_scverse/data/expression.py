"""Measured expression in the unit of the training target, and the choice of the gene panel."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import scipy.sparse as sp
from anndata import AnnData
from scipy.spatial import cKDTree

from nh2st_scverse._constants import TARGET_SUM
from nh2st_scverse._logging import logger
from nh2st_scverse._threads import threads
from nh2st_scverse._validators import as_genes, check_one_of, check_unique

PANELS = ("highest_mean", "highly_variable", "spatially_variable")
N_ADJACENT = 6  # spots that Moran's I compares a spot with: those around it on a hexagonal array


def matrix(adata: AnnData, layer: str | None) -> Any:
    """X or a layer, checked: finite, not negative, unique genes. (n_spots, n_genes), sparse or dense."""
    check_unique(adata.var_names, what="gene names", remedy="adata.var_names_make_unique()")
    check_unique(adata.obs_names, what="spot names", remedy="adata.obs_names_make_unique()")
    available = [name for name in adata.layers if name is not None]
    if layer is not None and layer not in available:
        raise KeyError(f"layer={layer!r} is not there. Available layers: {available}; layer=None means X.")
    x = adata.X if layer is None else adata.layers[layer]
    name = "X" if layer is None else f"layer {layer!r}"
    if x is None:
        raise ValueError(f"Expected expression in {name}, found nothing. Pass layer= one of {available}.")
    x = numbers(x, name)
    values = x.data if sp.issparse(x) else np.asarray(x)
    if not np.isfinite(values).all():
        raise ValueError(
            f"Expected finite counts in {name}, found {int((~np.isfinite(values)).sum())} NaN or infinite. Set them to "
            f"0, leave their spots or genes out, or pass layer= with the counts. Available layers: {available}."
        )
    if values.size and values.min() < 0:
        raise ValueError(
            f"Expected counts (or their logarithm) in {name}, found negative values down to {values.min():.3g}. Scaled "
            f"data cannot be used: pass layer= with the counts. Available layers: {available}."
            + (
                " What is in raw becomes one by adata.layers['raw'] = adata.raw[:, adata.var_names].X."
                if adata.raw is not None
                else ""
            )
        )
    return x


def numbers(x: Any, name: str) -> Any:
    """A matrix in memory, sparse or dense, of numbers; one that is lazy, on disk or of objects is read."""
    for read in ("compute", "to_memory"):  # dask, and matrices that stay on disk
        if hasattr(x, read):
            x = getattr(x, read)()
    if not sp.issparse(x):
        x = np.asarray(x)
    elif x.format not in ("csr", "csc"):
        x = x.tocsr()
    if x.dtype == np.float16:  # which scipy does not know, and sums exceed
        return x.astype(np.float32)
    if x.dtype.kind in "biuf":
        return x
    try:
        return x.astype(np.float64)
    except (TypeError, ValueError) as error:
        raise ValueError(
            f"Expected numbers in {name}, found values of type {x.dtype} ({error}). Make them numbers: "
            "adata.X = adata.X.astype('float32'), or pass layer= with the counts."
        ) from None


def is_logged(x: Any) -> bool:
    """Whether values are logarithms already: not whole numbers, and none as large as a count gets."""
    values = x.data if sp.issparse(x) else np.asarray(x)
    return bool(values.size and values.max() < 20 and np.any(values != np.round(values)))


def expression(x: Any, *, logged: bool) -> Any:
    """What :func:`measured` gives, (n_spots, n_genes) float32; sparse where the table is.

    A million bins by all genes do not fit in memory otherwise.

    Parameters
    ----------
    x
        From :func:`matrix`.
    logged
        Whether it holds logarithms, which stay as they are.
    """
    x = sp.csr_matrix(x) if sp.issparse(x) else np.asarray(x)
    if logged:
        return x.astype(np.float32)
    values: Any = x.data if sp.issparse(x) else x
    if not np.array_equal(values, np.round(values)):
        logger.warning("Values are no whole numbers and no logarithms: normalised as counts.")
    return log_normalise(x)


def measured(adata: AnnData, layer: str | None = None, columns: np.ndarray | None = None) -> np.ndarray:
    """Expression as the model is trained on it: ``log1p`` of counts per ten thousand.

    Parameters
    ----------
    adata
        A table of spots x genes.
    layer
        Layer with counts; None means X. Values that are logarithms already are used as they are.
    columns
        Positions of the wanted genes; None: all. Counts are per ten thousand of all genes in any case.

    Returns
    -------
    (n_spots, n_genes) float32.

    Raises
    ------
    KeyError
        No such layer.
    ValueError
        Negative, NaN or infinite values; duplicated gene or spot names.

    Examples
    --------
    >>> import nh2st_scverse as nh
    >>> sdata = nh.datasets.synthetic(width_um=1200)
    >>> nh.data.expression.measured(sdata.tables["table"]).min() >= 0
    np.True_
    """
    x = matrix(adata, layer)
    values = expression(x, logged=is_logged(x))
    return to_dense(values if columns is None else values[:, columns])


def to_dense(x: Any) -> np.ndarray:
    """A float32 array of a sparse or dense matrix."""
    return np.asarray(x.toarray() if sp.issparse(x) else x, dtype=np.float32)


def log_normalise(counts: Any, target_sum: float = TARGET_SUM) -> Any:
    """``log1p`` of counts scaled to `target_sum` per spot; empty spots stay zero. (n, genes) float32, sparse or not."""
    library = np.asarray(counts.sum(axis=1, dtype=np.float64)).reshape(-1, 1)
    scale = np.divide(target_sum, library, out=np.zeros_like(library), where=library > 0)
    if not sp.issparse(counts):
        return np.log1p(counts * scale).astype(np.float32)
    found = sp.csr_matrix(counts, dtype=np.float32, copy=True)
    found.data = np.log1p(found.data * np.repeat(scale[:, 0], np.diff(found.indptr))).astype(np.float32)
    return found


def smooth(expression: np.ndarray, rows: np.ndarray, columns: np.ndarray, hexagonal: bool) -> np.ndarray:
    """Average every spot with the adjacent spots of the array, as the paper's targets are.

    On a square array adjacent means that row and column differ by at most 1; on a hexagonal one that the spot is one
    of the six around it (same row and two columns away, or one row and one column), which a square window misses.
    """
    at = np.stack([rows, columns], axis=1).astype(float)
    i, j = cKDTree(at).query_pairs(2.5 if hexagonal else 1.5, p=np.inf, output_type="ndarray").T
    dr, dc = np.abs(at[i] - at[j]).T
    near = (((dr == 0) & (dc <= 2)) | ((dr == 1) & (dc <= 1))) if hexagonal else (dr <= 1) & (dc <= 1)
    i, j = i[near], j[near]
    own = np.arange(len(at))
    pairs = np.concatenate([own, i, j]), np.concatenate([own, j, i])
    adjacent = sp.csr_matrix((np.ones(len(pairs[0])), pairs), shape=(len(at), len(at)))
    return np.asarray(adjacent @ expression / adjacent.sum(axis=1), dtype=np.float32)


def choose_genes(
    expressions: Sequence[Any],
    names: Sequence[Sequence[str]],
    genes: str | Sequence[str],
    n_genes: int | None,
    places: Sequence[np.ndarray] = (),
) -> list[str]:
    """Choose the gene panel on the training sections.

    Parameters
    ----------
    expressions
        Target of each section, (n_spots, n_genes), sparse or dense.
    names
        Genes of each section.
    genes
        ``"highest_mean"``, ``"highly_variable"``, ``"spatially_variable"``, or the panel itself.
    n_genes
        Size of a chosen panel; None takes all genes that every section has.
    places
        Spots (n_spots, 2) of each section, for ``"spatially_variable"``.

    Raises
    ------
    ValueError
        An empty panel, no gene in common, or listed genes that a section lacks.
    """
    common = set(names[0]).intersection(*names[1:])
    if not isinstance(genes, str):
        panel = as_genes(genes)
        lacking = [gene for gene in panel if gene not in common]
        if lacking:
            raise ValueError(
                f"{len(lacking)} of {len(panel)} genes of the panel are not in every training section, e.g. "
                f"{lacking[:5]}. The sections share {len(common)} genes, e.g. {sorted(common)[:5]}: leave the others "
                "out of genes=, or use one naming (symbols or Ensembl ids)."
            )
        columns = [_positions(list(n), panel) for n in names]
        values = np.concatenate([to_dense(e[:, c]) for e, c in zip(expressions, columns, strict=True)])
        if not (values.max(axis=0) > values.min(axis=0)).any():
            raise ValueError(
                f"Expected genes that vary, found all {len(panel)} listed ones constant over the training spots. Pass "
                f"other names, or genes= one of {list(PANELS)}."
            )
        return panel
    check_one_of(genes, PANELS, argument="genes")
    if not common:
        raise ValueError(
            f"The training sections have no gene in common: the first has e.g. {list(names[0][:3])}, another e.g. "
            f"{list(names[-1][:3])}. Use one naming (symbols or Ensembl ids) in all of them."
        )
    shared = sorted(common)
    columns = [_positions(list(n), shared) for n in names]
    of_section = [np.stack(_column_statistics(e))[:, c] for e, c in zip(expressions, columns, strict=True)]
    total, highest, lowest = np.stack(of_section, axis=1)  # (sections, shared genes) each
    if genes == "highest_mean":
        score = total.sum(axis=0) / sum(e.shape[0] for e in expressions)
    elif genes == "spatially_variable":
        found = [morans_i(e[:, c], xy) for e, c, xy in zip(expressions, columns, places, strict=True)]
        score = np.average(found, axis=0, weights=[e.shape[0] for e in expressions])
    else:
        score = _variability([e[:, c] for e, c in zip(expressions, columns, strict=True)])
    score = np.where(highest.max(axis=0) > lowest.min(axis=0), score, -np.inf)  # constant genes cannot be learnt
    order = np.argsort(-score, kind="stable")
    order = order[np.isfinite(score[order])][:n_genes]
    if not len(order):
        raise ValueError(
            f"Expected a gene panel, found none: every shared gene is constant over the training spots ({len(shared)}, "
            f"e.g. {shared[:5]}). Is it the right layer=?"
        )
    return [shared[i] for i in order]


def morans_i(expression: Any, xy: np.ndarray) -> np.ndarray:
    """Moran's I (G,) of genes over spots: of a spot and the mean of those around it; 0 where a gene is constant.

    Parameters
    ----------
    expression
        (n_spots, G), sparse or dense.
    xy
        (n_spots, 2) in any unit.
    """
    n = len(xy)
    k = min(N_ADJACENT, n - 1)
    if k < 1:
        return np.zeros(expression.shape[1])
    near = cKDTree(xy).query(xy, k + 1)[1][:, 1:]  # (n, k)
    weights = sp.csr_matrix((np.full(n * k, 1 / k), (np.repeat(np.arange(n), k), near.ravel())), shape=(n, n))
    x = sp.csr_matrix(expression, dtype=np.float64)
    mean = np.asarray(x.mean(axis=0)).ravel()
    of_column = np.asarray(weights.sum(axis=0)).ravel()
    products = np.asarray((weights @ x).multiply(x).sum(axis=0)).ravel()  # zeros stay zeros: nothing is centred
    products -= mean * (x.T @ of_column + x.T @ np.ones(n)) - n * mean**2
    squares = np.asarray(x.multiply(x).sum(axis=0)).ravel() - n * mean**2
    return np.divide(products, squares, out=np.zeros_like(squares), where=squares > 1e-9 * n)


def _column_statistics(x: Any) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Sum, maximum and minimum of each column, (G,) each."""
    if not sp.issparse(x):
        return x.sum(axis=0, dtype=np.float64), x.max(axis=0), x.min(axis=0)
    highest, lowest = (getattr(x, name)(axis=0).toarray()[0] for name in ("max", "min"))
    return np.asarray(x.sum(axis=0, dtype=np.float64)).ravel(), highest, lowest


def _variability(expressions: Sequence[Any]) -> np.ndarray:
    """Normalised dispersion of scanpy's ``highly_variable_genes``, with the sections as batches."""
    import scanpy as sc

    adata = AnnData(
        sp.vstack(expressions, format="csr") if sp.issparse(expressions[0]) else np.concatenate(expressions)
    )
    adata.obs["section"] = np.repeat([str(i) for i in range(len(expressions))], [e.shape[0] for e in expressions])
    batches = "section" if len(expressions) > 1 else None
    with threads():
        found = sc.pp.highly_variable_genes(
            adata, n_top_genes=min(2000, adata.n_vars), batch_key=batches, inplace=False
        )
    return np.nan_to_num(found["dispersions_norm"].to_numpy(dtype=float), nan=-np.inf)


def _positions(available: list[str], wanted: Sequence[str]) -> np.ndarray:
    where = {name: i for i, name in enumerate(available)}
    return np.array([where[name] for name in wanted], dtype=int)
