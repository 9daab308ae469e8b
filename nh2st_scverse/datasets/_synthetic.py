"""The embedded data set: drawn H&E sections with spots and counts whose causes are known."""

from __future__ import annotations

import json
from collections.abc import Sequence
from numbers import Integral, Real
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from scipy import sparse
from scipy.spatial import cKDTree

from nh2st_scverse._constants import MICRONS_SUFFIX, VISIUM_PITCH_UM
from nh2st_scverse.datasets import _fine as _at_scale
from nh2st_scverse.datasets._layout import BACKGROUND, NESTS_UM, REGIONS
from nh2st_scverse.datasets._tissue import Tissue, draw_tissue

if TYPE_CHECKING:
    from anndata import AnnData
    from geopandas import GeoDataFrame
    from spatialdata import SpatialData
    from spatialdata.transformations import BaseTransformation
    from xarray import DataTree

SPOT_DIAMETER_UM = 55.0
# share of the genes that each program has, and of the counts (roughly; the region programs divide REGION_SHARE)
GENE_SHARES = {
    "tumour": 0.17,
    "stroma": 0.17,
    "immune": 0.17,
    "fat": 0.12,
    "density": 0.10,
    "context": 0.10,
    "noise": 0.17,
}
COUNT_SHARES = {"density": 0.06, "context": 0.09, "noise": 0.17}
REGION_SHARE = 0.68
REGION_FOLD = 12.0  # a marker is 1 + 12 times as strong in its region as outside it (mean over the genes of a program)
CONTEXT_REGIONS = ("tumour", "immune")  # what context genes respond to, in turn
CONTEXT_FOLD = 10.0
DENSITY_FOLD = 4.0
TYPICAL_NUCLEI = 13.0  # at the typical value of its driver a gene is at 1 + fold times its least rate
TYPICAL_CONTEXT = {"tumour": 0.35, "immune": 0.12}
OVERDISPERSION = 0.05  # variance of the counts = mean + 0.05 * mean**2
LIBRARY_SPREAD = 0.35  # of the logarithm of the library size


