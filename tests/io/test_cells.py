"""Cells that other programs found."""

from __future__ import annotations

import gzip
import json

import geopandas as gpd
import numpy as np
import pandas as pd
import pytest
import shapely
from spatialdata.transformations import get_transformation

import nh2st_scverse as nh


def feature(shape: shapely.Geometry, **properties: object) -> dict:
    return {"type": "Feature", "geometry": json.loads(shapely.to_geojson(shape)), "properties": properties}


SQUARES = [shapely.box(20 * i, 0, 20 * i + 10, 10) for i in range(8)]


def qupath() -> list[dict]:
    cells = [feature(s, objectType="cell", classification={"name": "Tumor", "color": [1, 2, 3]}) for s in SQUARES]
    cells[0]["nucleusGeometry"] = json.loads(shapely.to_geojson(SQUARES[0].buffer(-2)))
    return [*cells, feature(shapely.box(0, 0, 500, 500), objectType="annotation")]


def cellvit() -> list[dict]:
    groups = {"Neoplastic": SQUARES[:6], "Dead": SQUARES[6:]}
    return [
        feature(shapely.MultiPolygon(shapes), objectType="annotation", classification={"name": name})
        for name, shapes in groups.items()
    ]


def sopa() -> dict:
    empty = {"type": "Feature", "geometry": None, "properties": None}
    return {"type": "FeatureCollection", "features": [*(feature(s) for s in SQUARES), empty]}


@pytest.mark.parametrize(
    ("data", "classes"),
    [(qupath(), ["Tumor"] * 8), (cellvit(), ["Neoplastic"] * 6 + ["Dead"] * 2), (sopa(), None)],
    ids=["qupath", "cellvit", "sopa"],
)
def test_cells_of_other_programs(data, classes, fine, tmp_path):
    path = tmp_path / "c.geojson"
    path.write_text(json.dumps(data))
    found = nh.io.cells(path, image=fine["section_0_image"])
    assert [shape.equals(square) for shape, square in zip(found.geometry, SQUARES, strict=True)] == [True] * 8
    assert (found["class"].tolist() if "class" in found else None) == classes
    assert set(get_transformation(found, get_all=True)) == {"section_0", "section_0_microns"}
    (tmp_path / "c.geojson.gz").write_bytes(gzip.compress(path.read_bytes()))
    assert len(nh.io.cells(tmp_path / "c.geojson.gz")) == 8


def test_parquet_and_outlines_that_cross_themselves(tmp_path):
    bow = shapely.Polygon([(0, 0), (10, 10), (10, 0), (0, 14), (0, 0)])
    line = shapely.Polygon([(0, 0), (5, 5), (0, 0)])
    gpd.GeoDataFrame({"class": ["a", "b", "c"]}, geometry=[bow, line, SQUARES[1]]).to_parquet(tmp_path / "c.parquet")
    found = nh.io.cells(tmp_path / "c.parquet")
    assert found["class"].tolist() == ["a", "c"] and found.is_valid.all() and np.all(found.area > 0)


def test_names_of_cells_are_kept(tmp_path):
    features = [feature(s) | {"id": f"c{i}"} for i, s in enumerate(SQUARES)]  # QuPath's
    (tmp_path / "c.geojson").write_text(json.dumps(features))
    assert nh.io.cells(tmp_path / "c.geojson")["cell_id"].tolist() == [f"c{i}" for i in range(8)]
    frame = gpd.GeoDataFrame(geometry=SQUARES, index=[f"aaa{i}-1" for i in range(8)], crs="EPSG:3857")
    frame.to_parquet(tmp_path / "c.parquet")  # sopa's
    found = nh.io.cells(tmp_path / "c.parquet")
    assert found["cell_id"].tolist() == list(frame.index) and found.crs is None


def test_tables_without_outlines(tmp_path):
    pd.DataFrame({"x": [1.0]}).to_parquet(tmp_path / "c.parquet")
    with pytest.raises(ValueError, match="no GeoParquet that can be read"):
        nh.io.cells(tmp_path / "c.parquet")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "no GeoJSON that can be read"),
        (json.dumps([feature(shapely.Point(1, 1))]), "found .*Point.*Export outlines, not centres"),
        (json.dumps([]), "Is it a file of cells"),
    ],
)
def test_what_cannot_be_read(text, message, tmp_path):
    (tmp_path / "c.geojson").write_text(text)
    with pytest.raises(ValueError, match=message):
        nh.io.cells(tmp_path / "c.geojson")
