from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import geopandas as gpd
import joblib
import numpy as np
import pandas as pd
import pytest
import spatialdata
from shapely import Point, box
from skimage.filters import gaussian
from spatialdata import SpatialData
from spatialdata.models import Image2DModel, ShapesModel
from spatialdata.transformations import get_transformation, remove_transformation

import nh2st_scverse as nh
from nh2st_scverse.data.expression import measured


@pytest.fixture(scope="module")
def _two() -> SpatialData:
    return nh.datasets.synthetic(n_sections=2, width_um=1200)


@pytest.fixture
def two(_two: SpatialData) -> SpatialData:
    return spatialdata.deepcopy(_two)


class Means:
    """Mean colours: quick."""

    name, input_size, dim, weights_hash = "means", 16, 3, "none"

    def __call__(self, patches: np.ndarray) -> np.ndarray:
        return patches.mean(axis=(1, 2), dtype=np.float32)


def lines(sdata: SpatialData, section: str, **arguments: Any) -> pd.DataFrame:
    found = nh.pp.check(sdata, **arguments)
    return found[found["section"] == section].set_index("check")


def test_shows_what_will_be_used(two: SpatialData) -> None:
    before = joblib.hash([two.tables["table"].X, two.tables["table"].obs, list(two.tables["table"].uns)])
    found = nh.pp.check(two)
    assert list(found) == ["section", "check", "found", "status", "remedy"]
    assert list(dict.fromkeys(found["section"])) == ["", "section_0_spots", "section_1_spots"]
    assert (found["status"] == "ok").all() and (found["remedy"] == "").all()
    whole, first = lines(two, "")["found"], lines(two, "section_0_spots")["found"]
    n = (two.tables["table"].obs["region"] == "section_0_spots").sum()
    assert whole["table"] == f"'table': {two.tables['table'].n_obs} spots x 300 genes"
    assert whole["expression"] == "counts in X"
    assert first["image"] == "'section_0_image', 1200 x 1200 px, 2 levels"
    assert first["µm per pixel"] == "1 (coordinate system 'section_0_microns')"
    assert first["spots"] == f"{n}, 55.0 µm wide, 100.0 µm apart, hexagonal"
    assert first["patch"] == "75 µm, 75 px of the image; read from level 0 (1 µm per pixel)"
    assert re.fullmatch(r"\d+% of the spots are on tissue; swapped, \d+% would be", first["x and y"])
    assert whole["names"] == "of spots and genes are unique"
    assert first["focus"].startswith("sharp: ") and first["stain"].startswith("as usual: ")
    at = two.tables["table"].obsm["spatial"][:n]
    border = ((at < 225) | (at > 975)).any(axis=1).sum()
    wide = lines(two, "section_0_spots", patch_um=450.0)["found"]["patch"]
    assert wide == f"450 µm, 450 px of the image; read from level 1 (2 µm per pixel); {border} reach over the " + (
        "border and are padded"
    )
    after = joblib.hash([two.tables["table"].X, two.tables["table"].obs, list(two.tables["table"].uns)])
    assert before == after


def repainted(sdata: SpatialData, change: Callable[[np.ndarray], np.ndarray]) -> SpatialData:
    """Every image with other pixels (y, x, c)."""
    for key, image in sdata.images.items():
        pixels = change(image["scale0"]["image"].transpose("y", "x", "c").values.astype(np.float32))
        systems = get_transformation(image, get_all=True)
        sdata.images[key] = Image2DModel.parse(
            np.clip(pixels, 0, 255).round().astype(np.uint8).transpose(2, 0, 1),
            dims=("c", "y", "x"),
            scale_factors=[2],
            transformations=systems,
        )
    return sdata


@pytest.mark.parametrize(
    ("change", "check", "found", "remedy"),
    [
        (lambda pixels: gaussian(pixels, 4, channel_axis=-1), "focus", r"blurred: .* of (\d\d|[789])\.", "sharper"),
        (lambda pixels: np.full_like(pixels, 200), "focus", "no details at all", "sharper"),
        (lambda pixels: 255 - (255 - pixels) / 2, "stain", r"pale: optical density 0\.0[12]", "stain='reinhard'"),
        (lambda pixels: pixels / 8, "stain", r"very dark: .* tissue 1\d of 255", "is it H&E"),
    ],
)
def test_images_out_of_focus_or_of_strange_colours_are_warned_of(
    two: SpatialData, change: Callable[[np.ndarray], np.ndarray], check: str, found: str, remedy: str
) -> None:
    wrong = lines(repainted(two, change), "section_0_spots", allow=("off_tissue", "other_stain")).loc[check]
    assert wrong["status"] == "warning" and remedy in wrong["remedy"]
    assert re.search(found, wrong["found"])


