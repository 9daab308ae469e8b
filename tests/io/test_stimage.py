"""Slides of STimage-1K4M in its layout, with the kinds of names that spots have there."""

from __future__ import annotations

import logging

import numpy as np
import pandas as pd
import pytest

import nh2st_scverse as nh
from nh2st_scverse.data.section import locate_sections


@pytest.mark.parametrize("ids", ["barcode", "place", "decimal", "experiment"])
def test_spots_are_matched_whatever_they_are_called(fine, ids, tmp_path):
    folder = nh.datasets.stimage_folder({"Slide_1": fine}, path=tmp_path, ids=ids)
    sdata = nh.io.stimage(folder, "Slide_1")
    table, truth = sdata["table"], fine["table"]
    assert np.array_equal(table.X.toarray(), truth.X.toarray())
    assert np.allclose(table.obsm["spatial"], truth.obsm["spatial"])
    (section,) = locate_sections(sdata)
    assert section.geometry.microns_per_pixel == pytest.approx(1, rel=1e-3)
    assert section.diameter_um == pytest.approx(55, rel=1e-3)
    assert set(table.obs["patient"]) == {"unknown"}


def test_checked_trained_on_and_predicted(fine, tiny, tmp_path):
    folder = nh.datasets.stimage_folder({"a.1": fine}, path=tmp_path)
    sdata = nh.io.stimage(folder, "a.1")
    assert not (nh.pp.check(sdata)["status"] == "error").any()
    model = nh.tl.train(sdata, **tiny)
    nh.tl.predict_expression(sdata, model=model, encoder=tiny["encoder"], progress=False)
    assert sdata["table"].var["nh2st"].sum() == 10


def test_a_radius_of_another_array_is_questioned(fine, tmp_path, caplog):
    folder = nh.datasets.stimage_folder({"Skin": fine}, path=tmp_path)
    file = folder / "Visium" / "coord" / "Skin_coord.csv"
    pd.read_csv(file, index_col=0).assign(r=45.13).to_csv(file)
    with caplog.at_level(logging.WARNING, "nh2st_scverse"):
        nh.io.stimage(folder, "Skin")
    assert "is it another array?" in caplog.text
    sdata = nh.io.stimage(folder, "Skin", spot_pitch=110, spot_diameter=100)
    assert locate_sections(sdata)[0].geometry.microns_per_pixel == pytest.approx(1.1, rel=1e-3)


def test_bins_of_unknown_side_are_asked_for(fine, tmp_path):
    folder = nh.datasets.stimage_folder({"HD": fine}, path=tmp_path)
    (folder / "Visium").rename(folder / "VisiumHD")
    with pytest.raises(ValueError, match="bins of Visium HD may have any side: pass microns_per_pixel="):
        nh.io.stimage(folder, "HD")
    assert nh.io.stimage(folder, "HD", microns_per_pixel=1)["table"].n_obs == fine["table"].n_obs


def test_what_is_not_there(fine, tmp_path):
    folder = nh.datasets.stimage_folder({"S": fine}, path=tmp_path)
    with pytest.raises(FileNotFoundError, match="Slides with places: S"):
        nh.io.stimage(folder, "T")
    file = folder / "Visium" / "coord" / "S_coord.csv"
    coord = pd.read_csv(file, index_col=0)
    coord.set_axis([f"spot{i}" for i in range(len(coord))]).to_csv(file)
    with pytest.raises(ValueError, match="No spot of the counts has a place"):
        nh.io.stimage(folder, "S")
