"""``tl.biology``: whether what a biologist would do with measured genes gives the same with predicted ones."""

from __future__ import annotations

import logging
import warnings
from typing import Any

import numpy as np
import pandas as pd
from anndata import AnnData
from scipy.stats import spearmanr
from sklearn.metrics import adjusted_rand_score
from spatialdata import SpatialData

from nh2st_scverse._constants import KEY
from nh2st_scverse._docs import documented
from nh2st_scverse._keys import Keys
from nh2st_scverse._options import as_seed
from nh2st_scverse._threads import threads
from nh2st_scverse._validators import check_positive
from nh2st_scverse.prediction import check_free, put
from nh2st_scverse.tl._evaluate import compare

N_NEIGHBOURS = 6  # spots that Moran's I compares a spot with: those around it on a hexagonal array
FEWEST_SPOTS = 20  # spots of a section


@documented()
def biology(
    sdata: SpatialData,
    *,
    key: str = KEY,
    table_key: str | None = None,
    layer: str | None = None,
    n_top: int = 50,
    resolution: float = 1.0,
    microns_per_pixel: float | None = None,
    seed: int = 0,
) -> pd.DataFrame:
    """Compare what measured and predicted expression say about the tissue: patterns, clusters, genes that go together.

    Everything is computed on the predicted genes alone, once from their measured and once from their predicted values.
    No image is needed, only the places of the spots.

    Parameters
    ----------
    sdata
        Object with a prediction from :func:`predict_expression` and the counts.
    $prediction
    layer
        Layer with the counts; None means X.
    n_top
        Spatially variable genes that are compared: the most variable ones, at most half of the genes.
    resolution
        Of the Leiden clusters.
    microns_per_pixel
        Not needed any more, since no image is: earlier calls pass it.
    seed
        Of the clusters.

    Returns
    -------
    One row for each section:

    ``n_spots``, ``n_genes``
        What is compared; spots without a prediction, without counts or off the tissue (``in_tissue`` is 0) are left
        out, and genes that are constant in the section.
    ``moran_measured``, ``moran_predicted``
        Mean of Moran's I. A prediction has no counting noise, so its patterns are smoother and its values higher.
    ``moran_spearman``
        Rank correlation of the two over genes: are the same genes patterned?
    ``svg_overlap``, ``svg_chance``
        Share of the most spatially variable genes, ``n_top`` of each, that both have; and the share that chance gives.
    ``ari``
        Adjusted Rand index of their Leiden clusters: 1 for the same, 0 for unrelated ones.
    ``clusters_measured``, ``clusters_predicted``
        How many clusters there are.
    ``gene_correlation``
        Correlation of the gene-gene correlations: do the same genes go together?

    Written to ``table.uns[key + "_moran"]``: Moran's I of every gene, columns ``section``, ``gene``, ``measured``,
    ``predicted``, which :func:`nh2st_scverse.pl.spatially_variable` draws.

    Raises
    ------
    KeyError
        No such prediction.
    ValueError
        As :func:`evaluate`; no places of the spots, fewer than 20 predicted spots in every section, fewer
        than 4 genes, or arguments out of range.

    See Also
    --------
    evaluate : scores of the genes.

    Examples
    --------
    >>> import nh2st_scverse as nh
    >>> sdata = nh.datasets.synthetic(n_sections=2, width_um=1200)
    >>> nh.tl.predict_expression(sdata, n_genes=30, max_epochs=3, progress=False)
    >>> nh.tl.biology(sdata)["n_genes"].tolist()
    [30, 30]
    """
    if isinstance(n_top, bool) or not isinstance(n_top, int | np.integer) or n_top < 1:
        raise ValueError(f"Expected n_top to be a whole number of at least 1, found {n_top!r}.")
    check_positive(resolution, argument="resolution")
    seed = as_seed(seed)
    pair = compare(sdata, key=key, table_key=table_key, layer=layer)
    check_free(pair.table, key, Keys(key).of_biology, argument="key")
    genes = pd.Index(pair.genes)
    if len(genes) < 4:
        raise ValueError(f"Expected at least 4 predicted genes to compare, found {len(genes)}.")
    rows, patterns = {}, []
    for name in pd.unique(pair.regions):
        there = (pair.regions == name) & pair.scored
        if there.sum() < FEWEST_SPOTS:
            continue
        own = {"measured": pair.measured[there], "predicted": pair.predicted[there]}
        vary = np.all([np.ptp(x, axis=0) > 0 for x in own.values()], axis=0)
        if vary.sum() < 4:
            continue
        adata = AnnData(
            own["measured"][:, vary],
            var=pd.DataFrame(index=genes[vary]),
            obsm={"spatial": places(sdata, pair.table, pair.own[there], name)},
            layers={"predicted": own["predicted"][:, vary]},
        )
        with threads():
            row, moran = _compare(adata, n_top, resolution, seed)
        rows[name] = {"n_spots": int(there.sum()), "n_genes": int(vary.sum())} | row
        patterns.append(moran.assign(section=name))
    if not rows:
        raise ValueError(
            f"Expected at least {FEWEST_SPOTS} predicted spots and 4 varying genes in a section, found no such one."
        )
    found = pd.concat(patterns, ignore_index=True)[["section", "gene", "measured", "predicted"]]
    keys = Keys(key)
    put(pair.table, key, {("uns", keys.moran): found}, clear=keys.of_biology)
    return pd.DataFrame.from_dict(rows, orient="index").rename_axis("section")


