"""Sets of genes as one, and what is high inside a region: against drawn truth and plain references."""

from __future__ import annotations

from pathlib import Path

import geopandas as gpd
import numpy as np
import pandas as pd
import pytest
import scipy.stats
import shapely
from scipy.spatial.distance import cdist
from spatialdata import SpatialData
from spatialdata.models import ShapesModel
from spatialdata.transformations import get_transformation

import nh2st_scverse as nh
from nh2st_scverse._constants import LOG_UNIT
from nh2st_scverse.data.expression import measured
from nh2st_scverse.tl import _region

N_GENES = 12


@pytest.fixture
def predicted(two: SpatialData) -> SpatialData:
    """Measured values and noise, as a prediction of the genes of three programs."""
    table = two["table"]
    values = measured(table)
    names = [g for p in ("TUMOR", "STROMA", "NOISE") for g in table.var_names if g.startswith(p)][: 3 * 60]
    some = [g for p in ("TUMOR", "STROMA", "NOISE") for g in [n for n in names if n.startswith(p)][:N_GENES]]
    at = np.sort(table.var_names.get_indexer(some))
    noise = np.random.default_rng(0).normal(size=(table.n_obs, len(at)))
    table.layers["nh2st"] = np.full(table.shape, np.nan, dtype=np.float32)
    table.layers["nh2st"][:, at] = values[:, at] + values[:, at].std(axis=0) * noise
    table.var["nh2st"] = np.isin(np.arange(table.n_vars), at)
    table.var["nh2st_pearson"] = np.where(table.var["nh2st"], 0.5, np.nan)
    table.uns["nh2st"] = {"unit": LOG_UNIT, "cross_fitted": True, "json": "{}"}
    return two


def of(table: object, program: str) -> list[str]:
    return [g for g in table.var_names[table.var["nh2st"]] if g.startswith(program)]  # type: ignore[attr-defined]


# --------------------------------------------------------------------------------------------------------- modules


def test_a_module_is_the_mean_of_its_genes_and_better_than_they_are(predicted: SpatialData) -> None:
    table = predicted["table"]
    sets = {"tumour": of(table, "TUMOR"), "stroma": [*of(table, "STROMA"), "UNKNOWN"]}
    found = nh.tl.modules(predicted, sets)
    assert found["n_predicted"].to_dict() == {"tumour": N_GENES, "stroma": N_GENES}
    assert found["n_genes"].to_dict() == {"tumour": N_GENES, "stroma": N_GENES + 1}
    written = table.obsm["nh2st_modules"]
    at = table.var_names.get_indexer(sets["tumour"])
    assert np.allclose(written["tumour"], table.layers["nh2st"][:, at].mean(axis=1))
    truth, r, genes, widths = measured(table)[:, at], [], [], []
    for region in table.obs["region"].cat.categories:
        rows = (table.obs["region"] == region).to_numpy()
        a, b = truth[rows].mean(axis=1), written["tumour"].to_numpy()[rows]
        r.append(np.corrcoef(a, b)[0, 1])
        genes += [
            np.corrcoef(x, y)[0, 1] for x, y in zip(truth[rows].T, table.layers["nh2st"][rows][:, at].T, strict=True)
        ]
        widths.append(np.quantile(np.abs((a - b) - (a - b).mean()), 0.8))
    assert found.loc["tumour", "pearson"] == pytest.approx(np.mean(r), abs=1e-5)
    assert found.loc["tumour", "mean_gene_pearson"] == pytest.approx(np.mean(genes), abs=1e-5)
    assert found.loc["tumour", "width"] == pytest.approx(np.mean(widths), abs=1e-5)
    assert (found["pearson"] > found["mean_gene_pearson"] + 0.1).all()
    assert (found["ceiling"] >= found["pearson"] - 0.02).all() and (found["ceiling"] <= 1).all()


def test_the_ceiling_of_a_mean_is_that_of_its_reliability() -> None:
    """Of Poisson counts with a known rate: the correlation of the mean of the genes with its truth."""
    rng = np.random.default_rng(0)
    rate = np.exp(rng.normal(size=(4000, 1)) * 0.5) * np.array([0.3, 0.5, 1.0, 2.0])
    counts, library = rng.poisson(rate), np.full(4000, 5000)
    truth = np.log1p(counts * 2.0).mean(axis=1)  # as normalised
    best = np.log1p(rate * 2.0).mean(axis=1)
    together = nh.metrics.noise_ceiling(counts, library_size=library, together=True)
    assert together.shape == (1,)
    assert together[0] == pytest.approx(np.corrcoef(truth, best)[0, 1], abs=0.03)
    assert together[0] > nh.metrics.noise_ceiling(counts, library_size=library).max()


