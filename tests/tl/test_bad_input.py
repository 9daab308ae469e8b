"""What cannot be used is refused before any work, with words that help, and the object stays as it was."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
import spatialdata
from shapely import Point
from spatialdata import SpatialData
from spatialdata.models import Image2DModel, TableModel
from spatialdata.transformations import get_transformation, set_transformation

import nh2st_scverse as nh


@pytest.fixture(scope="module")
def _section() -> SpatialData:
    return nh.datasets.synthetic(width_um=1600)


@pytest.fixture
def section(_section: SpatialData) -> SpatialData:
    return spatialdata.deepcopy(_section)


def move(sdata: SpatialData, where: Callable[[np.ndarray], np.ndarray]) -> None:
    shapes = sdata.shapes["section_0_spots"]
    at = where(np.array([(p.x, p.y) for p in shapes.geometry]))
    shapes.geometry = [Point(p) for p in at]


def set_counts(sdata: SpatialData, value: float) -> None:
    sdata.tables["table"].X = sdata.tables["table"].X.copy()
    sdata.tables["table"].X.data[7] = value


def twice(names: Any) -> list[str]:
    return [names[1], *names[1:]]


def rename(sdata: SpatialData, attribute: str) -> None:
    setattr(sdata.tables["table"], attribute, twice(getattr(sdata.tables["table"], attribute)))


def set_instances(sdata: SpatialData, change: Callable[[np.ndarray], np.ndarray]) -> None:
    obs = sdata.tables["table"].obs
    obs["spot_id"] = change(obs["spot_id"].to_numpy(copy=True))


def rows_of_another_section(sdata: SpatialData) -> None:
    obs = sdata.tables["table"].obs
    obs["region"] = pd.Categorical(["section_9_spots"] * len(obs))


def few(sdata: SpatialData) -> None:
    sdata.tables["table"] = sdata.tables["table"][:8].copy()


def second_table(sdata: SpatialData) -> None:
    sdata.tables["other"] = sdata.tables["table"].copy()


def second_image(sdata: SpatialData) -> None:
    systems = get_transformation(sdata.images["section_0_image"], get_all=True)
    other = sdata.images["section_0_image"]["scale0"]["image"].values[:, ::-1]
    sdata.images["other"] = Image2DModel.parse(other.copy(), dims=("c", "y", "x"), transformations=systems)


def loose(sdata: SpatialData) -> None:
    table = sdata.tables["table"].copy()
    del sdata.tables["table"], table.uns["spatialdata_attrs"]
    sdata.tables["table"] = TableModel.parse(table)


def no_shapes(sdata: SpatialData) -> None:
    del sdata.shapes["section_0_spots"]


def no_image(sdata: SpatialData) -> None:
    del sdata.images["section_0_image"]


def grey(sdata: SpatialData) -> None:
    systems = get_transformation(sdata.images["section_0_image"], get_all=True)
    grey = sdata.images["section_0_image"]["scale0"]["image"].values[:1]
    sdata.images["section_0_image"] = Image2DModel.parse(grey, dims=("c", "y", "x"), transformations=systems)


def nothing(sdata: SpatialData) -> None:
    pass


def constant(sdata: SpatialData) -> None:
    table = sdata.tables["table"]
    table.X = sp.csr_matrix(np.full(table.shape, 3, dtype=np.float32))


def taken(sdata: SpatialData) -> None:
    sdata.tables["table"].layers["counts"] = sdata.tables["table"].X.copy()


CASES: dict[str, tuple[Callable[[SpatialData], None], dict[str, Any], type[Exception], str]] = {
    # keys
    "no such table": (
        nothing,
        {"table_key": "tab"},
        KeyError,
        r"table_key='tab' is not there. Available .*\['table'\]",
    ),
    "two tables": (second_table, {}, KeyError, r"several tables.*pass table_key= one of \['table', 'other'\]"),
    "no table of spots": (
        loose,
        {},
        KeyError,
        r"table that annotates spots, found none among \['table'\].*TableModel.parse",
    ),
    "no such shapes": (nothing, {"shapes_key": "x"}, KeyError, r"shapes_key='x' is not there.*\['section_0_spots'\]"),
    "shapes are missing": (
        no_shapes,
        {},
        KeyError,
        r"annotates .'section_0_spots'., which is not among the shapes \[\]. Add.*set_table_annotates",
    ),
    "no such image": (
        nothing,
        {"image_key": "x"},
        KeyError,
        r"image_key='x' is not there. Available images: \['section_0_image'\]",
    ),
    "image of no section": (
        nothing,
        {"image_key": {"section_0_spots": "section_0_image", "section_9_spots": "section_0_image"}},
        KeyError,
        r"maps \['section_9_spots'\], which are no shapes. Available shapes: \['section_0_spots'\]",
    ),
    "no image": (
        no_image,
        {},
        KeyError,
        r"image that shares a coordinate system with 'section_0_spots'.*Available images: \[\]",
    ),
    "two images": (second_image, {}, KeyError, r"several images under 'section_0_spots'.*image_key= one of"),
    "greyscale": (grey, {}, ValueError, "RGB image .3 channels., found 1 in image 'section_0_image'"),
    "no such layer": (
        nothing,
        {"layer": "raw"},
        KeyError,
        r"layer='raw' is not there. Available layers: \[\]; layer=None means X",
    ),
    # geometry
    "outside": (
        lambda s: move(s, lambda xy: xy + 5000),
        {},
        ValueError,
        "100% of the spots of 'section_0_spots' are outside image 'section_0_image' .1600 x 1600 px.: x "
        "reaches from .*scale",
    ),
    "NaN coordinates": (
        lambda s: move(s, lambda xy: np.where(np.arange(len(xy))[:, None] == 3, np.nan, xy)),
        {},
        ValueError,
        "finite coordinates of all 203 spots",
    ),
    "one place": (
        lambda s: move(s, lambda xy: xy * 0 + 800),
        {},
        ValueError,
        "on top of each other.*x and y in pixels",
    ),
    "off the tissue": (
        lambda s: move(s, lambda xy: (xy - 800) / 16 + 60),
        {"microns_per_pixel": 16.0},
        ValueError,
        "Only .*% of the spots of 'section_0_spots' are on tissue in 'section_0_image'.*allow='off_tissue'",
    ),
    "too coarse": (
        nothing,
        {"microns_per_pixel": 4.0, "patch_um": 75.0},
        ValueError,
        "'section_0_image' is too coarse: 4.00 µm per pixel .given., so that a patch of 75 µm is only 19 px "
        "wide, where at "
        "least 32 px.*2.34 µm per pixel.*allow='coarse'",
    ),
    "resolution": (nothing, {"microns_per_pixel": 0}, ValueError, "microns_per_pixel to be a number above 0, found 0"),
    "patch": (nothing, {"patch_um": -75}, ValueError, "patch_um to be a number above 0, found -75"),
    "allow": (
        nothing,
        {"allow": "anything"},
        ValueError,
        r"allow to be one of \['coarse', 'off_tissue', 'other_stain'\], found 'anything'",
    ),
    "few spots": (few, {}, ValueError, "at least 9 spots in section 'section_0_spots'.* found 8"),
    "little tissue": (
        lambda s: s.tables.__setitem__("table", s.tables["table"][:40].copy()),
        {},
        ValueError,
        "Too little tissue.*groups=",
    ),
    # names and ids
    "genes twice": (
        lambda s: rename(s, "var_names"),
        {},
        ValueError,
        "unique gene names, found 1 .*var_names_make_unique",
    ),
    "spots twice": (
        lambda s: rename(s, "obs_names"),
        {},
        ValueError,
        "unique spot names, found 1 .*obs_names_make_unique",
    ),
    "instances twice": (
        lambda s: set_instances(s, lambda ids: np.r_[ids[1], ids[1:]]),
        {},
        ValueError,
        "unique instance ids of 'section_0_spots'",
    ),
    "instances that are not there": (
        lambda s: set_instances(s, lambda ids: ids + 5),
        {},
        ValueError,
        r"5 of 203 rows of the table name a spot that shapes 'section_0_spots' does not have, e.g. "
        r".*203.*match_sdata_to_table",
    ),
    # expression
    "negative": (
        lambda s: set_counts(s, -1),
        {},
        ValueError,
        r"negative values down to -1.*layer= with the counts. Available layers: \[\]",
    ),
    "NaN": (
        lambda s: set_counts(s, np.nan),
        {},
        ValueError,
        r"finite counts in X, found 1 NaN.*Set them to 0.*Available layers: \[\]",
    ),
    "genes of a panel twice": (
        nothing,
        {"genes": ["FAT01", "FAT02", "FAT01"]},
        ValueError,
        r"every gene of the panel once, found \['FAT01'\].*dict.fromkeys",
    ),
    "rows of no section": (
        rows_of_another_section,
        {},
        ValueError,
        r"rows of table 'table' for \['section_0_spots'\], found none.*are of \['section_9_spots'\].*shapes_key=",
    ),
    "empty panel": (nothing, {"genes": []}, ValueError, "panel of genes, found an empty list"),
    "constant genes": (constant, {}, ValueError, "panel, found none: every shared gene is constant.* layer="),
    "constant listed genes": (
        constant,
        {"genes": ["FAT01"]},
        ValueError,
        "all 1 listed ones constant.* one of .*highest_mean",
    ),
    "unknown genes": (
        nothing,
        {"genes": ["FAT01", "ACTB"]},
        ValueError,
        r"1 of 2 genes of the panel.*\['ACTB'\].*share 300 .*leave the others out",
    ),
    "no genes": (nothing, {"n_genes": 0}, ValueError, "n_genes to be at least 1, or None for all genes, found 0"),
    "half a gene": (nothing, {"n_genes": 2.5}, ValueError, "n_genes to be at least 1.* found 2.5"),
    # the rest
    "groups of another length": (
        nothing,
        {"groups": ["a", "b"]},
        ValueError,
        r"1 sections \['section_0_spots'\], found 2",
    ),
    "groups by another name": (
        nothing,
        {"groups": {"x": "a"}},
        KeyError,
        r"group for each of \['section_0_spots'\], found \['x'\]",
    ),
    "groups by no column": (
        nothing,
        {"groups": "patient"},
        KeyError,
        "groups='patient' is not a column of the table. Available",
    ),
    "groups within a section": (
        nothing,
        {"groups": "tissue"},
        ValueError,
        "one 'tissue' in section 'section_0_spots', found",
    ),
    "unknown setting": (
        nothing,
        {"epochs": 3},
        ValueError,
        r"Unknown settings \['epochs'\]. Available: .*'max_epochs'",
    ),
    "unknown preset": (
        nothing,
        {"preset": "best"},
        ValueError,
        r"preset to be one of \['default', 'paper'\], found 'best'",
    ),
    "unknown encoder": (nothing, {"encoder": "uni"}, ValueError, "'uni'"),
    "unknown device": (nothing, {"device": "tpu"}, ValueError, "device to be one of .*'auto'.* found 'tpu'"),
}
FOR_PREDICTING: dict[str, tuple[Callable[[SpatialData], None], dict[str, Any], type[Exception], str]] = {
    "a layer of the user": (
        taken,
        {"key_added": "counts"},
        ValueError,
        r"key_added='counts' would overwrite layers\['counts'\]",
    ),
    "a column of the user": (nothing, {"key_added": "program"}, ValueError, r"would overwrite var\['program'\]"),
    "an entry of the user": (nothing, {"key_added": "synthetic"}, ValueError, r"would overwrite uns\['synthetic'\]"),
    "a name that zarr refuses": (
        nothing,
        {"key_added": "a/b"},
        ValueError,
        "key_added to be a name of letters.* found 'a/b'",
    ),
    "a table that is there": (nothing, {"table_added": "table"}, ValueError, "table_added='table' is there already"),
    "an image of that name": (
        nothing,
        {"table_added": "section_0_image"},
        ValueError,
        "'section_0_image' is there already",
    ),
}


@pytest.mark.filterwarnings("ignore:.*names are not unique")
@pytest.mark.parametrize("name", [*CASES, *FOR_PREDICTING])
def test_is_refused_and_nothing_changes(
    section: SpatialData, quick: dict[str, Any], snapshot: Callable, name: str
) -> None:
    change, arguments, kind, message = (CASES | FOR_PREDICTING)[name]
    change(section)
    before = snapshot(section)
    with pytest.raises(kind, match=message):
        nh.tl.predict_expression(section, **quick | arguments)
    assert snapshot(section) == before
    if name in CASES and name != "little tissue":
        with pytest.raises(kind, match=message):
            nh.tl.train(section, **quick | arguments)
        assert snapshot(section) == before
    assert quick["encoder"].n_patches == 0  # before any work


def test_swapped_coordinates_are_noticed(snapshot: Callable, quick: dict[str, Any]) -> None:
    sdata = nh.datasets.synthetic(width_um=2000, seed=1)
    table, shapes = sdata.tables["table"], sdata.shapes["section_0_spots"]
    at = np.array([(p.x, p.y) for p in shapes.geometry])
    keep = at[:, 1] > at[:, 0] + 150  # a piece of the tissue that lies on one side of the diagonal
    image = sdata.images["section_0_image"]["scale0"]["image"].values.copy()
    yy, xx = np.mgrid[:2000, :2000]
    image[:, yy < xx + 20] = 240  # glass on the other side
    systems = get_transformation(sdata.images["section_0_image"], get_all=True)
    sdata.images["section_0_image"] = Image2DModel.parse(image, dims=("c", "y", "x"), transformations=systems)
    sdata.tables["table"] = table[keep].copy()
    assert not (nh.pp.check(sdata)["status"] == "error").any()
    shapes.geometry = [Point(p.y, p.x) for p in shapes.geometry]
    before = snapshot(sdata)
    with pytest.raises(
        ValueError, match=r"x and y of the spots of 'section_0_spots' look swapped: .* would be .*obsm\['spatial'\]"
    ):
        nh.tl.predict_expression(sdata, **quick)
    assert snapshot(sdata) == before
    found = nh.pp.check(sdata).set_index("check")
    assert found.loc["x and y", "status"] == "error" and "look swapped" in found.loc["x and y", "found"]


def test_swapped_coordinates_outside_a_narrow_image(section: SpatialData, quick: dict[str, Any]) -> None:
    image = section.images["section_0_image"]["scale0"]["image"].values
    systems = get_transformation(section.images["section_0_image"], get_all=True)
    wide = np.concatenate([np.full((3, 1600, 2400), 240, np.uint8), image], axis=2)
    section.images["section_0_image"] = Image2DModel.parse(wide, dims=("c", "y", "x"), transformations=systems)
    move(section, lambda xy: xy + np.array([2400, 0]))
    assert not (nh.pp.check(section)["status"] == "error").any()
    move(section, lambda xy: xy[:, ::-1])
    with pytest.raises(ValueError, match=r"outside image.*With x and y swapped they would be inside: swap the columns"):
        nh.tl.predict_expression(section, **quick)


def test_spots_off_the_tissue_go_on_when_told_to(
    two: SpatialData, quick: dict[str, Any], caplog: pytest.LogCaptureFixture
) -> None:
    shapes = two.shapes["section_0_spots"]
    shapes.geometry = [Point(p.x / 10 + 10, p.y / 10 + 10) for p in shapes.geometry]
    with pytest.raises(ValueError, match=r"Only .*% of the spots .*on tissue"):
        nh.tl.predict_expression(two, patch_um=75.0, **quick)
    nh.tl.predict_expression(two, patch_um=75.0, allow="off_tissue", **quick)
    assert re.search("Only .*% of the spots of 'section_0_spots' are on tissue.* Going on as told", caplog.text)


def test_coarse_images_go_on_when_told_to(
    two: SpatialData, quick: dict[str, Any], caplog: pytest.LogCaptureFixture
) -> None:
    nh.tl.predict_expression(two, patch_um=30.0, allow=["coarse"], **quick)
    assert re.search("too coarse: 1.00 µm per pixel .* only 30 px wide.* Going on as told", caplog.text)
    assert np.isfinite(two.tables["table"].layers["nh2st"]).any()


def test_only_spatialdata_is_taken(section: SpatialData, quick: dict[str, Any]) -> None:
    table = section.tables["table"]
    with pytest.raises(TypeError, match="Expected one SpatialData object, found AnnData"):
        nh.tl.predict_expression(table, **quick)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="one SpatialData object, found list: call once for each"):
        nh.tl.predict_expression([section], **quick)  # type: ignore[arg-type]
    for wrong in (table, [section, table], "path.zarr", [], None):
        with pytest.raises(TypeError, match=r"SpatialData object, a list or a dict of them.*nh.io.from_anndata"):
            nh.tl.train(wrong, **quick)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="each SpatialData object once"):
        nh.tl.train([section, section], **quick)


def test_counts_and_logarithms_do_not_mix(quick: dict[str, Any]) -> None:
    objects = [nh.datasets.synthetic(width_um=1200, seed=seed) for seed in (1, 2)]
    objects[1].tables["table"].X = nh.data.expression.measured(objects[1].tables["table"])
    with pytest.raises(ValueError, match="Expected counts in all tables or logarithms in all, found both: pass layer="):
        nh.tl.train(objects, **quick)


def test_sections_of_two_technologies_need_a_patch(quick: dict[str, Any]) -> None:
    objects = [nh.datasets.synthetic(width_um=1200, seed=seed) for seed in (1, 2)]
    systems = get_transformation(objects[1].images["section_0_image"], get_all=True)
    for element in (objects[1].images["section_0_image"], objects[1].shapes["section_0_spots"]):
        doubled = {
            k: spatialdata.transformations.Scale([2, 2], axes=("x", "y")) if "microns" in k else v
            for k, v in systems.items()
        }
        set_transformation(element, doubled, set_all=True)
    with pytest.raises(
        ValueError, match=r"different spacings: .*'100 µm'.*'200 µm'.*patch_um=.*microns_per_pixel is wrong"
    ):
        nh.tl.train(objects, **quick)
    nh.tl.train(objects, patch_um=75.0, **quick)


def test_a_failure_in_training_leaves_the_object_as_it_was(
    two: SpatialData, quick: dict[str, Any], snapshot: Callable
) -> None:
    before = snapshot(two)

    class Fails:
        name, input_size, dim, weights_hash = "fails", 16, 7, "none"

        def __call__(self, patches: np.ndarray) -> np.ndarray:
            return np.zeros((len(patches), 6), np.float32)

    with pytest.raises(
        ValueError, match=r"encoder 'fails' to give features of shape \(\d+, 7\), found \(\d+, 6\).*dim"
    ):
        nh.tl.predict_expression(two, **quick | {"encoder": Fails()})
    with pytest.raises(TypeError, match="max_time"):
        nh.tl.predict_expression(two, trainer_kwargs={"max_time_": 3}, **quick)
    assert snapshot(two) == before
