"""The package against the oracle: losses, Fisher information, updated weights and scores."""

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import oracle
import pytest
import torch
from diffusers import StableDiffusionPipeline
from near import assert_close
from PIL import Image, ImageOps

from attribution.diffusion.noise import NoiseBank, NoiseSettings
from attribution.diffusion.weights import unlearned
from attribution.methods import attribute
from attribution.methods.answer import AttributeSettings, Attribution
from attribution.methods.unlearning import unlearn_query
from attribution.query.encoded import encode
from attribution.query.regions import box_mask
from attribution.unlearning.fisher import Samples
from attribution.unlearning.score import training_losses
from attribution.unlearning.step import UnlearnSettings, query_gradient

RTOL = 1e-6
UNLEARN = UnlearnSettings(step_size=0.3, damping=0.1, timesteps=3, noises=2, seed=8, batch=4)
RISE = 1e-3
BOX = (8.0, 0.0, 32.0, 16.0)  # columns 2 to 7 and rows 0 to 3 of the latent grid


def rectangle():
    mask = torch.zeros(8, 8, dtype=torch.float64)
    mask[0:4, 2:8] = 1
    return mask


@pytest.fixture(scope="module")
def truth(model, index, tiny_settings):
    """What the oracle finds in the stored latents, with a pipeline of its own."""
    pipe = StableDiffusionPipeline.from_pretrained(model.source, dtype=torch.float64, safety_checker=None)
    pipe.unet.requires_grad_(False)
    for parameter in oracle.weights(pipe).values():
        parameter.requires_grad_(True)
    latents = torch.from_numpy(np.array(index.latents, np.float64))
    length = pipe.scheduler.config.num_train_timesteps
    noises = oracle.draw(5, 4, 2, (4, 8, 8), length)
    drawn = Samples.draw(8, 2, 7, seed=6)
    samples = [drawn[number] for number in range(37)]
    information = oracle.fisher(pipe, latents, index.captions, oracle.draw(6, 7, 1, (4, 8, 8), length), samples)
    return SimpleNamespace(
        pipe=pipe,
        latents=latents,
        captions=index.captions,
        noises=noises,
        query_noises=oracle.draw(8, 3, 2, (4, 8, 8), length),
        fisher=information,
        losses=oracle.losses(pipe, latents, index.captions, noises),
        start={name: parameter.detach().clone() for name, parameter in oracle.weights(pipe).items()},
    )


def unlearn(truth, query, steps, mask):
    """The oracle's pipeline, at the weights of the query unlearned."""
    for name, parameter in oracle.weights(truth.pipe).items():
        parameter.data.copy_(truth.start[name])
    x, text = oracle.see(truth.pipe, query.image), oracle.read(truth.pipe, query.prompt)
    images = len(truth.captions)
    oracle.unlearn(truth.pipe, x, text, truth.query_noises, truth.fisher, 0.3, 0.1, images, steps, mask)
    return truth.pipe


def assert_tensors_close(actual, expected):
    """All tensors by name to RTOL, elements that are nearly zero to RTOL of their tensor's root mean square."""
    assert actual.keys() == expected.keys()
    for name, tensor in expected.items():
        assert_close(
            actual[name], tensor.detach(), rtol=RTOL, atol=RTOL * float(tensor.detach().square().mean().sqrt())
        )


def test_latents_stored_in_the_index_are_the_pictures_and_their_mirrors(model, index, pictures, truth):
    for row in range(len(index)):
        picture = Image.open(pictures / index.ids[row])
        both = torch.stack([oracle.see(truth.pipe, picture), oracle.see(truth.pipe, ImageOps.mirror(picture))])
        assert_close(truth.latents[row], both, rtol=1e-3, atol=1e-4)  # float16


def test_losses_of_all_images_and_mirrors_equal_the_oracles(model, index, truth):
    bank = index.bank(model)
    chunks = training_losses(model, index.encoded, bank, range(len(index)), range(len(bank)), batch=6)
    losses = np.concatenate([table for _, table in chunks])
    assert losses.dtype == np.float64
    assert_close(losses, truth.losses, rtol=RTOL, atol=0)
    assert_close(np.array(index.base_losses), truth.losses.astype(np.float32), rtol=RTOL, atol=0)


def test_fisher_information_equals_the_oracles(index, truth):
    assert_tensors_close(index.fisher, truth.fisher)


