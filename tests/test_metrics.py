from __future__ import annotations

import doctest

import numpy as np
import pytest
from scipy import sparse, stats

from nh2st_scverse import metrics

SCORES = [metrics.pearson, metrics.spearman, metrics.mse, metrics.mae, metrics.variance_ratio]


@pytest.fixture
def pair() -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    measured = rng.poisson(2.0, size=(40, 6)).astype(np.float32)  # counts, so that ranks are tied
    return measured, (0.5 * measured + rng.normal(size=measured.shape)).astype(np.float32)


def test_correlations_agree_with_scipy(pair):
    measured, predicted = pair
    for ours, scipys in ((metrics.pearson, stats.pearsonr), (metrics.spearman, stats.spearmanr)):
        expected = [scipys(measured[:, g], predicted[:, g]).statistic for g in range(6)]
        np.testing.assert_allclose(ours(measured, predicted), expected, rtol=1e-5)


def test_errors_and_variance_ratio_by_hand():
    measured, predicted = [[0.0, 1.0], [2.0, 1.0], [4.0, 1.0]], [[1.0, 1.0], [2.0, 2.0], [3.0, 5.0]]
    np.testing.assert_allclose(metrics.mse(measured, predicted), [2 / 3, 17 / 3])
    np.testing.assert_allclose(metrics.mae(measured, predicted), [2 / 3, 5 / 3])
    np.testing.assert_allclose(metrics.variance_ratio(measured, predicted), [0.25, np.nan])


@pytest.mark.parametrize("score", SCORES)
def test_spots_without_a_prediction_are_left_out(score, pair):
    measured, predicted = pair
    known = np.arange(40) % 3 > 0
    gap = predicted.copy()
    gap[~known, 2] = np.nan
    gap[:, 4] = np.nan
    found, whole = score(measured, gap), score(measured, predicted)
    expected = np.where(np.arange(6) == 4, np.nan, whole)
    expected[2] = score(measured[known][:, [2]], predicted[known][:, [2]])[0]
    np.testing.assert_allclose(found, expected)
    assert abs(found[2] - whole[2]) > 1e-6
    assert np.isnan(gap[~known, 2]).all() and not np.isnan(measured).any()


@pytest.mark.parametrize("score", [metrics.pearson, metrics.spearman])
def test_constant_genes_have_no_correlation(score):
    rng = np.random.default_rng(0)
    measured, predicted = rng.normal(size=(2, 100, 3))
    measured[:, 0] = np.float32(0.1)  # its mean over 100 spots is off by rounding
    predicted[:, 1] = np.float32(0.7)
    found = score(measured, predicted)
    assert np.isnan(found[:2]).all() and np.isfinite(found[2])
    one_spot = np.where(np.arange(100)[:, None] == 7, predicted, np.nan)
    assert np.isnan(score(measured, one_spot)).all()


def test_a_large_offset_does_not_hurt(pair):
    measured, predicted = (a.astype(float) for a in pair)
    shifted = metrics.pearson(measured + 1e6, predicted - 1e6)
    np.testing.assert_allclose(shifted, metrics.pearson(measured, predicted), rtol=1e-6)


@pytest.mark.parametrize("score", SCORES)
def test_scores_refuse_what_does_not_fit(score, pair):
    measured, predicted = pair
    with pytest.raises(ValueError, match=r"same shape.*\(40, 6\) and \(40, 5\)"):
        score(measured, predicted[:, :5])
    with pytest.raises(ValueError, match=r"same shape.*\(40,\)"):
        score(measured[:, 0], predicted[:, 0])
    measured = measured.copy()
    measured[3, 1] = np.nan
    with pytest.raises(ValueError, match="found 1 NaN in 1 of 6 genes"):
        score(measured, predicted)
    assert score(np.empty((0, 2)), np.empty((0, 2))).shape == (2,)


def log_normalised(counts: np.ndarray, library_size: np.ndarray) -> np.ndarray:
    return np.log1p(counts * (1e4 / library_size)[:, None])


