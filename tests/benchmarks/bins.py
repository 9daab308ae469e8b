"""Time and memory of training and prediction on tables of bins: what comes after the image side of ``slide.py``.

``python tests/benchmarks/bins.py`` (18,000 genes, more than half an hour). Its parts can run one by one. Each line says
whether its target holds:

- ``bins``: seconds and peak memory of training and prediction on tables of bins with precomputed features, per 100,000
  bins (no more of either for each bin of the largest table than for each of the smallest),
- ``training``: peak memory, and processor time of a training step and of all else, of ``tl.train`` on bins whose
  features, as many as the default encoder has, are in a ``cache_dir`` (under 8 GB, and a step as long as on the fewest
  bins). ``--training 1000000`` needs 16 GB of disk and, unless ``--steps 100`` leaves most out, hours.
"""

from __future__ import annotations

import argparse
import logging
import resource
import tempfile
import time
import warnings
from importlib import import_module
from pathlib import Path
from typing import Any

import dask.array as da
import lightning as L
import numpy as np
import pandas as pd
from anndata import AnnData
from scipy import sparse
from slide import FIELDS, LOOSE, MICRONS, SMALL, Wide, alone, say
from spatialdata import SpatialData
from spatialdata.models import ShapesModel, TableModel
from spatialdata.transformations import Identity, Scale

import nh2st_scverse as nh
from nh2st_scverse._options import Elements
from nh2st_scverse.data.cohort import collect
from nh2st_scverse.data.inputs import Recipe, _on_disk
from nh2st_scverse.data.patches import batches
from nh2st_scverse.io._image import CHUNK, pyramid
from nh2st_scverse.io._section import image_element

GENES, PANEL = 18_000, 300  # of a table of bins, and those of them that features tell
OF_BINS: dict[str, Any] = {"microns_per_pixel": MICRONS, "allow": ("off_tissue", "coarse", "other_stain")}
PARTS = ("bins", "training")


def bin_counts(
    hidden: np.ndarray, rng: np.random.Generator, genes: int = GENES, level: float = -1, others: int = 100
) -> sparse.csr_matrix:
    """Counts (n, genes) of bins: PANEL genes follow the hidden state, `others` molecules are of any other gene."""
    weights = rng.normal(size=(hidden.shape[1], PANEL))
    parts = []
    for some in np.array_split(hidden, np.ceil(len(hidden) / 20_000)):
        known = sparse.csr_matrix(rng.poisson(np.exp(0.5 * some @ weights + level)), dtype=np.float32)
        other = rng.integers(0, genes - PANEL, size=(len(some), others))
        starts = np.arange(0, other.size + 1, others)
        shape = (len(some), genes - PANEL)
        rest = sparse.csr_matrix((np.ones(other.size, np.float32), other.ravel(), starts), shape=shape)
        rest.sum_duplicates()
        parts.append(sparse.hstack([known, rest], format="csr"))
    return sparse.vstack(parts, format="csr")


def slide_of_bins(counts: sparse.csr_matrix) -> SpatialData:
    """Bins of 8 µm in a square, on a grey image."""
    n = counts.shape[0]
    row, column = np.divmod(np.arange(n), int(np.ceil(np.sqrt(n))))
    xy = np.stack([column, row], axis=1) * 8.0 / MICRONS + 50
    obs = pd.DataFrame({"region": pd.Categorical(["bins"] * n), "bin": np.arange(n)}, index=[f"b{i}" for i in range(n)])
    table = AnnData(counts, obs=obs, var=pd.DataFrame(index=[f"gene{i}" for i in range(counts.shape[1])]))
    systems = {"slide": Identity(), "slide_microns": Scale([MICRONS] * 2, axes=("x", "y"))}
    pixels = da.full((3, int(xy.max()) + 50, int(xy.max()) + 50), 200, chunks=(3, CHUNK, CHUNK), dtype=np.uint8)
    shapes = ShapesModel.parse(xy, geometry=0, radius=4.0 / MICRONS, transformations=systems)
    tables = {"table": TableModel.parse(table, region="bins", region_key="region", instance_key="bin")}
    return SpatialData(
        images={"image": image_element(pyramid([pixels]), systems)}, shapes={"bins": shapes}, tables=tables
    )


