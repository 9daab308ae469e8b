"""How accurate are NH2ST and its baselines on real sections that they never saw?

    python tests/benchmarks/accuracy.py                    # all five data sets, about an hour on two cores
    python tests/benchmarks/accuracy.py her2st mob --out scores
    python tests/benchmarks/accuracy.py --shift            # on sections that differ from those of training: shift.py

Needs the folder of real sections (NH2ST_DATA, else ../shared/data). Groups are held out as the data sets allow:
sections of her2st and of the two Visium tissues, mice of mob, blocks of colon. Targets are not smoothed, the panel has
the 250 genes of highest mean, chosen on the training groups of each fold.
"""

from __future__ import annotations

import argparse
import os
import time
import warnings
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from unittest import mock

import anndata as ad
import numpy as np
import pandas as pd
import shift
from spatialdata import SpatialData

import nh2st_scverse as nh
from nh2st_scverse.data.inputs import sight_um
from nh2st_scverse.metrics import bootstrap
from nh2st_scverse.tl import _setup

LEARNT = ("knn", "ridge", "mlp", "retrieval")
FIELD = tuple(f"{name}@patch" for name in LEARNT)  # as the field uses them: one standard patch for each spot
SAME = (*LEARNT, *(f"{name}_context" for name in LEARNT))  # every image input that NH2ST gets
CONTROLS = ("composition", "position")  # how far one gets without looking closely
SHOWN = (
    "pearson",
    "partial_pearson",
    "of_ceiling",
    "pearson_measurable50",
    "spearman",
    "mse",
    "mae",
    "ssim",
    "variance_ratio",
)


def her2st(data: Path) -> tuple[dict[str, SpatialData], dict[str, str] | None]:
    return {name: nh.io.her2st(data / "her2st", name) for name in ("C2", "C3", "C4", "C5")}, None


def mob(data: Path) -> tuple[dict[str, SpatialData], dict[str, str] | None]:
    objects, mice = {}, {}
    for path in sorted((data / "mob").glob("*.h5ad")):
        adata = ad.read_h5ad(path)
        objects[path.stem] = nh.io.from_anndata(
            adata, path.with_suffix(".jpg"), microns_per_pixel=200 / adata.uns["px_per_200um"], spot_diameter=100
        )
        mice[path.stem] = str(adata.uns["mouse"])
    return objects, mice


def visium(tissue: str) -> Callable[[Path], tuple[dict[str, SpatialData], dict[str, str] | None]]:
    def read(data: Path) -> tuple[dict[str, SpatialData], dict[str, str] | None]:
        import spatialdata_io

        objects = {}
        for path in sorted(p for p in (data / "visium_ffpe" / tissue).glob("*") if p.is_dir()):
            objects[path.name] = spatialdata_io.visium(path, dataset_id=path.name)
            objects[path.name].tables["table"].var_names_make_unique()
        return objects, None

    return read


def colon(data: Path) -> tuple[dict[str, SpatialData], dict[str, str] | None]:
    adata = ad.read_h5ad(data / "colon" / "colon_d0.h5ad")
    resolution = 100 / adata.uns["px_per_100um"]
    image = data / "colon" / "colon_d0.jpg"
    return {"d0": nh.io.from_anndata(adata, image, microns_per_pixel=resolution, spot_diameter=55)}, None


DATASETS = {
    "her2st": her2st,
    "mob": mob,
    "mousebrain": visium("mousebrain"),
    "kidneyorganoid": visium("kidneyorganoid"),
    "colon": colon,
}


def best(table: pd.DataFrame, methods: tuple[str, ...]) -> str:
    return str(table.loc[[m for m in methods if m in table.index], "pearson"].idxmax())


def with_interval(row: pd.Series, name: str) -> str:
    return f"{row[name]:.3f} ({row[f'{name}_low']:.3f}–{row[f'{name}_high']:.3f})"


def overview(tables: dict[str, pd.DataFrame], scores: dict[str, pd.DataFrame]) -> pd.DataFrame:
    """One row for each data set: NH2ST, the best baseline of each kind, and the gains with their intervals."""
    rows = {}
    for name, table in tables.items():
        row = {"NH2ST": with_interval(table.loc["nh2st"], "pearson")}
        row["of ceiling"] = with_interval(table.loc["nh2st"], "of_ceiling")
        for kind, methods in {"as the field": FIELD, "same inputs": SAME}.items():
            other = best(table, methods)
            row[f"best, {kind}"] = f"{other} {table.loc[other, 'pearson']:.3f}"
            paired = nh.tl.paired_differences(scores[name]).set_index("other").loc[other]
            gain = paired[["difference", "low", "high"]].astype(float) / table.loc[other, "pearson"]
            row[f"gain, {kind}"] = f"{gain['difference']:+.0%} ({gain['low']:+.0%} to {gain['high']:+.0%})"
        rows[name] = row
    return pd.DataFrame.from_dict(rows, orient="index")


