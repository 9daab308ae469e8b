"""Whole-slide files: pyramids that are read tile by tile, and the µm per pixel that they state."""

from __future__ import annotations

import os
import re
import threading
import xml.etree.ElementTree as ET
from functools import lru_cache
from pathlib import Path
from typing import Any

import dask.array as da
import numpy as np
import tifffile
import zarr
from dask.base import tokenize
from numpy.typing import NDArray
from spatialdata import SpatialData
from spatialdata.transformations import Identity, Scale, set_transformation
from xarray import DataArray, Dataset, DataTree

from nh2st_scverse._constants import MICRONS_SUFFIX
from nh2st_scverse._logging import logger
from nh2st_scverse.io._section import (
    CHUNK,
    COARSEST,
    IMAGE_SUFFIXES,
    _check_array,
    _composite,
    _halve,
    check_positive,
    examples,
    read_image,
    section_name,
)

SLIDE_SUFFIXES = (".svs", ".ndpi", ".tif", ".tiff", ".btf", ".scn", ".bif")
PLAUSIBLE = (0.05, 10.0)
"""µm per pixel of histology; 72 or 300 dots per inch, which programs write when they do not know, are beyond."""

IN_MICRONS = {"µm": 1.0, "um": 1.0, "micron": 1.0, "nm": 1e-3, "mm": 1e3, "cm": 1e4, "m": 1e6, "in": 25400.0, "Å": 1e-4}


def slide(
    path: str | os.PathLike[str], *, microns_per_pixel: float | None = None, section: str | None = None
) -> SpatialData:
    """Read a whole-slide H&E image, lazily and with the pyramid of the file.

    Pixels are decoded tile by tile when they are needed, so a slide of any size can be opened. Expression is predicted
    on it by ``nh.tl.predict_expression(slide, model=model)``.

    Parameters
    ----------
    path
        svs, ndpi, tif or ome-tif, tiled or not; also a jpg or png, which are decoded as a whole.
    microns_per_pixel
        Of the full resolution; None takes what the file states (OME-XML, the Aperio description, or its resolution
        tags).
    section
        Name of the section, used in the names of its elements and coordinate systems; None takes that of the file.

    Returns
    -------
    For a section S: ``images["S_image"]`` (c, y, x; uint8; r, g, b; lazy, multiscale) in the coordinate systems ``S``
    (pixels) and ``S_microns``.

    Raises
    ------
    FileNotFoundError
        No such file.
    ValueError
        The file does not state its µm per pixel, or is not an 8-bit RGB image that can be read.

    See Also
    --------
    nh2st_scverse.pp.grid, nh2st_scverse.tl.predict_expression

    Examples
    --------
    >>> import numpy as np, tempfile, tifffile
    >>> import nh2st_scverse as nh
    >>> path = tempfile.mkdtemp() + "/S1.ome.tif"
    >>> pixels = np.full((600, 800, 3), 230, dtype="uint8")
    >>> tifffile.imwrite(path, pixels, metadata={"PhysicalSizeX": 0.5, "PhysicalSizeXUnit": "µm"})
    >>> sdata = nh.io.slide(path)
    >>> sorted(sdata.coordinate_systems)
    ['S1', 'S1_microns']
    """
    path = Path(path)
    check_positive(microns_per_pixel=microns_per_pixel)
    if not path.is_file():
        beside = sorted(p.name for p in path.parent.glob("*") if p.suffix.lower() in SLIDE_SUFFIXES + IMAGE_SUFFIXES)
        there = f"Slides in that folder: {examples(beside)}." if beside else "There is no slide in that folder."
        raise FileNotFoundError(f"There is no slide {path}. {there}")
    name = section_name(section if section is not None else _name_of(path))
    if path.suffix.lower() in (".jpg", ".jpeg", ".png"):
        levels, stated = [read_image(path)], None
    else:
        levels, stated = _read_tiff(path.resolve())
    if microns_per_pixel is not None:
        microns, source = float(microns_per_pixel), "given"
    else:
        microns, source = _checked(path, stated)
    while max(levels[-1].shape[1:]) > 2 * COARSEST:
        levels.append(_halve(levels[-1]))
    systems = {name: Identity(), f"{name}{MICRONS_SUFFIX}": Scale([microns] * 2, axes=("x", "y"))}
    logger.info(
        f"{name}: image {levels[0].shape[2]} x {levels[0].shape[1]} px in {len(levels)} levels, {microns:.4g} µm per "
        f"pixel ({source})"
    )
    image = _tree(levels)
    set_transformation(image, systems, set_all=True)
    return SpatialData(images={f"{name}_image": image})


