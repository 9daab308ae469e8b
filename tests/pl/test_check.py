from __future__ import annotations

import matplotlib.pyplot as plt
import numpy as np
import pytest
from matplotlib.collections import EllipseCollection

import nh2st_scverse as nh
from nh2st_scverse.data.patches import iter_patches
from nh2st_scverse.data.section import locate_sections


def test_spots_and_patches_of_each_section(two, state, tmp_path):
    before = state(two)
    axes = nh.pl.check(two, save=tmp_path / "check", return_ax=True)
    assert axes.shape == (2, 2)
    for (left, right), section in zip(axes, locate_sections(two), strict=True):
        spots = next(c for c in left.collections if isinstance(c, EllipseCollection))
        np.testing.assert_allclose(spots.get_offsets(), section.xy_um)
        assert left.get_title() == f"{section.name.removesuffix('_spots')}: {section.n_spots} spots"
        assert right.get_title() == "patches of 75 µm = 75 px of the image"
        montage = np.asarray(right.images[0].get_array())
        first = montage[:96, :96]
        patches = [p for _, part in iter_patches(section.geometry, np.arange(section.n_spots), size_um=75, size_px=96)
                   for p in part]  # fmt: skip
        assert any(np.array_equal(first, patch) for patch in patches)
    assert (tmp_path / "check.png").stat().st_size > 0
    assert state(two) == before
    assert nh.pl.check(two, shapes_key="section_1_spots") is None


def test_outlines_of_many_spots_are_thin(sdata):
    wide = nh.pl.check(sdata, return_ax=True)[0, 0].collections[0].get_linewidths()[0]
    sdata["section_0_spots"]["radius"] /= 5
    thin = nh.pl.check(sdata, return_ax=True)[0, 0].collections[0].get_linewidths()[0]
    assert 0.1 < thin < wide / 2


def test_other_patches(sdata):
    (((_, one),), ((_, other),), ((_, wide),)) = (
        nh.pl.check(sdata, return_ax=True, **given) for given in ({}, {"seed": 1}, {"patch_um": 150})
    )
    assert wide.get_title() == "patches of 150 µm = 150 px of the image"
    assert not np.array_equal(one.images[0].get_array(), other.images[0].get_array())


def test_wrong_arguments(sdata):
    with pytest.raises(ValueError, match="patch_um to be a number above 0, found 0"):
        nh.pl.check(sdata, patch_um=0)
    with pytest.raises(KeyError, match=r"shapes_key='x' is not there"):
        nh.pl.check(sdata, shapes_key="x")
    with pytest.raises(TypeError, match="Expected a SpatialData object, found AnnData"):
        nh.pl.check(sdata["table"])
    assert not plt.get_fignums()
