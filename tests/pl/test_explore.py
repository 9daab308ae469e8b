from __future__ import annotations

import base64
import io
import sys
from copy import deepcopy

import anndata as ad
import matplotlib as mpl
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
from anndata import AnnData
from PIL import Image
from spatialdata import SpatialData
from spatialdata.models import TableModel

import nh2st_scverse as nh
from nh2st_scverse._constants import LOG_UNIT, TRUSTED
from nh2st_scverse.data.expression import measured
from nh2st_scverse.pl._explore_region import write_region


def floats(data: bytes) -> np.ndarray:
    return np.frombuffer(data, dtype=np.float32)


def maps(panel) -> dict[str, np.ndarray]:
    """What the browser is sent, by the name of the map."""
    names = [one["name"] for one in panel.canvas.maps]
    return dict(zip(names, floats(panel.canvas.values).reshape(len(names), -1), strict=True))


def rows_of(sdata, section: str) -> np.ndarray:
    return np.flatnonzero(sdata["table"].obs["region"] == section)


@pytest.fixture(scope="module")
def rich(predicted):
    """Two sections with all there may be; made once, since looking changes nothing."""
    two = predicted(n_sections=2, width_um=1200)
    table = two["table"]
    table.layers["nh2st_std"] = 0.1 * table.layers["nh2st"] + 0.2
    table.obs["nh2st_novelty"] = np.linspace(0, 2, table.n_obs)
    table.var["nh2st_ceiling"] = 1 - table.var["nh2st_pearson"] / 2
    table.obsm["nh2st_features"] = np.random.default_rng(0).normal(size=(table.n_obs, 8)).astype(np.float32)
    table.uns["nh2st"]["patch_um"] = 60.0
    return two


def test_what_is_shown_first(rich, state):
    before = state(rich)
    panel = nh.explore(rich)
    table, rows = rich["table"], rows_of(rich, "section_0_spots")
    best = table.var["nh2st_pearson"].idxmax()
    at = table.var_names.get_loc(best)
    assert (panel.gene, panel.section, panel.spot) == (best, "section_0_spots", None)
    shown = maps(panel)
    np.testing.assert_allclose(shown.pop("measured"), measured(table)[rows, at], rtol=1e-5)
    np.testing.assert_array_equal(shown.pop("predicted"), table.layers["nh2st"][rows, at])
    np.testing.assert_array_equal(shown.pop("standard deviation"), table.layers["nh2st_std"][rows, at])
    assert not shown
    first, second, third = panel.canvas.maps
    assert first["limits"] == second["limits"] != third["limits"]
    assert (first["cmap"], third["cmap"]) == ("viridis", "plasma_r")
    assert panel.canvas.colours["viridis"][0] == [int(c) for c in mpl.colormaps["viridis"](0.0, bytes=True)[:3]]
    assert {one["unit"] for one in panel.canvas.maps} == {LOG_UNIT}
    assert panel.canvas.trust == "r = 0.80 on held-out tissue, of 0.60 possible"
    xy = floats(panel.canvas.xy).reshape(-1, 2)
    left, right, bottom, top = panel.canvas.window
    assert len(xy) == len(rows) and ((xy > [left, top]) & (xy < [right, bottom])).all()
    np.testing.assert_allclose(floats(panel.canvas.radius), 27.5)  # µm
    height, width = np.asarray(Image.open(io.BytesIO(panel.canvas.image))).shape[:2]
    west, east, south, north = panel.canvas.image_extent
    assert width / height == pytest.approx((east - west) / (south - north), rel=1e-3)
    assert state(rich) == before


