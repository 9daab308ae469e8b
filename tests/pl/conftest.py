from __future__ import annotations

from collections.abc import Callable

import joblib
import matplotlib as mpl
import numpy as np
import pytest
from scipy.spatial import cKDTree
from spatialdata import SpatialData

import nh2st_scverse as nh
from nh2st_scverse._constants import LOG_UNIT
from nh2st_scverse.data.expression import measured

mpl.use("Agg")


def add_prediction(sdata: SpatialData, n_genes: int = 40) -> SpatialData:
    """Write what a prediction writes: for some genes the measured values, smoothed and shrunken; NaN for the others."""
    table = sdata.tables["table"]
    values = measured(table)
    at = np.column_stack([table.obsm["spatial"], 1e6 * table.obs["region"].cat.codes])
    near = cKDTree(at).query(at, 7)[1]
    mean = values.mean(axis=0)
    panel = np.sort(np.argsort(-mean)[:n_genes])
    table.layers["nh2st"] = np.full(table.shape, np.nan, dtype=np.float32)
    table.layers["nh2st"][:, panel] = (mean + 0.7 * (values[near].mean(axis=1) - mean))[:, panel]
    table.var["nh2st"] = np.isin(np.arange(table.n_vars), panel)
    table.var["nh2st_pearson"] = np.nan
    table.var.loc[table.var["nh2st"], "nh2st_pearson"] = np.linspace(0.8, -0.1, n_genes)
    table.uns["nh2st"] = {"unit": LOG_UNIT}
    return sdata


@pytest.fixture
def sdata() -> SpatialData:
    return add_prediction(nh.datasets.synthetic(width_um=1200))


@pytest.fixture(scope="module")
def predicted() -> Callable[..., SpatialData]:
    """Makes sections with predictions, for fixtures that serve a whole file."""
    return lambda **settings: add_prediction(nh.datasets.synthetic(**settings))


@pytest.fixture
def two() -> SpatialData:
    return add_prediction(nh.datasets.synthetic(n_sections=2, width_um=1200))


@pytest.fixture
def state() -> Callable[[SpatialData], dict[str, str]]:
    """What an object holds, as one hash for each part."""

    def of(sdata: SpatialData) -> dict[str, str]:
        table = sdata["table"]
        parts = {"elements": sorted(name for _, name, _ in sdata.gen_elements()), "X": table.X.toarray()}
        for name, frame in {"obs": table.obs, "var": table.var}.items():
            parts |= {name: list(frame.index)} | {f"{name}.{column}": frame[column] for column in frame}
        for name in ("layers", "obsm", "uns"):
            parts |= {f"{name}.{key}": value for key, value in getattr(table, name).items()}
        for name, shapes in sdata.shapes.items():
            parts |= {
                name: [shapes.geometry.to_wkb().tolist(), shapes["radius"].tolist(), sorted(shapes.attrs["transform"])]
            }
        parts |= {name: [list(image.children), image["scale0"]["image"].values] for name, image in sdata.images.items()}
        return {name: joblib.hash(value) for name, value in parts.items()}

    return of
