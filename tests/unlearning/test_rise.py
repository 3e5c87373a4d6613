"""The step size that is found by its effect: to what precision, within which bounds, and for whatever loss."""

import math

import numpy as np
import pytest
import torch
from near import assert_close

from attribution.diffusion.noise import NoiseBank, NoiseSettings
from attribution.unlearning.rise import (
    COLUMNS,
    OCTAVES,
    TRIALS,
    longest_step,
    step_sizes,
    step_to,
    trial_bank,
    trial_predictions,
)


def last(sizes):
    *_, size = sizes
    return size


@pytest.mark.parametrize("longest", [1e-3, 1.0, 40.0])
@pytest.mark.parametrize("share", [1e-4, 0.01, 0.3, 0.9])
@pytest.mark.parametrize("off", [0.25, 1.0, 5.0])
def test_the_step_size_is_the_root_of_a_rising_loss_however_rough_the_beginning(longest, share, off):
    """A loss 2 + 3 a + 5 a^2: the level that it has at a share of the longest step is found there."""

    def loss(size):
        return 2 + 3 * size + 5 * size**2

    size = last(step_sizes(longest, loss, 2.0, loss(share * longest), off * share * longest))
    assert size == pytest.approx(share * longest, rel=2e-3)


@pytest.mark.parametrize("power", [0.7, 1.0, 1.5, 2.0])
def test_a_loss_that_rises_by_a_power_is_found_too(power):
    size = last(step_sizes(1.0, lambda size: 1 + size**power, 1.0, 1 + 0.05**power, 0.02))
    assert size == pytest.approx(0.05, rel=2e-3)


def test_whatever_the_loss_does_the_trial_that_came_closest_is_taken():
    rng = np.random.default_rng(0)
    for _ in range(200):
        waves, places, tried = rng.normal(size=5), rng.uniform(0, 9, 5), {}

        def loss(size, waves=waves, places=places, tried=tried):
            tried[size] = 1 + abs(float((waves * np.sin(places * math.log(size))).sum()))
            return tried[size]

        wanted = float(rng.uniform(1.1, 4))
        sizes = list(step_sizes(3.0, loss, 1.0, wanted, float(rng.uniform(1e-6, 6))))
        assert len(sizes) == TRIALS
        assert len(tried) <= TRIALS
        assert all(3.0 * 2.0**-OCTAVES <= size <= 3.0 for size in tried)
        assert sizes[-1] == min(tried, key=lambda size: abs(math.log2((tried[size] - 1) / (wanted - 1))))


def test_a_loss_that_does_not_rise_has_the_longest_step():
    assert last(step_sizes(3.0, lambda size: 1.0, 1.0, 1.1, 0.01)) == 3.0
    assert last(step_sizes(3.0, lambda size: 1 - size, 1.0, 1.1, math.inf)) == 3.0


def test_a_loss_that_does_not_rise_so_far_has_the_longest_step():
    assert last(step_sizes(3.0, lambda size: 1 + 0.01 * size, 1.0, 1.5, 0.01)) == 3.0


def test_a_loss_that_is_no_number_is_too_high():
    tried = []

    def loss(size):
        tried.append(size)
        return math.nan if size > 0.01 else 1 + size

    assert last(step_sizes(1.0, loss, 1.0, 1.02, 0.5)) <= 0.01
    assert sum(size > 0.01 for size in tried) < TRIALS


def test_weights_stay_where_the_loss_is_as_wanted_and_move_by_their_norm_at_most():
    weights = {"a": torch.tensor([3.0, 0.0], dtype=torch.float64), "b": torch.tensor([4.0], dtype=torch.float64)}
    step = {"a": torch.tensor([0.0, 2.0], dtype=torch.float64), "b": torch.tensor([0.0], dtype=torch.float64)}
    assert longest_step(weights, step) == 2.5  # 5 / 2
    sizes = list(step_to(weights, step, lambda: 1 + float(weights["a"][1]), 1.0, 1.5, longest=1.0, slope=3.0))
    assert len(sizes) == TRIALS
    assert sizes[-1] == pytest.approx(0.25, rel=2e-3)
    assert_close(weights["a"], torch.tensor([3.0, 2 * sizes[-1]], dtype=torch.float64), rtol=0, atol=0)
    assert last(step_to(weights, step, lambda: 1.0, 1.0, 1.5, longest=0.5, slope=0.0)) <= 0.5 * 2.6
    assert_close(weights["a"][1], torch.tensor(2 * sizes[-1] + 2.5, dtype=torch.float64), rtol=0.02, atol=0)


def test_a_step_that_is_nothing_moves_nothing():
    weights, step = {"a": torch.tensor([3.0, 1.0])}, {"a": torch.zeros(2)}
    assert last(step_to(weights, step, lambda: 1.0, 1.0, 2.0, longest=1.0, slope=0.0)) == 0
    assert weights["a"].tolist() == [3, 1]


def test_few_columns_spread_over_the_schedule_are_tried():
    bank = NoiseBank.draw(NoiseSettings(100, 2, 1), (4, 8, 8), 1000)
    few = trial_bank(bank)
    assert len(few) == COLUMNS
    assert few.t.min() < 150
    assert few.t.max() > 850
    assert len(trial_bank(bank.select([0, 5, 7]))) == 3
    assert trial_predictions(200, 3) == COLUMNS * (1 + 3 * TRIALS)
    assert trial_predictions(3, 1) == 3 * (1 + TRIALS)
