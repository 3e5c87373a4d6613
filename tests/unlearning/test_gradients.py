"""Projected gradients, TRAK's kernel and first-order influence, against plain float64 loops and a small inverse."""

from itertools import combinations
from math import sqrt

import numpy as np
import oracle
import pytest
import torch
from torch.testing import assert_close
from torch.utils._python_dispatch import TorchDispatchMode

from attribution.diffusion.loss import denoising_loss
from attribution.diffusion.noise import NoiseBank, NoiseSettings
from attribution.diffusion.weights import WEIGHT_PATTERNS, tuned, unlearned
from attribution.errors import InputError
from attribution.methods.trak import Kernel, journey_bank
from attribution.unlearning import projection as gradients
from attribution.unlearning.gradients import per_image_gradients
from attribution.unlearning.projection import (
    GRADIENT_OUTPUTS,
    GradientSettings,
    Projection,
    first_order,
    mean_gradients,
)

SHAPES = {"to_k.weight": (40, 30), "conv.weight": (16, 8, 3, 3), "conv.bias": (16,)}
PARAMETERS = 40 * 30 + 16 * 8 * 9 + 16
CAPTIONS = ["a red apple", "two birds", "nothing but blue"]


def random_gradients(batch, seed=0, dtype=torch.float64):
    generator = torch.Generator().manual_seed(seed)
    return {name: torch.randn(batch, *shape, generator=generator, dtype=dtype) for name, shape in SHAPES.items()}


def concatenated(by_name):
    """(B, P), in the order of the names, sorted."""
    return torch.cat([by_name[name].flatten(1) for name in sorted(by_name)], 1)


# The projection


@pytest.mark.parametrize("names", [["to_k.weight"], ["conv.weight"], list(SHAPES)])
def test_inner_products_are_kept_on_average_and_within_the_bound(names):
    """Pairs of gradients that share a part and have a mean: <Px, Py> is <x, y> plus errors of variance up to 2 / d."""
    dimension, seeds = 64, 100
    drawn = random_gradients(12)
    by_name = {name: drawn[name] + drawn[name][:1] + 0.5 for name in names}
    exact, pairs = concatenated(by_name), list(combinations(range(12), 2))
    one, other = (torch.tensor(side) for side in zip(*pairs, strict=True))

    def products(x):
        return (x[one] * x[other]).sum(1)

    lengths = exact.norm(dim=1)[one] * exact.norm(dim=1)[other]
    kept = torch.stack([products(Projection(dimension, seed)(by_name)) for seed in range(seeds)])
    errors = (kept - products(exact)) / lengths  # (seeds, pairs)
    spread = sqrt(2 / dimension)
    assert (products(exact) / lengths).mean() > 0.3
    assert spread / 3 < errors.abs().mean() < spread
    assert errors.square().mean().sqrt() < spread
    assert errors.mean(0).abs().max() < 4 * spread / sqrt(seeds)
    assert abs(errors.mean()) < spread / sqrt(seeds)


