"""Slides without spots, and the µm per pixel that image files state."""

from __future__ import annotations

import math
import os
import re
from pathlib import Path

import tifffile
from spatialdata import SpatialData

from nh2st_scverse._logging import logger
from nh2st_scverse._validators import as_file, check_name, check_sizes
from nh2st_scverse.io._image import IMAGE_SUFFIXES, ome_pixels, read_image
from nh2st_scverse.io._section import image_element, name_of, systems_of

PLAUSIBLE = (0.05, 10.0)
"""µm per pixel of histology; 72 or 300 dots per inch, which programs write when they do not know, are beyond."""

SQUARE = 0.02  # what the sides of a pixel may differ by

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
    check_sizes(microns_per_pixel=microns_per_pixel)
    file = as_file(path, argument="path", suffixes=IMAGE_SUFFIXES)
    name = section if section is not None else name_of(file)
    check_name(name, argument="section")
    picture = read_image(file)
    if microns_per_pixel is not None:
        microns, source = float(microns_per_pixel), "given"
    else:
        microns, source = _checked(file, None if picture.series is None else _stated(file, picture.series))
    levels = picture.levels
    logger.info(
        f"{name}: image {levels[0].shape[2]} x {levels[0].shape[1]} px in {len(levels)} levels, {microns:.4g} µm per "
        f"pixel ({source})"
    )
    return SpatialData(images={f"{name}_image": image_element(levels, systems_of(name, microns))})


# ---------------------------------------------------------------------------------------------------------------------
# µm per pixel
# ---------------------------------------------------------------------------------------------------------------------
Stated = tuple[float, float, str]  # µm per pixel in x and y, and where it says so


def _stated(path: Path, series: int) -> Stated | None:
    """µm per pixel as a TIFF states it; None when it does not."""
    with tifffile.TiffFile(path) as tiff:
        return _stated_microns(tiff, series)


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        return math.nan


def _stated_microns(tiff: tifffile.TiffFile, series: int) -> Stated | None:
    page = tiff.series[series].keyframe
    pixels = ome_pixels(tiff, page.imagewidth)
    if pixels is not None:
        sizes = [pixels.get(f"PhysicalSize{axis}") for axis in "XY"]
        factors = [IN_MICRONS.get(pixels.get(f"PhysicalSize{axis}Unit", "µm").replace("μ", "µ")) for axis in "XY"]
        stated = [_number(n) * factor for n, factor in zip(sizes, factors, strict=True) if n and factor]
        if sizes[0] and factors[0]:
            return stated[0], stated[-1], "PhysicalSizeX of the OME-XML"
    aperio = re.search(r"\bMPP\s*=\s*([\d.]+)", page.description or "")
    if aperio:
        return _number(aperio[1]), _number(aperio[1]), "MPP of the Aperio description"
    resolution = [page.tags.valueof(name) or (0, 1) for name in ("XResolution", "YResolution")]
    x, y = (per / unit if unit else 0.0 for per, unit in resolution)
    if not x > 0:
        return None
    y = y or x
    if tiff.imagej_metadata:
        unit = str(tiff.imagej_metadata.get("unit", "")).replace("\\u00B5", "µ").replace("μ", "µ")
        return (IN_MICRONS[unit] / x, IN_MICRONS[unit] / y, "ImageJ resolution") if unit in IN_MICRONS else None
    unit_um = {2: 25400.0, 3: 10000.0}.get(int(page.tags.valueof("ResolutionUnit", 2)))  # inch, cm
    return None if unit_um is None else (unit_um / x, unit_um / y, "resolution tags")


def _checked(path: Path, stated: Stated | None) -> tuple[float, str]:
    """What the file states, if that can be true of a slide."""
    low, high = PLAUSIBLE
    found = "it is not stated"
    if stated is not None:
        x, y, where = stated
        if low <= x <= high and abs(x - y) <= SQUARE * x:
            return x, where
        found = f"found {x:.4g} in the {where}, which no slide has"
        if low <= x <= high:
            found = f"found {x:.4g} in x and {y:.4g} in y in the {where}: pixels of slides are square"
    raise ValueError(
        f"Expected {path.name} to state how many µm one pixel has (OME-XML PhysicalSizeX, MPP of Aperio, or resolution "
        f"tags), but {found}. Pass microns_per_pixel=: about 0.25 for a 40x and 0.5 for a 20x scan, or what the "
        "scanner or viewer says."
    )