def bins(n: int, settings: dict[str, int]) -> dict[str, float]:
    """Seconds and peak memory of training and prediction on `n` bins of 8 µm, in a process of its own."""
    logging.getLogger("nh2st_scverse").setLevel(logging.ERROR)
    warnings.simplefilter("ignore")
    rng = np.random.default_rng(0)
    hidden = rng.normal(size=(n, 8)).astype(np.float32)
    sdata = slide_of_bins(bin_counts(hidden, rng))
    features = rng.standard_normal((n, 256), dtype=np.float32)
    features += hidden @ rng.standard_normal((8, 256), dtype=np.float32)
    sdata["table"].obsm["X_uni"] = features
    given = {**OF_BINS, "progress": False}
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    started, busy = time.perf_counter(), time.process_time()
    model = nh.tl.train(sdata, encoder="precomputed:X_uni", n_genes=250, **given, **settings)
    trained, busy_trained = time.perf_counter(), time.process_time()
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    nh.tl.predict_expression(sdata, model=model, table_added="predicted", **given)  # a layer has all genes, dense
    return {
        "epochs": len(model.history),
        "train": trained - started,
        "predict": time.perf_counter() - trained,
        "busy_train": busy_trained - busy,
        "busy_predict": time.process_time() - busy_trained,
        "before": before,
        "train_peak": peak,
        "peak": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20,
    }


class Cached(Wide):
    """Its features are in the cache."""

    name = "cached"

    def __call__(self, patches: np.ndarray) -> np.ndarray:
        raise AssertionError("the features of these patches are not in the cache")


def few_counts(n: int) -> tuple[SpatialData, np.ndarray]:
    """Bins with some 60 molecules of 2,000 genes each, and their hidden state (n, 8)."""
    logging.getLogger("nh2st_scverse").setLevel(logging.ERROR)
    warnings.simplefilter("ignore")
    rng = np.random.default_rng(0)
    hidden = rng.normal(size=(n, 8)).astype(np.float32)
    return slide_of_bins(bin_counts(hidden, rng, genes=2_000, level=-3, others=20)), hidden


def write_cache(n: int, folder: Path) -> None:
    """Leave features of `n` bins in a folder, as their encoding would."""
    sdata, hidden = few_counts(n)
    encoder, rng = Cached(SMALL), np.random.default_rng(1)
    cohort = collect(sdata, Elements(microns_per_pixel=MICRONS, allow=frozenset(OF_BINS["allow"])))
    (sample,), recipe = cohort.samples, Recipe(encoder, cohort.patch_um, FIELDS)
    section = sample.section
    mark = recipe.mark(section, encoder, sample.table.obs_names[section.rows])
    cache = _on_disk(section, encoder, recipe, mark, folder)
    weights = rng.standard_normal((len(FIELDS), hidden.shape[1], encoder.dim), dtype=np.float32)
    side = cohort.patch_um * min(FIELDS)
    for at, some in enumerate(batches(section.geometry, np.arange(n), size_um=side, size_px=encoder.input_size)):
        for field, of_hidden in enumerate(weights):
            noise = rng.standard_normal((len(some), encoder.dim), dtype=np.float32)
            cache.put(at, field, hidden[some] @ of_hidden + noise)


class Steps(L.Callback):
    """Seconds of the processor for each training step."""

    def __init__(self) -> None:
        self.seconds: list[float] = []

    def on_train_batch_start(self, *_: Any) -> None:
        self.started = time.process_time()

    def on_train_batch_end(self, *_: Any) -> None:
        self.seconds.append(time.process_time() - self.started)


WATCHED = {
    "tl._train": ("collect", "check_apart", "choose_panel", "measure", "card_for", "see", "fit"),
    "model.ensemble": ("make_folds", "data_hash", "refit_ridges", "_held_out"),
    "train.fit": ("stack", "_prepare", "_fit_ridges", "_run"),
}


