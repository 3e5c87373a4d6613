"""The noise bank, the loss's mask, and the score, by hand."""

from itertools import pairwise, product

import numpy as np
import pytest
import torch
from torch.testing import assert_close

from attribution.diffusion.loss import denoising_loss
from attribution.diffusion.noise import NoiseBank, NoiseSettings, spread
from attribution.diffusion.pipeline import Model
from attribution.errors import InputError
from attribution.unlearning.score import score


def test_the_same_seed_gives_the_same_bank_and_another_seed_another():
    one, same, other = (NoiseBank.draw(NoiseSettings(10, 2, seed), (4, 8, 8), 1000) for seed in (3, 3, 4))
    assert torch.equal(one.eps, same.eps)
    assert torch.equal(one.t, same.t)
    assert not torch.equal(one.eps, other.eps)
    assert torch.equal(one.t, other.t)


def test_a_bank_does_not_depend_on_what_was_drawn_before():
    one = NoiseBank.draw(NoiseSettings(), (4, 8, 8), 1000)
    torch.manual_seed(0)
    torch.randn(5)
    assert torch.equal(one.eps, NoiseBank.draw(NoiseSettings(), (4, 8, 8), 1000).eps)


def test_noises_are_standard_normal_and_all_different():
    eps = NoiseBank.draw(NoiseSettings(50, 2), (4, 8, 8), 1000).eps
    assert eps.dtype == torch.float32
    assert_close(eps.mean(), torch.tensor(0.0), rtol=0, atol=0.03)
    assert_close(eps.std(), torch.tensor(1.0), rtol=0, atol=0.03)
    assert len({tuple(noise.flatten().tolist()) for noise in eps}) == 100


@pytest.mark.parametrize(("timesteps", "length"), [(1, 1), (1, 1000), (10, 1000), (7, 1000), (1000, 1000), (13, 50)])
def test_timesteps_are_inside_the_schedule_and_evenly_spread(timesteps, length):
    t = NoiseBank.draw(NoiseSettings(timesteps, 2), (1, 1, 1), length).t
    assert len(t) == 2 * timesteps
    assert t.min() >= 0
    assert t.max() < length
    assert torch.equal(t[::2], t[1::2])
    assert len(t.unique()) == timesteps
    assert (t[::2].diff() - length / timesteps).abs().le(1).all()


def test_timesteps_stay_in_the_part_of_the_schedule_that_is_asked_for():
    bank = NoiseBank.draw(NoiseSettings(4, 1, start=0.5, end=0.9), (1, 1, 1), 1000)
    assert bank.t.tolist() == [550, 650, 750, 850]


@pytest.mark.parametrize(("start", "end"), [(0.5, 0.5), (0.9, 0.1), (-0.1, 1.0), (0.0, 1.1)])
def test_a_part_outside_the_schedule_is_refused(start, end):
    with pytest.raises(InputError, match="0 <= start < end <= 1"):
        NoiseBank.draw(NoiseSettings(4, 1, start=start, end=end), (1, 1, 1), 1000)


def test_timesteps_are_the_middles_of_equal_strides():
    assert NoiseBank.draw(NoiseSettings(4, 1), (1, 1, 1), 1000).t.tolist() == [125, 375, 625, 875]


@pytest.mark.parametrize("settings", [NoiseSettings(0), NoiseSettings(1001), NoiseSettings(10, 0), NoiseSettings(-1)])
def test_an_impossible_bank_is_refused(settings):
    with pytest.raises(InputError, match=f"{settings.timesteps} timesteps x {settings.noises} noises.*1 to 1000"):
        NoiseBank.draw(settings, (4, 8, 8), 1000)


def test_select_takes_columns_in_the_order_given():
    bank = NoiseBank.draw(NoiseSettings(4, 1), (4, 8, 8), 1000)
    some = bank.select([2, 0])
    assert some.t.tolist() == [625, 125]
    assert torch.equal(some.eps, torch.stack([bank.eps[2], bank.eps[0]]))


@pytest.mark.parametrize("size", [*range(1, 70), 250, 1000])
def test_spread_is_a_permutation(size):
    assert sorted(spread(size)) == list(range(size))


@pytest.mark.parametrize("size", [10, 20, 100])
def test_every_beginning_of_spread_is_spread_over_the_schedule(size):
    order = spread(size)
    assert order[0] == size // 2
    for length in range(4, size + 1):
        ends = [-1, *sorted(order[:length]), size]
        assert max(b - a for a, b in pairwise(ends)) <= 1 + 2 * size / length