def test_genes_are_sorted_by_trust_and_searched(rich):
    panel = nh.explore(rich)
    var = rich["table"].var[rich["table"].var["nh2st"]]

    def listed() -> list[str]:
        return [name for _, name in panel.genes.list.options]

    assert listed() == list(var.sort_values("nh2st_pearson", ascending=False).index)
    assert panel.genes.list.options[0][0].split() == [listed()[0], "0.80", "of", "0.60"]
    panel.genes.order.value = "share"
    share = (var["nh2st_pearson"] / var["nh2st_ceiling"]).clip(-1, 1)
    assert (np.diff(share[listed()]) <= 0).all()
    panel.genes.order.value = None
    assert listed() == sorted(var.index)
    before = panel.gene
    panel.genes.search.value = "tumor"
    assert listed() and all("TUMOR" in name for name in listed()) and panel.gene == before
    panel.genes.search.value = listed()[-1].lower()
    assert panel.gene == panel.genes.list.value == panel.genes.search.value.upper() != before
    changed = maps(panel)["predicted"]
    panel.genes.search.value = "xyz"
    assert "no such gene" in panel.genes.note.value
    np.testing.assert_array_equal(maps(panel)["predicted"], changed)
    lacking = rich["table"].var_names[~rich["table"].var["nh2st"]][0]
    panel.genes.search.value = lacking
    assert panel.genes.note.value == f"{lacking} is measured but was not predicted"
    panel.genes.search.value = ""
    assert panel.genes.note.value == "40 of 40 genes" and panel.genes.list.value == panel.gene
    panel.genes.list.value = before
    assert panel.gene == panel.canvas.gene == before
    assert (maps(panel)["predicted"] != changed).any()


def test_a_click_shows_the_spot(rich):
    panel = nh.explore(rich)
    table, rows = rich["table"], rows_of(rich, "section_0_spots")
    panel.canvas.picked = 7  # as the browser does
    assert panel.spot == table.obs_names[rows[7]]
    assert panel.around.layout.display == ""
    wide = Image.open(io.BytesIO(panel.around.value)).size[0]
    assert 400 < wide < 800  # tissue and patches
    panel.hyperedges.value = True
    assert panel.hypergraph and Image.open(io.BytesIO(panel.around.value)).size[0] > 1.3 * wide
    at = table.var_names.get_loc(panel.gene)
    facts = panel.facts.value
    assert f"<td>predicted</td><td>{table.layers['nh2st'][rows[7], at]:.2f}</td>" in facts
    assert f"<td>measured</td><td>{measured(table)[rows[7], at]:.2f}</td>" in facts
    assert f"<td>novelty</td><td>{table.obs['nh2st_novelty'].iloc[rows[7]]:.2f}</td>" in facts
    values = table.layers["nh2st"][:, table.var["nh2st"]]
    z = ((values - values.mean(axis=0)) / values.std(axis=0))[rows[7]]
    z[table.var.loc[table.var["nh2st"], "nh2st_pearson"] < TRUSTED] = -np.inf  # the image does not show these
    highest = table.var_names[table.var["nh2st"]][z.argmax()]
    assert facts.split("other spots")[1].startswith(f"<table><tr><td>{highest}</td><td>{z.max():+.1f} sd")

    other = next(name for _, name in panel.genes.list.options if name != panel.gene)
    panel.gene = other
    assert f"<br>{other}, " in panel.facts.value and panel.canvas.picked == 7
    panel.spot = None
    assert (panel.canvas.picked, panel.facts.value, panel.around.layout.display) == (-1, "", "none")


def test_sections_one_at_a_time(rich):
    panel = nh.explore(rich)
    limits = [one["limits"] for one in panel.canvas.maps]
    panel.canvas.picked = 0
    panel.sections.value = "section_1_spots"
    rows = rows_of(rich, "section_1_spots")
    at = rich["table"].var_names.get_loc(panel.gene)
    assert panel.section == panel.canvas.section == "section_1_spots" and panel.spot is None
    assert panel.canvas.title == "H&E  section_1"
    np.testing.assert_array_equal(maps(panel)["predicted"], rich["table"].layers["nh2st"][rows, at])
    assert [one["limits"] for one in panel.canvas.maps] == limits  # a gene has one scale
    panel.spot = rich["table"].obs_names[rows_of(rich, "section_0_spots")[3]]
    assert (panel.section, panel.sections.value, panel.canvas.picked) == ("section_0_spots", "section_0_spots", 3)
    one = nh.explore(rich, shapes_key="section_1_spots")
    assert list(one.shown.sections) == ["section_1_spots"]


