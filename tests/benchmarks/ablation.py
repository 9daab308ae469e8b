"""What is each part of the default model worth? One lever at a time, on sections that were not trained on.

    python tests/benchmarks/ablation.py                              # all data sets, two seeds: hours on two cores
    python tests/benchmarks/ablation.py her2st mob --seeds 0 --out levers.csv
    python tests/benchmarks/ablation.py mob --levers "two orientations"       # with the default beside it

Needs the folder of real sections (NH2ST_DATA, else ../shared/data). Data sets and held-out groups are those of
``accuracy.py``. Every field of view is encoded once, and each lever is given its part of the features; blocks of colon
keep the margin of the widest field of the default whatever the lever. Each model has one network instead of three, for
time; that costs all of them alike. What ``--cache`` keeps is of one version of the model: empty it after a change.
"""

from __future__ import annotations

import argparse
import logging
import multiprocessing
import os
import sys
import tempfile
import warnings
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from accuracy import DATASETS, checked_folder
from spatialdata import SpatialData

import nh2st_scverse as nh
from nh2st_scverse.metrics import bootstrap

DEFAULT = "default"
LEVERS: dict[str, dict[str, Any]] = {
    DEFAULT: {},
    # parts of NH2ST
    "no hypergraph": {"n_similar": 0},
    "no query contrast": {"query_contrast": 0.0},
    "no neighbour contrast": {"neighbour_contrast": 0.0},
    "no contrast": {"query_contrast": 0.0, "neighbour_contrast": 0.0},
    "no cross-attention to the spots around": {"context": False},
    "none of these": {"n_similar": 0, "query_contrast": 0.0, "neighbour_contrast": 0.0, "context": False},
    # what goes beyond it
    "no Pearson loss": {"pearson": 0.0},
    "network alone": {"ridge": 0.0},
    "ridge alone": {"ridge": 1.0, "max_epochs": 1},
    "linear ridge": {"landmarks": None},
    "ridge gene by gene": {"rank": None},
    "all differences count alike": {"metric": 0},
    "spread of the images around": {"spread": True},
    "one field of view": {"fields": (1.0,)},
    "two fields of view": {"fields": (1.0, 2.5)},
    "four fields of view": {"fields": (1.0, 0.5, 2.5, 6.0)},
    "features by mean and variance": {"standardise": "section"},
    "features as they come": {"standardise": "none"},
    "smoothed target": {"smooth": True},
    "none beyond it": {"pearson": 0.0, "ridge": 0.0, "fields": (1.0,), "standardise": "none"},
}
TURNED = {"two orientations": {"orientations": 2}}  # asked for by name: every patch is encoded again
USED = nh.nn.Config().fields
EXTRA = (0.5,)  # fields of view that a lever wants beside these


@lru_cache(maxsize=1)
def encoded(
    data: Path, dataset: str, cache: Path, turned: bool
) -> tuple[dict[str, SpatialData], dict[str, str] | None, float]:
    """Sections with the features of all fields of view, their groups, and the side of a patch in µm.

    The mean features of two orientations stand behind the others where they are wanted.
    """
    objects, groups = DATASETS[dataset](data)
    short = {"n_members": 1, "max_epochs": 1, "ridge": 0.0, "n_genes": 10}  # trained for its encoding only
    options = {"groups": groups, "allow": "coarse", "progress": False, "cache_dir": cache / dataset}
    found: dict[str, list[np.ndarray]] = {name: [] for name in objects}
    for fields, orientations in [(USED, 1), (EXTRA, 1)] + [(USED, 2)] * turned:
        model = nh.tl.train(objects, fields=fields, orientations=orientations, **options, **short)
        for name, sdata in objects.items():
            table = sdata.tables["table"]
            found[name].append(table.obsm["nh2st_features"].reshape(table.n_obs, len(fields), -1))
    for name, sdata in objects.items():
        sdata.tables["table"].obsm["every_field"] = np.concatenate(found[name], axis=1)
    return objects, groups, model.patch_um


def encode(data: Path, dataset: str, cache: Path, turned: bool) -> None:
    """Leave the features in the cache."""
    warnings.simplefilter("ignore")
    encoded(data, dataset, cache, turned)


