from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import squidpy as sq

import nh2st_scverse as nh
from nh2st_scverse._options import Elements
from nh2st_scverse.data import quality
from nh2st_scverse.data.cohort import collect


def test_the_same_pixels_are_measured_once_and_others_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    section = collect(nh.datasets.synthetic(width_um=1200), Elements(), patch_um=75.0).sections[0]
    places, calls = section.geometry.pixels()[::7], []
    measure = sq.experimental.im.qc_image
    monkeypatch.setattr(sq.experimental.im, "qc_image", lambda *a, **k: calls.append(1) or measure(*a, **k))
    quality._metrics.cache_clear()
    first, again = (quality.image_quality(section.geometry, places) for _ in range(2))
    assert first == again and len(calls) == 1
    moved = quality.image_quality(section.geometry, places + 3.0)
    assert len(calls) == 2 and moved != first and np.isclose(moved.stain, first.stain, rtol=0.1)
    level = section.geometry.levels[0]
    pale = replace(level, array=(255 - (255 - level.array) // 2).astype(np.uint8))
    paler = quality.image_quality(replace(section.geometry, levels=(pale,)), places)
    assert len(calls) == 3 and paler.stain < 0.7 * first.stain
