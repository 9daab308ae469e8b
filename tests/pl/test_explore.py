from __future__ import annotations

import io
import sys

import matplotlib as mpl
import numpy as np
import pytest
from anndata import AnnData
from PIL import Image
from spatialdata import SpatialData
from spatialdata.models import TableModel

import nh2st_scverse as nh
from nh2st_scverse._constants import LOG_UNIT
from nh2st_scverse.data.expression import measured


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
        return [name for _, name in panel.list.options]

    assert listed() == list(var.sort_values("nh2st_pearson", ascending=False).index)
    assert panel.list.options[0][0].split() == [listed()[0], "0.80", "of", "0.60"]
    panel.order.value = "share"
    share = (var["nh2st_pearson"] / var["nh2st_ceiling"]).clip(-1, 1)
    assert (np.diff(share[listed()]) <= 0).all()
    panel.order.value = None
    assert listed() == sorted(var.index)
    before = panel.gene
    panel.search.value = "tumor"
    assert listed() and all("TUMOR" in name for name in listed()) and panel.gene == before
    panel.search.value = listed()[-1].lower()
    assert panel.gene == panel.list.value == panel.search.value.upper() != before
    changed = maps(panel)["predicted"]
    panel.search.value = "xyz"
    assert "no such gene" in panel.note.value
    np.testing.assert_array_equal(maps(panel)["predicted"], changed)
    lacking = rich["table"].var_names[~rich["table"].var["nh2st"]][0]
    panel.search.value = lacking
    assert panel.note.value == f"{lacking} is measured but was not predicted"
    panel.search.value = ""
    assert panel.note.value == "40 of 40 genes" and panel.list.value == panel.gene
    panel.list.value = before
    assert panel.gene == panel.canvas.gene == before
    assert (maps(panel)["predicted"] != changed).any()


def test_a_click_shows_the_spot(rich):
    panel = nh.explore(rich)
    table, rows = rich["table"], rows_of(rich, "section_0_spots")
    panel.canvas.picked = 7  # as the browser does
    assert panel.spot == table.obs_names[rows[7]]
    assert panel.around.layout.display == ""
    assert Image.open(io.BytesIO(panel.around.value)).size[0] > 800  # tissue, patches, hyperedges
    at = table.var_names.get_loc(panel.gene)
    facts = panel.facts.value
    assert f"<td>predicted</td><td>{table.layers['nh2st'][rows[7], at]:.2f}</td>" in facts
    assert f"<td>measured</td><td>{measured(table)[rows[7], at]:.2f}</td>" in facts
    assert f"<td>novelty</td><td>{table.obs['nh2st_novelty'].iloc[rows[7]]:.2f}</td>" in facts
    values = table.layers["nh2st"][:, table.var["nh2st"]]
    z = ((values - values.mean(axis=0)) / values.std(axis=0))[rows[7]]
    highest = table.var_names[table.var["nh2st"]][z.argmax()]
    assert facts.split("other spots")[1].startswith(f"<table><tr><td>{highest}</td><td>{z.max():+.1f} sd")

    other = next(name for _, name in panel.list.options if name != panel.gene)
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
