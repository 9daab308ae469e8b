from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import dask.array as da
import numpy as np
import pytest
from spatialdata import SpatialData
from spatialdata.models import Image2DModel
from spatialdata.transformations import get_transformation

import nh2st_scverse as nh
from nh2st_scverse.data.feature_cache import FeatureCache
from nh2st_scverse.data.features import Sight, encode_section
from nh2st_scverse.data.patches import ahead, batches, iter_patches
from nh2st_scverse.data.section import Section, locate_sections

SIZES = {"sight": Sight(75.0, (1.0, 2.5)), "progress": False}


class Colours:
    """Mean colour of the four quarters; stops after `limit` patches when there is one."""

    name, input_size, dim, weights_hash = "colours", 32, 12, "none"

    def __init__(self, limit: int | None = None) -> None:
        self.seen, self.limit = 0, limit

    def __call__(self, patches: np.ndarray) -> np.ndarray:
        self.seen += len(patches)
        if self.limit is not None and self.seen > self.limit:
            raise KeyboardInterrupt
        return patches.reshape(len(patches), 2, 16, 2, 16, 3).mean(axis=(2, 4)).reshape(len(patches), 12)


@pytest.fixture(scope="module")
def sdata() -> SpatialData:
    return nh.datasets.synthetic(width_um=1600, microns_per_pixel=2)


@pytest.fixture
def section(sdata: SpatialData) -> Section:
    return locate_sections(sdata)[0]


def stored(folder: Path, section: Section, mark: str = "m") -> FeatureCache:
    n = int(section.usable.sum())
    return FeatureCache(
        folder, section=section.name, mark=mark, n_patches=n, n_fields=2, dim=12, about={"patch_um": 75.0}
    )


def test_fields_of_view_are_those_of_separate_cuts(section: Section) -> None:
    found = encode_section(section, Colours(), **SIZES)
    assert found.shape == (section.n_spots, 24) and np.isfinite(found).all()
    for field, columns in ((1.0, slice(12)), (2.5, slice(12, 24))):
        for which, patches in iter_patches(
            section.geometry, np.arange(section.n_spots), size_um=75.0 * field, size_px=32
        ):
            assert np.array_equal(found[which, columns], Colours()(patches).astype(np.float32))


def test_every_chunk_is_read_once_for_all_fields(section: Section, sdata: SpatialData) -> None:
    pixels = sdata.images["section_0_image"]["scale0"]["image"].values
    read: list[tuple[int, ...]] = []

    def block(block_info: Any = None) -> np.ndarray:
        read.append(tuple(block_info[None]["chunk-location"]))
        _, (y0, y1), (x0, x1) = block_info[None]["array-location"]
        return pixels[:, y0:y1, x0:x1]

    lazy = da.map_blocks(
        block, chunks=((3,), (100,) * 8, (100,) * 8), dtype=np.uint8, meta=np.empty((0, 0, 0), np.uint8)
    )
    systems = get_transformation(sdata.images["section_0_image"], get_all=True)
    image = Image2DModel.parse(lazy, dims=("c", "y", "x"), transformations=systems)
    other = SpatialData(
        images={"section_0_image": image}, shapes=dict(sdata.shapes), tables={"table": sdata.tables["table"]}
    )
    lone = locate_sections(other)[0]
    read.clear()
    found = encode_section(lone, Colours(), **SIZES)
    assert len(read) == len(set(read)) > 40
    whole = encode_section(section, Colours(), sight=Sight(75.0), progress=False)
    assert np.array_equal(found[:, :12], whole)


def test_batches_follow_the_place_of_spots_and_not_their_order(section: Section) -> None:
    n = section.n_spots
    order = np.random.default_rng(0).permutation(n)
    one = batches(section.geometry, np.arange(n), size_um=75.0, size_px=32)
    other = batches(section.take(order).geometry, np.arange(n), size_um=75.0, size_px=32)
    assert [list(b) for b in one] == [list(order[b]) for b in other]
    assert sorted(np.concatenate(one)) == list(range(n))
    assert max(map(len, one)) <= 64 and np.ptp([len(b) for b in one]) <= 1
    assert batches(section.geometry, np.arange(0), size_um=75.0, size_px=32) == []


def test_an_interrupted_encoding_goes_on_where_it_stopped(section: Section, tmp_path: Path) -> None:
    expected = encode_section(section, Colours(), **SIZES)
    with pytest.raises(KeyboardInterrupt):
        encode_section(section, Colours(limit=200), cache=stored(tmp_path, section), **SIZES)
    again = Colours()
    found = encode_section(section, again, cache=stored(tmp_path, section), **SIZES)
    assert np.array_equal(found, expected)
    assert 0 < 2 * section.n_spots - again.seen <= 200
    third = Colours()
    assert np.array_equal(encode_section(section, third, cache=stored(tmp_path, section), **SIZES), expected)
    assert third.seen == 0


@pytest.mark.parametrize("damage", ["cut off", "changed", "gone", "metadata", "other shape"])
def test_a_damaged_cache_is_noticed(
    section: Section, tmp_path: Path, damage: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    cache = stored(tmp_path, section)
    expected = encode_section(section, Colours(), cache=cache, **SIZES)
    (chunk, *_) = sorted(path for path in cache.path.rglob("c/*/*/*/*") if path.is_file())
    content = bytearray(chunk.read_bytes())
    if damage == "cut off":
        chunk.write_bytes(content[:100])
    elif damage == "changed":
        content[40] ^= 255
        chunk.write_bytes(content)
    elif damage == "gone":
        chunk.unlink()
    elif damage == "metadata":
        (cache.path / "zarr.json").write_text("{")
    else:
        FeatureCache(tmp_path, section=section.name, mark="m", n_patches=3, n_fields=2, dim=5, about={})
    again = Colours()
    found = encode_section(section, again, cache=stored(tmp_path, section), **SIZES)
    assert np.array_equal(found, expected)
    assert again.seen == (2 * section.n_spots if damage in ("metadata", "other shape") else min(64, again.seen)) > 0
    if damage in ("cut off", "changed"):
        assert "damaged chunks: their patches are encoded again" in caplog.text


def test_another_mark_is_another_cache(section: Section, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    encode_section(section, Colours(), cache=stored(tmp_path, section), **SIZES)
    other = Colours()
    encode_section(section, other, cache=stored(tmp_path, section, mark="n"), **SIZES)
    assert other.seen == 2 * section.n_spots
    assert "features of another image, patch, encoder or other spots (m.zarr)" in caplog.text


def test_ahead_keeps_order_passes_errors_and_stops() -> None:
    assert list(ahead(iter(range(10)))) == list(range(10))
    assert list(ahead(iter([]))) == []
    made = []

    def items() -> Any:
        for i in range(100):
            made.append(i)
            yield i

    stream = ahead(items(), n=2)
    assert [next(stream) for _ in range(3)] == [0, 1, 2]
    stream.close()
    assert len(made) <= 6

    def broken() -> Any:
        yield 1
        raise OSError("no disk")

    stream = ahead(broken())
    assert next(stream) == 1
    with pytest.raises(OSError, match="no disk"):
        next(stream)
