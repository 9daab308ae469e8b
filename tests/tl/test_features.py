"""Features are kept in the table, and used again while nothing that they depend on has changed."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import spatialdata
from spatialdata import SpatialData

import nh2st_scverse as nh
from nh2st_scverse.nn import Config

N_FIELDS = len(Config().fields)


def test_features_survive_zarr_and_are_reused(
    two: SpatialData, quick: dict[str, Any], tmp_path: Path, snapshot: Callable
) -> None:
    encoder = quick["encoder"]
    nh.tl.predict_expression(two, **quick)
    n_spots = two.tables["table"].n_obs
    assert encoder.n_patches == N_FIELDS * n_spots
    two.write(tmp_path / "two.zarr")
    again = spatialdata.read_zarr(tmp_path / "two.zarr")
    written, read = two.tables["table"], again.tables["table"]
    assert np.array_equal(written.layers["nh2st"], read.layers["nh2st"], equal_nan=True)
    assert read.var["nh2st"].dtype == bool
    assert np.allclose(written.var["nh2st_pearson"], read.var["nh2st_pearson"], equal_nan=True)
    assert dict(read.uns["nh2st"]) == written.uns["nh2st"]
    assert np.array_equal(written.obsm["X_nh2st"], read.obsm["X_nh2st"])
    files = {p: p.stat().st_mtime_ns for p in (tmp_path / "two.zarr").rglob("*") if p.is_file()}
    nh.tl.predict_expression(again, **quick)
    assert encoder.n_patches == N_FIELDS * n_spots  # nothing was encoded
    assert np.array_equal(two["table"].layers["nh2st"], again["table"].layers["nh2st"], equal_nan=True)
    assert files == {p: p.stat().st_mtime_ns for p in (tmp_path / "two.zarr").rglob("*") if p.is_file()}


def change_image(sdata: SpatialData) -> None:
    image = sdata.images["section_1_image"]
    for scale in image.children:
        image[scale]["image"].data = image[scale]["image"].data // 2 + 100


def swap_two_spots(sdata: SpatialData) -> None:
    ids = sdata.tables["table"].obs["spot_id"].to_numpy(copy=True)
    at = np.flatnonzero(sdata.tables["table"].obs["region"] == "section_1_spots")[:2]
    ids[at] = ids[at[::-1]]
    sdata.tables["table"].obs["spot_id"] = ids


def move_a_spot(sdata: SpatialData) -> None:
    shapes = sdata.shapes["section_1_spots"]
    shapes.geometry = [
        shapes.geometry.iloc[0].__class__(p.x + 3 * (i == 4), p.y) for i, p in enumerate(shapes.geometry)
    ]


def lose_a_row(sdata: SpatialData) -> None:
    sdata.tables["table"].obsm["nh2st_features"][-1] = np.nan


@pytest.mark.parametrize("change", [change_image, swap_two_spots, move_a_spot, lose_a_row])
def test_features_of_a_section_that_changed_are_recomputed(
    two: SpatialData, model: nh.NH2ST, encoder: Any, change: Callable[[SpatialData], None]
) -> None:
    nh.tl.predict_expression(two, model=model, encoder=encoder, progress=False)
    n = encoder.n_patches
    change(two)
    nh.tl.predict_expression(two, model=model, encoder=encoder, progress=False)
    section = (two.tables["table"].obs["region"] == "section_1_spots").sum()
    assert encoder.n_patches - n == N_FIELDS * section
    fresh = spatialdata.deepcopy(two)
    del fresh.tables["table"].obsm["nh2st_features"]
    nh.tl.predict_expression(fresh, model=model, encoder=encoder, progress=False)
    assert np.array_equal(two["table"].layers["nh2st"], fresh["table"].layers["nh2st"], equal_nan=True)


def test_features_are_recomputed_for_another_patch_or_encoder(two: SpatialData, quick: dict[str, Any]) -> None:
    encoder, total = quick["encoder"], N_FIELDS * two.tables["table"].n_obs
    nh.tl.train(two, **quick)
    nh.tl.train(two, patch_um=75.0, **quick)
    assert encoder.n_patches == total
    nh.tl.train(two, patch_um=90.0, **quick)
    assert encoder.n_patches == 2 * total
    nh.tl.train(two, microns_per_pixel=1.2, patch_um=90.0, **quick)
    assert encoder.n_patches == 3 * total
    encoder.weights_hash = "new"
    nh.tl.train(two, microns_per_pixel=1.2, patch_um=90.0, **quick)
    assert encoder.n_patches == 4 * total
    nh.tl.train(two, microns_per_pixel=1.2, patch_um=90.0, **quick | {"fields": (1.0,)})
    assert encoder.n_patches == 4 * total + total // N_FIELDS


def test_orientations_are_those_of_the_model(two: SpatialData, quick: dict[str, Any], tmp_path: Path) -> None:
    encoder, total = quick["encoder"], N_FIELDS * two.tables["table"].n_obs
    nh.tl.train(two, **quick)
    model = nh.tl.train(two, orientations=4, **quick)
    assert encoder.n_patches == 5 * total  # once, and then four times
    loaded = nh.NH2ST.load(model.save(tmp_path / "model"))
    nh.tl.predict_expression(two, model=loaded, encoder=encoder, progress=False)
    assert encoder.n_patches == 5 * total  # the features in the table are those that the model needs
    assert json.loads(two["table"].uns["nh2st"]["json"])["config"]["orientations"] == 4


def test_features_that_are_there_have_their_orientation(two: SpatialData, quick: dict[str, Any]) -> None:
    two["table"].obsm["X_uni"] = np.zeros((two["table"].n_obs, 3), dtype=np.float32)
    with pytest.raises(ValueError, match=r"Expected orientations=1 with encoder 'precomputed:X_uni', found 4"):
        nh.tl.train(two, orientations=4, **quick | {"encoder": "precomputed:X_uni"})


def test_features_of_other_sections_stay(two: SpatialData, model: nh.NH2ST, encoder: Any) -> None:
    nh.tl.predict_expression(two, model=model, encoder=encoder, progress=False)
    n = encoder.n_patches
    nh.tl.predict_expression(two, model=model, encoder=encoder, shapes_key="section_0_spots", progress=False)
    nh.tl.predict_expression(two, model=model, encoder=encoder, progress=False)
    assert encoder.n_patches == n