def synthetic(
    n_sections: int = 1,
    *,
    n_genes: int = 300,
    width_um: float = 3600.0,
    microns_per_pixel: float = 1.0,
    median_counts: float = 5000.0,
    nests_um: float = NESTS_UM,
    seed: int = 0,
    bins_um: int | Sequence[int] = (),
    cells: bool = False,
) -> SpatialData:
    """Draw sections that look like H&E, with Visium spots and counts whose causes are known.

    Every section has its own outline, layout of tumour, stroma, immune aggregates and fat, and its own stain. Spots of
    55 µm lie on Visium's hexagonal grid of 100 µm pitch; those with their centre in the tissue are kept. Counts are
    negative binomial around rates that follow *programs*:

    - ``tumour``, ``stroma``, ``immune``, ``fat``: the fraction of that region under the spot;
    - ``density``: the number of nuclei under the spot;
    - ``context``: the mean fraction of tumour (odd genes) or of immune tissue (even genes) under the up to 6 *adjacent*
      spots, and not the spot itself;
    - ``noise``: nothing but the library size.

    What a gene responds to, and how strongly, is the same for every seed: a model trained on one seed can be applied
    to another.

    Parameters
    ----------
    n_sections
        Number of sections, ``section_0``, ``section_1``, ... Section ``i`` is the same whatever the number.
    n_genes
        Number of genes, at least 14.
    width_um
        Width and height of the image of a section in µm, at least 600. 3600 gives about 1000 spots, 1200 about 100.
    microns_per_pixel
        Resolution of the image, 0.25 to 4. The layout does not depend on it.
    median_counts
        Median library size of a spot.
    nests_um
        How wide nests of tumour, immune aggregates and fat are, 20 to 500 (the width of a Gaussian). The default makes
        them as small as the distance between spots; 150 gives an anatomy that clusters show.
    seed
        The same seed gives the same object.
    bins_um
        Sides of square bins, as Visium HD has them (2, 8, 16), that are measured too; each a multiple of the smallest.
    cells
        Whether the cells are measured too. Neither changes the spots.

    Returns
    -------
    A :class:`~spatialdata.SpatialData` with, for each section ``S``:

    - ``images["S_image"]``: multiscale, lazy, uint8, channels r, g, b;
    - ``shapes["S_spots"]``: circles in pixels of the image, indexed by ``spot_id``;
    - the coordinate systems ``S`` (pixels) and ``S_microns``.

    and one table, ``tables["table"]`` (spots x genes, float32 CSR of whole counts):

    - ``obs``: ``region`` and ``spot_id`` (the keys to the shapes), ``array_row``, ``array_col``, and the truth:
      ``tissue`` (the largest fraction), ``fraction_tumour``, ``fraction_stroma``, ``fraction_immune``,
      ``fraction_fat``, ``n_nuclei``, ``context_tumour`` and ``context_immune`` (means over the adjacent spots);
    - ``obsm["spatial"]``: x and y in pixels;
    - ``var``: ``program`` and ``depends_on`` (the column of ``obs`` that drives the gene, or ``"library size"``);
    - ``uns["synthetic"]``: the arguments, and ``programs``: JSON of program -> list of genes.

    With `bins_um`, for each side, say 8: squares ``shapes["S_square_008um"]`` and their counts, a table of its own,
    ``tables["square_008um"]``. With `cells`: polygons ``shapes["S_cells"]`` and ``tables["cells"]``, whose ``obs`` has
    ``cell_type``, and the centres and radii of cell and nucleus in µm. Both tables have the same columns of truth at
    the very place (``n_nuclei`` within 20 µm, per area of a spot), and in ``var`` the ``base`` and ``slope`` of each
    gene: ``base + slope * obs[depends_on]`` is the share of the counts that is expected of it, but for a common factor.

    Raises
    ------
    TypeError, ValueError
        When an argument is not a number of the stated kind or range.

    See Also
    --------
    space_ranger_folder, visium_hd_folder, xenium_folder : write a section as the files of its technology.
    nh2st_scverse.io.from_anndata : sections of your own.

    Examples
    --------
    >>> import json
    >>> import nh2st_scverse as nh
    >>> sdata = nh.datasets.synthetic(width_um=1200)
    >>> programs = json.loads(sdata.tables["table"].uns["synthetic"]["programs"])
    >>> programs["context"][:2]
    ['CONTEXT01', 'CONTEXT02']
    """
    n_sections = _whole("n_sections", n_sections, 1)
    n_genes = _whole("n_genes", n_genes, 2 * len(GENE_SHARES))
    width_um = _number("width_um", width_um, 600, 20_000)
    microns_per_pixel = _number("microns_per_pixel", microns_per_pixel, 0.25, 4)
    median_counts = _number("median_counts", median_counts, 10, 1e7)
    nests_um = _number("nests_um", nests_um, 20, 500)
    seed = _whole("seed", seed, 0)
    sizes = _sizes(bins_um, width_um)
    if not isinstance(cells, bool):
        raise TypeError(f"`cells` must be True or False, found {cells!r}.")

    import anndata as ad
    import spatialdata as sd
    from spatialdata.models import TableModel

    genes = _genes(n_genes)
    images, shapes, tables = {}, {}, []
    fine_shapes: dict[str, GeoDataFrame] = {}
    fine_tables: dict[str, list[AnnData]] = {}
    for i in range(n_sections):
        section = f"section_{i}"
        rng = np.random.default_rng([seed, i])
        tissue = draw_tissue(width_um, microns_per_pixel, rng, nests_um)
        images[f"{section}_image"] = _image(tissue, section, microns_per_pixel)
        obs, centres = _spots(tissue, section, width_um, microns_per_pixel)
        shapes[f"{section}_spots"] = _circles(obs, centres, section, microns_per_pixel)
        tables.append(_table(obs, centres / microns_per_pixel, genes, median_counts, rng))
        if sizes or cells:
            found = _fine(tissue, section, sizes, cells, genes, microns_per_pixel, median_counts, [seed, i, 1])
            for key, (region, outlines, fine) in found.items():
                fine_shapes[region] = outlines
                fine_tables.setdefault(key, []).append(fine)

    table: AnnData = ad.concat(tables, merge="same")
    for column, categories in (("region", list(shapes)), ("tissue", list(REGIONS))):
        table.obs[column] = pd.Categorical(table.obs[column], categories=categories)
    table.uns["synthetic"] = {
        "n_sections": n_sections,
        "n_genes": n_genes,
        "width_um": width_um,
        "microns_per_pixel": microns_per_pixel,
        "median_counts": median_counts,
        "nests_um": nests_um,
        "seed": seed,
        "programs": json.dumps({name: list(genes.index[genes["program"] == name]) for name in GENE_SHARES}),
    }
    table = TableModel.parse(table, region=list(shapes), region_key="region", instance_key="spot_id")
    all_tables = {"table": table}
    for key, parts in fine_tables.items():
        fine = ad.concat(parts, merge="same")
        fine.obs["region"] = fine.obs["region"].astype("category")
        fine.uns["synthetic"] = dict(table.uns["synthetic"])
        regions = list(dict.fromkeys(part.obs["region"].iloc[0] for part in parts))
        instance = "cell_id" if key == "cells" else "location_id"
        all_tables[key] = TableModel.parse(fine, region=regions, region_key="region", instance_key=instance)
    return sd.SpatialData(images=images, shapes=shapes | fine_shapes, tables=all_tables)


