"""Histograms, spectrum, blobs and local patterns, against loops over pixels."""

from __future__ import annotations

import numpy as np
import pytest
from skimage.color import rgb_from_hed

from nh2st_scverse.encoders import Texture, get

SIDE = 80


@pytest.fixture(scope="module")
def patches() -> np.ndarray:
    rng = np.random.default_rng(0)
    coarse = rng.integers(90, 240, size=(3, 10, 10, 3)).repeat(8, axis=1).repeat(8, axis=2)
    return np.clip(coarse + rng.normal(0, 12, size=(3, SIDE, SIDE, 3)), 0, 255).astype(np.uint8)


@pytest.fixture(scope="module")
def found(patches: np.ndarray) -> np.ndarray:
    return Texture()(patches)


def channels(patch: np.ndarray) -> dict[str, np.ndarray]:
    density = -np.log((patch + 1.0) / 256)
    return {"brightness": patch.mean(axis=-1) / 255.0, "haematoxylin": (density @ np.linalg.inv(rgb_from_hed))[..., 0]}


def halved(image: np.ndarray) -> np.ndarray:
    return image.reshape(image.shape[0] // 2, 2, image.shape[1] // 2, 2).mean(axis=(1, 3))


def test_is_an_encoder_by_name(patches: np.ndarray, found: np.ndarray) -> None:
    encoder = get("texture")
    assert isinstance(encoder, Texture) and encoder.dim == sum(encoder.blocks) == 276
    assert found.shape == (3, 276) and found.dtype == np.float32
    assert np.allclose(encoder(patches[1:2])[0], found[1], atol=1e-4)  # a patch does not depend on the others
    assert np.allclose(encoder(np.concatenate([patches] * 7)), np.concatenate([found] * 7), atol=1e-4)
    assert encoder(patches[:0]).shape == (0, 276)
    for value in (0, 255):
        assert np.isfinite(encoder(np.full((1, SIDE, SIDE, 3), value, dtype=np.uint8))).all()


def test_histograms_are_of_pixels(patches: np.ndarray, found: np.ndarray) -> None:
    for patch, row in zip(patches, found, strict=True):
        by_hue, by_colour = np.zeros((8, 8)), np.zeros((4, 4, 4))
        for red, green, blue in patch.reshape(-1, 3).tolist():
            r, g, b = (-np.log((v + 1) / 256) for v in (red, green, blue))
            dense = min(int((r + g + b) / 3 / 1.6 * 8), 7)
            hue = int(min(max((r - b) / (r + g + b + 0.1) * 8 + 4, 0), 7))
            by_hue[dense, hue] += 1
            by_colour[red // 64, green // 64, blue // 64] += 1
        assert (
            np.abs(row[:64] - np.sqrt(by_hue / SIDE**2).ravel()).max() < 0.02
        )  # a pixel on an edge may fall either way
        assert np.allclose(row[64:128], np.sqrt(by_colour / SIDE**2).ravel(), atol=1e-6)


def test_spectrum_blobs_and_patterns(patches: np.ndarray, found: np.ndarray) -> None:
    for patch, row in zip(patches, found, strict=True):
        at = 128
        for name in ("brightness", "haematoxylin"):
            image = channels(patch)[name]
            window = np.outer(np.hanning(SIDE), np.hanning(SIDE))
            power = np.abs(np.fft.fft2((image - image.mean()) * window)) ** 2
            rings = np.zeros(12)
            for i in range(SIDE):
                for j in range(SIDE // 2 + 1):
                    across = j if j < SIDE // 2 else -j  # the half that a real transform keeps
                    far = np.hypot(min(i, SIDE - i), across)
                    rings[int(min(max(2 * np.log2(max(far, 1)), 0), 11))] += power[i, j]
            assert np.allclose(row[at : at + 12], np.log(rings + 1e-3), atol=0.02)
            at += 12
            for scale in range(4):
                inner = image[1:-1, 1:-1]
                around = np.mean([image[1 + i : image.shape[0] - 1 + i, 1 + j : image.shape[1] - 1 + j]
                                  for i in (-1, 0, 1) for j in (-1, 0, 1)], axis=0)  # fmt: skip
                blobs = np.sort((inner - around).ravel())
                ranks = [round(p / 100 * (len(blobs) - 1)) for p in (5, 25, 50, 75, 95, 99)]
                skew = np.mean((blobs / (blobs.std() + 1e-6)) ** 3)
                assert np.allclose(row[at : at + 8], [*blobs[ranks], blobs.std(), skew], atol=5e-3)
                at += 8
                if scale < 3:
                    assert np.abs(row[at : at + 10] - patterns(image)).max() < 0.01
                    at += 10
                image = halved(image)
        assert at == 276


def patterns(image: np.ndarray) -> np.ndarray:
    """Shares of pixels by how many neighbours are brighter, where these lie in a row; the last, all others."""
    counts = np.zeros(10)
    height, width = image.shape
    turn = [(-1, -1), (-1, 0), (-1, 1), (0, 1), (1, 1), (1, 0), (1, -1), (0, -1)]
    for i in range(1, height - 1):
        for j in range(1, width - 1):
            brighter = [image[i + a, j + b] > image[i, j] + 0.01 for a, b in turn]
            changes = sum(brighter[k] != brighter[k - 1] for k in range(8))
            counts[sum(brighter) if changes <= 2 else 9] += 1
    return counts / counts.sum()


def test_a_turned_patch_is_alike(patches: np.ndarray, found: np.ndarray) -> None:
    """Only the spectrum, of which a real transform keeps one half, differs a little."""
    turned = Texture()(np.ascontiguousarray(np.rot90(patches, axes=(1, 2))))
    rings = np.r_[128:140, 202:214]
    rest = np.setdiff1d(np.arange(276), rings)
    assert np.allclose(turned[:, rest], found[:, rest], atol=1e-3)
    assert np.allclose(turned[:, rings], found[:, rings], atol=0.7)
