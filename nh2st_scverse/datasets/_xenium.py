"""A drawn section as the folder of files that a Xenium leaves."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from nh2st_scverse._validators import check_positive
from nh2st_scverse.datasets._fine import outlines
from nh2st_scverse.datasets._folder import Drawn, begin, measured, write_counts

if TYPE_CHECKING:
    from anndata import AnnData
    from spatialdata import SpatialData

PIXEL_UM = 0.2125  # of the images of the instrument
VERSION = "xenium-2.0.0.10"
BACKGROUND_SHARE = 0.02  # of the transcripts: outside of cells, in doubt, or of control probes
TURN = np.array([[0.0, -1.0], [1.0, 0.0]])  # a quarter, counterclockwise on the screen


def xenium_folder(
    sdata: SpatialData,
    *,
    path: str | os.PathLike[str],
    he_image: bool = True,
    alignment: bool = True,
    quarter_turns: int = 1,
    pixel_um: float = PIXEL_UM,
) -> Path:
    """Write a drawn section as a Xenium would: to try a workflow before one's own files are there.

    Parameters
    ----------
    sdata
        One section from :func:`synthetic`, drawn with ``cells=True``.
    path
        The folder; made if needed, and empty.
    he_image
        Write the H&E image that was taken afterwards.
    alignment
        Write how the H&E image lies on the others. Where this file is lacking readers take the images to lie on each
        other pixel by pixel.
    quarter_turns
        By which the H&E image is turned against the others.
    pixel_um
        µm per pixel of the other images; coarser ones are written faster.

    Returns
    -------
    The folder. It holds ``experiment.xenium``; counts and outlines of cells in µm (``cell_feature_matrix.h5``,
    ``cells.parquet``, ``cell_boundaries.parquet``, ``nucleus_boundaries.parquet``, ``cells.zarr.zip``);
    ``transcripts.parquet``, some of them of control probes, in doubt or outside of cells; the fluorescence image
    ``morphology_focus/morphology_focus_0000.ome.tif``; ``section_he_image.ome.tif`` and
    ``section_he_imagealignment.csv``.

    Raises
    ------
    FileExistsError
        There is something in the folder.
    ValueError
        Not one section of :func:`synthetic`, or drawn without cells.

    See Also
    --------
    synthetic, visium_hd_folder, space_ranger_folder

    Examples
    --------
    >>> import spatialdata_io
    >>> import nh2st_scverse as nh
    >>> drawn = nh.datasets.synthetic(width_um=600, n_genes=20, cells=True)
    >>> folder = nh.datasets.xenium_folder(drawn, path="my_xenium", pixel_um=0.85)
    >>> sdata = spatialdata_io.xenium(folder)
    >>> sorted(sdata.images)
    ['he_image', 'morphology_focus']
    """
    check_positive(pixel_um, argument="pixel_um")
    drawn = begin(sdata, path)
    cells = measured(sdata, "cells", "cells=True")
    folder = drawn.folder
    (folder / "morphology_focus").mkdir(parents=True)
    specs = {"pixel_size": pixel_um, "analysis_sw_version": VERSION, "region_name": drawn.section}
    (folder / "experiment.xenium").write_text(json.dumps(specs))
    size = round(len(drawn.pixels) * drawn.microns_per_pixel / pixel_um)
    names = cell_names(cells.n_obs)
    write_counts(folder / "cell_feature_matrix.h5", cells, names, drawn.section)
    _write_boundaries(folder, cells, names)
    masks = [_mask(cells, radius, size, pixel_um) for radius in ("nucleus_um", "radius_um")]
    _write_zarr(folder / "cells.zarr.zip", cells, masks)
    transcripts_of(cells, names).to_parquet(folder / "transcripts.parquet")
    _write_fluorescence(folder / "morphology_focus" / "morphology_focus_0000.ome.tif", masks[0], pixel_um)
    if he_image:
        _write_he(folder, drawn, quarter_turns % 4, pixel_um, alignment=alignment)
    return folder


def cell_names(n: int) -> np.ndarray:
    """Ids of cells as the instrument writes them: a number with a letter for each hexadecimal digit."""
    digits = str.maketrans("0123456789abcdef", "abcdefghijklmnop")
    return np.array([f"{i + 1:08x}".translate(digits) + "-1" for i in range(n)])


def _write_boundaries(folder: Path, cells: AnnData, names: np.ndarray) -> None:
    """The table of cells, and their outlines corner by corner, in µm."""
    obs = cells.obs
    area = np.pi * obs[["radius_um", "nucleus_um"]].to_numpy() ** 2
    about = {
        "cell_id": names,
        "x_centroid": obs["x_um"].to_numpy(),
        "y_centroid": obs["y_um"].to_numpy(),
        "transcript_counts": np.asarray(cells.X.sum(axis=1)).ravel().astype(int),
        "cell_area": area[:, 0],
        "nucleus_area": area[:, 1],
    }
    pd.DataFrame(about).to_parquet(folder / "cells.parquet")
    for what, radius in {"cell": "radius_um", "nucleus": "nucleus_um"}.items():
        rings = outlines(obs, radius, 1.0)
        corners = {
            "cell_id": np.repeat(names, rings.shape[1]),
            "vertex_x": rings[..., 0].ravel().astype(np.float32),
            "vertex_y": rings[..., 1].ravel().astype(np.float32),
            "label_id": np.repeat(np.arange(1, len(rings) + 1), rings.shape[1]),
        }
        pd.DataFrame(corners).to_parquet(folder / f"{what}_boundaries.parquet")


def _mask(cells: AnnData, radius: str, size: int, pixel_um: float) -> np.ndarray:
    """(size, size) uint32: the number of the cell that each pixel is of, from 1."""
    from skimage.draw import disk

    mask = np.zeros((size, size), np.uint32)
    places = cells.obs[["x_um", "y_um", radius]].to_numpy() / pixel_um
    for number, (x, y, r) in enumerate(places, start=1):
        mask[disk((y, x), max(r, 1.0), shape=mask.shape)] = number
    return mask


def _write_zarr(path: Path, cells: AnnData, masks: list[np.ndarray]) -> None:
    import zarr

    n, obs = cells.n_obs, cells.obs
    columns = {
        "cell_centroid_x": obs["x_um"],
        "cell_centroid_y": obs["y_um"],
        "cell_area": np.pi * obs["radius_um"] ** 2,
        "nucleus_centroid_x": obs["x_um"],
        "nucleus_centroid_y": obs["y_um"],
        "nucleus_area": np.pi * obs["nucleus_um"] ** 2,
        "z_level": np.zeros(n),
        "nucleus_count": np.ones(n),
    }
    with zarr.storage.ZipStore(path, mode="w") as store:
        group = zarr.create_group(store, zarr_format=2)
        numbers = np.arange(1, n + 1, dtype=np.uint32)
        group.create_array("cell_id", data=np.c_[numbers, np.ones(n, np.uint32)])
        summary = np.stack([np.asarray(values, dtype=float) for values in columns.values()], axis=1)
        group.create_array("cell_summary", data=summary, attributes={"column_names": list(columns)})
        for i, mask in enumerate(masks):
            group.create_array(f"masks/{i}", data=mask, chunks=(1024, 1024))
            group.create_array(f"polygon_sets/{i}/cell_index", data=np.arange(n, dtype=np.uint32))


def transcripts_of(cells: AnnData, names: np.ndarray) -> pd.DataFrame:
    """A molecule for each count, somewhere in its cell; and those that are in no count of a cell."""
    rng = np.random.default_rng(0)
    counts = cells.X.tocoo()
    times = counts.data.astype(int)
    cell, gene = np.repeat(counts.row, times), np.repeat(counts.col, times)
    n = len(cell)
    xy, radius = cells.obs[["x_um", "y_um"]].to_numpy(), cells.obs["radius_um"].to_numpy()
    away, angle = radius[cell] * np.sqrt(rng.random(n)), rng.uniform(0, 2 * np.pi, n)
    inside = pd.DataFrame(
        {
            "cell_id": names[cell],
            "overlaps_nucleus": (away < cells.obs["nucleus_um"].to_numpy()[cell]).astype(np.uint8),
            "feature_name": cells.var_names.to_numpy()[gene],
            "x_location": xy[cell, 0] + away * np.cos(angle),
            "y_location": xy[cell, 1] + away * np.sin(angle),
            "qv": rng.uniform(20, 40, n),
        }
    )
    more = inside.sample(max(3, int(BACKGROUND_SHARE * n)), random_state=0).assign(cell_id="UNASSIGNED")
    third = len(more) // 3
    more.iloc[:third, more.columns.get_loc("qv")] = 5.0  # in doubt
    more.iloc[third : 2 * third, more.columns.get_loc("feature_name")] = "NegControlProbe_00042"
    all_of_them = pd.concat([inside, more], ignore_index=True)
    all_of_them = all_of_them.astype({"x_location": np.float32, "y_location": np.float32, "qv": np.float32})
    all_of_them["z_location"] = np.float32(10.0)
    all_of_them["transcript_id"] = np.arange(len(all_of_them), dtype=np.uint64)
    return all_of_them


def _write_fluorescence(path: Path, nuclei: np.ndarray, pixel_um: float) -> None:
    """Nuclei that glow on a dark ground, 16 bits."""
    import tifffile
    from scipy.ndimage import gaussian_filter

    glow = gaussian_filter((nuclei > 0).astype(np.float32), 0.5 / pixel_um) * 4000 + 100
    about = {"axes": "YX", "PhysicalSizeX": pixel_um, "PhysicalSizeY": pixel_um, "Channel": {"Name": ["DAPI"]}}
    tifffile.imwrite(path, glow.astype(np.uint16), metadata=about, tile=(512, 512), compression="zlib")


def _write_he(folder: Path, drawn: Drawn, turns: int, pixel_um: float, *, alignment: bool) -> None:
    """The H&E image, and the way from its pixels to those of the fluorescence."""
    import tifffile

    turned, microns = np.ascontiguousarray(np.rot90(drawn.pixels, turns)), drawn.microns_per_pixel
    about = {"axes": "YXS", "PhysicalSizeX": microns, "PhysicalSizeY": microns}
    tifffile.imwrite(folder / "section_he_image.ome.tif", turned, photometric="rgb", metadata=about)
    if alignment:
        middle = np.full(2, len(drawn.pixels) / 2)
        turn = np.linalg.matrix_power(TURN, turns)
        matrix = np.eye(3)
        matrix[:2, :2], matrix[:2, 2] = turn, middle - turn @ middle
        matrix = np.diag([microns / pixel_um, microns / pixel_um, 1.0]) @ matrix
        pd.DataFrame(matrix).to_csv(folder / "section_he_imagealignment.csv", header=False, index=False)
