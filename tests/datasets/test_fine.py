"""Bins and cells of a drawn section, their truth, and predictions at them."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import numpy as np
import pytest

import nh2st_scverse as nh
from nh2st_scverse.datasets import synthetic

ROOT = Path(__file__).parents[2]


def test_spots_are_the_same_with_and_without(fine):
    alone = nh.datasets.synthetic(width_um=700, n_genes=20, seed=1)
    assert (alone["table"].X != fine["table"].X).nnz == 0
    assert set(fine.tables) == {"table", "square_008um", "square_016um", "cells"}


def test_wider_bins_are_sums(fine):
    small, wide = fine["square_008um"], fine["square_016um"]
    assert small.X.sum() == wide.X.sum()
    row = wide[100]
    place = row.obs[["array_row", "array_col"]].to_numpy()[0]
    inside = (small.obs[["array_row", "array_col"]].to_numpy() // 2 == place).all(axis=1)
    assert 1 <= inside.sum() <= 4 and np.allclose(small.X[inside].sum(axis=0), row.X.toarray())


def test_counts_follow_the_truth(fine):
    for key in ("square_016um", "cells"):
        table = fine[key]
        drivers = table.obs.reindex(columns=table.var["depends_on"].astype(str), fill_value=0).to_numpy(float)
        rates = table.var["base"].to_numpy() + drivers * table.var["slope"].to_numpy()
        marker = (table.var["program"] == "tumour").to_numpy()
        share = np.asarray(table.X[:, marker].sum(axis=1)).ravel() / np.asarray(table.X.sum(axis=1)).ravel()
        truth = rates[:, marker].sum(axis=1) / rates.sum(axis=1)
        there = np.isfinite(share)
        assert np.corrcoef(share[there], truth[there])[0, 1] > 0.8
    cells = fine["cells"].obs
    assert set(cells["cell_type"]) == {"tumour", "stroma", "immune"}
    assert (cells["nucleus_um"] < cells["radius_um"]).all()


def test_cells_lie_on_dark_pixels(fine):
    image = fine["section_0_image"]["scale0"]["image"].transpose("y", "x", "c").values
    x, y = fine["cells"].obsm["spatial"].astype(int).T
    assert image[y, x].mean() < image.mean() - 40


@pytest.mark.parametrize(
    ("given", "error", "message"),
    [
        ({"bins_um": (3, 8)}, ValueError, "multiples of the smallest"),
        ({"bins_um": 500}, ValueError, "small"),
        ({"bins_um": 2.5}, TypeError, "whole number"),
        ({"cells": 1}, TypeError, "True or False"),
    ],
)
def test_what_cannot_be_drawn(given, error, message):
    with pytest.raises(error, match=message):
        synthetic(width_um=600, n_genes=14, **given)


def test_predicted_at_bins_and_cells_better_than_the_nearest_spot(tiny):
    """Trained on spots of 55 µm; the table that tests/benchmarks/fine.py makes of a large section with the default."""
    spec = importlib.util.spec_from_file_location("fine_benchmark", ROOT / "tests" / "benchmarks" / "fine.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    a, b, c = (module.draw(600, 20, seed) for seed in (11, 12, 13))
    table = module.compare({"a": a, "b": b}, c, **tiny | {"max_epochs": 10, "n_genes": 20})
    print(table.round(3).to_string())
    assert (table["r at the place"] > table["r of the nearest spot"]).all()
    assert 0.55 < table["coverage of 80 % at 55 µm"].iloc[0] <= 1
