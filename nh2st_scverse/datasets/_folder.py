"""What all makers of folders share: the drawn section, its image as files, counts as the programs of 10x write them."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from nh2st_scverse._constants import MICRONS_SUFFIX
from nh2st_scverse._validators import as_path

if TYPE_CHECKING:
    from anndata import AnnData
    from spatialdata import SpatialData

HIRES_UM, LOWRES_UM = 4.0, 13.0  # µm per pixel that Space Ranger's 2000 and 600 px have across a capture area


@dataclass(frozen=True)
class Drawn:
    """One drawn section, and the folder that it is written to."""

    section: str
    pixels: np.ndarray  # (y, x, 3) uint8
    microns_per_pixel: float
    folder: Path


def begin(sdata: SpatialData, path: str | os.PathLike[str]) -> Drawn:
    """Check that there is one drawn section and an empty folder; nothing is written yet.

    Raises
    ------
    TypeError
        No SpatialData object, no path.
    ValueError
        Not one section of ``nh.datasets.synthetic``.
    FileExistsError
        There is something in the folder.
    """
    from spatialdata import SpatialData

    if not isinstance(sdata, SpatialData):
        raise TypeError(f"Expected a SpatialData object of nh.datasets.synthetic(), found {type(sdata).__name__}.")
    folder = as_path(path, argument="path")
    table = sdata.tables.get("table")
    if table is None or "synthetic" not in table.uns or len(sdata.images) != 1:
        raise ValueError(
            f"Expected one section of nh.datasets.synthetic(), found the images {list(sdata.images)}. Draw one, or "
            "choose it with sdata.filter_by_coordinate_system(name)."
        )
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise FileExistsError(f"{folder} exists and is not an empty folder: choose another path.")
    return only_section(sdata, folder)


def only_section(sdata: SpatialData, folder: Path) -> Drawn:
    """The section of an object with one image: its name, pixels and µm per pixel."""
    from spatialdata.transformations import get_transformation

    ((key, tree),) = sdata.images.items()
    section = key.removesuffix("_image")
    image = tree["scale0"]["image"]
    to_um = get_transformation(image, to_coordinate_system=f"{section}{MICRONS_SUFFIX}").to_affine_matrix("x", "x")
    return Drawn(section, image.transpose("y", "x", "c").to_numpy(), float(to_um[0, 0]), folder)


def measured(sdata: SpatialData, key: str, how: str) -> AnnData:
    """A table of finer measurements of a drawn section.

    Raises
    ------
    ValueError
        It was drawn without them.
    """
    if key not in sdata.tables:
        raise ValueError(
            f"Expected a section that was drawn with {how}, found the tables {list(sdata.tables)}: "
            f"nh.datasets.synthetic({how})."
        )
    return sdata.tables[key]


def write_tiff(path: Path, pixels: np.ndarray, microns_per_pixel: float) -> None:
    """The image at full resolution, with its resolution in the tags."""
    import tifffile

    per_cm = 1e4 / microns_per_pixel
    scale = (per_cm, per_cm)
    tifffile.imwrite(path, pixels, photometric="rgb", compression="zlib", resolution=scale, resolutionunit="CENTIMETER")


def write_copies(folder: Path, pixels: np.ndarray, microns_per_pixel: float) -> dict[str, float]:
    """Space Ranger's two smaller copies of an image; their scales after rounding to whole pixels."""
    from PIL import Image

    scales = {}
    for name, um in {"hires": HIRES_UM, "lowres": LOWRES_UM}.items():
        side = round(len(pixels) * min(1.0, microns_per_pixel / um))
        small = Image.fromarray(pixels).resize((side, side), Image.Resampling.BOX)
        small.save(folder / f"tissue_{name}_image.png")
        scales[name] = side / len(pixels)
    return scales


def write_counts(path: Path, table: AnnData, barcodes: np.ndarray, section: str) -> None:
    """The HDF5 matrix of 10x: genes x spots, columns compressed, spots in the order of their barcodes."""
    import h5py

    order = np.argsort(barcodes)
    counts = table.X[order].tocsr()  # spots x genes by rows is genes x spots by columns
    counts.sort_indices()
    names = table.var_names.to_numpy().astype("S")
    with h5py.File(path, "w") as file:
        file.attrs["filetype"], file.attrs["version"] = "matrix", 2
        file.attrs["library_ids"] = np.array([section.encode()])
        matrix = file.create_group("matrix")
        for name, kind in {"data": np.int32, "indices": np.int64, "indptr": np.int64}.items():
            matrix.create_dataset(name, data=getattr(counts, name).astype(kind), compression="gzip")
        matrix["shape"] = np.array(counts.shape[::-1], dtype=np.int32)
        matrix["barcodes"] = barcodes[order].astype("S")
        features = matrix.create_group("features")
        features["id"] = np.array([f"SYN{i:08d}".encode() for i in range(len(names))])
        features["name"] = names
        features["feature_type"] = np.full(len(names), b"Gene Expression")
        features["genome"] = np.full(len(names), b"drawn")
        features["_all_tag_keys"] = np.array([b"genome"])
