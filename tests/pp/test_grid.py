from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import shapely
from geopandas import GeoDataFrame
from shapely import Point
from spatialdata import SpatialData
from spatialdata.models import Image2DModel, Labels2DModel, ShapesModel
from spatialdata.transformations import Identity, Scale, get_transformation

import nh2st_scverse as nh
from nh2st_scverse.data.geometry import is_hexagonal, spot_spacing

XY = ("x", "y")
MICRONS = 2.0
CENTRE, RADIUS = (500.0, 420.0), 300.0  # px of the piece of tissue


@pytest.fixture
def disc() -> Callable[..., SpatialData]:
    """A purple disc on glass with a speck of dust, 2 µm per pixel."""

    def make(*, microns: bool = True, levels: tuple[int, ...] = (2,), tissue: bool = True) -> SpatialData:
        yy, xx = np.mgrid[:900, :1100] + 0.5
        pixels = np.full((900, 1100, 3), 240, dtype=np.uint8)
        rng = np.random.default_rng(0)
        if tissue:
            pixels[(xx - CENTRE[0]) ** 2 + (yy - CENTRE[1]) ** 2 < RADIUS**2] = (150, 90, 160)
            pixels[(xx - 1000) ** 2 + (yy - 800) ** 2 < 20**2] = (20, 20, 20)
        pixels = np.clip(pixels + rng.normal(0, 4, pixels.shape), 0, 255).astype(np.uint8)
        systems = {"S1": Identity()} | ({"S1_microns": Scale([MICRONS] * 2, axes=XY)} if microns else {})
        image = Image2DModel.parse(
            pixels.transpose(2, 0, 1), dims=("c", "y", "x"), scale_factors=list(levels), transformations=systems
        )
        return SpatialData(images={"S1_image": image})

    return make


def centres(sdata: SpatialData, key: str = "nh2st_grid") -> np.ndarray:
    return np.array([(p.x, p.y) for p in sdata.shapes[key].geometry])


@pytest.mark.parametrize(("shape", "spacing"), [("hexagonal", 100.0), ("square", 100.0), ("hexagonal", 25.0)])
def test_circles_cover_the_tissue_at_the_spacing(disc: Callable, shape: str, spacing: float) -> None:
    sdata = disc()
    nh.pp.grid(sdata, spacing_um=spacing, shape=shape)
    circles = sdata.shapes["nh2st_grid"]
    xy = centres(sdata)
    assert spot_spacing(xy) * MICRONS == pytest.approx(spacing)
    assert is_hexagonal(xy) == (shape == "hexagonal")
    assert circles.radius.to_numpy() * 2 * MICRONS == pytest.approx(spacing)
    away = np.hypot(*(xy - CENTRE).T)
    assert away.max() < RADIUS + spacing / MICRONS / 2  # and none on the dust
    cell = (spacing / MICRONS) ** 2 * (np.sqrt(3) / 2 if shape == "hexagonal" else 1)
    assert len(xy) == pytest.approx(np.pi * RADIUS**2 / cell, rel=0.08)
    row, col = circles["array_row"].to_numpy(), circles["array_col"].to_numpy()
    height = spacing / MICRONS * (np.sqrt(3) / 2 if shape == "hexagonal" else 1)
    assert np.ptp(xy[:, 1] - row * height) < 1e-6
    assert np.ptp(xy[:, 0] - col * spacing / MICRONS / (2 if shape == "hexagonal" else 1)) < 1e-6


def test_circles_are_in_the_systems_of_the_image(disc: Callable) -> None:
    sdata = disc()
    nh.pp.grid(sdata)
    found = get_transformation(sdata.shapes["nh2st_grid"], get_all=True)
    assert set(found) == {"S1", "S1_microns"}
    assert np.allclose(found["S1_microns"].to_affine_matrix(XY, XY), np.diag([MICRONS, MICRONS, 1]))
    assert spot_spacing(centres(sdata)) * MICRONS == pytest.approx(100)