def _sizes(bins_um: int | Sequence[int], width_um: float) -> list[int]:
    given = list(bins_um) if isinstance(bins_um, Sequence) else [bins_um]
    sizes = sorted({_whole("bins_um", size, 1) for size in given})
    if any(size % sizes[0] for size in sizes) or any(size > width_um / 10 for size in sizes):
        raise ValueError(f"`bins_um` must be multiples of the smallest, and small, such as (2, 8, 16); found {sizes}.")
    return sizes


def _fine(
    tissue: Tissue,
    section: str,
    sizes: Sequence[int],
    with_cells: bool,
    genes: pd.DataFrame,
    microns_per_pixel: float,
    median_counts: float,
    seed: list[int],
) -> dict[str, tuple[str, GeoDataFrame, AnnData]]:
    """Bins and cells of a section: by the key of their table, the key of the shapes, the shapes and the table."""
    import anndata as ad
    import geopandas as gpd
    import shapely
    from spatialdata.models import ShapesModel

    rng, systems = np.random.default_rng(seed), _transformations(section, microns_per_pixel)
    how: dict[str, Any] = {"microns_per_pixel": microns_per_pixel, "median_counts": median_counts, "rng": rng}
    var = genes.astype({"program": "category", "depends_on": "category"})
    made = {}
    drawn = _at_scale.bins(tissue, sizes, genes, **how) if sizes else {}
    for size, (obs, counts) in drawn.items():
        key = f"square_{size:03d}um"
        shapes = _at_scale.squares(obs, size, microns_per_pixel, systems)
        names = [
            f"{section}_{size:03d}um_{r:05d}_{c:05d}" for r, c in zip(obs["array_row"], obs["array_col"], strict=True)
        ]
        obs = obs.assign(region=f"{section}_{key}", location_id=np.arange(len(obs))).set_axis(names)
        table = ad.AnnData(counts, obs=obs, var=var.copy())
        table.obsm["spatial"] = (obs[["array_col", "array_row"]].to_numpy() + 0.5) * size / microns_per_pixel
        made[key] = (f"{section}_{key}", shapes, table)
    if with_cells:
        obs, counts = _at_scale.cells(tissue, genes, **how)
        names = [f"{section}_cell_{i:06d}" for i in range(len(obs))]
        obs = obs.set_axis(names).assign(region=f"{section}_cells", cell_id=names)
        outlines = shapely.polygons(_at_scale.outlines(obs, "radius_um", microns_per_pixel))
        shapes = ShapesModel.parse(gpd.GeoDataFrame(geometry=outlines, index=names), transformations=systems)
        table = ad.AnnData(counts, obs=obs, var=var.copy())
        table.obsm["spatial"] = obs[["x_um", "y_um"]].to_numpy() / microns_per_pixel
        made["cells"] = (f"{section}_cells", shapes, table)
    return made


