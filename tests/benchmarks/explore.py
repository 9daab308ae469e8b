"""How long ``nh.explore`` makes a user wait, in JupyterLab and headless Chromium on this machine.

``python tests/benchmarks/explore.py`` (20,000 spots; ``--spots 100000`` for a dense grid; ``--save folder`` keeps
screenshots). Printed are the median milliseconds from the key to the new picture when the gene changes and when the
pictures are zoomed, and both over those of three ``scatter`` of matplotlib with the same spots (target: below 1).
"""

from __future__ import annotations

import argparse
import runpy
import tempfile
import time
from pathlib import Path
from statistics import median

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from anndata import AnnData
from scipy import sparse

import nh2st_scverse as nh

BROWSER = runpy.run_path(str(Path(__file__).parents[1] / "pl" / "test_explore_browser.py"))
N_GENES = 500
PITCH = 100.0  # µm
MICRONS = 2.0  # per pixel
TYPE = """
const [gene, done] = arguments, maps = document.querySelector('.nh2st-maps');
const field = document.querySelector('.nh2st-explore input[type=text]'), start = performance.now();
field.value = gene;
field.dispatchEvent(new Event('input', {bubbles: true}));
const look = () => maps.dataset.gene === gene ? done(performance.now() - start) : requestAnimationFrame(look);
look();
"""
ZOOM = """
const [turn, done] = arguments, maps = document.querySelector('.nh2st-maps'), start = performance.now();
const cursor = document.querySelector('.nh2st-maps .cursor'), box = cursor.getBoundingClientRect();
const drawn = maps.dataset.drawn;
cursor.dispatchEvent(new WheelEvent('wheel', {deltaY: turn, clientX: box.x + 90, clientY: box.y + 90}));
const look = () => maps.dataset.drawn !== drawn ? done(performance.now() - start) : requestAnimationFrame(look);
look();
"""


def section(n_spots: int):
    """Spots on a wide piece of tissue, drawn once and repeated, with predictions."""
    rng = np.random.default_rng(0)
    side = int(np.ceil(np.sqrt(n_spots)))
    tile = nh.datasets.synthetic(width_um=1500, microns_per_pixel=MICRONS).images["section_0_image"]["scale0"]["image"]
    tile = tile.values.transpose(1, 2, 0)[100:600, 100:600]
    n_px = int((side + 2) * PITCH / MICRONS)
    image = np.tile(tile, (n_px // 500 + 1, n_px // 500 + 1, 1))[:n_px, :n_px]
    xy = (np.stack(np.divmod(np.arange(side**2)[:n_spots], side), axis=1) + 1.0) * PITCH / MICRONS
    counts = sparse.random(n_spots, N_GENES, 0.2, "csr", dtype=np.float32, rng=rng)
    counts.data = np.ceil(20 * counts.data)
    names = pd.Index([f"GENE{i:03d}" for i in range(N_GENES)])
    adata = AnnData(counts, obs=pd.DataFrame(index=[f"spot{i}" for i in range(n_spots)]), var=pd.DataFrame(index=names))
    adata.obsm["spatial"] = xy
    sdata = nh.io.from_anndata(adata, image, microns_per_pixel=MICRONS, spot_diameter=55)
    (table,) = sdata.tables.values()
    table.layers["nh2st"] = rng.normal(size=table.shape).astype(np.float32)
    table.layers["nh2st_std"] = rng.random(table.shape).astype(np.float32)
    table.var["nh2st"], table.var["nh2st_pearson"] = True, rng.random(N_GENES)
    return sdata


def scatter_ms(n_spots: int) -> float:
    """Three maps of the same size and sharpness, drawn by matplotlib."""
    plt.switch_backend("Agg")
    x, y, values = np.random.default_rng(0).random((3, n_spots))
    taken = []
    for _ in range(3):
        start = time.perf_counter()
        fig, axes = plt.subplots(1, 3, figsize=(9, 3), dpi=140)
        for ax in axes:
            ax.scatter(x, y, c=values, s=2, linewidths=0)
        fig.canvas.draw()
        taken.append(1000 * (time.perf_counter() - start))
        plt.close(fig)
    return median(taken)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--spots", type=int, default=20_000)
    parser.add_argument("--save", type=Path, help="folder for screenshots")
    given = parser.parse_args()
    reference = scatter_ms(given.spots)
    with tempfile.TemporaryDirectory() as folder:
        section(given.spots).write(Path(folder) / "section.zarr")
        read = "import spatialdata, nh2st_scverse as nh\nnh.explore(spatialdata.read_zarr('section.zarr'))"
        with BROWSER["notebook"](Path(folder), [read]) as browser:
            panel = BROWSER["Panel"](browser)
            panel.settle()
            if given.save:
                given.save.mkdir(parents=True, exist_ok=True)
                browser.save_screenshot(str(given.save / "explore.png"))
            genes = [f"GENE{i:03d}" for i in range(0, 200, 20) if f"GENE{i:03d}" != panel.data("gene")]
            typed = [browser.execute_async_script(TYPE, gene) for gene in genes]
            zoomed = [browser.execute_async_script(ZOOM, turn) for turn in [-120] * 5 + [120] * 5]
            drawing = float(panel.data("milliseconds"))
    print(f"{given.spots} spots; matplotlib draws three maps in {reference:.0f} ms")
    print(f"a gene changes in {median(typed):.0f} ms: ratio {median(typed) / reference:.2f}")
    print(
        f"a zoom is seen in {median(zoomed):.0f} ms ({drawing:.0f} of drawing): ratio {median(zoomed) / reference:.2f}"
    )


if __name__ == "__main__":
    main()
