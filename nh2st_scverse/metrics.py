"""How good is a prediction, gene by gene: numbers in, numbers out.

Every score takes two arrays of shape (n_spots, n_genes) in the same unit and returns one float64 per gene.
A spot whose prediction of a gene is NaN is left out of that gene's score. :func:`ssim` also takes where the spots are.

References
----------
Ceilings follow the split-half reliability of Spearman (1910) and Brown (1910), with halves made by binomial thinning.
"""

from __future__ import annotations

from typing import Any, TypeAlias

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import sparse, stats
from scipy.spatial import cKDTree

from nh2st_scverse._constants import TARGET_SUM

__all__ = [
    "bootstrap",
    "mae",
    "mse",
    "noise_ceiling",
    "partial_pearson",
    "pearson",
    "spearman",
    "ssim",
    "variance_ratio",
]


def __dir__() -> list[str]:
    return sorted(__all__)


Floats: TypeAlias = NDArray[np.float64]

EXACT = 1e-12  # of a squared correlation: nearer to 1 is a straight line but for rounding
WINDOW = 7  # spots: side of the window that ssim compares, the usual one


def pearson(measured: ArrayLike, predicted: ArrayLike, *, constant: float = np.nan) -> Floats:
    """Pearson correlation of each gene over the spots.

    Parameters
    ----------
    measured
        Measured expression, shape (n_spots, n_genes).
    predicted
        Predicted expression, same shape and unit; NaN where there is no prediction.
    constant
        What a prediction counts that is constant where the measured values vary. The tools take 0.

    Returns
    -------
    Correlations, shape (n_genes,). NaN for a gene whose measured values are constant over the spots that count.

    Raises
    ------
    ValueError
        If the shapes differ or are not two-dimensional, or if ``measured`` holds NaN.

    See Also
    --------
    spearman, noise_ceiling

    Examples
    --------
    >>> import nh2st_scverse as nh
    >>> nh.metrics.pearson([[0.0, 1.0], [1.0, 1.0], [2.0, 1.0]], [[0.1, 0.3], [0.2, 0.2], [0.3, 0.1]])
    array([ 1., nan])
    """
    return _correlation(*_pair(measured, predicted), constant)


def partial_pearson(measured: ArrayLike, predicted: ArrayLike, given: ArrayLike, *, constant: float = np.nan) -> Floats:
    """Pearson correlation of each gene that is left when what goes with one value of each spot is taken out.

    With the logarithm of the total counts as `given` it tells what a prediction knows beyond how rich in RNA a spot is.

    Parameters
    ----------
    measured
        Measured expression, shape (n_spots, n_genes).
    predicted
        Predicted expression, same shape and unit; NaN where there is no prediction.
    given
        One finite value of each spot, shape (n_spots,).
    constant
        What a prediction counts that is constant where the measured values vary. The tools take 0.

    Returns
    -------
    Correlations, shape (n_genes,), of what a straight line over `given` leaves of both. NaN for a gene whose measured
    values are constant over the spots that count.

    Raises
    ------
    ValueError
        If the shapes differ or are not two-dimensional, if ``measured`` holds NaN, or if ``given`` is not one finite
        value of each spot.

    See Also
    --------
    pearson

    Examples
    --------
    >>> import nh2st_scverse as nh
    >>> totals = [[0.0], [1.0], [2.0], [3.0]]
    >>> measured, predicted = [[0.0], [1.0], [2.0], [3.5]], [[0.1], [1.0], [2.2], [2.9]]
    >>> nh.metrics.partial_pearson(measured, predicted, [0.0, 1.0, 2.0, 3.0]).round(2)
    array([-0.8])
    """
    x, y = _pair(measured, predicted)
    line = np.asarray(given, dtype=np.float64)
    if line.shape != (len(x),) or not np.isfinite(line).all():
        raise ValueError(
            f"Expected given= with one finite value of each of {len(x)} spots, found shape {line.shape}"
            f"{'' if np.isfinite(line).all() else ', not all finite'}."
        )
    z = np.where(np.isnan(x), np.nan, line[:, None])  # of the spots that count for each gene
    xy, xz, yz = _correlation(x, y, 0.0), np.nan_to_num(_correlation(x, z, 0.0)), np.nan_to_num(_correlation(y, z, 0.0))
    of_x, of_y = (np.sqrt(np.where(r**2 > 1 - EXACT, 0, 1 - r**2)) for r in (xz, yz))  # what is left of either
    left = np.where(np.isnan(xy), 0, of_x)
    told = _centred(y).any(axis=0, where=~np.isnan(y)) & (of_y > 0)
    return np.where(left > 0, np.where(told, np.clip(_divide(xy - xz * yz, left * of_y), -1, 1), constant), np.nan)


