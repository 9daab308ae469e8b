"""Bins, cells and transcripts pooled into spots."""

from __future__ import annotations

import logging

import anndata as ad
import numpy as np
import pytest
import spatialdata as sd
from scipy.spatial import cKDTree

import nh2st_scverse as nh


@pytest.fixture
def sdata(fine) -> sd.SpatialData:
    return sd.deepcopy(fine)


def test_sums_are_those_of_the_places_in_a_spot(sdata):
    nh.pp.pseudospots(sdata, table_key="square_008um")
    pooled, bins = sdata["pseudospots"], sdata["square_008um"]
    spots = sdata["section_0_square_008um_pseudospots"]
    assert np.allclose(spots["radius"], 27.5)
    centres = spots.get_coordinates().to_numpy()
    assert np.median(cKDTree(centres).query(centres, 2)[0][:, 1]) == pytest.approx(100)
    inside = cKDTree(bins.obsm["spatial"]).query_ball_point(centres, 27.5)
    for row in (0, len(centres) // 2, len(centres) - 1):
        assert np.allclose(pooled.X[row].toarray(), bins.X[inside[row]].sum(axis=0))
        assert pooled.obs["n_pooled"].iloc[row] == len(inside[row])
    assert (pooled.obs["array_row"] + pooled.obs["array_col"]).mod(2).eq(0).all()


def test_pooled_bins_are_like_the_spots_of_the_same_tissue(sdata):
    """The same genes are high in the same regions, whichever way they are measured."""
    nh.pp.pseudospots(sdata, table_key="square_008um")

    def contrast(table: sd.SpatialData, fraction: np.ndarray) -> np.ndarray:
        values = table.X.toarray() / table.X.sum(axis=1)
        return np.log(values[fraction > 0.7].mean(axis=0) / values[fraction < 0.2].mean(axis=0))

    spots = sdata["table"]
    pooled, bins = sdata["pseudospots"], sdata["square_008um"]
    _, near = cKDTree(bins.obsm["spatial"]).query(pooled.obsm["spatial"], 37)
    fraction = bins.obs["fraction_tumour"].to_numpy()[near].mean(axis=1)
    a, b = contrast(spots, spots.obs["fraction_tumour"].to_numpy()), contrast(pooled, fraction)
    assert np.corrcoef(a, b)[0, 1] > 0.9


def test_other_sizes_and_squares(sdata):
    nh.pp.pseudospots(sdata, table_key="cells", size_um=100, pitch_um=100, shape="square", key_added="legacy")
    centres = sdata["legacy"].obsm["spatial"]
    assert np.allclose(cKDTree(centres).query(centres, 2)[0][:, 1], 100)
    share = sdata["legacy"].X.sum() / sdata["cells"].X.sum()
    assert share == pytest.approx(np.pi / 4, abs=0.06)  # circles that touch


def test_every_section_of_a_table(tmp_path):
    two = nh.datasets.synthetic(2, width_um=600, n_genes=14, bins_um=16)
    nh.pp.pseudospots(two, table_key="square_016um")
    assert set(two["pseudospots"].obs["region"]) == {f"section_{i}_square_016um_pseudospots" for i in (0, 1)}
    assert len(nh.data.section.locate_sections(two, nh._options.Elements.of("pseudospots"))) == 2


def test_patches_and_fields_have_one_size_in_all_technologies(sdata, tiny):
    """Visium and pooled bins are trained on together; what is seen of both is the same in µm."""
    half = sdata["section_0_image"]["scale0"]["image"].transpose("y", "x", "c").values[::2, ::2]

    def on_half(table: ad.AnnData) -> sd.SpatialData:
        table = table.copy()
        table.obsm["spatial"] = table.obsm["spatial"] / 2
        table.obs = table.obs.drop(columns=["region", "spot_id"])
        return nh.io.from_anndata(table, half, microns_per_pixel=2, spot_diameter=55)

    hd = sdata.subset(["section_0_image", "section_0_square_008um", "square_008um"])
    nh.pp.pseudospots(hd, key_added="table")  # of the same name as that of Visium
    model = nh.tl.train({"visium": on_half(sdata["table"]), "hd": hd}, table_key="table", **tiny)
    del hd.tables["square_008um"]
    assert model.patch_um == pytest.approx(75, rel=0.01)
    cohort = nh.data.cohort.collect({"twin": on_half(hd["table"]), "hd": hd})
    assert [round(section.geometry.microns_per_pixel, 3) for section in cohort.sections] == [2.0, 1.0]
    for field in (1.0, 2.5):  # patches of the same places are the same tissue, whatever the pixels
        a, b = (part.astype(float) for part in nh.data.inputs.cut_patches(cohort, field * cohort.patch_um, 16, None))
        assert np.corrcoef(a.ravel(), b.ravel())[0, 1] > 0.9


def test_sizes_that_differ_are_warned_of(sdata, tiny, caplog):
    nh.pp.pseudospots(sdata, table_key="square_008um", size_um=90, pitch_um=100, key_added="wide")
    wide = sdata.subset(["section_0_image", "section_0_square_008um_wide", "wide"])
    wide.tables["table"] = wide.tables.pop("wide")
    spots = sdata.subset(["section_0_image", "section_0_spots", "table"])
    with caplog.at_level(logging.WARNING, "nh2st_scverse"):
        nh.tl.train({"a": spots, "b": wide}, groups=["p", "q"], **tiny)
    assert "places of different sizes" in caplog.text and "nh.pp.pseudospots" in caplog.text


@pytest.mark.parametrize(
    ("given", "error", "message"),
    [
        ({"table_key": "cells", "size_um": 120, "pitch_um": 100}, ValueError, "size_um=120 above pitch_um=100"),
        ({"table_key": "cells", "size_um": 0}, ValueError, "size_um"),
        ({"table_key": "cells", "shape": "round"}, ValueError, "shape to be one of"),
        ({"table_key": "cells", "min_counts": 10**9}, ValueError, "1000000000 counts, found none"),
        ({"table_key": "cells", "key_added": "cells"}, ValueError, "are there already"),
        ({}, KeyError, "pass table_key="),
        ({"points_key": "transcripts"}, KeyError, "transcripts"),
    ],
)
def test_what_cannot_be(sdata, given, error, message):
    before = sorted(name for _, name, _ in sdata.gen_elements())
    with pytest.raises(error, match=message):
        nh.pp.pseudospots(sdata, **given)
    assert sorted(name for _, name, _ in sdata.gen_elements()) == before


def test_logarithms_are_not_summed(sdata):
    sdata["cells"].X = sdata["cells"].X.log1p()
    with pytest.raises(ValueError, match="Expected counts, which are summed"):
        nh.pp.pseudospots(sdata, table_key="cells")