def _whole(name: str, value: object, low: int) -> int:
    if isinstance(value, bool) or not isinstance(value, Integral):
        raise TypeError(f"`{name}` must be a whole number, found {value!r} ({type(value).__name__}).")
    if value < low:
        raise ValueError(f"`{name}` must be at least {low}, found {value}.")
    return int(value)


def _number(name: str, value: object, low: float, high: float) -> float:
    if isinstance(value, bool) or not isinstance(value, Real):
        raise TypeError(f"`{name}` must be a number, found {value!r} ({type(value).__name__}).")
    value = float(value)
    if not low <= value <= high:
        raise ValueError(f"`{name}` must be between {low:g} and {high:g}, found {value:g}.")
    return value


# ---------------------------------------------------------------------------------------------------- elements


def _transformations(section: str, microns_per_pixel: float) -> dict[str, BaseTransformation]:
    from spatialdata.transformations import Identity, Scale

    scale = Scale([microns_per_pixel, microns_per_pixel], axes=("x", "y"))
    return {section: Identity(), f"{section}{MICRONS_SUFFIX}": scale}


def _image(tissue: Tissue, section: str, microns_per_pixel: float) -> DataTree:
    import dask.array as da
    from spatialdata.models import Image2DModel

    size = tissue.image.shape[1]
    n_levels = max(1, round(np.log2(size / 500)))  # the smallest level is a thumbnail of about 500 pixels
    return Image2DModel.parse(
        da.from_array(tissue.image, chunks=(3, 1024, 1024)),
        dims=("c", "y", "x"),
        c_coords=("r", "g", "b"),
        scale_factors=[2] * n_levels,
        transformations=_transformations(section, microns_per_pixel),
    )


def _circles(obs: pd.DataFrame, centres_um: np.ndarray, section: str, microns_per_pixel: float) -> GeoDataFrame:
    from spatialdata.models import ShapesModel

    return ShapesModel.parse(
        centres_um / microns_per_pixel,
        geometry=0,
        radius=SPOT_DIAMETER_UM / 2 / microns_per_pixel,
        index=obs["spot_id"].to_numpy(),
        transformations=_transformations(section, microns_per_pixel),
    )


def _spots(tissue: Tissue, section: str, width_um: float, microns_per_pixel: float) -> tuple[pd.DataFrame, np.ndarray]:
    """Spots on tissue with the truth about each, and their centres in µm."""
    half, row_height = VISIUM_PITCH_UM / 2, VISIUM_PITCH_UM * np.sqrt(3) / 2
    row, column = np.mgrid[: int(width_um / row_height) + 1, : int(width_um / half) + 1]
    on_grid = (row + column) % 2 == 0  # Visium counts columns in half pitches
    row, column = row[on_grid], column[on_grid]
    centres = np.stack([column * half, row * row_height], axis=1) + SPOT_DIAMETER_UM
    pixels = (centres / microns_per_pixel).astype(int)
    keep = np.flatnonzero((centres < width_um - SPOT_DIAMETER_UM).all(axis=1))
    keep = keep[tissue.labels[pixels[keep, 1], pixels[keep, 0]] != BACKGROUND]
    row, column, centres, pixels = row[keep], column[keep], centres[keep], pixels[keep]

    radius = SPOT_DIAMETER_UM / 2 / microns_per_pixel
    reach = int(radius)
    dy, dx = np.mgrid[-reach : reach + 1, -reach : reach + 1]
    disc = dy**2 + dx**2 <= radius**2
    under = tissue.labels[pixels[:, 1, None] + dy[disc], pixels[:, 0, None] + dx[disc]]  # spots x pixels of the disc
    counts = np.stack([(under == i).sum(axis=1) for i in range(len(REGIONS))], axis=1)
    fractions = counts / counts.sum(axis=1, keepdims=True)
    context = _neighbour_mean(centres, fractions)
    obs = pd.DataFrame(
        {
            "region": f"{section}_spots",
            "spot_id": np.arange(len(row)),
            "array_row": row,
            "array_col": column,
            "tissue": np.array(REGIONS)[fractions.argmax(axis=1)],
            **{f"fraction_{name}": fractions[:, i] for i, name in enumerate(REGIONS)},
            "n_nuclei": cKDTree(tissue.nuclei).query_ball_point(centres, SPOT_DIAMETER_UM / 2, return_length=True),
            **{f"context_{name}": context[:, REGIONS.index(name)] for name in CONTEXT_REGIONS},
        },
        index=[f"{section}_{r:03d}x{c:03d}" for r, c in zip(row, column, strict=True)],
    )
    return obs, centres