def spearman(measured: ArrayLike, predicted: ArrayLike, *, constant: float = np.nan) -> Floats:
    """Spearman rank correlation of each gene over the spots; ties get their mean rank.

    Parameters
    ----------
    measured
        Measured expression, shape (n_spots, n_genes).
    predicted
        Predicted expression, same shape; NaN where there is no prediction.
    constant
        As in :func:`pearson`.

    Returns
    -------
    Rank correlations, shape (n_genes,). NaN for a gene whose measured values are constant over the spots that count.

    Raises
    ------
    ValueError
        If the shapes differ or are not two-dimensional, or if ``measured`` holds NaN.

    See Also
    --------
    pearson

    Examples
    --------
    >>> import nh2st_scverse as nh
    >>> nh.metrics.spearman([[0.0], [1.0], [2.0]], [[1.0], [10.0], [1000.0]])
    array([1.])
    """
    x, y = _pair(measured, predicted)
    if x.size == 0:
        return np.full(x.shape[1], np.nan)
    return _correlation(
        stats.rankdata(x, axis=0, nan_policy="omit"),
        stats.rankdata(y, axis=0, nan_policy="omit"),
        constant,
    )


def mse(measured: ArrayLike, predicted: ArrayLike) -> Floats:
    """Mean squared error of each gene over the spots.

    Parameters
    ----------
    measured
        Measured expression, shape (n_spots, n_genes).
    predicted
        Predicted expression, same shape and unit; NaN where there is no prediction.

    Returns
    -------
    Errors in the squared unit of the expression, shape (n_genes,). NaN for a gene without any prediction.

    Raises
    ------
    ValueError
        If the shapes differ or are not two-dimensional, or if ``measured`` holds NaN.

    See Also
    --------
    mae, variance_ratio

    Examples
    --------
    >>> import nh2st_scverse as nh
    >>> nh.metrics.mse([[1.0], [2.0]], [[1.0], [4.0]])
    array([2.])
    """
    x, y = _pair(measured, predicted)
    return _mean((x - y) ** 2)


def mae(measured: ArrayLike, predicted: ArrayLike) -> Floats:
    """Mean absolute error of each gene over the spots.

    Parameters
    ----------
    measured
        Measured expression, shape (n_spots, n_genes).
    predicted
        Predicted expression, same shape and unit; NaN where there is no prediction.

    Returns
    -------
    Errors in the unit of the expression, shape (n_genes,). NaN for a gene without any prediction.

    Raises
    ------
    ValueError
        If the shapes differ or are not two-dimensional, or if ``measured`` holds NaN.

    See Also
    --------
    mse

    Examples
    --------
    >>> import nh2st_scverse as nh
    >>> nh.metrics.mae([[1.0], [2.0]], [[1.0], [4.0]])
    array([1.])
    """
    x, y = _pair(measured, predicted)
    return _mean(np.abs(x - y))


def variance_ratio(measured: ArrayLike, predicted: ArrayLike) -> Floats:
    """Variance of the prediction as a part of the measured variance, gene by gene.

    A model that regresses to the mean has ratios near 0 although its correlations may be high: its maps are paler
    than the tissue. Because measured variance includes counting noise, 1 is not the goal: a perfect prediction has
    the square of :func:`noise_ceiling`.

    Parameters
    ----------
    measured
        Measured expression, shape (n_spots, n_genes).
    predicted
        Predicted expression, same shape and unit; NaN where there is no prediction.

    Returns
    -------
    Ratios, shape (n_genes,), 0 or more. NaN for a gene whose measured values are constant.

    Raises
    ------
    ValueError
        If the shapes differ or are not two-dimensional, or if ``measured`` holds NaN.

    See Also
    --------
    ssim : structure of the map beside its contrast.

    Examples
    --------
    >>> import nh2st_scverse as nh
    >>> nh.metrics.variance_ratio([[0.0], [4.0]], [[1.0], [3.0]])
    array([0.25])
    """
    x, y = _pair(measured, predicted)
    return _divide(_mean(_centred(y) ** 2), _mean(_centred(x) ** 2))


