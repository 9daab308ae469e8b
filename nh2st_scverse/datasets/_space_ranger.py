"""A drawn section as the folder of files that Space Ranger leaves."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from nh2st_scverse._constants import VISIUM_PITCH_UM
from nh2st_scverse.datasets._folder import begin, write_copies, write_counts, write_tiff

if TYPE_CHECKING:
    from anndata import AnnData
    from spatialdata import SpatialData

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
    synthetic, visium_hd_folder, xenium_folder

    Examples
    --------
    >>> import spatialdata_io
    >>> import nh2st_scverse as nh
    >>> folder = nh.datasets.space_ranger_folder(nh.datasets.synthetic(width_um=1200), path="my_visium")
    >>> sdata = spatialdata_io.visium(folder, dataset_id="my_section", fullres_image_file="tissue.tif")
    >>> sorted(sdata.images)
    ['my_section_full_image', 'my_section_hires_image', 'my_section_lowres_image']
    """
    drawn = begin(sdata, path)
    folder, microns, pixels = drawn.folder, drawn.microns_per_pixel, drawn.pixels
    table = sdata.tables["table"]
    (folder / "spatial").mkdir(parents=True)
    write_tiff(folder / "tissue.tif", pixels, microns)
    scales = write_copies(folder / "spatial", pixels, microns)
    diameter = 2 * float(sdata.shapes[f"{drawn.section}_spots"]["radius"].iloc[0])
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
    write_counts(folder / "filtered_feature_bc_matrix.h5", table, barcodes.to_numpy(), drawn.section)
    return folder


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
