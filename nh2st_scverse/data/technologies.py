"""What objects of ``spatialdata_io`` tell without saying so: µm, the shapes that a table means, images that are no H&E.

Visium HD names its squares by their side; Xenium's shapes are in µm. Both may have tables that annotate labels, which
have no outlines: the shapes of the same cells or bins are taken.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

import numpy as np
from anndata import AnnData
from geopandas import GeoDataFrame
from spatialdata import SpatialData
from spatialdata.transformations import get_transformation
from xarray import DataArray

from nh2st_scverse._constants import JOINED

SQUARE = re.compile(rf"square_(\d{{3}})um{JOINED}")
MICRONS = re.compile(rf"microns{JOINED}")  # of a coordinate system
LABELS = re.compile(rf"(?P<name>.+)_labels(?P<joined>{JOINED})")
OF_XENIUM = {"cell": ("cell_boundaries", "cell_circles"), "nucleus": ("nucleus_boundaries",)}
IN_MICRONS = ("cell_boundaries", "cell_circles", "nucleus_boundaries", "transcripts")
CELLS_OF_HD = re.compile(rf"_(cell|nucleus)_segmentations{JOINED}")
CYTASSIST = re.compile(rf"_cytassist_image{JOINED}")
MORPHOLOGY = ("morphology_focus", "morphology_mip")
RELABELED = "relabeled_"  # before the name of a column of ids that spatialdata made for labels
STAINS = re.compile(r"dapi|hoechst|atp1a1|18s|alphasma|vimentin", re.I)


@dataclass(frozen=True)
class Region:
    """Shapes that a table annotates."""

    name: str  # in the region column of the table
    shapes_key: str
    id_column: str  # of obs: the index of the shapes


def regions_of(sdata: SpatialData, table: AnnData) -> tuple[list[Region], list[str]]:
    """The shapes that a table annotates, by themselves or by their labels, and the regions that are no shapes."""
    attributes = table.uns["spatialdata_attrs"]
    names = [attributes["region"]] if isinstance(attributes["region"], str) else list(attributes["region"])
    found = {name: _region(sdata, table, name, attributes["instance_key"]) for name in names}
    return [one for one in found.values() if one is not None], [name for name, one in found.items() if one is None]


def _region(sdata: SpatialData, table: AnnData, name: str, instance_key: str) -> Region | None:
    """The shapes of a region that is shapes, or labels; these may have been left out of the object."""
    if name in sdata.shapes:
        return Region(name, name, instance_key)
    columns = [c for c in (instance_key.removeprefix(RELABELED), "cell_id") if c in table.obs]
    labels = LABELS.fullmatch(name)
    shapes = (labels["name"], *OF_XENIUM.get(labels["name"], ())) if labels else ()
    for key in (one + labels["joined"] for one in shapes if labels and one + labels["joined"] in sdata.shapes):
        for column in columns if instance_key.startswith(RELABELED) else columns[::-1]:
            if table.obs[column].isin(sdata.shapes[key].index).all():
                return Region(name, key, column)
    return None


def microns_of(sdata: SpatialData, shapes_key: str) -> tuple[float, str] | None:
    """µm that one unit of the coordinates of some shapes has, and where that is known from; None if it is not."""
    shapes = sdata.shapes[shapes_key]
    side = SQUARE.search(shapes_key)
    if side:
        return int(side[1]) / _width(shapes), f"squares of {int(side[1])} µm"
    scales = _scales(shapes)
    if _plain(shapes_key) in IN_MICRONS and any(plain and abs(scale - 1) > 1e-6 for scale, plain in scales.values()):
        return 1.0, "shapes of Xenium in µm"
    for key, other in sdata.shapes.items():  # cells beside the bins of one slide
        side, theirs = SQUARE.search(key), _scales(other)
        shared = sorted(set(scales) & set(theirs))
        if side and shared:
            microns = int(side[1]) / _width(other)
            return microns / theirs[shared[0]][0] * scales[shared[0]][0], f"squares of {int(side[1])} µm"
    return None


def where_microns(shapes_key: str) -> str:
    """Where µm per pixel is stated that an object does not keep."""
    if not CELLS_OF_HD.search(shapes_key):
        return ""
    return (
        " Visium HD states it as microns_per_pixel in spatial/scalefactors_json.json; bins beside the cells tell it, "
        "too: spatialdata_io.visium_hd(path, load_segmentations_only=False)."
    )


def _plain(name: str) -> str:
    """The name that ``spatialdata_io.xenium`` gave, also in joined objects."""
    return re.sub(JOINED, "", name)


def _width(shapes: GeoDataFrame) -> float:
    if "radius" in shapes:
        return 2 * float(shapes["radius"].median())
    bounds = shapes.geometry.bounds
    return float((bounds["maxx"] - bounds["minx"]).median())


def _scales(shapes: GeoDataFrame) -> dict[str, tuple[float, bool]]:
    """How many units of each coordinate system one unit of the shapes is, and whether that is all."""
    found = {}
    for system, transformation in get_transformation(shapes, get_all=True).items():
        matrix = np.asarray(transformation.to_affine_matrix(("x", "y"), ("x", "y")), dtype=float)
        scale = float(np.sqrt(abs(np.linalg.det(matrix[:2, :2]))))
        found[system] = scale, bool(np.allclose(matrix, np.diag([scale, scale, 1.0])))
    return found


def why_no_stain(key: str, image: DataArray) -> str:
    """Why an image cannot be the H&E to predict from, or nothing."""
    if CYTASSIST.search(key):
        return "it is the image of the CytAssist, of low resolution and taken at an angle"
    if _plain(key) in (*MORPHOLOGY, "if_image"):  # names of spatialdata_io.xenium
        return "it is fluorescence"
    channels = image.coords["c"].values if "c" in image.coords else []
    if any(STAINS.search(str(channel)) for channel in channels):
        return f"it is fluorescence, of {', '.join(map(str, channels))}"
    return ""


def unaligned(sdata: SpatialData, image_key: str, image: DataArray) -> bool:
    """Whether an image beside the fluorescence of a Xenium lies on it pixel by pixel, as without an alignment file."""
    others = [key for key in sdata.images if _plain(key) in MORPHOLOGY]
    of_xenium = others or sdata.attrs.get("spatialdata_io_reader") == "xenium"
    if not of_xenium or image_key in others:
        return False
    systems = get_transformation(image, get_all=True)
    matrix = next((systems[system] for system in systems if _plain(system) == "global"), None)
    return matrix is not None and np.allclose(matrix.to_affine_matrix(("x", "y"), ("x", "y")), np.eye(3))