def test_zooming_in_brings_a_sharper_image(rich, predicted):
    fine = predicted(width_um=1200, microns_per_pixel=0.5)
    panel = nh.explore(rich)
    left, right, bottom, top = panel.canvas.window
    panel.canvas.view = [left + 300, top + 300, left + 500, top + 500]
    assert panel.canvas.tile == b""  # the image has no more pixels than are shown
    panel = nh.explore(fine)
    panel.canvas.view = [left, top, right, bottom]
    assert panel.canvas.tile == b""
    panel.canvas.view = [left + 300, top + 300, left + 500, top + 500]
    tile = Image.open(io.BytesIO(panel.canvas.tile))
    west, east, _, _ = panel.canvas.tile_extent
    whole = Image.open(io.BytesIO(panel.canvas.image))
    assert west <= left + 300 and east >= left + 500
    assert (east - west) / tile.size[0] < 0.9 * (right - left) / whole.size[0]  # µm per pixel


def test_arrows_walk_the_list_and_enter_takes_the_first_hit(rich):
    panel = nh.explore(rich)
    genes = panel.genes.found

    def press(**key: object) -> str:
        panel._key(key)  # as the browser tells
        return panel.gene

    assert press(step=1) == genes[1] == panel.genes.list.value
    assert press(step=1) == genes[2]
    assert press(step=-1) == genes[1]
    assert [press(step=-1), press(step=-1)] == [genes[0], genes[0]]
    panel.genes.search.value = "tumor"
    first = panel.genes.found[0]
    assert press(take="tumor") == first
    assert press(take="tum") == first
    assert press(take="") == first
    assert press(take="nonsense") == first


def test_a_list_of_genes_is_a_set(rich, state):
    before = state(rich)
    table, rows = rich["table"], rows_of(rich, "section_0_spots")
    genes = list(table.var_names[table.var["nh2st"]][:3])
    text = ", ".join(genes)
    panel = nh.explore(rich)
    panel.genes.search.value = text.lower() + ","
    assert panel.gene == panel.canvas.heading == text
    shown = maps(panel)
    assert set(shown) == {"measured", "predicted"}  # how the errors of genes go together is not known
    np.testing.assert_allclose(shown["predicted"], table[rows, genes].layers["nh2st"].mean(axis=1), rtol=1e-6)
    np.testing.assert_allclose(
        shown["measured"], measured(table)[rows][:, table.var_names.get_indexer(genes)].mean(axis=1), rtol=1e-5
    )
    # scored as by tl.modules
    here = f"; its 3 genes alone {table.var.loc[genes, 'nh2st_pearson'].mean():.2f} on held-out tissue"
    trust = panel.canvas.trust
    scored = deepcopy(rich)
    found = nh.tl.modules(scored, {"set": genes}).loc["set"]
    np.testing.assert_allclose(scored["table"].obsm["nh2st_modules"]["set"].iloc[rows], shown["predicted"], rtol=1e-6)
    assert trust == f"r = {found['pearson']:.2f} on these spots, of {found['ceiling']:.2f} possible{here}"

    panel.gene = f"T cells: {text}"
    assert (panel.canvas.heading, panel.gene) == ("T cells", f"T cells: {text}")
    panel.genes.search.value = ""
    best = panel.genes.found[0]
    other = next(gene for gene in genes if gene != best)
    panel._key({"take": f"{other.lower()}, {best[:-1]}"})  # the last one is completed
    assert panel.gene == f"{other}, {best}"
    assert nh.explore(rich, genes).gene == text
    assert nh.explore(rich, f"x: {text}").canvas.heading == "x"
    with pytest.raises(KeyError, match=r"Genes \['nonsense'\] are not in the table"):
        panel.gene = f"{genes[0]}, nonsense"
    assert state(rich) == before


