"""The gradient's sign and value, the Newton step, and weights that come back bit for bit."""

import gc
from dataclasses import replace
from threading import Event

import pytest
import torch
from near import assert_close

from attribution.diffusion.loss import denoising_loss
from attribution.diffusion.noise import NoiseBank, NoiseSettings
from attribution.diffusion.pipeline import Model
from attribution.diffusion.weights import layers, tuned, unlearned
from attribution.errors import Stopped
from attribution.methods import attribute
from attribution.methods.answer import AttributeSettings, Attribution
from attribution.methods.unlearning import unlearn_query
from attribution.query.encoded import encode
from attribution.unlearning.ekfac import Eigenbasis
from attribution.unlearning.fisher import precondition
from attribution.unlearning.gradients import per_image_gradients
from attribution.unlearning.projection import whitening
from attribution.unlearning.step import UnlearnSettings, newton_step, query_gradient

STEP = 1e-5  # of the central differences
SETTINGS = AttributeSettings(top_k=4, unlearn=UnlearnSettings(step_size=0.3, timesteps=4, noises=1, batch=2), batch=6)


def make_query_parts(model):
    generator = torch.Generator().manual_seed(3)
    latents = torch.randn(1, *model.latent_shape, generator=generator, dtype=torch.float64)
    text = model.encode_text(["a red bird and a blue key"])
    return latents, text, NoiseBank.draw(NoiseSettings(5, 1, 4), model.latent_shape, model.train_timesteps)


def finished(gradients):
    for _, gradient in gradients:
        last = gradient
    return last


@pytest.mark.parametrize("boxed", [False, True])
def test_query_gradient_agrees_with_central_differences(model, index, boxed):
    latents, text, bank = make_query_parts(model)
    mask = torch.linspace(0, 1, 64, dtype=torch.float64).reshape(8, 8) if boxed else None
    gradient = finished(query_gradient(model, index.weights, latents, text, bank, mask, batch=2))
    generator = torch.Generator().manual_seed(0)

    def loss_at(shift, direction):
        with unlearned(model, index.weights) as weights, torch.no_grad():
            for name, weight in weights.items():
                weight.add_(direction[name], alpha=shift)
            return float(denoising_loss(model, latents, text, bank, mask).mean())

    for _ in range(3):
        direction = {name: torch.randn(g.shape, generator=generator).to(g) for name, g in gradient.items()}
        slope = (loss_at(STEP, direction) - loss_at(-STEP, direction)) / (2 * STEP)
        expected = sum(float((gradient[name] * direction[name]).sum()) for name in gradient)
        assert_close(slope, expected, rtol=1e-5, atol=0)


@pytest.mark.parametrize("steps", [1, 3])
def test_the_querys_loss_rises_after_unlearning_by_as_much_as_the_gradient_says(model, index, steps):
    latents, text, bank = make_query_parts(model)
    settings = replace(SETTINGS.unlearn, step_size=1e-6, damping=0.1)
    before = float(denoising_loss(model, latents, text, bank).mean())
    expected = 0.0
    with unlearned(model, index.weights) as weights:
        for _ in range(steps):
            gradient = finished(query_gradient(model, index.weights, latents, text, bank, None, batch=5))
            for name, change in newton_step(gradient, index.fisher, settings, len(index)).items():
                weights[name].add_(change)
                expected += float((change * gradient[name]).sum())
        after = float(denoising_loss(model, latents, text, bank).mean())
    assert expected > 0
    assert_close(after - before, expected, rtol=0.05, atol=0)
    assert float(denoising_loss(model, latents, text, bank).mean()) == before


def test_newton_step_on_a_quadratic_is_the_closed_form():
    """With F = 4 and no damping, alpha / N = 1 / 4: gradient g moves the weight by g / 16."""
    settings = UnlearnSettings(step_size=2.0, damping=0.0)
    step = newton_step({"w": torch.tensor([8.0, -4.0])}, {"w": torch.tensor([4.0, 4.0])}, settings, images=8)
    assert_close(step["w"], torch.tensor([0.5, -0.25]), rtol=0, atol=0)


def test_damping_is_a_share_of_each_tensors_mean_fisher_information():
    settings = UnlearnSettings(step_size=1.0, damping=0.5)
    step = newton_step({"w": torch.ones(2)}, {"w": torch.tensor([1.0, 3.0])}, settings, images=1)
    assert_close(step["w"], torch.tensor([1 / 2, 1 / 4]))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_a_weight_of_which_nothing_is_known_does_not_move(dtype):
    """The pseudo-inverse: F and the damping are zero there, whether or not the gradient is."""
    gradient, flat = torch.tensor([[0.0, 2.0], [3.0, 0.0]], dtype=dtype), torch.tensor([[0.0, 0.0], [4.0, 4.0]])
    precise = torch.promote_types(dtype, torch.float32)
    expected = torch.tensor([[0.0, 0.0], [0.75, 0.0]], dtype=precise)
    assert_close(precondition(gradient, flat, 0.0), expected, rtol=0, atol=0)
    assert_close(precondition(gradient, torch.zeros(2, 2), 0.1), torch.zeros(2, 2, dtype=precise), rtol=0, atol=0)
    assert precondition(gradient, flat, 0.1).isfinite().all()
    for damping in (0.0, 0.1):  # turned by the identity, EK-FAC is the diagonal
        basis = Eigenbasis(torch.eye(2), torch.eye(2), flat)
        assert_close(precondition(gradient, basis, damping), precondition(gradient, flat, damping), rtol=0, atol=0)


