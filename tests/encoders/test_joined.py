"""Several encoders as one."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from PIL import Image

import nh2st_scverse as nh
from nh2st_scverse.encoders import Joined, Precomputed, Statistics, get


class MeanColour:
    name, input_size, dim, weights_hash = "mean_colour", 20, 3, "none"

    def __call__(self, patches: np.ndarray) -> np.ndarray:
        assert patches.shape[1:] == (20, 20, 3)
        return patches.mean(axis=(1, 2), dtype=np.float32)


def test_features_stand_side_by_side_each_from_patches_of_its_own_size() -> None:
    encoder: Any = Joined([MeanColour(), "statistics"])
    assert isinstance(encoder, nh.encoders.Encoder)
    assert (encoder.name, encoder.input_size, encoder.dim) == ("mean_colour+statistics", 80, 74)
    assert encoder.blocks == (3, 71)
    assert encoder.weights_hash == "none+1"
    patches = np.random.default_rng(0).integers(0, 256, (5, 80, 80, 3), dtype=np.uint8)
    found = encoder(patches)
    assert found.shape == (5, 74) and found.dtype == np.float32
    small = np.stack([np.asarray(Image.fromarray(one).resize((20, 20), Image.Resampling.BILINEAR)) for one in patches])
    assert np.array_equal(found[:, :3], small.mean(axis=(1, 2), dtype=np.float32))
    assert np.array_equal(found[:, 3:], Statistics()(patches))


def test_lists_and_names_with_a_plus_join() -> None:
    own = MeanColour()
    joined: Any = get([own, "statistics"])
    assert joined.encoders == [own, get("statistics")]
    more: Any = get([joined, "resnet18"])
    assert more.blocks == (3, 71, 512)
    assert get("statistics+resnet18").name == "statistics+resnet18"


def test_what_cannot_be_joined_is_refused() -> None:
    with pytest.raises(ValueError, match=r"at least two encoders of different names to join, found \['statistics'\]"):
        Joined(["statistics"])
    with pytest.raises(ValueError, match=r"different names to join, found \['statistics', 'statistics'\]"):
        get(["statistics", "statistics"])
    with pytest.raises(ValueError, match=r"features that are there already cannot be joined .* \.obsm key"):
        get(["statistics", Precomputed("X_uni")])
    with pytest.raises(ValueError, match="joined by '\\+', or an encoder object, found 'statistics\\+uni'"):
        get("statistics+uni")