def _name_of(path: Path) -> str:
    """Name of the file without its ending, as SpatialData can use it."""
    stem = re.sub(r"(\.ome)?\.[^.]+$", "", path.name, flags=re.IGNORECASE)
    return re.sub(r"[^\w.-]+", "_", stem, flags=re.ASCII).strip("_.") or "slide"


def _tree(levels: list[da.Array]) -> DataTree:
    """The multiscale image of levels (3, y, x), finest first."""
    _, height, width = levels[0].shape
    scales = {}
    for i, level in enumerate(levels):
        _, h, w = level.shape
        coords = {"c": ["r", "g", "b"], "y": (np.arange(h) + 0.5) * height / h, "x": (np.arange(w) + 0.5) * width / w}
        scales[f"scale{i}"] = Dataset({"image": DataArray(level, dims=("c", "y", "x"), coords=coords)})
    return DataTree.from_dict(scales)


# ---------------------------------------------------------------------------------------------------------------------
# pixels
# ---------------------------------------------------------------------------------------------------------------------
def _read_tiff(path: Path) -> tuple[list[da.Array], tuple[float, str] | None]:
    """Levels (3, y, x) of the largest picture in a file, finest first, and its µm per pixel with the source."""
    version = path.stat().st_mtime_ns
    try:
        with tifffile.TiffFile(path) as tiff:
            if not tiff.series:
                raise tifffile.TiffFileError("it holds no picture")
            which = max(range(len(tiff.series)), key=lambda i: np.prod(tiff.series[i].shape))
            shapes = [(level.axes, level.shape, level.dtype) for level in tiff.series[which].levels]
            stated = _stated_microns(tiff, which)
    except tifffile.TiffFileError as error:
        raise ValueError(
            f"{path} cannot be read as a slide ({error}): expected svs, ndpi, tif or ome-tif. Convert other formats "
            "to ome-tif, for instance with QuPath or bfconvert."
        ) from error
    return [_lazy(path, version, which, i, *shape) for i, shape in enumerate(shapes)], stated


def _lazy(path: Path, version: int, series: int, level: int, axes: str, shape: tuple[int, ...], dtype: Any) -> da.Array:
    keep = [i for i, (axis, n) in enumerate(zip(axes, shape, strict=True)) if axis in "YX" or n > 1]
    order = ["YXC".index(axes[i]) if axes[i] in "YX" else 2 for i in keep]
    if sorted(order) != [0, 1, 2]:
        raise ValueError(
            f"{path} is not an RGB image: expected the axes y, x and 3 channels, found {axes} of shape {shape}."
        )
    to_yxc = [keep[order.index(i)] for i in range(3)]  # axes of the file that are y, x and channel
    height, width, n_channels = (shape[i] for i in to_yxc)
    _check_array(np.broadcast_to(np.zeros((), dtype), (height, width, n_channels)), what=str(path))
    if dtype != np.uint8:
        raise ValueError(f"{path} is {dtype}: expected 8 bits per channel (uint8). Convert it.")
    tiles = _open(str(path), version, series, level).chunks
    step = [max(1, round(CHUNK / tiles[i])) * tiles[i] for i in to_yxc[:2]]  # whole tiles: none is decoded twice
    return da.map_blocks(
        _read_block,
        chunks=((3,), *da.core.normalize_chunks(tuple(step), (height, width))),
        dtype=np.uint8,
        meta=np.empty((0, 0, 0), np.uint8),
        name=f"slide-{tokenize(str(path), version, series, level)}",
        path=str(path),
        version=version,
        series=series,
        level=level,
        to_yxc=to_yxc,
    )


