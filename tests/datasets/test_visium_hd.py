"""Visium HD as Space Ranger leaves it and spatialdata_io reads it: found, checked, pooled, trained on, predicted."""

from __future__ import annotations

import logging
from pathlib import Path

import numpy as np
import pytest
import spatialdata as sd
import spatialdata_io
from scipy import sparse
from spatialdata.transformations import get_transformation

import nh2st_scverse as nh


@pytest.fixture(scope="module")
def folders(fine, tmp_path_factory) -> dict[int, Path]:
    root = tmp_path_factory.mktemp("hd")
    return {v: nh.datasets.visium_hd_folder(fine, path=root / str(v), version=v) for v in (3, 4)}


@pytest.fixture(scope="module")
def trained(folders, tiny) -> dict[int, tuple[sd.SpatialData, nh.NH2ST]]:
    """As it comes: of version 4 the section has not even a name."""
    made = {}
    for version, folder in folders.items():
        with pytest.warns(FutureWarning, match="load_segmentations_only"):
            sdata = spatialdata_io.visium_hd(folder)
        nh.pp.pseudospots(sdata, table_key="square_008um")
        made[version] = sdata, nh.tl.train(sdata, table_key="pseudospots", **tiny)
    return made


@pytest.fixture(scope="module")
def _four(folders) -> sd.SpatialData:
    how = {"load_segmentations_only": False, "load_all_images": True}
    return spatialdata_io.visium_hd(folders[4], dataset_id="S", **how)


@pytest.fixture
def four(_four) -> sd.SpatialData:
    return sd.deepcopy(_four)


def found(sdata: sd.SpatialData, **elements: str) -> dict[str, str]:
    lines = nh.pp.check(sdata, **elements)
    assert not (lines["status"] == "error").any(), lines
    return dict(zip(lines["check"], lines["found"], strict=True))


def test_what_is_read_is_what_was_drawn(fine, four):
    for key in ("square_008um", "square_016um"):
        table, truth = four[key], fine[key]
        places = ["array_row", "array_col"]
        order = (
            truth.obs.reset_index()
            .set_index(places)["index"]
            .loc[list(zip(*(table.obs[c] for c in places), strict=True))]
        )
        truth = truth[order.to_numpy()]
        assert (table.X != truth.X).nnz == 0
        assert np.allclose(table.obsm["spatial"], truth.obsm["spatial"])
    cells = four["cell_segmentations"]
    assert cells.X.sum() == fine["cells"].X.sum() and "spatial" not in cells.obsm
    assert cells.obs["cell_id"].iloc[0] == "cellid_000000001-1"


def test_which_table_is_asked_for(four):
    (line,) = nh.pp.check(four).query("check == 'table'")["found"]
    assert "pass table_key= one of ['square_008um', 'square_016um', 'cell_segmentations']" in line


@pytest.mark.parametrize("key", ["square_008um", "square_016um", "cell_segmentations"])
def test_bins_and_cells_say_all_that_is_needed(four, key):
    lines = found(four, table_key=key)
    side = 16 if key == "square_016um" else 8
    assert lines["µm per pixel"] == f"1 (squares of {side} µm)"
    assert lines["image"].startswith("'S_full_image'")
    assert lines["patch"].startswith("56 µm")


def test_circles_and_labels_of_version_3(folders):
    how = {"load_segmentations_only": False, "bin_size": 16}
    labelled = spatialdata_io.visium_hd(folders[3], annotate_table_by_labels=True, **how)
    assert labelled["square_016um"].uns["spatialdata_attrs"]["region"] == "section_0_square_016um_labels"
    circles = spatialdata_io.visium_hd(folders[3], bins_as_squares=False, **how)
    for sdata in (labelled, circles):
        lines = found(sdata)
        assert lines["µm per pixel"] == "1 (squares of 16 µm)"
    (section,) = nh.data.section.locate_sections(labelled)
    at = section.geometry.pixels()
    assert np.allclose(at, labelled["square_016um"].obsm["spatial"])  # each row at its own square, not at the next one


