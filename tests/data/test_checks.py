from __future__ import annotations

import logging
from dataclasses import FrozenInstanceError, replace

import numpy as np
import pandas as pd
import pytest
from scipy import sparse
from xarray import DataArray

from nh2st_scverse.data.checks import (
    Problem,
    Refused,
    allowed,
    bins,
    image_kind,
    in_tissue,
    low_scores,
    raise_or_log,
)
from nh2st_scverse.data.copies import Piece, repeated, touching
from nh2st_scverse.data.geometry import Geometry, Level
from nh2st_scverse.data.pixels import tissue_of

RNG = np.random.default_rng(0)


def test_problems_are_raised_or_logged(caplog: pytest.LogCaptureFixture) -> None:
    coarse = Problem("patch", "too coarse", "error", "Take another image", allow="coarse")
    with pytest.raises(FrozenInstanceError):
        coarse.found = "fine"  # type: ignore[misc]
    with pytest.raises(Refused, match=r"too coarse\. Take another image\.") as refused:
        raise_or_log([Problem("image", "there"), coarse])
    assert refused.value.problems == [coarse] and isinstance(refused.value, ValueError)
    told = replace(coarse, status="warning", remedy="gone on with, as allow='coarse' says")
    assert allowed([coarse], "coarse") == [told] and allowed([coarse], "off_tissue") == [coarse]
    with caplog.at_level(logging.WARNING, logger="nh2st_scverse"):
        raise_or_log([coarse, Problem("focus", "blurred", "warning", "sharpen")], "coarse", section="a")
    assert caplog.messages == ["a, patch: too coarse. Going on as told.", "a, focus: blurred; sharpen"]


def painted(side: int = 200) -> np.ndarray:
    """Purple tissue on glass."""
    picture = np.full((side, side, 3), 240, dtype=np.uint8)
    inner = np.array([150, 90, 160]) + RNG.integers(-20, 20, (side // 2, side // 2, 3))
    picture[side // 4 : 3 * side // 4, side // 4 : 3 * side // 4] = inner
    return picture


def on(picture: np.ndarray, xy: np.ndarray | None = None) -> Geometry:
    level = Level(DataArray(picture.transpose(2, 0, 1), dims=("c", "y", "x")), np.eye(3), 1.0)
    xy = np.zeros((1, 2)) if xy is None else xy
    return Geometry("he", (level,), xy, np.arange(len(xy)), "given")


def half_black(picture: np.ndarray) -> np.ndarray:
    return np.concatenate([picture, np.zeros_like(picture)], axis=1)


@pytest.mark.parametrize(
    ("change", "found"),
    [
        (lambda p: p, "looks like it"),
        (half_black, "looks like it"),
        (lambda p: np.repeat(p.mean(2, keepdims=True), 3, 2).astype(np.uint8), "grey"),
        (lambda p: 255 - p, "dark ground"),
        (lambda p: p[..., [1, 0, 2]], "not purple or pink"),
        (lambda p: np.zeros_like(p), "all is black"),
    ],
)
def test_what_is_no_h_and_e_is_named(change, found: str) -> None:
    (line,) = image_kind(on(change(painted())))
    assert found in line.found and (line.status == "ok") == (found == "looks like it")


def test_black_and_ink_are_no_tissue() -> None:
    picture = painted()
    tissue = tissue_of(picture)
    assert 0.2 < tissue.mean() < 0.3
    black = tissue_of(half_black(picture))
    assert not black[:, 210:].any() and abs(black[:, :200].mean() - tissue.mean()) < 0.02
    for pen in ((30, 160, 60), (20, 60, 200)):
        marked = picture.copy()
        marked[5:40, 5:195] = pen
        assert not tissue_of(marked)[8:36, 10:190].any()
    crop = picture[60:140, 60:140]
    assert tissue_of(crop).all()  # no glass in sight


def test_rows_off_the_tissue_do_not_count() -> None:
    for values in ([1, 0, 1], [True, False, True], ["1", "0", "1"], [1.0, 0.0, 1.0]):
        assert in_tissue(pd.DataFrame({"in_tissue": values})).tolist() == [True, False, True]
    assert in_tissue(pd.DataFrame({"x": [1, 2]})).all()


def piece(name: str, group: str, counts: np.ndarray, xy: np.ndarray, picture: np.ndarray) -> Piece:
    return Piece(name, group, on(picture, xy), 100.0, sparse.csr_matrix(counts))


def test_copies_and_neighbours_are_noticed() -> None:
    picture, other = painted(), painted()
    counts, others = RNG.poisson(3, (40, 50)), RNG.poisson(3, (40, 50))
    xy = np.stack(np.meshgrid(np.arange(8) * 100.0, np.arange(5) * 100.0), -1).reshape(-1, 2)
    a = piece("a", "p", counts, xy, picture)
    copy = piece("b", "q", counts[::-1], xy, other)
    (line,) = repeated([a, copy])
    assert line.status == "error" and "40 spots of 'a'" in line.found and "groups=" in line.remedy
    assert not repeated([a, replace(copy, group="p")])
    assert not repeated([a, piece("c", "q", others, xy, other)])
    (same,) = touching([a, piece("c", "q", others, xy, picture)])
    assert same.status == "error" and "same places" in same.found
    (near,) = touching([a, piece("c", "q", others, xy + np.array([800, 0]), picture)])
    assert near.status == "warning" and "100 µm apart" in near.found
    assert not touching([a, piece("c", "q", others, xy + np.array([1800, 0]), picture)])
    assert not touching([a, piece("c", "q", others, xy, other)])


def test_scores_near_nothing_say_why() -> None:
    assert low_scores(np.array([0.3, 0.2, np.nan]))[0].status == "ok"
    for values in ([0.02, -0.01], [-0.3, -0.2], [0.04, np.nan]):
        (line,) = low_scores(np.array(values))
        assert line.status == "warning" and "mirrored" in line.remedy
    (line,) = low_scores(np.array([np.nan]))
    assert line.status == "warning" and "no tissue is left to hold out" in line.found


def squares(side: float, n: int = 8) -> Geometry:
    xy = np.stack(np.meshgrid(np.arange(n), np.arange(n)), -1).reshape(-1, 2) * side
    return on(painted(), xy + side)


@pytest.mark.parametrize(
    ("name", "side", "off"),
    [
        ("hd_square_008um", 8.0, None),
        ("hd_square_008um", 16.0, 2),
        ("hd_square_016um", 8.0, 0.5),
        ("hd_square_002um", 2.2, 1.1),
        ("hd_square_050um", 50.0, None),
        ("bins", 8.8, 1.1),
        ("bins", 12.8, 0.8),
        ("bins", 1.6, 0.8),
        ("bins", 16.2, None),
        ("bins", 10.0, None),  # of one's own
        ("bins", 50.0, None),
    ],
)
def test_bins_are_as_wide_as_those_of_visium_hd_or_as_their_name_says(
    name: str, side: float, off: float | None
) -> None:
    found = bins(squares(side), name, diameter_um=side, spacing_um=side, counted=True)
    assert len(found) == (off is not None)
    if off is not None:
        assert found[0].status == "warning" and f"µm per pixel is {off:g} times" in found[0].found
        assert "microns_per_pixel=" in found[0].remedy
    assert not bins(squares(side), name, diameter_um=side, spacing_um=side, counted=False)  # a grid of ours
    assert not bins(squares(side), name, diameter_um=0.55 * side, spacing_um=side, counted=True)  # no squares
