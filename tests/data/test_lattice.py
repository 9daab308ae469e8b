"""Patches at the nodes of a lattice stand for those of places between them, for encoders without maps."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from anndata import AnnData
from distributed import Client
from spatialdata import SpatialData
from spatialdata.models import Image2DModel, ShapesModel, TableModel
from spatialdata.transformations import Identity

from nh2st_scverse.data.feature_cache import FeatureCache
from nh2st_scverse.data.features import Sight, encode_section
from nh2st_scverse.data.lattice import PER_FIELD, lay_lattice
from nh2st_scverse.data.section import Section, locate_sections
from nh2st_scverse.data.stain import Restained
from nh2st_scverse.encoders import Joined
from nh2st_scverse.encoders._base import parts_of
from nh2st_scverse.encoders._turned import Turned

SIDE = 12.0  # µm of a patch, and pixels


class Means:
    """Mean colours of a patch; counts patches."""

    input_size, dim, weights_hash = int(SIDE), 3, "none"

    def __init__(self, name: str = "means", limit: int | None = None) -> None:
        self.name, self.limit, self.patches = name, limit, 0

    def __call__(self, patches: np.ndarray) -> np.ndarray:
        self.patches += len(patches)
        if self.limit is not None and self.patches > self.limit:
            raise KeyboardInterrupt
        return patches.mean(axis=(1, 2), dtype=np.float32)


class Mapped(Means):
    """The same, which can be taken from maps, too."""

    n_maps = 3

    def maps(self, tile: np.ndarray) -> list[np.ndarray]:
        return [tile.astype(np.float32)]

    def pooled(self, means: np.ndarray) -> np.ndarray:
        return means.astype(np.float32)


def section_of(centres: np.ndarray) -> Section:
    """Places on a ramp of brightness: what is seen changes evenly with the place."""
    yy, xx = np.mgrid[:120, :160]
    image = np.stack([xx, yy, 200 - (xx + yy) // 2]).astype(np.uint8)
    systems = {"slide": Identity(), "slide_microns": Identity()}
    adata = AnnData(np.ones((len(centres), 2), np.float32))
    adata.obs = pd.DataFrame({"region": pd.Categorical(["places"] * len(centres)), "id": range(len(centres))})
    adata.obs.index = adata.obs["id"].astype(str).to_numpy()
    sdata = SpatialData(
        images={"image": Image2DModel.parse(image, dims="cyx", transformations=systems)},
        shapes={"places": ShapesModel.parse(centres, geometry=0, radius=1, transformations=systems)},
        tables={"table": TableModel.parse(adata, region="places", region_key="region", instance_key="id")},
    )
    return locate_sections(sdata)[0]


@pytest.fixture(scope="module")
def section() -> Section:
    return section_of(np.random.default_rng(0).uniform(30, 90, (60, 2)))


def lattice_of(section: Section, encoder: Any, fields: tuple[float, ...] = (1.0,), **options: Any) -> np.ndarray:
    return encode_section(section, encoder, sight=Sight(SIDE, fields, fields), progress=False, **options)


def test_what_changes_evenly_is_told_between_nodes(section: Section) -> None:
    found = lattice_of(section, Means())
    expected = np.c_[section.geometry.pixels() - 0.5, 200 - (section.geometry.pixels() - 0.5).sum(axis=1) / 2]
    assert np.abs(found - expected).max() < 1  # patches begin at whole pixels
    assert np.abs(found - expected).mean() < 0.5


def test_weights_are_those_of_the_corners_of_a_cell(section: Section, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("nh2st_scverse.data.lattice.AT_ONCE", 2)
    some = np.array([5, 17, 40])
    nodes, blocks = lay_lattice(section.geometry, some, field_um=SIDE)
    assert np.array_equal(np.sort(np.concatenate([block.places for block in blocks])), some)
    pitch = SIDE / PER_FIELD
    for block in blocks:
        xy = nodes.pixels()[block.nodes]
        assert np.allclose(xy / pitch, np.round(xy / pitch), atol=1e-6)
        for places, between in block.between(xy):
            assert np.allclose(between, section.geometry.pixels()[places], atol=1e-3)
        assert np.allclose(block.weights.sum(axis=1), 1) and block.weights.data.min() >= 0


def test_a_place_has_the_same_features_among_others_and_dense_places_share_nodes(section: Section) -> None:
    few, every = section.take(np.arange(12)), Means()
    assert np.array_equal(lattice_of(few, Means()), lattice_of(section, every)[:12])
    dense, counted = section_of(np.random.default_rng(1).uniform(30, 90, (6000, 2))), Means()
    lattice_of(dense, counted)
    assert counted.patches < 500 and counted.patches < 3 * every.patches


def test_each_part_of_a_joined_encoder_goes_its_own_way(section: Section) -> None:
    fields = (1.0, 2.0)
    both = lattice_of(section, Joined([Mapped("mapped"), Means()]), fields)
    mapped, means = (lattice_of(section, one, fields) for one in (Mapped("mapped"), Means()))
    assert np.array_equal(both, np.hstack([mapped[:, :3], means[:, :3], mapped[:, 3:], means[:, 3:]]))
    assert not np.array_equal(mapped, means) and np.abs(mapped - means).max() < 2
    inner = Joined([Joined([Mapped("mapped"), Means()]), Means("other")])
    assert [part.name for part in parts_of(inner)] == ["mapped", "means", "other"]
    turned, restained = parts_of(Turned(inner, 4)), parts_of(Restained(inner, np.zeros((2, 2, 2, 3), np.uint8)))
    assert [(part.name, part.n_maps) for part in turned] == [("mapped", 3), ("means", 0), ("other", 0)]  # type: ignore[attr-defined]
    assert all(isinstance(part, Restained) for part in restained) and len(restained) == 3


def test_interrupted_lattices_go_on_in_a_process_and_on_disk(tmp_path: Path) -> None:
    section = section_of(np.random.default_rng(0).uniform(10, 150, (200, 2)) * (1, 0.75))
    about = {"section": "s", "mark": "m", "n_patches": section.n_spots, "n_fields": 1, "dim": 6}
    whole = Means()
    expected = lattice_of(section, Joined([Mapped("mapped"), whole]))
    begun = np.full_like(expected, np.nan)
    for how in ({"begun": begun}, {"cache": FeatureCache(tmp_path, about={}, **about)}):
        with pytest.raises(KeyboardInterrupt):
            lattice_of(section, Joined([Mapped("mapped"), Means(limit=whole.patches * 3 // 4)]), **how)
    for how in ({"begun": begun}, {"cache": FeatureCache(tmp_path, about={}, **about)}):
        rest = Means()
        assert np.array_equal(lattice_of(section, Joined([Mapped("mapped"), rest]), **how), expected)
        assert rest.patches < whole.patches


def test_a_cluster_gives_the_same(section: Section) -> None:
    with Client(processes=False, n_workers=1, threads_per_worker=1, dashboard_address=None) as client:
        found = lattice_of(section, Means(), client=client)
    assert np.array_equal(found, lattice_of(section, Means()))


def test_an_encoder_that_tells_the_wrong_dim_is_refused(section: Section) -> None:
    encoder = Means()
    encoder.dim = 4
    with pytest.raises(ValueError, match="Does its dim say"):
        lattice_of(section, encoder)