def test_bins_of_2_um_and_nuclei(fine, tiny, trained, tmp_path):
    """Most of the smallest bins have no counts; nuclei are made of those under them."""
    drawn, rng = sd.deepcopy(fine), np.random.default_rng(0)
    wide = fine["square_008um"]
    wide = wide[np.flatnonzero(wide.obs["fraction_tumour"] > 0.9)[:100]]
    finest = wide[np.repeat(np.arange(wide.n_obs), 16)].copy()
    finest.X = sparse.csr_matrix(rng.binomial(finest.X.toarray().astype(int), 1 / 16).astype(np.float32))
    at = np.tile(np.arange(16), wide.n_obs)
    for name, part in {"array_row": at // 4, "array_col": at % 4}.items():
        finest.obs[name] = finest.obs[name].to_numpy() * 4 + part
    finest.obs_names = [str(i) for i in range(finest.n_obs)]
    drawn.tables["square_002um"] = finest
    folder = nh.datasets.visium_hd_folder(drawn, path=tmp_path / "hd")
    how = {"load_segmentations_only": False, "load_nucleus_segmentations": True, "bin_size": [2, 16]}
    sdata = spatialdata_io.visium_hd(folder, **how)
    assert set(sdata.tables) == {"square_002um", "square_016um", "cell_segmentations", "nucleus_segmentations"}
    model = trained[3][1]
    for key, width in {"square_002um": 2.0, "nucleus_segmentations": 8.1}.items():  # of large nuclei, of tumour
        (section,) = nh.data.section.locate_sections(sdata, nh._options.Elements.of(key))
        assert section.geometry.microns_source == "squares of 2 µm"
        assert section.diameter_um == pytest.approx(width, abs=0.1)
    nh.tl.predict_expression(sdata, model=model, encoder=tiny["encoder"], table_key="square_002um", progress=False)
    assert np.isfinite(sdata["square_002um"][:, model.genes].layers["nh2st"]).all()


def test_cells_alone_do_not_tell_how_large_a_pixel_is(folders):
    """Which spatialdata_io will read when it is not told otherwise."""
    sdata = spatialdata_io.visium_hd(folders[4], dataset_id="S", load_segmentations_only=True)
    with pytest.raises(ValueError, match=r"microns_per_pixel in spatial/scalefactors_json.json; bins beside the cells"):
        nh.data.section.locate_sections(sdata)
    (section,) = nh.data.section.locate_sections(sdata, nh._options.Elements.of(microns_per_pixel=1.0))
    assert section.diameter_um == pytest.approx(8.4, abs=0.5)


def test_grids_and_nuclei_ask_the_bins_how_large_a_pixel_is(four):
    geometry = nh.data.geometry.locate_image(four)
    assert (geometry.microns_per_pixel, geometry.microns_source) == (1.0, "squares of 8 µm")


def test_joined_objects(four):
    """``spatialdata.concatenate`` adds to the names that tell what is what."""
    keep = ["S_full_image", "S_cytassist_image", "S_square_016um", "square_016um"]
    joined = sd.concatenate({key: sd.deepcopy(four.subset(keep)) for key in ("a", "b")}, concatenate_tables=True)
    sections = nh.data.section.locate_sections(joined)
    assert [section.geometry.image_key for section in sections] == ["S_full_image-a", "S_full_image-b"]
    assert all(section.geometry.microns_source == "squares of 16 µm" for section in sections)


def test_labels_without_shapes_say_how_to_get_some(folders):
    how = {"load_segmentations_only": False, "bin_size": 16, "annotate_table_by_labels": True}
    sdata = spatialdata_io.visium_hd(folders[3], **how)
    del sdata.shapes["section_0_square_016um"]
    with pytest.raises(KeyError, match=r"Add these shapes \(of labels, spatialdata.to_circles"):
        nh.data.section.locate_sections(sdata)


def test_the_image_of_the_cytassist_is_refused(four):
    with pytest.raises(ValueError, match="not the H&E to predict from: it is the image of the CytAssist"):
        nh.data.geometry.locate(four, "S_square_008um", image_key="S_cytassist_image")
    only = four.subset(["S_square_008um", "square_008um", "S_cytassist_image"])
    with pytest.raises(
        KeyError, match=r"none. Available images: .*S_cytassist_image \(it is the image of the CytAssist"
    ):
        nh.data.geometry.locate(only, "S_square_008um")


def test_without_the_full_image_it_says_so(fine, tmp_path):
    folder = nh.datasets.visium_hd_folder(fine, path=tmp_path / "outs", version=3)
    (folder / "microscope_image" / "tissue.tif").unlink()
    with pytest.warns(UserWarning, match="No full resolution image"):
        sdata = spatialdata_io.visium_hd(folder, load_segmentations_only=False, bin_size=16)
    lines = nh.pp.check(sdata).set_index("check")
    assert lines.loc["patch", "status"] == "error" and "hires_image" in lines.loc["patch", "found"]


@pytest.mark.parametrize("version", [3, 4])
def test_trained_on_spots_predicted_at_bins_and_cells(trained, version, tiny, caplog):
    sdata, model = trained[version]
    found(sdata, table_key="square_016um")
    assert model.card.spot_um == pytest.approx(55) and model.patch_um == pytest.approx(75, rel=0.01)
    keys = ["square_016um"] + ["cell_segmentations"] * (version == 4)
    for key in keys:
        with caplog.at_level(logging.WARNING, "nh2st_scverse"):
            nh.tl.predict_expression(sdata, model=model, encoder=tiny["encoder"], table_key=key, progress=False)
        assert "trained on expression in places of 55 µm" in caplog.text
        table = sdata[key]
        predicted = table.layers["nh2st"][:, table.var["nh2st"].to_numpy()]
        assert predicted.shape[1] == 10 and np.isfinite(predicted).all() and (predicted.std(axis=0) > 0).all()
        assert table.uns["nh2st"]["spot_um"] == pytest.approx(55)


def test_written_and_read_again(four, tmp_path):
    nh.pp.pseudospots(four, table_key="square_008um")
    keep = ["S_full_image", "S_square_008um_pseudospots", "pseudospots"]
    four.subset(keep).write(tmp_path / "hd.zarr")
    again = sd.read_zarr(tmp_path / "hd.zarr")
    assert found(again, table_key="pseudospots")["µm per pixel"].startswith(
        "1 (coordinate system 'S_full_image_microns'"
    )
    assert set(get_transformation(again["S_full_image"], get_all=True)) >= {"S", "S_full_image_microns"}


@pytest.mark.parametrize(
    ("drawn", "version", "message"),
    [
        ({}, 3, r"drawn with bins_um=\(8, 16\), found the tables \['table'\]"),
        ({"bins_um": 16}, 4, r"drawn with cells=True, found the tables \['table', 'square_016um'\]"),
        ({"bins_um": 16}, 2, r"version to be one of \[3, 4\], found 2"),
    ],
)
def test_what_cannot_be_written(drawn, version, message, tmp_path):
    sdata = nh.datasets.synthetic(width_um=600, n_genes=14, **drawn)
    with pytest.raises(ValueError, match=message):
        nh.datasets.visium_hd_folder(sdata, path=tmp_path / "outs", version=version)
    assert not (tmp_path / "outs").exists()
