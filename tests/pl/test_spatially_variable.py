from __future__ import annotations

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
from scipy.stats import spearmanr

import nh2st_scverse as nh


def add_moran(sdata, names, n_genes=30):
    rng = np.random.default_rng(0)
    parts = []
    for name in names:
        measured = rng.uniform(0, 0.5, n_genes)
        values = {"measured": measured, "predicted": 0.3 + 0.8 * measured + 0.05 * rng.normal(size=n_genes)}
        parts.append(pd.DataFrame({"section": name, "gene": [f"g{i}" for i in range(n_genes)]} | values))
    sdata["table"].uns["nh2st_moran"] = pd.concat(parts, ignore_index=True)


def test_one_panel_per_section(two, state, tmp_path):
    names = ["section_0_spots", "section_1_spots"]
    add_moran(two, names)
    before = state(two)
    axes = nh.pl.spatially_variable(two, n_top=5, save=tmp_path / "moran", return_ax=True)
    moran = two["table"].uns["nh2st_moran"]
    for ax, name in zip(axes, names, strict=True):
        own = moran[moran["section"] == name]
        np.testing.assert_allclose(ax.collections[0].get_offsets(), own[["measured", "predicted"]])
        rank = spearmanr(own["measured"], own["predicted"]).statistic
        assert ax.get_title() == f"{name.removesuffix('_spots')}  rank correlation {rank:.2f}"
        named = {text.get_text(): text.xy for text in ax.texts}
        top = own.nlargest(5, "measured").set_index("gene")
        assert set(named) == set(top.index)
        assert all(tuple(top.loc[gene, ["measured", "predicted"]]) == xy for gene, xy in named.items())
    assert (tmp_path / "moran.png").stat().st_size > 0
    assert state(two) == before


def test_one_of_the_sections_and_no_names(two):
    add_moran(two, ["section_0_spots", "section_1_spots"])
    (ax,) = nh.pl.spatially_variable(two, n_top=0, shapes_key="section_1_spots", return_ax=True)
    assert not ax.texts and ax.get_title().startswith("rank correlation")
    assert nh.pl.spatially_variable(two) is None


def test_what_biology_writes_can_be_drawn(sdata):
    sdata["table"].uns["nh2st"]["json"] = '{"config": {}}'
    found = nh.tl.biology(sdata)
    (ax,) = nh.pl.spatially_variable(sdata, return_ax=True)
    assert ax.get_title() == f"rank correlation {found['moran_spearman'].iloc[0]:.2f}"
    assert len(ax.collections[0].get_offsets()) == 40


def test_wrong_arguments(sdata):
    with pytest.raises(KeyError, match=r"uns\['nh2st_moran'\], found nothing there.*nh\.tl\.biology\(sdata\)"):
        nh.pl.spatially_variable(sdata)
    with pytest.raises(KeyError, match=r"key='other'.*nh\.tl\.predict_expression"):
        nh.pl.spatially_variable(sdata, key="other")
    with pytest.raises(ValueError, match="n_top of 0 or more, found -1"):
        nh.pl.spatially_variable(sdata, n_top=-1)
    add_moran(sdata, ["section_0_spots"])
    with pytest.raises(KeyError, match=r"shapes_key='x' is not there.*section_0_spots"):
        nh.pl.spatially_variable(sdata, shapes_key="x")
    assert not plt.get_fignums()
