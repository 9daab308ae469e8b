from __future__ import annotations

import matplotlib.pyplot as plt
import numpy as np
import pytest

import nh2st_scverse as nh
from nh2st_scverse._constants import LOG_UNIT
from nh2st_scverse.data.expression import measured


def genes_of(sdata, n):
    table = sdata["table"]
    return list(table.var_names[table.var["nh2st"]][:n])


def points(ax):
    offsets = np.asarray(ax.collections[0].get_offsets())
    return offsets[np.lexsort(offsets.T)]


def test_one_panel_per_gene_with_every_spot(sdata, state):
    before = state(sdata)
    table = sdata["table"]
    table.layers["nh2st"][:3] = np.nan  # not predicted
    genes = genes_of(sdata, 6)[::-1]
    table.var["nh2st_ceiling"] = 0.9
    axes = nh.pl.scatter(sdata, genes, ncols=4, return_ax=True)
    assert axes.shape == (6,)
    for ax, gene in zip(axes, genes, strict=True):
        at = table.var_names.get_loc(gene)
        expected = np.column_stack([measured(table)[3:, at], table.layers["nh2st"][3:, at]])
        np.testing.assert_allclose(points(ax), expected[np.lexsort(expected.T)], rtol=1e-5)
        assert ax.get_title() == f"{gene}  r = {table.var.loc[gene, 'nh2st_pearson']:.2f} of 0.90"
        assert ax.get_xlim() == ax.get_ylim()  # the slope can be read
        (line,) = ax.lines
        np.testing.assert_array_equal(line.get_xdata(), line.get_ydata())
    figure = axes[0].figure
    assert figure.get_supxlabel() == f"measured, {LOG_UNIT}" and not figure.legends
    assert sum(ax.axison for ax in figure.axes) == 6 < len(figure.axes)
    del table.var["nh2st_ceiling"]
    table.layers["nh2st"][:3] = 0
    assert set(state(sdata)) == set(before)


def test_sections_have_colours_and_a_legend(two, tmp_path):
    axes = nh.pl.scatter(two, save=tmp_path / "scatter", return_ax=True)
    assert len(axes) == 4  # the best genes
    best = two["table"].var["nh2st_pearson"].nlargest(4).index
    assert [ax.get_title().split()[0] for ax in axes] == list(best)
    assert len(np.unique(axes[0].collections[0].get_facecolors()[:, :3], axis=0)) == 2
    (legend,) = axes[0].figure.legends
    assert [text.get_text() for text in legend.get_texts()] == ["section_0", "section_1"]
    assert (tmp_path / "scatter.png").stat().st_size > 0
    assert nh.pl.scatter(two, best[0]) is None


def test_wrong_arguments(sdata):
    with pytest.raises(TypeError, match="Expected a SpatialData object, found AnnData"):
        nh.pl.scatter(sdata["table"])
    with pytest.raises(KeyError, match=r"key='other'.*nh\.tl\.predict_expression"):
        nh.pl.scatter(sdata, key="other")
    with pytest.raises(KeyError, match=r"Genes \['nonsense'\] are not in the table"):
        nh.pl.scatter(sdata, "nonsense")
    with pytest.raises(ValueError, match="empty list"):
        nh.pl.scatter(sdata, [])
    for name, wanted in {"size": "a number above 0", "ncols": "a whole number of at least 1"}.items():
        with pytest.raises(ValueError, match=f"{name} to be {wanted}, found 0"):
            nh.pl.scatter(sdata, **{name: 0})
    table = sdata["table"]
    genes = table.var["nh2st"].to_numpy()
    only = table[:, genes].copy()
    only.X = only.layers.pop("nh2st")
    del only.var["nh2st"]
    sdata["table"] = only
    with pytest.raises(ValueError, match="found a table that holds predictions only"):
        nh.pl.scatter(sdata)
    assert not plt.get_fignums()
