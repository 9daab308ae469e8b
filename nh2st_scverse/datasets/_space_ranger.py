"""A drawn section as the folder of files that Space Ranger leaves."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from nh2st_scverse._constants import MICRONS_SUFFIX, VISIUM_PITCH_UM
from nh2st_scverse._validators import check_path

if TYPE_CHECKING:
    from anndata import AnnData
    from spatialdata import SpatialData

HIRES_UM, LOWRES_UM = 4.0, 13.0  # µm per pixel that Space Ranger's 2000 and 600 px have across a capture area
FIDUCIAL_PER_SPOT = 1.62


def space_ranger_folder(sdata: SpatialData, *, path: str | os.PathLike[str]) -> Path:
    """Write a drawn section as Space Ranger would: to try a workflow on files before one's own are there.

    Parameters
    ----------
    sdata
        One section from :func:`synthetic`.
    path
        The folder; made if needed, and empty.

    Returns
    -------
    The folder. It holds

    - ``filtered_feature_bc_matrix.h5``: counts of the spots in tissue, named by barcodes;
    - ``spatial/tissue_positions.csv``: every spot of the array on the image, in tissue or not, in pixels at full
      resolution;
    - ``spatial/scalefactors_json.json``, ``spatial/tissue_hires_image.png`` (4 µm per pixel) and
      ``spatial/tissue_lowres_image.png`` (13 µm per pixel);
    - ``tissue.tif``: the image at full resolution. Of an experiment it is the one that went *into* Space Ranger, and
      lies elsewhere.

    Raises
    ------
    FileExistsError
        There is something in the folder.
    ValueError
        Not one section of :func:`synthetic`.

    See Also
    --------
    synthetic

    Examples
    --------
    >>> import spatialdata_io
    >>> import nh2st_scverse as nh
    >>> folder = nh.datasets.space_ranger_folder(nh.datasets.synthetic(width_um=1200), path="my_visium")
    >>> sdata = spatialdata_io.visium(folder, dataset_id="my_section", fullres_image_file="tissue.tif")
    >>> sorted(sdata.images)
    ['my_section_full_image', 'my_section_hires_image', 'my_section_lowres_image']
    """
    import tifffile
    from spatialdata import SpatialData
    from spatialdata.transformations import get_transformation

    if not isinstance(sdata, SpatialData):
        raise TypeError(f"Expected a SpatialData object of nh.datasets.synthetic(), found {type(sdata).__name__}.")
    check_path(path, argument="path")
    table = sdata.tables.get("table")
    if table is None or "synthetic" not in table.uns or len(sdata.images) != 1:
        raise ValueError(
            f"Expected one section of nh.datasets.synthetic(), found the images {list(sdata.images)}. Draw one, or "
            "choose it with sdata.filter_by_coordinate_system(name)."
        )
    folder = Path(path)
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise FileExistsError(f"{folder} exists and is not an empty folder: choose another path.")

    key, tree = next(iter(sdata.images.items()))
    section = key.removesuffix("_image")
    image = tree["scale0"]["image"]
    to_um = get_transformation(image, to_coordinate_system=f"{section}{MICRONS_SUFFIX}").to_affine_matrix("x", "x")
    microns = float(to_um[0, 0])
    pixels = image.transpose("y", "x", "c").to_numpy()

    (folder / "spatial").mkdir(parents=True, exist_ok=True)
    tifffile.imwrite(
        folder / "tissue.tif",
        pixels,
        photometric="rgb",
        compression="zlib",
        resolution=(1e4 / microns, 1e4 / microns),
        resolutionunit="CENTIMETER",
    )
    scales = {
        name: _smaller(pixels, min(1.0, microns / um), folder / "spatial" / f"tissue_{name}_image.png")
        for name, um in {"hires": HIRES_UM, "lowres": LOWRES_UM}.items()
    }
    diameter = 2 * float(sdata.shapes[f"{section}_spots"]["radius"].iloc[0])
    (folder / "spatial" / "scalefactors_json.json").write_text(
        json.dumps(
            {
                "spot_diameter_fullres": diameter,
                "tissue_hires_scalef": scales["hires"],
                "fiducial_diameter_fullres": FIDUCIAL_PER_SPOT * diameter,
                "tissue_lowres_scalef": scales["lowres"],
            }
        )
    )
    positions = _positions(table, microns, len(pixels))
    positions.to_csv(folder / "spatial" / "tissue_positions.csv")
    in_tissue = positions[positions["in_tissue"] == 1].reset_index().set_index(["array_row", "array_col"])["barcode"]
    barcodes = in_tissue.loc[list(zip(table.obs["array_row"], table.obs["array_col"], strict=True))]
    _write_counts(folder / "filtered_feature_bc_matrix.h5", table, barcodes.to_numpy(), section)
    return folder


def _smaller(pixels: np.ndarray, scale: float, path: Path) -> float:
    """Write a smaller copy of an image. Returns its scale after rounding to whole pixels."""
    from PIL import Image

    side = round(len(pixels) * scale)
    Image.fromarray(pixels).resize((side, side), Image.Resampling.BOX).save(path)
    return side / len(pixels)


def _positions(table: AnnData, microns: float, size: int) -> pd.DataFrame:
    """Every spot of the array whose centre is on the image of `size` pixels, by its barcode."""
    first = table.obs.iloc[0]
    pitch = VISIUM_PITCH_UM / microns
    step = np.array([pitch / 2, pitch * np.sqrt(3) / 2])  # Visium counts columns in half pitches
    origin = np.asarray(table.obsm["spatial"])[0] - step * (first["array_col"], first["array_row"])
    row, column = np.mgrid[: int(size / step[1]) + 1, : int(size / step[0]) + 1]
    on_array = (row + column) % 2 == 0
    row, column = row[on_array], column[on_array]
    xy = origin + step * np.stack([column, row], axis=1)
    on_image = (xy < size).all(axis=1)
    row, column, xy = row[on_image], column[on_image], np.round(xy[on_image]).astype(int)
    tissue = set(zip(table.obs["array_row"], table.obs["array_col"], strict=True))
    return pd.DataFrame(
        {
            "in_tissue": [int(place in tissue) for place in zip(row, column, strict=True)],
            "array_row": row,
            "array_col": column,
            "pxl_row_in_fullres": xy[:, 1],
            "pxl_col_in_fullres": xy[:, 0],
        },
        index=pd.Index([_barcode(i) for i in range(len(row))], name="barcode"),
    )


def _barcode(i: int) -> str:
    """Sixteen bases for a number, different for different numbers and not in their order."""
    scattered = i * 2654435761 % 4**16  # an odd factor: one to one
    return "".join("ACGT"[scattered >> 2 * base & 3] for base in range(16)) + "-1"


def _write_counts(path: Path, table: AnnData, barcodes: np.ndarray, section: str) -> None:
    """The HDF5 matrix of Space Ranger: genes x spots, columns compressed, spots in the order of their barcodes."""
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
