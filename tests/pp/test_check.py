from __future__ import annotations

import joblib
import numpy as np
import pytest
from spatialdata import SpatialData

import nh2st_scverse as nh
from nh2st_scverse.data.expression import measured


@pytest.fixture
def two() -> SpatialData:
    return nh.datasets.synthetic(n_sections=2, width_um=1200, microns_per_pixel=2)


def test_shows_what_will_be_used(two: SpatialData) -> None:
    before = joblib.hash([two.tables["table"].X, two.tables["table"].obs, list(two.tables["table"].uns)])
    found = nh.pp.check(two)
    assert list(found) == ["section_0_spots", "section_1_spots"]
    first = found["section_0_spots"]
    assert first["image"] == "section_0_image"
    assert first["image size (px)"] == "600 x 600"
    assert first["µm per pixel"] == 2.0
    assert first["µm per pixel from"] == "coordinate system 'section_0_microns'"
    assert first["spots"] == (two.tables["table"].obs["region"] == "section_0_spots").sum()
    assert first["spots without image"] == 0
    assert first["spot spacing (µm)"] == pytest.approx(100)
    assert (first["patch (µm)"], first["patch (px of the image)"]) == (75, 38)
    assert first["expression"] == "counts"
    at = two.tables["table"].obsm["spatial"][: first["spots"]] * 2
    wide = nh.pp.check(two, patch_um=400.0)["section_0_spots"]
    assert wide["patches over the border"] == ((at < 200) | (at > 1000)).any(axis=1).sum() > 0
    after = joblib.hash([two.tables["table"].X, two.tables["table"].obs, list(two.tables["table"].uns)])
    assert before == after


def test_follows_the_arguments(two: SpatialData) -> None:
    two.tables["table"].layers["logged"] = measured(two.tables["table"])
    found = nh.pp.check(two, shapes_key="section_1_spots", layer="logged", microns_per_pixel=1.0, patch_um=50.0)
    assert list(found) == ["section_1_spots"]
    column = found["section_1_spots"]
    assert column["expression"] == "logarithms"
    assert column["µm per pixel from"] == "given"
    assert column["spot spacing (µm)"] == pytest.approx(50)
    assert column["patch (px of the image)"] == 50


def test_raises_what_the_tools_would(two: SpatialData, caplog: pytest.LogCaptureFixture) -> None:
    with pytest.raises(ValueError, match=r"too coarse: 2.00 µm per pixel .*only 25 px wide.*allow='coarse'"):
        nh.pp.check(two, patch_um=50.0)
    nh.pp.check(two, patch_um=50.0, allow="coarse")
    assert "Going on as told" in caplog.text
    with pytest.raises(ValueError, match="patch_um to be a number above 0, found 0"):
        nh.pp.check(two, patch_um=0)
    two.tables["table"].X.data[0] = np.nan
    with pytest.raises(ValueError, match="finite counts in X"):
        nh.pp.check(two)
