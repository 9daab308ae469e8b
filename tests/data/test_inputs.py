"""What the model sees of sections: features that are kept, in tables and on disk, as long as they fit."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import spatialdata
from spatialdata import SpatialData

import nh2st_scverse as nh
from nh2st_scverse._options import Elements
from nh2st_scverse.data.cohort import Cohort, collect
from nh2st_scverse.data.inputs import Encoding, KeptFeatures, Recipe, cut_patches, encode
from nh2st_scverse.nn import Config

FEATURES = "nh2st_features"


class GridEncoder:
    """Mean colours on a 2 x 2 grid and their spread; counts the patches it encodes."""

    name, input_size, dim, weights_hash = "grid", 16, 15, "none"

    def __init__(self) -> None:
        self.n_patches = 0

    def __call__(self, patches: np.ndarray) -> np.ndarray:
        self.n_patches += len(patches)
        x = patches.astype(np.float32) / 255
        cells = x.reshape(len(x), 2, 8, 2, 8, 3).mean(axis=(2, 4)).reshape(len(x), 12)
        return np.concatenate([cells, x.std(axis=(1, 2))], axis=1)


class Stops(GridEncoder):
    """Raises an error after so many patches."""

    def __init__(self, after: int, error: type[BaseException]) -> None:
        super().__init__()
        self.after, self.error = after, error

    def __call__(self, patches: np.ndarray) -> np.ndarray:
        if self.n_patches >= self.after:
            raise self.error("the encoder stops")
        return super().__call__(patches)


@pytest.fixture
def encoder() -> GridEncoder:
    return GridEncoder()


@pytest.fixture(scope="module")
def _two() -> SpatialData:
    return nh.datasets.synthetic(n_sections=2, width_um=1200)


@pytest.fixture
def two(_two: SpatialData) -> SpatialData:
    """Two sections in one table; a copy that a test may change."""
    return spatialdata.deepcopy(_two)


def recipe_of(cohort: Cohort, encoder: Any, fields: tuple[float, ...] = Config().fields) -> Recipe:
    return Recipe(encoder, cohort.patch_um, fields)


def features(sdata: SpatialData, encoder: Any, cache_dir: Path | None = None, **options: Any) -> np.ndarray:
    """Features of all spots, section by section; nothing is left in the table."""
    cohort = collect(sdata, **options)
    how = Encoding(progress=False, cache_dir=cache_dir)
    return np.concatenate(encode(cohort, recipe_of(cohort, encoder), KeptFeatures(cohort), how))


# --------------------------------------------------------------------------------------------------- on disk


def test_a_second_call_reads_what_the_first_one_kept(two: SpatialData, encoder: Any, tmp_path: Path) -> None:
    expected = features(two, encoder)
    n = encoder.n_patches
    assert not list(tmp_path.iterdir())
    assert np.array_equal(features(two, encoder, tmp_path / "new" / "folder"), expected)
    assert encoder.n_patches == 2 * n
    assert np.array_equal(features(two, encoder, tmp_path / "new" / "folder"), expected)
    assert encoder.n_patches == 2 * n
    assert sorted(p.name for p in (tmp_path / "new" / "folder").iterdir()) == ["section_0_spots", "section_1_spots"]
    assert FEATURES not in two.tables["table"].obsm  # written at the end of the context, not before


@pytest.mark.parametrize("on_disk", [True, False])
def test_an_interrupted_call_goes_on_where_it_stopped(
    two: SpatialData, encoder: Any, tmp_path: Path, on_disk: bool
) -> None:
    cache_dir = tmp_path if on_disk else None
    expected = features(two, encoder)
    n = encoder.n_patches
    where = "in .*test_an_interrupted" if on_disk else "in this session"
    with pytest.raises(KeyboardInterrupt, match=f"what is done is kept {where}.*: the same call goes on") as stopped:
        features(two, Stops(n // 4, KeyboardInterrupt), cache_dir)
    assert stopped.value.__suppress_context__  # no wall of frames of the encoder
    encoder.n_patches = 0
    assert np.array_equal(features(two, encoder, cache_dir), expected)
    assert n / 2 < encoder.n_patches < 0.9 * n


@pytest.mark.parametrize("changed", ["patch", "image", "encoder", "spots"])
def test_what_changed_is_noticed(
    two: SpatialData, encoder: Any, tmp_path: Path, changed: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    before = features(two, encoder, tmp_path)
    other = spatialdata.deepcopy(two)
    options: dict[str, Any] = {}
    if changed == "patch":
        options["patch_um"] = 80.0
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
    after = features(other, encoder, tmp_path, **options)
    assert encoder.n_patches - n >= 2 * len(after) / 2.5
    assert "features of another image, patch, encoder or other spots" in caplog.text
    if changed in ("patch", "image"):
        assert not np.array_equal(before, after)
    caplog.clear()
    n = encoder.n_patches
    features(two if changed != "encoder" else other, encoder, tmp_path)  # neither pushes the other out
    assert encoder.n_patches == n


# ------------------------------------------------------------------------------------------------- in tables


def test_features_are_left_in_the_table_at_the_end_and_reused(two: SpatialData, encoder: Any) -> None:
    cohort, table = collect(two), two.tables["table"]
    recipe = recipe_of(cohort, encoder)
    with KeptFeatures(cohort) as kept:
        found = encode(cohort, recipe, kept, Encoding(progress=False))
        assert FEATURES not in table.obsm and FEATURES not in table.uns
        n = encoder.n_patches
        again = encode(cohort, recipe, kept, Encoding(progress=False))  # another fold, before anything is written
        assert encoder.n_patches == n
    assert all(map(np.array_equal, found, again))
    for section, values in zip(cohort.sections, found, strict=True):
        assert values.dtype == np.float32 and np.array_equal(table.obsm[FEATURES][section.rows], values)
    later = collect(two)
    assert all(map(np.array_equal, encode(later, recipe, KeptFeatures(later), Encoding(progress=False)), found))
    assert encoder.n_patches == n


def test_what_was_encoded_is_kept_when_the_user_interrupts(two: SpatialData, encoder: Any) -> None:
    cohort, table = collect(two), two.tables["table"]
    expected = encode(cohort, recipe_of(cohort, encoder), KeptFeatures(cohort), Encoding(progress=False))
    first, second = cohort.sections
    stops = Stops(len(Config().fields) * first.n_spots, KeyboardInterrupt)
    with pytest.raises(KeyboardInterrupt), KeptFeatures(cohort) as kept:
        encode(cohort, recipe_of(cohort, stops), kept, Encoding(progress=False))
    assert np.array_equal(table.obsm[FEATURES][first.rows], expected[0])
    assert np.isnan(table.obsm[FEATURES][second.rows]).all()
    before = encoder.n_patches
    again = encode(cohort, recipe_of(cohort, encoder), KeptFeatures(cohort), Encoding(progress=False))
    assert all(map(np.array_equal, again, expected))
    assert encoder.n_patches - before == len(Config().fields) * second.n_spots  # the other section alone


@pytest.mark.parametrize("error", [ValueError, MemoryError, SystemExit])
def test_nothing_is_kept_when_something_fails(two: SpatialData, error: type[BaseException]) -> None:
    cohort, table = collect(two), two.tables["table"]
    stops = Stops(len(Config().fields) * cohort.sections[0].n_spots, error)
    with pytest.raises(error), KeptFeatures(cohort) as kept:
        encode(cohort, recipe_of(cohort, stops), kept, Encoding(progress=False))
    assert FEATURES not in table.obsm and FEATURES not in table.uns


def test_features_in_a_table_stay_as_they_were_when_something_fails(two: SpatialData, encoder: Any) -> None:
    cohort, table = collect(two), two.tables["table"]
    with KeptFeatures(cohort) as kept:
        encode(cohort, recipe_of(cohort, encoder), kept, Encoding(progress=False))
    values, marks = table.obsm[FEATURES].copy(), table.uns[FEATURES]
    stops = Stops(len(Config().fields) * cohort.sections[0].n_spots, ValueError)
    stops.weights_hash = "other"  # the same number of features, of another encoder
    with pytest.raises(ValueError, match="the encoder stops"), KeptFeatures(cohort) as kept:
        encode(cohort, recipe_of(cohort, stops), kept, Encoding(progress=False))
    assert np.array_equal(table.obsm[FEATURES], values) and table.uns[FEATURES] == marks


def test_features_of_one_section_do_not_push_out_those_of_another(two: SpatialData, encoder: Any) -> None:
    for name in two.shapes:
        cohort = collect(two, Elements(shapes=name))
        with KeptFeatures(cohort) as kept:
            encode(cohort, recipe_of(cohort, encoder), kept, Encoding(progress=False))
    n = encoder.n_patches
    both = collect(two)
    encode(both, recipe_of(both, encoder), KeptFeatures(both), Encoding(progress=False))
    assert encoder.n_patches == n


def test_precomputed_features_cannot_be_turned() -> None:
    with pytest.raises(ValueError, match=r"orientations=1 with encoder .*, found 4: its features are there already"):
        Recipe(nh.encoders.Precomputed("X_uni"), 75.0, orientations=4)


def test_patches_are_those_that_an_encoder_sees(two: SpatialData) -> None:
    cohort = collect(two)
    patches = cut_patches(cohort, cohort.patch_um, 16)
    assert [p.shape for p in patches] == [(section.n_spots, 16, 16, 3) for section in cohort.sections]
    assert all(p.dtype == np.uint8 for p in patches)
    encoded = encode(cohort, recipe_of(cohort, GridEncoder(), (1.0,)), KeptFeatures(cohort), Encoding(progress=False))
    for cut, found in zip(patches, encoded, strict=True):
        assert np.allclose(GridEncoder()(cut), found, atol=1e-6)