def _read_block(
    path: str, version: int, series: int, level: int, to_yxc: list[int], block_info: Any = None
) -> NDArray[np.uint8]:
    _, (y0, y1), (x0, x1) = block_info[None]["array-location"]
    array = _open(path, version, series, level)
    part: list[Any] = [0] * array.ndim
    part[to_yxc[0]], part[to_yxc[1]], part[to_yxc[2]] = slice(y0, y1), slice(x0, x1), slice(None)
    pixels = np.asarray(array[tuple(part)])
    kept = sorted(to_yxc)  # the axes that are left
    pixels = pixels.transpose([kept.index(axis) for axis in to_yxc])
    return np.ascontiguousarray(_composite(pixels).transpose(2, 0, 1))


def _open(path: str, version: int, series: int, level: int) -> Any:
    """One level as a zarr array; `version` is the modification time of the file when it was read first."""
    if not os.path.isfile(path) or os.stat(path).st_mtime_ns != version:
        raise OSError(f"{path} has changed or gone since it was read: read the slide again.")
    with _opening:
        return _opened(path, version, series, level)


_opening = threading.Lock()


@lru_cache(maxsize=32)
def _opened(path: str, version: int, series: int, level: int) -> Any:
    store = tifffile.TiffFile(path).series[series].aszarr(level=level)
    return zarr.open_array(store, mode="r")


# ---------------------------------------------------------------------------------------------------------------------
# µm per pixel
# ---------------------------------------------------------------------------------------------------------------------
def _stated_microns(tiff: tifffile.TiffFile, series: int) -> tuple[float, str] | None:
    """µm per pixel as a file states it, and where; None when it does not."""
    page = tiff.series[series].keyframe
    if tiff.ome_metadata:
        found = _ome_microns(tiff.ome_metadata, page.imagewidth)
        if found is not None:
            return found
    aperio = re.search(r"\bMPP\s*=\s*([\d.]+)", page.description or "")
    if aperio:
        return float(aperio[1]), "MPP of the Aperio description"
    resolution = page.tags.valueof("XResolution")
    per_unit = resolution[0] / resolution[1] if resolution and resolution[1] else 0.0
    if not per_unit > 0:
        return None
    if tiff.imagej_metadata:
        unit = str(tiff.imagej_metadata.get("unit", "")).replace("\\u00B5", "µ").replace("μ", "µ")
        return (IN_MICRONS[unit] / per_unit, "ImageJ resolution") if unit in IN_MICRONS else None
    unit_um = {2: 25400.0, 3: 10000.0}.get(int(page.tags.valueof("ResolutionUnit", 2)))  # inch, cm
    return None if unit_um is None else (unit_um / per_unit, "resolution tags")


def _ome_microns(xml: str, width: int) -> tuple[float, str] | None:
    """PhysicalSizeX of the picture that is `width` px wide."""
    try:
        pixels = [element for element in ET.fromstring(xml).iter() if element.tag.endswith("}Pixels")]
    except ET.ParseError:
        return None
    for element in pixels:
        size = element.get("PhysicalSizeX")
        factor = IN_MICRONS.get(element.get("PhysicalSizeXUnit", "µm").replace("μ", "µ"))
        if size and factor and int(element.get("SizeX", 0)) == width:
            return float(size) * factor, "PhysicalSizeX of the OME-XML"
    return None


def _checked(path: Path, stated: tuple[float, str] | None) -> tuple[float, str]:
    """What the file states, if that can be true of a slide."""
    low, high = PLAUSIBLE
    if stated is not None and low <= stated[0] <= high:
        return stated
    found = "it is not stated" if stated is None else f"found {stated[0]:.4g} in the {stated[1]}, which no slide has"
    raise ValueError(
        f"Expected {path.name} to state how many µm one pixel has (OME-XML PhysicalSizeX, MPP of Aperio, or resolution "
        f"tags), but {found}. Pass microns_per_pixel=: about 0.25 for a 40x and 0.5 for a 20x scan, or what the "
        "scanner or viewer says."
    )
