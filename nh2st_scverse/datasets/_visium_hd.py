"""A drawn section as the folder of files that Space Ranger leaves of Visium HD."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from nh2st_scverse.datasets._fine import outlines
from nh2st_scverse.datasets._folder import Drawn, begin, measured, write_copies, write_counts, write_tiff

if TYPE_CHECKING:
    from anndata import AnnData
    from spatialdata import SpatialData

VERSIONS = (3, 4)
CYTASSIST_UM = 6.0  # µm per pixel, roughly
TILT = 2e-6  # how far the CytAssist image is from an affine copy


def visium_hd_folder(sdata: SpatialData, *, path: str | os.PathLike[str], version: int = 4) -> Path:
    """Write a drawn section as Space Ranger would write Visium HD: to try a workflow before one's own files are there.

    Parameters
    ----------
    sdata
        One section from :func:`synthetic`, drawn with `bins_um`; for version 4 also with ``cells=True``.
    path
        The folder; made if needed, and empty.
    version
        Of Space Ranger. 3: bins, with the name of the section before ``feature_slice.h5`` as in downloads; 4: also
        segmented cells, without that name.

    Returns
    -------
    The folder. It holds

    - ``binned_outputs/square_008um/`` and so on for each size: counts of the bins in tissue, and
      ``spatial/tissue_positions.parquet`` with every bin of the array;
    - ``segmented_outputs/``: counts of cells, ``cell_segmentations.geojson``, ``nucleus_segmentations.geojson``;
      beside it ``barcode_mappings.parquet``;
    - ``spatial/``: the two smaller images, scale factors, and ``cytassist_image.tiff``, which is seen at an angle;
    - ``feature_slice.h5``; ``microscope_image/tissue.tif``, the image at full resolution.

    Raises
    ------
    FileExistsError
        There is something in the folder.
    ValueError
        Not one section of :func:`synthetic`, drawn without bins or cells; another version.

    See Also
    --------
    synthetic, xenium_folder, space_ranger_folder

    Examples
    --------
    >>> import spatialdata_io
    >>> import nh2st_scverse as nh
    >>> drawn = nh.datasets.synthetic(width_um=600, n_genes=20, bins_um=(8, 16))
    >>> folder = nh.datasets.visium_hd_folder(drawn, path="my_hd", version=3)
    >>> sdata = spatialdata_io.visium_hd(folder, load_segmentations_only=False)
    >>> sorted(sdata.tables)
    ['square_008um', 'square_016um']
    """
    if version not in VERSIONS:
        raise ValueError(f"Expected version to be one of {list(VERSIONS)}, found {version!r}.")
    drawn = begin(sdata, path)
    sizes = {int(key[7:10]): key for key in sdata.tables if key.startswith("square_")}
    if not sizes:
        measured(sdata, "square_008um", "bins_um=(8, 16)")
    cells = measured(sdata, "cells", "cells=True") if version >= 4 else None
    folder, microns = drawn.folder, drawn.microns_per_pixel

    for name in ("spatial", "microscope_image"):
        (folder / name).mkdir(parents=True)
    write_tiff(folder / "microscope_image" / "tissue.tif", drawn.pixels, microns)
    copies = write_copies(folder / "spatial", drawn.pixels, microns)
    factors = {
        "tissue_hires_scalef": copies["hires"],
        "tissue_lowres_scalef": copies["lowres"],
        "microns_per_pixel": microns,
    }
    for size, key in sizes.items():
        bins = folder / "binned_outputs" / key
        _write_bins(bins, sdata.tables[key], size, drawn)
        own = factors | {"bin_size_um": float(size), "spot_diameter_fullres": size / microns}
        (bins / "spatial" / "scalefactors_json.json").write_text(json.dumps(own))
    (folder / "spatial" / "scalefactors_json.json").write_text(json.dumps(factors))
    to_image = _write_cytassist(folder / "spatial" / "cytassist_image.tiff", drawn)
    prefix = f"{drawn.section}_" if version < 4 else ""
    _write_slice(folder / f"{prefix}feature_slice.h5", to_image)
    if cells is not None:
        _write_cells(folder / "segmented_outputs", cells, drawn)
        (folder / "segmented_outputs" / "spatial" / "scalefactors_json.json").write_text(json.dumps(factors))
        _write_mappings(folder / "barcode_mappings.parquet", sdata.tables[sizes[min(sizes)]], sizes, cells, drawn)
    return folder


def _barcodes(rows: np.ndarray, columns: np.ndarray, size: int) -> np.ndarray:
    return np.array([f"s_{size:03d}um_{r:05d}_{c:05d}-1" for r, c in zip(rows, columns, strict=True)])


def _write_bins(folder: Path, table: AnnData, size: int, drawn: Drawn) -> None:
    """Counts of the bins in tissue, and the place of every bin that is on the image."""
    (folder / "spatial").mkdir(parents=True)
    n = int(len(drawn.pixels) * drawn.microns_per_pixel // size)
    rows, columns = (part.ravel() for part in np.mgrid[:n, :n])
    tissue = np.zeros((n, n), dtype=int)
    tissue[table.obs["array_row"], table.obs["array_col"]] = 1
    side = size / drawn.microns_per_pixel
    positions = pd.DataFrame(
        {
            "barcode": _barcodes(rows, columns, size),
            "in_tissue": tissue.ravel(),
            "array_row": rows,
            "array_col": columns,
            "pxl_row_in_fullres": (rows + 0.5) * side,
            "pxl_col_in_fullres": (columns + 0.5) * side,
        }
    )
    positions.to_parquet(folder / "spatial" / "tissue_positions.parquet")
    barcodes = _barcodes(table.obs["array_row"].to_numpy(), table.obs["array_col"].to_numpy(), size)
    write_counts(folder / "filtered_feature_bc_matrix.h5", table, barcodes, drawn.section)


def _write_cytassist(path: Path, drawn: Drawn) -> np.ndarray:
    """The small image of a camera that sees the slide at an angle. Returns its way to the full image, (3, 3)."""
    import tifffile
    from skimage.transform import ProjectiveTransform, warp

    scale = CYTASSIST_UM / drawn.microns_per_pixel
    to_image = np.array([[scale, 0.0, 0.0], [0.0, scale, 0.0], [TILT * scale, TILT * scale, 1.0]])
    side = int(len(drawn.pixels) / scale)
    seen = warp(drawn.pixels, ProjectiveTransform(to_image), output_shape=(side, side), order=1, cval=1.0)
    tifffile.imwrite(path, np.round(seen * 255).astype(np.uint8), photometric="rgb")
    return to_image


def _write_slice(path: Path, cytassist_to_image: np.ndarray) -> None:
    """The metadata of ``feature_slice.h5``: how cameras and array lie on each other; bins of 2 µm are the array."""
    import h5py

    straight = np.eye(3)
    matrices = {
        "cytassist_colrow_to_spot_colrow": cytassist_to_image,
        "spot_colrow_to_cytassist_colrow": np.linalg.inv(cytassist_to_image),
        "microscope_colrow_to_spot_colrow": straight,
        "spot_colrow_to_microscope_colrow": straight,
    }
    layout = {"file_format": "1.0", "transform": straight.ravel().tolist()}
    about = {
        "hd_layout_json": json.dumps(layout),
        "transform_matrices": {name: matrix.ravel().tolist() for name, matrix in matrices.items()},
    }
    with h5py.File(path, "w") as file:
        file.attrs["metadata_json"] = json.dumps(about)


def _write_cells(folder: Path, cells: AnnData, drawn: Drawn) -> None:
    """Counts and outlines of cells, whose ids are numbers in one file and text in the other."""
    (folder / "spatial").mkdir(parents=True)
    numbers = np.arange(1, cells.n_obs + 1)
    barcodes = np.array([f"cellid_{number:09d}-1" for number in numbers])
    write_counts(folder / "filtered_feature_cell_matrix.h5", cells, barcodes, drawn.section)
    for name, radius in {"cell": "radius_um", "nucleus": "nucleus_um"}.items():
        rings = outlines(cells.obs, radius, drawn.microns_per_pixel).round(2).tolist()
        features = [
            {
                "type": "Feature",
                "geometry": {"type": "Polygon", "coordinates": [ring]},
                "properties": {"cell_id": int(number)},
            }
            for number, ring in zip(numbers, rings, strict=True)
        ]
        text = json.dumps({"type": "FeatureCollection", "features": features})
        (folder / f"{name}_segmentations.geojson").write_text(text)


def _write_mappings(path: Path, finest: AnnData, sizes: dict[int, str], cells: AnnData, drawn: Drawn) -> None:
    """The bin of every size and the cell that each of the finest bins is in."""
    from scipy.spatial import cKDTree

    size = min(sizes)
    rows, columns = (finest.obs[name].to_numpy() for name in ("array_row", "array_col"))
    away, nearest = cKDTree(cells.obs[["x_um", "y_um"]]).query((np.c_[columns, rows] + 0.5) * size)
    in_cell = away <= cells.obs["radius_um"].to_numpy()[nearest]
    mapped = {
        key: _barcodes(rows // (one // size), columns // (one // size), one) for one, key in sorted(sizes.items())
    }
    mapped["cell_id"] = np.array(
        [f"cellid_{i + 1:09d}-1" if inside else None for i, inside in zip(nearest, in_cell, strict=True)]
    )
    mapped["in_nucleus"] = away <= cells.obs["nucleus_um"].to_numpy()[nearest]
    mapped["in_cell"] = in_cell
    pd.DataFrame(mapped).to_parquet(path)
