from __future__ import annotations

import matplotlib.pyplot as plt
import numpy as np
import pytest

import nh2st_scverse as nh
from nh2st_scverse.data.section import locate_sections


@pytest.fixture
def featured(two):
    """Two sections with features: those of the spots left and right of the middle point in two directions."""
    table = two["table"]
    features = np.random.default_rng(0).normal(size=(table.n_obs, 8)).astype(np.float32)
    table.obsm["nh2st_features"] = features
    table.uns["nh2st"]["patch_um"] = 60.0
    return two


def test_a_spot_its_patches_and_hyperedges(featured, state, tmp_path):
    before = state(featured)
    table = featured["table"]
    section = locate_sections(featured)[1]
    at = int(np.argmin(np.linalg.norm(section.xy_um - section.xy_um.mean(axis=0), axis=1)))
    name = table.obs_names[section.rows[at]]
    tissue, patches, edges = nh.pl.neighbourhood(featured, name, save=tmp_path / "spot", return_ax=True)
    assert tissue.get_title() == f"{name}  section_1"
    nodes = section.neighbours.nodes[at]
    frames = {text.get_text(): frame for text, frame in zip(tissue.texts, tissue.patches, strict=True)}
    for i, node in enumerate(nodes):
        frame = frames[str(i)]
        assert frame.get_width() == frame.get_height() == 60
        np.testing.assert_allclose(frame.get_center(), section.xy_um[node] - section.xy_um[at], atol=1e-6)
    assert patches.get_title() == "patches of 60 µm, by distance" and len(patches.texts) == 9

    # three nodes most alike by cosine of the standardised features, and the node itself, in every hyperedge
    x = table.obsm["nh2st_features"][section.rows]
    x = ((x - x.mean(axis=0)) / x.std(axis=0))[nodes]
    x = x / np.linalg.norm(x, axis=1, keepdims=True)
    drawn = np.concatenate([c.get_offsets() for c in edges.collections]).astype(int)
    for edge in range(9):
        alike = np.argsort(-(x @ x[edge]))[:4]
        assert set(drawn[drawn[:, 0] == edge, 1]) == set(alike)
    degree = sum(0 in drawn[drawn[:, 0] == edge, 1] for edge in range(9))
    assert edges.get_title() == f"hyperedges: patch 0 is in {degree} of 9"
    assert (tmp_path / "spot.png").stat().st_size > 0
    assert state(featured) == before


def test_without_a_name_the_spot_in_the_middle(featured):
    del featured["table"].uns["nh2st"]
    tissue, patches, _ = nh.pl.neighbourhood(featured, return_ax=True)
    name = tissue.get_title().split()[0]
    section = locate_sections(featured)[0]
    row = featured["table"].obs_names.get_loc(name)
    away = section.xy_um[section.rows == row][0] - (section.xy_um.min(axis=0) + section.xy_um.max(axis=0)) / 2
    assert np.abs(away).max() < 100
    assert patches.get_title() == "patches of 75 µm, by distance"  # the default for this spacing


@pytest.fixture(scope="module")
def trained():
    """Two sections with features, and a model of six nodes that was trained on them."""
    sdata = nh.datasets.synthetic(n_sections=2, width_um=1200)
    table = sdata["table"]
    table.obsm["mine"] = np.random.default_rng(0).normal(size=(table.n_obs, 12)).astype(np.float32)
    table.obsm["nh2st_features"] = table.obsm["mine"]  # where those of an encoder are left
    settings = {"max_epochs": 2, "n_members": 1, "n_nodes": 6, "landmarks": 20, "embedding": 16}
    return sdata, nh.tl.train(sdata, encoder=nh.encoders.Precomputed("mine"), n_genes=5, progress=False, **settings)


def test_with_a_model_its_attention(trained, tmp_path):
    sdata, model = trained
    section = locate_sections(sdata, n_nodes=6)[1]
    shares = model.attention(section, sdata["table"].obsm["nh2st_features"][section.rows])
    at = int(np.nanargmax(shares.std(axis=1)))
    name = sdata["table"].obs_names[section.rows[at]]
    tissue, patches, _ = nh.pl.neighbourhood(sdata, name, model=model, save=tmp_path / "spot", return_ax=True)
    shares = shares[at][section.neighbours.mask[at]]
    assert patches.get_title() == f"attention to patches of 75 µm ({100 / len(shares):.0f} % if equal)"
    labels = [text.get_text() for text in patches.texts if text.get_text().endswith("%")]
    assert labels == [f"{100 * share:.0f} %" for share in shares]
    numbers = [text.get_text() for text in patches.texts if not text.get_text().endswith("%")]
    assert numbers == [str(i) for i in range(len(shares))]

    # the frames in both panels are as wide as the attention says; those on the tissue are drawn from the last one on
    widths = [frame.get_linewidth() for frame in patches.patches]
    np.testing.assert_allclose(widths, 2 * len(shares) * shares, rtol=1e-5)
    np.testing.assert_allclose([frame.get_linewidth() for frame in tissue.patches[::-1]], widths)
    assert (tmp_path / "spot.png").stat().st_size > 0


def test_models_without_attention_or_with_other_features(trained, featured):
    sdata, model = trained
    with pytest.raises(ValueError, match=r"found 8 in section .*nh\.tl\.predict_expression\(sdata, model=model\)"):
        nh.pl.neighbourhood(featured, model=model)
    with pytest.raises(TypeError, match=r"Expected model= to be an NH2ST model, .* found 'model'"):
        nh.pl.neighbourhood(sdata, model="model")

    def with_config(**changes):
        return nh.NH2ST(**{**vars(model), "config": nh.nn.Config.preset(**changes)})

    with pytest.raises(ValueError, match="preset 'paper' predicts from the spot alone"):
        nh.pl.neighbourhood(sdata, model=with_config(name="paper"))
    with pytest.raises(ValueError, match="The encoder of this model was trained with it: it looks at patches"):
        nh.pl.neighbourhood(sdata, model=with_config(fine_tune=True))
    assert not plt.get_fignums()


def test_wrong_arguments(two, featured):
    with pytest.raises(KeyError, match=r"No spot 'nonsense' in the table\. It has \d+ spots, e\.g\."):
        nh.pl.neighbourhood(featured, "nonsense")
    other = featured["table"].obs_names[featured["table"].obs["region"] == "section_1_spots"][0]
    with pytest.raises(KeyError, match=rf"Spot '{other}' is in none of the sections \['section_0_spots'\]"):
        nh.pl.neighbourhood(featured, other, shapes_key="section_0_spots")
    with pytest.raises(TypeError, match="Expected a SpatialData object, found AnnData"):
        nh.pl.neighbourhood(featured["table"])
    del featured["table"].obsm["nh2st_features"]
    with pytest.raises(KeyError, match=r"features of the images in obsm\['nh2st_features'\].*predict_expression"):
        nh.pl.neighbourhood(featured)
    assert not plt.get_fignums()