def test_whitening_is_the_root_of_the_inverse_and_zero_where_there_is_none():
    roots = whitening({"w": torch.tensor([3.0, 0.0, 0.0]), "dead": torch.zeros(3)}, 1.0)
    assert_close(roots["w"], torch.tensor([4.0, 1.0, 1.0]).rsqrt())
    assert roots["dead"].tolist() == [0, 0, 0]
    assert whitening({"w": torch.tensor([4.0, 0.0])}, 0.0)["w"].tolist() == [0.5, 0.0]


@pytest.mark.parametrize("subset", ["cross-attn-kv", "cross-attn", "attn"])
def test_per_image_gradients_equal_one_backward_pass_each(model, subset):
    generator = torch.Generator().manual_seed(1)
    latents = torch.randn(3, *model.latent_shape, generator=generator, dtype=torch.float64)
    text = model.encode_text(["a red apple", "two birds", "nothing but blue"])
    bank = NoiseBank.draw(NoiseSettings(3, 1, 9), model.latent_shape, model.train_timesteps)
    together = per_image_gradients(model, subset, latents, text, bank)
    for image in range(3):
        with tuned(model, subset) as parameters:
            loss = denoising_loss(model, latents[image : image + 1], text[image : image + 1], bank.select([image]))
            alone = dict(zip(parameters, torch.autograd.grad(loss.sum(), list(parameters.values())), strict=True))
        assert together.keys() == alone.keys()
        for name, gradient in alone.items():
            assert_close(together[name][image], gradient, rtol=1e-9, atol=1e-15)


def test_the_default_subset_is_cross_attention_keys_and_values_alone(model):
    found = layers(model, "cross-attn-kv")
    modules = dict(model.unet.named_modules())
    expected = {name for name in modules if name.endswith(("attn2.to_k", "attn2.to_v"))}
    assert set(found) == expected
    assert len(expected) == 12


# Weights come back


def snapshot(model):
    """Every tensor of the model, and a hash that is computed anew."""
    modules = (model.vae, model.text_encoder, model.unet)
    tensors = [(name, value.clone()) for module in modules for name, value in module.state_dict().items()]
    return tensors, Model.sha256.func(model)


def assert_untouched(model, before):
    tensors, digest = snapshot(model)
    assert digest == before[1] == model.sha256
    for (name, value), (same_name, was) in zip(tensors, before[0], strict=True):
        assert name == same_name
        assert torch.equal(value, was), name
    assert not any(parameter.requires_grad for parameter in model.unet.parameters())


def is_unlearned(model, before):
    """Whether the U-Net differs from the snapshot just now."""
    return Model.sha256.func(model) != before[1]


@pytest.mark.parametrize("exhaustive", [False, True])
def test_weights_are_restored_after_a_query(model32, index32, query, exhaustive):
    before, seen = snapshot(model32), set()
    for step in attribute(model32, index32, query, replace(SETTINGS, exhaustive=exhaustive)):
        if not isinstance(step, Attribution):
            seen.add((step.stage, is_unlearned(model32, before)))
    assert_untouched(model32, before)
    assert seen == {("unlearning", False), ("scoring", True)}


@pytest.mark.parametrize("call", [2, 6])
def test_weights_are_restored_after_an_exception(model32, index32, query, monkeypatch, call):
    """At call 2 the gradient is being taken, at call 6 the race is on (two calls make the gradient)."""
    before, predict, calls, moved = snapshot(model32), model32.predict, [], []

    def fail(*args):
        calls.append(1)
        if len(calls) == call:
            moved.append(is_unlearned(model32, before))
            raise RuntimeError("out of memory")
        return predict(*args)

    monkeypatch.setattr(model32, "predict", fail)
    with pytest.raises(RuntimeError, match="out of memory"):
        list(attribute(model32, index32, query, SETTINGS))
    monkeypatch.undo()
    assert moved == [call == 6]
    assert_untouched(model32, before)


@pytest.mark.parametrize("stage", ["unlearning", "scoring"])
def test_weights_are_restored_after_stop(model32, index32, query, stage):
    before, stop, stopped_at = snapshot(model32), Event(), []
    steps = attribute(model32, index32, query, SETTINGS, stop)

    def consume():
        for step in steps:
            if step.stage == stage:
                stop.set()
                stopped_at.append(step.evaluations)

    with pytest.raises(Stopped, match="the model is as it was"):
        consume()
    assert len(stopped_at) == 1  # nothing more is yielded after Stop
    assert_untouched(model32, before)


def test_weights_are_restored_when_the_answer_is_dropped_half_way(model32, index32, query):
    before = snapshot(model32)
    steps = attribute(model32, index32, query, SETTINGS)
    while next(steps).stage != "scoring":
        pass
    assert is_unlearned(model32, before)
    del steps
    gc.collect()
    assert_untouched(model32, before)


def test_weights_are_restored_by_the_context_whatever_was_done_to_them(model32):
    before = snapshot(model32)

    def spoil():
        with unlearned(model32, "attn") as weights:
            for weight in weights.values():
                weight.mul_(float("nan"))
            assert is_unlearned(model32, before)
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        spoil()
    assert_untouched(model32, before)


@pytest.mark.exact_bits
def test_the_same_query_twice_gives_the_same_answer(model32, index32, query):
    first, second = (list(attribute(model32, index32, query, SETTINGS))[-1].results for _ in range(2))
    assert first == second


def test_unlearning_reports_how_far_it_is(model32, index32, query):
    settings = replace(SETTINGS.unlearn, steps=2)
    with unlearned(model32, index32.weights) as weights:
        steps = list(unlearn_query(model32, index32, encode(model32, query), settings, weights))
    assert [(step.predictions, step.step_sizes) for step in steps] == [(2, ()), (4, ()), (6, ()), (8, ())]