def run(data: Path, dataset: str, lever: str, seed: int, cache: Path, turned: bool) -> pd.DataFrame:
    """Mean Pearson over all genes, against the unsmoothed target, of each held-out section."""
    done = cache / dataset / "levers" / f"{lever}, seed {seed}.csv"
    if done.exists():
        return pd.read_csv(done)
    warnings.simplefilter("ignore")  # of the readers: gene names, transformations
    logging.getLogger("nh2st_scverse").setLevel("ERROR")
    objects, groups, patch_um = encoded(data, dataset, cache, turned)
    settings = {"n_members": 1, "fields": USED, "orientations": 1} | (LEVERS | TURNED)[lever]
    first = 0 if settings.pop("orientations") == 1 else len(USED + EXTRA)
    wanted = [first + (*USED, *EXTRA).index(field) for field in settings.pop("fields")]
    for sdata in objects.values():
        table = sdata.tables["table"]
        if settings.get("smooth") and "array_row" not in table.obs:
            return pd.DataFrame()  # it is smoothed over the array, and there is none
        table.obsm["wanted"] = table.obsm["every_field"][:, wanted].reshape(table.n_obs, -1)
    scores = nh.tl.cross_validate(
        objects,
        groups=groups,
        baselines=(),
        encoder="precomputed:wanted",
        fields=(1.0,),
        patch_um=patch_um * max(USED),
        seed=seed,
        allow=("coarse", "off_tissue"),
        progress=False,
        **settings,
    )
    pearson = scores.query("metric == 'pearson'").fillna({"value": 0.0}).groupby(["fold", "section"])["value"].mean()
    about = {"dataset": dataset, "lever": lever, "seed": seed}
    found = pearson.rename("pearson").reset_index().assign(**about)
    done.parent.mkdir(exist_ok=True)
    found.to_csv(done, index=False)
    return found


def run_all(
    data: Path,
    datasets: Sequence[str] = tuple(DATASETS),
    seeds: Sequence[int] = (0, 1),
    levers: Sequence[str] = tuple(LEVERS),
    workers: int = 2,
    cache: Path | None = None,
) -> pd.DataFrame:
    """Score every lever on every data set and seed, some at a time in processes of their own."""
    os.environ["OMP_NUM_THREADS"] = "1"  # of the processes that follow
    parts = []
    turned = bool(set(levers) & set(TURNED))
    with tempfile.TemporaryDirectory() as folder:
        cache = cache or Path(folder)
        with ProcessPoolExecutor(workers, mp_context=multiprocessing.get_context("spawn")) as pool:
            for _ in pool.map(partial(encode, data, cache=cache, turned=turned), datasets):
                pass
            tasks = {
                pool.submit(run, data, dataset, lever, seed, cache, turned): f"{dataset:15} {lever:40} seed {seed}"
                for dataset in datasets
                for seed in seeds
                for lever in levers
            }
            for done in as_completed(tasks):
                parts.append(done.result())
                score = "not possible" if parts[-1].empty else f"{parts[-1]['pearson'].mean():.3f}"
                print(f"{tasks[done]} {score}", file=sys.stderr, flush=True)
    order = {name: i for i, name in enumerate(LEVERS | TURNED)}
    return pd.concat(parts, ignore_index=True).sort_values(
        ["dataset", "lever", "seed", "fold", "section"], key=lambda c: c.map(order) if c.name == "lever" else c
    )


def table(scores: pd.DataFrame) -> pd.DataFrame:
    """Mean Pearson of each lever and data set, and the difference to the default with a 95 % interval.

    Seeds are averaged; the interval resamples the held-out sections (blocks of colon) of all data sets together.
    """
    means = scores.groupby(["lever", "dataset"], sort=False)["pearson"].mean().unstack()
    wide = scores.pivot_table(index=["dataset", "fold", "section", "seed"], columns="lever", values="pearson")
    rows = {}
    for lever in means.index:
        difference = (wide[lever] - wide[DEFAULT]).dropna().groupby(level=["dataset", "fold", "section"]).mean()
        drawn = bootstrap(difference.to_numpy()[:, None], columns=False)
        low, high = np.quantile(drawn, [0.025, 0.975])
        rows[lever] = {"to the default": difference.mean(), "low": low, "high": high}
    return means.join(pd.DataFrame(rows).T)


def main() -> None:
    """Run the levers, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "datasets", nargs="*", default=list(DATASETS), metavar="dataset", help=f"some of {', '.join(DATASETS)}"
    )
    parser.add_argument(
        "--levers", nargs="*", choices=list(LEVERS | TURNED), default=list(LEVERS), metavar="lever", help="some of them"
    )
    parser.add_argument("--seeds", nargs="*", type=int, default=[0, 1])
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--data", type=Path, help="folder of the real sections")
    parser.add_argument(
        "--cache", type=Path, help="folder for features and scores: a second run goes on where the first stopped"
    )
    parser.add_argument("--out", type=Path, help="CSV of the score of every lever, section and seed")
    given = parser.parse_args()
    data = checked_folder(parser, given, DATASETS)
    levers = tuple(dict.fromkeys((DEFAULT, *given.levers)))
    scores = run_all(data, tuple(given.datasets), tuple(given.seeds), levers, given.workers, given.cache)
    if given.out:
        scores.to_csv(given.out, index=False)
    pd.set_option("display.width", 240, "display.max_columns", 40)
    print(table(scores).round(3).to_string())


if __name__ == "__main__":
    main()
