"""The six data sets in the layouts that they are downloaded in, and their folds."""

from __future__ import annotations

import importlib.util
import logging
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import spatialdata as sd
from PIL import Image

import nh2st_scverse as nh
from nh2st_scverse.datasets._paper import IN_HEST, SPLITS, STNET_PATIENTS, _folds, _patient

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def spots(fine) -> sd.SpatialData:
    return fine.subset(["section_0_image", "section_0_spots", "table"])


def legacy_folder(root: Path, sections: dict[str, sd.SpatialData], *, original: bool = False) -> Path:
    """Sections in TRIPLEX's layout or in that of the original source, with what else lies beside them."""
    for name, sdata in sections.items():
        table, skin = sdata["table"], name.startswith("GSM")
        image = Image.fromarray(sdata["section_0_image"]["scale0"]["image"].transpose("y", "x", "c").values)
        counts = table.to_df().astype(int)
        place, xy = table.obs[["array_col", "array_row"]].to_numpy(), table.obsm["spatial"]
        frame = pd.DataFrame({"x": place[:, 0], "y": place[:, 1]})
        if skin:
            frame = frame.assign(new_x=place[:, 0] + 0.03, new_y=place[:, 1] - 0.04)
        frame = frame.assign(pixel_x=xy[:, 0], pixel_y=xy[:, 1])
        if original and skin:  # as GEO has them
            number, section = name.split("_", 1)
            counts.to_csv(root / f"{name}_stdata.tsv.gz", sep="\t")
            frame.to_csv(root / f"{number}_spot_data-selection-{section}.tsv.gz", sep="\t", index=False)
            image.save(root / f"{name}.jpg", quality=95)
        elif original:
            folder = root / "Luminal" / name[:7]
            folder.mkdir(parents=True, exist_ok=True)
            counts.columns = [f"ENSG{i:011d}" for i in range(counts.shape[1])]
            counts.to_csv(folder / f"{name}.tsv.gz", sep="\t")
            frame[["pixel_x", "pixel_y", "x", "y"]].to_csv(folder / f"{name}.spots.txt", index=False)
            image.save(folder / f"{name}.jpg", quality=95)
            frame[["x", "y"]].assign(tumor="tumor").to_csv(folder / f"{name}_Coords.tsv", sep="\t")
        else:
            for part in ("ST-cnts", "ST-imgs", "ST-spotfiles", f"gt_features_224/{name}", "n_features_5_224"):
                (root / part).mkdir(parents=True, exist_ok=True)
            counts.to_parquet(root / "ST-cnts" / f"{name}_sub.parquet")
            frame.assign(**{"selected": 1} if skin else {}).to_csv(  # of STNet with a column of row numbers
                root / "ST-spotfiles" / f"{name}_selection.tsv", sep="\t", index=not skin, index_label="index"
            )
            image.save(root / "ST-imgs" / (f"{name}.jpg" if skin else f"HE_{name}.tif"))
    np.save(root / "genes_test.npy", np.array(list(counts.columns[:8]), dtype=str))
    return root


HEART = "Human_Heart_Asp_12122019_ST_ST_Sample_"
BULB = "Mouse_OlfactoryBulb_Stahl_07012016_ST_Rep"
LAYOUTS = {
    ("STNet", "original"): ("BC23209_C1", "BC23270_D1"),
    ("STNet", "TRIPLEX"): ("BC23209_C1", "BC23270_D1"),
    ("STNet", "HEST-1k"): ("SPA60", "SPA75"),
    ("Skin", "original"): ("GSM4284316_P2_ST_rep1", "GSM4284325_P10_ST_rep1"),
    ("Skin", "TRIPLEX"): ("GSM4284316_P2_ST_rep1", "GSM4284325_P10_ST_rep1"),
    ("Skin", "STimage-1K4M"): ("GSE144239_GSM4284316", "GSE144239_GSM4284325"),
    ("Skin", "HEST-1k"): ("NCBI770", "NCBI759"),
    ("PCW", "STimage-1K4M"): (f"{HEART}6.5PCW_1", f"{HEART}9PCW_1"),
    ("PCW", "HEST-1k"): ("SPA40", "SPA30"),
    ("Mouse", "STimage-1K4M"): (f"{BULB}1", f"{BULB}10"),
    ("Mouse", "HEST-1k"): ("SPA15", "SPA6"),
    ("INT", "HEST-1k"): ("INT1", "INT24"),
    ("ZEN", "HEST-1k"): ("ZEN40", "ZEN49"),
}
GROUPS = {
    "STNet": ("BC23209", "BC23270"),
    "Skin": ("P2", "P10"),
    "PCW": ("6.5PCW", "9PCW"),
    "INT": ("Patient 24", "Patient 1"),
    "ZEN": ("P7", "P1"),
    "Mouse": ("unknown", "unknown"),
}


