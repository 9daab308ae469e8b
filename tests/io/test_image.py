"""Files of every kind: read in their true colours, or refused with the reason."""

from __future__ import annotations

import io
import logging
import os
import struct
import subprocess
import sys
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import anndata as ad
import numpy as np
import pytest
import tifffile
from PIL import Image

import nh2st_scverse as nh
from nh2st_scverse.io._image import read_image


def colours() -> np.ndarray:
    """(320, 384, 3) uint8: a stained piece on white, smooth, so that JPEG keeps it."""
    y, x = np.mgrid[:320, :384]
    inside = np.exp(-(((y - 150) / 90) ** 2 + ((x - 200) / 110) ** 2))[..., None]
    return (245 - inside * np.array([60, 150, 90]) - (x[..., None] / 20)).round().astype(np.uint8)


RGB = colours()
GREY = RGB.mean(axis=2).astype(np.uint8)
STAINED = np.stack([RGB[..., 1] // 9, 25 + RGB[..., 2] // 9, RGB[..., 0] // 9])  # (3, y, x): dark ground
YX3 = {"axes": "YXS"}
CYX = {"axes": "CYX"}


def planes(path: Path, array: np.ndarray, names: list[str] | None = None, **kinds: Any) -> None:
    about: dict[str, Any] = CYX | ({"Channel": {"Name": names}} if names else {})
    tifffile.imwrite(path, array, ome=True, metadata=about, **{"photometric": "minisblack"} | kinds)


def opacity(kind: str, pixels: np.ndarray, alpha: np.ndarray) -> Callable[[Path], None]:
    return lambda path: tifffile.imwrite(
        path, np.dstack([pixels, alpha]), photometric="rgb", extrasamples=[kind], metadata=None
    )


def png16(path: Path) -> None:
    """RGB of 16 bits, which Pillow reads and does not write."""

    def chunk(name: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in RGB)
    header = struct.pack(">IIBBBBB", RGB.shape[1], RGB.shape[0], 16, 2, 0, 0, 0)
    parts = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows, 1)) + chunk(b"IEND", b"")
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + parts)


def saved(form: str, mode: str = "RGB", **kinds: Any) -> Callable[[Path], None]:
    return lambda path: Image.fromarray(RGB).convert(mode).save(path, form, **kinds)


def cut(form: str, part: float) -> Callable[[Path], None]:
    def write(path: Path) -> None:
        stream = io.BytesIO()
        Image.fromarray(RGB).save(stream, form, **({"compression": "tiff_lzw"} if form == "TIFF" else {}))
        path.write_bytes(stream.getvalue()[: int(len(stream.getvalue()) * part)])

    return write


HALF = np.full(GREY.shape, 128, np.uint8)
HALF[:, 200:] = 0
ON_WHITE = np.where(HALF[..., None] == 0, 255, (RGB * (128 / 255) + 255 * (127 / 255)).round()).astype(np.uint8)
BLACK_WHERE_CLEAR = np.where(HALF[..., None] == 0, 0, RGB).astype(np.uint8)

