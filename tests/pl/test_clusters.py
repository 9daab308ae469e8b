from __future__ import annotations

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
from matplotlib.colors import to_hex
from sklearn.metrics import adjusted_rand_score

import nh2st_scverse as nh
from nh2st_scverse.pl._clusters import match_labels


def colours(ax):
    return np.array([to_hex(c) for c in ax.collections[0].get_facecolor()])


def legend(ax):
    handles = ax.get_legend().legend_handles
    return {h.get_label(): to_hex(h.get_color()) for h in handles}


@pytest.fixture
def clustered(sdata):
    """Measured clusters are the tissue; predicted ones are the same under other names, but for one spot in ten."""
    obs = sdata["table"].obs
    labels = obs["tissue"].cat.codes.to_numpy()
    obs["a"] = pd.Categorical(labels.astype(str))
    n = labels.max() + 1
    moved = np.where(np.arange(len(labels)) % 10 == 0, labels + 1, labels) % n
    obs["b"] = pd.Categorical([str((label + 1) % n + 10) for label in moved])
    return sdata


def test_matched_clusters_have_one_colour(clustered):
    obs = clustered["table"].obs
    axes = nh.pl.clusters(clustered, "a", "b", return_ax=True)
    assert axes.shape == (1, 2)
    rand = adjusted_rand_score(obs["a"], obs["b"])
    assert 0.5 < rand < 1
    assert axes[0, 0].get_title() == "measured\na"
    assert axes[0, 1].get_title() == f"predicted  ARI = {rand:z.2f}\nb"
    same = colours(axes[0, 0]) == colours(axes[0, 1])
    np.testing.assert_array_equal(same, np.arange(len(obs)) % 10 != 0)
    assert set(legend(axes[0, 0]).values()) == set(legend(axes[0, 1]).values())
    assert list(legend(axes[0, 1])) == sorted(set(obs["b"]))  # under its own names, in their order
    assert len(set(colours(axes[0, 0]))) == obs["a"].nunique()
    np.testing.assert_allclose(axes[0, 1].collections[0].get_offsets(), clustered["table"].obsm["spatial"], atol=1e-6)


def test_identical_clusters(clustered):
    axes = nh.pl.clusters(clustered, "a", "a", return_ax=True)
    assert "ARI = 1.00" in axes[0, 1].get_title()
    np.testing.assert_array_equal(colours(axes[0, 0]), colours(axes[0, 1]))


def test_clusters_without_a_partner_have_colours_of_their_own(clustered):
    obs = clustered["table"].obs
    obs["many"] = (np.arange(len(obs)) % 9).astype(str)
    axes = nh.pl.clusters(clustered, "a", "many", return_ax=True)
    first, second = legend(axes[0, 0]), legend(axes[0, 1])
    assert len(set(second.values())) == 9
    assert len(set(second.values()) - set(first.values())) == 9 - len(first)
    axes = nh.pl.clusters(clustered, "many", "a", return_ax=True)
    assert set(legend(axes[0, 1]).values()) < set(legend(axes[0, 0]).values())


def test_matching_is_one_to_one_and_best_overall():
    measured = pd.Series(list("AAAAAAAABBB"))
    predicted = pd.Series(list("xxxxyyyyyyy"))  # y shares most spots with A, but x has nobody else
    assert match_labels(measured, predicted) == {"x": "A", "y": "B"}
    assert match_labels(pd.Series(list("AABB")), pd.Series(list("xyyy"))) == {"x": "A", "y": "B"}


def test_colours_that_scanpy_stored_are_used(clustered):
    table = clustered["table"]
    stored = ["#ff0000", "#00ff00", "#0000ff", "#ffff00"][: len(table.obs["a"].cat.categories)]
    table.uns["a_colors"] = stored
    axes = nh.pl.clusters(clustered, "a", "b", return_ax=True)
    assert list(legend(axes[0, 0]).values()) == stored
    assert list(table.uns["a_colors"]) == stored


