"""The page about a prediction: whole, self-contained, and the object stays as it was."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
from spatialdata import SpatialData

import nh2st_scverse as nh
from nh2st_scverse.data.copies import marks
from nh2st_scverse.data.expression import measured


def page(sdata: SpatialData, folder: Path) -> str:
    return nh.tl.report(sdata, folder / "page.html").read_text(encoding="utf-8")


def test_says_what_is_known_and_shows_it(
    sdata: SpatialData, state: Callable[[SpatialData], dict[str, str]], tmp_path: Path
) -> None:
    before = state(sdata)
    text = page(sdata, tmp_path)
    assert state(sdata) == before and not plt.get_fignums()
    assert [path.name for path in tmp_path.iterdir()] == ["page.html"]
    pearson = sdata["table"].var["nh2st_pearson"].dropna()
    assert f"<b>{pearson.mean():.2f}</b>; {(pearson >= 0.3).sum()} of 40 genes reach 0.3." in text
    heads = re.findall(r"<h2>(.*?)</h2>", text)
    assert heads[:3] == ["Which genes to trust", "Maps of the best genes", "Clusters of the predicted genes"]
    assert "Check of the object" in heads and "Novelty" not in heads  # nothing is known of it
    assert text.count("data:image/png;base64,") == 3
    assert not re.findall(r'(?:src|href)="(?!data:)', text)  # nothing is outside
    rows = re.findall(r"<tr><td>([^<]*)</td><td class=\"n\">([^<]*)</td></tr>", text)
    assert [gene for gene, _ in rows] == list(pearson.sort_values(ascending=False).index)
    assert "The mean Pearson correlation on held-out tissue was" in text


def test_is_told_what_the_object_was_found_to_be(two: SpatialData, tmp_path: Path) -> None:
    table = two["table"]
    table.uns["nh2st"] |= {"expected_pearson": 0.05, "cross_fitted": False}
    table.obs["nh2st_novelty"] = np.where(np.arange(table.n_obs) % 4, 2.0, 0.5)
    table.obs.iloc[0, table.obs.columns.get_loc("n_nuclei")] = 0
    table.layers["nh2st"][:3] = np.nan  # spots without an image
    text = page(two, tmp_path)
    assert '<span class="warning">Expected here' in text and "0.05." in text
    assert '<span class="warning">75% of the spots look unlike' in text
    assert f"in {table.n_obs - 3} of {table.n_obs} spots" in text
    assert "section_0_spots, section_1_spots" in text


def test_says_where_the_model_saw_this_tissue(sdata: SpatialData, tmp_path: Path) -> None:
    alone = SpatialData(shapes=dict(sdata.shapes), tables=dict(sdata.tables))  # no pictures of tissue: less to draw
    table = alone["table"]
    kept = marks(measured(table)[:, table.var["nh2st"]], None)
    told = {"trained_on": {"a:section_0_spots": "a"}, "tissue": {"a": kept}}
    for described, said in (
        (told, "that was trained on them;"),
        (told | {"tissue": {}}, "that was trained on sections of these names;"),
        ({"trained_on": {"other": "a"}}, "trained on other sections;"),
    ):
        table.uns["nh2st"] |= {"cross_fitted": False, "json": json.dumps(described)}
        text = page(alone, tmp_path)
        assert f"by a model {said}" in text
        assert ('<span class="warning">The model was trained on section_0_spots' in text) == ("other" not in said)


def test_without_image_or_scores(sdata: SpatialData, tmp_path: Path) -> None:
    alone = SpatialData(shapes=dict(sdata.shapes), tables=dict(sdata.tables))
    alone["table"].var["nh2st_pearson"] = np.nan
    text = page(alone, tmp_path)
    assert text.count("data:image/png;base64,") == 1 and "Check of the object" not in text
    assert "No held-out scores are known" in text
    alone["table"].layers["nh2st_std"] = np.full(alone["table"].shape, 0.5, dtype=np.float32)
    text = page(alone, tmp_path)
    assert "Standard deviation of each predicted value" in text and text.count("data:image/png;base64,") == 2
    del alone["table"].obsm["spatial"]
    assert "nothing can be drawn" in page(alone, tmp_path)


def test_what_another_tool_predicted(sdata: SpatialData, tmp_path: Path) -> None:
    sdata = SpatialData(shapes=dict(sdata.shapes), tables=dict(sdata.tables))  # no pictures of tissue: less to draw
    sdata["table"].layers["tool"] = sdata["table"].layers.pop("nh2st")
    sdata["table"].layers["tool"][25:] = np.nan  # too few spots to cluster, which takes its time
    found = nh.tl.evaluate(sdata, predicted="tool", unit="log1p(counts per 10,000)")
    text = nh.tl.report(sdata, tmp_path / "page.html", key="tool").read_text(encoding="utf-8")
    assert "by another tool (layers[&#x27;tool&#x27;] of table &#x27;table&#x27;)" in text
    assert "trained on this tissue is not known here" in text and "NH2ST as implemented" not in text
    assert f"the mean correlation over all genes is <b>{found['pearson'].mean():.2f}</b>" in text
    assert "held-out" not in text and "held out" not in text
    assert re.findall(r"<tr><td>([^<]*)</td><td class=", text) == list(found.index)
    assert "Novelty" not in text and text.count("data:image/png;base64,") == 2


def test_names_are_text_and_not_html(sdata: SpatialData, tmp_path: Path) -> None:
    best = sdata["table"].var["nh2st_pearson"].idxmax()
    sdata["table"].var_names = pd.Index(sdata["table"].var_names).where(sdata["table"].var_names != best, "<b>G&1")
    text = page(sdata, tmp_path)
    assert "&lt;b&gt;G&amp;1" in text and "<b>G&1" not in text


def test_mistakes(sdata: SpatialData, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"to be an HTML file, found 'page.pdf'"):
        nh.tl.report(sdata, tmp_path / "page.pdf")
    with pytest.raises(FileNotFoundError, match=r"Expected a folder to write page.html to"):
        nh.tl.report(sdata, tmp_path / "none" / "page.html")
    with pytest.raises(KeyError, match="No table has a prediction 'other'"):
        nh.tl.report(sdata, tmp_path / "page.html", key="other")
    assert not list(tmp_path.iterdir())
