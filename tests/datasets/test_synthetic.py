from __future__ import annotations

import json

import anndata as ad
import dask.array as da
import numpy as np
import pytest
import spatialdata as sd
from scipy import sparse
from scipy.spatial import cKDTree
from spatialdata.transformations import get_transformation

from nh2st_scverse.datasets import synthetic

REGIONS = ["tumour", "stroma", "immune", "fat"]
FRACTIONS = [f"fraction_{name}" for name in REGIONS]


@pytest.fixture(scope="module")
def small() -> sd.SpatialData:
    return synthetic(width_um=1200)


@pytest.fixture(scope="module")
def two() -> sd.SpatialData:
    return synthetic(2, width_um=1000, seed=4)


@pytest.fixture(scope="module")
def large() -> ad.AnnData:
    """The table of a section of the default size; a coarse image is drawn sooner."""
    return synthetic(microns_per_pixel=3.0).tables["table"]


def pixels(sdata: sd.SpatialData, section: str = "section_0") -> np.ndarray:
    """Full-resolution image, rows x columns x 3."""
    return np.moveaxis(sdata.images[f"{section}_image"]["scale0"]["image"].values, 0, -1)


def log_normalised(table: ad.AnnData) -> np.ndarray:
    counts = table.X.toarray()
    return np.log1p(counts / counts.sum(axis=1, keepdims=True) * 1e4)


def library_size(table: ad.AnnData) -> np.ndarray:
    return np.asarray(table.X.sum(axis=1)).ravel()


