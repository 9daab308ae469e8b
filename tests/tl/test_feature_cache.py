"""Features on disk: what `cache_dir` of `add_images` keeps, and when it does not fit any more."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import spatialdata
from spatialdata import SpatialData

from nh2st_scverse.nn import Config
from nh2st_scverse.tl._prepare import Prepared, add_images, collect


def prepare(sdata: SpatialData, encoder: Any, cache_dir: Path | None, **keys: Any) -> Prepared:
    prepared = collect(sdata, **keys)
    add_images(prepared, Config(), encoder, progress=False, cache_dir=cache_dir)
    return prepared


def features(prepared: Prepared) -> np.ndarray:
    return np.concatenate([section.features for section in prepared.sections])


def test_a_second_call_reads_what_the_first_one_kept(two: SpatialData, encoder: Any, tmp_path: Path) -> None:
    expected = features(prepare(two, encoder, None))
    n = encoder.n_patches
    assert not list(tmp_path.iterdir())
    assert np.array_equal(features(prepare(two, encoder, tmp_path / "new" / "folder")), expected)
    assert encoder.n_patches == 2 * n
    assert np.array_equal(features(prepare(two, encoder, tmp_path / "new" / "folder")), expected)
    assert encoder.n_patches == 2 * n
    assert sorted(p.name for p in (tmp_path / "new" / "folder").iterdir()) == ["section_0_spots", "section_1_spots"]
    assert "nh2st_features" not in two.tables["table"].obsm  # written with the prediction, not before


def test_an_interrupted_call_goes_on_where_it_stopped(two: SpatialData, encoder: Any, tmp_path: Path) -> None:
    expected = features(prepare(two, encoder, None))
    n = encoder.n_patches

    class Stops(type(encoder)):
        def __call__(self, patches: np.ndarray) -> np.ndarray:
            if self.n_patches > n // 2:
                raise KeyboardInterrupt
            return super().__call__(patches)

    with pytest.raises(KeyboardInterrupt):
        prepare(two, Stops(), tmp_path)
    encoder.n_patches = 0
    assert np.array_equal(features(prepare(two, encoder, tmp_path)), expected)
    assert 0 < encoder.n_patches < 0.6 * n


@pytest.mark.parametrize("changed", ["patch", "image", "encoder", "spots"])
def test_what_changed_is_noticed(
    two: SpatialData, encoder: Any, tmp_path: Path, changed: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    before = features(prepare(two, encoder, tmp_path))
    other = spatialdata.deepcopy(two)
    keys: dict[str, Any] = {}
    if changed == "patch":
        keys["patch_um"] = 80.0
    elif changed == "image":
        for name in other.images:
            for scale in other.images[name].children:
                array = other.images[name][scale]["image"]
                array.data = np.minimum(array.data, 225)
    elif changed == "encoder":
        encoder.weights_hash = "other"
    else:
        other.tables["table"] = other.tables["table"][5:].copy()
    n = encoder.n_patches
    after = features(prepare(other, encoder, tmp_path, **keys))
    assert encoder.n_patches - n >= 2 * len(after) / 2.5
    assert "features of another image, patch, encoder or other spots" in caplog.text
    if changed in ("patch", "image"):
        assert not np.array_equal(before, after)
    caplog.clear()
    n = encoder.n_patches
    prepare(two if changed != "encoder" else other, encoder, tmp_path)  # neither pushes the other out
    assert encoder.n_patches == n