RIGHT: dict[str, tuple[str, Callable[[Path], None], np.ndarray, float]] = {  # file, how, colours, their error
    "tiles": ("a.tif", lambda p: tifffile.imwrite(p, RGB, tile=(128, 128)), RGB, 0),
    "one strip": ("a.tif", lambda p: tifffile.imwrite(p, RGB), RGB, 0),
    "strips": ("a.tif", lambda p: tifffile.imwrite(p, RGB, rowsperstrip=16, compression="zlib"), RGB, 0),
    "planes of a colour image": (
        "a.tif",
        lambda p: tifffile.imwrite(p, RGB.transpose(2, 0, 1), photometric="rgb", planarconfig="separate"),
        RGB,
        0,
    ),
    "planes that nothing names": ("a.ome.tif", lambda p: planes(p, RGB.transpose(2, 0, 1)), RGB, 0),
    "planes with numbers": (
        "a.ome.tif",
        lambda p: planes(p, RGB.transpose(2, 0, 1), ["Channel 0", "Channel 1", "C:2"]),
        RGB,
        0,
    ),
    "planes named b, g, r": ("a.ome.tif", lambda p: planes(p, RGB.transpose(2, 0, 1)[::-1], ["B", "G", "R"]), RGB, 0),
    "planes named blue, red, green": (
        "a.ome.tif",
        lambda p: planes(p, RGB.transpose(2, 0, 1)[[2, 0, 1]], ["Blue", "Red", "green"]),
        RGB,
        0,
    ),
    "a name for all channels": (
        "a.ome.tif",
        lambda p: tifffile.imwrite(p, RGB, ome=True, metadata=YX3 | {"Channel": {"Name": "Brightfield"}}),
        RGB,
        0,
    ),
    "JPEG in tiles": (
        "a.svs",
        lambda p: tifffile.imwrite(p, RGB, tile=(128, 128), photometric="rgb", compression="jpeg"),
        RGB,
        3,
    ),
    "YCbCr as it is": (
        "a.tif",
        lambda p: tifffile.imwrite(
            p, np.asarray(Image.fromarray(RGB).convert("YCbCr")), photometric="ycbcr", metadata=None
        ),
        RGB,
        3,
    ),
    "a fourth sample that is no opacity": ("a.tif", opacity("unspecified", RGB, 0 * GREY), RGB, 0),
    "opacity": ("a.tif", opacity("unassalpha", RGB, HALF), ON_WHITE, 1),
    "opacity, black where it is clear": ("a.tif", opacity("unassalpha", BLACK_WHERE_CLEAR, HALF), ON_WHITE, 1),
    "opacity that is multiplied already": (
        "a.tif",
        opacity("assocalpha", (RGB * (HALF[..., None] / 255)).round().astype(np.uint8), HALF),
        ON_WHITE,
        1,
    ),
    "CMYK": ("a.tif", saved("TIFF", "CMYK"), RGB, 1),
    "CMYK in JPEG": ("a.jpg", saved("JPEG", "CMYK", quality=95), RGB, 3),
    "palette": ("a.tif", saved("TIFF", "P"), np.asarray(Image.fromarray(RGB).convert("P").convert("RGB")), 0),
    "PNG": ("a.png", saved("PNG"), RGB, 0),
    "PNG with opacity": ("a.png", lambda p: Image.fromarray(np.dstack([RGB, HALF])).save(p), ON_WHITE, 1),
    "PNG with a palette": ("a.png", saved("PNG", "P"), np.asarray(Image.fromarray(RGB).convert("P").convert("RGB")), 0),
    "JPEG": ("a.jpg", saved("JPEG", quality=95), RGB, 3),
    "JPEG named png": ("a.png", saved("JPEG", quality=95), RGB, 3),
    "TIFF named png": ("a.png", lambda p: tifffile.imwrite(p, RGB, tile=(128, 128)), RGB, 0),
    "PNG named tif": ("a.tif", saved("PNG"), RGB, 0),
}


@pytest.mark.parametrize("case", RIGHT)
def test_colours_are_those_that_the_file_means(tmp_path: Path, case: str) -> None:
    name, write, expected, error = RIGHT[case]
    write(tmp_path / name)
    adata = ad.AnnData(np.ones((9, 2), np.float32))
    adata.obsm["spatial"] = np.array([(x, y) for x in (60, 160, 260) for y in (60, 160, 260)])
    section = nh.io.from_anndata(adata, tmp_path / name, microns_per_pixel=1, spot_diameter=55)
    slide = nh.io.slide(tmp_path / name, microns_per_pixel=1, section="section")
    for sdata in (section, slide):
        found = sdata["section_image"]["scale0"]["image"]
        assert list(found.coords["c"].values) == ["r", "g", "b"] and found.dtype == np.uint8
        difference = np.abs(found.values.transpose(1, 2, 0).astype(int) - expected)
        assert difference.mean() <= error and difference.max() <= 4 * error