def places(sdata: SpatialData, table: AnnData, rows: np.ndarray, name: str) -> np.ndarray:
    """Centres (n, 2) of some rows of a table, of one section, in the unit of its shapes; no image is needed."""
    if name in sdata.shapes:
        centres = sdata.shapes[name].geometry.centroid
        at = centres.index.get_indexer(table.obs[table.uns["spatialdata_attrs"]["instance_key"]].iloc[rows])
        if (at >= 0).all():
            return np.column_stack([centres.x, centres.y])[at]
    if "spatial" in table.obsm:
        return np.asarray(table.obsm["spatial"], dtype=float)[rows, :2]
    raise ValueError(
        f"Expected the places of the spots of {name!r}, found neither shapes of this name with their ids "
        f"(shapes: {list(sdata.shapes)}) nor obsm['spatial'] in the table. Add one of the two."
    )


def _compare(adata: AnnData, n_top: int, resolution: float, seed: int) -> tuple[dict[str, Any], pd.DataFrame]:
    """The row of a section, whose X is measured and whose layer is predicted, and Moran's I of its genes."""
    import scanpy as sc

    moran = _moran(adata)
    values = (adata.X, adata.layers["predicted"])
    measured, predicted = (leiden(sc.pp.scale(AnnData(x), copy=True).X, resolution, seed) for x in values)
    together = [np.corrcoef(x.T)[np.triu_indices(adata.n_vars, 1)] for x in values]
    n_top = min(n_top, len(moran) // 2)
    best = [set(moran.nlargest(n_top, name)["gene"]) for name in ("measured", "predicted")]
    row = {
        "moran_measured": float(moran["measured"].mean()),
        "moran_predicted": float(moran["predicted"].mean()),
        "moran_spearman": float(spearmanr(moran["measured"], moran["predicted"]).statistic),
        "svg_overlap": len(set.intersection(*best)) / n_top,
        "svg_chance": n_top / len(moran),
        "ari": float(adjusted_rand_score(measured, predicted)),
        "clusters_measured": int(measured.nunique()),
        "clusters_predicted": int(predicted.nunique()),
        "gene_correlation": float(np.corrcoef(together)[0, 1]),
    }
    return row, moran


def _moran(adata: AnnData) -> pd.DataFrame:
    """Moran's I of every gene: columns gene, measured, predicted."""
    messages = logging.getLogger("spatialdata._logging")
    level = messages.level
    genes = adata.var_names
    try:
        messages.setLevel(logging.WARNING)  # that a graph is made is no news
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)
            warnings.simplefilter("ignore", SyntaxWarning)
            import squidpy as sq

            sq.gr.spatial_neighbors_knn(adata, n_neighs=N_NEIGHBOURS)
            found = {
                name: sq.gr.spatial_autocorr(
                    adata, mode="moran", genes=list(genes), layer=layer, copy=True, show_progress_bar=False
                )["I"]
                for name, layer in {"measured": None, "predicted": "predicted"}.items()
            }
    finally:
        messages.setLevel(level)
    values = {name: scores.reindex(genes).to_numpy(dtype=float) for name, scores in found.items()}
    return pd.DataFrame({"gene": genes.to_numpy(dtype=str)} | values)


def leiden(values: np.ndarray, resolution: float, seed: int) -> pd.Series:
    """Leiden clusters of spots (n_spots, n_genes), by the usual steps of scanpy."""
    import scanpy as sc

    adata = AnnData(values)
    sc.pp.pca(adata, n_comps=min(30, adata.n_vars - 1, adata.n_obs - 1), random_state=seed)
    sc.pp.neighbors(adata, n_neighbors=min(15, adata.n_obs - 1), random_state=seed)
    sc.tl.leiden(adata, resolution=resolution, random_state=seed, flavor="igraph", n_iterations=2, directed=False)
    return adata.obs["leiden"]