def ssim(measured: ArrayLike, predicted: ArrayLike, xy: ArrayLike, *, spacing: float | None = None) -> Floats:
    """Structural similarity of the measured and the predicted map, gene by gene.

    The spots are laid on a square grid of their spacing (a hexagonal or turned array by the nearest spot), and the maps
    compared in windows of 7 x 7 spots: mean, contrast and structure have to agree. Only grid points on a spot count.

    Parameters
    ----------
    measured
        Measured expression, shape (n_spots, n_genes), of one section.
    predicted
        Predicted expression, same shape and unit; NaN where there is no prediction.
    xy
        Centres of the spots, shape (n_spots, 2), in any unit.
    spacing
        Distance between adjacent spots, in the unit of ``xy``. ``None``: the median distance to the nearest spot.

    Returns
    -------
    Similarities, shape (n_genes,), at most 1. NaN for a gene whose measured values are constant, and for fewer than
    3 x 3 spots.

    Raises
    ------
    ValueError
        If the shapes differ or are not two-dimensional, if ``measured`` holds NaN, or if ``spacing`` is not positive.

    See Also
    --------
    variance_ratio : contrast alone.

    Examples
    --------
    >>> import numpy as np, nh2st_scverse as nh
    >>> xy = np.stack(np.meshgrid(np.arange(10.0), np.arange(10.0)), axis=-1).reshape(-1, 2)
    >>> measured = xy.sum(axis=1, keepdims=True)
    >>> nh.metrics.ssim(measured, measured, xy).round(2)
    array([1.])
    >>> bool(nh.metrics.ssim(measured, 0.3 * measured, xy) < 0.6)
    True
    """
    from skimage.metrics import structural_similarity

    x, y = _pair(measured, predicted)
    where = np.asarray(xy, dtype=np.float64)
    if where.shape != (len(x), 2) or not np.isfinite(where).all():
        raise ValueError(f"Expected finite xy of shape ({len(x)}, 2), found shape {where.shape}.")
    if spacing is None:
        spacing = float(np.median(cKDTree(where).query(where, 2)[0][:, 1])) if len(x) > 1 else 1.0
    if not spacing > 0:
        raise ValueError(f"Expected a spacing above 0, found {spacing!r}: are spots on top of each other?")
    result = np.full(x.shape[1], np.nan)
    # genes that are predicted for the same spots share a grid, and mostly all do
    patterns, pattern = np.unique(np.isnan(y), axis=1, return_inverse=True)
    for i, missing in enumerate(patterns.T):
        genes, spots = np.flatnonzero(pattern == i), np.flatnonzero(~missing)
        if len(spots) < 9:
            continue
        low, high = where[spots].min(axis=0), where[spots].max(axis=0)
        axes = [np.arange(a, b + spacing / 2, spacing) for a, b in zip(low, high, strict=True)]
        grid = np.stack(np.meshgrid(*axes), axis=-1)  # (h, w, 2)
        window = min(WINDOW, min(grid.shape[:2]) - 1 + min(grid.shape[:2]) % 2)
        if window < 3:
            continue
        distance, nearest = cKDTree(where[spots]).query(grid)
        a, b = (values[np.ix_(spots, genes)] for values in (x, y))
        extent = np.ptp(a, axis=0)
        scale = np.where(extent > 0, extent, np.nan)
        _, similarity = structural_similarity(
            (a / scale)[nearest], (b / scale)[nearest], win_size=window, data_range=1.0, channel_axis=-1, full=True
        )  # (h, w, genes)
        # a corner of a square cell is 0.71 spacings from its spot: farther points are off the tissue
        result[genes] = similarity[distance <= 0.75 * spacing].mean(axis=0)
    return result


