from __future__ import annotations

from collections.abc import Callable

import dask.array as da
import numpy as np
import pytest
import spatialdata
from skimage.transform import resize
from spatialdata import SpatialData
from spatialdata.models import Image2DModel
from spatialdata.transformations import Identity

import nh2st_scverse as nh
from nh2st_scverse.data import patches as module
from nh2st_scverse.data.geometry import Geometry, locate
from nh2st_scverse.data.patches import image_fingerprint, iter_patches, overhang, read_pixels
from nh2st_scverse.data.section import locate_sections


@pytest.fixture(scope="module")
def fine() -> SpatialData:
    return nh.datasets.synthetic(width_um=800, microns_per_pixel=0.5)


def cut(geometry: Geometry, size_um: float, size_px: int, spots: np.ndarray | None = None) -> np.ndarray:
    spots = np.arange(len(geometry.coordinates)) if spots is None else spots
    found = np.zeros((len(geometry.coordinates), size_px, size_px, 3), dtype=np.uint8)
    seen = []
    for which, patches in iter_patches(geometry, spots, size_um=size_um, size_px=size_px):
        found[which] = patches
        seen.extend(which)
    assert sorted(seen) == sorted(spots)  # each spot once
    return found


@pytest.mark.parametrize(("size_um", "size_px"), [(75.0, 128), (60.0, 60), (187.5, 64)])
def test_patches_equal_an_independent_resampling(fine: SpatialData, size_um: float, size_px: int) -> None:
    geometry = locate(fine, "section_0_spots")
    found = cut(geometry, size_um, size_px)
    pixels = fine.images["section_0_image"]["scale0"]["image"].values.transpose(1, 2, 0)
    half = int(size_um / 0.5 / 2) + 3
    white = np.pad(pixels, ((half, half), (half, half), (0, 0)), constant_values=255)
    references = []
    for x, y in geometry.pixels() + half:
        side = round(size_um / 0.5)
        left, top = round(x - side / 2), round(y - side / 2)
        crop = white[top : top + side, left : left + side]
        references.append(255 * resize(crop / 255, (size_px, size_px), order=1, anti_aliasing=side > size_px))
    assert np.abs(found.mean(axis=(1, 2)) - np.mean(references, axis=(1, 2))).max() < 2.5  # of 255

    def agreement(shift: int) -> float:
        part = slice(2, -2)  # patches from a pyramid level are half a pixel off at most
        moved = np.roll(found, shift, axis=(1, 2))
        return float(np.corrcoef(moved[:, part, part].ravel(), np.stack(references)[:, part, part].ravel())[0, 1])

    assert agreement(0) > 0.97
    assert agreement(0) > max(agreement(1), agreement(-1))


def test_half_the_resolution_gives_nearly_the_same_patches(fine: SpatialData) -> None:
    half = spatialdata.deepcopy(fine)
    level = half.images["section_0_image"]["scale0"]["image"].values
    small = level.reshape(3, 800, 2, 800, 2).mean(axis=(2, 4)).round().astype(np.uint8)
    shapes = half.shapes["section_0_spots"]
    shapes["geometry"] = shapes.geometry.affine_transform([0.5, 0, 0, 0.5, 0, 0])
    half.images["section_0_image"] = Image2DModel.parse(
        small, dims=("c", "y", "x"), transformations={"section_0": Identity()}
    )
    a, b = locate(fine, "section_0_spots"), locate(half, "section_0_spots", microns_per_pixel=1.0)
    one, other = (cut(g, 75.0, 64).astype(float) for g in (a, b))
    assert np.abs(one - other).mean() < 6
    assert np.corrcoef(one.ravel(), other.ravel())[0, 1] > 0.95


def test_blocks_do_not_change_the_patches(fine: SpatialData, monkeypatch: pytest.MonkeyPatch) -> None:
    geometry = locate(fine, "section_0_spots")
    whole = cut(geometry, 75.0, 32)
    for block in (100, 333):
        monkeypatch.setattr(module, "BLOCK", block)
        monkeypatch.setattr(module, "BATCH", 3)
        assert np.array_equal(cut(geometry, 75.0, 32), whole)


def test_border_patches_are_padded_with_white_and_marked(dots: Callable[..., SpatialData]) -> None:
    spots = np.array([[2.0, 200], [300, 401], [601, 403], [300, 200], [20, 20], [19.5, 20]])
    geometry = locate(dots(spots=spots), "spots", microns_per_pixel=1)
    patches = cut(geometry, 40.0, 40)
    assert (patches[0][:, :18] == 255).all() and (patches[0][:, 18:] == 235).all()
    assert (patches[1][22:] == 255).all() and (patches[1][:22] == 235).all()
    assert (patches[2] == 255).all(axis=2).sum() == 40 * 40 - 20 * 20
    assert (patches[3] == 235).all()
    assert list(overhang(geometry, 40.0)) == [True, True, True, False, False, True]