def average(tables: dict[str, pd.DataFrame]) -> pd.DataFrame:
    """Mean over the data sets of each method's Pearson, with an interval over data sets."""
    pearson = pd.DataFrame({name: table["pearson"] for name, table in tables.items()}).dropna()
    means = {
        m: np.quantile(bootstrap(row.to_numpy()[None], rows=False), [0.025, 0.975]) for m, row in pearson.iterrows()
    }
    pearson.insert(0, "mean", pearson.mean(axis=1))
    pearson.insert(1, "interval", [f"{means[m][0]:.3f}–{means[m][1]:.3f}" for m in pearson.index])
    return pearson.sort_values("mean", ascending=False)


@contextmanager
def margin(maps: str | None) -> Iterator[None]:
    """Leave out round held-out blocks what a place sees by these maps, however the fields of view are encoded."""
    if maps is None:
        yield
        return
    with mock.patch.object(_setup, "sight_um", lambda c, um: sight_um(replace(c, maps=maps), um)):
        yield


def checked_folder(parser: argparse.ArgumentParser, given: argparse.Namespace, known: Collection[str]) -> Path:
    """Folder of the real sections; ends the program when it or a data set that was asked for is not there."""
    unknown = [name for name in given.datasets if name not in known]
    if unknown:
        parser.error(f"unknown data sets {unknown}; there are {list(known)}")
    root = Path(__file__).resolve().parents[2]
    data = Path(given.data or os.environ.get("NH2ST_DATA", root.parent / "shared" / "data"))
    if not data.is_dir():
        parser.error(f"no real sections at {data}: pass --data or set NH2ST_DATA")
    return data


def away_from_home(given: argparse.Namespace, data: Path) -> None:
    """Print the scores on sections that differ from those of training, and how well they were expected."""
    read = {name: partial(one, data) for name, one in DATASETS.items()}
    wanted = [name for name in given.baselines if name in SAME]
    options = {"preset": given.preset, "encoder": given.encoder, "seed": given.seed}
    scores = shift.run(read, given.datasets or list(DATASETS), wanted, **options)
    if given.out:
        given.out.mkdir(parents=True, exist_ok=True)
        scores.to_csv(given.out / "shift.csv", index=False)
    print(f"\n## Away from home\n\n{shift.overview(scores).round(3).to_string()}\n\n{shift.calibration(scores)}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("datasets", nargs="*", metavar="dataset", help=f"some of {', '.join(DATASETS)}; all by default")
    parser.add_argument("--data", type=Path, help="folder of the real sections")
    parser.add_argument("--out", type=Path, help="folder for the scores (CSV) and a figure of each data set")
    parser.add_argument("--cache", type=Path, help="folder for the features, so that a second run need not encode")
    parser.add_argument("--preset", default="default")
    parser.add_argument("--encoder", help="name of an encoder, several joined by '+'; the default if left out")
    parser.add_argument(
        "--maps", choices=("none", "wide", "all"), help="fields of view from maps; the preset's if left out"
    )
    parser.add_argument(
        "--margin",
        choices=("none", "wide", "all"),
        help="round held-out blocks, as wide as these maps need it, so that ways of encoding train on the same spots",
    )
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--baselines", nargs="*", default=["mean", *CONTROLS, *SAME, *FIELD])
    parser.add_argument("--shift", action="store_true", help="sections that differ from those of training")
    given = parser.parse_args()
    data = checked_folder(parser, given, DATASETS)

    warnings.simplefilter("ignore")  # of the readers: gene names, transformations
    pd.set_option("display.width", 240, "display.max_columns", 40, "display.max_colwidth", 60)
    if given.shift:
        away_from_home(given, data)
        return
    scores, tables = {}, {}
    for name in given.datasets or DATASETS:
        start = time.perf_counter()
        objects, groups = DATASETS[name](data)
        with margin(given.margin):
            scores[name] = nh.tl.cross_validate(
                objects,
                groups=groups,
                baselines=given.baselines,
                preset=given.preset,
                encoder=given.encoder,
                seed=given.seed,
                **({} if given.maps is None else {"maps": given.maps}),
                allow="coarse",
                progress=False,
                cache_dir=given.cache and given.cache / name,
            )
        table = tables[name] = nh.tl.summarise(scores[name]).sort_values("pearson", ascending=False)
        shown = table[list(SHOWN)].round(3)
        shown.insert(1, "interval", [f"{a:.3f}–{b:.3f}" for a, b in table[["pearson_low", "pearson_high"]].to_numpy()])
        ceiling = scores[name].drop_duplicates(["fold", "section", "gene"])["ceiling"].mean()
        minutes = (time.perf_counter() - start) / 60
        n_folds = scores[name]["fold"].nunique()
        print(f"\n## {name}: {n_folds} folds, noise ceiling {ceiling:.3f}, {minutes:.1f} min\n", flush=True)
        print(shown.to_string(), flush=True)
        if given.out:
            given.out.mkdir(parents=True, exist_ok=True)
            scores[name].to_csv(given.out / f"{name}.csv.gz", index=False)
            nh.pl.benchmark(scores[name], metric=["pearson", "mse"], save=given.out / f"{name}.png")

    if set(FIELD) & set(given.baselines) and set(SAME) & set(given.baselines):
        print("\n## NH2ST against the best baseline of each kind (mean Pearson over all genes, 95 % interval)\n")
        print(overview(tables, scores).T.to_string())
    if len(tables) > 1:
        print("\n## Mean over the data sets\n")
        print(average(tables).round(3).to_string())


if __name__ == "__main__":
    main()
