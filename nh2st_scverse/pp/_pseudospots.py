"""``pp.pseudospots``: counts of bins, cells or transcripts in spots of one size."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from anndata import AnnData
from scipy import sparse
from spatialdata import SpatialData
from spatialdata.models import ShapesModel, TableModel
from spatialdata.transformations import get_transformation

from nh2st_scverse._constants import ARRAYS_UM, VISIUM_PITCH_UM
from nh2st_scverse._docs import documented
from nh2st_scverse._logging import logger
from nh2st_scverse._options import Elements
from nh2st_scverse._validators import check_name, check_one_of, check_positive, choose_key
from nh2st_scverse.data.expression import is_logged, matrix
from nh2st_scverse.data.geometry import Geometry, apply_affine, locate
from nh2st_scverse.data.pooling import count_molecules, lay_spots, pool, spot_of
from nh2st_scverse.data.section import choose_table, locate_sections
from nh2st_scverse.pp._grid import SHAPES, add_grid, make_circles

VISIUM_SIZE_UM = ARRAYS_UM["Visium"][1]
LEAST_QV = 20.0  # of a transcript, below which its gene is in doubt
NO_GENES = r"^(?:NegControl|BLANK|Unassigned|Deprecated|antisense|Intergenic)"


@dataclass(frozen=True)
class Array:
    """Spots to pool into."""

    size_um: float
    pitch_um: float
    hexagonal: bool


@documented()
def pseudospots(
    sdata: SpatialData,
    *,
    size_um: float = VISIUM_SIZE_UM,
    pitch_um: float | None = None,
    shape: str = "hexagonal",
    min_counts: int = 1,
    points_key: str | None = None,
    table_key: str | None = None,
    shapes_key: str | None = None,
    image_key: str | Mapping[str, str] | None = None,
    layer: str | None = None,
    microns_per_pixel: float | None = None,
    key_added: str = "pseudospots",
) -> None:
    """Pool the counts of bins, cells or transcripts into spots of one size.

    So Visium HD and Xenium are trained on together with Visium, and the predictions of a model that was trained on
    spots can be compared at the size it knows. The model then predicts at bins or cells: what a spot round each of them
    would have.

    Parameters
    ----------
    sdata
        Image, bins or cells, and a table of their counts; or transcripts.
    size_um
        Width of a spot: 55 for Visium, 100 for legacy ST.
    pitch_um
        Distance between the centres of adjacent spots; None takes the ratio of Visium, 100 / 55.
    shape
        ``"hexagonal"``, as on Visium slides, or ``"square"``.
    min_counts
        Spots with fewer counts are left out.
    points_key
        Transcripts in ``sdata.points`` to count, instead of a table. Control probes, and transcripts with a quality
        (``qv``) below 20, are left out.
    $elements
    layer
        Layer with the counts; None means X.
    $microns_per_pixel
    key_added
        Name of the new table, and the end of the name of the new shapes. To train on several objects in one call, give
        their tables one name: ``key_added="table"`` and ``table_key="table"`` go with Visium.

    Returns
    -------
    None. Written are, for the region R of the table (or the points R), ``sdata.shapes["R_<key_added>"]``, circles in
    pixels of the image, and ``sdata.tables[key_added]``, which annotates them: sums of counts in X, ``n_pooled`` (how
    many bins, cells or transcripts), ``array_row`` and ``array_col`` in ``obs``, centres in pixels in
    ``obsm["spatial"]``. A place belongs to the spot that its centre is in; most belong to none, as on Visium slides.
    Nothing is written to disk.

    Raises
    ------
    KeyError
        Missing or ambiguous elements.
    ValueError
        Spots wider than their distance, values that are no counts, names that are taken, no spot with enough counts.

    See Also
    --------
    grid, nh2st_scverse.datasets.visium_hd_folder, nh2st_scverse.tl.train

    Examples
    --------
    >>> import nh2st_scverse as nh
    >>> sdata = nh.datasets.synthetic(width_um=800, n_genes=20, bins_um=8)
    >>> nh.pp.pseudospots(sdata, table_key="square_008um")
    >>> float(sdata["section_0_square_008um_pseudospots"].radius.iloc[0])
    27.5
    """
    check_positive(size_um, argument="size_um")
    if pitch_um is None:
        pitch_um = size_um * VISIUM_PITCH_UM / VISIUM_SIZE_UM
    check_positive(pitch_um, argument="pitch_um")
    if size_um > pitch_um:
        raise ValueError(
            f"Expected spots apart from each other, found size_um={size_um:g} above pitch_um={pitch_um:g}."
        )
    check_one_of(shape, SHAPES, argument="shape")
    elements = Elements.of(table_key, shapes_key, image_key, microns_per_pixel)
    if not isinstance(sdata, SpatialData):
        raise TypeError(f"Expected a SpatialData object, found {type(sdata).__name__}.")
    check_name(key_added, argument="key_added")
    array = Array(size_um, pitch_um, shape == "hexagonal")
    if points_key is not None:
        pooled = [_of_points(sdata, points_key, elements, array)]
    else:
        pooled = _of_table(sdata, elements, layer, array)
    taken = [name for _, name, _ in sdata.gen_elements()]
    new = {f"{name}_{key_added}": one for name, *one in pooled}
    clash = [name for name in (key_added, *new) if name in taken]
    if clash:
        raise ValueError(f"{clash} are there already, among {taken}: choose another key_added=, or delete them.")

    tables = []
    for key, (table, spots, geometry) in new.items():
        totals = np.asarray(table.X.sum(axis=1)).ravel()
        on_image = ((spots >= 0) & (spots < np.array(geometry.levels[0].size))).all(axis=1)
        counted = (totals >= max(min_counts, 1)) & on_image
        if not counted.any():
            raise ValueError(
                f"Expected spots of {size_um:g} µm with {min_counts} counts, found none: is it one section?"
            )
        table = table[counted].copy()
        circles = make_circles(sdata, geometry, spots[counted], size_um)
        table.obs["region"], table.obs["spot_id"] = key, circles.index.to_numpy()
        table.obs_names = [
            f"{key}_{r}x{c}" for r, c in zip(table.obs["array_row"], table.obs["array_col"], strict=True)
        ]
        table.obsm["spatial"] = spots[counted]
        tables.append((key, circles, geometry.image_key, table))
        logger.info(
            "%s: %d spots of %g µm, %g µm apart; %.0f places and %.0f counts in the median spot.",
            *(key, table.n_obs, size_um, pitch_um, table.obs["n_pooled"].median(), np.median(totals[counted])),
        )
    import anndata as ad

    joined = ad.concat([table for *_, table in tables], merge="same")
    joined.obs["region"] = joined.obs["region"].astype("category")
    parsed = TableModel.parse(joined, region=list(new), region_key="region", instance_key="spot_id")
    for key, circles, image, _ in tables:
        add_grid(sdata, key, circles, image)
    sdata.tables[key_added] = parsed


def _of_table(
    sdata: SpatialData, elements: Elements, layer: str | None, array: Array
) -> list[tuple[str, AnnData, np.ndarray, Geometry]]:
    """Of each section of a table: its name, the pooled table, the centres of the spots in pixels, its geometry."""
    table = sdata.tables[choose_table(sdata, elements.table)]
    counts = matrix(table, layer)
    if is_logged(counts):
        raise ValueError("Expected counts, which are summed, found logarithms: pass layer= with the counts.")
    made = []
    for section in locate_sections(sdata, elements, n_nodes=1):
        microns = section.geometry.microns_per_pixel
        xy_um = section.xy_um
        spots, place = lay_spots(xy_um.min(axis=0), xy_um.max(axis=0), array.pitch_um, hexagonal=array.hexagonal)
        spot = spot_of(xy_um, spots, array.size_um)
        pooled = pool(counts[section.rows], spot, len(spots))
        made.append((section.name, _table(pooled, table.var, spot, place), spots / microns, section.geometry))
    return made


def _of_points(
    sdata: SpatialData, key: str, elements: Elements, array: Array
) -> tuple[str, AnnData, np.ndarray, Geometry]:
    """The same of transcripts, which are read part by part."""
    choose_key(sdata.points, key, what="points", argument="points_key")
    points = sdata.points[key]
    feature = points.attrs.get("spatialdata_attrs", {}).get("feature_key")
    if feature is None or feature not in points.columns:
        raise ValueError(
            f"Expected points {key!r} with a column of genes, their feature_key; found {list(points.columns)}."
        )
    corner = ShapesModel.parse(
        np.zeros((1, 2)), geometry=0, radius=1, transformations=get_transformation(points, get_all=True)
    )
    images = SpatialData(images=dict(sdata.images), shapes={key: corner}, attrs=dict(sdata.attrs))
    geometry = locate(images, key, image_key=elements.image_of(key), microns_per_pixel=elements.microns_per_pixel)
    to_um = geometry.levels[0].from_shapes.copy()
    to_um[:2] *= geometry.microns_per_pixel
    names = pd.Index(points[feature].drop_duplicates().compute().astype(str)).sort_values()
    names = names[~names.str.contains(NO_GENES, case=False)]
    low, high = (np.asarray(v, dtype=float) for v in _extent(points, to_um))
    spots, place = lay_spots(low, high, array.pitch_um, hexagonal=array.hexagonal)
    counts = sparse.csr_matrix((len(spots), len(names)), dtype=np.float32)
    n_pooled = np.zeros(len(spots), dtype=int)
    for part in points.to_delayed():
        frame = part.compute()
        if "qv" in frame:
            frame = frame[frame["qv"] >= LEAST_QV]
        spot = spot_of(apply_affine(to_um, frame[["x", "y"]].to_numpy(float)), spots, array.size_um)
        gene = names.get_indexer(frame[feature].astype(str))
        counts = counts + count_molecules(spot, gene, counts.shape)
        n_pooled += np.bincount(spot[(spot >= 0) & (gene >= 0)], minlength=len(spots))
    table = _table(counts, pd.DataFrame(index=names), np.repeat(np.arange(len(spots)), n_pooled), place)
    return key, table, spots / geometry.microns_per_pixel, geometry


def _extent(points: Any, to_um: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Lowest and highest x and y of points in µm."""
    bounds = points[["x", "y"]].min().compute().to_numpy(), points[["x", "y"]].max().compute().to_numpy()
    corners = np.array([(x[0], y[1]) for x in bounds for y in bounds], dtype=float)
    moved = apply_affine(to_um, corners)
    return moved.min(axis=0), moved.max(axis=0)


def _table(counts: sparse.csr_matrix, var: pd.DataFrame, spot: np.ndarray, place: np.ndarray) -> AnnData:
    obs = pd.DataFrame(place, columns=["array_row", "array_col"]).set_axis([str(i) for i in range(len(place))])
    obs["n_pooled"] = np.bincount(spot[spot >= 0], minlength=len(place))
    return AnnData(counts, obs=obs, var=var.copy())