def test_numbers_are_in_the_order_of_numbers(clustered):
    obs = clustered["table"].obs
    obs["n"] = np.arange(len(obs)) % 12
    axes = nh.pl.clusters(clustered, "n", "n", return_ax=True)
    assert list(legend(axes[0, 0])) == [str(i) for i in range(12)]
    obs["n"] = obs["n"].astype(str).astype("category")  # "0", "1", "10", "11", "2"
    assert list(legend(nh.pl.clusters(clustered, "n", "n", return_ax=True)[0, 1])) == [str(i) for i in range(12)]


def test_an_order_that_was_chosen_is_kept(clustered):
    obs = clustered["table"].obs
    names = ["stroma", "fat", "immune"]
    obs["named"] = pd.Categorical(np.resize(names, len(obs)), categories=names)
    obs["ranked"] = pd.Categorical(np.resize(["2", "1"], len(obs)), categories=["2", "1"], ordered=True)
    axes = nh.pl.clusters(clustered, "named", "ranked", return_ax=True)
    assert [list(legend(ax)) for ax in axes[0]] == [names, ["2", "1"]]


def test_spots_without_a_label_are_grey_and_left_out(clustered):
    obs = clustered["table"].obs
    obs.loc[obs.index[:30], "b"] = np.nan
    axes = nh.pl.clusters(clustered, "a", "b", return_ax=True)
    assert f"ARI = {adjusted_rand_score(obs['a'][30:], obs['b'][30:]):z.2f}" in axes[0, 1].get_title()
    assert set(colours(axes[0, 1])[:30]) == {"#959595"}
    assert "#959595" not in colours(axes[0, 1])[30:]
    assert axes[0, 1].get_xlabel() == "grey: no label"


def test_several_sections(two):
    obs = two["table"].obs
    obs["b"] = np.where(np.arange(len(obs)) % 3 == 0, "x", obs["tissue"].astype(str))
    axes = nh.pl.clusters(two, "tissue", "b", return_ax=True)
    assert axes.shape == (2, 2)
    assert [ax.get_ylabel() for ax in axes[:, 0]] == ["section_0", "section_1"]
    assert f"{adjusted_rand_score(obs['tissue'], obs['b']):z.2f}" in axes[0, 1].get_title()
    assert axes[1, 1].get_title() == ""
    for i in range(2):
        assert len(colours(axes[i, 0])) == (obs["region"] == f"section_{i}_spots").sum()
    one = nh.pl.clusters(two, "tissue", "b", shapes_key="section_1_spots", return_ax=True)
    own = obs[obs["region"] == "section_1_spots"]
    assert f"{adjusted_rand_score(own['tissue'], own['b']):z.2f}" in one[0, 1].get_title()


def test_save_writes_a_file_and_the_object_is_unchanged(clustered, state, tmp_path):
    before = state(clustered)
    assert nh.pl.clusters(clustered, "a", "b", save=tmp_path / "clusters.png") is None
    assert (tmp_path / "clusters.png").stat().st_size > 0
    assert state(clustered) == before


def test_wrong_arguments(clustered):
    obs = clustered["table"].obs
    with pytest.raises(KeyError, match=r"Expected columns \['a', 'leiden'\].*sc\.tl\.leiden"):
        nh.pl.clusters(clustered, "a", "leiden")
    with pytest.raises(KeyError, match="table_key='other' is not there"):
        nh.pl.clusters(clustered, "a", "b", table_key="other")
    with pytest.raises(ValueError, match=r"Expected clusters in obs\['context_tumour'\], found \d+ different values"):
        nh.pl.clusters(clustered, "a", "context_tumour")
    with pytest.raises(ValueError, match="size to be a number above 0"):
        nh.pl.clusters(clustered, "a", "b", size=-1)
    obs["b"] = np.nan
    with pytest.raises(ValueError, match="label in both 'a' and 'b', found none"):
        nh.pl.clusters(clustered, "a", "b")
    with pytest.raises(TypeError, match="Expected a SpatialData object, found AnnData"):
        nh.pl.clusters(clustered["table"], "a", "b")
    assert not plt.get_fignums()
