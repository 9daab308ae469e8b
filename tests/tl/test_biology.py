from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import spatialdata
import torch
from scipy.spatial import cKDTree
from spatialdata import SpatialData

import nh2st_scverse as nh
from nh2st_scverse.data.expression import measured

COLUMNS = ["n_spots", "n_genes", "moran_measured", "moran_predicted", "moran_spearman", "svg_overlap", "svg_chance"]
COLUMNS += ["ari", "clusters_measured", "clusters_predicted", "gene_correlation"]


def write(sdata: SpatialData, values: np.ndarray, n_genes: int = 60) -> None:
    """A prediction made by hand of the genes with the highest mean."""
    table = sdata.tables["table"]
    panel = np.argsort(-measured(table).mean(axis=0), kind="stable")[:n_genes]
    table.layers["mine"] = np.full(table.shape, np.nan, dtype=np.float32)
    table.layers["mine"][:, panel] = values[:, panel]
    table.var["mine"] = np.isin(np.arange(table.n_vars), panel)
    table.uns["mine"] = {"unit": "any", "json": json.dumps({"config": {}})}


def smoothed(sdata: SpatialData) -> np.ndarray:
    table = sdata.tables["table"]
    at = np.column_stack([table.obsm["spatial"], 1e6 * table.obs["region"].cat.codes])
    return measured(table)[cKDTree(at).query(at, 7)[1]].mean(axis=1)


def test_the_measured_values_agree_with_themselves(two: SpatialData, snapshot: Callable) -> None:
    write(two, measured(two.tables["table"]))
    before, threads = snapshot(two), torch.get_num_threads()
    found = nh.tl.biology(two, key="mine")
    assert torch.get_num_threads() == threads  # scanpy raises the number for the process
    assert list(found) == COLUMNS and list(found.index) == ["section_0_spots", "section_1_spots"]
    for name in ("moran_spearman", "svg_overlap", "ari", "gene_correlation"):
        assert found[name].to_numpy() == pytest.approx(1, abs=1e-6), name
    assert (found["svg_chance"] == 0.5).all() and (found["n_genes"] == 60).all()
    after = snapshot(two)
    assert set(after) - set(before) == {"table.uns.mine_moran"} and {k: after[k] for k in before} == before


def test_smoothing_keeps_and_shuffling_destroys_the_biology(one: SpatialData, tmp_path: Path) -> None:
    table = one.tables["table"]
    write(one, smoothed(one))
    near = nh.tl.biology(one, key="mine", n_top=15).iloc[0]
    moran = table.uns["mine_moran"].set_index("gene")
    # by the formula: six nearest spots, each with the same weight
    xy, gene = table.obsm["spatial"], moran.index[7]
    z = measured(table)[:, table.var_names == gene][:, 0]
    z = z - z.mean()
    by_hand = (z[:, None] * z[cKDTree(xy).query(xy, 7)[1][:, 1:]]).mean() / (z**2).mean()
    assert moran.loc[gene, "measured"] == pytest.approx(by_hand, abs=0.05)
    assert near["moran_predicted"] > near["moran_measured"] > 0

    rng = np.random.default_rng(0)
    write(one, rng.permuted(smoothed(one), axis=0))  # each gene for itself
    far = nh.tl.biology(one, key="mine", n_top=15).iloc[0]
    assert abs(far["moran_predicted"]) < 0.05
    for name in ("moran_spearman", "ari", "gene_correlation"):
        assert near[name] > 0.15 > abs(far[name]), name
    assert near["svg_overlap"] > far["svg_overlap"] + 0.2
    one.write(tmp_path / "one.zarr")
    again = spatialdata.read_zarr(tmp_path / "one.zarr").tables["table"].uns["mine_moran"]
    assert np.allclose(again["predicted"], table.uns["mine_moran"]["predicted"])


def test_spots_without_a_prediction_and_constant_genes_are_left_out(two: SpatialData) -> None:
    table = two.tables["table"]
    values = smoothed(two)
    first = np.flatnonzero(table.obs["region"] == "section_0_spots")
    values[first[:30]] = np.nan
    constant = np.argmax(measured(table).mean(axis=0))
    values[:, constant] = 1.0
    write(two, values)
    found = nh.tl.biology(two, key="mine")
    assert found.loc["section_0_spots", "n_spots"] == len(first) - 30
    assert (found["n_genes"] == 59).all() and found.notna().all(axis=None)
    assert table.var_names[constant] not in set(table.uns["mine_moran"]["gene"])


def test_no_image_is_needed(two: SpatialData) -> None:
    write(two, smoothed(two))
    expected = nh.tl.biology(two, key="mine")
    for name in list(two.images):
        del two.images[name]
    pd.testing.assert_frame_equal(nh.tl.biology(two, key="mine"), expected)
    for name in list(two.shapes):  # the places in the table are those in pixels of the image
        del two.shapes[name]
    found = nh.tl.biology(two, key="mine")
    assert np.allclose(found["moran_predicted"], expected["moran_predicted"], atol=0.02)
    del two.tables["table"].obsm["spatial"]
    with pytest.raises(ValueError, match=r"places of the spots of 'section_0_spots', found neither shapes"):
        nh.tl.biology(two, key="mine")


def test_errors(two: SpatialData, snapshot: Callable) -> None:
    write(two, measured(two.tables["table"]))
    before = snapshot(two)
    with pytest.raises(KeyError, match=r"No table has a prediction 'nh2st'; found .*'mine'"):
        nh.tl.biology(two)
    with pytest.raises(ValueError, match="n_top to be a whole number of at least 1, found 0"):
        nh.tl.biology(two, key="mine", n_top=0)
    with pytest.raises(ValueError, match="resolution to be a number above 0"):
        nh.tl.biology(two, key="mine", resolution=0)
    assert snapshot(two) == before
    write(two, measured(two.tables["table"]), n_genes=3)
    with pytest.raises(ValueError, match="at least 4 predicted genes to compare, found 3"):
        nh.tl.biology(two, key="mine")
    values = measured(two.tables["table"])
    values[10:] = np.nan
    write(two, values)
    with pytest.raises(ValueError, match="at least 20 predicted spots"):
        nh.tl.biology(two, key="mine")
    two.tables["table"].uns["mine"]["json"] = json.dumps({"config": {"smooth": True}})
    with pytest.raises(ValueError, match="'mine' is in the unit 'any' of preset 'paper'"):
        nh.tl.biology(two, key="mine")
