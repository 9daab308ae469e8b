from __future__ import annotations

from collections.abc import Callable
from typing import Any

import anndata as ad
import numpy as np
import pytest
import scanpy as sc
import scipy.sparse as sp
import torch

from nh2st_scverse.data.expression import (
    choose_genes,
    expression,
    is_logged,
    log_normalise,
    matrix,
    measured,
    morans_i,
    smooth,
)


@pytest.fixture
def counts() -> np.ndarray:
    rng = np.random.default_rng(0)
    found = rng.poisson(rng.gamma(1, 3, (1, 30)) * rng.gamma(4, 0.5, (40, 1)))
    found[7] = 0  # an empty spot
    return found


def table(x: object) -> ad.AnnData:
    adata = ad.AnnData(x)
    adata.obs_names = [f"s{i}" for i in range(adata.n_obs)]
    adata.var_names = [f"g{i}" for i in range(adata.n_vars)]
    return adata


KINDS: dict[str, Callable[[np.ndarray], object]] = {
    "int": lambda c: c.astype(np.int64),
    "uint8": lambda c: c.astype(np.uint8),
    "float32": lambda c: c.astype(np.float32),
    "float64": lambda c: c.astype(float),
    "csr": lambda c: sp.csr_matrix(c.astype(np.float32)),
    "csc int": lambda c: sp.csc_matrix(c.astype(np.int32)),
    "csr array": lambda c: sp.csr_array(c.astype(np.float32)),
}


@pytest.mark.parametrize("kind", KINDS)
def test_measured_is_scanpys_normalisation_for_every_kind_of_counts(counts: np.ndarray, kind: str) -> None:
    reference = table(counts.astype(np.float64))
    sc.pp.normalize_total(reference, target_sum=1e4)
    sc.pp.log1p(reference)
    adata = table(KINDS[kind](counts))
    found = measured(adata)
    assert found.dtype == np.float32
    assert np.allclose(found, reference.X, atol=1e-5)
    assert np.array_equal(found, measured(table(counts)))  # to the last bit
    assert (found[7] == 0).all()


def test_sparse_counts_stay_sparse_and_give_the_same_panel(counts: np.ndarray) -> None:
    adata = table(sp.csr_matrix(counts))
    found = expression(matrix(adata, None), logged=False)
    assert sp.issparse(found) and found.dtype == np.float32
    assert np.array_equal(found.toarray(), measured(adata))
    assert np.array_equal(adata.X.toarray(), counts)
    assert np.array_equal(measured(adata, columns=np.array([7, 2])), measured(adata)[:, [7, 2]])
    names = [list(adata.var_names), list(adata.var_names[::-1])]
    for genes in ("highest_mean", "highly_variable", ["g7", "g2"]):
        panels = [choose_genes([x[:20], x[20:, ::-1]], names, genes, 10) for x in (found, found.toarray())]
        assert panels[0] == panels[1]


def test_layers_are_read_instead_of_x(counts: np.ndarray) -> None:
    adata = table(np.zeros_like(counts))
    adata.layers["counts"] = counts
    assert np.array_equal(measured(adata, "counts"), measured(table(counts)))
    with pytest.raises(
        KeyError, match=r"layer='nothing' is not there. Available layers: \['counts'\]; layer=None means X"
    ):
        measured(adata, "nothing")


def test_logarithms_are_noticed_and_used_as_they_are(counts: np.ndarray) -> None:
    logged = log_normalise(counts.astype(np.float32))
    for x in (logged, sp.csr_matrix(logged)):
        assert is_logged(x)
        assert np.array_equal(measured(table(x)), logged)
    assert not is_logged(counts)
    assert not is_logged(np.minimum(counts, 5))  # shallow counts are whole numbers still
    assert not is_logged(sp.csr_matrix((3, 4)))