@pytest.mark.parametrize(("name", "layout"), LAYOUTS, ids=[" ".join(key) for key in LAYOUTS])
def test_checked_trained_on_and_predicted_in_each_layout(name, layout, legacy, spots, tiny, tmp_path):
    ids, places = LAYOUTS[name, layout], {"PCW": "experiment", "Mouse": "decimal"}
    visium = [spots, nh.datasets.synthetic(width_um=700, n_genes=20, seed=2)]
    sections = dict(zip(ids, visium if name in ("INT", "ZEN") else legacy, strict=True))
    if layout == "HEST-1k":
        technology = "Visium" if name in ("INT", "ZEN") else "Spatial Transcriptomics"
        nh.datasets.hest_folder(sections, path=tmp_path, technology=technology, heart=name == "PCW")
    elif layout == "STimage-1K4M":
        how = {"technology": "ST", "ids": places.get(name, "place")}
        nh.datasets.stimage_folder(sections | {"Mouse_Brain_10X": legacy[0]}, path=tmp_path, **how)
    else:
        legacy_folder(tmp_path, sections, original=layout == "original")
    data = nh.datasets.paper(name, tmp_path)
    assert data.layout == layout and sorted(data.sections) == sorted(ids)
    assert tuple(data.safe_groups[one] for one in ids) == GROUPS[name]
    first = data.sections[ids[0]]
    assert np.array_equal(
        np.sort(first["table"].X.toarray(), axis=0), np.sort(sections[ids[0]]["table"].X.toarray(), 0)
    )
    lines = nh.pp.check(first)
    assert not (lines["status"] == "error").any(), lines
    model = nh.tl.train(data.sections, groups=data.groups, **tiny)
    nh.tl.predict_expression(first, model=model, encoder=tiny["encoder"], progress=False)
    values = first["table"][:, model.genes].layers["nh2st"]
    assert np.isfinite(values).all() and (values.std(axis=0) > 0).all()
    wide = 110 if name == "Skin" else 55 if name in ("INT", "ZEN") else 100
    assert model.card.spot_um == pytest.approx(wide, rel=0.01)


