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


def legacy_folder(root: Path, spots: sd.SpatialData, names: list[str], *, original: bool = False) -> Path:
    """Sections in TRIPLEX's layout or in that of the original source."""
    table = spots["table"]
    xy = table.obsm["spatial"]
    place = table.obs[["array_col", "array_row"]].to_numpy() // [2, 1] + 1
    image = Image.fromarray(spots["section_0_image"]["scale0"]["image"].transpose("y", "x", "c").values)
    keep = ~pd.DataFrame(place).duplicated().to_numpy()
    counts = table.to_df()[keep].astype(int).set_axis([f"{x}x{y}" for x, y in place[keep]])
    frame = pd.DataFrame(np.c_[place, xy][keep], columns=["x", "y", "pixel_x", "pixel_y"])
    frame = frame.astype({"x": int, "y": int})
    for name in names:
        if original:
            folder = root / "Luminal" / name[:7]
            folder.mkdir(parents=True, exist_ok=True)
            counts.to_csv(folder / f"{name}.tsv.gz", sep="\t")
            frame[["pixel_x", "pixel_y", "x", "y"]].to_csv(folder / f"{name}.spots.txt", index=False)
            image.save(folder / f"{name}.jpg", quality=95)
            continue
        for part in ("ST-cnts", "ST-imgs", "ST-spotfiles"):
            (root / part).mkdir(parents=True, exist_ok=True)
        counts.to_parquet(root / "ST-cnts" / f"{name}_sub.parquet")
        frame.assign(selected=1).to_csv(root / "ST-spotfiles" / f"{name}_selection.tsv", sep="\t", index=False)
        stained = f"HE_{name}.tif" if name.startswith("BC") else f"{name}.jpg"
        image.save(root / "ST-imgs" / stained)
    np.save(root / "genes_test.npy", np.array(list(table.var_names[:8]), dtype=str))
    return root


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


@pytest.mark.parametrize("original", [False, True])
def test_stnet_by_its_own_files(spots, original, tmp_path):
    names = ["BC23209_C1", "BC23209_C2", "BC23270_D1"]
    data = nh.datasets.paper("STNet", legacy_folder(tmp_path, spots, names, original=original))
    assert data.layout == ("original" if original else "TRIPLEX")
    assert data.groups == data.safe_groups == {name: name[:7] for name in names} and not data.leaks
    assert {frozenset(fold) for fold in data.folds} == {frozenset({"BC23209"}), frozenset({"BC23270"})}
    assert data.genes == tuple(spots["table"].var_names[:8])
    assert data.sections["BC23209_C1"]["table"].n_obs > 20
    assert data.sections["BC23209_C1"] is data.sections["BC23209_C1"]


def test_skin_has_the_pitch_of_its_array(spots, tmp_path):
    data = nh.datasets.paper(
        "Skin", legacy_folder(tmp_path, spots, ["GSM4284316_P2_ST_rep1", "GSM4284325_P10_ST_rep1"])
    )
    assert set(data.groups.values()) == {"P2", "P10"} and data.folds == (("P10",), ("P2",))
    shapes = data.sections["GSM4284316_P2_ST_rep1"]["GSM4284316_P2_ST_rep1_spots"]
    um = np.sqrt(100 * 86.6)  # of a place of the array that the drawn one stands in for; 106 µm are taken
    assert shapes["radius"].iloc[0] == pytest.approx(55 / (106.07 / um), rel=0.05)


@pytest.mark.parametrize(
    ("name", "slides"),
    [
        ("PCW", ["Human_Heart_Asp_12122019_ST_ST_Sample_6.5PCW_1", "Human_Heart_Asp_12122019_ST_ST_Sample_9PCW_1"]),
        ("Mouse", ["Mouse_OlfactoryBulb_Stahl_07012016_ST_Rep1", "Mouse_OlfactoryBulb_Stahl_07012016_ST_Rep10"]),
    ],
)
def test_slides_of_stimage(spots, name, slides, tmp_path, caplog):
    how = {"technology": "ST", "ids": "experiment" if name == "PCW" else "decimal"}
    folder = nh.datasets.stimage_folder(dict.fromkeys(slides, spots), path=tmp_path, **how)
    with caplog.at_level(logging.WARNING, "nh2st_scverse"):
        data = nh.datasets.paper(name, folder)
    assert data.layout == "STimage-1K4M" and sorted(data.sections) == sorted(slides)
    assert np.array_equal(data.sections[slides[0]]["table"].X.toarray(), spots["table"].X.toarray())
    if name == "Mouse":
        assert data.leaks and data.safe_folds == () and "patients are not known" in caplog.text
    else:
        assert data.folds == (("6.5PCW",), ("9PCW",)) and not data.leaks


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
    arguments = ["ZEN", "--root", str(folder), "--out", str(tmp_path / "out"), "--presets", "paper"]
    settings = tiny | {"fine_tune": False, "baselines": ["mean"]}
    table = module.main(arguments, **settings)
    assert list(dict.fromkeys(table.index.get_level_values(0))) == ["published", "safe", "as published"]
    ours = table.loc[("published", "nh2st, paper")]
    assert np.isfinite(ours.to_numpy(float)).all() and table.loc[("as published", "NH2ST"), "mse smoothed"] == 0.108
    monkeypatch.setattr(nh.tl, "cross_validate", None)
    pd.testing.assert_frame_equal(module.main(arguments, **settings), table)
    assert "as published" in capsys.readouterr().out
