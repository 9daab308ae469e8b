"""Samples of HEST-1k in its layout, with the faults that they are known to have."""

from __future__ import annotations

import json
import logging
import re
import zipfile
from pathlib import Path

import anndata as ad
import geopandas as gpd
import numpy as np
import pandas as pd
import pytest
import shapely
import spatialdata_io

import nh2st_scverse as nh
from nh2st_scverse.data.section import locate_sections
from nh2st_scverse.io._hest_facts import KNOWN, PATIENTS


def jittered(seed: int = 0, n: int = 8) -> nh.io._section.SpatialData:
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


def test_patients_are_held_out_together_and_cells_predicted(fine, tiny, tmp_path):
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
    folder = nh.datasets.hest_folder({"SPA119": jittered()}, path=tmp_path, technology="Spatial Transcriptomics")
    (section,) = locate_sections(nh.io.hest(folder)["SPA119"])
    assert section.geometry.microns_per_pixel == pytest.approx(2, rel=0.01)
    assert section.diameter_um == pytest.approx(100, rel=0.01)


def test_heart_sections_have_unique_names_and_the_right_scale(tmp_path, caplog):
    how = {"technology": "Spatial Transcriptomics", "heart": True}
    folder = nh.datasets.hest_folder({"SPA40": jittered()}, path=tmp_path, **how)
    edit(folder, "SPA40", pixel_size_um_estimated=1.6, pixel_size_um_embedded=None)  # a lower bound
    with caplog.at_level(logging.WARNING, "nh2st_scverse"):
        sdata = nh.io.hest(folder)["SPA40"]
    table = sdata["table"]
    assert table.obs_names.is_unique and table.obs["barcode"].duplicated().any() and "array_row" not in table.obs
    (section,) = locate_sections(sdata)
    assert section.geometry.microns_per_pixel == pytest.approx(2, rel=0.03)
    assert "join other files by position" in caplog.text and "1.6 in its table" in caplog.text


def test_skin_arrays_have_their_numbers_exchanged_back(tmp_path, caplog):
    folder = nh.datasets.hest_folder({"NCBI770": jittered()}, path=tmp_path, technology="Spatial Transcriptomics")
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


STNET = """BC23803 51-53, BC23377 54-56, BC23288 57-59, BC23209 60-62, BC23895 63-65, BC23508 66-68, BC23506 69-71,
BC23277 72-74, BC23270 75-77, BC24223 78-80, BC23272 81-83, BC23269 84-86, BC23268 87-89, BC24105 90-92, BC24044 93-95,
BC23903 96-98, BC23810 99-101, BC23567 102-104, BC24220 105-107, BC23944 108-110, BC23901 111-112, BC23450 113-115,
BC23287 116-118"""
HER2 = "A 149-154, B 143-148, C 137-142, D 131-136, E 128-130, F 125-127, G 122-124, H 119-121"
SKIN = "P10 759-761, P9 762-764, P5 765-767, P2 768-770"
ZEN = "P7 36-36, P7 40-40, P6 37-37, P6 41-41, P5 38-38, P5 42-42, P4 39-39, P4 43-43, P3 44-45, P2 46-47, P1 48-49"
TENX = "Patient~5 147-147, Patient~2 148-148, Patient~1 149-149"


def test_patients_are_those_that_are_known():
    known = {f"INT{k}": f"Patient {25 - k}" for k in range(1, 25)}
    for prefix, text in {"SPA": f"{STNET}, {HER2}", "NCBI": SKIN, "ZEN": ZEN, "TENX": TENX}.items():
        for patient, numbers in re.findall(r"([\w~]+) ([\d-]+)", text):
            first, last = map(int, numbers.split("-"))
            known |= {f"{prefix}{i}": patient.replace("~", " ") for i in range(first, last + 1)}
    assert known == PATIENTS


def test_patients_of_the_table_or_unknown(spots, tmp_path, caplog):
    folder = nh.datasets.hest_folder(dict.fromkeys(("MEND1", "MEND2", "MEND3"), spots), path=tmp_path)
    csv = folder / "HEST_v1_1_0.csv"
    old = pd.read_csv(csv)
    old.assign(patient=["9", "9", "9"]).to_csv(csv, index=False)
    newer = {"patient": [7, None, None], "license": ["CC BY 4.0", None, None]}  # which pandas reads as 7.0
    old.assign(**newer).to_csv(folder / "HEST_v1_3_0.csv", index=False)
    with caplog.at_level(logging.WARNING, "nh2st_scverse"):
        samples = nh.io.hest(folder, ["MEND1", "MEND2"])
        found = [set(sdata["table"].obs["patient"]) for sdata in samples.values()]
    assert found == [{"7"}, {"unknown"}] and caplog.text.count("its patient is not known") == 1
    assert samples["MEND1"].attrs["hest"]["license"] == "CC BY 4.0"


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


def test_genes_that_a_sample_lacks(fine, legacy, tiny, tmp_path):
    """HEST leaves out what is not expressed in a sample; ids do not meet symbols."""
    other = nh.datasets.synthetic(width_um=700, n_genes=20, seed=2)
    folder = nh.datasets.hest_folder({"A1": fine, "A2": other, "A3": other}, path=tmp_path)
    for name, genes in {"A1": slice(4, None), "A2": slice(16), "A3": slice(None)}.items():
        adata = ad.read_h5ad(folder / "st" / f"{name}.h5ad")[:, genes].copy()
        if name == "A3":
            adata.var_names = [f"ENSG{i:011d}" for i in range(adata.n_vars)]
        adata.write_h5ad(folder / "st" / f"{name}.h5ad")
    model = nh.tl.train(nh.io.hest(folder, ["A1", "A2"]), **tiny)
    assert set(model.genes) <= set(fine["table"].var_names[4:16])
    with pytest.raises(ValueError, match="gene"):
        nh.tl.train(nh.io.hest(folder, ["A1", "A3"]), **tiny)


