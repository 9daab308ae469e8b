"""Nuclei of drawn tissue, where they are known, and predictions at them."""

from __future__ import annotations

import numpy as np
import pytest
import spatialdata as sd
from scipy.spatial import cKDTree
from spatialdata.models import Image2DModel

import nh2st_scverse as nh


def f1(truth: np.ndarray, found: np.ndarray, within: float = 3.0) -> float:
    """Twice the pairs (nearest first, each point once) over the number of points."""
    pairs = cKDTree(truth).sparse_distance_matrix(cKDTree(found), within).tocoo()
    of_truth, of_found, n = set(), set(), 0
    for k in np.argsort(pairs.data):
        i, j = pairs.row[k], pairs.col[k]
        if i not in of_truth and j not in of_found:
            of_truth.add(i), of_found.add(j)
            n += 1
    return 2 * n / (len(truth) + len(found))


@pytest.fixture
def slide(fine) -> sd.SpatialData:
    return fine.subset(["section_0_image", "section_0_spots", "table"])


def test_most_nuclei_are_found_where_they_are(fine, slide):
    nh.pp.nuclei(slide, tile_um=250)
    found = slide["nuclei"].centroid.get_coordinates().to_numpy()
    truth = fine["cells"].obs[["x_um", "y_um"]].to_numpy()
    assert f1(truth, found) >= 0.8
    assert f1(truth, found + np.array([8, 0])) < 0.5  # by chance
    area = slide["nuclei"].area
    assert 15 < area.median() < 80 and slide["nuclei"].is_valid.all()
    assert set(sd.transformations.get_transformation(slide["nuclei"], get_all=True)) == {
        "section_0",
        "section_0_microns",
    }


def crowded() -> tuple[np.ndarray, np.ndarray]:
    """At half a µm per pixel, a nest whose nuclei touch on dark ground, a gland round a lumen, few elsewhere."""
    row, col = np.mgrid[:9, :9]
    nest = np.c_[(25 + 7.5 * col + 3.7 * (row % 2)).ravel(), (30 + 6.8 * row).ravel()]
    angle = np.arange(24) / 24 * 2 * np.pi
    gland = np.c_[150 + 26 * np.cos(angle), 50 + 26 * np.sin(angle)]
    alone = np.array([(x, y) for x in range(20, 200, 30) for y in (130, 160, 185)], dtype=float)
    truth = np.concatenate([nest, gland, alone])
    y, x = (np.mgrid[:400, :400] + 0.5) / 2
    away = cKDTree(truth).query(np.c_[x.ravel(), y.ravel()])[0].reshape(x.shape)
    image = np.full((400, 400, 3), (232, 190, 215), np.float32)
    image[(abs(x - 57) < 40) & (abs(y - 57) < 36)] = (135, 105, 175)
    image[np.hypot(x - 150, y - 50) < 16] = (240, 235, 240)
    shade = np.clip((3.6 - away) / 0.8, 0, 1)[..., None]
    image = image * (1 - shade) + np.array((70, 50, 130)) * shade
    return truth, (image + np.random.default_rng(0).normal(0, 4, image.shape)).clip(0, 255).astype(np.uint8)


def test_nuclei_that_touch_and_glands():
    truth, image = crowded()
    slide = sd.SpatialData(images={"he": Image2DModel.parse(image, dims=("y", "x", "c"))})
    nh.pp.nuclei(slide, microns_per_pixel=0.5)
    assert f1(truth, slide["nuclei"].centroid.get_coordinates().to_numpy() / 2) >= 0.9


def test_tiles_make_no_difference(slide):
    nh.pp.nuclei(slide, tile_um=190)
    nh.pp.nuclei(slide, tile_um=5000, key_added="at_once")
    many, one = (slide[key].centroid.get_coordinates().to_numpy() for key in ("nuclei", "at_once"))
    assert f1(one, many, within=1.0) > 0.99


def test_predictions_at_nuclei(slide, tiny):
    nh.pp.nuclei(slide)
    model = nh.tl.train({"a": slide, "b": nh.datasets.synthetic(width_um=700, n_genes=20, seed=2)}, **tiny)
    how = {"encoder": tiny["encoder"], "progress": False}
    how |= {"table_added": "cells", "uncertainty": True}
    nh.tl.predict_expression(slide, model=model, shapes_key="nuclei", **how)
    table = slide["cells"]
    assert table.n_obs == len(slide["nuclei"]) and table.uns["spatialdata_attrs"]["region"] in ("nuclei", ["nuclei"])
    assert (table.layers["nh2st_std"] > 0).all()
    assert "nh2st_novelty" in table.obs and np.isfinite(table.X).all() and (table.X.std(axis=0) > 0).all()


def test_what_cannot_be(slide):
    with pytest.raises(ValueError, match="is there already"):
        nh.pp.nuclei(slide, key_added="table")
    with pytest.raises(ValueError, match=r"at most 1.3 µm per pixel.*found 2"):
        nh.pp.nuclei(slide, microns_per_pixel=2)
    white = np.full((3, 600, 600), 240, np.uint8)
    glass = sd.SpatialData(images={"glass": Image2DModel.parse(white, dims=("c", "y", "x"))})
    with pytest.raises(ValueError, match="No nuclei were found in 'glass'"):
        nh.pp.nuclei(glass, microns_per_pixel=0.5)
    assert not glass.shapes
