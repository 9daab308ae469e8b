"""Slides of STimage-1K4M in its layout, with the kinds of names that spots have there."""

from __future__ import annotations

import logging

import numpy as np
import pandas as pd
import pytest
from PIL import Image

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


@pytest.mark.parametrize("kind", ["PNG", "TIFF", "JPEG"])
def test_images_are_what_they_are_whatever_their_ending(fine, kind, tmp_path):
    folder = nh.datasets.stimage_folder({"S": fine}, path=tmp_path)
    pixels = fine["section_0_image"]["scale0"]["image"].transpose("y", "x", "c").values
    Image.fromarray(pixels).save(folder / "Visium" / "image" / "S.png", format=kind)
    read = nh.io.stimage(folder, "S")["S_image"]["scale0"]["image"].transpose("y", "x", "c").values
    assert np.abs(read.astype(int) - pixels).mean() < (5 if kind == "JPEG" else 1e-9)


def test_skin_arrays_are_known_by_their_number(legacy, tmp_path, caplog):
    """Their first files gave the radius of an array of 200 µm, so that nothing in them contradicts it."""
    slide = "GSE144239_GSM4284316"
    folder = nh.datasets.stimage_folder({slide: legacy[0]}, path=tmp_path, technology="ST")
    with caplog.at_level(logging.WARNING, "nh2st_scverse"):
        sdata = nh.io.stimage(folder, slide)
    (section,) = locate_sections(sdata)
    assert section.spacing_um == pytest.approx(150) and section.diameter_um == pytest.approx(110)
    assert set(sdata["table"].obs["patient"]) == {"P2"}
    assert "expected 110: is it another array?" in caplog.text
    sdata = nh.io.stimage(folder, slide, spot_pitch=200, spot_diameter=100)
    assert locate_sections(sdata)[0].spacing_um == pytest.approx(200)


def test_names_of_genes(fine, tmp_path, caplog):
    """Symbols or ids by study; a symbol that several have."""
    folder = nh.datasets.stimage_folder({"S": fine}, path=tmp_path)
    file = folder / "Visium" / "gene_exp" / "S_count.csv"
    header, *rest = file.read_text().splitlines()
    names = header.split(",")
    names[1:4] = ["ENSG00000139618", "TWIN", "TWIN"]
    file.write_text("\n".join([",".join(names), *rest]))
    with caplog.at_level(logging.WARNING, "nh2st_scverse"):
        var = nh.io.stimage(folder, "S")["table"].var
    assert list(var.index[:3]) == ["ENSG00000139618", "TWIN", "TWIN-1"]
    assert list(var["gene_id"][:2]) == ["ENSG00000139618", ""] and list(var["symbol"][:3]) == ["", "TWIN", "TWIN"]
    assert "shared by several" in caplog.text and "some genes are named by Ensembl ids" in caplog.text


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