def bootstrap(
    values: ArrayLike, *, n_resamples: int = 2000, seed: int = 0, rows: bool = True, columns: bool = True
) -> Floats:
    """Means of a table under resampling of its rows and columns, with replacement.

    For scores of sections (rows) and genes (columns): how far would their mean go with other sections and other genes
    of the same kind? The quantiles of what is returned are the interval. The same shape and seed give the same
    resamples, so that differences and quotients of two calls are paired.

    Parameters
    ----------
    values
        Shape (n_rows, n_columns); NaN counts in no mean.
    n_resamples
        How many means to take.
    seed
        Seed of the resamples.
    rows, columns
        What to resample.

    Returns
    -------
    Shape (n_resamples,). NaN where a resample has no value.

    Raises
    ------
    ValueError
        If ``values`` is not two-dimensional or ``n_resamples`` is less than 1.

    See Also
    --------
    nh2st_scverse.tl.summarise : intervals of a cross-validation.

    Examples
    --------
    >>> import numpy as np, nh2st_scverse as nh
    >>> scores = np.random.default_rng(0).normal(0.3, 0.1, size=(4, 250))
    >>> np.quantile(nh.metrics.bootstrap(scores), [0.025, 0.975]).round(1)
    array([0.3, 0.3])
    """
    table = np.asarray(values, dtype=np.float64)
    if table.ndim != 2:
        raise ValueError(f"Expected values of shape (n_rows, n_columns), found {table.shape}.")
    if not isinstance(n_resamples, int | np.integer) or n_resamples < 1:
        raise ValueError(f"Expected n_resamples of 1 or more, found {n_resamples}.")
    rng = np.random.default_rng(seed)

    def weights(n: int, resample: bool) -> Floats:
        if not (resample and n):
            return np.ones((n_resamples, n))
        return rng.multinomial(n, np.full(n, 1 / n), size=n_resamples).astype(np.float64)

    of_rows, of_columns = weights(table.shape[0], rows), weights(table.shape[1], columns)
    known = np.isfinite(table)
    total = ((of_rows @ np.where(known, table, 0)) * of_columns).sum(axis=1)
    return _divide(total, ((of_rows @ known) * of_columns).sum(axis=1))