def _neighbour_mean(centres: np.ndarray, values: np.ndarray) -> np.ndarray:
    """Mean of `values` over the adjacent spots; the mean of the section for a spot that has none."""
    i, j = cKDTree(centres).query_pairs(1.2 * VISIUM_PITCH_UM, output_type="ndarray").T
    n = len(centres)
    adjacent = sparse.csr_matrix((np.ones(2 * len(i)), (np.r_[i, j], np.r_[j, i])), shape=(n, n))
    degree = np.asarray(adjacent.sum(axis=1))
    return np.where(degree > 0, adjacent @ values / np.maximum(degree, 1), values.mean(axis=0))


# ------------------------------------------------------------------------------------------------------ counts


def _genes(n_genes: int) -> pd.DataFrame:
    """What each gene depends on, its share of the counts and how strongly it responds; the same for every seed."""
    rng = np.random.default_rng(300)
    sizes = {name: max(2, round(n_genes * share)) for name, share in GENE_SHARES.items()}
    sizes["tumour"] += n_genes - sum(sizes.values())
    parts = []
    for program, n in sizes.items():
        typical: float | np.ndarray = 1.0
        if program in REGIONS:
            depends_on, fold = [f"fraction_{program}"] * n, REGION_FOLD
        elif program == "density":
            depends_on, fold, typical = ["n_nuclei"] * n, DENSITY_FOLD, TYPICAL_NUCLEI
        elif program == "context":
            regions = [CONTEXT_REGIONS[i % 2] for i in range(n)]
            depends_on, fold = [f"context_{name}" for name in regions], CONTEXT_FOLD
            typical = np.array([TYPICAL_CONTEXT[name] for name in regions])
        else:
            depends_on, fold = ["library size"] * n, 0.0
        # rate = base + slope * driver. Bases and slopes sum to the same in all four region programs, so a spot's total,
        # and with it the normalised value of genes that do not depend on the region, is the same in every region.
        base = rng.lognormal(0, 0.7, n)
        slope = base * rng.uniform(0.5, 1.5, n)
        unit = REGION_SHARE / (len(REGIONS) + REGION_FOLD) if program in REGIONS else COUNT_SHARES[program] / (1 + fold)
        prefix = "TUMOR" if program == "tumour" else program.upper()
        digits = max(2, len(str(n)))
        parts.append(
            pd.DataFrame(
                {
                    "program": program,
                    "depends_on": depends_on,
                    "base": unit * base / base.sum(),
                    "slope": unit * fold * slope / slope.sum() / typical,
                },
                index=[f"{prefix}{i + 1:0{digits}d}" for i in range(n)],
            )
        )
    return pd.concat(parts)


def _table(
    obs: pd.DataFrame, spatial: np.ndarray, genes: pd.DataFrame, median_counts: float, rng: np.random.Generator
) -> AnnData:
    """Draw the counts of one section."""
    import anndata as ad

    drivers = [obs[name].to_numpy(float) if name in obs else np.zeros(len(obs)) for name in genes["depends_on"]]
    rates = genes["base"].to_numpy() + np.stack(drivers, axis=1) * genes["slope"].to_numpy()
    library = median_counts * rng.lognormal(0, LIBRARY_SPREAD, len(obs))
    shape = 1 / OVERDISPERSION
    counts = rng.poisson(library[:, None] * rates * rng.gamma(shape, 1 / shape, rates.shape))
    var = genes[["program", "depends_on"]].astype("category")
    table = ad.AnnData(sparse.csr_matrix(counts, dtype=np.float32), obs=obs, var=var)
    table.obsm["spatial"] = spatial
    return table