def test_far_outside_is_white(dots: Callable[..., SpatialData]) -> None:
    geometry = locate(dots(spots=np.array([[-500.0, -500], [5000, 100]])), "spots", microns_per_pixel=1)
    assert (cut(geometry, 40.0, 16) == 255).all()


def test_only_wanted_spots_are_cut(fine: SpatialData) -> None:
    geometry = locate(fine, "section_0_spots")
    some = np.array([5, 1, 9])
    found = cut(geometry, 75.0, 16, some)
    assert np.array_equal(found[some], cut(geometry, 75.0, 16)[some])


@pytest.mark.parametrize("kind", ["float", "float above 1 by overshoot", "rgba", "uint16", "float up to 255"])
def test_kinds_of_images_give_the_same_patches(fine: SpatialData, kind: str) -> None:
    pixels = fine.images["section_0_image"]["scale0"]["image"].values
    made = {
        "float": pixels / np.float32(255),
        "float above 1 by overshoot": np.where(pixels == pixels.max(), 1.02, pixels / np.float32(255)),
        "rgba": np.concatenate([pixels, np.full_like(pixels[:1], 255)]),
        "uint16": pixels.astype(np.uint16),
        "float up to 255": pixels.astype(np.float32),
    }[kind]
    sdata = spatialdata.deepcopy(fine)
    systems = {"section_0": Identity()}
    sdata.images["section_0_image"] = Image2DModel.parse(made, dims=("c", "y", "x"), transformations=systems)
    found = cut(locate(sdata, "section_0_spots", microns_per_pixel=0.5), 75.0, 150)
    expected = cut(locate(fine, "section_0_spots"), 75.0, 150)
    if kind == "float above 1 by overshoot":
        assert np.abs(found.astype(int) - expected).mean() < 0.1
    else:
        assert np.array_equal(found, expected)


def test_only_what_is_needed_is_read() -> None:
    read = []

    def block(block_info: dict) -> np.ndarray:
        read.append(block_info[None]["chunk-location"])
        return np.full((3, 100, 100), 200, np.uint8)

    lazy = da.map_blocks(
        block, chunks=((3,), (100,) * 20, (100,) * 20), dtype=np.uint8, meta=np.empty((0, 0, 0), np.uint8)
    )
    image = Image2DModel.parse(lazy, dims=("c", "y", "x"))
    read.clear()
    pixels = read_pixels(image, np.array([150, 250]), np.array([180, 320]))
    assert pixels.shape == (70, 30, 3)
    assert len(read) == 2


def test_an_image_of_one_page_is_decoded_a_few_times_and_not_for_every_batch(fine: SpatialData) -> None:
    """As spatialdata_io reads tissue.tif: every chunk, of every level, comes from one task that decodes the file."""
    pixels = fine.images["section_0_image"]["scale0"]["image"].values
    decoded = []

    def page(block: np.ndarray) -> np.ndarray:
        decoded.append(1)
        return block

    whole = da.from_array(pixels, chunks=pixels.shape).map_blocks(page, dtype=np.uint8, meta=np.empty((0, 0, 0), "u1"))
    image = Image2DModel.parse(
        whole.rechunk((3, 128, 128)),
        dims=("c", "y", "x"),
        scale_factors=[2, 2],
        transformations={"section_0": Identity()},
    )
    one = SpatialData(images={"section_0_image": image}, shapes=dict(fine.shapes))
    geometry = locate(one, "section_0_spots", microns_per_pixel=0.5)
    spots = np.arange(len(geometry.coordinates))
    decoded.clear()
    list(
        module.cut(
            geometry, [(batch, 75 * field) for batch in np.array_split(spots, 12) for field in (1, 2)], size_px=64
        )
    )
    assert len(decoded) <= 4
    decoded.clear()
    image_fingerprint(geometry, spots)
    assert len(decoded) <= 2


def test_fingerprint_of_an_image_follows_its_pixels_and_not_the_order_of_spots(fine: SpatialData) -> None:
    geometry = locate_sections(fine)[0].geometry
    order = np.arange(len(geometry.coordinates))
    first = image_fingerprint(geometry, order)
    assert first == image_fingerprint(geometry, order)
    changed = spatialdata.deepcopy(fine)
    for scale in changed.images["section_0_image"].children:
        array = changed.images["section_0_image"][scale]["image"]
        array.data = (255 - array.data).astype(np.uint8)
    assert image_fingerprint(locate_sections(changed)[0].geometry, order) != first