def test_a_slide_without_counts_takes_its_scores_from_a_reference(predicted: SpatialData, tmp_path: Path) -> None:
    table = predicted["table"]
    reference = nh.tl.modules(predicted, {"tumour": of(table, "TUMOR")})
    slide = SpatialData(shapes=dict(predicted.shapes), tables={"table": table[:, table.var["nh2st"]].copy()})
    alone = slide["table"]
    alone.X, alone.uns["nh2st"] = alone.layers.pop("nh2st"), {"values_in": "X", "written": "[]", "unit": LOG_UNIT}
    for key in ("nh2st_modules",):
        del alone.obsm[key], alone.uns[key]
    found = nh.tl.modules(slide, {"tumour": of(alone, "TUMOR"), "few": ["TUMOR01", "X"]}, reference=reference)
    assert list(found.index) == ["tumour"]
    assert found.loc["tumour", "pearson"] == reference.loc["tumour", "pearson"]
    assert np.isnan(nh.tl.modules(slide, {"tumour": of(alone, "TUMOR")})["pearson"]).all()
    assert alone.obsm["nh2st_modules"].shape == (alone.n_obs, 1)


def test_sets_from_a_file_and_mistakes(predicted: SpatialData, tmp_path: Path) -> None:
    genes = of(predicted["table"], "TUMOR")
    gmt = tmp_path / "sets.gmt"
    gmt.write_text("tumour\thttp://x\t" + "\t".join(genes) + "\t\n\nnone\t\tA\tB\tC\n")
    assert list(nh.tl.modules(predicted, gmt).index) == ["tumour"]
    gmt.write_text("G1/S\t\t" + "\t".join(genes) + "\n")
    assert list(nh.tl.modules(predicted, gmt).index) == ["G1_S"]  # as a column of obsm it would be a folder of zarr
    gmt.write_text("tumour,A,B\n")
    with pytest.raises(ValueError, match=r"Expected sets.gmt to be a GMT file"):
        nh.tl.modules(predicted, gmt)
    with pytest.raises(FileNotFoundError, match="Expected a GMT file"):
        nh.tl.modules(predicted, tmp_path / "no.gmt")
    with pytest.raises(ValueError, match=r"at least 3 predicted genes, found \{'a': 0\}.*n_genes="):
        nh.tl.modules(predicted, {"a": ["A", "B", "C"]})
    for wrong in (["TUMOR01"], {}, {"a": "TUMOR01"}, {1: ["A"]}, None):
        with pytest.raises(TypeError, match="Expected gene_sets= to map"):
            nh.tl.modules(predicted, wrong)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="Expected unique genes of the set 'a'"):
        nh.tl.modules(predicted, {"a": ["A", "A"]})
    predicted["table"].obsm["nh2st_modules"] = np.zeros((predicted["table"].n_obs, 2))
    del predicted["table"].uns["nh2st_modules"]
    with pytest.raises(ValueError, match=r"would overwrite obsm\['nh2st_modules'\]"):
        nh.tl.modules(predicted, {"a": genes})


# --------------------------------------------------------------------------------------------------------- regions


def test_finds_the_program_of_a_drawn_region(predicted: SpatialData) -> None:
    table = predicted["table"]
    found = nh.tl.region(predicted, "tissue", value="tumour")
    assert set(found.index[:N_GENES]) & set(of(table, "NOISE")) == set()
    assert (found.loc[of(table, "TUMOR"), "auc"] > 0.6).all() and (found.loc[of(table, "TUMOR"), "q"] < 0.05).all()
    assert (found.loc[of(table, "NOISE"), "q"] > 0.05).mean() > 0.8
    inside, gene = (table.obs["tissue"] == "tumour").to_numpy(), of(table, "TUMOR")[0]
    values = table.layers["nh2st"][:, table.var_names.get_loc(gene)]
    auc, effect, sizes = [], [], []
    for region in table.obs["region"].cat.categories:
        rows = (table.obs["region"] == region).to_numpy()
        a, b = values[rows & inside], values[rows & ~inside]
        auc.append(scipy.stats.mannwhitneyu(a, b).statistic / len(a) / len(b))
        effect.append(a.mean() - b.mean())
        sizes.append(rows.sum())
    assert found.loc[gene, "auc"] == pytest.approx(np.average(auc, weights=sizes), abs=1e-6)
    assert found.loc[gene, "effect"] == pytest.approx(np.average(effect, weights=sizes), abs=1e-5)
    assert nh.tl.region(predicted, inside).equals(found)


