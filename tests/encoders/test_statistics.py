"""Statistics of colours, stains and gradients, against loops over pixels."""

from __future__ import annotations

import numpy as np
import pytest
from skimage.color import rgb_from_hed

import nh2st_scverse as nh
from nh2st_scverse.encoders._statistics import Statistics


@pytest.fixture(scope="module")
def patches() -> np.ndarray:
    """Stripes, a disc and noise (17, 80, 80, 3): more than are described at once."""
    rng = np.random.default_rng(0)
    y, x = np.mgrid[:80, :80]
    disc = np.hypot(y - 40, x - 30) < 20
    made = rng.integers(120, 256, (17, 80, 80, 3))
    made[1] = 255
    made[2] = np.where(disc[..., None], [90, 40, 130], [235, 190, 220])
    made[3] = ((x // 5) % 2 * 90 + 100)[..., None]
    return made.astype(np.uint8)


def by_loops(patch: np.ndarray) -> list[float]:
    """The same numbers, one after the other."""
    side = len(patch)
    colours = patch / 255
    density = -np.log((patch.astype(float) + 1) / 256)
    stains = density @ np.linalg.inv(rgb_from_hed)
    channels = [*np.moveaxis(colours, -1, 0), stains[..., 0], stains[..., 1], density.mean(axis=2)]
    found = [float(np.mean(c)) for c in channels] + [float(np.std(c)) for c in channels]
    for percentile in (5, 25, 50, 75, 95):
        found += [float(np.percentile(c, percentile, method="nearest")) for c in channels]
    for i, j in ((0, 1), (0, 2), (1, 2), (3, 4)):
        a, b = channels[i].ravel(), channels[j].ravel()
        found.append(float(np.corrcoef(a, b)[0, 1]) if a.std() > 1e-6 and b.std() > 1e-6 else 0.0)
    found.append(sum(bool(min(patch[i, j]) > 220) for i in range(side) for j in range(side)) / side**2)
    images = [colours.mean(axis=2), stains[..., 0]]
    for _ in range(4):
        gradients, laplacians = [], []
        for image in images:
            n = len(image)
            inside = [(i, j) for i in range(1, n - 1) for j in range(1, n - 1)]
            down = np.array([image[i + 1, j] - image[i - 1, j] for i, j in inside])
            right = np.array([image[i, j + 1] - image[i, j - 1] for i, j in inside])
            gradients.append(np.hypot(down / 2, right / 2))
            around = [image[i - 1, j] + image[i + 1, j] + image[i, j - 1] + image[i, j + 1] for i, j in inside]
            laplacians.append(np.abs(np.array(around) - 4 * np.array([image[i, j] for i, j in inside])))
        found += [float(g.mean()) for g in gradients] + [float(g.std()) for g in gradients]
        found += [float(one.mean()) for one in laplacians]
        images = [image.reshape(len(image) // 2, 2, -1, 2).mean(axis=(1, 3)) for image in images]
    return found


def test_statistics_are_those_of_loops_over_pixels(patches: np.ndarray) -> None:
    found = Statistics()(patches)
    assert found.shape == (17, 71) == (17, Statistics.dim)
    assert found.dtype == np.float32
    for i in (0, 1, 2, 3, 16):
        assert np.allclose(found[i], by_loops(patches[i]), atol=2e-4), i


def test_a_patch_is_described_whatever_stands_beside_it(patches: np.ndarray) -> None:
    encoder = nh.encoders.get("statistics")
    found = encoder(patches)
    assert np.isfinite(found).all()
    assert np.array_equal(encoder(patches[::-1])[::-1], found)
    assert np.array_equal(encoder(patches[5:6]), found[5:6])
    assert encoder(patches[:0]).shape == (0, 71)


def test_statistics_do_not_mind_which_way_up_a_patch_is(patches: np.ndarray) -> None:
    for turned in (np.rot90(patches, axes=(1, 2)), patches[:, ::-1]):
        assert np.allclose(Statistics()(turned), Statistics()(patches), atol=1e-4)


def test_maps_are_means_and_histograms_of_cells(patches: np.ndarray) -> None:
    tile = np.concatenate([np.concatenate(patches[[0, 1, 2]], axis=1)] * 3)  # 240 px: noise, glass and a disc
    means, histograms = Statistics().maps(tile)
    assert means.shape == (60, 60, 41) and histograms.shape == (60, 60, 240)
    density = -np.log((tile.astype(float) + 1) / 256)
    stains = density @ np.linalg.inv(rgb_from_hed)[:, :2]
    channels = np.concatenate([tile / 255, stains, density.mean(axis=-1, keepdims=True)], axis=-1)
    pairs = [channels[..., i] * channels[..., j] for i, j in ((0, 1), (0, 2), (1, 2), (3, 4))]
    glass = (tile.min(axis=-1) > 220).astype(float)
    plain = np.concatenate([channels, channels**2, np.stack([*pairs, glass], axis=-1)], axis=-1)
    assert np.allclose(means[..., :17], plain.reshape(60, 4, 60, 4, 17).mean(axis=(1, 3)), atol=1e-5)
    for at, cell in ((3, 44), (2, 7), (31, 20), (59, 59)):
        pixels = channels[4 * at : 4 * at + 4, 4 * cell : 4 * cell + 4].reshape(16, 6)
        for i, (low, high) in enumerate(zip((0, 0, 0, -0.1, -1, 0), (1, 1, 1, 4, 0.8, 3), strict=True)):
            share = np.cumsum(histograms[at, cell, 40 * i : 40 * i + 40])
            bins = (pixels[:, i] - low) / (high - low) * 40
            for edge in range(1, 40):  # a value on an edge may fall either way
                assert np.mean(bins < edge - 1e-3) <= share[edge - 1] <= np.mean(bins < edge + 1e-3)
            assert share[-1] == 1
