"""Per-image gradients of all weights, and EK-FAC, against one backward pass for each image."""

from itertools import pairwise

import numpy as np
import oracle
import pytest
import torch
from torch import nn
from torch.testing import assert_close

from attribution.diffusion.loss import denoising_loss, paired_loss, prediction_norm
from attribution.diffusion.noise import NoiseBank, NoiseSettings
from attribution.diffusion.weights import layers, tuned
from attribution.errors import InputError
from attribution.unlearning.ekfac import Eigenbasis, add_moments, eigenvectors, rotate
from attribution.unlearning.fisher import Samples, compress, precondition
from attribution.unlearning.gradients import Trace, layer_gradients, per_image_gradients, trace

CAPTIONS = ["a red apple", "two birds", "nothing but blue"]


def make_batch(model):
    generator = torch.Generator().manual_seed(1)
    latents = torch.randn(3, *model.latent_shape, generator=generator, dtype=torch.float64)
    bank = NoiseBank.draw(NoiseSettings(3, 1, 9), model.latent_shape, model.train_timesteps)
    return latents, model.encode_text(CAPTIONS), bank


def one_by_one(model, subset, output, mask=None):
    """Gradients of each image from a backward pass of its own."""
    latents, text, bank = make_batch(model)
    for image in range(3):
        one = slice(image, image + 1)
        with tuned(model, subset) as parameters:
            value = output(model, latents[one], text[one], bank.select([image]), mask).sum()
            yield dict(zip(parameters, torch.autograd.grad(value, list(parameters.values())), strict=True))


@pytest.mark.parametrize("output", [paired_loss, prediction_norm])
@pytest.mark.parametrize("boxed", [False, True])
def test_gradients_of_all_weights_equal_one_backward_pass_each(model, output, boxed):
    mask = torch.linspace(0, 1, 64, dtype=torch.float64).reshape(8, 8) if boxed else None
    together = per_image_gradients(model, "all", *make_batch(model), output, mask)
    assert together.keys() == dict(model.unet.named_parameters()).keys()
    for image, alone in enumerate(one_by_one(model, "all", output, mask)):
        for name, gradient in alone.items():
            scale = float(gradient.square().mean().sqrt())
            assert_close(together[name][image], gradient, rtol=1e-7, atol=1e-9 * scale + 1e-18)


def test_the_subsets_of_weights_are_nested(model):
    subsets = [set(layers(model, subset)) for subset in ("cross-attn-kv", "cross-attn", "attn", "all")]
    assert subsets == sorted(subsets, key=len)
    assert all(small < large for small, large in pairwise(subsets))


def test_a_strided_padded_convolution_and_norms_have_their_own_gradients():
    generator = torch.Generator().manual_seed(2)
    for layer, shape in (
        (nn.Conv2d(4, 6, 3, stride=2, padding=1), (5, 4, 7, 8)),
        (nn.Conv2d(4, 6, (1, 3), padding=(0, 2), dilation=(1, 2), bias=False), (5, 4, 7, 8)),
        (nn.GroupNorm(2, 4), (5, 4, 7, 8)),
        (nn.LayerNorm(8), (5, 7, 8)),
        (nn.Linear(8, 3), (5, 8)),
    ):
        layer = layer.double()
        x = torch.randn(shape, generator=generator, dtype=torch.float64)
        weight = torch.randn(layer(x).shape, generator=generator, dtype=torch.float64)
        found = layer_gradients(Trace(layer, x, weight))
        assert found.keys() == dict(layer.named_parameters()).keys()
        for image in range(5):
            value = (layer(x[image : image + 1]) * weight[image]).sum()
            alone = torch.autograd.grad(value, list(layer.parameters()))
            for (key, _), gradient in zip(layer.named_parameters(), alone, strict=True):
                assert_close(found[key][image], gradient, rtol=1e-9, atol=1e-12)


def test_a_layer_that_stable_diffusion_does_not_have_is_refused():
    layer = nn.Conv2d(4, 4, 3, groups=2)
    with pytest.raises(InputError, match="Conv2d cannot be unlearned"):
        layer_gradients(Trace(layer, torch.zeros(1, 4, 5, 5), torch.zeros(1, 4, 3, 3)))


