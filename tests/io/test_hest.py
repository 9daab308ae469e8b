"""Samples of HEST-1k in its layout, with the faults that they are known to have."""

from __future__ import annotations

import json
import logging
from pathlib import Path

import anndata as ad
import numpy as np
import pandas as pd
import pytest
import spatialdata_io

import nh2st_scverse as nh
from nh2st_scverse.data.section import locate_sections
from nh2st_scverse.io._hest_facts import PATIENTS


def legacy(seed: int = 0, n: int = 8) -> nh.io._section.SpatialData:
    """A section of a legacy array: 200 µm, 2 µm per pixel."""
    rng = np.random.default_rng(seed)
    row, col = (part.ravel() for part in np.mgrid[2 : 2 + n, 3 : 3 + n])
    adata = ad.AnnData(rng.poisson(5, (n * n, 12)).astype("float32"))
    adata.var_names = [f"G{i}" for i in range(12)]
    adata.obs_names = [f"{x}x{y}" for x, y in zip(col, row, strict=True)]
    adata.obs["array_row"], adata.obs["array_col"] = row, col
    adata.obsm["spatial"] = np.c_[col, row] * 100.0 + rng.normal(0, 3, (n * n, 2))
    image = np.full((1250, 1250, 3), 235, np.uint8)
    image[150:1150, 200:1200] = rng.integers(0, 60, (1000, 1000, 3)) + np.array([170, 100, 160])
    return nh.io.from_anndata(adata, image.astype(np.uint8), microns_per_pixel=2, spot_diameter=100, section="L")


@pytest.fixture
def spots(fine):
    return fine.subset(["section_0_image", "section_0_spots", "table"])


def edit(folder: Path, name: str, **about: object) -> None:
    """Change what HEST says of a sample."""
    file = folder / "metadata" / f"{name}.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | about))


def test_visium_is_read_as_it_was_written(fine, spots, tmp_path, caplog):
    folder = nh.datasets.hest_folder({"TENX1": fine}, path=tmp_path, patients={"TENX1": "Patient 7"})
    samples = nh.io.hest(folder)
    assert list(samples) == ["TENX1"] and "TENX1" in repr(samples) and not samples._read  # nothing yet
    with caplog.at_level(logging.WARNING, "nh2st_scverse"):
        sdata = samples["TENX1"]
    assert not caplog.records
    table, truth = sdata["table"], spots["table"]
    assert (table.X != truth.X).nnz == 0 and np.allclose(table.obsm["spatial"], truth.obsm["spatial"])
    assert set(table.obs["patient"]) == {"Patient 7"}
    assert sdata["TENX1_spots"]["radius"].iloc[0] == pytest.approx(27.5, rel=1e-3)
    assert set(sdata["TENX1_cells"]["class"]) <= {"Neoplastic", "Inflammatory", "Connective"}
    assert sdata["TENX1_tissue"].area.sum() > 0 and sdata.attrs["hest"]["st_technology"] == "Visium"
    pixels = [one["scale0"]["image"].values for one in (sdata["TENX1_image"], spots["section_0_image"])]
    assert np.array_equal(*pixels) and len(sdata["TENX1_image"].children) > 1
    assert not (nh.pp.check(sdata)["status"] == "error").any()


def test_trained_on_and_predicted(fine, tiny, tmp_path):
    other = nh.datasets.synthetic(width_um=700, n_genes=20, seed=2)
    folder = nh.datasets.hest_folder({"ZEN36": fine, "ZEN40": fine, "ZEN37": other}, path=tmp_path)
    samples = nh.io.hest(folder, ["ZEN36", "ZEN37"])
    model = nh.tl.train(samples, groups="patient", **tiny)
    assert set(model.card.trained_on.values()) == {"P7", "P6"}
    nh.tl.predict_expression(
        samples["ZEN36"],
        model=model,
        encoder=tiny["encoder"],
        shapes_key="ZEN36_cells",
        table_added="cells",
        progress=False,
    )
    assert samples["ZEN36"]["cells"].n_obs == len(samples["ZEN36"]["ZEN36_cells"])


def test_xenium_has_cells_and_transcripts(fine, tmp_path):
    folder = nh.datasets.hest_folder({"TENX95": fine}, path=tmp_path, technology="Xenium")
    sdata = nh.io.hest(folder)["TENX95"]
    assert sdata["table"].X.sum() == fine["cells"].X.sum()
    assert len(sdata["TENX95_xenium_cells"]) == len(sdata["TENX95_xenium_nuclei"]) == fine["cells"].n_obs
    nh.pp.pseudospots(sdata, points_key="TENX95_transcripts")
    assert sdata["pseudospots"].n_vars == 20
    (section,) = locate_sections(sdata, nh._options.Elements.of("pseudospots"))
    assert section.geometry.microns_per_pixel == 1 and section.diameter_um == pytest.approx(55)