FAULTS = {
    "NCBI784": "do not fit its picture",
    "TENX122": "its pseudo-spots are not of 100 µm",
    "TENX155": "the same tissue as TENX128",
    "TENX128": "the same tissue as TENX155",
    "TENX158": "off by ten",
    "TENX99": "contradict each other",
} | dict.fromkeys(("TENX153", "TENX154", "TENX156"), "TENX153 to TENX156 are all called Patient 1")


def test_reported_faults_are_named(spots, tmp_path, caplog):
    folder = nh.datasets.hest_folder({"NCBI784": spots}, path=tmp_path)
    with caplog.at_level(logging.WARNING, "nh2st_scverse"):
        dict(nh.io.hest(folder))
    assert "NCBI784 of HEST-1k: its spots do not fit its picture" in caplog.text
    assert set(KNOWN) == set(FAULTS) and all(text in KNOWN[name] for name, text in FAULTS.items())


def test_pseudospots_of_another_size(fine, tmp_path, caplog):
    """As those of NCBI784: µm per pixel was wrong when they were laid."""
    folder = nh.datasets.hest_folder({"X1": fine}, path=tmp_path, technology="Xenium")
    edit(folder, "X1", pixel_size_um_estimated=0.58, spot_diameter=None, inter_spot_dist=float("nan"))
    with caplog.at_level(logging.WARNING, "nh2st_scverse"):
        (section,) = locate_sections(nh.io.hest(folder)["X1"])
    assert "pseudo-spots of 100 µm are 58.0 µm apart at 0.58 µm per pixel" in caplog.text
    assert section.diameter_um == pytest.approx(58)


def test_cells_in_an_archive_and_files_of_earlier_versions(fine, tmp_path, caplog):
    folder = nh.datasets.hest_folder({"A1": fine}, path=tmp_path)
    stored = folder / "cellvit_seg" / "A1_cellvit_seg.parquet"
    nuclei = gpd.read_parquet(stored)
    stored.unlink()
    of_class = [
        {
            "type": "Feature",
            "geometry": json.loads(shapely.to_geojson(shapely.MultiPolygon(list(part.geometry)))),
            "properties": {"objectType": "annotation", "classification": {"name": name}},
        }
        for name, part in nuclei.groupby("class")
    ]
    with zipfile.ZipFile(folder / "cellvit_seg" / "A1_cellvit_seg.geojson.zip", "w") as archive:
        archive.writestr("A1_cellvit_seg.geojson", json.dumps(of_class))
    (folder / "tissue_seg" / "A1_contours.geojson").unlink()
    for name in ("tissue_seg/A1_mask.jpg", "tissue_seg/A1_mask.pkl", "patches/A1.h5", "thumbnails/A1.jpg"):
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).touch()
    sdata = nh.io.hest(folder)["A1"]
    assert sdata["A1_cells"]["class"].value_counts().to_dict() == nuclei["class"].value_counts().to_dict()
    assert set(sdata.shapes) == {"A1_spots", "A1_cells"}
    assert {"downscaled_fullres"} == set(sdata["table"].uns["spatial"]["ST"]["images"])  # img_key= of scanpy
    nuclei.iloc[:0].to_parquet(stored)  # none were found
    with caplog.at_level(logging.WARNING, "nh2st_scverse"):
        assert set(nh.io.hest(folder)["A1"].shapes) == {"A1_spots"}
    assert "is read without A1_cellvit_seg.parquet" in caplog.text


@pytest.mark.parametrize(
    ("names", "technology"),
    [
        ("ZEN36 ZEN37", "Visium"),
        ("TENX95 TENX96", "Xenium"),
        ("TENX157 TENX159", "Visium HD"),
        ("SPA119 SPA122", "Spatial Transcriptomics"),
        ("SPA30 SPA40", "heart"),
        ("NCBI759 NCBI770", "skin"),
    ],
    ids=["Visium", "Xenium", "HD", "ST", "heart", "skin"],
)
def test_checked_trained_on_and_predicted_as_they_come(names, technology, fine, legacy, tiny, tmp_path):
    heart, skin = technology == "heart", technology == "skin"
    fine_ones = [fine, nh.datasets.synthetic(width_um=700, n_genes=20, bins_um=16, cells=True, seed=2)]
    drawn = legacy if technology in ("Spatial Transcriptomics", "heart", "skin") else fine_ones
    how = {"technology": "Spatial Transcriptomics" if heart or skin else technology, "heart": heart}
    folder = nh.datasets.hest_folder(dict(zip(names.split(), drawn, strict=True)), path=tmp_path, **how)
    samples = nh.io.hest(folder)
    first = next(iter(samples.values()))
    lines = nh.pp.check(first)
    assert not (lines["status"] == "error").any(), lines
    model = nh.tl.train(samples, **tiny)
    nh.tl.predict_expression(first, model=model, encoder=tiny["encoder"], progress=False)
    values = first["table"][:, model.genes].layers["nh2st"]
    assert np.isfinite(values).all() and (values.std(axis=0) > 0).all()
    wide = {"Visium": 55, "Visium HD": 128, "skin": 110}.get(technology, 100)
    assert locate_sections(first)[0].diameter_um == pytest.approx(
        wide, rel=0.01
    ) and model.card.spot_um == pytest.approx(wide, rel=0.01)


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
