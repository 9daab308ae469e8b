"""``python -m nh2st_scverse``: the main job once, on the embedded section, with everything left in a folder.

Cross-fitted prediction, scores by gene, clusters of measured and predicted expression, spatially variable genes.
"""

from __future__ import annotations

import argparse
import shutil
import time
import warnings
from pathlib import Path

import matplotlib
import pandas as pd
import scanpy as sc
from anndata import AnnData
from spatialdata import SpatialData

import nh2st_scverse as nh

FOLDER = "nh2st-quickstart"
STORE = "section.zarr"
ANATOMY_UM = 120  # nests wide enough for clusters to show them


def main(arguments: list[str] | None = None) -> Path:
    """Run the main job and print what it wrote. Returns the folder."""
    matplotlib.use("Agg")  # figures go to files; no window, no display needed
    parser = argparse.ArgumentParser(prog="python -m nh2st_scverse", description=__doc__)
    parser.add_argument("--folder", type=Path, default=Path(FOLDER), help=f"where results go (default: {FOLDER})")
    parser.add_argument("--width", type=float, default=3600, help="width of the embedded section in µm (default: 3600)")
    parser.add_argument("--epochs", type=int, default=40, help="epochs of training at most (default: 40)")
    options = parser.parse_args(arguments)
    folder: Path = options.folder
    folder.mkdir(parents=True, exist_ok=True)
    started = time.perf_counter()

    print("1/4  Drawing an H&E section with spots and counts (nh.datasets.synthetic)")
    sdata = nh.datasets.synthetic(width_um=options.width, nests_um=ANATOMY_UM)
    table = sdata.tables["table"]

    print("2/4  Predicting each spot by models that never saw it (nh.tl.predict_expression)")
    nh.tl.predict_expression(sdata, n_genes=None, n_members=2, max_epochs=options.epochs)
    scores = nh.tl.evaluate(sdata)

    print("3/4  Clusters and spatially variable genes (scanpy, squidpy)")
    cluster(table)
    variable = spatially_variable(table)

    print("4/4  Figures and files")
    table.var["spatially_variable"] = variable["I"].reindex(table.var_names)
    figures(sdata, scores, folder)
    scores.join(table.var["program"]).join(variable["I"].rename("moran_predicted")).to_csv(folder / "gene_scores.csv")
    shutil.rmtree(folder / STORE, ignore_errors=True)  # an earlier run of this command
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # zarr on sharding
        sdata.write(folder / STORE)

    minutes = (time.perf_counter() - started) / 60
    print(report(folder, table, scores, minutes))
    return folder


def cluster(table: AnnData) -> None:
    """Leiden clusters of the panel: ``obs["leiden_measured"]`` and ``obs["leiden_predicted"]``."""
    table.layers["measured"] = nh.data.expression.measured(table)
    for name, layer in {"measured": "measured", "predicted": "nh2st"}.items():
        sc.pp.pca(table, layer=layer, mask_var="nh2st", n_comps=min(20, table.n_obs - 1), key_added=f"pca_{name}")
        sc.pp.neighbors(table, use_rep=f"pca_{name}", key_added=f"neighbours_{name}")
        sc.tl.leiden(
            table,
            resolution=0.05,  # some four clusters, as many as there are regions in the drawing
            neighbors_key=f"neighbours_{name}",
            key_added=f"leiden_{name}",
            flavor="igraph",
            n_iterations=2,
            directed=False,
        )


def spatially_variable(table: AnnData) -> pd.DataFrame:
    """Moran's I of the predicted genes, as squidpy gives it: most variable genes first."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", SyntaxWarning)  # its docstrings
        import squidpy as sq

    sq.gr.spatial_neighbors_knn(table, n_neighs=6)
    genes = table.var_names[table.var["nh2st"]]
    sq.gr.spatial_autocorr(table, mode="moran", layer="nh2st", genes=genes, n_perms=None)
    return table.uns["moranI"]


def figures(sdata: SpatialData, scores: pd.DataFrame, folder: Path) -> None:
    """H&E | measured | predicted for the best gene of six programs, gene scores, clusters side by side."""
    program = sdata.tables["table"].var["program"].reindex(scores.index)
    genes = [names[0] for label, names in scores.index.groupby(program).items() if label != "noise"]
    ordered = [gene for gene in scores.index if gene in genes][:6]
    nh.pl.expression(sdata, ordered, size=1.4, save=folder / "expression.png")
    nh.pl.gene_scores(sdata, save=folder / "gene_scores.png")
    nh.pl.clusters(sdata, "leiden_measured", "leiden_predicted", size=1.4, save=folder / "clusters.png")


def report(folder: Path, table: AnnData, scores: pd.DataFrame, minutes: float) -> str:
    """What was found, what was written, and how to go on."""
    best = scores["pearson"].head(3)
    by_program = scores["pearson"].groupby(table.var["program"].reindex(scores.index), observed=True).mean()
    means = ", ".join(f"{name} {value:.2f}" for name, value in by_program.sort_values(ascending=False).items())
    of_ceiling = scores["of_ceiling"].mean()
    return f"""
{len(scores)} genes predicted in {table.n_obs} spots in {minutes:.1f} minutes.
Pearson correlation on held-out tissue: mean {scores["pearson"].mean():.2f}; {of_ceiling:.0%} of the noise ceiling.
By gene program: {means}.
(The noise genes depend on nothing; what is found of them comes from scaling all spots to the same number of counts.)
Best genes: {", ".join(f"{gene} {value:.2f}" for gene, value in best.items())}.

Written to {folder}/
  {STORE:18} the SpatialData object: layers["nh2st"], var["nh2st_pearson"], obs["leiden_predicted"], ...
  expression.png     H&E | measured | predicted, one gene of each program
  gene_scores.png    every gene by its held-out correlation, with its noise ceiling
  clusters.png       clusters of measured and predicted expression
  gene_scores.csv    the scores as a table

Go on in JupyterLab (pip install -e ".[lab]", then: jupyter lab tutorials/01_quickstart.ipynb), or in Python:
  import spatialdata as sd, nh2st_scverse as nh
  sdata = sd.read_zarr("{folder}/{STORE}")
  nh.pl.expression(sdata, ["{best.index[0]}"])
"""


if __name__ == "__main__":
    main()
