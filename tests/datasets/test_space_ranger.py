"""A drawn section as Space Ranger's files, read back as users read theirs."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import spatialdata as sd
import spatialdata_io

import nh2st_scverse as nh


@pytest.fixture(scope="module")
def drawn() -> sd.SpatialData:
    return nh.datasets.synthetic(width_um=1000, microns_per_pixel=0.8, seed=2)


@pytest.fixture(scope="module")
def folder(drawn, tmp_path_factory) -> Path:
    return nh.datasets.space_ranger_folder(drawn, path=tmp_path_factory.mktemp("visium"))


def test_what_is_read_is_what_was_drawn(drawn, folder):
    sdata = spatialdata_io.visium(folder, dataset_id="S", fullres_image_file="tissue.tif")
    table, truth = sdata["table"], drawn["table"]
    array = ["array_row", "array_col"]
    assert table.obs_names.str.fullmatch("[ACGT]{16}-1").all()
    order = table.obs.reset_index(drop=True).reset_index().set_index(array)["index"]
    rows = order.loc[list(zip(*(truth.obs[c] for c in array), strict=True))].to_numpy()
    assert sorted(rows) == list(range(truth.n_obs))
    assert (table.X[rows] != truth.X).nnz == 0
    assert list(table.var_names) == list(truth.var_names)
    spots = sdata["S"].loc[table.obs["spot_id"].to_numpy()[rows]]
    assert np.abs(spots.get_coordinates().to_numpy() - truth.obsm["spatial"]).max() <= 0.5  # whole pixels
    assert np.allclose(spots["radius"], 55 / 2 / 0.8)
    image = sdata["S_full_image"]["scale0"]["image"].transpose("c", "y", "x").values
    assert np.array_equal(image, drawn["section_0_image"]["scale0"]["image"].values)


def test_all_spots_of_the_array_are_listed(drawn, folder):
    positions = pd.read_csv(folder / "spatial" / "tissue_positions.csv", index_col="barcode")
    assert positions.index.is_unique
    assert positions["in_tissue"].sum() == drawn["table"].n_obs < len(positions)


def test_resolution_is_found_and_the_hires_copy_is_refused(folder):
    full = spatialdata_io.visium(folder, dataset_id="S", fullres_image_file="tissue.tif")
    found = nh.pp.check(full).set_index("check")
    assert found.loc["µm per pixel", "found"] == "0.8 (Visium grid of 100 µm pitch)"
    assert "S_full_image" in found.loc["image", "found"]
    assert not (found["status"] == "error").any()
    found = nh.pp.check(spatialdata_io.visium(folder, dataset_id="S")).set_index("check")
    assert found.loc["µm per pixel", "found"].startswith("4 ")
    assert found.loc["patch", "status"] == "error" and "fullres_image_file" in found.loc["patch", "remedy"]


def test_what_is_there_stays(drawn, folder):
    with pytest.raises(FileExistsError, match="not an empty folder: choose another path"):
        nh.datasets.space_ranger_folder(drawn, path=folder)


def test_needs_one_drawn_section(tmp_path):
    two = nh.datasets.synthetic(2, width_um=600)
    with pytest.raises(ValueError, match=r"one section of nh.datasets.synthetic.*'section_0_image', 'section_1_image'"):
        nh.datasets.space_ranger_folder(two, path=tmp_path)