def test_prediction_norm_is_the_predictions_mean_square(model):
    latents, text, bank = make_batch(model)
    for image in range(3):
        signal, noise = (float(share) for share in schedule(model, int(bank.t[image])))
        x_t = signal * latents[image : image + 1] + noise * bank.eps[image : image + 1].double()
        predicted = model.predict(x_t, bank.t[image : image + 1], text[image : image + 1])
        expected = predicted.square().mean()
        assert_close(prediction_norm(model, latents, text, bank)[image], expected, rtol=1e-9, atol=0)


def schedule(model, t):
    """Shares of signal and noise at a timestep."""
    alpha = model.alphas_cumprod[t]
    return alpha.sqrt(), (1 - alpha).sqrt()


# Which samples


@pytest.mark.parametrize(
    ("images", "views", "columns", "samples"),
    [(500, 2, 250, 2600), (8, 2, 7, 112), (250, 1, 250, 1000), (6, 2, 4, 48), (5000, 2, 250, 700)],
)
def test_no_sample_comes_twice_and_the_set_is_seen_evenly(images, views, columns, samples):
    """Where the number of images is a multiple of the columns, and where it is larger than the samples."""
    drawn = Samples.draw(images, views, columns, seed=3)
    triples = [drawn[number] for number in range(samples)]
    assert len(set(triples)) == samples
    for part, size in ((0, images), (1, views), (2, columns)):
        counts = np.bincount([triple[part] for triple in triples], minlength=size)
        assert counts.max() - counts.min() <= (1, images % 2 + 1, 2)[part]


def test_few_samples_of_many_images_are_not_the_first_ones():
    drawn = Samples.draw(5000, 2, 250, seed=3)
    rows = [drawn[number][0] for number in range(500)]
    assert 2300 < np.mean(rows) < 2700
    assert rows != [Samples.draw(5000, 2, 250, seed=4)[number][0] for number in range(500)]


# EK-FAC


def test_factors_are_second_moments_over_images_and_tokens(model):
    traces = trace(model, "cross-attn-kv", *make_batch(model))
    sums = add_moments(add_moments({}, traces), traces)
    for name, traced in traces.items():
        a, g = traced.inputs.flatten(0, 1), traced.grads.flatten(0, 1)
        assert_close(sums[f"{name}.weight.inputs"], 2 * sum(torch.outer(row, row) for row in a))
        assert_close(sums[f"{name}.weight.outputs"], 2 * sum(torch.outer(row, row) for row in g))


def test_ekfacs_diagonal_equals_a_loop_over_images(model, index, exact_index):
    """Lambda of the build: the mean over its samples of squared rotated gradients, each from a pass of its own."""
    held = exact_index.information([f"{name}.weight" for name in layers(model, "cross-attn-kv")], "ek-fac")
    encoded, bank = index.encoded, NoiseBank.draw(NoiseSettings(7, 1, 6), model.latent_shape, model.train_timesteps)
    total = {name: torch.zeros_like(basis.information, dtype=torch.float64) for name, basis in held.items()}
    drawn = Samples.draw(8, 2, 7, seed=6)
    for row, view, column in (drawn[number] for number in range(37)):
        latents = encoded.view([row], [view])[0].double()
        text = model.encode_text([index.captions[row]])
        with tuned(model, "cross-attn-kv") as parameters:
            value = denoising_loss(model, latents, text, bank.select([column])).sum()
            gradients = dict(zip(parameters, torch.autograd.grad(value, list(parameters.values())), strict=True))
        for name, basis in held.items():
            rotated = basis.outputs.double().T @ gradients[name] @ basis.inputs.double()
            total[name] += rotated.square() / 37
    for name, basis in held.items():
        assert_close(basis.information.double(), total[name], rtol=1e-4, atol=1e-6 * float(total[name].mean()))


