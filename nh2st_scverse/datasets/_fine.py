"""A drawn section at the scale of bins and cells: what Visium HD and Xenium measure, and the truth behind it.

The rate of a gene is ``base + slope * driver`` as in a spot, with the driver at that very place. It is linear in the
driver, so that bins pooled under a spot have the rates of the spot.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
from scipy import sparse
from scipy.signal import fftconvolve
from scipy.spatial import cKDTree

from nh2st_scverse.data.pooling import pool
from nh2st_scverse.datasets._layout import BACKGROUND, REGIONS, smooth_noise
from nh2st_scverse.datasets._tissue import NUCLEI, Tissue

if TYPE_CHECKING:
    from geopandas import GeoDataFrame
    from spatialdata.transformations import BaseTransformation

SPOT_AREA = np.pi * 27.5**2  # µm²
NEAR_UM = 20.0  # nuclei are counted within this distance
RING_UM = (72.0, 128.0)  # from a place: where the adjacent spots of Visium are
COARSE_UM = 8.0  # of the map of what surrounds a place
PATCHY_UM, SPREAD = 60.0, 0.35  # how many molecules are caught varies slowly: width, spread of the logarithm
CELL_RIM_UM = 2.5  # of cytoplasm round a nucleus, where there is room
CORNERS = 13
AT_ONCE = 20_000  # places whose counts are drawn at a time


def places(tissue: Tissue, xy_um: np.ndarray, microns_per_pixel: float, side_um: float) -> pd.DataFrame:
    """What drives the genes at places (n, 2): shares of regions in squares of some side, nuclei, surroundings."""
    width_um = tissue.labels.shape[0] * microns_per_pixel
    n = int(np.clip(side_um / microns_per_pixel, 1, 4))
    step = (np.arange(n) + 0.5) / n * side_um - side_um / 2
    y, x = np.meshgrid(step, step, indexing="ij")
    points = xy_um[:, None] + np.c_[x.ravel(), y.ravel()]
    under = _label(tissue.labels, points, microns_per_pixel)  # (n, n * n)
    shares = np.stack([(under == i).mean(axis=1) for i in range(len(REGIONS))], axis=1)
    of_tissue = shares.sum(axis=1, keepdims=True)
    shares = np.divide(shares, of_tissue, out=np.zeros_like(shares), where=of_tissue > 0)
    near = cKDTree(tissue.nuclei).query_ball_point(xy_um, NEAR_UM, return_length=True)
    around = _surroundings(tissue.labels, microns_per_pixel, width_um)
    row, column = np.clip((xy_um / COARSE_UM).astype(int), 0, len(around["tumour"]) - 1).T[::-1]
    return pd.DataFrame(
        {
            "tissue": pd.Categorical.from_codes(shares.argmax(axis=1), list(REGIONS)),
            **{f"fraction_{name}": shares[:, i] for i, name in enumerate(REGIONS)},
            "n_nuclei": near * SPOT_AREA / (np.pi * NEAR_UM**2),
            **{f"context_{name}": values[row, column] for name, values in around.items()},
        }
    )


def _label(labels: np.ndarray, xy_um: np.ndarray, microns_per_pixel: float) -> np.ndarray:
    at = np.clip((xy_um / microns_per_pixel).astype(int), 0, labels.shape[0] - 1)
    return labels[at[..., 1], at[..., 0]]


def _surroundings(labels: np.ndarray, microns_per_pixel: float, width_um: float) -> dict[str, np.ndarray]:
    """Share of tumour and of immune tissue in a ring round every place, on a coarse map."""
    n = int(np.ceil(width_um / COARSE_UM))
    centres = (np.arange(n) + 0.5) * COARSE_UM
    coarse = _label(labels, np.stack(np.meshgrid(centres, centres), axis=-1), microns_per_pixel)
    reach = int(RING_UM[1] / COARSE_UM) + 1
    away = np.hypot(*np.mgrid[-reach : reach + 1, -reach : reach + 1]) * COARSE_UM
    ring = ((away >= RING_UM[0]) & (away <= RING_UM[1])).astype(np.float32)
    tissue = np.maximum(fftconvolve((coarse != BACKGROUND).astype(np.float32), ring, mode="same"), 0.5)
    return {
        name: np.clip(fftconvolve((coarse == REGIONS.index(name)).astype(np.float32), ring, mode="same") / tissue, 0, 1)
        for name in ("tumour", "immune")
    }


def rates(genes: pd.DataFrame, obs: pd.DataFrame) -> np.ndarray:
    """Share of the molecules of each place that is expected of each gene, but for a common factor: (n, G) float32."""
    drivers = {name: obs[name].to_numpy(np.float32) for name in genes["depends_on"].unique() if name in obs}
    none = np.zeros(len(obs), np.float32)
    found = np.stack([drivers.get(name, none) for name in genes["depends_on"]], axis=1)
    return np.asarray(genes["base"].to_numpy(np.float32) + found * genes["slope"].to_numpy(np.float32))


def bins(
    tissue: Tissue,
    sizes_um: Sequence[int],
    genes: pd.DataFrame,
    *,
    microns_per_pixel: float,
    median_counts: float,
    rng: np.random.Generator,
) -> dict[int, tuple[pd.DataFrame, sparse.csr_matrix]]:
    """Squares on tissue and their counts, by side in µm; those of wider squares are sums of the finest."""
    finest = min(sizes_um)
    width_um = tissue.labels.shape[0] * microns_per_pixel
    widest = max(sizes_um)
    n = int(width_um // widest) * widest // finest  # whole squares of every size
    row, column = (part.ravel() for part in np.mgrid[:n, :n])
    xy_um = (np.c_[column, row] + 0.5) * finest
    caught = np.exp(SPREAD * smooth_noise((n, n), (PATCHY_UM / finest,) * 2, rng)).ravel()
    keep = _label(tissue.labels, xy_um, microns_per_pixel) != BACKGROUND
    row, column, xy_um, caught = row[keep], column[keep], xy_um[keep], caught[keep]
    obs = places(tissue, xy_um, microns_per_pixel, finest)
    library = median_counts * finest**2 / SPOT_AREA * caught
    counts = _drawn(library, genes, obs, rng)
    made = {}
    for size in sizes_um:
        factor = size // finest
        code = (row // factor) * (n // factor) + column // factor
        of_code, position = np.unique(code, return_inverse=True)
        rows, columns = of_code // (n // factor), of_code % (n // factor)
        about = obs if factor == 1 else places(tissue, (np.c_[columns, rows] + 0.5) * size, microns_per_pixel, size)
        made[size] = about.assign(array_row=rows, array_col=columns), pool(counts, position, len(of_code))
    return made


def squares(
    obs: pd.DataFrame, size_um: int, microns_per_pixel: float, systems: dict[str, BaseTransformation]
) -> GeoDataFrame:
    """The outlines of bins in pixels of the image."""
    import geopandas as gpd
    import shapely
    from spatialdata.models import ShapesModel

    side = size_um / microns_per_pixel
    left, top = obs["array_col"].to_numpy() * side, obs["array_row"].to_numpy() * side
    outlines = shapely.box(left, top, left + side, top + side)
    return ShapesModel.parse(gpd.GeoDataFrame(geometry=outlines, index=np.arange(len(obs))), transformations=systems)


def cells(
    tissue: Tissue,
    genes: pd.DataFrame,
    *,
    microns_per_pixel: float,
    median_counts: float,
    rng: np.random.Generator,
) -> tuple[pd.DataFrame, sparse.csr_matrix]:
    """Every nucleus as a cell of its kind, with the radii of nucleus and cell in µm and its counts."""
    xy_um, names = tissue.nuclei, np.array(list(NUCLEI))
    kind = names[tissue.kinds]
    length = np.array([NUCLEI[name][0] * np.sqrt(np.mean(NUCLEI[name][2])) for name in names])  # of a circle as large
    nucleus = length[tissue.kinds] / 2
    room = cKDTree(xy_um).query(xy_um, 2)[0][:, 1] / 2
    radius = np.clip(nucleus + CELL_RIM_UM, None, np.maximum(room, 1.5))
    obs = places(tissue, xy_um, microns_per_pixel, microns_per_pixel)
    for name in REGIONS:
        obs[f"fraction_{name}"] = (kind == name).astype(float)
    obs["tissue"] = pd.Categorical(kind, categories=list(REGIONS))
    obs = obs.rename(columns={"tissue": "cell_type"})
    obs["x_um"], obs["y_um"] = xy_um.T
    obs["radius_um"], obs["nucleus_um"] = radius, np.minimum(nucleus, 0.9 * radius)
    library = median_counts * np.pi * radius**2 / SPOT_AREA * rng.lognormal(0, SPREAD, len(obs))
    return obs, _drawn(library, genes, obs, rng)


def _drawn(library: np.ndarray, genes: pd.DataFrame, obs: pd.DataFrame, rng: np.random.Generator) -> sparse.csr_matrix:
    """Counts (n, G) of places with these library sizes, some at a time: they are dense while they are drawn."""
    counts = []
    for start in range(0, len(obs), AT_ONCE):
        some = slice(start, start + AT_ONCE)
        expected = library[some, None] * rates(genes, obs.iloc[some])
        counts.append(sparse.csr_matrix(rng.poisson(expected), dtype=np.float32))
    return sparse.vstack(counts, format="csr")


def outlines(obs: pd.DataFrame, radius: str, scale: float) -> np.ndarray:
    """Round polygons (n, CORNERS, 2), closed, in units of `scale` µm."""
    angle = np.linspace(0, 2 * np.pi, CORNERS)
    circle = np.c_[np.cos(angle), np.sin(angle)]
    circle[-1] = circle[0]
    centres = obs[["x_um", "y_um"]].to_numpy()
    return np.asarray((centres[:, None] + obs[radius].to_numpy()[:, None, None] * circle) / scale)