@pytest.mark.parametrize("tool", [nh.tl.train, nh.tl.predict_expression, nh.tl.cross_validate])
def test_tools_warn_of_what_check_warns_of(two: SpatialData, tool: Callable, caplog: pytest.LogCaptureFixture) -> None:
    blurred = repainted(two, lambda pixels: gaussian(pixels, 4, channel_axis=-1))
    small = {"embedding": 16, "hidden": 16, "bottleneck": 16, "heads": 2, "max_epochs": 1, "n_members": 1}
    tool(blurred, encoder=Means(), n_genes=5, progress=False, **small)
    for section in ("section_0_spots", "section_1_spots"):
        line = lines(blurred, section).loc["focus"]
        assert f"{section}, focus: {line['found']}; {line['remedy']}" in caplog.messages


def test_tools_do_not_repeat_what_they_were_told(two: SpatialData, caplog: pytest.LogCaptureFixture) -> None:
    small = {"embedding": 16, "hidden": 16, "bottleneck": 16, "heads": 2, "max_epochs": 1, "n_members": 1}
    about = {"encoder": Means(), "n_genes": 5, "progress": False, **small}
    nh.tl.train(two, patch_um=50.0, **about)
    assert any("section_0_spots, patch: 50 µm, 50 px" in message for message in caplog.messages)
    caplog.clear()
    nh.tl.train(two, patch_um=50.0, allow="coarse", **about)
    assert not any(", patch: " in message for message in caplog.messages)


def test_focus_does_not_depend_on_the_strength_of_the_stain(two: SpatialData) -> None:
    before = lines(two, "section_0_spots").loc["focus", "found"]
    after = lines(repainted(two, lambda pixels: 255 - (255 - pixels) / 2), "section_0_spots").loc["focus", "found"]
    assert after == before


def test_slides_out_of_focus_are_warned_of_too(two: SpatialData) -> None:
    slide = SpatialData(images={"he": two.images["section_0_image"]})
    assert (lines(slide, "he").loc[["focus", "stain"], "status"] == "ok").all()
    blurred = repainted(slide, lambda pixels: gaussian(pixels, 4, channel_axis=-1))
    assert list(lines(blurred, "he").query("status != 'ok'").index) == ["focus"]


def test_part_of_the_lines_is_shown_in_full(two: SpatialData) -> None:
    found = nh.pp.check(two, patch_um=5.0)
    wrong = found[found["status"] != "ok"]
    remedy = wrong["remedy"].iloc[0]
    assert len(remedy) > 50 and remedy in repr(wrong)
    assert "allow=&#x27;coarse&#x27;" in wrong._repr_html_()


def test_follows_the_arguments(two: SpatialData) -> None:
    two.tables["table"].layers["logged"] = measured(two.tables["table"])
    found = nh.pp.check(two, shapes_key="section_1_spots", layer="logged", microns_per_pixel=2.0, patch_um=100.0)
    assert list(dict.fromkeys(found["section"])) == ["", "section_1_spots"]
    found = found.set_index("check")["found"]
    assert found["expression"] == "logarithms, used as they are in layer 'logged'"
    assert found["µm per pixel"] == "2 (given)"
    assert "200.0 µm apart" in found["spots"]
    assert found["patch"].startswith("100 µm, 50 px")


def test_spots_off_the_tissue_do_not_tell_where_the_others_lie(two: SpatialData) -> None:
    table = two.tables["table"]
    inside = np.arange(table.n_obs) % 15 > 0
    table.obs["in_tissue"] = inside.astype(int)
    table.X[~inside] = table.X[inside][np.arange((~inside).sum()) % inside.sum()]  # another tissue
    whole = lines(two, "section_0_spots")["found"]
    assert whole["off tissue"].startswith(f"{(~inside[table.obs['region'] == 'section_0_spots']).sum()} of ")
    two.tables["table"] = table[inside].copy()
    part = lines(two, "section_0_spots")["found"]
    assert whole[["x and y", "fit"]].equals(part[["x and y", "fit"]])


