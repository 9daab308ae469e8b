from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import spatialdata
import spatialdata_io
from PIL import Image
from spatialdata import SpatialData
from spatialdata.models import Image2DModel, ShapesModel
from spatialdata.transformations import Affine, Identity, Scale, Sequence, Translation, set_transformation

import nh2st_scverse as nh
from nh2st_scverse.data.geometry import is_hexagonal, locate, spot_spacing
from nh2st_scverse.data.images import image_levels
from nh2st_scverse.data.patches import best_level, iter_patches


def rotation(degrees: float) -> Affine:
    c, s = np.cos(np.radians(degrees)), np.sin(np.radians(degrees))
    return Affine([[c, -s, 0], [s, c, 0], [0, 0, 1]], input_axes=("x", "y"), output_axes=("x", "y"))


def scaled(factor: float) -> Scale:
    return Scale([factor, factor], axes=("x", "y"))


def moved(x: float, y: float) -> Translation:
    return Translation([x, y], axes=("x", "y"))


@pytest.fixture
def truth() -> np.ndarray:
    return np.array([(90, 80), (300, 120), (520, 300), (211, 330)], dtype=float)


COLOURS = np.array([(255, 0, 0), (0, 200, 0), (0, 0, 255), (250, 0, 250)], dtype=float)
MAPS = {
    "identity": ({"world": Identity()}, {"world": Identity()}),
    "scale": ({"world": scaled(4.0)}, {"world": scaled(0.5)}),
    "translation": ({"world": moved(-40, 1000)}, {"world": moved(7, -3)}),
    "rotation": ({"world": rotation(30)}, {"world": Identity()}),
    "rotation, scale and translation": (
        {"world": Sequence([scaled(0.3), rotation(-75), moved(5, 9)])},
        {"world": Sequence([rotation(200), scaled(2)])},
    ),
    "flip": ({"world": Scale([-1, 1], axes=("x", "y"))}, {"world": Identity()}),
    "three systems": (
        {"a": Identity(), "b": scaled(0.25), "only_image": scaled(9)},
        {"a": Identity(), "b": scaled(0.25), "only_shapes": scaled(5)},
    ),
}


@pytest.mark.parametrize("name", MAPS)
def test_centres_hit_the_dots_at_every_level(dots: Callable[..., SpatialData], truth: np.ndarray, name: str) -> None:
    sdata = dots(*MAPS[name])
    geometry = locate(sdata, "spots", microns_per_pixel=0.5)
    assert [level.size for level in geometry.levels] == [(601, 403), (300, 201), (150, 100)]
    assert np.allclose(geometry.pixels(), truth, atol=1e-6)
    assert list(geometry.instances) == [100, 101, 102, 103]
    for i, level in enumerate(geometry.levels):
        factor = np.array(level.size) / (601, 403)
        assert np.allclose(geometry.pixels(i), truth * factor, atol=1e-6)
        assert level.microns_per_pixel == pytest.approx(0.5 / np.sqrt(factor.prod()))
        column, row = np.floor(geometry.pixels(i)).astype(int).T
        assert np.abs(level.array.values[:, row, column].T - COLOURS).max() < 2


@pytest.mark.parametrize("level", [0, 1, 2])
def test_patches_are_centred_on_the_dots_whatever_level_they_are_read_from(
    dots: Callable[..., SpatialData], level: int
) -> None:
    geometry = locate(dots(*MAPS["rotation, scale and translation"]), "spots", microns_per_pixel=0.5)
    px = 60 // 2**level - 1  # of a patch of 60 px: the coarsest level that is still fine enough
    assert best_level(geometry, 30.0, px) is geometry.levels[level]
    found = {}
    for which, patches in iter_patches(geometry, np.arange(4), size_um=30.0, size_px=px):
        found |= dict(zip(which, patches.astype(float), strict=True))
    centre = (np.arange(px) + 0.5 - px / 2) * 60 / px
    xx, yy = np.meshgrid(centre, centre)
    radius = np.hypot(xx, yy)
    for i in range(4):
        assert np.abs(found[i][radius < 10] - COLOURS[i]).max() < 15
        assert np.abs(found[i][radius > 20] - 235).max() < 15
        dark = np.abs(found[i] - 235).sum(axis=2)
        assert np.hypot((dark * xx).sum() / dark.sum(), (dark * yy).sum() / dark.sum()) < 1.5  # centred, in fine pixels


def test_single_resolution_images_have_one_level(dots: Callable[..., SpatialData], truth: np.ndarray) -> None:
    geometry = locate(dots(scale_factors=()), "spots", microns_per_pixel=2)
    assert len(geometry.levels) == 1
    assert np.allclose(geometry.pixels(), truth)


