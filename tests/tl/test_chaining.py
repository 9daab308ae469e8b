from __future__ import annotations

from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import pytest
import scanpy as sc
import spatialdata_plot  # noqa: F401  (registers sdata.pl)
import squidpy as sq
from spatialdata import SpatialData

import nh2st_scverse as nh


@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::UserWarning", "ignore::DeprecationWarning")
def test_scanpy_squidpy_and_spatialdata_plot_go_on_with_the_layer_as_it_is(
    two: SpatialData, quick: dict[str, Any]
) -> None:
    nh.tl.predict_expression(two, **quick)
    table = two.tables["table"]
    genes = table.var_names[table.var["nh2st"]]

    sc.pp.pca(table, layer="nh2st", mask_var="nh2st", n_comps=10)
    assert np.isfinite(table.obsm["X_pca"]).all() and table.obsm["X_pca"].std(axis=0).min() > 0
    sc.pp.neighbors(table)
    sc.tl.leiden(table, flavor="igraph", n_iterations=2, directed=False)
    assert table.obs["leiden"].nunique() > 1
    sc.tl.rank_genes_groups(table, "leiden", layer="nh2st", mask_var="nh2st", method="t-test")
    sc.pp.neighbors(table, use_rep="X_nh2st", key_added="predicted")
    assert table.obsp["predicted_connectivities"].nnz > 0

    sq.gr.spatial_neighbors_grid(table, n_neighs=6, library_key="region")
    sq.gr.spatial_autocorr(table, layer="nh2st", genes=genes, mode="moran")
    moran = table.uns["moranI"]
    assert set(moran.index) == set(genes) and moran["I"].notna().all()
    assert moran["I"].mean() > 0.1  # predictions follow the tissue

    sq.pl.spatial_scatter(
        table, layer="nh2st", shape=None, color=genes[0], library_key="region", library_id="section_0_spots"
    )
    plt.close("all")
    _, ax = plt.subplots()
    rendered = two.pl.render_images("section_0_image").pl.render_shapes(
        "section_0_spots", color=genes[0], table_name="table", table_layer="nh2st"
    )
    rendered.pl.show(ax=ax, coordinate_systems="section_0")
    drawn = ax.collections[-1].get_array()
    first = (table.obs["region"] == "section_0_spots").to_numpy()
    assert drawn is None or len(drawn) == first.sum()
    assert ax.images and ax.collections
