"""Which image spots lie on, and which shapes are spots."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from typing import Any

import anndata as ad
import geopandas as gpd
import numpy as np
import pandas as pd
import pytest
import shapely
from PIL import Image
from spatialdata import SpatialData
from spatialdata.models import Image2DModel, ShapesModel, TableModel
from spatialdata.transformations import Identity, Scale, Translation

import nh2st_scverse as nh
from nh2st_scverse._options import Elements
from nh2st_scverse.data.cohort import collect, elements_of
from nh2st_scverse.data.geometry import kind_of_shapes, locate, locate_image
from nh2st_scverse.data.images import consistent_levels
from nh2st_scverse.data.pixels import PLAIN
from nh2st_scverse.data.section import choose_places

XY = ("x", "y")
SIDE = 400  # px, of 2 µm
SPOTS = np.stack(np.meshgrid(np.arange(60, 341, 50), np.arange(60, 341, 50)), -1).reshape(-1, 2).astype(float)


def tissue(seed: int, side: int = SIDE) -> np.ndarray:
    """A section of its own outline, eosin and haematoxylin: (side, side, 3)."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:side, :side] / side - 0.5
    outline = 0.36 + 0.05 * np.sin(3 * np.arctan2(y, x) + rng.uniform(0, 6))
    patches = np.kron(rng.random((8, 8)), np.ones((side // 8, side // 8)))[..., None]
    nuclei = (rng.random((side, side)) < 0.2)[..., None] * [0.7, 0.8, 0.4]
    density = (patches * [0.1, 0.9, 0.35] + nuclei) * (np.hypot(x, y) < outline)[..., None]
    return (245 * np.exp(-density)).astype(np.uint8)


def image(pixels: np.ndarray, systems: dict[str, Any] | None = None, **kinds: Any) -> Any:
    systems = systems or {"global": Identity()}
    return Image2DModel.parse(pixels.transpose(2, 0, 1), dims=("c", "y", "x"), transformations=systems, **kinds)


def spots(systems: dict[str, Any] | None = None, xy: np.ndarray = SPOTS) -> gpd.GeoDataFrame:
    return ShapesModel.parse(xy, geometry=0, radius=13.0, transformations=systems or {"global": Identity()})


def resized(pixels: np.ndarray, side: int) -> np.ndarray:
    return np.asarray(Image.fromarray(pixels).resize((side, side), Image.Resampling.BOX))


def fluorescence(pixels: np.ndarray) -> np.ndarray:
    signal = 255 - pixels.astype(float)
    return np.stack([0.1 * signal[..., 1], 0.7 * signal[..., 1], signal[..., 0]], axis=2).clip(0, 255).astype(np.uint8)


def annotated(images: dict[str, Any], shapes: dict[str, Any]) -> SpatialData:
    regions = [name for name, frame in shapes.items() for _ in range(len(frame))]
    ids = np.concatenate([frame.index for frame in shapes.values()])
    obs = pd.DataFrame({"region": pd.Categorical(regions), "id": ids}, index=[f"s{i}" for i in range(len(ids))])
    counts = np.random.default_rng(0).poisson(3, (len(obs), 12)).astype(np.float32)
    table = TableModel.parse(ad.AnnData(counts, obs=obs), region=list(shapes), region_key="region", instance_key="id")
    return SpatialData(images=images, shapes=shapes, tables={"table": table})


def chosen(sdata: SpatialData, **given: Any) -> dict[str, str]:
    names = list(sdata.shapes)
    return {name: locate(sdata, name, microns_per_pixel=2, **given).image_key for name in names}


A, B = tissue(1), tissue(2)[:-4, :-6]
SHIFTED = {"global": Translation([SIDE + 50, 0], axes=XY)}


# --- each section its own image ---


@pytest.mark.parametrize(
    ("images", "shapes", "expected"),
    [
        (("A_image", "B_image"), ("A_spots", "B_spots"), ("A_image", "B_image")),
        (("B_he", "A_he"), ("A", "B"), ("A_he", "B_he")),
        (("slide1_image", "slide10_image"), ("slide10_spots", "slide1_spots"), ("slide10_image", "slide1_image")),
        (("p1_s2_full_image", "p2_s1_full_image"), ("p1_s2", "p2_s1"), ("p1_s2_full_image", "p2_s1_full_image")),
        (("image1", "image2"), ("spots2", "spots1"), ("image2", "image1")),
    ],
)
def test_sections_in_one_system_find_their_images_by_name(images: Any, shapes: Any, expected: Any) -> None:
    sdata = annotated(dict(zip(images, (image(A), image(B)), strict=True)), {name: spots() for name in shapes})
    assert tuple(chosen(sdata).values()) == expected


def test_images_that_no_name_tells_apart_are_asked_for() -> None:
    sdata = annotated({"first": image(A), "second": image(B)}, {"left": spots(), "right": spots()})
    with pytest.raises(KeyError, match=r"several images under 'left'.*image_key= one of \['first', 'second'\]"):
        chosen(sdata)
    found = nh.pp.check(sdata, microns_per_pixel=2).query("check == 'image'")
    assert (found["status"] == "error").all() and len(found) == 2
    pair = {"left": "second", "right": "first"}
    assert locate(sdata, "left", image_key=pair["left"], microns_per_pixel=2).image_key == "second"


def test_images_beside_each_other_are_told_by_where_spots_lie() -> None:
    sdata = annotated({"one": image(A), "other": image(B, SHIFTED)}, {"right": spots(SHIFTED), "left": spots()})
    assert chosen(sdata) == {"right": "other", "left": "one"}


def test_a_section_shares_no_image_where_there_is_one_for_each() -> None:
    """The image of the second section is registered with nothing."""
    images = {"A_image": image(A), "B_image": image(B, {"elsewhere": Identity()})}
    sdata = annotated(images, {"A_spots": spots(), "B_spots": spots()})
    with pytest.raises(KeyError, match=r"would lie on one image, 'A_image'.*as many images as sections.*image_key="):
        chosen(sdata)
    del sdata.images["B_image"]  # two regions of one slide
    assert chosen(sdata) == {"A_spots": "A_image", "B_spots": "A_image"}


# --- one section, several images ---


def test_copies_are_told_by_what_they_show_and_not_by_their_width(caplog: pytest.LogCaptureFixture) -> None:
    half = {"global": Scale([2.0, 2.0], axes=XY)}
    images = {"low": image(resized(A, SIDE // 2), half), "high": image(A)}
    with caplog.at_level(logging.INFO, logger="nh2st_scverse"):
        assert chosen(annotated(images, {"spots": spots()})) == {"spots": "high"}
    assert "one picture at several resolutions; using the finest, 'high'" in caplog.text
    images["low"] = image(resized(tissue(5), SIDE // 2), half)  # of the same place and size, of other tissue
    with pytest.raises(KeyError, match="several images"):
        chosen(annotated(images, {"spots": spots()}))
    images["low"] = image((A * 0.9).astype(np.uint8))  # another rendering
    with pytest.raises(KeyError, match="several images"):
        chosen(annotated(images, {"spots": spots()}))


@pytest.mark.parametrize(
    "other",
    [
        lambda: image(fluorescence(np.kron(A, np.ones((2, 2, 1), np.uint8))), {"global": Scale([0.5, 0.5], axes=XY)}),
        lambda: image(np.repeat(A.mean(2, keepdims=True), 3, 2).astype(np.uint8)),
        lambda: image(255 - A),
        lambda: image(A, c_coords=["DAPI", "CD3", "CD8"]),
        lambda: image(np.concatenate([A, A], axis=2)),
        lambda: image(A.astype(np.uint16) * 257),
        lambda: image(0 * A),
    ],
)
def test_what_is_no_stain_is_not_taken_for_the_image(other: Callable[[], Any]) -> None:
    sdata = annotated({"a": other(), "b": image(A)}, {"spots": spots()})
    found = locate(sdata, "spots", microns_per_pixel=2)
    assert found.image_key == "b" and "'a' is not H&E" in found.why
    slide = SpatialData(images=dict(sdata.images))
    assert locate_image(slide, microns_per_pixel=2).image_key == "b"
    line = nh.pp.check(sdata, microns_per_pixel=2).query("check == 'chosen'")["found"].item()
    assert "'a' is not H&E" in line and "'b' is used" in line


def test_of_several_slides_one_is_asked_for() -> None:
    slides = SpatialData(images={"a": image(A), "b": image(B)})
    with pytest.raises(KeyError, match=r"several images.*image_key= one of \['a', 'b'\]"):
        locate_image(slides, microns_per_pixel=2)
    with pytest.raises(KeyError, match="several images"):
        nh.pp.grid(slides, microns_per_pixel=2)
    assert "image_key=" in nh.pp.check(slides, microns_per_pixel=2).query("status == 'error'")["found"].item()
    assert locate_image(slides, image_key="b", microns_per_pixel=2).image_key == "b"


def test_levels_that_show_something_else_are_left_out_and_named() -> None:
    tree = image(A, scale_factors=[2, 2])
    tree["scale1"]["image"].data = 0 * tree["scale1"]["image"].data
    sdata = annotated({"he": tree}, {"spots": spots()})
    found = locate(sdata, "spots", microns_per_pixel=2)
    assert [level.size[0] for level in found.levels] == [SIDE, SIDE // 4] and "levels [1]" in found.left_out
    line = nh.pp.check(sdata, microns_per_pixel=2).query("check == 'left out'")
    assert line["status"].item() == "warning" and "levels [1]" in line["found"].item()


@pytest.mark.parametrize("how", ["means", "every second"])
@pytest.mark.parametrize("side", [260, 520, 700])
def test_small_levels_of_one_picture_are_kept(side: int, how: str) -> None:
    picture = nh.datasets.synthetic(width_um=700, microns_per_pixel=700 / side)["section_0_image"]["scale0"]["image"]
    levels = [picture.transpose("c", "y", "x").compute()]
    while len(levels) < 5:
        last = levels[-1]
        half = last.coarsen(y=2, x=2, boundary="trim").mean() if how == "means" else last[:, ::2, ::2]
        levels.append(half.astype(np.uint8))
    assert consistent_levels(levels, PLAIN) == list(range(5))


def test_other_stains_are_refused_unless_they_are_allowed() -> None:
    sdata = annotated({"he": image(fluorescence(A))}, {"spots": spots()})
    with pytest.raises(ValueError, match=r"'he' is not H&E: .*dark ground.*image_key=.*allow='other_stain'"):
        collect(sdata, Elements(microns_per_pixel=2.0))
    line = nh.pp.check(sdata, microns_per_pixel=2).query("check == 'H&E'")
    assert line["status"].item() == "error"
    told = nh.pp.check(sdata, microns_per_pixel=2, allow="other_stain").query("check == 'H&E'")
    assert told["status"].item() == "warning"


# --- which shapes are spots ---


def drawn(n: int, least: float = 20, most: float = 60) -> list[Any]:
    rng = np.random.default_rng(0)
    return [shapely.Point(*rng.uniform(80, 320, 2)).buffer(rng.uniform(least, most)) for _ in range(n)]


def frame(outlines: list[Any]) -> gpd.GeoDataFrame:
    return ShapesModel.parse(gpd.GeoDataFrame(geometry=outlines), transformations={"global": Identity()})


def jittered() -> np.ndarray:
    return SPOTS + np.random.default_rng(0).normal(0, 2.5, SPOTS.shape)


HEXAGONAL = np.array([(60 + 50 * c + 25 * (r % 2), 60 + 43.3 * r) for r in range(7) for c in range(6)])
BINS = [shapely.box(x, y, x + 20, y + 20) for x in range(100, 300, 20) for y in range(100, 300, 20)]


@pytest.mark.parametrize(
    ("shapes", "kind"),
    [
        (spots(), "array"),
        (spots(xy=HEXAGONAL), "array"),
        (spots(xy=HEXAGONAL[np.random.default_rng(1).random(42) < 0.6]), "array"),
        (spots(xy=jittered()), "array"),
        (frame(BINS), "array"),
        (frame(drawn(150, 2, 6)), "cells"),
        (frame(drawn(12)), ""),
        (frame(drawn(60)), ""),
        (frame(drawn(3)), ""),
        (spots(xy=np.random.default_rng(3).uniform(60, 340, (15, 2))), ""),
        (frame([shapely.box(60, 60, 200, 340), *drawn(10)]), ""),
    ],
)
def test_shapes_are_spots_where_they_look_like_it(shapes: gpd.GeoDataFrame, kind: str) -> None:
    assert kind_of_shapes(shapes, microns=2.0) == kind


@pytest.mark.parametrize("n", [3, 12, 60])
def test_regions_that_somebody_drew_are_no_spots(n: int) -> None:
    slide = SpatialData(images={"he": image(A)}, shapes={"regions": frame(drawn(n))})
    with pytest.raises(KeyError, match=r"look like spots.*found \['regions'\].*shapes_key=.*nh\.pp\.grid"):
        choose_places(slide, Elements(microns_per_pixel=2.0))
    line = nh.pp.check(slide, microns_per_pixel=2).query("status == 'error'")
    assert "look like spots" in line["found"].item()
    assert choose_places(slide, Elements(shapes="regions")) == ["regions"]
    slide.shapes["visium"] = spots()
    assert choose_places(slide, Elements(microns_per_pixel=2.0)) == ["visium"]
    nh.pp.grid(slide, spacing_um=80, microns_per_pixel=2)
    assert choose_places(slide, Elements(microns_per_pixel=2.0)) == ["visium", "nh2st_grid"]


# --- what was chosen is kept ---


def test_what_was_used_is_told_for_each_section() -> None:
    sdata = annotated({"A_image": image(A), "B_image": image(B)}, {"A": spots(), "B": spots()})
    used = json.loads(elements_of(collect(sdata, Elements(microns_per_pixel=2.0))))
    assert {name: (one["image"], one["shapes"], one["table"]) for name, one in used.items()} == {
        "A": ("A_image", "A", "table"),
        "B": ("B_image", "B", "table"),
    }
    first = used["A"]
    assert (first["microns_per_pixel"], first["microns_source"], first["level"]) == (2.0, "given", 0)
    assert first["coordinate_system"] == "global" and "'A_image' is the image of 'A' by its name" in first["chosen"]
    lines = nh.pp.check(sdata, microns_per_pixel=2).query("section == 'B'").set_index("check")["found"]
    assert "'B_image' is the image of 'B'" in lines["chosen"] and lines["coordinate system"] == "'global'"