def noise_ceiling(
    counts: Any,
    *,
    library_size: ArrayLike | None = None,
    n_splits: int = 10,
    seed: int = 0,
    target_sum: float = TARGET_SUM,
    together: bool = False,
) -> Floats:
    r"""Highest Pearson correlation that any predictor could reach, given how few molecules were counted.

    Counting is random: even the true expression of a spot correlates with its counts by less than 1, and for a gene
    with few counts by much less. A predicted gene is best judged against this ceiling.

    Parameters
    ----------
    counts
        Raw counts, shape (n_spots, n_genes), dense or sparse, whole numbers of any dtype. Only the genes of interest
        are needed. Never modified; sparse counts stay sparse.
    library_size
        Counts of each spot over *all* genes, shape (n_spots,). Needed when ``counts`` holds only some of the genes,
        because expression is normalised by it. ``None``: ``counts`` holds all genes.
    n_splits
        Random halvings to average over.
    seed
        Seed of the halvings; the same seed gives the same numbers.
    target_sum
        Library size to which counts are normalised before ``log1p``.
    together
        Of the mean of all genes, as of one gene: (1,).

    Returns
    -------
    Ceilings between 0 and 1, shape (n_genes,). NaN for a gene whose values do not vary or whose counts are too few to
    be halved.

    Raises
    ------
    ValueError
        If counts are not finite, not whole, or negative; if a library size is smaller than the counts of its spot; if
        shapes do not fit; or if ``n_splits`` is less than 1.

    Notes
    -----
    Each count :math:`x_{sg}` is thinned into two halves, :math:`a_{sg} \sim \mathrm{Binomial}(x_{sg}, 1/2)` and
    :math:`b_{sg} = x_{sg} - a_{sg}`, and the library :math:`L_s` along with them. Given the true expression the halves
    of Poisson counts are independent, so what they share is signal. Both halves are normalised like the target,
    :math:`\log(1 + t\, a_{sg} / L^a_s)` with :math:`t` the ``target_sum``, and correlated over the spots. With
    :math:`r_g` that correlation, averaged over the halvings, the whole counts have the reliability (Spearman-Brown)
    and the ceiling

    .. math:: \rho_g = \frac{2 r_g}{1 + r_g}, \qquad c_g = \sqrt{\max(\rho_g, 0)}.

    Only counting noise is removed. Variation that is no counting noise but that no image shows, such as bursts of
    transcription, counts as signal, so what can be reached in practice lies below the ceiling. In simulations with
    known rates the ceiling is on average within 0.03 of the truth when sequencing depth is similar over the spots. When
    depth varies several-fold it is too high, by 0.05 to 0.1 for genes with less than a few counts per spot, because
    ``log1p`` turns differences of depth into differences that both halves share.

    See Also
    --------
    pearson : what it is the ceiling of.
    nh2st_scverse.tl.evaluate : scores and ceilings of a prediction.

    Examples
    --------
    >>> import numpy as np, nh2st_scverse as nh
    >>> rng = np.random.default_rng(0)
    >>> rate = np.outer(rng.gamma(2.0, 0.5, size=1000), [0.5, 5.0, 50.0])
    >>> nh.metrics.noise_ceiling(rng.poisson(rate), library_size=np.full(1000, 5000)).round(1)
    array([0.4, 0.8, 1. ])
    """
    panel = _as_counts(counts)
    n_spots, n_genes = panel.shape
    if n_splits < 1:
        raise ValueError(f"Expected n_splits of 1 or more, found {n_splits}.")
    if not (np.isfinite(target_sum) and target_sum > 0):
        raise ValueError(f"Expected a positive target_sum, found {target_sum}.")
    spot = panel.indices
    gene = np.repeat(np.arange(n_genes), np.diff(panel.indptr))
    in_panel = np.bincount(spot, weights=panel.data, minlength=n_spots).astype(np.int64)
    library = in_panel if library_size is None else _as_library(library_size, in_panel)

    def normalise(half: NDArray[np.int64], half_library: NDArray[np.int64]) -> Floats:
        # A spot without any count in this half has only zeros in it.
        return np.log1p(half * (target_sum / np.maximum(half_library, 1))[spot])

    def mean(values: Floats) -> Floats:
        if together:
            return values.mean(keepdims=True)
        return np.bincount(gene, weights=values, minlength=n_genes) / max(n_spots, 1)

    rng = np.random.default_rng(seed)
    covariance, deviation = np.zeros((2, 1 if together else n_genes))
    for _ in range(n_splits):
        a = rng.binomial(panel.data, 0.5)
        library_a = np.bincount(spot, weights=a, minlength=n_spots).astype(np.int64)
        library_a += rng.binomial(library - in_panel, 0.5)
        # log1p(0) = 0: zeros add nothing to any of these sums, so only the non-zero counts are visited.
        x, y = normalise(a, library_a), normalise(panel.data - a, library - library_a)
        if together:
            x, y = (np.bincount(spot, weights=half, minlength=n_spots) / n_genes for half in (x, y))
        mean_x, mean_y = mean(x), mean(y)
        covariance += mean(x * y) - mean_x * mean_y
        variances = (mean(x * x) - mean_x**2) * (mean(y * y) - mean_y**2)
        deviation += np.sqrt(np.clip(variances, 0, None))
    # Constant genes have a variance of rounding errors only.
    r = np.clip(_divide(covariance, np.where(deviation > 1e-12 * n_splits, deviation, 0)), -1, 1)
    reliability = _divide(2 * r, 1 + r)
    reliability[r <= 0] = 0
    return np.sqrt(reliability)


def set_scores(
    measured: NDArray[Any], predicted: NDArray[Any], counts: Any, library_size: ArrayLike, *, n_splits: int = 5
) -> tuple[float, float]:
    """Correlation and noise ceiling of the mean of some genes, each (n_spots, n_genes); `counts` None: no ceiling."""
    means = (values.mean(axis=1, keepdims=True) for values in (measured, predicted))
    r = float(pearson(*means, constant=0.0)[0])
    if counts is None:
        return r, np.nan
    return r, float(noise_ceiling(counts, library_size=library_size, n_splits=n_splits, together=True)[0])