def test_legacy_arrays(tmp_path):
    folder = nh.datasets.hest_folder({"SPA119": legacy()}, path=tmp_path, technology="Spatial Transcriptomics")
    (section,) = locate_sections(nh.io.hest(folder)["SPA119"])
    assert section.geometry.microns_per_pixel == pytest.approx(2, rel=0.01)
    assert section.diameter_um == pytest.approx(100, rel=0.01)


def test_heart_sections_have_unique_names_and_the_right_scale(tmp_path, caplog):
    how = {"technology": "Spatial Transcriptomics", "heart": True}
    folder = nh.datasets.hest_folder({"SPA40": legacy()}, path=tmp_path, **how)
    edit(folder, "SPA40", pixel_size_um_estimated=1.6, pixel_size_um_embedded=None)  # a lower bound
    with caplog.at_level(logging.WARNING, "nh2st_scverse"):
        sdata = nh.io.hest(folder)["SPA40"]
    table = sdata["table"]
    assert table.obs_names.is_unique and table.obs["barcode"].duplicated().any() and "array_row" not in table.obs
    (section,) = locate_sections(sdata)
    assert section.geometry.microns_per_pixel == pytest.approx(2, rel=0.03)
    assert "join other files by position" in caplog.text and "1.6 in its table" in caplog.text


def test_skin_arrays_have_their_numbers_exchanged_back(tmp_path, caplog):
    folder = nh.datasets.hest_folder({"NCBI770": legacy()}, path=tmp_path, technology="Spatial Transcriptomics")
    edit(folder, "NCBI770", inter_spot_dist=110.0, spot_diameter=150.0)
    with caplog.at_level(logging.WARNING, "nh2st_scverse"):
        (section,) = locate_sections(nh.io.hest(folder)["NCBI770"])
    assert section.spacing_um == pytest.approx(150, rel=0.03) and section.diameter_um == pytest.approx(110)
    assert "exchanged" in caplog.text
    assert PATIENTS["NCBI770"] == "P2"


@pytest.mark.parametrize(("name", "stated"), [("TENX158", 10.0), ("TENX99", 0.5)])
def test_contradictory_scales_are_named(spots, tmp_path, caplog, name, stated):
    folder = nh.datasets.hest_folder({name: spots}, path=tmp_path)
    edit(folder, name, pixel_size_um_estimated=stated)
    with caplog.at_level(logging.WARNING, "nh2st_scverse"):
        (section,) = locate_sections(nh.io.hest(folder)[name])
    assert section.geometry.microns_per_pixel == pytest.approx(1, rel=1e-3)
    assert f"{stated:.4g} in its table" in caplog.text and "HEST issue 106" in caplog.text


def test_patients_are_repaired_or_unknown(spots, tmp_path, caplog):
    known = {"SPA51": "BC23803", "SPA112": "BC23901", "SPA113": "BC23450", "SPA118": "BC23287", "INT1": "Patient 24"}
    known |= {"INT24": "Patient 1", "ZEN48": "P1", "ZEN36": "P7", "NCBI759": "P10", "SPA154": "A", "SPA119": "H"}
    assert {name: PATIENTS[name] for name in known} == known
    assert [PATIENTS[f"TENX{i}"] for i in (147, 148, 149)] == ["Patient 5", "Patient 2", "Patient 1"]
    assert sum(name.startswith("SPA") and 51 <= int(name[3:]) <= 118 for name in PATIENTS) == 68
    folder = nh.datasets.hest_folder({"MEND1": spots, "TENX128": spots}, path=tmp_path)
    with caplog.at_level(logging.WARNING, "nh2st_scverse"):
        found = [set(sdata["table"].obs["patient"]) for sdata in nh.io.hest(folder).values()]
    assert found == [{"unknown"}] * 2
    assert "its patient is not known" in caplog.text and "the same tissue as TENX155" in caplog.text


def test_names_of_genes_of_both_kinds(spots, tmp_path, caplog):
    folder = nh.datasets.hest_folder({"A1": spots, "A2": spots}, path=tmp_path)
    for name, change in {"A1": "ids", "A2": "symbols"}.items():
        adata = ad.read_h5ad(folder / "st" / f"{name}.h5ad")
        ids = [f"ENSG{i:011d}" for i in range(adata.n_vars)]
        if change == "ids":
            adata.var_names = ids
        else:
            adata.var["gene_ids"] = ids
        adata.write_h5ad(folder / "st" / f"{name}.h5ad")
    with caplog.at_level(logging.WARNING, "nh2st_scverse"):
        samples = dict(nh.io.hest(folder))
    assert caplog.text.count("named by Ensembl ids") == 1
    assert list(samples["A1"]["table"].var["gene_id"]) == list(samples["A2"]["table"].var["gene_id"]) == ids
    assert list(samples["A2"]["table"].var["symbol"]) == list(spots["table"].var_names)
    assert set(samples["A1"]["table"].var["symbol"]) == {""}