def test_polygons_are_a_region(predicted: SpatialData) -> None:
    shapes = predicted["section_0_spots"]
    centre = shapes.geometry.iloc[len(shapes) // 2]
    drawn = gpd.GeoDataFrame(geometry=[centre.buffer(300), shapely.Point(-5000, -5000).buffer(10)])
    same = get_transformation(shapes, get_all=True)
    predicted["drawn"] = ShapesModel.parse(drawn, transformations=same)
    inside = np.zeros(predicted["table"].n_obs, dtype=bool)
    ids = predicted["table"].obs[predicted["table"].uns["spatialdata_attrs"]["instance_key"]]
    first = (predicted["table"].obs["region"] == "section_0_spots").to_numpy()
    near = shapes.geometry.distance(centre) < 300
    inside[first] = near.loc[ids[first]].to_numpy()
    assert 5 < inside.sum() < 60
    assert nh.tl.region(predicted, "drawn").equals(nh.tl.region(predicted, inside))


@pytest.mark.parametrize("reach", [100.0, 400.0])
def test_p_is_uniform_on_random_regions(reach: float) -> None:
    """Genes that vary smoothly over tissue and regions that are one piece, which know nothing of each other."""
    rng = np.random.default_rng(0)
    xy = 100.0 * np.stack(np.meshgrid(np.arange(24), np.arange(24)), axis=-1).reshape(-1, 2)
    root = np.linalg.cholesky(np.exp(-(cdist(xy, xy) ** 2) / 2 / reach**2) + 1e-6 * np.eye(len(xy)))
    p, naive = [], []
    for _ in range(12):
        y = root @ rng.normal(size=(len(xy), 40))
        x = (np.linalg.norm(xy - rng.uniform(300, 2000, 2), axis=1) < 500).astype(float)
        x, y = x - x.mean(), y - y.mean(axis=0)
        product = (x @ x) * (y**2).sum(axis=0)
        n = np.clip(1 + product / _region._variance(x, y, xy), 3, len(x))
        r = (x @ y) / np.sqrt(product)
        for values, size in ((p, n), (naive, np.float64(len(x)))):
            values += list(2 * scipy.stats.t.sf(np.abs(r) * np.sqrt((size - 2) / (1 - r**2)), size - 2))
    assert 0.02 < np.mean(np.array(p) < 0.05) < 0.09 and 0.4 < np.mean(np.array(p) < 0.5) < 0.6
    assert np.mean(np.array(naive) < 0.05) > 0.25  # what counting spots would say


def test_the_variance_of_many_spots_is_told_by_some(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(0)
    xy = 100.0 * np.stack(np.meshgrid(np.arange(40), np.arange(40)), axis=-1).reshape(-1, 2)
    smooth = np.stack([np.sin(xy[:, 0] / (300 + 90 * i) + i) for i in range(6)], axis=1)
    y = smooth + rng.normal(size=smooth.shape)
    x = (np.linalg.norm(xy - 1800, axis=1) < 700).astype(float)
    x, y = x - x.mean(), y - y.mean(axis=0)
    monkeypatch.setattr(_region, "MOST_SPOTS", 10_000)
    whole = _region._variance(x, y, xy)
    monkeypatch.setattr(_region, "MOST_SPOTS", 800)
    assert np.allclose(_region._variance(x, y, xy), whole, rtol=0.25)


def test_mistakes_of_regions(predicted: SpatialData) -> None:
    table = predicted["table"]
    with pytest.raises(KeyError, match=r"Expected region= to be a column of obs .* or shapes .*, found 'nothing'"):
        nh.tl.region(predicted, "nothing")
    with pytest.raises(KeyError, match=r"Expected value= to name one of \[.*'tumour'"):
        nh.tl.region(predicted, "tissue")
    with pytest.raises(KeyError, match=r"Expected 'moon' in obs\['tissue'\], found \["):
        nh.tl.region(predicted, "tissue", value="moon")
    with pytest.raises(ValueError, match=r"or \d+ booleans, found an array of int64 \(3,\)"):
        nh.tl.region(predicted, [1, 2, 3])
    one = pd.Series(np.arange(table.n_obs) == 0, index=table.obs_names)
    table.obs["one"] = one
    with pytest.raises(ValueError, match=r"Expected at least 5 predicted spots inside .* found \{'section_0_spots': 1"):
        nh.tl.region(predicted, "one")


def test_spots_without_a_value_are_told(predicted: SpatialData, caplog: pytest.LogCaptureFixture) -> None:
    table = predicted["table"]
    inside = (table.obs["tissue"] == "tumour").to_numpy()
    expected = nh.tl.region(predicted, inside)
    table.obs["drawn"] = pd.array(inside, dtype="boolean")
    table.obs.loc[~inside & (np.arange(table.n_obs) < 20), "drawn"] = pd.NA
    pd.testing.assert_frame_equal(nh.tl.region(predicted, "drawn"), expected)
    assert "spots have no value in obs['drawn']: they count as outside" in caplog.text
