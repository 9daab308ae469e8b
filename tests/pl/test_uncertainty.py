from __future__ import annotations

import matplotlib.pyplot as plt
import numpy as np
import pytest
from matplotlib.collections import EllipseCollection

import nh2st_scverse as nh
from nh2st_scverse._constants import LOG_UNIT


def spots(ax):
    return next(c for c in ax.collections if isinstance(c, EllipseCollection))


def add_std(sdata):
    table = sdata["table"]
    table.layers["nh2st_std"] = 0.1 * table.layers["nh2st"] + 0.2
    return table


def test_prediction_beside_its_standard_deviation(two, state, tmp_path):
    table = add_std(two)
    before = state(two)
    genes = list(table.var_names[table.var["nh2st"]][:2])
    axes = nh.pl.uncertainty(two, genes, save=tmp_path / "uncertainty", return_ax=True)
    assert axes.shape == (4, 3)  # genes x sections
    for i, row in enumerate(axes):
        gene, rows = genes[i // 2], np.flatnonzero(table.obs["region"] == f"section_{i % 2}_spots")
        at = table.var_names.get_loc(gene)
        np.testing.assert_allclose(spots(row[1]).get_array(), table.layers["nh2st"][rows, at])
        np.testing.assert_allclose(spots(row[2]).get_array(), table.layers["nh2st_std"][rows, at])
        assert row[2].get_title() == f"{gene}  standard deviation"
        assert [ax.child_axes[0].get_ylabel() for ax in row[1:]] == [LOG_UNIT] * 2
    # one scale for a gene in all sections
    assert spots(axes[0, 2]).get_clim() == spots(axes[1, 2]).get_clim() != spots(axes[2, 2]).get_clim()
    assert (tmp_path / "uncertainty.png").stat().st_size > 0
    assert state(two) == before


def test_standard_deviations_that_hardly_differ_look_alike(sdata):
    table = add_std(sdata)
    table.layers["nh2st_std"] = np.where(np.arange(table.n_obs)[:, None] % 2, 0.60, 0.61) + 0 * table.layers["nh2st"]
    gene = table.var["nh2st_pearson"].idxmax()
    low, high = spots(nh.pl.uncertainty(sdata, gene, return_ax=True)[0, 2]).get_clim()
    assert low == pytest.approx(0.9 * 0.605, abs=0.005) and high == pytest.approx(1.1 * 0.605, abs=0.005)


def test_novelty_is_a_fourth_column(sdata):
    table = add_std(sdata)
    table.obs["nh2st_novelty"] = np.linspace(0, 1, table.n_obs)
    assert nh.pl.uncertainty(sdata) is None
    best = table.var["nh2st_pearson"].idxmax()
    axes = nh.pl.uncertainty(sdata, best, return_ax=True)
    assert axes.shape == (1, 4)
    np.testing.assert_allclose(spots(axes[0, 3]).get_array(), table.obs["nh2st_novelty"])
    assert axes[0, 3].get_title() == "novelty of the tissue"
    assert axes[0, 3].child_axes[0].get_ylabel().startswith("novelty (above 1:")
    # one scale for all slides: dark is unlike the training tissue, and not the least familiar spot of this slide
    assert spots(axes[0, 3]).get_clim() == (0.5, 1.5)
    table.obs["nh2st_novelty"] *= 4
    low, high = spots(nh.pl.uncertainty(sdata, best, return_ax=True)[0, 3]).get_clim()
    assert low == 0.5 and 3.5 < high < 4
    axes = nh.pl.uncertainty(sdata, list(table.var_names[table.var["nh2st"]][:2]), return_ax=True)
    assert [axes[1, i] is axes[0, i] for i in range(4)] == [True, False, False, True]  # H&E and novelty once


def test_wrong_arguments(sdata):
    with pytest.raises(KeyError, match=r"layers\['nh2st_std'\], found the layers \['nh2st'\].*uncertainty=True"):
        nh.pl.uncertainty(sdata)
    add_std(sdata)
    with pytest.raises(KeyError, match=r"key='other'.*nh\.tl\.predict_expression"):
        nh.pl.uncertainty(sdata, key="other")
    with pytest.raises(KeyError, match=r"Genes \['nonsense'\] are not in the table"):
        nh.pl.uncertainty(sdata, "nonsense")
    with pytest.raises(ValueError, match="size to be a number above 0, found -1"):
        nh.pl.uncertainty(sdata, size=-1)
    assert not plt.get_fignums()