def test_contradictory_systems_are_named(dots: Callable[..., SpatialData]) -> None:
    sdata = dots({"a": Identity(), "b": Identity()}, {"a": Identity(), "b": scaled(2)})
    with pytest.raises(
        ValueError, match=r"\['a', 'b'\] put the spots of 'spots' up to .* px apart.*remove_transformation"
    ):
        locate(sdata, "spots", microns_per_pixel=1)


def test_unknown_resolution_is_asked_for(dots: Callable[..., SpatialData]) -> None:
    with pytest.raises(ValueError, match=r"resolution of image 'he' is unknown.*microns_per_pixel="):
        locate(dots(), "spots")


@pytest.mark.parametrize("given", [0, -1.0, np.nan, np.inf, "0.5", True])
def test_resolution_must_be_a_positive_number(dots: Callable[..., SpatialData], given: object) -> None:
    with pytest.raises(ValueError, match="microns_per_pixel to be a number above 0"):
        locate(dots(), "spots", microns_per_pixel=given)  # type: ignore[arg-type]


def test_resolution_comes_from_a_system_in_microns_unless_it_is_given(dots: Callable[..., SpatialData]) -> None:
    systems = {"s": Identity(), "s_microns": Sequence([scaled(0.69), rotation(10)])}
    sdata = dots(systems, systems)
    found = locate(sdata, "spots")
    assert found.microns_per_pixel == pytest.approx(0.69)
    assert [level.microns_per_pixel for level in found.levels] == pytest.approx([0.69, 1.38, 2.77], rel=0.01)
    assert found.microns_source == "coordinate system 's_microns'"
    assert locate(sdata, "spots", microns_per_pixel=2.5).microns_per_pixel == 2.5
    assert locate(sdata, "spots", microns_per_pixel=2.5).microns_source == "given"


def test_coordinates_must_be_finite(dots: Callable[..., SpatialData]) -> None:
    sdata = dots(spots=np.array([[10, 10], [np.nan, 20], [30, 30.0]]))
    with pytest.raises(ValueError, match="finite coordinates of all 3 spots of 'spots'"):
        locate(sdata, "spots", microns_per_pixel=1)


def test_greyscale_images_are_refused(dots: Callable[..., SpatialData]) -> None:
    sdata = dots()
    sdata.images["he"] = Image2DModel.parse(
        np.zeros((1, 50, 60), np.uint8), dims=("c", "y", "x"), transformations={"world": Identity()}
    )
    with pytest.raises(
        ValueError, match=r"RGB image \(3 channels\), found 1 in image 'he'.*Available images: \['he'\]"
    ):
        locate(sdata, "spots", microns_per_pixel=1)


# --- which image ---


