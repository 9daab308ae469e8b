"""Sections written in the layouts of HEST-1k and STimage-1K4M: to try a workflow before the downloads are there."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np
import pandas as pd

from nh2st_scverse._constants import ARRAYS_UM
from nh2st_scverse._validators import as_path, check_one_of
from nh2st_scverse.data.pooling import pool
from nh2st_scverse.datasets._folder import Drawn, measured, only_section

if TYPE_CHECKING:
    from anndata import AnnData
    from spatialdata import SpatialData

Technology = Literal["Visium", "Spatial Transcriptomics", "Xenium", "Visium HD"]
WIDTHS = ARRAYS_UM | {"Xenium": (100.0, 100.0), "Visium HD": (128.0, 128.0)}  # between spots, width of one
LARGEST_LEVEL = 512  # px of the smallest level of a pyramid


def hest_folder(
    sections: Mapping[str, SpatialData],
    *,
    path: str | os.PathLike[str],
    technology: Technology = "Visium",
    patients: Mapping[str, str] | None = None,
    heart: bool = False,
) -> Path:
    """Write sections in the layout of HEST-1k.

    Parameters
    ----------
    sections
        One section each, with its image, spots and table, by the id of the sample: drawn by :func:`synthetic`, or read
        by a reader of ``nh.io``.
    path
        The folder; samples are added to those that are there.
    technology
        ``"Visium"``, ``"Spatial Transcriptomics"``; ``"Xenium"``, for sections drawn with cells: their counts are
        pooled in squares of 100 µm, and cells and transcripts are written too; or ``"Visium HD"``, for sections drawn
        with bins of 16 µm: they are pooled in squares of 128 µm.
    patients
        By id; the others are left blank, as most are in HEST.
    heart
        Name spots as the sections of the heart are: several of them alike, and without a row.

    Returns
    -------
    The folder, with ``HEST_v1_1_0.csv``, ``st``, ``wsis`` (pyramids), ``metadata``, ``tissue_seg``; ``cellvit_seg``,
    ``xenium_seg`` and ``transcripts`` where cells were drawn.

    Raises
    ------
    ValueError
        Not one section under an id, or a sample that is there.

    See Also
    --------
    stimage_folder, nh2st_scverse.io.hest

    Examples
    --------
    >>> import nh2st_scverse as nh
    >>> folder = nh.datasets.hest_folder({"INT1": nh.datasets.synthetic(width_um=600, n_genes=20)}, path="hest_1k")
    >>> sorted(part.name for part in folder.iterdir())
    ['HEST_v1_1_0.csv', 'metadata', 'st', 'tissue_seg', 'wsis']
    """
    check_one_of(technology, WIDTHS, argument="technology")
    root = as_path(path, argument="path")
    drawn = {name: _one(sdata, name, root) for name, sdata in sections.items()}
    for part in ("st", "wsis", "metadata", "tissue_seg"):
        (root / part).mkdir(parents=True, exist_ok=True)
    rows = []
    for name, sdata in sections.items():
        if (root / "st" / f"{name}.h5ad").exists():
            raise ValueError(f"Sample {name!r} is in {root} already: choose another id.")
        one = drawn[name]
        pitch, width = WIDTHS[technology]
        table = sdata.tables["table"] if technology in ARRAYS_UM else _squares(sdata, one, technology, pitch)
        microns = one.microns_per_pixel
        _write_h5ad(root / "st" / f"{name}.h5ad", table, one, width, heart=heart)
        _write_pyramid(root / "wsis" / f"{name}.tif", one.pixels, microns)
        about = {
            "id": name,
            "st_technology": technology,
            "inter_spot_dist": pitch,
            "spot_diameter": width,
            "pixel_size_um_estimated": microns,
            "pixel_size_um_embedded": microns,
            "fullres_px_width": one.pixels.shape[1],
            "fullres_px_height": one.pixels.shape[0],
            "spots_under_tissue": table.n_obs,
        }
        (root / "metadata" / f"{name}.json").write_text(json.dumps(about))
        rows.append(about | {"patient": (patients or {}).get(name), "license": None, "nb_genes": table.n_vars})
        _write_outlines(root, name, sdata, one, transcripts=technology == "Xenium")
    csv = root / "HEST_v1_1_0.csv"
    before = [pd.read_csv(csv)] if csv.is_file() else []
    pd.concat([*before, pd.DataFrame(rows)], ignore_index=True).to_csv(csv, index=False)
    return root


def stimage_folder(
    sections: Mapping[str, SpatialData],
    *,
    path: str | os.PathLike[str],
    technology: Literal["ST", "Visium"] = "Visium",
    ids: Literal["barcode", "place", "decimal", "experiment"] = "place",
) -> Path:
    """Write sections in the layout of STimage-1K4M.

    Parameters
    ----------
    sections
        One section each, with its image, spots and table, by the name of the slide.
    path
        The folder; slides are added to those that are there.
    technology
        ``"ST"`` or ``"Visium"``.
    ids
        How spots are named: ``"barcode"``; ``"place"``, by their place on the array; ``"decimal"``, the same with the
        decimals that the mouse slides have, other ones in both files; ``"experiment"``, with a number before it in the
        counts, as the heart slides.

    Returns
    -------
    The folder, with ``coord``, ``gene_exp`` and ``image`` in that of the technology. Images are JPEG files whose names
    end in ``.png``, as many are there.

    Raises
    ------
    ValueError
        Not one section under a name.

    See Also
    --------
    hest_folder, nh2st_scverse.io.stimage

    Examples
    --------
    >>> import nh2st_scverse as nh
    >>> drawn = nh.datasets.synthetic(width_um=600, n_genes=20)
    >>> folder = nh.datasets.stimage_folder({"Slide_1": drawn}, path="stimage_1k4m")
    >>> sorted(part.name for part in (folder / "Visium").iterdir())
    ['coord', 'gene_exp', 'image']
    """
    from PIL import Image

    check_one_of(technology, ("ST", "Visium"), argument="technology")
    check_one_of(ids, ("barcode", "place", "decimal", "experiment"), argument="ids")
    root = as_path(path, argument="path")
    for part in ("coord", "gene_exp", "image"):
        (root / technology / part).mkdir(parents=True, exist_ok=True)
    for slide, sdata in sections.items():
        one, table = _one(sdata, slide, root), sdata.tables["table"]
        xy = np.asarray(table.obsm["spatial"], dtype=float)
        row, col = table.obs["array_row"].to_numpy(), table.obs["array_col"].to_numpy()
        place = [f"{x}x{y}" for x, y in zip(col, row, strict=True)]
        if ids == "barcode":
            place = [f"{'ACGT'[i % 4]}{i:05d}-1" for i in range(len(place))]
        near = [f"{x + 0.08:.2f}x{y - 0.015:.3f}" for x, y in zip(col, row, strict=True)]
        in_coord = near if ids == "decimal" else place
        in_counts = [f"3x{name}" for name in place] if ids == "experiment" else place
        radius = float(sdata.shapes[f"{one.section}_spots"]["radius"].iloc[0])
        coord = pd.DataFrame(
            {"yaxis": xy[:, 1], "xaxis": xy[:, 0], "r": radius}, index=[f"{slide}_{n}" for n in in_coord]
        )
        coord.sample(frac=1, random_state=0).to_csv(root / technology / "coord" / f"{slide}_coord.csv")
        counts = table.to_df().astype(int).set_axis([f"{slide}_{n}" for n in in_counts])
        counts.to_csv(root / technology / "gene_exp" / f"{slide}_count.csv")
        Image.fromarray(one.pixels).save(root / technology / "image" / f"{slide}.png", format="JPEG", quality=95)
    return root


def _one(sdata: SpatialData, name: str, root: Path) -> Drawn:
    """The one section of an object: its image and µm per pixel."""
    if len(sdata.images) != 1 or "table" not in sdata.tables:
        raise ValueError(f"Expected one section with an image and 'table' under {name!r}, found {list(sdata.images)}.")
    return only_section(sdata, root)


def _write_h5ad(path: Path, table: AnnData, one: Drawn, width_um: float, *, heart: bool) -> None:
    """Raw counts with places in pixels, named as HEST names them."""
    import anndata as ad

    xy = np.asarray(table.obsm["spatial"], dtype=float)
    places = [c for c in ("array_row", "array_col") if c in table.obs]
    obs = table.obs[places].copy()
    obs["in_tissue"] = 1
    obs["pxl_col_in_fullres"], obs["pxl_row_in_fullres"] = xy.T
    if heart:  # what HEST's reader makes of "{experiment}x{x}x{y}"
        column = table.obs["array_col"].to_numpy()
        obs["array_row"], obs["array_col"] = 3, column
        obs.index = [f"{3:03d}x{x:03d}" for x in column]
    adata = ad.AnnData(table.X.copy(), obs=obs, var=pd.DataFrame(index=table.var_names))
    adata.obsm["spatial"] = xy
    small = one.pixels[:: max(1, len(one.pixels) // 1000), :: max(1, len(one.pixels) // 1000)]
    factors = {
        "spot_diameter_fullres": width_um / one.microns_per_pixel,
        "tissue_downscaled_fullres_scalef": len(small) / len(one.pixels),
    }
    adata.uns["spatial"] = {"ST": {"images": {"downscaled_fullres": small}, "scalefactors": factors}}
    adata.write_h5ad(path)


def _write_pyramid(path: Path, pixels: np.ndarray, microns: float) -> None:
    """A tiled BigTIFF with half the size at each level, which are pages of one file."""
    import tifffile
    from PIL import Image

    with tifffile.TiffWriter(path, bigtiff=True) as tiff:
        level = pixels
        while True:
            per_cm = 1e4 / microns * level.shape[1] / pixels.shape[1]
            tiff.write(
                level,
                subfiletype=0 if level is pixels else 1,
                tile=(256, 256),
                photometric="rgb",
                metadata=None,
                resolution=(per_cm, per_cm),
                resolutionunit="CENTIMETER",
            )
            if max(level.shape) <= LARGEST_LEVEL:
                return
            height, width = (n // 2 * 2 for n in level.shape[:2])
            level = np.asarray(Image.fromarray(level[:height, :width]).reduce(2))  # means: no aliasing


def _write_outlines(root: Path, name: str, sdata: SpatialData, one: Drawn, *, transcripts: bool) -> None:
    """Tissue as a contour round all spots; cells and transcripts where cells were drawn."""
    import geopandas as gpd
    import shapely

    from nh2st_scverse.datasets._fine import outlines
    from nh2st_scverse.datasets._xenium import cell_names, transcripts_of

    hull = shapely.MultiPoint(np.asarray(sdata.tables["table"].obsm["spatial"], dtype=float)).convex_hull
    contour = gpd.GeoDataFrame({"tissue_id": [0]}, geometry=[hull])
    contour.to_file(root / "tissue_seg" / f"{name}_contours.geojson", driver="GeoJSON")
    if "cells" not in sdata.tables:
        return
    cells, microns = sdata.tables["cells"], one.microns_per_pixel
    for part in ("cellvit_seg", *(("xenium_seg", "transcripts") if transcripts else ())):
        (root / part).mkdir(exist_ok=True)
    names = cell_names(cells.n_obs)
    polygons = {r: shapely.polygons(outlines(cells.obs, r, microns)) for r in ("radius_um", "nucleus_um")}
    kinds = {"tumour": "Neoplastic", "immune": "Inflammatory", "stroma": "Connective"}
    nuclei = gpd.GeoDataFrame(
        {"class": cells.obs["cell_type"].astype(str).map(kinds).to_numpy()}, geometry=polygons["nucleus_um"]
    )
    nuclei.to_parquet(root / "cellvit_seg" / f"{name}_cellvit_seg.parquet")
    if transcripts:
        for what, radius in {"cell": "radius_um", "nucleus": "nucleus_um"}.items():
            frame = gpd.GeoDataFrame({"cell_id": names}, geometry=polygons[radius])
            frame.to_parquet(root / "xenium_seg" / f"{name}_xenium_{what}_seg.parquet")
        molecules = transcripts_of(cells, names)
        molecules["he_x"], molecules["he_y"] = molecules["x_location"] / microns, molecules["y_location"] / microns
        molecules.to_parquet(root / "transcripts" / f"{name}_transcripts.parquet")


def _squares(sdata: SpatialData, one: Drawn, technology: str, side_um: float) -> AnnData:
    """Counts of cells or bins in squares, as HEST pools Xenium and Visium HD."""
    import anndata as ad

    cells = technology == "Xenium"
    table = measured(sdata, *(("cells", "cells=True") if cells else ("square_016um", "bins_um=16")))
    places = table.obs[["y_um", "x_um"] if cells else ["array_row", "array_col"]].to_numpy(float)
    code, at = np.unique((places if cells else (places + 0.5) * 16) // side_um, axis=0, return_inverse=True)
    obs = pd.DataFrame(code.astype(int), columns=["array_row", "array_col"])
    obs = obs.set_axis([f"{r}x{c}" for r, c in code.astype(int)])
    pooled = ad.AnnData(pool(table.X, at.ravel(), len(code)), obs=obs, var=table.var[[]])
    pooled.obsm["spatial"] = (code[:, ::-1] + 0.5) * side_um / one.microns_per_pixel
    return pooled[(pooled.obsm["spatial"] < one.pixels.shape[1::-1]).all(axis=1)].copy()
