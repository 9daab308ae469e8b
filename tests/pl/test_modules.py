from __future__ import annotations

import numpy as np
import pytest

import nh2st_scverse as nh
from nh2st_scverse.data.expression import measured


@pytest.fixture
def found(two):
    genes = list(two["table"].var_names[two["table"].var["nh2st"]])
    return nh.tl.modules(two, {"first": genes[:10], "second": genes[10:22], "third": genes[22:]})


def test_what_is_drawn_are_the_means_of_the_genes(two, found, state):
    before = state(two)
    axes = nh.pl.modules(two, found, ["second", "first"], return_ax=True)
    assert state(two) == before
    assert axes.shape == (4, 3)  # sets x sections
    table = two["table"]
    at = table.var_names.get_indexer(found.loc["second", "genes"].split(", "))
    rows = np.flatnonzero(table.obs["region"] == "section_1_spots")
    for ax, values in ((axes[1, 1], measured(table)), (axes[1, 2], table.layers["nh2st"])):
        np.testing.assert_allclose(ax.collections[0].get_array(), values[rows][:, at].mean(axis=1), rtol=1e-5)
    assert axes[0, 1].get_title() == "second  measured"
    r, ceiling = found.loc["second", ["pearson", "ceiling"]]
    assert axes[0, 2].get_title().replace("\n", "  ") == f"second  predicted  r = {r:.2f} of {ceiling:.2f}"
    assert axes[0, 1].collections[0].get_clim() == axes[1, 2].collections[0].get_clim()


def test_a_table_of_predictions_has_no_measured_column(two, found):
    table = two["table"]
    del two.tables["table"]
    new = table[:, table.var["nh2st"].to_numpy()].copy()
    new.X = new.layers.pop("nh2st")
    new.uns["nh2st"] = {**new.uns["nh2st"], "values_in": "X"}
    two.tables["predicted"] = new
    assert nh.pl.modules(two, found, "first", shapes_key="section_0_spots", return_ax=True).shape == (1, 2)


def test_what_cannot_be_drawn_is_told(two, found):
    with pytest.raises(KeyError, match=r"Sets \['fourth'\] are not in .* Available: \["):
        nh.pl.modules(two, found, ["first", "fourth"])
    with pytest.raises(ValueError, match="found an empty list"):
        nh.pl.modules(two, found, [])
    with pytest.raises(ValueError, match=r"what nh\.tl\.modules returned, found dict"):
        nh.pl.modules(two, {"first": ["A"]})
    del two["table"].obsm["nh2st_modules"]
    with pytest.raises(KeyError, match=r"call nh\.tl\.modules\(sdata, gene_sets\) first"):
        nh.pl.modules(two, found)