def another(
    side: tuple[int, int], factor: float, system: str = "world", *, like: SpatialData | None = None
) -> Image2DModel:
    """An image of other tissue, or like the first one of an object."""
    pixels = np.full((side[1], side[0], 3), 235, np.uint8)
    pixels[side[1] // 3 : side[1] // 2, side[0] // 4 : side[0] // 2] = (150, 90, 160)
    if like is not None:
        finest = image_levels(next(iter(like.images.values())))[0].values.transpose(1, 2, 0)
        pixels = np.asarray(Image.fromarray(finest).resize(side, Image.Resampling.BOX))
    return Image2DModel.parse(pixels.transpose(2, 0, 1), dims=("c", "y", "x"), transformations={system: scaled(factor)})


def test_of_copies_of_one_picture_the_finest_is_taken(dots: Callable[..., SpatialData]) -> None:
    sdata = dots()
    sdata.images["small"] = another((120, 81), 5.0, like=sdata)
    assert locate(sdata, "spots", microns_per_pixel=1).image_key == "he"
    assert locate(sdata, "spots", image_key="small", microns_per_pixel=1).image_key == "small"


def test_which_copy_is_taken_is_said_once(dots: Callable[..., SpatialData], caplog: pytest.LogCaptureFixture) -> None:
    sdata = dots()
    sdata.images["said_once"] = another((120, 81), 5.0, like=sdata)
    for _ in range(3):
        locate(sdata, "spots", microns_per_pixel=1)
    assert caplog.text.count("several resolutions; using the finest, 'he'") == 1


def test_two_pictures_are_ambiguous(dots: Callable[..., SpatialData]) -> None:
    sdata = dots()
    sdata.images["stain"] = another((601, 403), 1.0)  # the same extent and resolution: another stain, another section
    with pytest.raises(KeyError, match=r"several images under 'spots'.*image_key= one of \['he', 'stain'\]"):
        locate(sdata, "spots", microns_per_pixel=1)


def test_missing_and_unregistered_images(dots: Callable[..., SpatialData]) -> None:
    sdata = dots()
    sdata.images["other"] = another((120, 81), 1.0, "elsewhere")
    with pytest.raises(KeyError, match=r"image_key='nothing' is not there. Available images: \['he', 'other'\]"):
        locate(sdata, "spots", image_key="nothing", microns_per_pixel=1)
    with pytest.raises(ValueError, match=r"'other' and spots 'spots' share no coordinate system.*set_transformation"):
        locate(sdata, "spots", image_key="other", microns_per_pixel=1)
    del sdata.images["he"]
    with pytest.raises(KeyError, match=r"image that shares a coordinate system with 'spots'.*set_transformation"):
        locate(sdata, "spots", microns_per_pixel=1)


# --- grids ---


def hexagonal(n: int, pitch: float = 100.0) -> np.ndarray:
    row, column = np.mgrid[:n, : 2 * n]
    keep = (row + column) % 2 == 0
    return np.stack([column[keep] * pitch / 2, row[keep] * pitch * np.sqrt(3) / 2], axis=1)


def test_hexagonal_grids_are_recognised_also_in_scattered_tissue() -> None:
    rng = np.random.default_rng(0)
    grid = hexagonal(20)
    turn = np.array([[0.9, -np.sqrt(0.19)], [np.sqrt(0.19), 0.9]])
    pieces = np.zeros(len(grid), dtype=bool)
    for centre in grid[rng.choice(len(grid), 25, replace=False)]:
        pieces |= np.hypot(*(grid - centre).T) < 110 * rng.uniform(0.5, 1.2)
    assert 60 < pieces.sum() < 200
    for xy in (grid, grid @ turn.T, grid[pieces], np.round(grid / 4)):
        assert is_hexagonal(xy)
    square = np.stack(np.mgrid[:15, :15], axis=-1).reshape(-1, 2) * 100.0
    line = np.c_[np.arange(40) * 100.0, np.zeros(40)]
    for xy in (square, square @ turn.T, square + rng.normal(0, 6, square.shape), line, rng.uniform(0, 2000, (300, 2))):
        assert not is_hexagonal(xy)
    assert not is_hexagonal(grid[:10])


def test_spot_spacing_is_that_of_the_grid() -> None:
    rng = np.random.default_rng(1)
    square = np.stack(np.mgrid[:15, :15], axis=-1).reshape(-1, 2) * 200.0
    assert spot_spacing(hexagonal(12)) == pytest.approx(100)
    assert spot_spacing(square) == pytest.approx(200)
    assert spot_spacing(square + rng.normal(0, 5, square.shape)) == pytest.approx(200, rel=0.03)
    assert spot_spacing(square[rng.random(len(square)) < 0.7]) == pytest.approx(200)


# --- Visium ---


def test_visium_objects_are_read_as_they_come(visium: SpatialData, source: SpatialData) -> None:
    assert set(visium.coordinate_systems) == {"A1", "A1_downscaled_hires", "A1_downscaled_lowres"}
    geometry = locate(visium, "A1")
    assert geometry.image_key == "A1_hires_image"
    assert geometry.microns_per_pixel == pytest.approx(2.0, rel=0.01)
    assert "Visium" in geometry.microns_source
    assert (
        np.abs(geometry.pixels() - source.tables["table"].obsm["spatial"]).max() <= 0.126
    )  # whole pixels of full size
    lowres = locate(visium, "A1", image_key="A1_lowres_image")
    assert lowres.microns_per_pixel == pytest.approx(2 / 0.3, rel=0.01)
    assert np.allclose(lowres.pixels(), geometry.pixels() * 0.3)


def test_visium_with_its_full_resolution_image(visium: SpatialData) -> None:
    sdata = spatialdata.deepcopy(visium)
    sdata.images["A1_full_image"] = another((3200, 3200), 1.0, "A1", like=visium)
    geometry = locate(sdata, "A1")
    assert geometry.image_key == "A1_full_image"
    assert geometry.microns_per_pixel == pytest.approx(0.5, rel=0.01)


def test_real_visium_resolution(data_dir: Path) -> None:
    for path in sorted((data_dir / "visium_ffpe").glob("*/*")):
        sdata = spatialdata_io.visium(path, dataset_id=path.name)
        geometry = locate(sdata, path.name)
        assert geometry.microns_per_pixel == pytest.approx(4.2, rel=0.02), path.name


def test_polygons_are_located_by_their_centroid(dots: Callable[..., SpatialData], truth: np.ndarray) -> None:
    sdata = dots()
    squares = sdata.shapes["spots"].copy()
    squares["geometry"] = squares.geometry.buffer(8, cap_style="square")
    sdata.shapes["squares"] = ShapesModel.parse(squares.drop(columns="radius"))
    set_transformation(sdata.shapes["squares"], Identity(), to_coordinate_system="world")
    assert np.allclose(locate(sdata, "squares", microns_per_pixel=1).pixels(), truth)


def test_synthetic_spots_are_where_the_table_says() -> None:
    sdata = nh.datasets.synthetic(width_um=800, microns_per_pixel=0.8)
    geometry = locate(sdata, "section_0_spots")
    assert geometry.microns_per_pixel == pytest.approx(0.8)
    assert np.allclose(geometry.pixels(), sdata.tables["table"].obsm["spatial"])