def test_is_readable(two: SpatialData) -> None:
    two.tables["table"].var_names = ["<b>"] * 2 + list(two.tables["table"].var_names[2:])
    found = nh.pp.check(two)
    page = found._repr_html_()
    assert page.count("<tr") == len(found) + 1
    assert "&lt;b&gt;" in page and "<b>" not in page and "..." not in page
    assert "-> Mend with sdata.tables['table'].var_names_make_unique()" in repr(found)
    assert len(repr(found[["check", "found"]])) > 0  # a part of it is an ordinary data frame


def no_resolution(sdata: SpatialData) -> None:
    for name in ("section_0_image", "section_0_spots"):
        remove_transformation(sdata[name], "section_0_microns")
    shapes = sdata.shapes["section_0_spots"]  # neither is there a Visium grid to tell
    shapes.geometry = [Point(p.x, p.y * (1 + 0.2 * np.sin(p.x))) for p in shapes.geometry]


def swapped_off_the_image(sdata: SpatialData) -> None:
    image = sdata.images["section_0_image"]["scale0"]["image"].values[:, :, :500]
    systems = get_transformation(sdata.images["section_0_image"], get_all=True)
    sdata.images["section_0_image"] = Image2DModel.parse(image, dims=("c", "y", "x"), transformations=systems)
    shapes = sdata.shapes["section_0_spots"]
    shapes.geometry = [Point(900 + p.x / 10, p.y / 4) for p in shapes.geometry]


def unknown_instance(sdata: SpatialData) -> None:
    sdata.tables["table"].obs["spot_id"] = sdata.tables["table"].obs["spot_id"].to_numpy() + 100000


def nan_counts(sdata: SpatialData) -> None:
    sdata.tables["table"].X.data[0] = np.nan


def second_table(sdata: SpatialData) -> None:
    sdata.tables["other"] = sdata.tables["table"].copy()


def no_shapes(sdata: SpatialData) -> None:
    del sdata.shapes["section_0_spots"], sdata.shapes["section_1_spots"]


def no_image(sdata: SpatialData) -> None:
    del sdata.images["section_0_image"]


def same_names(sdata: SpatialData) -> None:
    sdata.tables["table"].obs_names = ["a"] * 2 + list(sdata.tables["table"].obs_names[2:])


@pytest.mark.parametrize(
    ("change", "section", "check", "found", "remedy"),
    [
        (no_resolution, "section_0_spots", "image", "The resolution of image 'section_0_image' is unknown", "Pass"),
        (
            swapped_off_the_image,
            "section_0_spots",
            "x and y",
            "outside image 'section_0_image'",
            "With x and y swapped",
        ),
        (unknown_instance, "section_0_spots", "spots", "name a spot that shapes", "match_sdata_to_table"),
        (nan_counts, "", "expression", "finite counts in X", ""),
        (second_table, "", "table", "several tables", "table_key="),
        (no_shapes, "", "table", "which is not among the shapes []", ""),
        (no_image, "section_0_spots", "image", "Expected an image that shares a coordinate system", "Add the H&E"),
        (same_names, "", "obs_names", "found 1 of", "obs_names_make_unique()"),
    ],
)
def test_errors_are_lines(
    two: SpatialData, change: Callable, section: str, check: str, found: str, remedy: str
) -> None:
    change(two)
    wrong = nh.pp.check(two)
    wrong = wrong[(wrong["status"] == "error") & (wrong["section"] == section)]
    assert check in list(wrong["check"]), wrong.to_dict()
    line = wrong.set_index("check").loc[check]
    assert found in line["found"] and remedy in line["found"] + line["remedy"]
    with pytest.raises((KeyError, ValueError)):  # the tools do stop
        nh.tl.predict_expression(two, progress=False)


