"""Speed and memory of the image side on a synthetic whole slide, written to zarr in a temporary folder.

``python tests/benchmarks/slide.py`` (a 40,000 x 40,000 px slide: several GB of disk and some ten minutes; then tables
of bins with 18,000 genes), or smaller with ``--size 16000``; ``--size 0`` for the bins alone. Printed are

- patches per second of the whole path over those of the encoder alone on the same batches (target: at least 0.85),
- peak resident memory of ``tl.predict_expression`` at half the size and at the size (target: under 3 GB, the same),
- seconds against the number of spots (target: a straight line),
- seconds and peak memory of training and prediction on tables of bins with precomputed features, per 100,000 bins.
"""

from __future__ import annotations

import argparse
import logging
import multiprocessing
import resource
import tempfile
import time
import warnings
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import dask.array as da
import numpy as np
import pandas as pd
import spatialdata
from anndata import AnnData
from scipy import sparse
from spatialdata import SpatialData
from spatialdata.models import ShapesModel, TableModel
from spatialdata.transformations import Identity, Scale

import nh2st_scverse as nh
from nh2st_scverse.data.features import encode
from nh2st_scverse.data.patches import batches, cut
from nh2st_scverse.data.section import Section, find_sections
from nh2st_scverse.io._section import CHUNK, _pyramid

MICRONS = 0.5  # per pixel
TISSUE = 0.30  # of the slide
FIELDS = (1.0, 2.5)
PATCH = 75.0
GENES, PANEL = 18_000, 300  # of a table of bins, and those of them that features tell


class Fast:
    """Mean colours on a 4 x 4 grid: takes no time, so that reading and cutting are what is measured."""

    name, input_size, dim, weights_hash = "fast", 224, 48, "none"

    def __call__(self, patches: np.ndarray) -> np.ndarray:
        return patches[:, 28::56, 28::56].reshape(len(patches), -1) / np.float32(255)


def write_slide(path: Path, size: int) -> None:
    """A disc of tissue, drawn once and repeated, on glass."""
    tile = nh.datasets.synthetic(width_um=1024, microns_per_pixel=MICRONS).images["section_0_image"]["scale0"]["image"]
    tile = tile.values[:, 512:1536, 512:1536]
    radius = size * np.sqrt(TISSUE / np.pi)

    def block(block_info: Any = None) -> np.ndarray:
        _, (y0, y1), (x0, x1) = block_info[None]["array-location"]
        yy, xx = np.ogrid[y0:y1, x0:x1]
        on = (xx - size / 2) ** 2 + (yy - size / 2) ** 2 < radius**2
        return np.where(on, tile[:, : y1 - y0, : x1 - x0], np.uint8(243))

    chunks = ((3,), *da.core.normalize_chunks((CHUNK, CHUNK), (size, size)))
    pixels = da.map_blocks(block, chunks=chunks, dtype=np.uint8, meta=np.empty((0, 0, 0), np.uint8))
    systems = {"slide": Identity(), "slide_microns": Scale([MICRONS] * 2, axes=("x", "y"))}
    SpatialData(images={"slide_image": _pyramid(pixels, systems)}).write(path)


def fresh(path: Path) -> SpatialData:
    logging.getLogger("nh2st_scverse").setLevel(logging.WARNING)
    warnings.simplefilter("ignore")
    return spatialdata.read_zarr(path)


def with_spots(path: Path, spacing_um: float) -> Section:
    sdata = fresh(path)
    nh.pp.grid(sdata, spacing_um=spacing_um)
    from nh2st_scverse.tl._predict import _annotated

    keys = {"shapes_key": None, "image_key": None, "microns_per_pixel": None}
    return find_sections(_annotated(sdata, keys, spacing_um)[0], allow="off_tissue")[1][0]