def test_fractions_too_large_for_logarithms_are_counts(counts: np.ndarray, caplog: pytest.LogCaptureFixture) -> None:
    found = measured(table(counts * 40.5))
    assert np.allclose(found, measured(table(counts)), atol=1e-5)
    assert "no whole numbers and no logarithms: normalised as counts" in caplog.text


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda a: a.X.__setitem__((3, 4), np.nan), "finite counts in X, found 1 NaN or infinite"),
        (lambda a: a.X.__setitem__((3, 4), np.inf), "finite counts in X, found 1 NaN or infinite"),
        (lambda a: a.X.__setitem__((3, 4), -2), "negative values down to -2.*pass layer= with the counts"),
        (
            lambda a: setattr(a, "var_names", ["g"] * 2 + list(a.var_names[2:])),
            "unique gene names.*'g'.*var_names_make_unique",
        ),
        (
            lambda a: setattr(a, "obs_names", ["s"] * 2 + list(a.obs_names[2:])),
            "unique spot names.*'s'.*obs_names_make_unique",
        ),
        (lambda a: setattr(a, "X", None), "expression in X, found nothing"),
    ],
)
@pytest.mark.filterwarnings("ignore:.*names are not unique")
def test_unusable_expression(counts: np.ndarray, change: Callable[[ad.AnnData], None], message: str) -> None:
    adata = table(counts.astype(float))
    change(adata)
    with pytest.raises(ValueError, match=message):
        measured(adata)


def test_a_listed_panel_keeps_its_order(counts: np.ndarray) -> None:
    values, names = counts.astype(float), [f"g{i}" for i in range(30)]
    assert choose_genes([values], [names], ["g7", "g2", "g20"], 1) == ["g7", "g2", "g20"]
    assert choose_genes([values], [names], np.array(["g7", "g2"]), None) == ["g7", "g2"]


@pytest.mark.parametrize(
    ("genes", "message"),
    [
        ([], "panel of genes, found an empty list.*highest_mean"),
        (["g1", "g2", "g1"], "every gene of the panel once"),
        (["g1", "x", "y"], "2 of 3 genes of the panel are not in every training section.*'x', 'y'.*share 30 genes"),
        ("best", r"genes to be one of \['highest_mean', 'highly_variable', 'spatially_variable'\], found 'best'"),
        (["g0", "g1"], "genes that vary, found all 2 listed ones constant"),
    ],
)
def test_bad_panels(counts: np.ndarray, genes: object, message: str) -> None:
    values = counts.astype(float)
    values[:, :2] = 1.5
    with pytest.raises(ValueError, match=message):
        choose_genes([values], [[f"g{i}" for i in range(30)]], genes, None)  # type: ignore[arg-type]


def test_highest_mean_over_sections_with_genes_in_another_order() -> None:
    rng = np.random.default_rng(3)
    a, b = rng.random((20, 6)) * [9, 2, 3, 4, 5, 0], rng.random((35, 5)) * [1, 2, 3, 9, 30]
    first, second = list("ABCDEF"), list("FEDCX")
    shared = list("CDEF")
    values = np.concatenate([a[:, [first.index(g) for g in shared]], b[:, [second.index(g) for g in shared]]])
    order = [shared[i] for i in np.argsort(-values.mean(axis=0))]
    assert choose_genes([a, b], [first, second], "highest_mean", None) == order
    assert choose_genes([a, b], [first, second], "highest_mean", 2) == order[:2]
    with pytest.raises(ValueError, match=r"no gene in common.*one naming"):
        choose_genes([a, b], [first, list("vwxyz")], "highest_mean", None)


def test_constant_genes_are_not_chosen() -> None:
    values = np.random.default_rng(0).random((20, 4))
    values[:, 1] = 100
    assert set(choose_genes([values], [list("abcd")], "highest_mean", 4)) == set("acd")
    with pytest.raises(ValueError, match="every shared gene is constant"):
        choose_genes([np.full((20, 4), 3.0)], [list("abcd")], "highest_mean", 4)


def test_choosing_genes_leaves_the_number_of_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    find, before = sc.pp.highly_variable_genes, torch.get_num_threads()

    def raising(*args: Any, **given: Any) -> Any:
        torch.set_num_threads(before + 1)  # as scanpy's first use of numba does
        return find(*args, **given)

    monkeypatch.setattr(sc.pp, "highly_variable_genes", raising)
    values = log_normalise(np.random.default_rng(0).poisson(5, (30, 8)).astype(np.float32))
    choose_genes([values], [list("abcdefgh")], "highly_variable", 4)
    assert torch.get_num_threads() == before


