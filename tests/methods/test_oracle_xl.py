"""SDXL against the oracle: what it reads of a text, losses, Fisher information, scores and pictures."""

import json
from types import SimpleNamespace

import numpy as np
import oracle
import pytest
import torch
from conftest import CAPTIONS, build_all, random_picture
from diffusers import StableDiffusionXLPipeline
from near import assert_close
from sdxl import save_tiny_xl

from attribution.diffusion.attention import word_map
from attribution.diffusion.noise import NoiseSettings
from attribution.diffusion.pipeline import GenerateSettings, Model
from attribution.index.data import DataSettings
from attribution.index.index import Index
from attribution.index.work import BuildSettings
from attribution.methods import attribute
from attribution.methods.answer import AttributeSettings
from attribution.unlearning.fisher import FisherSettings, Samples
from attribution.unlearning.step import UnlearnSettings

COUNT, SHAPE = 24, (4, 8, 8)
UNLEARN = UnlearnSettings(step_size=0.3, timesteps=2, noises=2, seed=8, batch=3)


def named(number):
    return f"{CAPTIONS[number % 8]} and {number} more"


@pytest.fixture(scope="module")
def many(tmp_path_factory):
    """An imagefolder of 24 captioned pictures."""
    folder = tmp_path_factory.mktemp("many")
    for number in range(COUNT):
        random_picture(number).save(folder / f"p{number:02d}.png")
    rows = [{"file_name": f"p{number:02d}.png", "text": named(number)} for number in range(COUNT)]
    (folder / "metadata.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


@pytest.fixture(scope="module", params=["epsilon", "v_prediction"])
def world(request, many, tmp_path_factory, device):
    """A model in float64, its index, and a pipeline of the oracle's own with the losses and the information."""
    base = tmp_path_factory.mktemp(request.param)
    folder = save_tiny_xl(base / "model", prediction_type=request.param)
    model = Model.load(folder, device, torch.float64)
    settings = BuildSettings(
        DataSettings(train_data_dir=many),
        NoiseSettings(2, 1, 5),
        FisherSettings(samples=31, timesteps=3, seed=6),
        batch=5,
    )
    index = Index.open(build_all(base / "index", model, settings))
    pipe = StableDiffusionXLPipeline.from_pretrained(folder, dtype=torch.float64)
    pipe.unet.requires_grad_(False)
    for parameter in oracle.weights(pipe).values():
        parameter.requires_grad_(True)
    latents = torch.from_numpy(np.array(index.latents, np.float64))
    noises, drawn = oracle.draw(5, 2, 1, SHAPE, 1000), Samples.draw(COUNT, 2, 3, seed=6)
    samples = [drawn[number] for number in range(31)]
    return SimpleNamespace(
        model=model,
        index=index,
        pipe=pipe,
        latents=latents,
        noises=noises,
        losses=oracle.losses(pipe, latents, index.captions, noises),
        fisher=oracle.fisher(pipe, latents, index.captions, oracle.draw(6, 3, 1, SHAPE, 1000), samples),
    )


def test_a_text_is_read_as_diffusers_reads_it(world):
    prompts = ["a red bird", "a red apple " * 30, ""]
    text = world.model.encode_text(prompts)
    assert text.shape == (3, 12 + 2, 36)
    states, _, pooled, _ = world.pipe.encode_prompt(prompts, device="cpu", do_classifier_free_guidance=False)
    told = world.model.texts.conditions(text)
    assert_close(told["encoder_hidden_states"], states)
    assert_close(told["added_cond_kwargs"]["text_embeds"], pooled)
    sizes = world.pipe._get_add_time_ids((32, 32), (0, 0), (32, 32), torch.float64, 40)
    assert_close(told["added_cond_kwargs"]["time_ids"], sizes.expand(3, -1))


def test_losses_and_fisher_information_equal_the_oracles(world):
    assert_close(np.array(world.index.base_losses), world.losses.astype(np.float32), rtol=1e-6, atol=0)
    information = world.index.fisher
    assert information.keys() == world.fisher.keys()
    for name, expected in world.fisher.items():
        assert_close(information[name], expected, rtol=1e-6, atol=1e-6 * float(expected.mean()))


def test_scores_equal_the_oracles(world, query):
    settings = AttributeSettings(top_k=COUNT, exhaustive=True, unlearn=UNLEARN, batch=7)
    *_, answer = attribute(world.model, world.index, query, settings)
    x, text = oracle.see(world.pipe, query.image), oracle.read(world.pipe, query.prompt)
    start = {name: parameter.detach().clone() for name, parameter in oracle.weights(world.pipe).items()}
    noises = oracle.draw(8, 2, 2, SHAPE, 1000)
    oracle.unlearn(world.pipe, x, text, noises, world.fisher, 0.3, 0.1, COUNT, 1)
    after = oracle.losses(world.pipe, world.latents, world.index.captions, world.noises)
    for name, parameter in oracle.weights(world.pipe).items():
        parameter.data.copy_(start[name])
    expected = oracle.score(world.losses.astype(np.float32), after, skew=False)
    assert [result.row for result in answer.results] == sorted(range(COUNT), key=lambda row: -expected[row])
    actual = [result.score for result in answer.results]
    assert_close(actual, sorted(expected, reverse=True), rtol=1e-5, atol=1e-7)
    assert max(map(abs, expected)) > 1e-4


@pytest.mark.parametrize(("guidance", "zeros"), [(1.0, True), (4.0, True), (4.0, False)])
def test_a_picture_is_the_one_that_diffusers_makes(world, guidance, zeros):
    for pipe in (world.pipe, world.model.pipe):
        pipe.register_to_config(force_zeros_for_empty_prompt=zeros)
    how = {"num_inference_steps": 4, "guidance_scale": guidance, "height": 32, "width": 32}
    made = world.pipe("a red bird", generator=torch.Generator().manual_seed(3), **how).images[0]
    own = world.model.generate("a red bird", 3, GenerateSettings(steps=4, guidance=guidance))
    assert_close(*(torch.tensor(np.asarray(each)).int() for each in (own, made)), atol=1, rtol=0)


def test_a_words_map_is_of_the_states_alone(world, query):
    latents = world.model.encode_images(torch.zeros(1, 3, 32, 32))
    assert word_map(world.model, latents, query.prompt, "bird").shape == (8, 8)