@pytest.mark.parametrize("boxed", [False, True])
def test_query_gradient_equals_the_oracles(model, index, query, truth, boxed):
    unlearn(truth, query, 0, None)
    mask = rectangle() if boxed else None
    x, text = oracle.see(truth.pipe, query.image), oracle.read(truth.pipe, query.prompt)
    expected = oracle.query_gradient(truth.pipe, x, text, truth.query_noises, mask)
    bank = NoiseBank.draw(NoiseSettings(3, 2, 8), model.latent_shape, model.train_timesteps)
    text = model.encode_text([query.prompt])
    for _, gradient in query_gradient(model, index.weights, x[None], text, bank, mask, batch=4):
        last = gradient
    assert_tensors_close(last, expected)


@pytest.mark.parametrize("steps", [1, 2])
@pytest.mark.parametrize("boxed", [False, True])
def test_weights_after_unlearning_equal_the_oracles(model, index, query, truth, boxed, steps):
    query = replace(query, boxes=(BOX,)) if boxed else query
    expected = oracle.weights(unlearn(truth, query, steps, rectangle() if boxed else None))
    with unlearned(model, index.weights) as weights:
        for _ in unlearn_query(model, index, encode(model, query), replace(UNLEARN, steps=steps), weights):
            pass
        actual = {name: weight.cpu().clone() for name, weight in weights.items()}
    assert_tensors_close(actual, expected)
    moved = {name: actual[name] - truth.start[name] for name in actual}
    assert_tensors_close(moved, {name: expected[name] - truth.start[name] for name in expected})
    assert all(float(change.abs().max()) > 1e-5 for name, change in moved.items())


def searched(truth, query, mask, rise, steps):
    """Step sizes at which the oracle's own loss of the query rises in equal parts, by its own search; to 1e-5."""
    pipe = unlearn(truth, query, 0, None)
    x, text = oracle.see(pipe, query.image), oracle.read(pipe, query.prompt)
    named, found = oracle.weights(pipe), []

    def loss():
        with torch.no_grad():
            return sum(float(oracle.loss(pipe, x, text, t, eps, mask)) for t, eps in truth.query_noises)

    before = loss()
    for number in range(1, steps + 1):
        start = {name: parameter.detach().clone() for name, parameter in named.items()}
        grads = oracle.query_gradient(pipe, x, text, truth.query_noises, mask)
        low, high = 0.0, 1000.0
        while high - low > 1e-5 * high:
            middle = (low + high) / 2
            for name, parameter in named.items():
                f = truth.fisher[name]
                parameter.data.copy_(start[name] + middle / len(truth.captions) * grads[name] / (f + 0.1 * f.mean()))
            low, high = (middle, high) if loss() < before * (1 + rise * number / steps) else (low, middle)
        found.append(high)
    return found, pipe


@pytest.mark.parametrize(("boxed", "steps"), [(False, 1), (True, 2)])
def test_a_step_size_found_by_its_effect_is_the_oracles(model, index, query, truth, boxed, steps):
    query = replace(query, boxes=(BOX,)) if boxed else query
    expected, pipe = searched(truth, query, rectangle() if boxed else None, RISE, steps)
    settings = replace(UNLEARN, step_size=None, rise=RISE, steps=steps)
    with unlearned(model, index.weights) as weights:
        *_, taken = unlearn_query(model, index, encode(model, query), settings, weights)
        actual = {name: weight.cpu().clone() for name, weight in weights.items()}
    assert taken.predictions == settings.predictions
    assert_close(list(taken.step_sizes), expected, rtol=2e-3, atol=0)
    for name, weight in oracle.weights(pipe).items():
        moved = weight.detach() - truth.start[name]
        assert_close(
            actual[name] - truth.start[name], moved, rtol=5e-3, atol=5e-3 * float(moved.square().mean().sqrt())
        )


@pytest.mark.parametrize("boxed", [False, True])
def test_scores_equal_the_oracles(model, index, query, truth, boxed):
    query = replace(query, boxes=(BOX,)) if boxed else query
    pipe = unlearn(truth, query, 1, rectangle() if boxed else None)
    after = oracle.losses(pipe, truth.latents, truth.captions, truth.noises)
    precise = replace(index, base_losses=truth.losses)  # the index keeps float32
    for kind in ("difference", "skew"):
        expected = oracle.score(truth.losses, after, skew=kind == "skew")
        settings = AttributeSettings(top_k=len(index), exhaustive=True, score=kind, unlearn=UNLEARN, batch=6)
        *_, answer = attribute(model, precise, query, settings)
        assert isinstance(answer, Attribution)
        assert [result.row for result in answer.results] == sorted(range(8), key=lambda row: -expected[row])
        actual = [result.score for result in answer.results]
        assert_close(actual, sorted(expected, reverse=True), rtol=RTOL, atol=0)


def test_the_boxs_mask_is_the_oracles_rectangle(model, query):
    assert_close(box_mask(replace(query, boxes=(BOX,)), model), rectangle().float(), rtol=0, atol=0)
