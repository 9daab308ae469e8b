"""What is H&E: channels by name and number, values, opacity; colours of stains; areas that show no tissue."""

from __future__ import annotations

import re
from collections.abc import Callable

import numpy as np
import pytest
from PIL import Image

from nh2st_scverse.data.pixels import Colours, colours_of, not_scanned, why_not_stained

RNG = np.random.default_rng(0)


def stained(side: int = 200) -> np.ndarray:
    """Tissue of eosin and nuclei of haematoxylin on glass, (side, side, 3)."""
    eosin = np.array([0.08, 0.5, 0.2]) * RNG.uniform(0.7, 1.2, (side, side, 1))
    nuclei = np.kron(RNG.random((side // 2, side // 2)) < 0.3, np.ones((2, 2)))[..., None] * [0.7, 0.8, 0.4]
    y, x = np.mgrid[:side, :side] / side - 0.5
    density = (eosin + nuclei) * (np.hypot(x, y) < 0.35)[..., None]
    return np.clip(245 * np.exp(-density), 0, 255).astype(np.uint8)


PICTURE = stained()
GLASS = (PICTURE.min(axis=2) > 240)[..., None]


def read(pixels: np.ndarray, names: tuple[str, ...] = ()) -> tuple[np.ndarray, Colours]:
    how = colours_of(pixels.dtype, names, pixels.shape[-1], lambda: pixels[::3, ::3], what="image 'he'")
    return how.to_rgb(pixels), how


def with_fourth(pixels: np.ndarray, fourth: np.ndarray | int) -> np.ndarray:
    return np.concatenate(
        [pixels, np.full((*pixels.shape[:2], 1), 0, pixels.dtype) + np.asarray(fourth, pixels.dtype)], 2
    )


CLEAR = np.where(GLASS, 0, 255).astype(np.uint8)
BLACK_GLASS = np.where(GLASS, 0, PICTURE).astype(np.uint8)
WHITE_GLASS = np.where(GLASS, 255, PICTURE).astype(np.uint8)
FLOATS = PICTURE / 255


@pytest.mark.parametrize(
    ("pixels", "names", "expected"),
    [
        (PICTURE, (), PICTURE),
        (PICTURE, ("0", "1", "2"), PICTURE),
        (PICTURE[..., ::-1], ("b", "g", "r"), PICTURE),
        (PICTURE[..., [1, 0, 2]], ("Green", "Red", "Blue"), PICTURE),
        (with_fourth(PICTURE[..., ::-1], 7), ("B", "G", "R", "infrared"), PICTURE),
        (FLOATS, (), PICTURE),
        (FLOATS.astype(np.float16), (), PICTURE),
        (PICTURE.astype(np.uint16), (), PICTURE),
        (PICTURE.astype(np.float64), (), PICTURE),
        (np.where(GLASS, np.nan, FLOATS), (), WHITE_GLASS),
        (with_fourth(PICTURE, 255), (), PICTURE),
        (with_fourth(BLACK_GLASS, CLEAR), (), WHITE_GLASS),
        (with_fourth(BLACK_GLASS, CLEAR), ("r", "g", "b", "alpha"), WHITE_GLASS),
        (with_fourth(BLACK_GLASS, CLEAR) / 255, (), WHITE_GLASS),
        (with_fourth(PICTURE, 0), (), PICTURE),
        (with_fourth(PICTURE, PICTURE[..., 1:2] // 2 + 60), (), PICTURE),
    ],
)
def test_colours_are_those_that_are_meant(pixels: np.ndarray, names: tuple[str, ...], expected: np.ndarray) -> None:
    found, how = read(pixels, names)
    assert found.dtype == np.uint8 and np.abs(found.astype(int) - expected).max() <= (pixels.dtype == np.float16)
    assert bool(how.note) == (pixels.shape[-1] == 4 and how.opacity is None)


def test_the_range_is_that_of_the_image_and_not_of_a_part() -> None:
    """A dark part of an image of floats up to 255 has values below 1."""
    pixels = PICTURE.astype(np.float32)
    pixels[:8, :8] = 0.9
    how = read(pixels)[1]
    assert how.to_rgb(pixels[:8, :8]).max() == 1


def test_overshoot_does_not_wrap_around() -> None:
    small, large = np.array([[[-0.02, 0.5, 1.01]]]), np.array([[[-3.0, 127.6, 255.4]]])
    assert read(np.tile(small, (9, 9, 1)))[0][0, 0].tolist() == [0, 128, 255]
    assert read(np.tile(large, (9, 9, 1)))[0][0, 0].tolist() == [0, 128, 255]


@pytest.mark.parametrize(
    ("pixels", "names", "message"),
    [
        (PICTURE[..., :1], (), r"RGB image \(3 channels\), found 1"),
        (PICTURE[..., :2], (), "found 2"),
        (np.concatenate([PICTURE, PICTURE], 2), (), "found 6"),
        (PICTURE, ("DAPI", "0", "1"), "not H&E: its channels are DAPI"),
        (PICTURE, ("Hoechst 33342", "CD3", "CD8"), "not H&E"),
        (with_fourth(PICTURE, 0), ("r", "g", "b", "AF647"), "not H&E"),
        (PICTURE, ("haematoxylin", "eosin", "residual"), "not H&E"),
        (with_fourth(PICTURE, 0), ("C", "M", "Y", "K"), "CMYK.*convert it to RGB"),
        (PICTURE > 128, (), "values of bool from 0 to 1"),
        (FLOATS * 2 - 1, (), r"from -\S+ to \S+: .*Convert it: `\(\(x \+ 1\) \* 127.5\)"),
        (PICTURE.astype(np.uint16) * 257, (), r"values of uint16.*x \* \(255 / 65535\)"),
        (PICTURE.astype(np.uint16) * 16, (), r"x \* \(255 / 4095\)"),
        (PICTURE.astype(np.float32) * 257, (), "values of float32"),
        (np.full((9, 9, 3), np.nan), (), "from nan to nan"),
    ],
)
def test_other_images_are_refused_with_what_mends_them(
    pixels: np.ndarray, names: tuple[str, ...], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        read(pixels, names)


def test_what_a_message_says_mends_it() -> None:
    for x in (FLOATS * 2 - 1, PICTURE.astype(np.uint16) * 257, PICTURE.astype(np.uint16) * 16):
        with pytest.raises(ValueError, match="Convert it") as error:
            read(x)
        mended = eval(str(error.value).split("`")[1], {"x": x})
        assert np.abs(read(mended)[0].astype(int) - PICTURE).max() <= 2


def fluorescence(picture: np.ndarray) -> np.ndarray:
    """Blue nuclei and green tissue on black."""
    signal = (255 - picture.astype(float)) * ~GLASS
    return np.stack([signal[..., 1] * 0.1, signal[..., 1] * 0.8, signal[..., 0]], axis=2).astype(np.uint8)


@pytest.mark.parametrize(
    ("change", "found"),
    [
        (lambda p: p, ""),
        (lambda p: (p * 0.68).astype(np.uint8), ""),  # dim light
        (lambda p: (255 * (p / 255) ** 0.5).astype(np.uint8), ""),  # a pale stain
        (lambda p: np.concatenate([p, 0 * p], axis=1), ""),
        (lambda p: np.full_like(p, 240), "grey"),
        (lambda p: np.repeat(p.mean(2, keepdims=True), 3, 2).astype(np.uint8), "grey"),
        (lambda p: 255 - p, "not purple or pink|dark ground"),
        (fluorescence, "dark ground"),
        (lambda p: p // 5, "dark ground"),
        (lambda p: p[..., [1, 0, 2]], "not purple or pink"),
        (lambda p: p[..., ::-1], "blue, green, red"),
        (lambda p: np.asarray(Image.fromarray(p).convert("CMYK"))[..., :3], "dark ground|not purple or pink"),
        (lambda p: np.zeros_like(p), "all is black"),
    ],
)
def test_what_is_no_stain_is_named(change: Callable[[np.ndarray], np.ndarray], found: str) -> None:
    why = why_not_stained(change(PICTURE))
    assert re.search(found, why) if found else not why


@pytest.mark.parametrize("pen", [(0, 0, 0), (10, 9, 11), (30, 160, 60), (20, 60, 200), (90, 200, 210)])
def test_black_areas_and_ink_are_left_out_and_nuclei_are_not(pen: tuple[int, int, int]) -> None:
    blue = PICTURE.copy()
    nuclei = (PICTURE[..., 0] < 130)[..., None]
    blue = np.where(nuclei, (50, 60, 120), blue).astype(np.uint8)  # as blue as some stains are
    assert not not_scanned(blue).any()
    blue[:30, 10:190] = pen
    found = not_scanned(blue)
    assert found[:30, 10:190].all() and not found[36:].any()