def test_highly_variable_is_scanpys_ranking() -> None:
    rng = np.random.default_rng(0)
    rates = rng.gamma(2, 10, 200) * np.exp(rng.normal(0, rng.uniform(0.05, 1.2, 200), (150, 200)))
    values = log_normalise(rng.poisson(rates).astype(np.float32))
    names = [f"g{i:03d}" for i in range(200)]
    adata = ad.AnnData(values.copy())
    adata.var_names = names
    sc.pp.highly_variable_genes(adata, n_top_genes=20)
    assert set(choose_genes([values], [names], "highly_variable", 20)) == {
        names[i] for i in np.flatnonzero(adata.var["highly_variable"])
    }
    halves = choose_genes([values[:75], values[75:]], [names, names], "highly_variable", 20)
    assert len(set(halves) & {names[i] for i in np.flatnonzero(adata.var["highly_variable"])}) >= 12


def test_smoothing_on_a_square_array_equals_a_loop() -> None:
    rng = np.random.default_rng(0)
    row, column = np.stack(np.mgrid[:7, :6], axis=-1).reshape(-1, 2)[rng.random(42) < 0.8].T
    values = rng.random((len(row), 3)).astype(np.float32)
    found = smooth(values, row, column, hexagonal=False)
    for i in range(len(row)):
        near = [j for j in range(len(row)) if abs(row[j] - row[i]) <= 1 and abs(column[j] - column[i]) <= 1]
        assert np.allclose(found[i], values[near].mean(axis=0))


def test_smoothing_on_a_hexagonal_array_takes_the_six_around() -> None:
    rng = np.random.default_rng(0)
    row, column = np.mgrid[:8, :14]
    keep = ((row + column) % 2 == 0) & (rng.random(row.shape) < 0.85)
    row, column = row[keep], column[keep]
    at = np.stack([column * 50.0, row * 50 * np.sqrt(3)], axis=1)
    values = rng.random((len(row), 3)).astype(np.float32)
    found = smooth(values, row, column, hexagonal=True)
    numbers = []
    for i in range(len(row)):
        near = np.flatnonzero(np.hypot(*(at - at[i]).T) < 110)
        numbers.append(len(near))
        assert np.allclose(found[i], values[near].mean(axis=0))
    assert max(numbers) == 7


def test_smoothing_a_large_array_needs_no_table_of_all_pairs() -> None:
    row, column = np.stack(np.mgrid[:400, :300], axis=-1).reshape(-1, 2).T  # all pairs would be 14 GB
    found = smooth(np.stack([row, column], axis=1).astype(np.float32), row, column, hexagonal=False)
    inner = (row > 0) & (row < 399) & (column > 0) & (column < 299)
    assert np.allclose(found[inner], np.stack([row, column], axis=1)[inner], rtol=1e-5)


def test_spatially_variable_is_morans_i_of_squidpy() -> None:
    import squidpy as sq

    rng = np.random.default_rng(0)
    xy = np.stack(np.meshgrid(np.arange(12.0), np.arange(10.0)), axis=-1).reshape(-1, 2) + 0.01 * rng.normal(
        size=(120, 2)
    )
    smooth = np.sin(xy[:, :1] / 2 + np.arange(6)) + 1
    values = np.where(rng.random((120, 14)) < 0.4, 0, rng.random((120, 14)))
    values[:, :6] += smooth
    values[:, 13] = 2.0  # constant
    adata = ad.AnnData(values, obsm={"spatial": xy})
    sq.gr.spatial_neighbors_knn(adata, n_neighs=6)
    sq.gr.spatial_autocorr(adata, mode="moran", n_perms=None, transformation=True, use_raw=False)
    expected = adata.uns["moranI"]["I"].reindex(adata.var_names).to_numpy()[:13]
    for x in (values, sp.csr_matrix(values)):
        found = morans_i(x, xy)
        assert np.allclose(found[:13], expected, atol=1e-6) and found[13] == 0
    names = [f"g{i}" for i in range(14)]
    chosen = choose_genes([values, values[::-1]], [names, names], "spatially_variable", 6, [xy, xy[::-1]])
    assert set(chosen) == set(names[:6])
    assert (morans_i(values[:1], xy[:1]) == 0).all()