def explained(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """R squared of the columns of y by linear regression on x."""
    x = np.column_stack([np.ones(len(x)), x])
    residual = y - x @ np.linalg.lstsq(x, y, rcond=None)[0]
    return 1 - residual.var(axis=0) / y.var(axis=0)


def test_structure(small):
    assert list(small.images) == ["section_0_image"]
    assert list(small.shapes) == ["section_0_spots"]
    assert list(small.tables) == ["table"]
    assert set(small.coordinate_systems) == {"section_0", "section_0_microns"}
    image = small.images["section_0_image"]["scale0"]["image"]
    assert image.dims == ("c", "y", "x")
    assert image.shape == (3, 1200, 1200)
    assert image.dtype == np.uint8
    assert list(image.coords["c"].values) == ["r", "g", "b"]
    assert isinstance(image.data, da.Array)
    assert len(small.images["section_0_image"].children) > 1

    table, spots = small.tables["table"], small.shapes["section_0_spots"]
    assert 80 < table.n_obs < 140
    assert table.n_vars == 300
    assert table.obs_names.is_unique
    assert table.var_names.is_unique
    assert table.uns["spatialdata_attrs"] == {
        "region": ["section_0_spots"],
        "region_key": "region",
        "instance_key": "spot_id",
    }
    assert table.obs["region"].dtype == "category"
    assert (spots.index == table.obs["spot_id"].to_numpy()).all()
    assert (spots["radius"] == 27.5).all()
    np.testing.assert_allclose(np.column_stack([spots.geometry.x, spots.geometry.y]), table.obsm["spatial"])


def test_resolution_is_in_the_microns_system():
    sdata = synthetic(width_um=600, microns_per_pixel=2.0)
    assert sdata.images["section_0_image"]["scale0"]["image"].shape == (3, 300, 300)
    assert sdata.shapes["section_0_spots"]["radius"].iloc[0] == 13.75
    for element in (sdata.images["section_0_image"], sdata.shapes["section_0_spots"]):
        pixel = get_transformation(element, "section_0").to_affine_matrix(("x", "y"), ("x", "y"))
        micron = get_transformation(element, "section_0_microns").to_affine_matrix(("x", "y"), ("x", "y"))
        np.testing.assert_allclose(pixel, np.eye(3))
        np.testing.assert_allclose(micron, np.diag([2.0, 2.0, 1.0]))


def test_layout_does_not_depend_on_the_resolution():
    fine, coarse = (synthetic(width_um=800, microns_per_pixel=m).tables["table"].obs for m in (1.0, 2.0))
    both = fine.index.intersection(coarse.index)
    assert len(both) > 0.9 * max(len(fine), len(coarse))
    np.testing.assert_allclose(fine.loc[both, FRACTIONS], coarse.loc[both, FRACTIONS], atol=0.15)


def test_spots_lie_on_a_hexagonal_grid_of_100_um(small):
    table = small.tables["table"]
    tree = cKDTree(table.obsm["spatial"])
    np.testing.assert_allclose(tree.query(table.obsm["spatial"], k=2)[0][:, 1], 100, rtol=1e-6)
    assert np.median(tree.query_ball_point(table.obsm["spatial"], 101, return_length=True)) == 7  # itself and six
    row, column = table.obs["array_row"].to_numpy(), table.obs["array_col"].to_numpy()
    assert ((row + column) % 2 == 0).all()
    x, y = table.obsm["spatial"].T
    assert np.ptp(x - 50 * column) < 1e-6
    assert np.ptp(y - 50 * np.sqrt(3) * row) < 1e-6


def test_counts_are_whole_sparse_and_of_realistic_depth(small, large):
    x = small.tables["table"].X
    assert isinstance(x, sparse.csr_matrix)
    assert x.dtype == np.float32
    assert (x.data == np.round(x.data)).all()
    assert x.data.min() > 0
    assert 4000 < np.median(library_size(large)) < 6000
    counts = large[:, large.var["program"] == "noise"].X.toarray()
    assert np.median(counts.var(axis=0) / counts.mean(axis=0)) > 1.5  # wider than Poisson
    shallow = synthetic(width_um=600, median_counts=500).tables["table"]
    assert 300 < np.median(library_size(shallow)) < 800


def test_a_default_section_has_about_a_thousand_spots_and_all_regions(large):
    assert 850 < large.n_obs < 1250
    assert (large.obs[FRACTIONS].mean() > 0.06).all()
    assert (large.obs["tissue"].value_counts() > 30).all()
    np.testing.assert_allclose(large.obs[FRACTIONS].sum(axis=1), 1)
    nuclei = large.obs.groupby("tissue", observed=True)["n_nuclei"].mean()
    assert nuclei["fat"] < nuclei["stroma"] < nuclei["tumour"] < nuclei["immune"]


def test_same_seed_same_object_other_seed_another(small):
    again, other = synthetic(width_um=1200), synthetic(width_um=1200, seed=1)
    assert np.array_equal(pixels(small), pixels(again))
    assert (small.tables["table"].X != again.tables["table"].X).nnz == 0
    assert small.tables["table"].obs.equals(again.tables["table"].obs)
    assert not np.array_equal(pixels(small), pixels(other))
    assert not small.tables["table"].obs.equals(other.tables["table"].obs)
    # genes mean the same everywhere, so that a model can be carried over
    assert small.tables["table"].var.equals(other.tables["table"].var)


def test_zarr_round_trip(two, tmp_path):
    two.write(tmp_path / "two.zarr")
    back = sd.read_zarr(tmp_path / "two.zarr")
    before, after = two.tables["table"], back.tables["table"]
    assert (before.X != after.X).nnz == 0
    assert before.obs.equals(after.obs[before.obs.columns])
    assert list(before.var["program"]) == list(after.var["program"])
    assert before.uns["synthetic"] == after.uns["synthetic"]
    assert np.array_equal(pixels(two, "section_1"), pixels(back, "section_1"))
    assert set(back.coordinate_systems) == set(two.coordinate_systems)


def test_uns_names_the_program_of_every_gene(small):
    table = small.tables["table"]
    programs = json.loads(table.uns["synthetic"]["programs"])
    assert set(programs) == {*REGIONS, "density", "context", "noise"}
    assert sorted(gene for genes in programs.values() for gene in genes) == sorted(table.var_names)
    for name, genes in programs.items():
        assert (table.var.loc[genes, "program"] == name).all()
    assert len(programs["context"]) == 30
    assert programs["tumour"][0] == "TUMOR01"
    driven = table.var["depends_on"] != "library size"
    assert set(table.var.loc[driven, "depends_on"]) <= set(table.obs.columns)


def test_programs_follow_their_drivers_and_noise_follows_none(large):
    values = log_normalised(large)
    for program in [*REGIONS, "density", "context"]:
        genes = np.flatnonzero(large.var["program"] == program)
        r = [np.corrcoef(large.obs[large.var["depends_on"].iloc[i]], values[:, i])[0, 1] for i in genes]
        assert np.mean(r) > 0.5, program
    noise = values[:, (large.var["program"] == "noise").to_numpy()]
    drivers = large.obs[[*FRACTIONS[:3], "n_nuclei", "context_tumour", "context_immune"]].to_numpy()
    assert explained(drivers, noise).mean() < 0.08


def test_context_is_the_mean_of_the_adjacent_spots(large):
    xy = large.obsm["spatial"] * large.uns["synthetic"]["microns_per_pixel"]
    distance = np.linalg.norm(xy[:, None] - xy[None], axis=2)
    adjacent = (distance > 1) & (distance < 110)
    for name in ("tumour", "immune"):
        mean = adjacent @ large.obs[f"fraction_{name}"] / adjacent.sum(axis=1)
        np.testing.assert_allclose(large.obs[f"context_{name}"], mean)


def test_context_genes_depend_on_the_neighbours_and_little_on_the_own_spot(large):
    own = large.obs[[*FRACTIONS[:3], "n_nuclei"]].to_numpy()
    around = large.obs[["context_tumour", "context_immune"]].to_numpy()
    for i, name in enumerate(("tumour", "immune")):
        assert np.corrcoef(large.obs[f"fraction_{name}"], around[:, i])[0, 1] < 0.7
    assert (explained(own, around) < 0.5).all()  # the rates themselves
    values = log_normalised(large)[:, (large.var["program"] == "context").to_numpy()]
    assert explained(own, values).mean() < 0.3
    assert explained(around, values).mean() > 0.5


def test_image_is_stained_where_there_is_tissue(small):
    image, table = pixels(small).astype(float), small.tables["table"]
    assert (image[:20, :20] > 225).mean() > 0.99  # slide
    red, green, blue = image[image.mean(axis=2) < 200].mean(axis=0)
    assert green < blue  # pink to purple
    assert green < red
    x, y = table.obsm["spatial"].round().astype(int).T
    offsets = np.arange(-20, 21, 4)
    under = image[y[:, None, None] + offsets[:, None], x[:, None, None] + offsets]  # spots x 11 x 11 x 3
    bright = under.mean(axis=(1, 2))
    tissue = table.obs["tissue"].to_numpy()
    assert (bright[tissue != "fat"].mean(axis=1) < 215).all()
    by_region = {name: bright[tissue == name].mean(axis=0) for name in REGIONS}
    assert by_region["fat"].mean() > 210
    assert by_region["stroma"][0] > by_region["tumour"][0] + 20  # eosin lets red through, nuclei do not
    share_of_dark = {name: (under[tissue == name].mean(axis=-1) < 110).mean() for name in REGIONS}
    assert share_of_dark["immune"] > 2 * share_of_dark["stroma"]


def test_several_sections_share_one_table_but_not_layout_or_stain(two):
    table = two.tables["table"]
    assert list(two.images) == ["section_0_image", "section_1_image"]
    assert list(table.obs["region"].cat.categories) == ["section_0_spots", "section_1_spots"]
    assert table.uns["spatialdata_attrs"]["region"] == ["section_0_spots", "section_1_spots"]
    assert table.obs_names.is_unique
    for name, spots in two.shapes.items():
        assert list(table.obs.loc[table.obs["region"] == name, "spot_id"]) == list(spots.index)
    transformations = get_transformation(two.images["section_1_image"], get_all=True)
    assert set(transformations) == {"section_1", "section_1_microns"}

    density = []
    for section in ("section_0", "section_1"):
        image = pixels(two, section).astype(float)
        stained = image[image.mean(axis=2) < 190]
        density.append(-np.log(stained / 245).mean(axis=0))
    hue = [d / np.linalg.norm(d) for d in density]
    assert np.abs(hue[0] - hue[1]).max() > 0.005
    assert not np.array_equal(pixels(two, "section_0"), pixels(two, "section_1"))


def test_a_section_is_the_same_whatever_the_number_of_sections(two):
    alone = synthetic(width_um=1000, seed=4)
    assert np.array_equal(pixels(alone), pixels(two))
    first = two.tables["table"][two.tables["table"].obs["region"] == "section_0_spots"]
    assert (first.X != alone.tables["table"].X).nnz == 0


@pytest.mark.parametrize("n_genes", [14, 50, 1000])
def test_any_number_of_genes_has_all_programs(n_genes):
    table = synthetic(n_genes=n_genes, width_um=600, microns_per_pixel=4.0).tables["table"]
    assert table.n_vars == n_genes
    assert table.var_names.is_unique
    assert (table.var["program"].value_counts() >= 2).all()
    assert table.var["program"].nunique() == 7


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"n_sections": 0}, ValueError, "`n_sections` must be at least 1, found 0"),
        ({"n_sections": 1.5}, TypeError, "`n_sections` must be a whole number, found 1.5"),
        ({"n_sections": True}, TypeError, "`n_sections` must be a whole number"),
        ({"n_genes": 5}, ValueError, "`n_genes` must be at least 14, found 5"),
        ({"width_um": 100}, ValueError, "`width_um` must be between 600 and 20000, found 100"),
        ({"width_um": "wide"}, TypeError, "`width_um` must be a number, found 'wide'"),
        ({"width_um": float("nan")}, ValueError, "`width_um` must be between"),
        ({"microns_per_pixel": 0}, ValueError, "`microns_per_pixel` must be between 0.25 and 4, found 0"),
        ({"nests_um": 5}, ValueError, "`nests_um` must be between 20 and 500"),
        ({"median_counts": -1}, ValueError, "`median_counts` must be between"),
        ({"seed": -1}, ValueError, "`seed` must be at least 0, found -1"),
        ({"seed": None}, TypeError, "`seed` must be a whole number, found None"),
    ],
)
def test_bad_arguments(arguments, error, message):
    with pytest.raises(error, match=message):
        synthetic(**arguments)


def test_only_the_number_of_sections_is_positional():
    with pytest.raises(TypeError):
        synthetic(1, 300)


def test_nests_are_as_wide_as_asked_for():
    """The wider they are, the more adjacent spots are of one kind; the default is what it was without the argument."""
    alike = []
    for nests_um in (40, 150):
        table = synthetic(width_um=2000, microns_per_pixel=4, nests_um=nests_um)["table"]
        near = cKDTree(table.obsm["spatial"]).query(table.obsm["spatial"], 7)[1][:, 1:]
        kind = table.obs["tissue"].cat.codes.to_numpy()
        alike.append((kind[near] == kind[:, None]).mean())
    assert alike[1] > alike[0] + 0.2
    default = synthetic(width_um=2000, microns_per_pixel=4)["table"]
    assert (default.X != synthetic(width_um=2000, microns_per_pixel=4, nests_um=40)["table"].X).nnz == 0