def ratio(path: Path, encoder: Any, n: int) -> dict[str, float]:
    """Patches per second of the whole path and of the encoder alone, on `n` spots next to each other."""
    section = with_spots(path, 100.0)
    every = np.flatnonzero(section.usable)
    near = np.concatenate(batches(section.geometry, every, size_um=PATCH, size_px=encoder.input_size))
    middle = max(0, len(near) // 2 - n // 2)
    section = section.keep(near[middle : middle + n])
    encoder(np.zeros((8, encoder.input_size, encoder.input_size, 3), np.uint8))
    seconds = dict.fromkeys(("cutting", "encoder", "path"), 0.0)

    def timed(what: str, call: Any) -> Any:
        started = time.perf_counter()
        result = call()
        seconds[what] += time.perf_counter() - started
        return result

    total = 0
    for part in np.array_split(np.arange(section.n_spots), 3):  # in turns: other work on the machine meets all alike
        one = section.keep(part)
        some = batches(one.geometry, np.arange(one.n_spots), size_um=PATCH, size_px=encoder.input_size)
        work = [(spots, PATCH * field) for spots in some for field in FIELDS]
        patches = timed("cutting", lambda: list(cut(one.geometry, work, size_px=encoder.input_size)))  # noqa: B023
        timed("encoder", lambda: [encoder(batch) for batch in patches])  # noqa: B023
        timed("path", lambda: encode(one, encoder, patch_um=PATCH, fields=FIELDS, progress=False))  # noqa: B023
        total += sum(map(len, patches))
    return {"patches": total} | {what: total / spent for what, spent in seconds.items()}


def predict(path: Path, model: Path, spacing_um: float) -> dict[str, float]:
    """Seconds and peak memory of a prediction in a process of its own."""
    sdata = fresh(path)
    trained = nh.NH2ST.load(model)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    started = time.perf_counter()
    nh.pp.grid(sdata, spacing_um=spacing_um)
    nh.tl.predict_expression(sdata, model=trained, encoder=Fast(), progress=False)
    seconds = time.perf_counter() - started
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return {"spots": sdata.tables["table"].n_obs, "seconds": seconds, "before": before / 2**20, "peak": peak / 2**20}


def bin_counts(hidden: np.ndarray, rng: np.random.Generator) -> sparse.csr_matrix:
    """Counts (n, GENES) of bins: PANEL genes follow the hidden state, a hundred molecules are of any other gene."""
    weights = rng.normal(size=(hidden.shape[1], PANEL))
    parts = []
    for some in np.array_split(hidden, np.ceil(len(hidden) / 20_000)):
        known = sparse.csr_matrix(rng.poisson(np.exp(0.5 * some @ weights - 1)), dtype=np.float32)
        other = rng.integers(0, GENES - PANEL, size=(len(some), 100))
        starts = np.arange(0, other.size + 1, 100)
        shape = (len(some), GENES - PANEL)
        rest = sparse.csr_matrix((np.ones(other.size, np.float32), other.ravel(), starts), shape=shape)
        rest.sum_duplicates()
        parts.append(sparse.hstack([known, rest], format="csr"))
    return sparse.vstack(parts, format="csr")


def bins(n: int, max_epochs: int | None) -> dict[str, float]:
    """Seconds and peak memory of training and prediction on `n` bins of 8 µm, in a process of its own."""
    logging.getLogger("nh2st_scverse").setLevel(logging.ERROR)
    warnings.simplefilter("ignore")
    rng = np.random.default_rng(0)
    side = int(np.ceil(np.sqrt(n)))
    row, column = np.divmod(np.arange(n), side)
    xy = np.stack([column, row], axis=1) * 8.0 / MICRONS + 50
    hidden = rng.normal(size=(n, 8)).astype(np.float32)
    obs = pd.DataFrame({"region": pd.Categorical(["bins"] * n), "bin": np.arange(n)}, index=[f"b{i}" for i in range(n)])
    var = pd.DataFrame(index=[f"gene{i}" for i in range(GENES)])
    table = AnnData(bin_counts(hidden, rng), obs=obs, var=var)
    features = rng.standard_normal((n, 256), dtype=np.float32)
    features += hidden @ rng.standard_normal((8, 256), dtype=np.float32)
    table.obsm["X_uni"] = features
    systems = {"slide": Identity(), "slide_microns": Scale([MICRONS] * 2, axes=("x", "y"))}
    pixels = da.full((3, int(xy.max()) + 50, int(xy.max()) + 50), 200, chunks=(3, CHUNK, CHUNK), dtype=np.uint8)
    shapes = ShapesModel.parse(xy, geometry=0, radius=4.0 / MICRONS, transformations=systems)
    tables = {"table": TableModel.parse(table, region="bins", region_key="region", instance_key="bin")}
    sdata = SpatialData(images={"image": _pyramid(pixels, systems)}, shapes={"bins": shapes}, tables=tables)
    given = {"microns_per_pixel": MICRONS, "allow": ("off_tissue", "coarse"), "progress": False}
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    started = time.perf_counter()
    epochs = {} if max_epochs is None else {"max_epochs": max_epochs}
    model = nh.tl.train(sdata, encoder="precomputed:X_uni", n_genes=250, **given, **epochs)
    trained = time.perf_counter()
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    nh.tl.predict_expression(sdata, model=model, table_added="predicted", **given)  # a layer has all genes, dense
    return {
        "epochs": len(model.history),
        "train": trained - started,
        "predict": time.perf_counter() - trained,
        "before": before,
        "train_peak": peak,
        "peak": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20,
    }


def alone(function: Any, *arguments: Any) -> Any:
    """Call in a fresh process, whose peak memory is that of the call."""
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        return pool.submit(function, *arguments).result()


def train_model(folder: Path) -> Path:
    logging.getLogger("nh2st_scverse").setLevel(logging.ERROR)
    patients = nh.datasets.synthetic(n_sections=2, width_um=1200)
    nh.tl.train(patients, encoder=Fast(), n_genes=50, max_epochs=2, n_members=2, progress=False).save(folder)
    return folder


def main(arguments: list[str] | None = None) -> dict[str, Any]:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", type=int, default=40_000, help="side of the slide in px (default: 40000); 0: none")
    parser.add_argument("--patches", type=int, default=384, help="spots for the ratio with the default encoder")
    parser.add_argument("--spots", type=int, nargs="+", default=[1_000, 10_000, 100_000])
    parser.add_argument("--bins", type=int, nargs="*", default=[100_000, 500_000])
    parser.add_argument("--epochs", type=int, default=None, help="of the training on bins, for each member, at most")
    parser.add_argument("--folder", type=Path, default=None, help="where slides are written and kept")
    options = parser.parse_args(arguments)
    found: dict[str, Any] = {}
    if options.size:
        with tempfile.TemporaryDirectory() as temporary:
            found = on_slides(options, Path(temporary))
    for n in options.bins:
        one = alone(bins, n, options.epochs)
        each = n / 100_000
        found[f"bins {n}"] = one
        print(
            f"{n} bins: training {one['train']:.0f} s ({one['epochs']} epochs), prediction {one['predict']:.0f} s, "
            f"peak memory {one['peak']:.1f} GB ({one['train_peak']:.1f} GB after the training, {one['before']:.1f} GB "
            f"before); per 100,000 bins {one['train'] / each:.0f} s, {one['predict'] / each:.0f} s, "
            f"{(one['peak'] - one['before']) / each:.1f} GB",
            flush=True,
        )
    return found


def on_slides(options: argparse.Namespace, temporary: Path) -> dict[str, Any]:
    folder = options.folder or temporary
    folder.mkdir(parents=True, exist_ok=True)
    slides = {}
    for size in (options.size // 2, options.size):
        slides[size] = folder / f"slide_{size}.zarr"
        if not slides[size].exists():
            started = time.perf_counter()
            alone(write_slide, slides[size], size)
            print(f"wrote {size} x {size} px in {time.perf_counter() - started:.0f} s", flush=True)
    model = alone(train_model, temporary / "model")
    found: dict[str, Any] = {}

    for name, encoder, n in (("fast", Fast(), 2048), ("efficientnet_lite0", None, options.patches)):
        one = alone(ratio, slides[options.size], encoder or nh.encoders.get(name), n)
        found[f"ratio {name}"] = one["path"] / one["encoder"]
        print(
            f"{name}, {one['patches']} patches, per second: cutting {one['cutting']:.0f}, encoder "
            f"{one['encoder']:.0f}, whole path {one['path']:.0f}; path / encoder {found[f'ratio {name}']:.2f}",
            flush=True,
        )
    for size, path in slides.items():
        one = alone(predict, path, model, 100.0)
        found[f"peak {size}"] = one["peak"]
        print(
            f"{size} px: {one['spots']} spots at 100 µm in {one['seconds']:.1f} s; peak memory "
            f"{one['peak']:.2f} GB ({one['before']:.2f} GB before the call)",
            flush=True,
        )
    area = TISSUE * (options.size * MICRONS) ** 2
    for n in options.spots:
        one = alone(predict, slides[options.size], model, float(np.sqrt(area / n / (np.sqrt(3) / 2))))
        found[f"seconds per 1000 at {n}"] = 1000 * one["seconds"] / one["spots"]
        print(
            f"{one['spots']} spots: {one['seconds']:.1f} s, {found[f'seconds per 1000 at {n}']:.2f} s per 1,000, "
            f"peak memory {one['peak']:.2f} GB",
            flush=True,
        )
    return found


def test_slide() -> None:
    found = main(["--size", "8000", "--patches", "128", "--spots", "500", "2000", "--bins"])
    assert found["ratio efficientnet_lite0"] > 0.85
    assert found["peak 8000"] < 3 and found["peak 8000"] < 1.15 * found["peak 4000"]


if __name__ == "__main__":
    main()