WRONG: dict[str, tuple[str, Callable[[Path], None], str]] = {
    "grey": ("a.tif", lambda p: tifffile.imwrite(p, GREY), r"a.tif is greyscale: .*no H&E stain.*bright light"),
    "grey, inverted": (
        "a.tif",
        lambda p: tifffile.imwrite(p, 255 - GREY, photometric="miniswhite"),
        "greyscale and inverted .*MINISWHITE.*no H&E stain",
    ),
    "planes, inverted": (
        "a.tif",
        lambda p: tifffile.imwrite(p, RGB.transpose(2, 0, 1), photometric="miniswhite", metadata=CYX),
        "inverted .*MINISWHITE",
    ),
    "grey PNG": ("a.png", saved("PNG", "L"), r"greyscale \(mode L\)"),
    "grey PNG with opacity": ("a.png", saved("PNG", "LA"), r"greyscale \(mode LA\)"),
    "grey JPEG": ("a.jpg", saved("JPEG", "L"), "greyscale"),
    "fluorescence by name": (
        "a.ome.tif",
        lambda p: planes(p, STAINED.astype(np.uint8), ["DAPI", "FITC", "TRITC"]),
        "not H&E: its channels are DAPI, FITC, TRITC.*bright light",
    ),
    "fluorescence by its dyes": (
        "a.ome.tif",
        lambda p: planes(p, STAINED.astype(np.uint8), ["AF488", "Cy5", "Alexa Fluor 594"]),
        "not H&E: its channels are AF488",
    ),
    "antibodies": (
        "a.ome.tif",
        lambda p: planes(p, RGB.transpose(2, 0, 1), ["CD3", "CD20", "panCK"]),
        "not H&E: its channels are CD3, CD20, panCK",
    ),
    "four antibodies": (
        "a.ome.tif",
        lambda p: planes(p, np.concatenate([STAINED, STAINED[:1]]).astype(np.uint8), ["CD3", "CD20", "CD8", "CD4"]),
        "not H&E: its channels are",
    ),
    "four planes that nothing names": (
        "a.ome.tif",
        lambda p: planes(p, np.concatenate([STAINED, STAINED[:1]]).astype(np.uint8)),
        r"not an RGB image: .*found CYX of shape \(4, 320, 384\)",
    ),
    "fluorescence by its ground": (
        "a.tif",
        lambda p: tifffile.imwrite(p, STAINED.astype(np.uint8), photometric="minisblack", metadata=CYX),
        "not H&E: its ground is dark",
    ),
    "ImageJ labels": (
        "a.tif",
        lambda p: tifffile.imwrite(
            p,
            RGB.transpose(2, 0, 1),
            imagej=True,
            photometric="minisblack",
            metadata=CYX | {"Labels": ["DAPI", "GFP", "mCherry"], "mode": "composite"},
        ),
        "not H&E: its channels are DAPI, GFP, mCherry",
    ),
    "16 bits": (
        "a.tif",
        lambda p: tifffile.imwrite(p, RGB.astype(np.uint16), photometric="rgb"),
        r"uint16, 16 bits per channel: expected 8.*astype\(\"uint8\"\)",
    ),
    "16 bits in PNG": ("a.png", png16, "has 16 bits per channel: expected 8"),
    "from 0 to 1": (
        "a.tif",
        lambda p: tifffile.imwrite(p, (RGB / 255).astype(np.float32), photometric="rgb"),
        "float32, 32 bits per channel: expected 8",
    ),
    "several depths": (
        "a.tif",
        lambda p: tifffile.imwrite(p, np.stack([RGB] * 4), photometric="rgb", metadata={"axes": "ZYXS"}),
        "axes y, x and 3 channels, found ZYXS",
    ),
    "CIELAB": (
        "a.tif",
        lambda p: tifffile.imwrite(p, RGB, photometric="cielab", metadata=None),
        "colours of the kind .*save it as RGB|not an image that can be read",
    ),
    "cut TIFF": ("a.tif", cut("TIFF", 0.6), "is cut off|not an image that can be read"),
    "cut slide": (
        "a.svs",
        lambda p: (
            tifffile.imwrite(p, RGB, tile=(64, 64), photometric="rgb", compression="jpeg"),
            p.write_bytes(p.read_bytes()[:-2000]),
        ),
        "a.svs is cut off: its end is missing. Copy or download it again",
    ),
    "cut JPEG": ("a.jpg", cut("JPEG", 0.7), "a.jpg is cut off"),
    "cut PNG": ("a.png", cut("PNG", 0.7), "a.png is cut off"),
    "header of a JPEG": ("a.jpg", cut("JPEG", 0.01), "not an image that can be read|is cut off"),
    "text": ("a.svs", lambda p: p.write_text("no picture"), "not an image that can be read .*QuPath or bfconvert"),
    "nothing": ("a.tif", lambda p: p.write_bytes(b""), "not an image that can be read"),
    "a TIFF header and noise": ("a.tif", lambda p: p.write_bytes(b"II*\0" + bytes(range(200))), "that can be read"),
    "a table": ("a.png", lambda p: p.write_text("x\ty\n1\t2\n"), "not an image that can be read"),
}