PUBLISHED = {
    "STNet": "BC23277 BC23287 BC23508|BC24105 BC24220 BC24223|BC23803 BC23377 BC23895|BC23272 BC23288 BC23903|"
    "BC23270 BC23268 BC23567|BC23269 BC23810 BC23901|BC23209 BC23450 BC23506|BC23944 BC24044",
    "ZEN": "ZEN40 ZEN41 ZEN45 ZEN48|ZEN42 ZEN47 ZEN49|ZEN43 ZEN44 ZEN46",
    "Mouse": "S_Rep10 S_Rep7 S_Rep8|S_Rep12 S_Rep3 S_Rep6|S_Rep11 S_Rep2 S_Rep9|S_Rep1 S_Rep4 S_Rep5",
    "INT": "INT20 INT24 INT35 INT8|INT1 INT17 INT18 INT3|INT2 INT21 INT23 INT7|INT10 INT13 INT14 INT25|"
    "INT11 INT12 INT4 INT5|INT26 INT6 INT9|INT16 INT19 INT28|INT15 INT22 INT27",
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_folds_are_the_published_ones(name):
    expected = {frozenset(fold.split()) for fold in PUBLISHED[name].split("|")}
    groups = sorted(set().union(*expected))
    assert {frozenset(fold) for fold in _folds(name, groups, SPLITS[name])} == expected
    if name == "INT":
        first = "INT1 INT17 INT24"
        found = _folds(name, sorted(f"INT{i}" for i in range(1, 25)), SPLITS[name])
        assert frozenset(first.split()) in {frozenset(fold) for fold in found}
    if name == "Mouse":  # as HEST calls them
        found = _folds(name, sorted(IN_HEST["Mouse"]), SPLITS[name])
        assert {frozenset(f"S_Rep{16 - int(one[3:])}" for one in fold) for fold in found} == expected


def test_patients_and_ages():
    assert len(set(STNET_PATIENTS)) == 23
    assert {_patient("STNet", one) for one in IN_HEST["STNet"]} == set(STNET_PATIENTS)
    assert {_patient("Skin", one) for one in IN_HEST["Skin"]} == {"P2", "P5", "P9", "P10"}
    ages = [_patient("PCW", one) for one in IN_HEST["PCW"]]
    assert [ages.count(age) for age in ("4.5-5PCW", "6.5PCW", "9PCW")] == [4, 9, 6]
    assert _patient("PCW", "Human_Heart_Asp_12122019_ST_ST_Sample_4.5-5PCW_2") == "4.5-5PCW"
    assert _patient("Skin", "GSM4284316_P2_ST_rep1") == "P2" and _patient("Skin", "GSM4284326_P10_ST_rep2") == "P10"


def test_stnet_by_its_own_files(legacy, tmp_path):
    names = ["BC23209_C1", "BC23209_C2", "BC23270_D1"]
    data = nh.datasets.paper("STNet", legacy_folder(tmp_path, dict.fromkeys(names, legacy[0])))
    assert data.groups == data.safe_groups == {name: name[:7] for name in names} and not data.leaks
    assert {frozenset(fold) for fold in data.folds} == {frozenset({"BC23209"}), frozenset({"BC23270"})}
    assert data.genes == tuple(legacy[0]["table"].var_names[:8]) and not data.unranked
    assert data.sections["BC23209_C1"] is data.sections["BC23209_C1"]


def test_skin_has_the_pitch_of_its_array(legacy, tmp_path):
    """A checkerboard of 150 µm: rows and columns are 106 µm apart."""
    sections = dict.fromkeys(["GSM4284316_P2_ST_rep1", "GSM4284325_P10_ST_rep1"], legacy[0])
    data = nh.datasets.paper("Skin", legacy_folder(tmp_path, sections))
    assert set(data.groups.values()) == {"P2", "P10"} and data.folds == (("P10",), ("P2",))
    (section,) = nh.data.section.locate_sections(data.sections["GSM4284316_P2_ST_rep1"])
    assert section.spacing_um == pytest.approx(150 / np.sqrt(2)) and section.diameter_um == pytest.approx(110)


def test_mice_are_not_known_and_ages_are_held_out(legacy, tmp_path, caplog):
    slides = [f"{BULB}1", f"{BULB}10", f"{HEART}6.5PCW_1", f"{HEART}9PCW_1"]
    folder = nh.datasets.stimage_folder(dict.fromkeys(slides, legacy[0]), path=tmp_path, technology="ST")
    with caplog.at_level(logging.WARNING, "nh2st_scverse"):
        mouse, heart = (nh.datasets.paper(name, folder) for name in ("Mouse", "PCW"))
    assert mouse.leaks and mouse.safe_folds == () and "Mouse: patients are not known" in caplog.text
    assert heart.folds == (("6.5PCW",), ("9PCW",)) and not heart.leaks


def test_which_panel(spots, tmp_path, caplog):
    folder = nh.datasets.hest_folder({"INT1": spots, "ZEN40": spots}, path=tmp_path)
    for name in ("INT", "ZEN"):
        np.save(folder / f"genes_{name}.npy", np.array([f"{name}1"]))
    with caplog.at_level(logging.WARNING, "nh2st_scverse"):
        zen = nh.datasets.paper("ZEN", folder)
    assert (
        zen.genes == ("ZEN1",) and zen.unranked and "genes of the published panel are hardly expressed" in caplog.text
    )
    (folder / "genes_ZEN.npy").rename(folder / "genes_a.npy")
    (folder / "genes_INT.npy").rename(folder / "genes_b.npy")
    with caplog.at_level(logging.WARNING, "nh2st_scverse"):
        assert nh.datasets.paper("ZEN", folder).genes is None
    assert "which of ['genes_a.npy', 'genes_b.npy'] is it?" in caplog.text


def test_leaks_of_zen_are_told_and_mended(spots, tmp_path, caplog):
    ids = ["ZEN40", "ZEN44", "ZEN45", "ZEN46"]
    folder = nh.datasets.hest_folder(dict.fromkeys(ids, spots), path=tmp_path)
    with caplog.at_level(logging.WARNING, "nh2st_scverse"):
        data = nh.datasets.paper("ZEN", folder)
    assert (
        data.layout == "HEST-1k" and data.leaks and "hold out sections, and others of the same patient" in caplog.text
    )
    assert set(data.folds) == {("ZEN40", "ZEN45"), ("ZEN44", "ZEN46")}  # 44 and 45 are of P3
    assert data.safe_folds == (("P2",), ("P3",), ("P7",))


def test_what_is_not_there(tmp_path):
    with pytest.raises(FileNotFoundError, match="Expected sections of Skin"):
        nh.datasets.paper("Skin", tmp_path)
    with pytest.raises(ValueError, match="name to be one of"):
        nh.datasets.paper("skin", tmp_path)


def test_the_benchmark_goes_on_where_it_was(spots, tiny, tmp_path, capsys, monkeypatch):
    """A miniature of ZEN: published and honest metric beside the published figure; what is done is not done again."""
    spec = importlib.util.spec_from_file_location("paper_benchmark", ROOT / "tests" / "benchmarks" / "paper.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    two = {seed: nh.datasets.synthetic(width_um=700, n_genes=20, seed=seed) for seed in (2, 3)}
    sections = {"ZEN40": spots, "ZEN44": two[2], "ZEN45": two[3]}
    folder = nh.datasets.hest_folder(sections, path=tmp_path / "hest")
    np.save(folder / "genes_ZEN.npy", np.array(list(spots["table"].var_names[-8:]), dtype=str))
    arguments = ["ZEN", "--root", str(folder), "--out", str(tmp_path / "out"), "--presets", "paper"]
    settings = tiny | {"fine_tune": False, "baselines": ["mean"]}
    table = module.main(arguments, **settings)
    assert list(dict.fromkeys(table.index.get_level_values(0))) == [
        "published",
        "most expressed",
        "safe",
        "as published",
    ]
    ours = table.loc[("published", "nh2st, paper")]
    assert np.isfinite(ours.to_numpy(float)).all() and table.loc[("as published", "NH2ST"), "mse smoothed"] == 0.108
    monkeypatch.setattr(nh.tl, "cross_validate", None)
    pd.testing.assert_frame_equal(module.main(arguments, **settings), table)
    assert "as published" in capsys.readouterr().out
