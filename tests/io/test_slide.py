from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import spatialdata
import tifffile
from PIL import Image
from spatialdata.transformations import get_transformation

import nh2st_scverse as nh
from nh2st_scverse.io import _image as module

APERIO = (
    "Aperio Image Library v11.2.1 \r\n{width}x{height} [0,100 {width}x{height}] (256x256) JPEG/RGB Q=70"
    "|AppMag = 20|StripeWidth = 2040|MPP = {mpp}"
)
XY = ("x", "y")


@pytest.fixture(scope="module")
def pixels() -> np.ndarray:
    """(1500, 2100, 3), smooth, so that JPEG keeps it."""
    rng = np.random.default_rng(0)
    small = Image.fromarray(rng.integers(40, 250, (15, 21, 3), dtype=np.uint8))
    return np.asarray(small.resize((2100, 1500), Image.Resampling.BICUBIC))


def reduced(pixels: np.ndarray, factor: int) -> np.ndarray:
    height, width = (n // factor * factor for n in pixels.shape[:2])
    blocks = pixels[:height, :width].reshape(height // factor, factor, width // factor, factor, 3)
    return blocks.mean(axis=(1, 3)).round().astype(np.uint8)


def write_svs(path: Path, pixels: np.ndarray, mpp: str = "0.4990") -> Path:
    """Levels 1 and 1/4 in tiles of 240 px with JPEG compression, and a thumbnail between them, as scanners do."""
    about = APERIO.format(width=pixels.shape[1], height=pixels.shape[0], mpp=mpp)
    kinds = {"photometric": "rgb", "compression": "jpeg", "metadata": None, "description": about}
    with tifffile.TiffWriter(path) as tiff:
        tiff.write(pixels, tile=(240, 240), **kinds)
        tiff.write(reduced(pixels, 8), **kinds)
        tiff.write(reduced(pixels, 4), tile=(240, 240), **kinds)
    return path


def write_ome(path: Path, pixels: np.ndarray, *, planar: bool = False, **metadata: Any) -> Path:
    """Levels 1, 1/2 and 1/4; channels as planes or interleaved."""
    levels = [pixels, reduced(pixels, 2), reduced(pixels, 4)]
    kinds: dict[str, Any] = {"photometric": "rgb", "tile": (256, 256)}
    if planar:
        levels = [level.transpose(2, 0, 1) for level in levels]
        kinds["planarconfig"] = "separate"
    with tifffile.TiffWriter(path) as tiff:
        tiff.write(levels[0], subifds=2, metadata={"axes": "CYX" if planar else "YXS"} | metadata, **kinds)
        for level in levels[1:]:
            tiff.write(level, subfiletype=1, **kinds)
    return path


def microns_of(sdata: spatialdata.SpatialData) -> float:
    (name,) = sdata.images
    system = name.replace("_image", "_microns")
    matrix = get_transformation(sdata.images[name], to_coordinate_system=system).to_affine_matrix(XY, XY)
    assert matrix[0, 0] == matrix[1, 1] and (matrix[:2, 2] == 0).all()
    return float(matrix[0, 0])


def test_svs_is_read_with_its_pyramid_and_resolution(tmp_path: Path, pixels: np.ndarray) -> None:
    sdata = nh.io.slide(write_svs(tmp_path / "TCGA-A1 (2).svs", pixels))
    assert list(sdata.images) == ["TCGA-A1_2_image"]
    assert sorted(sdata.coordinate_systems) == ["TCGA-A1_2", "TCGA-A1_2_microns"]
    assert microns_of(sdata) == pytest.approx(0.499)
    image = sdata.images["TCGA-A1_2_image"]
    assert [image[s]["image"].shape for s in image.children] == [(3, 1500, 2100), (3, 375, 525)]
    for scale, factor in (("scale0", 1), ("scale1", 4)):
        found = image[scale]["image"].transpose("y", "x", "c").values
        assert found.dtype == np.uint8
        assert np.abs(found.astype(int) - reduced(pixels, factor)).mean() < 3
    to_base = get_transformation(image["scale1"]["image"], to_coordinate_system="TCGA-A1_2").to_affine_matrix(XY, XY)
    assert np.allclose(to_base, np.diag([4, 4, 1]))


@pytest.mark.parametrize("planar", [False, True])
def test_ome_tiff_is_read_with_its_pyramid_and_resolution(tmp_path: Path, pixels: np.ndarray, planar: bool) -> None:
    size = {"PhysicalSizeX": 252.0, "PhysicalSizeXUnit": "nm", "PhysicalSizeY": 252.0, "PhysicalSizeYUnit": "nm"}
    sdata = nh.io.slide(write_ome(tmp_path / "S1.ome.tif", pixels, planar=planar, **size))
    assert microns_of(sdata) == pytest.approx(0.252)
    image = sdata.images["S1_image"]
    assert [image[s]["image"].sizes["x"] for s in image.children] == [2100, 1050, 525]
    for scale, factor in (("scale0", 1), ("scale1", 2), ("scale2", 4)):
        found = image[scale]["image"].transpose("y", "x", "c").values
        assert np.array_equal(found, reduced(pixels, factor))


def test_a_written_slide_is_the_same(tmp_path: Path, pixels: np.ndarray) -> None:
    sdata = nh.io.slide(write_svs(tmp_path / "S1.svs", pixels))
    sdata.write(tmp_path / "S1.zarr")
    again = spatialdata.read_zarr(tmp_path / "S1.zarr")
    assert microns_of(again) == pytest.approx(0.499)
    level = again.images["S1_image"]["scale1"]["image"]
    assert np.array_equal(level.values, sdata.images["S1_image"]["scale1"]["image"].values)
    assert get_transformation(level, to_coordinate_system="S1").to_affine_matrix(XY, XY)[0, 0] == pytest.approx(4)


def test_only_the_tiles_that_are_needed_are_decoded(
    tmp_path: Path, pixels: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> None:
    read = []
    inner = module._read_block

    def counted(*args: Any, block_info: Any = None, **kwargs: Any) -> np.ndarray:
        read.append(block_info[None]["chunk-location"])
        return inner(*args, block_info=block_info, **kwargs)

    monkeypatch.setattr(module, "_read_block", counted)
    sdata = nh.io.slide(write_svs(tmp_path / "S1.svs", pixels))
    assert read == []
    image = sdata.images["S1_image"]["scale0"]["image"]
    assert {n % 240 for sizes in image.data.chunks[1:] for n in sizes[:-1]} <= {0}  # whole tiles
    image[:, 10:30, 10:30].compute()
    assert len(read) == 1


def test_a_tiff_without_a_pyramid_gets_one(tmp_path: Path, pixels: np.ndarray) -> None:
    tifffile.imwrite(tmp_path / "flat.tif", pixels, tile=(256, 256), resolution=(20000, 20000), resolutionunit=3)
    sdata = nh.io.slide(tmp_path / "flat.tif", section="S9")
    assert microns_of(sdata) == pytest.approx(0.5)
    image = sdata.images["S9_image"]
    assert [image[s]["image"].sizes["x"] for s in image.children] == [2100, 1050, 525]
    assert np.abs(image["scale2"]["image"].transpose("y", "x", "c").values - reduced(pixels, 4).astype(int)).max() <= 1


@pytest.mark.parametrize(
    ("size", "unit", "expected"),
    [
        (0.5, None, 0.5),
        (0.5, "µm", 0.5),
        (0.00025, "mm", 0.25),
        (0.000025, "cm", 0.25),
        (0.00002, "in", 0.508),
        (2500, "Å", 0.25),
    ],
)
def test_units_of_ome(tmp_path: Path, pixels: np.ndarray, size: float, unit: str | None, expected: float) -> None:
    stated = {"PhysicalSizeX": size} | ({"PhysicalSizeXUnit": unit} if unit else {})
    path = tmp_path / "a.ome.tif"
    tifffile.imwrite(path, pixels[:300, :400], photometric="rgb", metadata={"axes": "YXS"} | stated)
    assert microns_of(nh.io.slide(path)) == pytest.approx(expected)


@pytest.mark.parametrize(
    ("written", "expected"),
    [
        ({"resolution": (20000, 20000), "resolutionunit": 3}, 0.5),  # cm
        ({"resolution": (101600, 101600), "resolutionunit": 2}, 0.25),  # inch
        ({"resolution": (2.0, 2.0), "metadata": {"unit": "um"}, "imagej": True}, 0.5),
    ],
)
def test_resolution_tags(tmp_path: Path, pixels: np.ndarray, written: dict[str, Any], expected: float) -> None:
    tifffile.imwrite(tmp_path / "a.tif", pixels[:300, :400], **written)
    assert microns_of(nh.io.slide(tmp_path / "a.tif")) == pytest.approx(expected)


@pytest.mark.parametrize(
    ("written", "found"),
    [
        ({}, "it is not stated"),
        ({"resolution": (72, 72), "resolutionunit": 2}, "found 352.8 in the resolution tags, which no slide has"),
        ({"resolution": (40000, 40000), "resolutionunit": 1}, "it is not stated"),
        ({"ome": True, "metadata": {"PhysicalSizeX": 1, "PhysicalSizeXUnit": "pixel"}}, "it is not stated"),
        ({"ome": True, "metadata": {"PhysicalSizeX": "half"}}, "found nan in the PhysicalSizeX"),
        (
            {"ome": True, "metadata": {"PhysicalSizeX": 0.5, "PhysicalSizeY": 2}},
            "found 0.5 in x and 2 in y in .*: pixels of slides are square",
        ),
        ({"resolution": (20000, 10000), "resolutionunit": 3}, "found 0.5 in x and 1 in y in the resolution tags"),
        ({"description": "Aperio|MPP = ."}, "found nan in the MPP"),
    ],
)
def test_a_slide_without_resolution_asks_for_it(
    tmp_path: Path, pixels: np.ndarray, written: dict[str, Any], found: str
) -> None:
    path = tmp_path / "a.tif"
    tifffile.imwrite(path, pixels[:300, :400], **written)
    with pytest.raises(ValueError, match=rf"a.tif to state how many µm.*but {found}.*Pass microns_per_pixel=: about"):
        nh.io.slide(path)
    assert microns_of(nh.io.slide(path, microns_per_pixel=0.46)) == 0.46


def test_given_microns_count_more_than_those_of_the_file(tmp_path: Path, pixels: np.ndarray) -> None:
    assert microns_of(nh.io.slide(write_svs(tmp_path / "S1.svs", pixels), microns_per_pixel=0.25)) == 0.25
    with pytest.raises(ValueError, match="microns_per_pixel"):
        nh.io.slide(tmp_path / "S1.svs", microns_per_pixel=-1)


def test_pictures_are_read_when_their_resolution_is_given(tmp_path: Path, pixels: np.ndarray) -> None:
    Image.fromarray(pixels[:600, :800]).save(tmp_path / "hires.png")
    sdata = nh.io.slide(tmp_path / "hires.png", microns_per_pixel=4.2)
    assert np.array_equal(
        sdata.images["hires_image"]["scale0"]["image"].transpose("y", "x", "c").values, pixels[:600, :800]
    )
    with pytest.raises(ValueError, match="not stated"):
        nh.io.slide(tmp_path / "hires.png")


def test_what_is_no_slide_is_refused(tmp_path: Path, pixels: np.ndarray) -> None:
    write_svs(tmp_path / "S1.svs", pixels[:256, :256])
    with pytest.raises(FileNotFoundError, match=r"path to be a file, found none at .*S2.svs'. In that folder: S1.svs"):
        nh.io.slide(tmp_path / "S2.svs")
    (tmp_path / "text.svs").write_text("nothing")
    with pytest.raises(ValueError, match=r"text.svs is not an image that can be read .*QuPath"):
        nh.io.slide(tmp_path / "text.svs")
    write_svs(tmp_path / "S1.svs", pixels[:256, :256]).rename(tmp_path / "S1.ndpi")  # whose offsets are of another kind
    with pytest.raises(ValueError, match=r"S1.ndpi is not an image that can be read"):
        nh.io.slide(tmp_path / "S1.ndpi")
    for name, wrong, message in (
        ("grey.tif", pixels[:300, :300, 0], "axes y, x and 3 channels"),
        ("deep.tif", pixels[:300, :300].astype(np.uint16), "8 bits per channel"),
    ):
        tifffile.imwrite(tmp_path / name, wrong)
        with pytest.raises(ValueError, match=message):
            nh.io.slide(tmp_path / name, microns_per_pixel=0.5)


def test_a_slide_that_changed_is_noticed(tmp_path: Path, pixels: np.ndarray) -> None:
    path = write_ome(tmp_path / "S1.ome.tif", pixels, PhysicalSizeX=0.5, PhysicalSizeXUnit="µm")
    sdata = nh.io.slide(path)
    sdata.images["S1_image"]["scale2"]["image"].compute()
    path.unlink()
    with pytest.raises(OSError, match="changed or gone since it was read"):
        sdata.images["S1_image"]["scale2"]["image"].compute()
