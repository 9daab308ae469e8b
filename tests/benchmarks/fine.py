"""Trained on spots of 55 µm, predicted at bins of 8 µm and at cells: is that more than the spot that is nearest?

    python tests/benchmarks/fine.py                    # about three quarters of an hour on one core
    python tests/benchmarks/fine.py --predicted 800    # ten minutes: most of the time goes into the bins
    python tests/benchmarks/fine.py --width 900 --set max_epochs=20

On drawn tissue the expected expression of every bin and cell is known. Two sections are trained on, a third is
predicted. r is the mean over genes that follow the tissue of the correlation with what is expected; coverage is the
share of the measured values of the spots of the third section in the intervals of 80 %.
"""

from __future__ import annotations

import argparse
import json
import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
from anndata import AnnData
from scipy.spatial import cKDTree
from spatialdata import SpatialData

import nh2st_scverse as nh
from nh2st_scverse._options import Elements
from nh2st_scverse.data.section import locate_sections

PROGRAMS = ("tumour", "stroma", "immune", "fat", "density", "context")


def draw(width_um: float, n_genes: int, seed: int) -> SpatialData:
    """A section with bins and cells, and its bins pooled into spots."""
    sdata = nh.datasets.synthetic(width_um=width_um, n_genes=n_genes, bins_um=8, cells=True, seed=seed)
    nh.pp.pseudospots(sdata, table_key="square_008um", key_added="spots_55um")
    return sdata


def expected(table: AnnData, genes: Sequence[str]) -> np.ndarray:
    """Expression (n, G) that is expected at every place, in the unit of a prediction."""
    drivers = table.obs.reindex(columns=table.var["depends_on"].astype(str), fill_value=0).to_numpy(float)
    rates = table.var["base"].to_numpy() + drivers * table.var["slope"].to_numpy()
    values = np.log1p(1e4 * rates / rates.sum(axis=1, keepdims=True))
    return values[:, table.var_names.get_indexer(genes)]


def centres(sdata: SpatialData, table_key: str) -> np.ndarray:
    """In pixels of the image, in the order of the rows."""
    (section,) = locate_sections(sdata, Elements.of(table_key))
    return section.geometry.pixels()


def correlation(a: np.ndarray, b: np.ndarray) -> float:
    """Mean over genes of the correlation over places."""
    return float(np.nanmean([np.corrcoef(x, y)[0, 1] for x, y in zip(a.T, b.T, strict=True)]))


def compare(
    train: Mapping[str, SpatialData], test: SpatialData, *, encoder: Any = None, **settings: Any
) -> pd.DataFrame:
    """A row for bins and one for cells: r at the place, and r of the prediction at the spot that is nearest."""
    model = nh.tl.train(train, table_key="spots_55um", encoder=encoder, **settings)
    how = {"model": model, "encoder": encoder, "progress": False}
    nh.tl.predict_expression(test, table_key="spots_55um", uncertainty=True, **how)
    spots = test["spots_55um"]
    panel = spots.var["nh2st"].to_numpy()
    measured = nh.data.expression.measured(spots)[:, panel]
    measured = measured.toarray() if hasattr(measured, "toarray") else np.asarray(measured)
    predicted, std = (np.asarray(spots.layers[key])[:, panel] for key in ("nh2st", "nh2st_std"))
    inside = np.abs(measured - predicted) <= spots.var["nh2st_z80"].to_numpy()[panel] * std
    names = spots.var_names[panel]
    rows = {}
    for key, label in {"square_008um": "bins of 8 µm", "cells": "cells"}.items():
        nh.tl.predict_expression(test, table_key=key, **how)
        table = test[key]
        known = table.var.loc[names, "program"].isin(PROGRAMS).to_numpy()
        truth = expected(table, names[known])
        place = np.asarray(table[:, names[known]].layers["nh2st"])
        _, nearest = cKDTree(centres(test, "spots_55um")).query(centres(test, key))
        rows[label] = {
            "r at the place": correlation(place, truth),
            "r of the nearest spot": correlation(predicted[nearest][:, known], truth),
        }
    table = pd.DataFrame.from_dict(rows, orient="index")
    table["coverage of 80 % at 55 µm"] = float(inside.mean())
    return table


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--width", type=float, default=1600.0, help="of the drawn sections, in µm")
    parser.add_argument("--predicted", type=float, help="width of the section that is predicted; default: --width")
    parser.add_argument("--genes", type=int, default=100)
    parser.add_argument("--set", nargs="*", default=[], metavar="NAME=VALUE", help="arguments of train, as JSON")
    given = parser.parse_args(arguments)
    settings = {key: json.loads(value) for key, _, value in (one.partition("=") for one in given.set)}
    warnings.filterwarnings("ignore", category=UserWarning)
    widths = {11: given.width, 12: given.width, 13: given.predicted or given.width}
    sections = [draw(width, given.genes, seed) for seed, width in widths.items()]
    print(compare(dict(zip("ab", sections[:2], strict=True)), sections[2], **settings).round(3).to_string())


if __name__ == "__main__":
    main()