@pytest.mark.parametrize("case", WRONG)
def test_what_is_no_stained_tissue_is_refused_with_the_reason(tmp_path: Path, case: str) -> None:
    name, write, message = WRONG[case]
    write(tmp_path / name)
    adata = ad.AnnData(np.ones((9, 2), np.float32))
    adata.obsm["spatial"] = np.array([(x, y) for x in (60, 160, 260) for y in (60, 160, 260)])
    with pytest.raises(ValueError, match=message):
        nh.io.slide(tmp_path / name, microns_per_pixel=1)
    with pytest.raises(ValueError, match=message):
        nh.io.from_anndata(adata, tmp_path / name, microns_per_pixel=1, spot_diameter=55)
    assert list(adata.obsm) == ["spatial"] and list(adata.obs) == []


@pytest.mark.parametrize(
    ("pixels", "message"),
    [
        (RGB / 127.5 - 1, r"values from -\d.* to .*expected uint8 .*\(\(image \+ 1\) \* 127.5\).round\(\)"),
        (RGB.astype(np.float32), r"values from .* to .*pass `image.round\(\)"),
        (RGB.astype(np.int64), "is int64: expected 8 bits"),
        (RGB > 200, "is bool: expected 8 bits"),
        (np.dstack([RGB, RGB]), r"shape \(320, 384, 6\): expected"),
    ],
)
def test_arrays_of_other_ranges_are_refused(pixels: np.ndarray, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        read_image(pixels)


@pytest.mark.parametrize("form", ["jpg", "tif"])
def test_an_orientation_is_warned_of(tmp_path: Path, caplog: pytest.LogCaptureFixture, form: str) -> None:
    path = tmp_path / f"a.{form}"
    if form == "jpg":
        exif = Image.Exif()
        exif[0x0112] = 6
        Image.fromarray(RGB).save(path, exif=exif, quality=95)
    else:
        tifffile.imwrite(path, RGB, extratags=[(274, 3, 1, 6, True)], metadata=None)
    picture = read_image(path)
    assert picture.levels[0].shape == (3, 320, 384)
    assert "asks to be shown rotated or mirrored" in caplog.text and caplog.text.count("rotated") == 1


def test_the_largest_picture_is_read_and_likes_of_it_are_named(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with tifffile.TiffWriter(tmp_path / "a.tif") as tiff:
        tiff.write(GREY[:100, :120], metadata=None)  # label
        tiff.write(RGB, tile=(128, 128), metadata=None)
        tiff.write(255 - RGB[:64, :300], metadata=None)  # macro
    picture = read_image(tmp_path / "a.tif")
    np.testing.assert_array_equal(picture.levels[0].compute().transpose(1, 2, 0), RGB)
    assert "of like size" not in caplog.text
    with tifffile.TiffWriter(tmp_path / "b.ome.tif", ome=True) as tiff:
        tiff.write(RGB[:300], photometric="rgb", tile=(64, 64), metadata=YX3)
        tiff.write(RGB, photometric="rgb", tile=(64, 64), metadata=YX3)
    read_image(tmp_path / "b.ome.tif")
    assert "holds 2 pictures of like size: the largest is read, number 1, and not [0]" in caplog.text


def test_levels_that_show_something_else_are_left_out(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    big = np.asarray(Image.fromarray(RGB).resize((1536, 1280)))
    kinds: dict[str, Any] = {"tile": (128, 128), "photometric": "rgb"}

    def write(name: str, level: np.ndarray) -> list[np.ndarray]:
        with tifffile.TiffWriter(tmp_path / name) as tiff:
            tiff.write(big, subifds=1, **kinds)
            tiff.write(level, subfiletype=1, **kinds)
        levels = read_image(tmp_path / name).levels
        assert [one.shape for one in levels] == [(3, 1280, 1536), (3, 640, 768), (3, 320, 384)]
        return [one.compute().transpose(1, 2, 0) for one in levels]

    right = big.reshape(640, 2, 768, 2, 3).mean((1, 3)).round().astype(np.uint8)
    assert np.array_equal(write("right.tif", right)[1], right)
    assert not caplog.text
    for name, wrong in {"inverted.tif": 255 - right, "black.tif": 0 * right, "glass.tif": 0 * right + 245}.items():
        found = write(name, wrong)[1]
        assert np.abs(found.astype(int) - right).max() <= 1
        assert f"{name}: level 1 shows something else than the finest one, and is left out" in caplog.text


def test_small_levels_of_one_picture_are_kept(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    kinds: dict[str, Any] = {"tile": (64, 64), "photometric": "rgb"}
    drawn = nh.datasets.synthetic(width_um=700, microns_per_pixel=700 / 520)["section_0_image"]["scale0"]["image"]
    level = drawn.transpose("y", "x", "c").values
    with tifffile.TiffWriter(tmp_path / "a.tif") as tiff:
        tiff.write(level, subifds=3, **kinds)
        for _ in range(3):
            level = np.asarray(Image.fromarray(level).reduce(2))
            tiff.write(level, subfiletype=1, **kinds)
    read_image(tmp_path / "a.tif")
    assert not caplog.text


def test_only_pixels_that_are_needed_are_in_memory(tmp_path: Path) -> None:
    """A large tiled picture costs the same in both readers, far less than the picture."""
    tile = np.asarray(Image.fromarray(RGB).resize((512, 512)))
    big = np.tile(tile, (12, 12, 1))  # 113 MB
    with tifffile.TiffWriter(tmp_path / "a.tif") as tiff:
        tiff.write(big, tile=(512, 512), compression="jpeg", photometric="rgb", subifds=1)
        tiff.write(big[::4, ::4], tile=(512, 512), compression="jpeg", photometric="rgb", subfiletype=1)
    code = """
import resource, sys, numpy as np, anndata as ad, nh2st_scverse as nh
from nh2st_scverse.io._image import read_image
a = ad.AnnData(np.ones((900, 3), "float32"))
a.obsm["spatial"] = np.stack(np.meshgrid(np.arange(30) * 190 + 200, np.arange(30) * 190 + 200), -1).reshape(-1, 2)
peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3
read_image(np.full((32, 32, 3), 200, np.uint8)).levels[0].compute()
before = peak()
s = nh.io.from_anndata(a, sys.argv[1], spot_pitch=100)
s["section_image"]["scale0"]["image"][:, 3000:3256, 3000:3256].values
print(peak() - before)
"""
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code, str(tmp_path / "a.tif")],
        capture_output=True,
        text=True,
        check=True,
        env=os.environ | {"PYTHONPATH": str(Path(nh.__file__).parents[1])},
    )
    assert float(done.stdout.split()[-1]) < 60


def test_a_damaged_tile_is_named(tmp_path: Path) -> None:
    path = tmp_path / "a.tif"
    tifffile.imwrite(path, RGB, tile=(64, 64), compression="zlib")
    with tifffile.TiffFile(path) as tiff:
        at = tiff.pages[0].dataoffsets[0]
    broken = bytearray(path.read_bytes())
    broken[at : at + 40] = b"\xff" * 40
    path.write_bytes(broken)
    lazy = read_image(path).levels[0]
    with pytest.raises(OSError, match=r"a.tif cannot be decoded, it is damaged .*copy it again"):
        lazy.compute()


def test_what_is_read_is_logged_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    opacity("unspecified", RGB, 0 * GREY)(tmp_path / "a.tif")
    with caplog.at_level(logging.INFO, logger="nh2st_scverse"):
        nh.io.slide(tmp_path / "a.tif", microns_per_pixel=1)
    assert caplog.text.count("1 channel(s) more than red, green and blue, not opacity: left out") == 1