def test_a_column_of_obs_is_a_map(rich):
    table, rows = rich["table"], rows_of(rich, "section_0_spots")
    panel = nh.explore(rich)
    assert [name for _, name in panel.columns.options] == ["", *panel.shown.columns()]
    assert {"tissue", "n_nuclei", "nh2st_novelty", "region"} <= set(panel.shown.columns())
    assert table.uns["spatialdata_attrs"]["instance_key"] not in panel.shown.columns()
    panel.columns.value = "nh2st_novelty"
    assert panel.column == "nh2st_novelty" == panel.canvas.maps[-1]["name"]
    np.testing.assert_allclose(maps(panel)["nh2st_novelty"], table.obs["nh2st_novelty"].iloc[rows], rtol=1e-6)

    table.obs["clusters"] = pd.Categorical(["b", "a"] * (table.n_obs // 2) + ["b"] * (table.n_obs % 2))
    table.obs.iloc[rows[4], table.obs.columns.get_loc("clusters")] = np.nan
    table.uns["clusters_colors"] = ["#112233", "#445566"]  # as scanpy stores them
    panel.column = "clusters"
    last = panel.canvas.maps[-1]
    assert (last["labels"], last["colours"]) == (["a", "b"], ["#112233", "#445566"])
    codes = table.obs["clusters"].cat.codes.to_numpy()[rows].astype(float)
    codes[4] = np.nan
    np.testing.assert_array_equal(maps(panel)["clusters"], codes)
    panel.canvas.picked = 0
    assert f"<td>clusters</td><td>{table.obs['clusters'].iloc[rows[0]]}</td>" in panel.facts.value
    with pytest.raises(KeyError, match=r"No column 'nonsense' of numbers or labels in obs\. Available: \['"):
        panel.column = "nonsense"
    panel.columns.value = ""
    assert panel.column is None and "clusters" not in maps(panel)
    panel.column = "tissue"
    panel.column = None
    assert panel.columns.label == "none" and "tissue" not in maps(panel)
    del table.obs["clusters"], table.uns["clusters_colors"]


def test_limits_and_colour_map_are_chosen(rich):
    panel = nh.explore(rich)
    automatic, values = panel.canvas.maps, panel.canvas.values
    low, high = panel.range.value
    assert [low, high] == pytest.approx(automatic[0]["limits"])
    assert panel.range.min <= low < high <= panel.range.max
    panel.range.value = (low, (low + high) / 2)
    assert panel.limits == (low, (low + high) / 2)
    assert [one["limits"][1] for one in panel.canvas.maps[:2]] == [panel.limits[1]] * 2
    assert panel.canvas.maps[2] == automatic[2] and panel.canvas.values == values
    panel.limits = (-5, 50)
    assert panel.range.value == (-5, 50) and panel.canvas.maps[1]["limits"] == [-5, 50]
    panel.colours.value = "magma"
    assert (panel.cmap, panel.canvas.maps[1]["cmap"]) == ("magma", "magma") and "magma" in panel.canvas.colours
    panel.cmap = "Blues"
    assert panel.colours.value == panel.canvas.maps[0]["cmap"] == "Blues"
    panel.gene = panel.genes.found[1]
    assert panel.limits is None and panel.range.value != (-5, 50)  # another gene has its own
    with pytest.raises(ValueError, match="low and a higher value"):
        panel.limits = (2, 1)
    with pytest.raises(ValueError, match="Expected cmap to be one of"):
        panel.cmap = "nonsense"


def test_two_sections_at_once(rich):
    panel = nh.explore(rich)
    assert panel.pictures.children == (panel.canvas,)
    panel.compared.value = "section_1_spots"
    assert panel.pictures.children == (panel.canvas, panel.second)
    first, second = panel.canvas, panel.second
    assert (first.section, second.section) == ("section_0_spots", "section_1_spots")
    assert [one["limits"] for one in first.maps] == [one["limits"] for one in second.maps]
    for left, right in ((0, 1), (3, 2)):  # µm: the same size
        assert first.window[right] - first.window[left] == pytest.approx(second.window[right] - second.window[left])
    rows = rows_of(rich, "section_1_spots")
    panel.gene = panel.genes.found[2]
    panel.column = "tissue"
    at = rich["table"].var_names.get_loc(panel.gene)
    shown = floats(second.values).reshape(4, -1)
    np.testing.assert_array_equal(shown[1], rich["table"].layers["nh2st"][rows, at])
    second.picked = 5
    assert panel.spot == rich["table"].obs_names[rows[5]] and first.picked == -1
    assert panel.section == "section_0_spots"
    first.picked = 2
    assert panel.spot == rich["table"].obs_names[rows_of(rich, "section_0_spots")[2]] and second.picked == -1
    with pytest.raises(KeyError, match="No section 'nonsense'"):
        panel.compare = "nonsense"
    panel.compare = None
    assert panel.pictures.children == (panel.canvas,) and panel.compared.label == "none"


def test_a_drawn_region_is_written(rich, state, tmp_path):
    before = state(rich)
    panel, table = nh.explore(rich), rich["table"]
    assert len(panel.spots) == 0
    left, right, bottom, top = panel.canvas.window
    half = (left + right) / 2
    panel.canvas.outline = [left, top, half, top, half, bottom, left, bottom]  # as the browser does
    rows = rows_of(rich, "section_0_spots")
    xy = panel.shown.sections["section_0_spots"].xy_um
    inside = table.obs_names[rows[xy[:, 0] < half]]
    assert list(panel.spots) == list(inside) and panel.told.value == f"{len(inside)} spots"
    panel.section = "section_1_spots"
    assert panel.canvas.outline == []
    left, right, bottom, top = panel.canvas.window
    panel.canvas.outline = [left, top, right, top, right, bottom, left, bottom]
    everywhere = list(inside) + list(table.obs_names[rows_of(rich, "section_1_spots")])
    assert list(panel.spots) == everywhere and "in 2 sections" in panel.told.value
    panel.section = "section_0_spots"
    assert len(panel.canvas.outline) == 8 and list(panel.spots) == everywhere  # kept
    assert state(rich) == before

    panel.name.value = "mine"
    panel.write.click()
    assert f"{len(everywhere)} spots are True" in panel.told.value and "mine" in panel.shown.columns()
    assert list(table.obs_names[table.obs["mine"]]) == everywhere
    panel._key({"forget": True})
    assert len(panel.spots) == 0 and panel.canvas.outline == []
    with pytest.raises(ValueError, match="hold the shift key"):
        panel.write_region("mine")
    panel.canvas.outline = [left, top, half, top, half, bottom, left, bottom]
    panel.write_region("mine")  # its own column
    assert list(table.obs_names[table.obs["mine"]]) == list(inside)
    assert nh.tl.region(rich, "mine").shape == (40, 7)
    for name, message in {
        "tissue": "was not drawn in nh.explore",
        "a/b": "Expected name to be",
        "": "Expected name",
    }.items():
        with pytest.raises(ValueError, match=message):
            panel.write_region(name)
    panel.name.value = "tissue"
    panel.write.click()
    assert "was not drawn" in panel.told.value

    table.write_h5ad(tmp_path / "table.h5ad")
    write_region(ad.read_h5ad(tmp_path / "table.h5ad"), "mine", np.arange(3))  # known after it was stored
    del table.obs["mine"], table.uns["nh2st_drawn"]
    assert state(rich) == before


def test_what_is_shown_is_saved(rich, tmp_path):
    panel = nh.explore(rich)
    panel.save(tmp_path / "one.png")
    one = Image.open(tmp_path / "one.png")
    assert one.info["dpi"][0] == pytest.approx(200, rel=0.01) and one.size[0] > 2000  # sharp
    panel.compare, panel.column = "section_1_spots", "tissue"
    left, top = panel.canvas.window[::3]
    panel.canvas.view = [left + 300, top + 300, left + 600, top + 600]
    panel.canvas.outline = [left + 350, top + 350, left + 550, top + 350, left + 550, top + 550]
    panel.save(tmp_path / "two.png", dpi=60)
    two = Image.open(tmp_path / "two.png")
    assert two.size[0] / 60 > 1.15 * one.size[0] / 200 and two.size[1] / 60 > 1.5 * one.size[1] / 200
    assert not plt.get_fignums()
    with pytest.raises(ValueError, match="nonsense"):
        panel.save(tmp_path / "x.nonsense")


def test_a_notebook_keeps_a_still_picture(rich, monkeypatch):
    published = []
    monkeypatch.setattr("IPython.display.publish_display_data", lambda data, **_: published.append(data))
    panel = nh.explore(rich)
    panel._ipython_display_()
    still, live = published
    assert set(still) == {"image/png", "text/plain"}
    assert Image.open(io.BytesIO(base64.b64decode(still["image/png"]))).size[0] > 800
    assert panel.canvas.still in still["image/png"] and len(still["image/png"]) < 1e6
    assert live["application/vnd.jupyter.widget-view+json"]["model_id"] == panel.model_id
    assert "run the cell again" in live["text/plain"]


def test_predictions_without_measurements_uncertainty_or_features(rich):
    """A grid over an H&E slide: predictions are X of a table of their own."""
    table = rich["table"]
    new = AnnData(table[:, table.var["nh2st"]].layers["nh2st"], obs=table.obs[["region", "spot_id"]])
    new.var_names = table.var_names[table.var["nh2st"]]
    new.var["nh2st_pearson"] = np.nan
    new.uns["nh2st"] = {"unit": LOG_UNIT}
    keys = {name: table.uns["spatialdata_attrs"][name] for name in ("region", "region_key", "instance_key")}
    slide = SpatialData(
        images=dict(rich.images), shapes=dict(rich.shapes), tables={"predicted": TableModel.parse(new, **keys)}
    )
    panel = nh.explore(slide)
    assert [one["name"] for one in panel.canvas.maps] == ["predicted"]
    assert panel.canvas.trust == "not scored on held-out tissue"
    panel.canvas.picked = 0
    assert Image.open(io.BytesIO(panel.around.value)).size[0] < 800  # tissue and patches
    np.testing.assert_array_equal(maps(panel)["predicted"], new[rows_of(rich, "section_0_spots"), panel.gene].X.ravel())


def test_wrong_arguments(rich):
    with pytest.raises(KeyError, match=r"Genes \['nonsense'\] are not in the table"):
        nh.explore(rich, "nonsense")
    with pytest.raises(KeyError, match=r"key='other'.*nh\.tl\.predict_expression"):
        nh.explore(rich, key="other")
    with pytest.raises(TypeError, match="Expected a SpatialData object, found AnnData"):
        nh.explore(rich["table"])
    with pytest.raises(ValueError, match="nonsense"):
        nh.explore(rich, cmap="nonsense")
    panel = nh.explore(rich, shapes_key="section_0_spots")
    gene = panel.gene
    with pytest.raises(KeyError, match=r"Genes \['nonsense'\] are not in the table"):
        panel.gene = "nonsense"
    with pytest.raises(KeyError, match=r"No section 'nonsense'\. Available: \['section_0_spots'\]"):
        panel.section = "nonsense"
    with pytest.raises(KeyError, match=r"No spot 'nonsense' in the table\. It has \d+ spots"):
        panel.spot = "nonsense"
    other = rich["table"].obs_names[rows_of(rich, "section_1_spots")[0]]
    with pytest.raises(KeyError, match=rf"Spot '{other}' is in none of the sections"):
        panel.spot = other
    assert (panel.gene, panel.spot) == (gene, None)


def test_without_ipywidgets(rich, monkeypatch):
    monkeypatch.delitem(sys.modules, "nh2st_scverse.pl._explore_widget", raising=False)
    monkeypatch.setitem(sys.modules, "ipywidgets", None)
    with pytest.raises(ImportError, match=r'needs ipywidgets and anywidget.*pip install "nh2st-scverse\[lab\]"'):
        nh.explore(rich)
