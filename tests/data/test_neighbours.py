from __future__ import annotations

import numpy as np
import pytest
from sklearn.neighbors import NearestNeighbors

import nh2st_scverse as nh
from nh2st_scverse.data.neighbours import REACH, apart_from, neighbourhoods, spatial_blocks
from nh2st_scverse.data.section import locate_sections


def square(n: int, pitch: float = 100.0) -> np.ndarray:
    return np.stack(np.mgrid[:n, :n], axis=-1).reshape(-1, 2) * pitch


@pytest.fixture
def tissue() -> np.ndarray:
    rng = np.random.default_rng(0)
    xy = square(16) + rng.normal(0, 4, (256, 2))
    return xy[(rng.random(256) < 0.8) & (np.hypot(*(xy - 700).T) > 250)]  # holes


def test_neighbours_equal_a_reference(tissue: np.ndarray) -> None:
    found = neighbourhoods(tissue, 100.0, np.ones(len(tissue), bool))
    distance, nodes = NearestNeighbors(n_neighbors=9).fit(tissue).kneighbors(tissue)
    near = distance <= REACH * 100
    assert np.array_equal(found.mask, near)
    assert not near.all()  # some lack neighbours
    assert np.array_equal(found.nodes, np.where(near, nodes, np.arange(len(tissue))[:, None]))
    assert np.array_equal(found.nodes[:, 0], np.arange(len(tissue)))
    assert np.allclose(found.offsets, (tissue[found.nodes] - tissue[:, None]) / 100, atol=1e-5)


def test_isolated_spots_have_no_neighbours() -> None:
    xy = np.concatenate([square(5), [[5000.0, 5000.0]]])
    found = neighbourhoods(xy, 100.0, np.ones(26, bool))
    assert list(found.mask[25]) == [True] + [False] * 8
    assert (found.nodes[25] == 25).all()
    assert (found.offsets[25] == 0).all()
    assert not (found.nodes[:25] == 25).any()
    assert found.mask[12].all()


def test_spots_without_image_are_nobodys_neighbour(tissue: np.ndarray) -> None:
    usable = np.random.default_rng(1).random(len(tissue)) < 0.7
    found = neighbourhoods(tissue, 100.0, usable)
    others = found.nodes[:, 1:][found.mask[:, 1:]]
    assert usable[others].all()
    assert np.array_equal(found.nodes[:, 0], np.arange(len(tissue)))
    assert found.mask[:, 0].all()


def test_spots_at_one_place_stand_first_in_their_own_neighbourhood() -> None:
    xy = np.concatenate([square(5), square(5)[:3], np.repeat(square(5)[7:8], 12, axis=0)])
    found = neighbourhoods(xy, 100.0, np.ones(len(xy), bool))
    assert np.array_equal(found.nodes[:, 0], np.arange(len(xy)))
    for nodes, mask in zip(found.nodes, found.mask, strict=True):
        assert len(set(nodes[mask])) == mask.sum()  # nobody twice


def test_too_few_spots() -> None:
    with pytest.raises(ValueError, match=r"at least 9 spots with an image .* found 8"):
        neighbourhoods(square(3), 100.0, np.arange(9) > 0)


def test_neighbours_never_cross_sections() -> None:
    sdata = nh.datasets.synthetic(n_sections=2, width_um=800)
    table = sdata.tables["table"]
    shuffled = table[np.random.default_rng(0).permutation(table.n_obs)].copy()
    sdata.tables["table"] = shuffled
    sections = locate_sections(sdata)
    for section in sections:
        assert (shuffled.obs["region"].to_numpy()[section.rows] == section.name).all()
        assert section.neighbours.nodes.max() == section.n_spots - 1
        at = shuffled.obsm["spatial"][section.rows]
        reach = np.linalg.norm(at[section.neighbours.nodes] - at[:, None], axis=2)
        assert reach.max() <= REACH * 100.001
    assert sum(section.n_spots for section in sections) == shuffled.n_obs


@pytest.mark.parametrize("n_blocks", [2, 3, 4, 5])
def test_blocks_are_of_equal_size_and_compact(tissue: np.ndarray, n_blocks: int) -> None:
    block = spatial_blocks(tissue, n_blocks)
    sizes = np.bincount(block)
    assert len(sizes) == n_blocks
    assert np.ptp(sizes) <= 2
    extent = [np.ptp(tissue[block == i], axis=0) for i in range(n_blocks)]
    assert max(e.max() / e.min() for e in extent) < 3.2
    boxes = [(tissue[block == i].min(axis=0), tissue[block == i].max(axis=0)) for i in range(n_blocks)]
    inside = sum(((tissue >= low) & (tissue <= high)).all(axis=1).sum() for low, high in boxes)
    assert inside < 1.1 * len(tissue)  # their boxes hardly overlap


@pytest.mark.parametrize("patch", [75.0, 187.5, 320.0])
def test_training_spots_share_neither_neighbour_nor_pixel_with_held_out_ones(tissue: np.ndarray, patch: float) -> None:
    n = len(tissue)
    everything = neighbourhoods(tissue, 100.0, np.ones(n, bool))
    for block in range(4):
        held_out = spatial_blocks(tissue, 4) == block
        stay = apart_from(held_out, everything, tissue, patch)
        assert 0 < stay.sum() < n - held_out.sum()
        again = neighbourhoods(tissue[stay], 100.0, np.ones(stay.sum(), bool))  # as a training section looks them up
        seen_in_training = set(np.flatnonzero(stay)[again.nodes].ravel()) | set(everything.nodes[stay].ravel())
        seen_in_test = set(everything.nodes[held_out].ravel())
        assert not seen_in_training & seen_in_test
        for i in seen_in_training:
            for j in seen_in_test:
                assert (np.abs(tissue[i] - tissue[j]) >= patch - 1e-9).any()  # the squares do not overlap


def test_the_margin_is_no_wider_than_needed() -> None:
    xy = square(20)
    everything = neighbourhoods(xy, 100.0, np.ones(400, bool))
    held_out = xy[:, 0] < 500
    stay = apart_from(held_out, everything, xy, 75.0)
    # held-out spots reach to x = 400 and see x = 500; training spots from x = 700 on see x = 600
    interior = (xy[:, 1] > 150) & (xy[:, 1] < 1750)
    assert stay[interior & (xy[:, 0] >= 700)].all()
    assert not stay[interior & (xy[:, 0] <= 600)].any()


def test_ties_on_a_grid_do_not_depend_on_the_order_of_rows() -> None:
    row, column = np.mgrid[:12, :24]
    keep = (row + column) % 2 == 0
    xy = np.stack([column[keep] * 50.0, row[keep] * 50 * np.sqrt(3)], axis=1)  # the last 2 of 8 are chosen among 6
    order = np.random.default_rng(0).permutation(len(xy))
    one, other = (neighbourhoods(a, 100.0, np.ones(len(a), bool)) for a in (xy, xy[order]))
    assert np.allclose(xy[one.nodes][order], xy[order][other.nodes])
    assert np.array_equal(one.mask[order], other.mask)
    assert np.array_equal(spatial_blocks(xy, 4)[order], spatial_blocks(xy[order], 4))