# The loss


def make_pair(model):
    latents = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    bank = NoiseBank.draw(NoiseSettings(3, 1), model.latent_shape, model.train_timesteps)
    return latents, model.encode_text(["a bus", "a key"]), bank


def test_a_mask_of_ones_changes_nothing(model):
    parts = make_pair(model)
    assert_close(denoising_loss(model, *parts, torch.ones(8, 8)), denoising_loss(model, *parts), rtol=1e-12, atol=0)


def test_a_mask_is_a_weighted_mean(model):
    """The loss is the mean over cells, so two halves make the whole, and a mask's scale does not matter."""
    parts, left = make_pair(model), torch.zeros(8, 8)
    left[:, :4] = 1
    halves = denoising_loss(model, *parts, left), denoising_loss(model, *parts, 1 - left)
    assert_close((halves[0] + halves[1]) / 2, denoising_loss(model, *parts), rtol=1e-12, atol=0)
    assert_close(denoising_loss(model, *parts, left / 4), halves[0], rtol=1e-12, atol=0)
    assert (halves[0] - halves[1]).abs().min() > 1e-4


def test_an_all_zero_mask_is_refused(model):
    with pytest.raises(InputError, match="the region is empty"):
        denoising_loss(model, *make_pair(model), torch.zeros(8, 8))


def test_the_loss_table_is_images_by_columns(model):
    latents, text, bank = make_pair(model)
    table = denoising_loss(model, latents, text, bank)
    assert table.shape == (2, 3)
    for image, column in product(range(2), range(3)):
        one = slice(image, image + 1)
        alone = denoising_loss(model, latents[one], text[one], bank.select([column]))
        assert_close(table[image, column], alone[0, 0], rtol=1e-12, atol=0)
    assert (table[0] - denoising_loss(model, latents[:1], text[1:], bank)).abs().min() > 1e-9  # texts matter


def test_convolutions_are_not_cut_to_tf32s_ten_bits(model, monkeypatch):
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", True)
    assert Model(model.pipe, model.source).dtype.is_floating_point
    assert not torch.backends.cudnn.allow_tf32


def test_a_perfect_prediction_has_no_loss(model, monkeypatch):
    """At each prediction type the target is the textbook's: x and eps come back from x_t and the target."""
    latents, text, bank = make_pair(model)
    abar = model.alphas_cumprod[bank.t[1]]
    eps = bank.eps[1].double()
    x_t = abar.sqrt() * latents[0] + (1 - abar).sqrt() * eps
    v = (abar.sqrt() * x_t - latents[0]) / (1 - abar).sqrt()
    target = eps if model.prediction_type == "epsilon" else v

    def predict(x, t, _text):
        assert_close(x[0], x_t)
        assert t.tolist() == [int(bank.t[1])]
        return target[None]

    monkeypatch.setattr(model, "predict", predict)
    assert_close(denoising_loss(model, latents[:1], text[:1], bank.select([1])), torch.zeros(1, 1).double())


# The score


def test_the_score_is_the_mean_change_of_the_better_view():
    before = np.array([[[1.0, 2.0], [1.0, 1.0]], [[1.0, 1.0], [3.0, 3.0]]])
    after = np.array([[[1.5, 2.1], [1.1, 1.3]], [[1.0, 0.8], [3.0, 3.4]]])
    scores = score(before, after)
    assert_close(scores.value, np.array([0.3, 0.2]))
    assert scores.flip.tolist() == [False, True]
    half = 1.96 * np.array([0.2, 0.2])  # deviations 0.2 sqrt 2 of two noises, over sqrt 2
    assert_close(scores.low, scores.value - half)
    assert_close(scores.high, scores.value + half)


def test_the_skew_is_normalised_noise_by_noise():
    before, after = np.array([[[1.0, 0.1]]]), np.array([[[1.5, 0.3]]])
    assert_close(score(before, after, "skew").value, np.array([(0.5 / 2.501 + 0.2 / 0.401) / 2]))


def test_a_loss_that_falls_scores_below_zero():
    assert score(np.full((1, 2, 3), 0.5), np.full((1, 2, 3), 0.4)).value[0] < 0


def test_one_noise_has_no_interval():
    scores = score(np.zeros((1, 1, 1)), np.ones((1, 1, 1)))
    assert (scores.low[0], scores.value[0], scores.high[0]) == (-np.inf, 1.0, np.inf)