def test_coarse_images_are_errors_unless_allowed(two: SpatialData) -> None:
    coarse = {"patch_um": 50.0, "microns_per_pixel": 2.0}
    line = lines(two, "section_0_spots", **coarse).loc["patch"]
    assert line["status"] == "error" and "only 25 px wide" in line["found"] and "Pass allow='coarse'" in line["remedy"]
    line = lines(two, "section_0_spots", allow="coarse", **coarse).loc["patch"]
    assert (line["status"], line["remedy"]) == ("warning", "gone on with, as allow='coarse' says")
    found = lines(two, "section_0_spots", microns_per_pixel=1.5)
    assert found.loc["spot spacing", "remedy"] == "microns_per_pixel=1 would fit"


def test_circles_of_visium_that_are_drawn_wider_are_told(two: SpatialData) -> None:
    two.shapes["section_0_spots"]["radius"] *= 70 / 55
    line = lines(two, "section_0_spots").loc["spots"]
    assert line["status"] == "ok" and "70.0 µm wide as they are drawn (55 µm on the slide), 100.0" in line["found"]


def test_an_image_for_a_section_that_is_not_there_is_an_error(two: SpatialData) -> None:
    wrong = nh.pp.check(two, image_key={"spots": "section_0_image"}).query("status == 'error'")
    assert list(wrong["check"]) == ["image"] and "maps ['spots'], which are no shapes" in wrong["found"].item()


def test_squares_that_touch_do_not_overlap(two: SpatialData) -> None:
    side = 50
    bins = [box(x, y, x + side, y + side) for x in range(200, 900, side) for y in range(200, 900, side)]
    systems = get_transformation(two.shapes["section_0_spots"], get_all=True)
    shapes = ShapesModel.parse(gpd.GeoDataFrame(geometry=bins), transformations=systems)
    slide = SpatialData(images={"he": two.images["section_0_image"]}, shapes={"bins": shapes})
    line = lines(slide, "bins").loc["spots"]
    assert (line["status"], line["found"]) == ("ok", f"{len(bins)}, 50.0 µm wide, 50.0 µm apart")
    slide.shapes["bins"].geometry = slide.shapes["bins"].geometry.buffer(5, join_style="mitre")
    assert lines(slide, "bins").loc["spots", "status"] == "warning"


def test_two_spacings_need_a_patch(two: SpatialData) -> None:
    shapes = two.shapes["section_1_spots"]
    shapes.geometry = [Point(p.x / 2, p.y / 2) for p in shapes.geometry]
    wrong = nh.pp.check(two, allow="off_tissue").set_index("check").loc["spot spacings"]
    assert wrong["status"] == "error" and wrong["found"] == "section_0_spots: 100 µm, section_1_spots: 50 µm"
    assert "spot spacings" not in list(nh.pp.check(two, patch_um=75.0)["check"])


def test_spots_without_a_table_and_slides_are_checked_too(two: SpatialData) -> None:
    bare = SpatialData(images=dict(two.images), shapes=dict(two.shapes))
    found = nh.pp.check(bare)
    assert (found["status"] == "ok").all() and "a model's prediction makes one" in found["found"][0]
    slide = SpatialData(images={"he": two.images["section_0_image"]})
    found = nh.pp.check(slide, patch_um=75).set_index("check")
    assert (found["status"] == "ok").all()
    assert found.loc["tissue", "found"].endswith("mm²") and "75 px" in found.loc["patch", "found"]
    several = nh.pp.check(SpatialData(images=dict(two.images))).set_index("check")
    assert several.loc["image", "status"] == "error" and "image_key=" in several.loc["image", "found"]


def test_a_table_of_predictions_is_no_measurement(two: SpatialData) -> None:
    two.tables["table"].uns["nh2st"] = {"json": "{}"}
    line = nh.pp.check(two).set_index("check").loc["expression"]
    assert line["status"] == "warning" and "X holds a prediction" in line["remedy"]


def test_arguments_that_cannot_be_are_refused(two: SpatialData) -> None:
    with pytest.raises(ValueError, match="patch_um to be a number above 0, found 0"):
        nh.pp.check(two, patch_um=0)
    with pytest.raises(ValueError, match="allow to be one of"):
        nh.pp.check(two, allow="anything")
    with pytest.raises(TypeError, match=r"nh.io.slide\(path\)"):
        nh.pp.check(two.tables["table"])
