from __future__ import annotations

from collections.abc import Callable
from typing import Any

import joblib
import matplotlib as mpl
import numpy as np
import pytest
import scipy.sparse as sp
import spatialdata
from spatialdata import SpatialData
from spatialdata.models import TableModel

import nh2st_scverse as nh

mpl.use("Agg")


class GridEncoder:
    """Mean colours on a 2 x 2 grid and their spread; counts the patches it encodes."""

    name, input_size, dim, weights_hash = "grid", 16, 15, "none"

    def __init__(self) -> None:
        self.n_patches = 0

    def __call__(self, patches: np.ndarray) -> np.ndarray:
        self.n_patches += len(patches)
        x = patches.astype(np.float32) / 255
        cells = x.reshape(len(x), 2, 8, 2, 8, 3).mean(axis=(2, 4)).reshape(len(x), 12)
        return np.concatenate([cells, x.std(axis=(1, 2))], axis=1)


@pytest.fixture
def encoder() -> GridEncoder:
    return GridEncoder()


@pytest.fixture
def quick(encoder: GridEncoder) -> dict[str, Any]:
    """Settings of a training of a second."""
    small = {"embedding": 32, "hidden": 32, "bottleneck": 32, "n_members": 2, "max_epochs": 2}
    return {"encoder": encoder, "n_genes": 20, "progress": False, **small}


@pytest.fixture(scope="session")
def _two() -> SpatialData:
    return nh.datasets.synthetic(n_sections=2, width_um=1200)


@pytest.fixture
def two(_two: SpatialData) -> SpatialData:
    """Two sections in one table, of about 100 spots each; a copy that a test may change."""
    return spatialdata.deepcopy(_two)


@pytest.fixture(scope="session")
def _one() -> SpatialData:
    return nh.datasets.synthetic(width_um=2000)


@pytest.fixture
def one(_one: SpatialData) -> SpatialData:
    """One section, large enough to hold out blocks of it."""
    return spatialdata.deepcopy(_one)


@pytest.fixture(scope="session")
def _model(_two: SpatialData) -> nh.NH2ST:
    settings = {"embedding": 32, "hidden": 32, "bottleneck": 32, "n_members": 2, "max_epochs": 2}
    return nh.tl.train(spatialdata.deepcopy(_two), encoder=GridEncoder(), n_genes=20, progress=False, **settings)


@pytest.fixture
def model(_model: nh.NH2ST) -> nh.NH2ST:
    """A model trained on the two sections of `two`."""
    return _model


@pytest.fixture
def snapshot() -> Callable[[SpatialData], dict[str, str]]:
    """What an object holds, as one hash for each part."""

    def dense(x: Any) -> Any:
        return (x.toarray(), type(x).__name__) if sp.issparse(x) else x

    def of(sdata: SpatialData) -> dict[str, str]:
        parts: dict[str, Any] = {"elements": sorted(name for _, name, _ in sdata.gen_elements())}
        for key, table in sdata.tables.items():
            parts[f"{key}.X"] = dense(table.X)
            for name, frame in {"obs": table.obs, "var": table.var}.items():
                parts[f"{key}.{name}"] = list(frame.index)
                parts |= {f"{key}.{name}.{column}": frame[column].to_numpy() for column in frame}
            for name in ("layers", "obsm", "varm", "obsp", "uns"):
                parts |= {f"{key}.{name}.{k}": dense(value) for k, value in getattr(table, name).items()}
        for name, shapes in sdata.shapes.items():
            parts[name] = [
                list(shapes.index),
                shapes.geometry.to_wkb().tolist(),
                shapes.drop(columns="geometry").to_numpy(),
            ]
        for name, image in sdata.images.items():
            arrays = [image] if hasattr(image, "values") and not callable(image.values) else list(image.leaves)
            parts[name] = [np.asarray(a if not hasattr(a, "data_vars") else a["image"].values) for a in arrays]
        for name, element in [*sdata.images.items(), *sdata.shapes.items()]:
            systems = spatialdata.transformations.get_transformation(element, get_all=True)
            parts[f"{name}.systems"] = {k: v.to_affine_matrix(("x", "y"), ("x", "y")) for k, v in systems.items()}
        return {name: joblib.hash(value) for name, value in parts.items()}

    return of


@pytest.fixture
def split() -> Callable[[SpatialData], list[SpatialData]]:
    """One object for each section of an object."""

    def of(sdata: SpatialData) -> list[SpatialData]:
        made = []
        table = sdata.tables["table"]
        for name in sdata.shapes:
            part = table[table.obs["region"] == name].copy()
            part.obs["region"] = part.obs["region"].astype(str).astype("category")
            del part.uns["spatialdata_attrs"]
            part = TableModel.parse(part, region=name, region_key="region", instance_key="spot_id")
            image = name.replace("_spots", "_image")
            made.append(
                SpatialData(
                    images={image: sdata.images[image]}, shapes={name: sdata.shapes[name]}, tables={"table": part}
                )
            )
        return made

    return of