def _pair(measured: ArrayLike, predicted: ArrayLike) -> tuple[Floats, Floats]:
    """Both arrays as float64, with NaN in both where the prediction is NaN."""
    try:
        x, y = np.asarray(measured, dtype=np.float64), np.asarray(predicted, dtype=np.float64)
    except (TypeError, ValueError) as error:
        raise ValueError(
            f"Expected measured and predicted expression in numbers, found something else: {error}."
        ) from error
    if x.ndim != 2 or x.shape != y.shape:
        raise ValueError(
            "Expected measured and predicted expression of the same shape (n_spots, n_genes), "
            f"found {x.shape} and {y.shape}."
        )
    if np.isnan(x).any():
        raise ValueError(
            f"Expected measured expression without NaN, found {np.isnan(x).sum()} NaN in "
            f"{np.isnan(x).any(axis=0).sum()} of {x.shape[1]} genes. Leave out those spots or genes first."
        )
    missing = np.isnan(y)
    return (np.where(missing, np.nan, x), y) if missing.any() else (x, y)


def _mean(values: Floats) -> Floats:
    """Mean over the spots that are not NaN; NaN where there is none (without numpy's warning)."""
    return _divide(np.nansum(values, axis=0), (~np.isnan(values)).sum(axis=0))


def _centred(values: Floats) -> Floats:
    """Values less their mean; exactly 0 for a constant gene, whose mean would leave rounding errors."""
    known = ~np.isnan(values)
    highest = np.max(values, axis=0, where=known, initial=-np.inf)
    lowest = np.min(values, axis=0, where=known, initial=np.inf)
    return np.where(known & (highest == lowest), 0.0, values - _mean(values))


def _correlation(x: Floats, y: Floats, constant: float) -> Floats:
    x, y = _centred(x), _centred(y)
    of_x, of_y = np.sqrt(_mean(x**2)), np.sqrt(_mean(y**2))
    r = np.clip(_divide(_mean(x * y), of_x * of_y), -1, 1)
    return np.where((of_x > 0) & (of_y == 0), constant, r)


def _divide(numerator: Floats, denominator: NDArray[Any]) -> Floats:
    """Quotient, NaN where the denominator is 0 or NaN."""
    usable = denominator > 0
    return np.divide(numerator, denominator, out=np.full(numerator.shape, np.nan), where=usable)


def _as_counts(counts: Any) -> Any:
    """Counts as a new CSC array of int64, each stored once."""
    if not sparse.issparse(counts):
        counts = np.asarray(counts)
        if counts.ndim != 2:
            raise ValueError(f"Expected counts of shape (n_spots, n_genes), found {counts.shape}.")
    panel = sparse.csc_array(counts, copy=True)
    panel.sum_duplicates()
    values = panel.data
    if not np.isfinite(values).all() or (values < 0).any() or (values != np.floor(values)).any():
        raise ValueError(
            "Expected raw counts: finite whole numbers, 0 or more; found "
            f"values such as {_strange(values)}. Pass the counts from before any normalisation or logarithm."
        )
    return panel.astype(np.int64)


def _strange(values: NDArray[Any]) -> str:
    strange = ~np.isfinite(values) | (values < 0) | (values != np.floor(values))
    return ", ".join(f"{value:.4g}" for value in values[strange][:3])


def _as_library(library_size: ArrayLike, in_panel: NDArray[np.int64]) -> NDArray[np.int64]:
    library = np.asarray(library_size)
    if library.shape != in_panel.shape:
        raise ValueError(
            f"Expected one library_size per spot, shape ({in_panel.size},), found {library.shape}. "
            "It is the sum of a spot's counts over all genes."
        )
    if not np.isfinite(library).all() or (library != np.floor(library)).any():
        raise ValueError("Expected library_size in whole counts, found fractions or NaN: sum the raw counts.")
    short = library < in_panel
    if short.any():
        first = int(np.flatnonzero(short)[0])
        raise ValueError(
            f"Expected library_size to be at least the counts given, found {short.sum()} spots where it is less, "
            f"the first in row {first} ({library[first]:.0f} < {in_panel[first]}). It is the sum over all genes."
        )
    return library.astype(np.int64)
