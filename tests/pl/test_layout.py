"""Several sections, twenty genes, long names: nothing is written over anything else, and no panel is empty."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pandas as pd
import pytest
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.text import Text
from spatialdata import SpatialData

import nh2st_scverse as nh


@pytest.fixture(scope="module")
def sections(predicted) -> SpatialData:
    sdata = predicted(n_sections=2, width_um=800)
    table = sdata["table"]
    table.var_names = [f"ENSMUSG{i:011d}" for i in range(table.n_vars)]
    rng = np.random.default_rng(0)
    table.layers["nh2st_std"] = rng.uniform(0.2, 0.5, table.shape).astype(np.float32)
    table.obs["nh2st_novelty"] = rng.uniform(0.2, 0.8, table.n_obs)
    table.var["nh2st_ceiling"] = np.where(table.var["nh2st"], 0.9, np.nan)
    table.obsm["nh2st_features"] = rng.normal(size=(table.n_obs, 8)).astype(np.float32)
    table.obs["clusters_of_predicted_genes"] = rng.integers(0, 12, table.n_obs).astype(str)
    genes = table.var_names[table.var["nh2st"]]
    moran = pd.DataFrame({"gene": genes, "measured": rng.uniform(0, 0.7, len(genes))})
    moran["predicted"] = moran["measured"] + 0.2
    names = list(table.obs["region"].cat.categories)
    table.uns["nh2st_moran"] = pd.concat([moran.assign(section=name) for name in names])
    return sdata


def genes_of(sdata: SpatialData, n: int) -> list[str]:
    table = sdata["table"]
    return list(table.var_names[table.var["nh2st"]][:n])


DRAW: dict[str, Callable[[SpatialData], object]] = {
    "check": lambda s: nh.pl.check(s, return_ax=True),
    "clusters": lambda s: nh.pl.clusters(s, "tissue", "clusters_of_predicted_genes", return_ax=True),
    "expression": lambda s: nh.pl.expression(s, genes_of(s, 2), difference=True, return_ax=True),
    "expression of 20 genes": lambda s: nh.pl.expression(
        s, genes_of(s, 20), shapes_key="section_0_spots", return_ax=True
    ),
    "gene_scores": lambda s: nh.pl.gene_scores(s, return_ax=True),
    "modules": lambda s: nh.pl.modules(s, nh.tl.modules(s, {"a set of ten genes": genes_of(s, 10)}), return_ax=True),
    "region": lambda s: nh.pl.region(nh.tl.region(s, "tissue", value="tumour"), return_ax=True),
    "neighbourhood": lambda s: nh.pl.neighbourhood(s, return_ax=True),
    "scatter of 20 genes": lambda s: nh.pl.scatter(s, genes_of(s, 20), return_ax=True),
    "slide_map of 20 genes": lambda s: nh.pl.slide_map(s, genes_of(s, 20), return_ax=True),
    "spatially_variable": lambda s: nh.pl.spatially_variable(s, return_ax=True),
    "uncertainty": lambda s: nh.pl.uncertainty(s, genes_of(s, 2), return_ax=True),
}


def written(fig: Figure) -> list[Text]:
    """All that is written, but for the numbers along the axes."""
    found = [text for text in (fig._supxlabel, fig._supylabel) if text is not None]  # type: ignore[attr-defined]
    for ax in fig.findobj(Axes):
        legend = ax.get_legend()
        found += [ax.title, ax.xaxis.label, ax.yaxis.label, *ax.texts, *(legend.get_texts() if legend else [])]
    for legend in fig.legends:
        found += legend.get_texts()
    return [text for text in found if text.get_text().strip()]


@pytest.mark.parametrize("name", DRAW)
def test_nothing_is_written_over_anything_else(sections, name):
    axes = np.atleast_1d(DRAW[name](sections)).ravel()
    fig = axes[0].figure
    fig.canvas.draw()
    texts = written(fig)
    # left, bottom, right, top; of an annotation its text without the line to its point
    boxes = np.array([Text.get_window_extent(text).extents for text in texts])
    low, high = np.maximum(boxes[:, None, :2], boxes[None, :, :2]), np.minimum(boxes[:, None, 2:], boxes[None, :, 2:])
    over = np.argwhere(np.triu((high - low > 1).all(axis=2), 1))
    assert [(texts[i].get_text(), texts[j].get_text()) for i, j in over] == []
    assert min(text.get_fontsize() for text in texts) >= 7
    assert all(ax.has_data() or ax.collections for ax in axes)


def test_scale_bars_stay_in_their_panels(sections):
    for ax in np.concatenate([DRAW["check"](sections)[:, 0], DRAW["expression"](sections)[:, 0]]):
        ax.figure.canvas.draw()
        (label,) = [text for text in ax.texts if text.get_text().endswith("m")]
        panel, box = ax.get_window_extent(), Text.get_window_extent(label)
        assert panel.x0 <= box.x0 and box.x1 <= panel.x1 and panel.y0 <= box.y0 and box.y1 <= panel.y1
