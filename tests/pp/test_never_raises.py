"""``pp.check`` shows whatever is wrong as a line: objects are spoiled in many ways, and it never raises."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import dask.array as da
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
from anndata import AnnData
from shapely import Point, Polygon
from spatialdata import SpatialData
from spatialdata.models import Image2DModel, ShapesModel, TableModel
from spatialdata.transformations import Affine, Identity, Scale, set_transformation

import nh2st_scverse as nh

SIDE = 300  # px of 2 µm


def section() -> SpatialData:
    """25 spots on a small picture of purple tissue."""
    rng = np.random.default_rng(0)
    picture = np.full((SIDE, SIDE, 3), 240, dtype=np.uint8)
    picture[30:270, 30:270] = np.array([150, 90, 160]) + rng.integers(-25, 25, (240, 240, 3))
    systems = {"a": Identity(), "a_microns": Scale([2, 2], axes=("x", "y"))}
    at = np.stack(np.meshgrid(np.arange(5), np.arange(5)), -1).reshape(-1, 2) * 50.0 + 50
    shapes = ShapesModel.parse(at, geometry=0, radius=14, transformations={"a": Identity()})
    obs = pd.DataFrame(
        {"region": pd.Categorical(["spots"] * 25), "spot": np.arange(25)}, index=[f"s{i}" for i in range(25)]
    )
    table = AnnData(sp.csr_matrix(rng.poisson(3, (25, 20)).astype(np.float32)), obs=obs)
    return SpatialData(
        images={"he": Image2DModel.parse(picture.transpose(2, 0, 1), dims=("c", "y", "x"), transformations=systems)},
        shapes={"spots": shapes},
        tables={"table": TableModel.parse(table, region="spots", region_key="region", instance_key="spot")},
    )


def x(make: Callable[[np.ndarray], Any]) -> Callable[[SpatialData], Any]:
    return lambda s: setattr(s.tables["table"], "X", make(s.tables["table"].X.toarray()))


def one(value: float) -> Callable[[SpatialData], Any]:
    return x(lambda v: np.where(np.arange(v.size).reshape(v.shape) == 7, value, v))


def obs(column: str, values: Any) -> Callable[[SpatialData], Any]:
    return lambda s: setattr(s.tables["table"], "obs", s.tables["table"].obs.assign(**{column: values}))


def attributes(value: Any) -> Callable[[SpatialData], Any]:
    return lambda s: s.tables["table"].uns.__setitem__("spatialdata_attrs", value)


def table(make: Callable[[AnnData], AnnData]) -> Callable[[SpatialData], Any]:
    return lambda s: dict.__setitem__(s.tables.data, "table", make(s.tables["table"]))


def names(axis: str) -> Callable[[SpatialData], Any]:
    def spoil(s: SpatialData) -> None:
        index = getattr(s.tables["table"], axis)
        setattr(s.tables["table"], axis, [index[1], *index[1:]])

    return spoil


def geometry(make: Callable[[int, Point], Any]) -> Callable[[SpatialData], Any]:
    return lambda s: setattr(
        s.shapes["spots"], "geometry", [make(i, p) for i, p in enumerate(s.shapes["spots"].geometry)]
    )


def shapes(make: Callable[[Any], Any]) -> Callable[[SpatialData], Any]:
    return lambda s: dict.__setitem__(s.shapes.data, "spots", make(s.shapes["spots"]))


def image(make: Callable[[np.ndarray], np.ndarray]) -> Callable[[SpatialData], Any]:
    def spoil(s: SpatialData) -> None:
        systems = {"a": Identity(), "a_microns": Scale([2, 2], axes=("x", "y"))}
        made = make(s.images["he"].values)
        s.images["he"] = Image2DModel.parse(made, dims=("c", "y", "x"), transformations=systems)

    return spoil


def system(element: str, transformation: Any, name: str = "a") -> Callable[[SpatialData], Any]:
    return lambda s: set_transformation(s[element], transformation, name)


def affine(*rows: Any) -> Affine:
    return Affine(np.array([*rows, [0, 0, 1]], dtype=float), input_axes=("x", "y"), output_axes=("x", "y"))


SPOIL: dict[str, Callable[[SpatialData], Any]] = {
    "no X": lambda s: setattr(s.tables["table"], "X", None),
    "words": x(lambda v: np.full(v.shape, "many", dtype=object)),
    "objects": x(lambda v: v.astype(object)),
    "NaN": one(np.nan),
    "infinity": one(np.inf),
    "less than 0": one(-1.0),
    "zeros": x(np.zeros_like),
    "complex": x(lambda v: v.astype(complex)),
    "lazy": x(lambda v: da.from_array(v, chunks=(5, -1))),
    "lazy, and fails": x(lambda v: da.from_array(v, chunks=(5, -1)).map_blocks(lambda b: 1 / 0, meta=v[:0])),
    "no genes": table(lambda t: t[:, :0].copy()),
    "no spots": table(lambda t: t[:0].copy()),
    "one spot": table(lambda t: t[:1].copy()),
    "spots twice": names("obs_names"),
    "genes twice": names("var_names"),
    "no region": lambda s: s.tables["table"].obs.pop("region"),
    "no ids": lambda s: s.tables["table"].obs.pop("spot"),
    "ids of others": obs("spot", np.arange(25) + 90),
    "ids as words": obs("spot", [f"{i}" for i in range(25)]),
    "ids with NaN": obs("spot", [np.nan, *range(1, 25)]),
    "one id": obs("spot", 3),
    "another region": obs("region", "cells"),
    "lists in in_tissue": obs("in_tissue", [[1]] * 25),
    "NaN in in_tissue": obs("in_tissue", np.nan),
    "all off the tissue": obs("in_tissue", 0),
    "attributes None": attributes(None),
    "attributes a text": attributes("spots"),
    "attributes a list": attributes([1]),
    "attributes in part": attributes({"region": "spots"}),
    "region a number": attributes({"region": 5, "region_key": "region", "instance_key": "spot"}),
    "region a list of None": attributes({"region": [None], "region_key": "region", "instance_key": "spot"}),
    "a place of NaN": geometry(lambda i, p: Point(np.nan, np.nan) if i == 3 else p),
    "a place of nothing": geometry(lambda i, p: Point() if i == 3 else p),
    "one place": geometry(lambda i, p: Point(100, 100)),
    "far away": geometry(lambda i, p: Point(p.x + 1e9, p.y)),
    "without end": geometry(lambda i, p: Point(np.inf, p.y)),
    "on a line": geometry(lambda i, p: Point(10 * i, 50)),
    "flat polygons": geometry(lambda i, p: Polygon([(p.x, p.y), (p.x + 5, p.y), (p.x, p.y)])),
    "no shape": shapes(lambda g: g.iloc[:0]),
    "one shape": shapes(lambda g: g.iloc[:1]),
    "no radius": shapes(lambda g: g.drop(columns="radius")),
    "radius of nothing": shapes(lambda g: g.assign(radius=0.0)),
    "radius of NaN": shapes(lambda g: g.assign(radius=np.nan)),
    "radius less than 0": shapes(lambda g: g.assign(radius=-5.0)),
    "shapes twice": shapes(lambda g: g.set_index(pd.Index([1] * 25))),
    "one channel": image(lambda p: p[:1]),
    "five channels": image(lambda p: np.concatenate([p, p[:2]])),
    "a pixel": image(lambda p: p[:, :1, :1]),
    "black": image(np.zeros_like),
    "white": image(lambda p: np.full_like(p, 255)),
    "pixels of NaN": image(lambda p: np.full(p.shape, np.nan)),
    "pixels below 0": image(lambda p: -p.astype(float)),
    "16 bit": image(lambda p: p.astype(np.uint16) * 257),
    "yes and no": image(lambda p: p > 100),
    "no image": lambda s: s.images.clear(),
    "no shapes": lambda s: s.shapes.clear(),
    "nothing": lambda s: (s.images.clear(), s.shapes.clear(), s.tables.clear()),
    "systems apart": lambda s: set_transformation(s["he"], {"b": Identity()}, set_all=True),
    "flat system": system("he", affine([0, 0, 0], [0, 0, 0])),
    "system of NaN": system("he", affine([np.nan, 0, 0], [0, 1, 0])),
    "no µm": system("he", affine([0, 0, 0], [0, 0, 0]), "a_microns"),
    "mirrored system": system("spots", affine([-1, 0, 300], [0, 1, 0])),
    "uns of numbers": lambda s: s.tables["table"].uns.__setitem__("nh2st", 5),
}
RIGHT = {"objects", "lazy", "16 bit", "uns of numbers", "mirrored system", "no shapes"}
ARGUMENTS: list[dict[str, Any]] = [
    {"table_key": "x"},
    {"table_key": 5},
    {"shapes_key": "x"},
    {"shapes_key": ["spots"]},
    {"image_key": "x"},
    {"image_key": {"spots": "x"}},
    {"image_key": {"x": "he"}},
    {"image_key": 5},
    {"layer": "x"},
    {"layer": 5},
    {"microns_per_pixel": -1},
    {"microns_per_pixel": "2"},
    {"microns_per_pixel": 1e-9},
    {"patch_um": 1e6},
]


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("kind", SPOIL)
def test_spoilt_objects_are_lines(kind: str) -> None:
    sdata = section()
    SPOIL[kind](sdata)
    found = nh.pp.check(sdata)
    assert len(found) and set(found["status"]) <= {"ok", "warning", "error"} and found.map(type).eq(str).all(axis=None)
    if kind not in RIGHT:
        assert (found["status"] != "ok").any(), found


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("arguments", ARGUMENTS, ids=str)
def test_arguments_that_fit_nothing_are_lines(arguments: dict[str, Any]) -> None:
    assert (nh.pp.check(section(), **arguments)["status"] == "error").any()


@pytest.mark.filterwarnings("ignore")
def test_two_faults_at_once_are_lines_too() -> None:
    rng = np.random.default_rng(0)
    pairs = list(itertools.combinations(SPOIL, 2))
    for at in rng.choice(len(pairs), 25, replace=False):
        sdata = section()
        try:
            for kind in pairs[at]:
                SPOIL[kind](sdata)
        except Exception:  # they exclude each other
            continue
        assert len(nh.pp.check(sdata)), pairs[at]