def test_the_eigenbasis_makes_the_built_factors_diagonal(model, index, exact_index):
    """A, from a loop over the build's samples, is diagonal in Qa; Qa and Qs are orthogonal."""
    held = exact_index.information([f"{name}.weight" for name in layers(model, "cross-attn-kv")], "ek-fac")
    drawn = Samples.draw(8, 2, 7, seed=6)
    tokens = torch.cat([model.encode_text([index.captions[drawn[number][0]]])[0] for number in range(37)])
    moment = tokens.T @ tokens
    for basis in held.values():
        for q in (basis.inputs.double(), basis.outputs.double()):
            assert_close(q.T @ q, torch.eye(len(q), dtype=torch.float64), rtol=0, atol=1e-5)
        q = basis.inputs.double()
        rotated = q.T @ moment @ q
        off = rotated - torch.diag(rotated.diagonal())
        assert float(off.abs().max()) < 1e-5 * float(rotated.diagonal().max())


def test_ekfac_is_the_exact_inverse_where_the_fisher_is_a_kronecker_product():
    """One token, inputs and output gradients independent: all pairs of two small sets of vectors."""
    generator = torch.Generator().manual_seed(3)
    layer = nn.Linear(4, 3, bias=False).double()
    a = torch.randn(6, 4, generator=generator, dtype=torch.float64)
    g = torch.randn(5, 3, generator=generator, dtype=torch.float64)
    pairs = [(x, y) for x in a for y in g]
    traced = Trace(layer, torch.stack([x for x, _ in pairs])[:, None], torch.stack([y for _, y in pairs])[:, None])
    q = eigenvectors(add_moments({}, {"layer": traced}))
    inputs, outputs = q["layer.weight.inputs"], q["layer.weight.outputs"]
    each = layer_gradients(traced)["weight"]
    basis = Eigenbasis(inputs, outputs, rotate(each, inputs, outputs).square().mean(0))
    fisher = torch.einsum("bi,bj->ij", each.flatten(1), each.flatten(1)) / len(pairs)
    gradient = torch.randn(3, 4, generator=generator, dtype=torch.float64)
    for damping in (0.0, 0.1):
        ridge = damping * basis.information.mean() * torch.eye(12, dtype=torch.float64)
        exact = torch.linalg.solve(fisher + ridge, gradient.flatten()).reshape(3, 4)
        assert_close(precondition(gradient, basis, damping), exact, rtol=1e-9, atol=1e-12)
    diagonal = precondition(gradient, fisher.diagonal().reshape(3, 4), 0.0)
    assert not torch.allclose(diagonal, precondition(gradient, basis, 0.0), rtol=0.1)


def test_ekfac_of_other_layers_than_linear_ones_is_refused():
    layer = nn.Conv2d(2, 2, 1)
    with pytest.raises(InputError, match="EK-FAC covers linear layers only; conv is a Conv2d"):
        add_moments({}, {"conv": Trace(layer, torch.zeros(1, 2, 3, 3), torch.zeros(1, 2, 3, 3))})


def test_the_oracle_knows_the_same_weights(model):
    """The loops above and the oracle of test_oracle.py differentiate by the same parameters."""
    with tuned(model, "cross-attn-kv") as parameters:
        assert parameters.keys() == oracle.weights(model.pipe).keys()


# Devices that have no such numbers


class Elsewhere(torch.Tensor):
    """A tensor of a device that knows neither float64 nor float8, until it is on the CPU."""

    @classmethod
    def __torch_function__(cls, function, types, args=(), kwargs=None):
        made = super().__torch_function__(function, types, args, kwargs or {})
        if function is torch.Tensor.cpu:
            return made.as_subclass(torch.Tensor)
        if isinstance(made, torch.Tensor) and made.dtype in (torch.float64, torch.float8_e4m3fn):
            raise TypeError(f"this device has no {made.dtype}")
        return made


def test_eigenvectors_and_eight_bits_are_made_on_the_cpu():
    rows = torch.randn(9, 4, generator=torch.Generator().manual_seed(1))
    moment = rows.T @ rows
    found = eigenvectors({"a": moment.as_subclass(Elsewhere)})["a"]
    assert_close(found.as_subclass(torch.Tensor), eigenvectors({"a": moment})["a"])
    packed, plain = compress({"a": moment.square().as_subclass(Elsewhere)}), compress({"a": moment.square()})
    assert all(torch.equal(packed[name].float(), plain[name].float()) for name in plain)
