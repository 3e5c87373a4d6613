"""The judges of attributions, by cases worked by hand and by a regression whose leave-one-out is known exactly."""

import numpy as np
import pytest

from attribution.evaluate.agreement import (
    average_precision,
    ceiling,
    equivalent_random,
    estimate,
    lds,
    overlap_at,
    paired_p,
    ranks_of,
    recall_at,
)


def test_lds_of_three_models_by_hand():
    """Sums of kept scores: 3, 2, 1 for the first query, so losses 0.1, 0.2, 0.3 are in perfect order, and reversed."""
    scores = np.array([[1.0, 2.0, 0.0], [1.0, 2.0, 0.0]])
    kept = np.array([[1, 1, 0], [0, 1, 1], [1, 0, 1]], bool)
    losses = np.array([[0.1, 0.3], [0.2, 0.2], [0.3, 0.1]])
    np.testing.assert_allclose(lds(scores, kept, losses), [1.0, -1.0])


def test_lds_with_one_swap_by_hand():
    """Ranks 1 2 3 4 against 2 1 3 4: 1 - 6 (1 + 1) / (4 x 15) = 0.8."""
    scores, kept = np.array([[4.0, 3.0, 2.0, 1.0]]), np.eye(4, dtype=bool)
    losses = np.array([[0.2], [0.1], [0.3], [0.4]])
    np.testing.assert_allclose(lds(scores, kept, losses), [0.8])


def test_the_ceiling_is_between_seeds():
    one = np.array([[1.0, 1.0], [2.0, 2.0], [3.0, 3.0]])
    other = np.array([[10.0, 3.0], [20.0, 2.0], [30.0, 1.0]])
    np.testing.assert_allclose(ceiling(one, other), [1.0, -1.0])


def test_random_images_of_the_same_effect():
    counts, changes = [16, 64, 256], np.array([1.0, 2.0, 6.0])
    assert equivalent_random(1.5, counts, changes) == 40
    assert equivalent_random(4.0, counts, changes) == 160
    assert equivalent_random(0.0, counts, changes) == 16
    assert equivalent_random(9.0, counts, changes) == 256


def test_a_random_curve_with_a_dip_is_made_monotone():
    assert equivalent_random(2.5, [1, 2, 3, 4], np.array([1.0, 2.0, 1.5, 3.0])) == pytest.approx(3.5)


def test_recall_and_average_precision_by_hand():
    ranks = ranks_of([5, 1, 7, 2, 9], [1, 2, 4])
    assert ranks.tolist() == [2, 4, 0]
    assert recall_at(ranks, 2) == pytest.approx(1 / 3)
    assert recall_at(ranks, 5) == pytest.approx(2 / 3)
    assert average_precision(ranks) == pytest.approx((1 / 2 + 2 / 4) / 3)
    with pytest.raises(ValueError, match="not defined"):
        ranks_of([5, 1], [])


def test_a_perfect_ranking_a_reversed_one_and_one_that_finds_nothing():
    """Of five images the first two are relevant: precisions at ranks 4 and 5 are 1/4 and 2/5."""
    perfect, reversed_, nothing = (ranks_of(ranking, [0, 1]) for ranking in ([1, 0, 2, 3, 4], [4, 3, 2, 1, 0], [2, 3]))
    assert average_precision(perfect) == recall_at(perfect, 2) == 1
    assert average_precision(reversed_) == pytest.approx((1 / 4 + 2 / 5) / 2)
    assert [recall_at(reversed_, k) for k in (3, 4, 5)] == [0, 0.5, 1]
    assert average_precision(nothing) == recall_at(nothing, 10) == 0


def test_precision_does_not_depend_on_the_order_of_the_relevant():
    ranking = [3, 1, 4, 0, 2]
    assert average_precision(ranks_of(ranking, [4, 0])) == average_precision(ranks_of(ranking, [0, 4]))


def test_overlap_counts_the_first_k_only():
    assert overlap_at([1, 2, 3, 4], [2, 9, 1, 3], 2) == 0.5
    assert overlap_at([1, 2, 3, 4], [2, 9, 1, 3], 4) == 0.75


def test_an_estimate_is_the_mean_with_its_error():
    values = np.array([0.1, 0.2, 0.3, 0.4])
    found = estimate(values)
    assert found.mean == pytest.approx(0.25)
    assert found.error == pytest.approx(values.std(ddof=1) / 2)
    assert 0.1 <= found.low < 0.25 < found.high <= 0.4


def test_a_paired_bootstrap_sees_a_small_but_constant_lead():
    noise = np.random.default_rng(0).normal(0, 1, 30)
    assert paired_p(noise + 0.1, noise) < 0.001
    assert paired_p(noise, noise + 0.1) > 0.999
    assert 0.3 < paired_p(noise, noise[::-1].copy()) < 0.7


def test_exact_leave_one_out_of_a_ridge_regression_has_a_perfect_score():
    """The closed form of leaving one row out, as scores, orders the losses of really refitted models exactly."""
    rng = np.random.default_rng(3)
    x, y, query, target = rng.normal(size=(12, 3)), rng.normal(size=12), rng.normal(size=3), 0.7
    inverse = np.linalg.inv(x.T @ x + 0.5 * np.eye(3))
    weights = inverse @ x.T @ y

    def loss(w):
        return (query @ w - target) ** 2

    def refitted(row):
        rest = np.arange(12) != row
        return np.linalg.solve(x[rest].T @ x[rest] + 0.5 * np.eye(3), x[rest].T @ y[rest])

    residuals, leverage = y - x @ weights, np.einsum("ni,ij,nj->n", x, inverse, x)
    without = weights - (inverse @ x.T * (residuals / (1 - leverage))).T  # Sherman and Morrison
    refits = np.array([refitted(row) for row in range(12)])
    np.testing.assert_allclose(without, refits, rtol=1e-10)
    scores = np.array([[loss(w) - loss(weights) for w in without]])
    losses = np.array([[loss(w)] for w in refits])
    np.testing.assert_allclose(lds(scores, ~np.eye(12, dtype=bool), losses), [1.0])