def simulate(*, dispersion: float, depth_sd: float) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Counts of a panel, library sizes over all genes, and the best correlation: that of the true rates."""
    rng = np.random.default_rng(1)
    n_spots, n_genes, other_genes = 3000, 120, 6000
    mean = np.geomspace(0.5, 50, n_genes)
    spread = np.tile([0.4, 0.7, 1.0], n_genes // 3)
    profile = mean * np.exp(spread * rng.normal(size=(n_spots, n_genes)) - spread**2 / 2)
    if dispersion:  # negative binomial counts: a gamma factor that no image shows, but that is expression
        profile *= rng.gamma(1 / dispersion, dispersion, size=profile.shape)
    depth = np.exp(depth_sd * rng.normal(size=n_spots))
    rate = profile * depth[:, None]
    counts = rng.poisson(rate)
    library_size = counts.sum(axis=1) + rng.poisson(other_genes * depth)
    expected = log_normalised(rate, rate.sum(axis=1) + other_genes * depth)
    return counts, library_size, metrics.pearson(log_normalised(counts, library_size), expected)


@pytest.mark.parametrize("dispersion", [0.0, 0.3])
@pytest.mark.parametrize("depth_sd", [0.0, 0.2])
def test_noise_ceiling_is_the_correlation_of_the_truth(dispersion, depth_sd):
    counts, library_size, truth = simulate(dispersion=dispersion, depth_sd=depth_sd)
    error = metrics.noise_ceiling(counts, library_size=library_size) - truth
    assert truth.min() < 0.45 and truth.max() > 0.9  # easy and hard genes
    for genes in np.split(np.arange(truth.size), 4):  # from rare to abundant
        assert abs(error[genes].mean()) < 0.03
    assert np.abs(error).mean() < 0.03


def test_noise_ceiling_stays_above_the_truth_when_depth_varies():
    counts, library_size, truth = simulate(dispersion=0.3, depth_sd=0.8)
    error = metrics.noise_ceiling(counts, library_size=library_size) - truth
    for genes in np.split(np.arange(truth.size), 4):
        assert -0.01 < error[genes].mean() < 0.08


def test_noise_ceiling_needs_the_library_of_all_genes():
    """Genes of one shared program: without the other genes, normalisation takes the program away."""
    rng = np.random.default_rng(0)
    program = rng.gamma(2.0, 0.5, size=(800, 1))
    counts = rng.poisson(np.repeat(program * 20, 30, axis=1))
    library_size = counts.sum(axis=1) + rng.poisson(20_000, size=800)
    assert metrics.noise_ceiling(counts, library_size=library_size).min() > 0.9
    assert metrics.noise_ceiling(counts).max() < 0.7


def test_noise_ceiling_of_a_subset_is_that_of_the_whole():
    counts, library_size, _ = simulate(dispersion=0.3, depth_sd=0.2)
    whole = metrics.noise_ceiling(counts, library_size=library_size, n_splits=20)
    part = metrics.noise_ceiling(counts[:, 60:], library_size=library_size, n_splits=20)
    np.testing.assert_allclose(part, whole[60:], atol=0.02)


@pytest.mark.parametrize("container", [sparse.csr_matrix, sparse.csc_array, sparse.coo_array, np.asarray, np.float32])
def test_noise_ceiling_takes_any_container_and_changes_nothing(container):
    counts = np.random.default_rng(0).poisson([[0.5, 3.0, 0.0, 30.0]] * 200)
    given = container(counts)
    found = metrics.noise_ceiling(given, seed=3)
    np.testing.assert_array_equal(found, metrics.noise_ceiling(counts, seed=3))
    np.testing.assert_array_equal(given.toarray() if sparse.issparse(given) else given, counts)
    assert not np.array_equal(found, metrics.noise_ceiling(counts, seed=4), equal_nan=True)


def test_noise_ceiling_at_the_edges():
    counts = np.zeros((50, 4), dtype=int)
    counts[:, 1] = 7  # never varies, but its halves do
    counts[5, 2] = 1  # cannot be halved
    counts[:, 3] = np.random.default_rng(0).integers(0, 400, size=50)
    library_size = np.full(50, 1000)
    library_size[:3] = counts[:3].sum(axis=1)
    ceiling = metrics.noise_ceiling(counts, library_size=library_size)
    assert np.isnan(ceiling[[0, 2]]).all()
    assert 0 <= ceiling[1] <= 1 and ceiling[3] > 0.9
    assert np.isnan(metrics.noise_ceiling(np.zeros((3, 2)))).all()


def test_noise_ceiling_refuses_what_is_not_counts():
    counts = np.array([[1.0, 2.0], [3.0, 4.0]])
    wrong = {"0.6931": np.log1p(counts), "-1": -counts, "nan": counts * np.nan, "inf": counts * np.inf}
    for shown, bad in wrong.items():
        with pytest.raises(ValueError, match=f"Expected raw counts.*{shown}.*before any normalisation"):
            metrics.noise_ceiling(bad)
        with pytest.raises(ValueError, match="Expected raw counts"):
            metrics.noise_ceiling(sparse.csr_matrix(bad))
    with pytest.raises(ValueError, match=r"shape \(n_spots, n_genes\), found \(2,\)"):
        metrics.noise_ceiling(counts[0])
    with pytest.raises(ValueError, match=r"one library_size per spot, shape \(2,\), found \(3,\)"):
        metrics.noise_ceiling(counts, library_size=[9, 9, 9])
    with pytest.raises(ValueError, match=r"1 spots where it is less, the first in row 1 \(6 < 7\)"):
        metrics.noise_ceiling(counts, library_size=[9, 6])
    with pytest.raises(ValueError, match="in whole counts"):
        metrics.noise_ceiling(counts, library_size=[9.5, 9.0])
    with pytest.raises(ValueError, match="n_splits of 1 or more, found 0"):
        metrics.noise_ceiling(counts, n_splits=0)
    with pytest.raises(ValueError, match="positive target_sum"):
        metrics.noise_ceiling(counts, target_sum=0)


def grid(n: int, m: int) -> np.ndarray:
    return np.stack(np.meshgrid(np.arange(n), np.arange(m)), axis=-1).reshape(-1, 2).astype(float)


def test_ssim_is_that_of_skimage_on_a_square_array():
    from skimage.metrics import structural_similarity

    rng = np.random.default_rng(0)
    a = rng.normal(size=(20, 15)).cumsum(axis=0).cumsum(axis=1)
    b = a + rng.normal(size=a.shape)
    whole = structural_similarity(a, b, data_range=np.ptp(a), full=True)[1].mean()
    order = rng.permutation(a.size)
    xy = 200 * grid(15, 20)[order]
    pair = a.reshape(-1, 1)[order], b.reshape(-1, 1)[order]
    np.testing.assert_allclose(metrics.ssim(*pair, xy), whole)
    np.testing.assert_allclose(metrics.ssim(*pair, xy, spacing=200), whole)


def test_ssim_of_turned_and_hexagonal_arrays_with_holes():
    rng = np.random.default_rng(0)
    hexagonal = grid(30, 30) * [1, np.sqrt(3) / 2] + (np.arange(900) // 30 % 2)[:, None] * [0.5, 0]
    turned = grid(30, 30) @ np.array([[np.cos(0.5), -np.sin(0.5)], [np.sin(0.5), np.cos(0.5)]])
    for xy in (hexagonal, turned):
        xy = xy[((xy - xy.mean(axis=0)) ** 2).sum(axis=1) > 9]
        true = np.stack([np.sin(xy[:, 0] / 3), np.cos(xy[:, 1] / 4), np.zeros(len(xy))], axis=1)
        noise = rng.normal(size=true.shape)
        exact, near, flat, wrong = (
            metrics.ssim(true, p, xy)[:2] for p in (true, true + 0.3 * noise, 0.2 * true, noise)
        )
        np.testing.assert_allclose(exact, 1)
        assert (exact > near).all() and (near > flat).all() and (flat > wrong).all() and (wrong < 0.2).all()
        assert np.isnan(metrics.ssim(true, noise, xy)[2])  # measured is constant


def test_ssim_without_some_spots():
    rng = np.random.default_rng(0)
    measured, predicted = rng.normal(size=(2, 100, 4))
    predicted[:, 1:3] = measured[:, 1:3]
    predicted[:30, 1] = np.nan
    predicted[:, 3] = np.nan
    found = metrics.ssim(measured, predicted, grid(10, 10))
    np.testing.assert_allclose(found[1:3], 1)
    assert found[0] < 0.5 and np.isnan(found[3])
    assert np.isnan(metrics.ssim(measured[:20], predicted[:20], grid(10, 2))).all()
    with pytest.raises(ValueError, match=r"finite xy of shape \(100, 2\), found shape \(100, 3\)"):
        metrics.ssim(measured, predicted, np.ones((100, 3)))
    with pytest.raises(ValueError, match=r"spacing above 0, found 0.0: are spots on top"):
        metrics.ssim(measured, predicted, np.ones((100, 2)))


def test_bootstrap_covers_the_mean_as_often_as_it_says():
    rng = np.random.default_rng(0)
    covered = []
    for i in range(200):
        sections = rng.normal(0.3, 0.1, size=(12, 1)) + rng.normal(0, 0.2, size=(12, 60))
        low, high = np.quantile(metrics.bootstrap(sections, n_resamples=300, seed=i), [0.025, 0.975])
        covered.append(low < 0.3 < high)
    assert 0.88 < np.mean(covered) < 0.99


def test_bootstrap_resamples_what_it_is_told_to():
    values = np.array([[0.0, 0.0, 0.0], [1.0, 1.0, 1.0]])
    assert set(metrics.bootstrap(values)) == {0, 0.5, 1}
    np.testing.assert_allclose(metrics.bootstrap(values, rows=False), 0.5)
    np.testing.assert_allclose(metrics.bootstrap(values.T, columns=False), 0.5)
    np.testing.assert_array_equal(metrics.bootstrap(values, seed=1), metrics.bootstrap(values, seed=1))
    values[0] = np.nan
    assert set(metrics.bootstrap(values)) - {1} != set()  # NaN where only the lost row was drawn
    np.testing.assert_allclose(metrics.bootstrap(values, rows=False), 1)
    with pytest.raises(ValueError, match=r"\(n_rows, n_columns\), found \(3,\)"):
        metrics.bootstrap(values[0])
    with pytest.raises(ValueError, match="n_resamples of 1 or more, found 0"):
        metrics.bootstrap(values, n_resamples=0)


def test_examples_run():
    result = doctest.testmod(metrics)
    assert result.attempted >= 12 and result.failed == 0


# ------------------------------------------------------------------------------------------------ partial pearson


def test_partial_pearson_is_that_of_the_residuals_of_straight_lines() -> None:
    rng = np.random.default_rng(0)
    given = rng.normal(size=40)
    measured, predicted = (given[:, None] + rng.normal(size=(40, 3)) for _ in range(2))
    predicted[3, 1] = np.nan
    found = metrics.partial_pearson(measured, predicted, given)
    for g in range(3):
        at = np.isfinite(predicted[:, g])
        left = [v[at, g] - np.polyval(np.polyfit(given[at], v[at, g], 1), given[at]) for v in (measured, predicted)]
        assert found[g] == pytest.approx(stats.pearsonr(*left)[0], abs=1e-9)
    assert found.mean() < metrics.pearson(measured, predicted).mean() - 0.2


def test_partial_pearson_of_what_the_given_value_tells_alone() -> None:
    rng = np.random.default_rng(0)
    given, measured = rng.normal(size=20), rng.normal(size=(20, 1))
    for nothing in (3 * given[:, None] + 1, np.ones((20, 1))):
        assert np.isnan(metrics.partial_pearson(measured, nothing, given)).all()
        assert metrics.partial_pearson(measured, nothing, given, constant=0.0).tolist() == [0]
        assert np.isnan(metrics.partial_pearson(nothing, measured, given, constant=0.0)).all()
    with pytest.raises(ValueError, match=r"one finite value of each of 20 spots, found shape \(19,\)"):
        metrics.partial_pearson(measured, measured, given[1:])
    with pytest.raises(ValueError, match="not all finite"):
        metrics.partial_pearson(measured, measured, np.full(20, np.nan))