def test_lengths_are_kept_across_parameters_of_one_shape():
    """The same numbers under two names do not always meet in the same bucket with the same sign."""
    x = torch.randn(1, 500, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    length = float(Projection(64, 3)({"a": x, "b": x}).square().sum() / (2 * x.square().sum()))
    assert 0.5 < length < 1.5
    assert not torch.equal(Projection(64, 3)({"a": x}), Projection(64, 3)({"b": x}))


def test_every_number_goes_to_one_bucket_and_all_buckets_and_signs_are_used():
    table = Projection(50, 3)({"w": torch.eye(2000)})
    assert torch.equal(table.abs().sum(1), torch.ones(2000))
    assert torch.equal(table.abs().amax(1), torch.ones(2000))
    assert table.abs().sum(0).min() > 10
    assert 900 < (table.sum(1) == 1).sum() < 1100


def test_projection_is_linear():
    project, x, y = Projection(64, 3), random_gradients(3, 1), random_gradients(3, 2)
    both = {name: 2 * x[name] - 3 * y[name] for name in SHAPES}
    assert_close(project(both), 2 * project(x) - 3 * project(y), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("dimension", [64, PARAMETERS + 5])
def test_projection_does_not_depend_on_the_order_of_names_or_on_the_batch(dimension):
    project, by_name = Projection(dimension, 3), random_gradients(5)
    whole = project(by_name)
    assert torch.equal(whole, project({name: by_name[name] for name in reversed(by_name)}))
    for image in range(5):
        assert torch.equal(whole[image], project({name: g[image : image + 1] for name, g in by_name.items()})[0])


@pytest.mark.parametrize("spare", [0, 7])
def test_gradients_that_fit_are_kept_as_they_are(spare):
    by_name = random_gradients(2)
    kept = Projection(PARAMETERS + spare, 3)(by_name)
    assert torch.equal(kept, torch.nn.functional.pad(concatenated(by_name), (0, spare)))


def test_gradients_that_do_not_quite_fit_are_sketched():
    kept = Projection(PARAMETERS - 1, 3)(random_gradients(2))
    assert kept.shape == (2, PARAMETERS - 1)
    assert (kept == 0).sum() > PARAMETERS / 4


def test_another_seed_is_another_projection_and_the_same_seed_the_same():
    by_name = random_gradients(2)
    assert not torch.equal(Projection(64, 3)(by_name), Projection(64, 4)(by_name))
    gradients._table.cache_clear()
    first = Projection(64, 3)(by_name)
    gradients._table.cache_clear()
    torch.manual_seed(5)
    assert torch.equal(first, Projection(64, 3)(by_name))


def test_the_tables_are_those_that_stored_gradients_were_projected_with():
    """Should these change, gradients of an index built before cannot be compared with a new query's."""
    numbers = {"layer.weight": torch.arange(1.0, 13.0)[None]}
    assert Projection(4, 3)(numbers).tolist() == [[2.0, 1.0, -28.0, 13.0]]


@pytest.mark.parametrize(
    ("given", "kept"),
    [
        (torch.float16, torch.float32),
        (torch.bfloat16, torch.float32),
        (torch.float32, torch.float32),
        (torch.float64, torch.float64),
    ],
)
@pytest.mark.parametrize("dimension", [64, PARAMETERS])
def test_projected_gradients_are_float32_at_least(given, kept, dimension):
    by_name = {name: g.to(given) for name, g in random_gradients(2).items()}
    projected = Projection(dimension, 3)(by_name)
    assert projected.dtype == kept
    exact = Projection(dimension, 3)({name: g.double() for name, g in by_name.items()})
    assert_close(projected.double(), exact, rtol=1e-5, atol=1e-4)


class Largest(TorchDispatchMode):
    """The number of elements of the largest tensor that any operation gave."""

    numel = 0

    def __torch_dispatch__(self, function, _types, args=(), kwargs=None):
        given = function(*args, **(kwargs or {}))
        if isinstance(given, torch.Tensor):
            self.numel = max(self.numel, given.numel())
        return given


def test_no_matrix_is_made_and_tables_hold_four_bytes_a_parameter():
    by_name = random_gradients(2)
    gradients._table.cache_clear()
    with Largest() as largest:
        Projection(512, 3)(by_name)
    assert 0 < largest.numel <= 2 * PARAMETERS
    for name, gradient in by_name.items():
        table = gradients._table(3, name, gradient[0].numel(), 512, torch.device("cpu"))
        assert table.untyped_storage().nbytes() == 4 * gradient[0].numel()
    assert gradients._table.cache_info().misses == len(by_name)


@pytest.mark.parametrize(("dimension", "seed"), [(0, 3), (-1, 3), (4, -1)])
def test_a_projection_that_is_not_possible_is_refused(dimension, seed):
    with pytest.raises(InputError, match="accepted are"):
        Projection(dimension, seed)


# Gradients of images


def make_parts(model, images=3, columns=4, seed=2):
    generator = torch.Generator().manual_seed(seed)
    latents = torch.randn(images, *model.latent_shape, generator=generator, dtype=torch.float64)
    bank = NoiseBank.draw(NoiseSettings(columns, 1, seed), model.latent_shape, model.train_timesteps)
    return latents, model.encode_text([*CAPTIONS, *CAPTIONS][:images]), bank


def square(pipe, x, text, t, eps, mask=None):
    """The prediction's square, averaged over channels, then over cells weighted by the mask."""
    abar = float(pipe.scheduler.alphas_cumprod[t])
    x_t = sqrt(abar) * x + sqrt(1 - abar) * eps
    made = pipe.unet(x_t[None], torch.tensor([t]), encoder_hidden_states=text).sample[0]
    cells = (made**2).sum(0) / len(x)
    return cells.mean() if mask is None else (mask * cells).sum() / mask.sum()


PLAIN = {"loss": oracle.loss, "d-trak": square}


def plain_gradients(model, output, latents, text, bank, mask=None, subset="cross-attn-kv"):
    """(n, P): one backward pass for each image and column, averaged over the columns; names sorted."""
    rows = []
    for x, words in zip(latents, text, strict=True):
        total = 0
        for t, eps in zip(bank.t.tolist(), bank.eps.double(), strict=True):
            with tuned(model, subset) as parameters:
                value = PLAIN[output](model.pipe, x, words[None], t, eps, mask)
                grads = torch.autograd.grad(value, [parameters[name] for name in sorted(parameters)])
            total = total + torch.cat([grad.flatten() for grad in grads]) / len(bank)
        rows.append(total)
    return torch.stack(rows)


def assert_gradients_close(actual, expected):
    assert_close(actual, expected, rtol=1e-8, atol=1e-8 * float(expected.square().mean().sqrt()))


@pytest.mark.parametrize("boxed", [False, True])
@pytest.mark.parametrize("output", ["loss", "d-trak"])
def test_mean_gradients_equal_one_backward_pass_for_each_image_and_column(model, output, boxed):
    parts = make_parts(model)
    mask = torch.linspace(0, 1, 64, dtype=torch.float64).reshape(8, 8) if boxed else None
    expected = plain_gradients(model, output, *parts, mask)
    exact = Projection(expected.shape[1], 3)
    actual = mean_gradients(model, "cross-attn-kv", *parts, exact, GRADIENT_OUTPUTS[output], 5, mask)
    assert actual.dtype == torch.float64
    assert not actual.requires_grad
    assert_gradients_close(actual, expected)


def test_mean_gradients_of_all_weights_equal_one_backward_pass_each(model):
    latents, text, bank = make_parts(model, images=2, columns=2)
    expected = plain_gradients(model, "loss", latents, text, bank, subset="all")
    exact = Projection(expected.shape[1], 3)
    actual = mean_gradients(model, "all", latents, text, bank, exact, GRADIENT_OUTPUTS["loss"], 3)
    assert_gradients_close(actual, expected)


def test_projected_mean_gradients_are_the_projection_of_mean_gradients(model):
    latents, text, bank = make_parts(model, columns=2)
    project = Projection(64, 3)
    actual = mean_gradients(model, "cross-attn-kv", latents, text, bank, project, GRADIENT_OUTPUTS["loss"], 6)
    expected = []
    for column in range(2):
        noises = bank.select([column] * 3)
        expected.append(project(per_image_gradients(model, "cross-attn-kv", latents, text, noises)))
    assert_gradients_close(actual, sum(expected) / 2)


@pytest.mark.parametrize("batch", [1, 2, 3, 5, 7, 100])
def test_mean_gradients_do_not_depend_on_the_batch_nor_exceed_it(model, monkeypatch, batch):
    parts, project, sizes = make_parts(model), Projection(64, 3), []
    whole = mean_gradients(model, "cross-attn-kv", *parts, project, GRADIENT_OUTPUTS["loss"], 12)
    predict = model.predict

    def watched(x_t, *args):
        sizes.append(len(x_t))
        return predict(x_t, *args)

    monkeypatch.setattr(model, "predict", watched)
    cut = mean_gradients(model, "cross-attn-kv", *parts, project, GRADIENT_OUTPUTS["loss"], batch)
    assert sum(sizes) == 12
    assert max(sizes) == min(batch, 12)
    assert_gradients_close(cut, whole)


def test_mean_gradients_leave_the_model_as_it_was(model):
    before = {name: weight.clone() for name, weight in model.unet.state_dict().items()}
    mean_gradients(model, "all", *make_parts(model, 1, 1), Projection(8, 3), GRADIENT_OUTPUTS["loss"], 1)
    assert all(torch.equal(weight, before[name]) for name, weight in model.unet.state_dict().items())
    assert not any(parameter.requires_grad for parameter in model.unet.parameters())


# TRAK's kernel


@pytest.fixture
def few_weights(monkeypatch):
    """Two small layers stand for the subset, so that an explicit inverse is quick."""
    monkeypatch.setitem(WEIGHT_PATTERNS, "cross-attn-kv", r"down_blocks\.0\..*attn2\.to_[kv]$")


def inverse_scores(phi, query, damping):
    """phi(q)^T (Phi^T Phi + lambda I)^-1 phi(i), by an explicit inverse."""
    gram = sum(torch.outer(row, row) for row in phi)
    ridge = damping * gram.diagonal().mean() * torch.eye(len(gram), dtype=torch.float64)
    return torch.stack([query @ torch.linalg.inv(gram + ridge) @ row for row in phi])


@pytest.mark.parametrize("method", ["trak", "journey-trak", "d-trak"])
def test_scores_of_unprojected_gradients_equal_an_explicit_inverse(model, few_weights, method):
    output, settings = "d-trak" if method == "d-trak" else "loss", GradientSettings(journey_noises=3)
    latents, text, bank = make_parts(model, images=6, columns=3)
    x, words, query_bank = make_parts(model, images=1, columns=4, seed=9)
    if method == "journey-trak":
        query_bank = journey_bank(settings, model.latent_shape, model.train_timesteps)
    plain = plain_gradients(model, output, latents, text, bank)
    expected = inverse_scores(plain, plain_gradients(model, output, x, words, query_bank)[0], settings.damping)

    def features(*parts):
        project = Projection(plain.shape[1] + 3, settings.seed)
        return mean_gradients(model, "cross-attn-kv", *parts, project, GRADIENT_OUTPUTS[output], 4)

    phi, query = features(latents, text, bank).numpy(), features(x, words, query_bank)[0]
    spare = phi.shape[1] / plain.shape[1]  # the zeros that fill up a row lower the mean of the diagonal
    kernel = Kernel.of(phi, settings.damping * spare, rows=4)
    assert_close(torch.from_numpy(kernel.scores(phi, query)), expected, rtol=1e-6, atol=0)


@pytest.mark.parametrize("rows", [1, 3, 10, 64])
def test_scores_do_not_depend_on_the_block_of_rows(tmp_path, rows):
    generator = torch.Generator().manual_seed(4)
    numbers = torch.randn(10, 24, generator=generator, dtype=torch.float64)
    np.save(tmp_path / "phi.npy", numbers.numpy().astype(np.float16))
    phi, query = np.load(tmp_path / "phi.npy", mmap_mode="r"), torch.randn(24, generator=generator)
    scores = Kernel.of(phi, 0.2, rows).scores(phi, query, rows)
    assert scores.dtype == np.float64
    expected = inverse_scores(numbers.half().double(), query.double(), 0.2)
    assert_close(torch.from_numpy(scores), expected, rtol=1e-9, atol=1e-12)


def test_a_training_image_scores_highest_for_itself():
    phi = torch.randn(30, 50, generator=torch.Generator().manual_seed(4), dtype=torch.float64)
    kernel = Kernel.of(phi.numpy(), 0.1)
    for row in range(0, 30, 7):
        scores = kernel.scores(phi.numpy(), phi[row])
        assert scores.argmax() == row
        assert 0 < scores[row] < 1


class Streamed:
    """An array that remembers the most rows that were read at once."""

    def __init__(self, array):
        self.array, self.shape, self.size, self.most = array, array.shape, array.size, 0

    def __len__(self):
        return len(self.array)

    def __getitem__(self, here):
        self.most = max(self.most, len(self.array[here]))
        return self.array[here]


def test_the_gradients_are_never_read_whole():
    phi = Streamed(np.random.default_rng(0).standard_normal((50, 4)).astype(np.float16))
    Kernel.of(phi, 0.1, rows=8).scores(phi, torch.ones(4), rows=8)
    first_order(phi, torch.ones(4), rows=8)
    assert phi.most == 8


def test_float16_gradients_are_summed_in_float64():
    """A sum in float16 would stop at 2048."""
    phi = np.ones((5000, 1), np.float16)
    scores = Kernel.of(phi, 1.0, rows=5000).scores(phi, torch.tensor([10_000.0]))
    assert_close(scores, np.ones(5000), rtol=1e-12, atol=0)


@pytest.mark.parametrize(
    ("phi", "damping"),
    [(np.ones((4, 3)), 0.0), (np.ones((4, 3)), -1.0), (np.zeros((4, 3)), 0.1), (np.full((4, 3), np.nan), 0.1)],
)
def test_a_kernel_that_has_no_inverse_is_refused(phi, damping):
    with pytest.raises(InputError, match="accepted are dampings above 0"):
        Kernel.of(phi, damping)


# First-order influence


@pytest.mark.parametrize("rows", [1, 3, 100])
def test_first_order_influence_equals_a_loop(tmp_path, rows):
    generator = np.random.default_rng(0)
    np.save(tmp_path / "phi.npy", generator.standard_normal((7, 2, 12)).astype(np.float16))
    phi, step = np.load(tmp_path / "phi.npy", mmap_mode="r"), torch.from_numpy(generator.standard_normal(12))
    expected = np.zeros((7, 2))
    for image in range(7):
        for view in range(2):
            expected[image, view] = sum(float(p) * float(s) for p, s in zip(phi[image, view], step, strict=True))
    assert_close(first_order(phi, step, rows), expected, rtol=1e-12, atol=1e-12)


def test_first_order_influence_is_how_much_each_loss_rises_along_a_small_step(model):
    """The step is projected as the gradients are, and its sign is that of the change of the loss."""
    latents, text, bank = make_parts(model)
    with tuned(model, "cross-attn-kv") as parameters:
        generator = torch.Generator().manual_seed(0)
        step = {name: 1e-6 * torch.randn(p.shape, generator=generator, dtype=p.dtype) for name, p in parameters.items()}
    exact = Projection(sum(change.numel() for change in step.values()), 3)
    phi = mean_gradients(model, "cross-attn-kv", latents, text, bank, exact, GRADIENT_OUTPUTS["loss"], 12)
    predicted = first_order(phi.numpy(), exact({name: change[None] for name, change in step.items()})[0])
    with torch.no_grad():
        before = denoising_loss(model, latents, text, bank).mean(1)
        with unlearned(model, "cross-attn-kv") as weights:
            for name, weight in weights.items():
                weight.add_(step[name])
            after = denoising_loss(model, latents, text, bank).mean(1)
    assert_close(torch.from_numpy(predicted), after - before, rtol=1e-3, atol=1e-12)


# JourneyTRAK's timestep


@pytest.mark.parametrize(("journey", "timestep"), [(0.0, 0), (0.25, 250), (0.7, 700), (1.0, 999)])
def test_the_journey_has_one_timestep_and_many_noises(journey, timestep):
    bank = journey_bank(GradientSettings(journey=journey, journey_noises=5), (4, 8, 8), 1000)
    assert bank.t.tolist() == [timestep] * 5
    assert bank.t.dtype == torch.int64
    assert bank.eps.shape == (5, 4, 8, 8)
    assert len({tuple(noise.flatten().tolist()) for noise in bank.eps}) == 5


def test_the_journeys_noises_come_from_the_seed():
    one, same, other = (journey_bank(GradientSettings(seed=seed), (4, 8, 8), 1000) for seed in (3, 3, 4))
    assert len(one) == 16
    assert torch.equal(one.eps, same.eps)
    assert not torch.equal(one.eps, other.eps)


@pytest.mark.parametrize("settings", [{"journey": -0.1}, {"journey": 1.1}, {"journey_noises": 0}])
def test_a_journey_that_is_not_possible_is_refused(settings):
    with pytest.raises(InputError, match="accepted are"):
        journey_bank(GradientSettings(**settings), (4, 8, 8), 1000)
