"""Xenium as the instrument leaves it and spatialdata_io reads it: found, checked, pooled, trained on, predicted."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import spatialdata as sd
import spatialdata_io
from spatialdata.models import Image2DModel
from spatialdata.transformations import Affine, Identity, set_transformation

import nh2st_scverse as nh

PIXEL_UM = 0.85
ALIGNMENT = "he_imagealignment.csv"


@pytest.fixture(scope="module")
def folder(fine, tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("xenium") / "outs"
    return nh.datasets.xenium_folder(fine, path=path, pixel_um=PIXEL_UM)


@pytest.fixture(scope="module")
def _read(folder) -> sd.SpatialData:
    return spatialdata_io.xenium(folder)


@pytest.fixture
def read(_read) -> sd.SpatialData:
    return sd.deepcopy(_read)


def test_what_is_read_is_what_was_drawn(fine, read):
    table, truth = read["table"], fine["cells"]
    assert table.uns["spatialdata_attrs"]["region"] == "cell_labels"  # as it comes
    assert (table.X != truth.X).nnz == 0
    assert np.allclose(table.obsm["spatial"], truth.obs[["x_um", "y_um"]])
    molecules = read["transcripts"].compute()
    inside = molecules[molecules["cell_id"] != "UNASSIGNED"]
    assert len(inside) == truth.X.sum() and len(molecules) > len(inside)


@pytest.mark.parametrize("turns", [0, 3])
def test_cells_lie_on_their_nuclei_however_the_image_was_turned(fine, turns, tmp_path):
    folder = nh.datasets.xenium_folder(fine, path=tmp_path / "x", pixel_um=PIXEL_UM, quarter_turns=turns)
    sdata = spatialdata_io.xenium(folder, nucleus_labels=False, morphology_focus=False, transcripts=False)
    (section,) = nh.data.section.locate_sections(sdata)
    assert section.geometry.image_key == "he_image"
    assert section.geometry.microns_per_pixel == pytest.approx(1.0)
    assert section.spacing_um == pytest.approx(9, abs=2)
    image = sdata["he_image"]["scale0"]["image"].transpose("y", "x", "c").values
    x, y = np.floor(section.geometry.pixels()).astype(int).T
    assert image[y, x].mean() < image.mean() - 40  # nuclei are dark


def test_any_affine_alignment(read):
    """Turned by 17°, mirrored, wider than high: cells are where the alignment says."""
    turn = np.radians(17)
    matrix = np.array([[np.cos(turn), -np.sin(turn), 140], [np.sin(turn), np.cos(turn), 530], [0, 0, 1]])
    matrix = matrix @ np.diag([1.02 / PIXEL_UM, -0.99 / PIXEL_UM, 1])
    set_transformation(read["he_image"], Affine(matrix, ("x", "y"), ("x", "y")), "global")
    (section,) = nh.data.section.locate_sections(read)
    back = np.c_[section.geometry.pixels(), np.ones(section.n_spots)] @ matrix.T
    assert np.allclose(back[:, :2] * PIXEL_UM, read["table"].obsm["spatial"])
    assert section.geometry.microns_per_pixel == pytest.approx(np.sqrt(1.02 * 0.99))


def test_an_image_aligned_by_hand(folder):
    sdata = spatialdata_io.xenium(folder, aligned_images=False, transcripts=False, nucleus_labels=False)
    he = spatialdata_io.xenium_aligned_image(*(folder / f"section_{end}" for end in ("he_image.ome.tif", ALIGNMENT)))
    sdata.images["stained"] = he
    lines = nh.pp.check(sdata)
    assert not (lines["status"] == "error").any() and "alignment" not in set(lines["check"])
    assert nh.data.geometry.locate(sdata, "cell_boundaries").image_key == "stained"
    assert nh.data.geometry.locate_image(sdata).microns_per_pixel == pytest.approx(1)  # cells tell


def test_all_that_is_needed_is_found(read):
    lines = nh.pp.check(read)
    assert not (lines["status"] == "error").any()
    found = dict(zip(lines["check"], lines["found"], strict=True))
    assert found["µm per pixel"] == "1 (shapes of Xenium in µm)"
    assert found["image"].startswith("'he_image'") and "alignment" not in found
    assert set(lines["section"]) == {"", "cell_boundaries"}


def test_without_alignment_the_place_is_questioned(fine, tmp_path):
    folder = nh.datasets.xenium_folder(fine, path=tmp_path / "x", pixel_um=PIXEL_UM, alignment=False)
    for circles in (False, True):
        sdata = spatialdata_io.xenium(folder, cells_as_circles=circles, transcripts=False)
        if circles:
            lines = nh.pp.check(sdata).set_index("check")
            assert lines.loc["alignment", "status"] == "warning"
            assert "xenium_aligned_image" in lines.loc["alignment", "remedy"]
        (section,) = nh.data.section.locate_sections(sdata)
        assert section.shapes_key == ("cell_circles" if circles else "cell_boundaries")
        assert section.diameter_um == pytest.approx(8.4, abs=0.5)


def test_fluorescence_is_no_stain(fine, read, tmp_path):
    with pytest.raises(ValueError, match="'morphology_focus' is not the H&E to predict from: it is fluorescence"):
        nh.data.geometry.locate(read, "cell_boundaries", image_key="morphology_focus")
    names = ["DAPI", "ATP1A1/CD45/E-Cadherin", "18S", "AlphaSMA/Vimentin"]  # of a segmentation kit, finer than the H&E
    glow = np.zeros((4, 2000, 2000), np.uint16)
    read.images["more"] = Image2DModel.parse(glow, dims=("c", "y", "x"), c_coords=names)
    assert nh.data.geometry.locate(read, "cell_boundaries").image_key == "he_image"
    read.images |= dict.fromkeys(("morphology_mip", "if_image"), read["morphology_focus"])
    assert nh.data.geometry.locate(read, "cell_boundaries").image_key == "he_image"
    del read.images["he_image"]
    with pytest.raises(KeyError, match=r"if_image \(it is fluorescence\)"):
        nh.data.geometry.locate(read, "cell_boundaries")
    folder = nh.datasets.xenium_folder(fine, path=tmp_path / "x", pixel_um=PIXEL_UM, he_image=False)
    sdata = spatialdata_io.xenium(folder, transcripts=False)
    (line,) = nh.pp.check(sdata).query("status == 'error'").to_dict("records")
    assert "morphology_focus (it is fluorescence)" in line["found"] + line["remedy"]
    assert "Add the H&E image" in line["found"] + line["remedy"]


def test_trained_on_spots_of_transcripts_predicted_at_cells(read, tiny):
    nh.pp.pseudospots(read, points_key="transcripts")
    assert not read["pseudospots"].var_names.str.contains("NegControl").any()
    model = nh.tl.train(read, table_key="pseudospots", **tiny)
    nh.tl.predict_expression(read, model=model, encoder=tiny["encoder"], progress=False, table_key="table")
    table = read["table"]
    predicted = table.layers["nh2st"][:, table.var["nh2st"].to_numpy()]
    assert np.isfinite(predicted).all() and (predicted.std(axis=0) > 0).all()
    assert {"nh2st_novelty"} <= set(table.obs)


def test_nuclei_are_not_taken_for_cells(read):
    """Numbers of nuclei and of cells are alike: the table of cells must be matched by the ids of cells."""
    (section,) = nh.data.section.locate_sections(read)
    assert section.shapes_key == "cell_boundaries" and section.geometry.instances[0] == "aaaaaaab-1"


def test_labels_may_be_left_out(fine, read):
    """``cells_labels=False`` leaves a table of labels that are not there."""
    del read.labels["cell_labels"]
    (section,) = nh.data.section.locate_sections(read)
    assert section.shapes_key == "cell_boundaries" and section.n_spots == fine["cells"].n_obs
    del read.shapes["cell_boundaries"]
    with pytest.raises(KeyError, match="annotates 'cell_labels', which is not among the shapes"):
        nh.data.section.locate_sections(read)


def test_joined_objects(read):
    """``spatialdata.concatenate`` adds to the names that tell what is what."""
    keep = ["he_image", "morphology_focus", "cell_labels", "cell_boundaries", "table"]
    joined = sd.concatenate({key: sd.deepcopy(read.subset(keep)) for key in ("P1", "P-2")}, concatenate_tables=True)
    sections = nh.data.section.locate_sections(joined)
    assert [section.shapes_key for section in sections] == ["cell_boundaries-P1", "cell_boundaries-P-2"]
    assert [section.geometry.image_key for section in sections] == ["he_image-P1", "he_image-P-2"]
    assert all(section.geometry.microns_source == "shapes of Xenium in µm" for section in sections)
    set_transformation(joined["he_image-P1"], Identity(), "global-P1")
    assert [bool(one.geometry.doubt) for one in nh.data.section.locate_sections(joined)] == [True, False]


def test_predicted_as_it_comes(read, tiny):
    nh.tl.predict_expression(read, **tiny)
    table = read["table"]
    values = table.layers["nh2st"][:, table.var["nh2st"].to_numpy()]
    assert values.shape == (table.n_obs, 10) and np.isfinite(values).all()


def test_needs_cells(tmp_path):
    with pytest.raises(ValueError, match="drawn with cells=True"):
        nh.datasets.xenium_folder(nh.datasets.synthetic(width_um=600, n_genes=14), path=tmp_path / "x")