def test_without_a_system_in_microns_they_must_be_given_and_are_kept(disc: Callable) -> None:
    sdata = disc(microns=False)
    with pytest.raises(ValueError, match=r"resolution of image 'S1_image' is unknown.*microns_per_pixel="):
        nh.pp.grid(sdata, spacing_um=50)
    assert not sdata.shapes and sdata.coordinate_systems == ["S1"]
    nh.pp.grid(sdata, spacing_um=50, microns_per_pixel=2.0)
    for element in (sdata.images["S1_image"], sdata.shapes["nh2st_grid"]):
        matrix = get_transformation(element, to_coordinate_system="S1_image_microns").to_affine_matrix(XY, XY)
        assert np.allclose(matrix, np.diag([2, 2, 1]))
    assert spot_spacing(centres(sdata)) * 2 == pytest.approx(50)


@pytest.mark.parametrize("kind", ["labels", "polygons"])
def test_tissue_can_be_marked(disc: Callable, kind: str) -> None:
    sdata = disc(tissue=False)
    if kind == "labels":
        marked = np.zeros((90, 110), dtype=np.int16)  # a tenth of the resolution
        marked[20:40, 30:60] = 3
        sdata.labels["mine"] = Labels2DModel.parse(
            marked, dims=("y", "x"), transformations={"S1": Scale([10, 10], axes=XY)}
        )
    else:
        box = GeoDataFrame(geometry=[shapely.box(300, 200, 600, 400)])
        sdata.shapes["mine"] = ShapesModel.parse(box, transformations={"S1": Identity()})
    nh.pp.grid(sdata, spacing_um=40, tissue_key="mine", key_added="dense")
    xy = centres(sdata, "dense")
    assert (xy > (295, 195)).all() and (xy < (605, 405)).all()
    assert len(xy) == pytest.approx(300 * 200 / (20**2 * np.sqrt(3) / 2), rel=0.1)


def test_what_cannot_be_is_refused_and_changes_nothing(disc: Callable) -> None:
    sdata = disc()
    with pytest.raises(ValueError, match=r"found 4 at 500 µm|found \d at 500 µm.*smaller spacing_um="):
        nh.pp.grid(sdata, spacing_um=500)
    with pytest.raises(ValueError, match=r"0.1 µm over .* more than 5000000 places: expected a wider spacing_um="):
        nh.pp.grid(sdata, spacing_um=0.1)
    with pytest.raises(ValueError, match="spacing_um to be a number above 0"):
        nh.pp.grid(sdata, spacing_um=0)
    with pytest.raises(ValueError, match=r"shape to be one of \['hexagonal', 'square'\], found 'round'"):
        nh.pp.grid(sdata, shape="round")
    with pytest.raises(KeyError, match=r"image_key='no' is not there. Available images: \['S1_image'\]"):
        nh.pp.grid(sdata, image_key="no")
    with pytest.raises(KeyError, match="tissue_key='no' is not there"):
        nh.pp.grid(sdata, tissue_key="no")
    with pytest.raises(ValueError, match="key_added='S1_image' is there already"):
        nh.pp.grid(sdata, key_added="S1_image")
    with pytest.raises(TypeError, match=r"nh.io.slide\(path\)"):
        nh.pp.grid("slide.svs")
    assert not sdata.shapes and not sdata.labels
    sdata.shapes["points"] = ShapesModel.parse(
        GeoDataFrame({"radius": [3.0]}, geometry=[Point(1, 1)]), transformations={"S1": Identity()}
    )
    with pytest.raises(ValueError, match=r"Expected polygons in tissue_key='points', found \['Point'\]"):
        nh.pp.grid(sdata, tissue_key="points")
    two = SpatialData(images={"a_image": sdata.images["S1_image"], "b_image": disc().images["S1_image"]})
    with pytest.raises(KeyError, match=r"several images and cannot choose: pass image_key= one of \['a_image'"):
        nh.pp.grid(two)


@pytest.mark.parametrize("noise", [0, 3])
def test_glass_alone_gives_no_grid(noise: int) -> None:
    pixels = 240 + np.random.default_rng(0).integers(-noise, noise + 1, (3, 600, 600))
    systems = {"S1": Identity(), "S1_microns": Identity()}
    image = Image2DModel.parse(pixels.astype(np.uint8), dims=("c", "y", "x"), transformations=systems)
    sdata = SpatialData(images={"S1_image": image})
    with pytest.raises(ValueError, match=r"No tissue was found in 'S1_image'.*tissue_key="):
        nh.pp.grid(sdata)
