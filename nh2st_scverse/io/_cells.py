"""Outlines of cells that other programs found."""

from __future__ import annotations

import gzip
import json
import os
import zipfile
from pathlib import Path
from typing import Any

import geopandas as gpd
import numpy as np
import pandas as pd
import shapely
from spatialdata.models import ShapesModel
from spatialdata.transformations import get_transformation
from xarray import DataArray, DataTree

from nh2st_scverse._logging import logger
from nh2st_scverse._validators import as_file

SUFFIXES = (".geojson", ".json", ".gz", ".zip", ".parquet", ".geoparquet")
NO_CELLS = ("annotation", "root", "tile", "tma core")  # kinds of QuPath's objects


def cells(path: str | os.PathLike[str], *, image: DataTree | DataArray | None = None) -> gpd.GeoDataFrame:
    """Read outlines of cells from QuPath, CellViT or sopa, to predict at them.

    Parameters
    ----------
    path
        GeoJSON (also gzipped, or in a zip archive) or GeoParquet, in pixels of the image at full resolution.
    image
        The image that they lie on: they take its coordinate systems. None: "global" only.

    Returns
    -------
    Polygons with the columns ``class`` and ``cell_id``, where the file has them, for ``sdata.shapes["cells"]``. Where
    QuPath has a cell with its nucleus, the outline is that of the cell; annotations beside cells are left out;
    CellViT's collections of a class are taken apart; parts of outlines that cross themselves are mended.

    Raises
    ------
    FileNotFoundError
        There is no such file.
    ValueError
        It has no polygons, or cannot be read.

    See Also
    --------
    nh2st_scverse.pp.nuclei, nh2st_scverse.tl.predict_expression

    Examples
    --------
    >>> import json
    >>> import nh2st_scverse as nh
    >>> square = {"type": "Polygon", "coordinates": [[[0, 0], [9, 0], [9, 9], [0, 9], [0, 0]]]}
    >>> cell = {"type": "Feature", "geometry": square, "properties": {"classification": {"name": "Tumor"}}}
    >>> with open("cells.geojson", "w") as file:
    ...     json.dump({"type": "FeatureCollection", "features": [cell]}, file)
    >>> nh.io.cells("cells.geojson")["class"].tolist()
    ['Tumor']
    """
    file = as_file(path, argument="path", suffixes=SUFFIXES)
    frame = _from_parquet(file) if "parquet" in file.suffix else _from_json(file)
    frame = frame[~(frame.geometry.isna() | frame.geometry.is_empty)]
    kinds = set(frame.geom_type)
    if not kinds & {"Polygon", "MultiPolygon"}:
        hint = "Export outlines, not centres." if kinds & {"Point", "MultiPoint"} else "Is it a file of cells?"
        raise ValueError(f"Expected polygons in {file}, found {sorted(kinds) or 'nothing'}. {hint}")
    frame = frame.explode(index_parts=False) if _is_collected(frame) else frame
    outlines = [_whole(shape) for shape in frame.geometry]
    keep = np.array([shape is not None for shape in outlines])
    if not keep.all():
        logger.warning("%s: %d of %d outlines have no area and are left out.", file.name, (~keep).sum(), len(keep))
    columns = [c for c in ("class", "cell_id") if c in frame]
    made = gpd.GeoDataFrame(frame.loc[keep, columns].reset_index(drop=True), geometry=np.array(outlines)[keep])
    systems = None if image is None else dict(get_transformation(image, get_all=True))
    logger.info("%s: %d cells.", file.name, len(made))
    return ShapesModel.parse(made, transformations=systems)


def _from_parquet(file: Path) -> gpd.GeoDataFrame:
    """GeoParquet, whose index has the names of cells when it is text, as that of sopa."""
    try:
        frame = gpd.read_parquet(file)
    except (ValueError, OSError) as error:  # also pyarrow's
        raise ValueError(f"{file} is no GeoParquet that can be read ({error}). Is it whole?") from error
    if "cell_id" not in frame and pd.api.types.is_string_dtype(frame.index):
        frame["cell_id"] = frame.index.to_numpy()
    return frame


def _from_json(file: Path) -> gpd.GeoDataFrame:
    """Features of GeoJSON: a collection, or a list of them."""
    try:
        data = json.loads(_unpacked(file))
        features: list[dict[str, Any]] = data if isinstance(data, list) else data.get("features", [data])
        drawings = [one["geometry"] for one in features]
        shapes = [None if one is None else shapely.from_geojson(json.dumps(one)) for one in drawings]
        about = [one.get("properties") or {} for one in features]
    except (
        ValueError,
        KeyError,
        TypeError,
        AttributeError,
        OSError,
        zipfile.BadZipFile,
        shapely.errors.ShapelyError,
    ) as error:
        raise ValueError(f"{file} is no GeoJSON that can be read ({error!r}). Is it whole?") from error
    frame = gpd.GeoDataFrame(geometry=shapes)
    named = [one.get("classification") or one.get("class") for one in about]
    names = [one.get("name") if isinstance(one, dict) else one for one in named]
    if any(name is not None for name in names):
        frame["class"] = [None if name is None else str(name) for name in names]
    ids = [one.get("id") for one in features]
    if all(name is not None for name in ids):
        frame["cell_id"] = [str(name) for name in ids]
    kinds = np.array([str(one.get("objectType", one.get("object_type", ""))).lower() for one in about])
    drawn = np.isin(kinds, NO_CELLS)
    return frame[~drawn] if drawn.any() and not drawn.all() else frame


def _unpacked(file: Path) -> bytes:
    """The text of a file, of an archive that of the first file of GeoJSON in it."""
    if zipfile.is_zipfile(file):
        with zipfile.ZipFile(file) as archive:
            name = next((name for name in archive.namelist() if name.endswith("json")), None)
            if name is None:
                raise ValueError(f"there is no GeoJSON in it, but {archive.namelist()[:5]}")
            return archive.read(name)
    packed = file.read_bytes()
    return gzip.decompress(packed) if packed[:2] == b"\x1f\x8b" else packed


def _is_collected(frame: gpd.GeoDataFrame) -> bool:
    """Whether the cells of a class are one shape of many parts, as CellViT writes them."""
    many = shapely.get_num_geometries(frame.geometry.to_numpy())
    return bool(many.max(initial=0) > 5 and many.mean() > 3)


def _whole(shape: shapely.Geometry) -> shapely.Polygon | None:
    """The largest part of an outline, mended where it crosses itself."""
    valid = shape if shape.is_valid else shapely.make_valid(shape)
    parts = [part for part in getattr(valid, "geoms", [valid]) if part.geom_type in ("Polygon", "MultiPolygon")]
    parts = [one for part in parts for one in getattr(part, "geoms", [part])]
    largest = max(parts, key=lambda part: part.area, default=None)
    return largest if largest is not None and largest.area > 0 else None