def test_reported_faults_are_named(spots, tmp_path, caplog):
    folder = nh.datasets.hest_folder({"NCBI784": spots, "TENX153": spots}, path=tmp_path)
    with caplog.at_level(logging.WARNING, "nh2st_scverse"):
        dict(nh.io.hest(folder))
    assert "do not fit its picture" in caplog.text and "TENX153 to TENX156 are all called Patient 1" in caplog.text


def test_without_tables_of_hest(spots, tmp_path):
    folder = nh.datasets.hest_folder({"A1": spots}, path=tmp_path)
    (folder / "HEST_v1_1_0.csv").unlink()
    (folder / "metadata" / "A1.json").unlink()
    with pytest.raises(ValueError, match="How many µm does one pixel of A1 have"):
        nh.io.hest(folder)["A1"]


def test_what_is_not_there(spots, tmp_path):
    with pytest.raises(FileNotFoundError, match="There is no folder"):
        nh.io.hest(tmp_path / "no")
    with pytest.raises(FileNotFoundError, match="Download samples with the patterns"):
        nh.io.hest(tmp_path)
    folder = nh.datasets.hest_folder({"A1": spots}, path=tmp_path / "h")
    with pytest.raises(KeyError, match="A2"):
        nh.io.hest(folder, ["A1", "A2"])
    with pytest.raises(ValueError, match="choose another id"):
        nh.datasets.hest_folder({"A1": spots}, path=folder)
    assert len(pd.read_csv(folder / "HEST_v1_1_0.csv")) == 1


def test_real_sections_are_the_same_as_by_their_own_readers(data_dir, tmp_path, tiny):
    """her2st C2 and Visium: the same counts, places, µm and pixels, so the same results."""
    own = {"SPA141": nh.io.her2st(data_dir / "her2st", "C2")}
    visium = spatialdata_io.visium(next(iter(sorted((data_dir / "visium_ffpe").glob("mousebrain/*")))), dataset_id="V")
    visium["table"].var_names_make_unique()
    adata, image = visium["table"], visium["V_hires_image"]
    (section,) = locate_sections(visium)
    adata.obs = adata.obs.drop(columns=["region", "spot_id"])
    adata.obsm["spatial"] = section.geometry.pixels()
    microns = section.geometry.microns_per_pixel
    pixels = image.transpose("y", "x", "c").values
    own["NCBI1"] = nh.io.from_anndata(adata, pixels, microns_per_pixel=microns, spot_diameter=55, section="V")
    for name, technology in {"SPA141": "Spatial Transcriptomics", "NCBI1": "Visium"}.items():
        folder = nh.datasets.hest_folder({name: own[name]}, path=tmp_path, technology=technology)
        read = nh.io.hest(folder, [name])[name]
        (a,), (b,) = locate_sections(own[name]), locate_sections(read)
        assert (own[name]["table"].X != read["table"].X).nnz == 0
        assert np.allclose(a.geometry.pixels(), b.geometry.pixels())
        assert a.geometry.microns_per_pixel == pytest.approx(b.geometry.microns_per_pixel, rel=2e-3)
        assert np.array_equal(a.neighbours.nodes, b.neighbours.nodes)
        window = {"y": slice(900, 1000), "x": slice(900, 1000)}
        first, second = (one.geometry.levels[0].array.isel(window).transpose("c", "y", "x").values for one in (a, b))
        assert np.array_equal(first, second)
        model = nh.tl.train(own[name], allow=("coarse",), **tiny)
        for one in (own[name], read):
            nh.tl.predict_expression(one, model=model, encoder=tiny["encoder"], allow=("coarse",), progress=False)
        table, other = own[name]["table"], read["table"][own[name]["table"].obs_names]
        genes = table.var["nh2st"].to_numpy()
        (values, features), (values_read, features_read) = (
            (np.asarray(one.layers["nh2st"])[:, genes], one.obsm["nh2st_features"]) for one in (table, other)
        )
        # HEST tells µm per pixel by the pitch: patches may be a pixel wider
        for a, b in ((features, features_read), (values, values_read)):
            assert np.abs(a - b).mean() < 0.05 * a.std(axis=0).mean()
            assert min(np.corrcoef(x, y)[0, 1] for x, y in zip(a.T, b.T, strict=True)) > 0.99
    assert set(nh.io.hest(tmp_path, "SPA141")["SPA141"]["table"].obs["patient"]) == {"C"}