def training(n: int, cache: Path, folder: Path, most: int | None, settings: dict[str, int]) -> dict[str, Any]:
    """Seconds by part, and peak memory, of a training on `n` bins through to the saved model."""
    sdata, _ = few_counts(n)
    seconds: dict[str, float] = {}

    def watch(module: Any, name: str) -> None:
        call = getattr(module, name)

        def timed(*arguments: Any, **options: Any) -> Any:
            started = time.process_time()
            try:
                return call(*arguments, **options)
            finally:
                seconds[name] = seconds.get(name, 0) + time.process_time() - started

        setattr(module, name, timed)

    for place, names in WATCHED.items():
        for name in names:
            watch(import_module(f"nh2st_scverse.{place}"), name)
    steps = Steps()
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    started = time.perf_counter(), time.process_time()
    model = nh.tl.train(
        sdata, encoder=Cached(SMALL), n_genes=250, fields=FIELDS, cache_dir=cache, checkpoint_dir=folder / "made",
        trainer_kwargs={"callbacks": [steps], "limit_train_batches": most}, **OF_BINS, progress=False, **settings,
    )  # fmt: skip
    model.save(folder / "model")
    return {
        "seconds": time.perf_counter() - started[0],
        "busy": time.process_time() - started[1],
        "step": float(np.median(steps.seconds)),
        "steps": len(steps.seconds),
        "parts": seconds,
        "before": before,
        "peak": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20,
    }


def on_bins(options: argparse.Namespace, settings: dict[str, int]) -> None:
    first: dict[str, float] = {}  # of the smallest table, per 100,000 bins
    for n in sorted(options.bins):
        one = alone(bins, n, settings)
        each = {
            "an epoch": one["busy_train"] / one["epochs"],
            "prediction": one["busy_predict"],
            "memory": one["peak"] - one["before"],
        }
        each = {what: value / (n / 100_000) for what, value in each.items()}
        holds = all(each[what] < LOOSE * first[what] for what in first) if first else None
        first = first or each
        say(
            f"{n} bins: training {one['train']:.0f} s ({one['epochs']} epochs), prediction {one['predict']:.0f} s, "
            f"peak memory {one['peak']:.1f} GB ({one['train_peak']:.1f} GB after the training, {one['before']:.1f} GB "
            f"before); per 100,000 bins {each['an epoch']:.1f} s of processor time for an epoch, "
            f"{each['prediction']:.0f} s for the prediction, {each['memory']:.1f} GB beside the table",
            holds,
        )


def on_cached(options: argparse.Namespace, settings: dict[str, int]) -> None:
    first = 0.0
    for n in sorted(options.training):
        with tempfile.TemporaryDirectory(dir=options.folder) as temporary:
            cache = Path(temporary) / "cache"
            alone(write_cache, n, cache)
            one = alone(training, n, cache, Path(temporary), options.steps, settings)
        first = first or one["step"]
        parts = ", ".join(f"{name.strip('_')} {spent:.0f}" for name, spent in one["parts"].items())
        say(
            f"{n} bins: training {one['seconds']:.0f} s, peak memory {one['peak']:.1f} GB ({one['before']:.1f} GB "
            f"before); {one['busy']:.0f} s of processor time: {one['steps']} steps of {1000 * one['step']:.0f} ms, "
            f"{parts}",
            one["peak"] < 8 and one["step"] < LOOSE * first,
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=PARTS, help="what is measured (default: all)")
    parser.add_argument("--bins", type=int, nargs="+", default=[100_000, 500_000])
    parser.add_argument("--training", type=int, nargs="+", default=[10_000, 100_000], help="bins of that part")
    parser.add_argument("--steps", type=int, default=None, help="of an epoch of that part, at most")
    parser.add_argument("--epochs", type=int, default=None, help="of the training, for each member, at most")
    parser.add_argument("--members", type=int, default=None, help="of the model")
    parser.add_argument("--folder", type=Path, default=None, help="where features are written meanwhile")
    options = parser.parse_args()
    given = {"max_epochs": options.epochs, "n_members": options.members}
    settings = {name: value for name, value in given.items() if value is not None}
    for part, measure in {"bins": on_bins, "training": on_cached}.items():
        if part in options.parts:
            measure(options, settings)


if __name__ == "__main__":
    main()
