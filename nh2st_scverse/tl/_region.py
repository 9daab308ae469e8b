"""``tl.region``: which predicted genes are high or low inside a region."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
from anndata import AnnData
from numpy.typing import ArrayLike
from scipy.spatial.distance import cdist
from scipy.stats import false_discovery_control, rankdata, t
from shapely import contains_xy
from shapely.ops import unary_union
from spatialdata import SpatialData, transform
from spatialdata.transformations import get_transformation

from nh2st_scverse._constants import KEY
from nh2st_scverse._docs import documented
from nh2st_scverse._logging import logger
from nh2st_scverse.data.technologies import regions_of
from nh2st_scverse.prediction import find_prediction, read
from nh2st_scverse.tl._biology import places

FEWEST_SPOTS = 5  # inside, and outside
MOST_SPOTS = 1500  # of a section whose pairs are counted: evenly chosen among more
N_CLASSES = 20  # of distance


@documented()
def region(
    sdata: SpatialData,
    region: str | ArrayLike,
    *,
    value: Any = None,
    key: str = KEY,
    table_key: str | None = None,
) -> pd.DataFrame:
    """Test which predicted genes are high or low inside a region, knowing that neighbouring spots are alike.

    A region that is one piece of tissue differs from the rest in every gene that varies smoothly; counting its spots as
    independent makes all of them significant. The p value here is of the correlation of a gene with the region, with
    the number of independent spots that the likeness of both over all distances leaves (Clifford, Richardson and Hémon
    1989, Biometrics 45:123).

    Parameters
    ----------
    sdata
        Object with a prediction.
    region
        Column of ``obs`` (clusters, a drawn region), then `value` says which of its values is the region unless it is
        boolean; or the name of polygons in ``sdata.shapes``: spots whose centres lie inside; or n booleans.
    value
        Value of the column.
    $prediction

    Returns
    -------
    One row for each predicted gene: ``auc`` (chance that a spot inside is higher than one outside; .5 for no
    difference), ``effect`` (mean inside less mean outside, in the unit of the prediction), ``n_effective`` (independent
    spots), ``p``, ``q`` (Benjamini and Hochberg), ``pearson`` (held-out correlation of the gene) and ``trusted``, the
    distance of the AUC from .5 times that correlation (0 where it is negative or unknown), by which rows are sorted.
    Sections are compared within themselves. Nothing is written.

    Raises
    ------
    KeyError
        No such prediction, column, value or shapes.
    ValueError
        Too few spots inside or outside in every section.

    See Also
    --------
    modules : sets of genes as one.
    nh2st_scverse.pl.region : draws it.

    Examples
    --------
    >>> import nh2st_scverse as nh
    >>> sdata = nh.datasets.synthetic(width_um=1500)
    >>> nh.tl.predict_expression(sdata, n_genes=20, max_epochs=2, progress=False)
    >>> nh.tl.region(sdata, "tissue", value="tumour").shape
    (20, 7)
    """
    table_key = find_prediction(sdata, key, table_key)
    table = sdata.tables[table_key]
    prediction = read(table, key)
    inside = _inside(sdata, table, region, value)
    predicted = np.isfinite(prediction.values).all(axis=1)
    groups = table.obs[table.uns["spatialdata_attrs"]["region_key"]].astype(str).to_numpy()
    n_genes = len(prediction.genes)
    covariance, of_gene, variance = np.zeros(n_genes), np.zeros(n_genes), np.zeros(n_genes)
    of_region, pieces, weights = 0.0, [], []
    for name in pd.unique(groups):
        rows = np.flatnonzero(predicted & (groups == name))
        xy = places(sdata, table, rows, name)
        x, y = inside[rows].astype(float), prediction.values[rows].astype(float)
        n_inside = int(x.sum())
        if min(n_inside, len(x) - n_inside) < FEWEST_SPOTS:
            continue
        pieces.append((_auc(x > 0, y), y[x > 0].mean(axis=0) - y[x == 0].mean(axis=0)))
        weights.append(len(x))
        x, y = x - x.mean(), y - y.mean(axis=0)
        covariance += x @ y
        of_region, of_gene = of_region + x @ x, of_gene + (y**2).sum(axis=0)
        variance += _variance(x, y, xy)
    if not pieces:
        found = {str(name): int(inside[predicted & (groups == name)].sum()) for name in pd.unique(groups)}
        raise ValueError(
            f"Expected at least {FEWEST_SPOTS} predicted spots inside the region and as many outside in a section, "
            f"found {found} inside."
        )
    auc, effect = (np.average(np.stack(parts), axis=0, weights=weights) for parts in zip(*pieces, strict=True))
    r = covariance / np.sqrt(np.maximum(of_region * of_gene, 1e-300))
    n_effective = 1 + of_region * of_gene / np.maximum(variance, 1e-300)
    n_effective = np.clip(n_effective, 3.0, sum(weights))
    statistic = r * np.sqrt((n_effective - 2) / np.maximum(1 - r**2, 1e-12))
    p = np.where(of_gene > 0, 2 * t.sf(np.abs(statistic), n_effective - 2), 1.0)
    pearson = prediction.score
    result = pd.DataFrame(
        {
            "auc": auc,
            "effect": effect,
            "n_effective": n_effective,
            "p": p,
            "q": false_discovery_control(p),
            "pearson": pearson,
            "trusted": np.abs(auc - 0.5) * np.maximum(np.nan_to_num(pearson), 0.0),
        },
        index=pd.Index(prediction.genes, name="gene"),
    )
    return result.sort_values("trusted", ascending=False, kind="stable")


def _inside(sdata: SpatialData, table: AnnData, region: str | ArrayLike, value: Any) -> np.ndarray:
    """Which rows (n,) of a table are inside."""
    if not isinstance(region, str):
        given = np.asarray(region)
        if given.dtype != bool or given.shape != (table.n_obs,):
            raise ValueError(
                f"Expected region= to be a column, the name of polygons, or {table.n_obs} booleans, found an array of "
                f"{given.dtype} {given.shape}."
            )
        return given
    if region in table.obs:
        column = table.obs[region]
        flags = pd.api.types.is_bool_dtype(column)
        if value is None and not flags:
            raise KeyError(
                f"Expected value= to name one of {sorted(map(str, pd.unique(column.dropna())))} in obs[{region!r}]."
            )
        found = (column.eq(True) if value is None else column.eq(value)).fillna(False)
        missing = int(column.isna().sum())
        if missing and column.nunique() > 1:
            logger.warning("%d spots have no value in obs[%r]: they count as outside of the region.", missing, region)
        if not found.any():
            raise KeyError(
                f"Expected {value!r} in obs[{region!r}], found {sorted(map(str, pd.unique(column.dropna())))}."
            )
        return np.asarray(found, dtype=bool)
    if region not in sdata.shapes:
        raise KeyError(
            f"Expected region= to be a column of obs ({list(table.obs)}) or shapes ({list(sdata.shapes)}), "
            f"found {region!r}."
        )
    return _in_polygons(sdata, table, region)


def _in_polygons(sdata: SpatialData, table: AnnData, name: str) -> np.ndarray:
    """Which spots have their centre in polygons: both in a coordinate system that they share."""
    inside = np.zeros(table.n_obs, dtype=bool)
    systems = set(get_transformation(sdata.shapes[name], get_all=True))
    of_row = table.obs[table.uns["spatialdata_attrs"]["region_key"]].astype(str).to_numpy()
    for region in regions_of(sdata, table)[0]:
        shared = sorted(systems & set(get_transformation(sdata.shapes[region.shapes_key], get_all=True)))
        if not shared:
            continue
        rows = np.flatnonzero(of_row == region.name)
        polygons = unary_union(list(transform(sdata.shapes[name], to_coordinate_system=shared[0]).geometry))
        spots = transform(sdata.shapes[region.shapes_key], to_coordinate_system=shared[0])
        centres = spots.loc[table.obs[region.id_column].iloc[rows]].geometry.centroid
        inside[rows] = contains_xy(polygons, centres.x.to_numpy(), centres.y.to_numpy())
    return inside


def _auc(inside: np.ndarray, values: np.ndarray) -> np.ndarray:
    """Chance (G,) that a value inside is above one outside; ties count half."""
    ranks = rankdata(values, axis=0)
    n = inside.sum()
    return (ranks[inside].sum(axis=0) - n * (n + 1) / 2) / (n * (len(inside) - n))


def _variance(x: np.ndarray, y: np.ndarray, xy: np.ndarray) -> np.ndarray:
    """Variance (G,) of the sum of products of centred x (n,) and y (n, G) where neither knows of the other.

    Clifford, Richardson and Hémon (1989): the sum over classes of distance of the number of pairs times the mean
    products of x and of y over the pairs.
    """
    n = len(x)
    if n > MOST_SPOTS:  # tell the same
        some = np.linspace(0, n - 1, MOST_SPOTS).round().astype(int)
        x, y, xy = x[some], y[some], xy[some]
    distance = cdist(xy, xy)
    edges = np.linspace(0, distance.max(), N_CLASSES + 1)
    of_pair = np.clip(np.digitize(distance, edges[1:-1]), 0, N_CLASSES - 1)
    np.fill_diagonal(of_pair, -1)
    more = n / len(x)
    total = more * (x @ x) * (y**2).sum(axis=0) / len(x)  # spots with themselves
    for k in range(N_CLASSES):
        pairs = (of_pair == k).astype(float)
        number = pairs.sum()
        if number:
            total += more**2 * (x @ pairs @ x) * np.einsum("ng,ng->g", y, pairs @ y) / number
    return np.maximum(total, 0.0)
