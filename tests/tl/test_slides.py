"""H&E slides without spots: from an image and a model to a table that scanpy, squidpy and the plots read."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import scanpy as sc
import spatialdata
import squidpy as sq
from scipy.spatial import cKDTree
from spatialdata import SpatialData
from spatialdata.transformations import get_transformation

import nh2st_scverse as nh
from nh2st_scverse.data.geometry import spot_spacing
from nh2st_scverse.data.neighbours import interleave, neighbourhoods, thinned_neighbourhoods


@pytest.fixture
def slide(two: SpatialData) -> SpatialData:
    """The image of the second section alone."""
    return SpatialData(images={"section_1_image": two.images["section_1_image"]})


def places(sdata: SpatialData, key: str) -> np.ndarray:
    return np.array([(p.x, p.y) for p in sdata.shapes[key].geometry])


def agreement(a: np.ndarray, b: np.ndarray) -> float:
    """Median correlation of genes."""
    return float(np.median([np.corrcoef(x, y)[0, 1] for x, y in zip(a.T, b.T, strict=True)]))


def test_a_slide_gets_a_grid_and_a_table(slide: SpatialData, model: nh.NH2ST, encoder: Any) -> None:
    nh.tl.predict_expression(slide, model=model, encoder=encoder, progress=False)
    circles, table = slide.shapes["nh2st_grid"], slide.tables["table"]
    assert list(table.var_names) == model.genes
    assert table.uns["spatialdata_attrs"]["region"] in ("nh2st_grid", ["nh2st_grid"])
    assert list(table.obs["spot_id"]) == list(circles.index)
    assert list(table.obs)[:4] == ["region", "spot_id", "array_row", "array_col"]  # in every session
    assert np.allclose(table.obsm["spatial"], places(slide, "nh2st_grid"))
    assert spot_spacing(places(slide, "nh2st_grid")) == pytest.approx(model.spacing_um, rel=0.02)  # 1 µm per pixel
    assert np.isfinite(table.X).all() and "nh2st" in table.uns
    assert set(get_transformation(circles, get_all=True)) == {"section_1", "section_1_microns"}


def test_scanpy_squidpy_plots_and_zarr_take_it_from_there(
    slide: SpatialData, model: nh.NH2ST, encoder: Any, tmp_path: Path
) -> None:
    nh.tl.predict_expression(slide, model=model, encoder=encoder, progress=False)
    table = slide.tables["table"]
    sc.pp.pca(table, n_comps=10)
    sq.gr.spatial_neighbors_knn(table, n_neighs=6)
    sq.gr.spatial_autocorr(table, mode="moran", n_perms=None)
    assert table.uns["moranI"]["I"].max() > 0.2
    sq.pl.spatial_scatter(table, color=model.genes[0], shape=None)
    slide.write(tmp_path / "slide.zarr")
    again = spatialdata.read_zarr(tmp_path / "slide.zarr")
    assert np.array_equal(again.tables["table"].X, table.X)


def test_predicting_again_replaces_the_table(slide: SpatialData, model: nh.NH2ST, encoder: Any) -> None:
    nh.tl.predict_expression(slide, model=model, encoder=encoder, progress=False)
    first = slide.tables["table"]
    nh.tl.predict_expression(slide, model=model, encoder=encoder, progress=False)
    second = slide.tables["table"]
    assert list(slide.tables) == ["table"] and list(slide.shapes) == ["nh2st_grid"]
    assert second is not first and "nh2st" not in second.layers  # a layer would look like a second prediction
    assert np.allclose(first.X, second.X)


def test_a_failure_leaves_the_slide_as_it_was(
    slide: SpatialData, model: nh.NH2ST, encoder: Any, snapshot: Callable, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = snapshot(slide)

    def broken(self: Any, patches: np.ndarray) -> np.ndarray:
        raise RuntimeError("out of memory")

    with monkeypatch.context() as patched, pytest.raises(RuntimeError, match="out of memory"):
        patched.setattr(type(encoder), "__call__", broken)
        nh.tl.predict_expression(slide, model=model, encoder=encoder, progress=False)
    assert snapshot(slide) == before
    with monkeypatch.context() as patched, pytest.raises(RuntimeError, match="at the very end"):
        patched.setattr(
            "nh2st_scverse.tl._predict.write", lambda *_, **__: (_ for _ in ()).throw(RuntimeError("at the very end"))
        )
        nh.tl.predict_expression(slide, model=model, encoder=encoder, progress=False)
    assert snapshot(slide) == before
    with pytest.raises(ValueError, match=r"resolution of image .* is unknown"):
        bare = SpatialData(images={"he": spatialdata.deepcopy(slide).images["section_1_image"]["scale0"]["image"]})
        spatialdata.transformations.remove_transformation(bare.images["he"], "section_1_microns")
        nh.tl.predict_expression(bare, model=model, encoder=encoder, progress=False)


def test_features_of_many_places_are_on_disk_and_never_all_in_memory(
    slide: SpatialData, model: nh.NH2ST, encoder: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    few, many = slide, SpatialData(images=dict(slide.images))
    nh.tl.predict_expression(few, model=model, encoder=encoder, progress=False)
    expected = few.tables["table"]
    for place in ("data.inputs.MANY", "model.nh2st.PART", "train.tensors.PART"):
        monkeypatch.setattr(f"nh2st_scverse.{place}", 30)
    nh.tl.predict_expression(many, model=model, encoder=encoder, progress=False)
    found = many.tables["table"]
    assert len(found) > 60 and "nh2st_features" in expected.obsm and "nh2st_features" not in found.obsm
    assert not np.array_equal(found.X, expected.X)  # in 16 bits
    apart = np.abs(found.X - expected.X) / np.std(expected.X, axis=0).mean()
    assert apart.mean() < 0.005 and apart.max() < 0.1  # a rounded value can have the rank of another
    assert np.allclose(found.obs["nh2st_novelty"], expected.obs["nh2st_novelty"], rtol=0.02)


def test_a_slide_alone_needs_a_model(slide: SpatialData, model: nh.NH2ST, encoder: Any) -> None:
    with pytest.raises(KeyError, match="predict a slide without counts with model="):
        nh.tl.predict_expression(slide, progress=False)
    with pytest.raises(KeyError, match="shapes_key='spots' is not there"):
        nh.tl.predict_expression(slide, model=model, encoder=encoder, shapes_key="spots", progress=False)
    assert not slide.shapes and not slide.tables


def test_an_object_with_several_images_asks_which(two: SpatialData, model: nh.NH2ST, encoder: Any) -> None:
    slides = SpatialData(images=dict(two.images))
    with pytest.raises(KeyError, match=r"several images.*image_key= one of \['section_0_image', 'section_1_image'\]"):
        nh.tl.predict_expression(slides, model=model, encoder=encoder, progress=False)
    nh.tl.predict_expression(slides, model=model, encoder=encoder, image_key="section_0_image", progress=False)
    assert set(get_transformation(slides.shapes["nh2st_grid"], get_all=True)) == {"section_0", "section_0_microns"}


def test_a_dense_map_agrees_with_the_coarse_one_and_with_the_spots(
    slide: SpatialData, two: SpatialData, model: nh.NH2ST, encoder: Any, caplog: pytest.LogCaptureFixture
) -> None:
    dense = spatialdata.deepcopy(slide)
    nh.pp.grid(dense, spacing_um=model.spacing_um / 4)
    caplog.clear()
    nh.tl.predict_expression(dense, model=model, encoder=encoder, table_added="dense", progress=False)
    assert "is microns_per_pixel right" not in caplog.text
    nh.tl.predict_expression(slide, model=model, encoder=encoder, progress=False)
    coarse, fine = slide.tables["table"], dense.tables["dense"]
    assert fine.n_obs > 12 * coarse.n_obs
    distance, nearest = cKDTree(fine.obsm["spatial"]).query(coarse.obsm["spatial"])
    assert distance.max() < model.spacing_um / 3
    assert agreement(fine.X[nearest], coarse.X) > 0.85
    nh.tl.predict_expression(two, model=model, encoder=encoder, progress=False)
    spots = two.tables["table"][two.tables["table"].obs["region"] == "section_1_spots"]
    distance, nearest = cKDTree(fine.obsm["spatial"]).query(spots.obsm["spatial"])
    near = distance < model.spacing_um / 4
    assert near.mean() > 0.7
    found = agreement(fine.X[nearest[near]], spots[near, model.genes].layers["nh2st"])
    assert found > 0.7


def test_a_dense_grid_beside_spots_gets_a_table_of_its_own(two: SpatialData, model: nh.NH2ST, encoder: Any) -> None:
    measured = two.tables["table"].copy()
    nh.pp.grid(two, spacing_um=50, image_key="section_1_image", key_added="dense_grid")
    about = {"model": model, "encoder": encoder, "progress": False}
    with pytest.raises(ValueError, match="table_added='table' is there already"):
        nh.tl.predict_expression(two, shapes_key="dense_grid", **about)
    with pytest.raises(KeyError, match=r"shapes_key='dense_grid' is not there. Available shapes that the table annot"):
        nh.tl.predict_expression(two, shapes_key="dense_grid", table_key="table", **about)
    nh.tl.predict_expression(two, shapes_key="dense_grid", table_added="dense", **about)
    dense = two.tables["dense"]
    assert dense.n_obs == len(two.shapes["dense_grid"]) and np.isfinite(dense.X).all()
    assert list(two.tables["table"].layers) == list(measured.layers) and list(two.tables["table"].var) == list(
        measured.var
    )
    nh.tl.predict_expression(two, table_key="table", **about)  # the spots have theirs still
    assert "nh2st" in two.tables["table"].layers
    nh.pl.expression(two, model.genes[0], table_key="dense", image_key="section_1_image")


@pytest.mark.parametrize("shape", ["hexagonal", "square"])
def test_neighbours_in_a_dense_grid_are_those_of_the_coarse_grids_in_it(slide: SpatialData, shape: str) -> None:
    nh.pp.grid(slide, spacing_um=20, shape=shape)
    circles = slide.shapes["nh2st_grid"]
    xy = places(slide, "nh2st_grid")
    part = interleave(circles["array_row"].to_numpy(), circles["array_col"].to_numpy(), 5)
    assert len(np.unique(part)) == 25
    assert all(spot_spacing(xy[part == p]) == pytest.approx(100) for p in range(25))
    usable = np.ones(len(xy), dtype=bool)
    found = thinned_neighbourhoods(xy, 100.0, usable, part)
    members = np.flatnonzero(part == 7)
    expected = neighbourhoods(xy[members], 100.0, usable[members])
    assert np.array_equal(found.nodes[members], members[expected.nodes])
    assert np.array_equal(found.mask[members], expected.mask)
    assert np.array_equal(found.offsets[members], expected.offsets)
    few = thinned_neighbourhoods(xy[:60], 100.0, usable[:60], np.arange(60) % 20)  # three in each part
    assert few.nodes.shape == (60, 9) and not few.mask[:, 3:].any()
    assert (few.nodes[:, 3:] == np.arange(60)[:, None]).all()
