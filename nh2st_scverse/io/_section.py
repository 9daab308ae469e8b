"""What the readers share: the geometry of the spots, and the SpatialData of one section."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import dask.array as da
import numpy as np
from anndata import AnnData
from numpy.typing import NDArray
from scipy.spatial import cKDTree
from spatialdata import SpatialData
from spatialdata.models import ShapesModel, TableModel
from spatialdata.transformations import BaseTransformation, Identity, Scale, set_transformation
from xarray import DataArray, Dataset, DataTree

from nh2st_scverse._constants import MICRONS_SUFFIX
from nh2st_scverse._logging import logger

ENSEMBL = re.compile(r"ENS[A-Z]*G\d{11}(?:\.\d+)?")


def spacing(xy: NDArray[Any]) -> float:
    """Distance between the centres of neighbouring spots, in the unit of `xy` (n, 2); NaN for fewer than two spots.

    The nearest neighbour alone is biased when spots are jittered (legacy ST): the median is taken over all neighbours
    at about that distance, which are up to 4 on a square and 6 on a hexagonal grid.
    """
    check_finite(xy)
    if len(xy) < 2:
        return float("nan")
    distances = cKDTree(xy).query(xy, k=min(7, len(xy)))[0][:, 1:]
    nearest = np.median(distances[:, 0])
    return float(np.median(distances[distances <= 1.25 * nearest]))


def check_finite(xy: NDArray[Any]) -> None:
    """Raise ValueError when spots (n, 2) have no place."""
    lacking = ~np.isfinite(xy).all(axis=1)
    if lacking.any():
        raise ValueError(
            f"Expected x and y of every spot, found {int(lacking.sum())} of {len(xy)} spots without (NaN or infinite), "
            f"the first in row {int(np.argmax(lacking))}. Leave them out: "
            "adata[np.isfinite(adata.obsm['spatial']).all(axis=1)]."
        )


def check_inside(xy: NDArray[Any], image: da.Array, *, swap: str, scales: Sequence[float] = ()) -> None:
    """Raise when spot centres `xy` (n, 2; px of the image) are not inside the image.

    Parameters
    ----------
    xy
        Spot centres in pixels of `image`.
    image
        (3, y, x).
    swap
        The code that swaps x and y, for the message.
    scales
        Known px of image per px of coordinates, e.g. Space Ranger's ``tissue_hires_scalef``.
    """
    check_finite(xy)
    size = np.array([image.shape[2], image.shape[1]])

    def n_outside(points: NDArray[Any]) -> int:
        return int(((points < 0) | (points >= size)).any(1).sum())

    n_out = n_outside(xy)
    if not n_out:
        if len(xy) > 1 and (xy.max(0) < 0.35 * size).all():
            logger.warning(
                f"All spots are in the upper left corner of the image (x up to {xy[:, 0].max():.0f} of "
                f"{size[0]}, y up to {xy[:, 1].max():.0f} of {size[1]} px). If the coordinates belong to a "
                "smaller copy of the image, give `image_scale=` (px of this image per px of the coordinates, above 1)."
            )
        return
    (x0, y0), (x1, y1) = xy.min(0), xy.max(0)
    message = (
        f"{n_out} of {len(xy)} spots are outside the image, which is {size[0]} x {size[1]} px (width x height); "
        f"the spots reach from {x0:.0f} to {x1:.0f} in x and from {y0:.0f} to {y1:.0f} in y."
    )
    ratio = float(np.min(size / np.maximum(xy.max(0), 1)))
    known = [s for s in sorted(scales, reverse=True) if n_outside(xy * s) == 0]
    if known:
        message += f" The image is a downscaled copy: pass `image_scale={known[0]:.6g}` (from `uns['spatial']`)."
    elif n_outside(xy[:, ::-1]) == 0:
        message += f" With x and y swapped all spots are inside: {swap}."
    elif ratio < 0.9 and min(x0, y0) >= 0:
        message += (
            f" The image looks like a downscaled copy of the one the coordinates belong to: pass that image, or "
            f"`image_scale=` (px of this image per px of the coordinates; at most {ratio:.3g}. Space Ranger calls it "
            "tissue_hires_scalef)."
        )
    else:
        message += (
            " Check that image and coordinates belong together and that x and y are not swapped, or drop these spots."
        )
    raise ValueError(message)


def name_genes(adata: AnnData) -> list[str]:
    """Write both kinds of names of genes to ``var``, where they are there. Returns what is doubtful about them."""
    names = adata.var_names.astype(str)
    ids = names.str.fullmatch(ENSEMBL)
    said = []
    if not names.is_unique:
        adata.var["name_original"] = names.to_numpy()
        adata.var_names_make_unique()
        said.append("names of genes are shared by several, and were made unique")
    given = next((c for c in ("gene_ids", "gene_id", "ensembl_id") if c in adata.var), None)
    adata.var["gene_id"] = np.where(ids, names, "" if given is None else adata.var[given].astype(str))
    symbols = next((c for c in ("gene_names", "gene_symbols", "symbol", "feature_name") if c in adata.var), None)
    adata.var["symbol"] = np.where(~ids, names, "" if symbols is None else adata.var[symbols].astype(str))
    if ids.any() and symbols is None:
        some = "all" if ids.all() else "some"
        said.append(
            f"{some} genes are named by Ensembl ids, in others by symbols: bring them to one kind to train on both"
        )
    return said


def name_of(path: Path) -> str:
    """Name of a file without its ending, as SpatialData can use it."""
    stem = re.sub(r"(\.ome)?\.[^.]+$", "", path.name, flags=re.IGNORECASE)
    return re.sub(r"[^\w.-]+", "_", stem, flags=re.ASCII).strip("_.")[:100] or "section"


def systems_of(section: str, microns_per_pixel: float) -> dict[str, BaseTransformation]:
    """The coordinate systems of a section: pixels of its image, and µm."""
    return {section: Identity(), f"{section}{MICRONS_SUFFIX}": Scale([microns_per_pixel] * 2, axes=("x", "y"))}


def image_element(levels: list[da.Array], systems: dict[str, BaseTransformation]) -> DataTree:
    """The multiscale image of levels (3, y, x), finest first."""
    _, height, width = levels[0].shape
    scales = {}
    for i, level in enumerate(levels):
        _, h, w = level.shape
        coords = {"c": ["r", "g", "b"], "y": (np.arange(h) + 0.5) * height / h, "x": (np.arange(w) + 0.5) * width / w}
        scales[f"scale{i}"] = Dataset({"image": DataArray(level, dims=("c", "y", "x"), coords=coords)})
    tree = DataTree.from_dict(scales)
    set_transformation(tree, systems, set_all=True)
    return tree


def build_section(
    section: str,
    levels: list[da.Array],
    xy: NDArray[Any],
    table: AnnData,
    *,
    microns_per_pixel: float,
    spot_diameter: float,
) -> SpatialData:
    """The SpatialData of one section.

    Parameters
    ----------
    section
        Its name, S.
    levels
        Of the image, finest first: (3, y, x) uint8.
    xy
        (n_spots, 2): x and y of the spot centres in pixels of the finest level, in the order of `table`.
    table
        n_spots x genes. It becomes part of the result and is written to: pass a copy.
    microns_per_pixel
        Of the finest level.
    spot_diameter
        In µm.

    Returns
    -------
    ``images["S_image"]``, ``shapes["S_spots"]``, ``tables["table"]``; coordinate systems ``S`` (px) and ``S_microns``.

    Raises
    ------
    ValueError
        If the spots would overlap, which means that the resolution, the diameter or the coordinates are wrong.
    """
    pitch = spacing(xy) * microns_per_pixel
    if pitch < 0.9 * spot_diameter:
        raise ValueError(
            f"Spots of {spot_diameter:g} µm would overlap: their centres are {pitch:.3g} µm apart with "
            f"{microns_per_pixel:.4g} µm per pixel (typical: legacy ST 100 µm spots every 200 µm, Visium 55 "
            "every 100). `microns_per_pixel`, `spot_diameter` or `image_scale` is wrong, or there is more than "
            "one section in the table: pass one section at a time."
        )

    systems = systems_of(section, microns_per_pixel)
    index = np.arange(len(xy))
    radius = spot_diameter / 2 / microns_per_pixel
    spots = ShapesModel.parse(
        np.asarray(xy, dtype=float), geometry=0, radius=radius, index=index, transformations=systems
    )
    table.obs["region"] = f"{section}_spots"
    table.obs["region"] = table.obs["region"].astype("category")
    table.obs["spot_id"] = index
    table.obsm["spatial"] = np.array(xy, dtype=float)
    table.uns.pop(TableModel.ATTRS_KEY, None)  # of the object the table was taken from
    table = TableModel.parse(table, region=f"{section}_spots", region_key="region", instance_key="spot_id")
    logger.info(
        f"{section}: {table.n_obs} spots x {table.n_vars} genes, image {levels[0].shape[2]} x {levels[0].shape[1]} px, "
        f"{microns_per_pixel:.4g} µm per pixel"
        + (f", spots {pitch:.4g} µm apart" if np.isfinite(pitch) else "")
        + f", {spot_diameter:g} µm wide"
    )
    return SpatialData(
        images={f"{section}_image": image_element(levels, systems)},
        shapes={f"{section}_spots": spots},
        tables={"table": table},
    )
