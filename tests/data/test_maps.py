"""Features pooled from maps of tiles: exact means over windows, whatever other places there are."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import dask.array as da
import numpy as np
import pytest
import torch
from distributed import Client
from spatialdata import SpatialData
from spatialdata.models import Image2DModel, ShapesModel
from spatialdata.transformations import Identity
from xarray import DataArray

import nh2st_scverse as nh
from nh2st_scverse.data.feature_cache import FeatureCache
from nh2st_scverse.data.features import Sight, encode_section
from nh2st_scverse.data.geometry import Geometry, locate
from nh2st_scverse.data.inputs import Recipe, sight_um
from nh2st_scverse.data.lattice import Nodes
from nh2st_scverse.data.maps import Tiled, window_means
from nh2st_scverse.data.section import Section, locate_sections
from nh2st_scverse.data.sweep import sweep
from nh2st_scverse.encoders import _torch
from nh2st_scverse.encoders._statistics import Statistics
from nh2st_scverse.encoders._turned import Turned
from nh2st_scverse.nn import Config

SIDE = 14  # px of a window: tiles have 42 and a margin of 4, and lie 34 px apart
SIZE = 150, 97  # width and height of the image


class Pixels:
    """The pixels themselves as a map; counts its tiles."""

    name, input_size, dim, weights_hash, n_maps = "pixels", SIDE, 3, "none", 3

    def __init__(self, limit: int | None = None) -> None:
        self.tiles, self.limit = 0, limit

    def __call__(self, patches: np.ndarray) -> np.ndarray:
        return patches.mean(axis=(1, 2), dtype=np.float32)

    def maps(self, tile: np.ndarray) -> list[np.ndarray]:
        assert tile.shape == (3 * SIDE, 3 * SIDE, 3) and tile.dtype == np.uint8
        self.tiles += 1
        if self.limit is not None and self.tiles > self.limit:
            raise KeyboardInterrupt
        return [tile.astype(np.float32)]

    def pooled(self, means: np.ndarray) -> np.ndarray:
        return means.astype(np.float32)


class Convolved(_torch.Trunk):
    """Two convolutions, of which the second halves the resolution: maps of two kinds of cells."""

    def __init__(self) -> None:
        super().__init__((0.0,) * 3, (1.0,) * 3)
        generator = torch.Generator().manual_seed(0)
        self.first, self.second = torch.nn.Conv2d(3, 4, 3, padding=1), torch.nn.Conv2d(4, 5, 3, stride=2, padding=1)
        for one in self.parameters():
            one.data = torch.randn(one.shape, generator=generator) / 3

    def maps(self, scaled: torch.Tensor) -> tuple[torch.Tensor, ...]:
        first = self.first(scaled).relu()
        return first, self.second(first).relu()

    def features(self, scaled: torch.Tensor) -> torch.Tensor:
        return torch.cat([one.mean(dim=(2, 3)) for one in self.maps(scaled)], dim=1)


def convolved() -> Any:
    return _torch.TorchEncoder(Convolved(), name="c", input_size=SIDE, dim=9, weights_hash="none", device="cpu")


@pytest.fixture(scope="module")
def image() -> np.ndarray:
    coarse = np.random.default_rng(0).integers(0, 256, (25, 38, 3))
    return coarse.repeat(4, axis=0).repeat(4, axis=1)[: SIZE[1], : SIZE[0]].astype(np.uint8)


@pytest.fixture(scope="module")
def centres() -> np.ndarray:
    """Quarters of pixels: at borders of tiles, at the border of the image, and anywhere."""
    rng = np.random.default_rng(1)
    anywhere = rng.integers(0, (4 * SIZE[0], 4 * SIZE[1]), (40, 2)) / 4
    return np.vstack([anywhere, [(34, 34), (27, 41), (68, 50), (3, 95), (149.75, 0), (7, 7)]])


def geometry_of(image: np.ndarray, centres: np.ndarray, *, lazy: bool = False) -> Geometry:
    systems = {"slide": Identity(), "slide_microns": Identity()}
    chunks = {"chunks": (3, 40, 40)} if lazy else {}
    pixels = Image2DModel.parse(image.transpose(2, 0, 1), dims="cyx", transformations=systems, **chunks)
    places = ShapesModel.parse(centres, geometry=0, radius=1, transformations=systems)
    return locate(SpatialData(images={"image": pixels}, shapes={"places": places}), "places")


def features_of(geometry: Geometry, encoder: Any, places: np.ndarray | None = None, **options: Any) -> np.ndarray:
    places = np.arange(len(geometry.coordinates)) if places is None else places
    found = np.full((len(geometry.coordinates), encoder.dim), np.nan)
    for _, which, values in sweep([Tiled(geometry, encoder, places, field_um=SIDE)], **options):
        assert np.isnan(found[which]).all()  # every place once
        found[which] = values
    return found


def window_of(values: np.ndarray, centre: np.ndarray, cell: int = 1) -> np.ndarray:
    """Mean of a map (h, w, C) over one window, its cells cut into quarters of pixels; the map begins at -40 px."""
    fine = values.repeat(4 * cell, axis=0).repeat(4 * cell, axis=1)
    x, y = np.round(4 * (centre + 40 - SIDE / 2)).astype(int)
    return fine[y : y + 4 * SIDE, x : x + 4 * SIDE].mean(axis=(0, 1))


def padded(image: np.ndarray) -> np.ndarray:
    return np.pad(image, ((40, 41), (40, 42), (0, 0)), constant_values=255)


# --- windows ---


@pytest.mark.parametrize("lazy", [False, True])
def test_features_are_the_means_over_windows(image: np.ndarray, centres: np.ndarray, lazy: bool) -> None:
    found = features_of(geometry_of(image, centres, lazy=lazy), Pixels())
    whole = padded(image).astype(float)
    assert np.allclose(found, [window_of(whole, centre) for centre in centres], atol=1e-4)


def test_maps_of_tiles_are_those_of_the_whole_image(image: np.ndarray, centres: np.ndarray) -> None:
    encoder = convolved()
    pixels = torch.from_numpy(padded(image))[None]
    with torch.inference_mode():
        maps = [one[0].permute(1, 2, 0).numpy() for one in encoder.frozen(_torch.as_images(pixels), maps=True)]
    found = features_of(geometry_of(image, centres), encoder)
    # the coarse cells of tiles lie as those of the whole image do, which begins at -40: 34 and 40 are even
    expected = [np.concatenate([window_of(one, c, 1 + i) for i, one in enumerate(maps)]) for c in centres]
    assert np.allclose(found, expected, atol=1e-4)
    assert np.ptp(found, axis=0).min() > 1e-3


def test_a_place_has_the_same_features_among_others(image: np.ndarray, centres: np.ndarray) -> None:
    geometry = geometry_of(image, centres)
    few = np.array([3, 17, 40])
    found = features_of(geometry, Pixels(), few)
    assert np.array_equal(found[few], features_of(geometry, Pixels())[few])
    assert np.isnan(np.delete(found, few, axis=0)).all()
    assert np.isnan(features_of(geometry, Pixels(), few[:0])).all()


def test_tiles_are_encoded_once_and_only_under_places(image: np.ndarray) -> None:
    yy, xx = np.mgrid[10:24:2, 10:24:2]
    dense = Pixels()
    features_of(geometry_of(image, np.stack([xx.ravel(), yy.ravel()], axis=1).astype(float)), dense)
    assert dense.tiles == 1  # windows lie between 3 and 31
    apart = Pixels()
    features_of(geometry_of(image, np.array([[17.0, 17], [17, 17], [34, 34], [17, 80]])), apart)
    assert apart.tiles == 5  # one, four at a corner of which one is known, and one below


def test_a_window_that_is_the_tile_has_its_mean() -> None:
    values = np.random.default_rng(0).normal(size=(6, 9, 2))
    assert np.allclose(window_means(values, np.array([[0.0, 0, 1, 1]]))[0], 9 * values.mean(axis=(0, 1)))
    parts = np.array([[0.0, 0, 0.37, 1], [0.37, 0, 1, 0.61], [0.37, 0.61, 1, 1]])
    assert np.allclose(window_means(values, parts).sum(axis=0), 9 * values.mean(axis=(0, 1)))
    assert np.allclose(window_means(torch.from_numpy(values), parts), window_means(values, parts))  # as on a GPU
    whole = np.rint(40 * values).astype(np.uint8)  # whatever the kind of numbers
    assert np.allclose(window_means(whole, parts), window_means(whole.astype(float), parts), rtol=1e-5)


def test_a_cluster_gives_the_same(image: np.ndarray, centres: np.ndarray) -> None:
    geometry = geometry_of(image, centres)
    with Client(processes=False, n_workers=1, threads_per_worker=1, dashboard_address=None) as client:
        found = features_of(geometry, Pixels(), client=client)
    assert np.array_equal(found, features_of(geometry, Pixels()))


# --- encoders ---


def test_means_of_the_maps_of_a_patch_are_its_features() -> None:
    patch = np.random.default_rng(0).integers(0, 256, (28, 28, 3), dtype=np.uint8).repeat(8, axis=0).repeat(8, axis=1)
    for head in (False, True):
        encoder: Any = nh.encoders.EfficientNetLite0("cpu", head=head)
        maps = encoder.maps(patch)
        assert encoder.n_maps == encoder.dim == sum(one.shape[-1] for one in maps)
        means = np.concatenate([one.mean(axis=(0, 1)) for one in maps])
        assert np.allclose(encoder.pooled(means[None]), encoder(patch[None]), atol=1e-4)


def tissue() -> np.ndarray:
    drawn = nh.datasets.synthetic(width_um=1200, microns_per_pixel=1)
    return drawn.images["section_0_image"]["scale0"]["image"].transpose("y", "x", "c").values


def test_statistics_of_maps_are_nearly_those_of_pixels() -> None:
    picture, encoder = tissue(), Statistics()
    corners = [(x, y) for x in range(100, 900, 160) for y in range(100, 900, 160)]
    exact = encoder(np.stack([picture[y : y + 80, x : x + 80] for x, y in corners]))
    pooled = []
    for x, y in corners:  # the tile around the patch
        maps = encoder.maps(picture[y - 80 : y + 160, x - 80 : x + 160])
        assert {one.shape[:2] for one in maps} == {(60, 60)} and sum(one.shape[2] for one in maps) == encoder.n_maps
        window = np.array([[1.0, 1, 2, 2]]) / 3
        pooled.append(np.concatenate([window_means(one, window)[0] for one in maps]))
    found = encoder.pooled(np.array(pooled))
    assert found.shape == exact.shape and found.dtype == np.float32
    alike = [np.corrcoef(a, b)[0, 1] for a, b in zip(exact.T, found.T, strict=True) if a.std() > 1e-4]
    assert len(alike) > 65 and np.median(alike) > 0.999 and min(alike) > 0.9
    no_percentiles = np.r_[:12, 42:47]
    assert np.allclose(found[:, no_percentiles], exact[:, no_percentiles], atol=1e-3)


def test_turned_encoders_give_maps_where_theirs_do() -> None:
    tile = np.random.default_rng(0).integers(0, 256, (42, 42, 3), dtype=np.uint8)
    for n in (2, 8):  # the pixels of a turned tile are turned back
        assert np.allclose(Turned(Pixels(), n).maps(tile)[0], tile)
    turned = Turned(convolved(), 8).maps(tile)[0]
    assert np.allclose(turned, np.rot90(Turned(convolved(), 8).maps(np.rot90(tile))[0], -1), atol=1e-4)


# --- sections ---


@pytest.fixture(scope="module")
def section() -> Section:
    return locate_sections(nh.datasets.synthetic(width_um=1600, microns_per_pixel=2))[0]


def test_an_image_is_read_once_for_all_encoders_and_fields(image: np.ndarray) -> None:
    rng, reads = np.random.default_rng(2), Counter[tuple[int, int]]()

    def block(block_info: Any) -> np.ndarray:
        _, (y0, y1), (x0, x1) = block_info[None]["array-location"]
        reads[y0, x0] += 1
        return image.transpose(2, 0, 1)[:, y0:y1, x0:x1]

    class Plain(Pixels):
        n_maps = 0

    chunks = (3,), (40, 40, 17), (40, 40, 40, 30)
    lazy = da.map_blocks(block, chunks=chunks, dtype=np.uint8, meta=np.empty((0, 0, 0), np.uint8))
    geometry = geometry_of(image, rng.uniform(0, SIZE, (50, 2)))
    level = replace(geometry.levels[0], array=DataArray(lazy, dims=("c", "y", "x")))
    geometry = replace(geometry, levels=(level,))
    places = np.arange(50)
    ways = [kind(geometry, encoder, places, field_um=side * SIDE)
            for kind, encoder in ((Tiled, Pixels()), (Nodes, Plain())) for side in (1, 2)]  # fmt: skip
    found: list[list[int]] = [[], [], [], []]
    for way, which, features in sweep(ways):
        assert features.shape == (len(which), 3)
        found[way] += which.tolist()
    assert [sorted(one) for one in found] == [places.tolist()] * 4
    assert set(reads.values()) == {1} and len(reads) == 12


def test_fields_of_view_are_pooled_or_cut_as_asked(section: Section) -> None:
    patches, maps, mixed = (
        encode_section(section, Pixels(), sight=Sight(75.0, (1.0, 2.5), mapped), progress=False)
        for mapped in ((), (1.0, 2.5), (2.5,))
    )
    assert np.array_equal(mixed, np.hstack([patches[:, :3], maps[:, 3:]]))
    assert not np.array_equal(patches, maps) and np.corrcoef(patches.ravel(), maps.ravel())[0, 1] > 0.99


def test_interrupted_maps_go_on_in_a_process_and_on_disk(section: Section, tmp_path: Path) -> None:
    given: dict[str, Any] = {"sight": Sight(30.0, mapped=(1.0,)), "progress": False}
    about = {"section": "s", "mark": "m", "n_patches": int(section.usable.sum()), "n_fields": 1, "dim": 3}
    whole = Pixels()
    expected = encode_section(section, whole, **given)
    begun = np.full_like(expected, np.nan)
    with pytest.raises(KeyboardInterrupt):
        encode_section(section, Pixels(limit=whole.tiles * 3 // 4), begun=begun, **given)
    with pytest.raises(KeyboardInterrupt):
        cache = FeatureCache(tmp_path, about={}, **about)
        encode_section(section, Pixels(limit=whole.tiles * 3 // 4), cache=cache, **given)
    for how in ({"begun": begun}, {"cache": FeatureCache(tmp_path, about={}, **about)}):
        rest = Pixels()
        assert np.array_equal(encode_section(section, rest, **how, **given), expected)
        assert 0 < rest.tiles < whole.tiles


def test_a_recipe_tells_which_fields_are_pooled(section: Section) -> None:
    recipe = Recipe(Pixels(), 75.0, (1.0, 2.5, 6.0))
    assert recipe.mapped == ()
    assert replace(recipe, maps="wide").mapped == (2.5, 6.0)
    assert replace(recipe, maps="all").mapped == (1.0, 2.5, 6.0)

    class Plain(Pixels):
        n_maps = 0

    assert Recipe(Plain(), 75.0, (1.0, 6.0), maps="all").mapped == (1.0, 6.0)  # on a lattice
    names = [str(i) for i in range(section.n_spots)]
    marks = {
        replace(recipe, maps=maps).mark(section, encoder, names)
        for maps in ("none", "wide", "all")
        for encoder in (Pixels(), Plain())
    }
    assert len(marks) == 5  # features of one way are not taken for those of another
    with pytest.raises(ValueError, match="features are there already"):
        Recipe(nh.encoders.get("precomputed:X_uni"), 75.0, maps="all")
    with pytest.raises(ValueError, match="sees patches"):
        Config.preset(fine_tune=True, maps="all")


def test_maps_see_a_margin_beyond_their_window() -> None:
    assert sight_um(Config(maps="none"), 75.0) == 450
    assert sight_um(Config(maps="wide"), 75.0) == sight_um(Config(maps="all"), 75.0) == pytest.approx(450 * 11 / 7)
    assert sight_um(Config(maps="wide", fields=(1.0,)), 75.0) == 75


def test_models_saved_before_there_were_maps_have_patches() -> None:
    saved = Config(maps="all").to_dict()
    assert Config.from_dict(saved).maps == "all"
    del saved["maps"]
    assert Config.from_dict(saved).maps == "none"
