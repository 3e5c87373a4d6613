"""Generating again from the model that unlearned a picture."""

from dataclasses import replace
from threading import Event

import numpy as np
import pytest

from attribution.answers.forget import Regenerated, controls, regenerate
from attribution.diffusion.pipeline import GenerateSettings
from attribution.errors import InputError, Stopped
from attribution.methods.answer import Progress
from attribution.query.query import Query
from attribution.scenes.world import open_world

FEW = GenerateSettings(steps=3)


@pytest.fixture
def generated(model32):
    prompt = "a red bird and a blue key"
    return Query(prompt, model32.generate(prompt, 5, FEW), 5)


def weights_of(model):
    return {name: value.clone() for name, value in model.unet.state_dict().items()}


def pixels(image):
    return np.asarray(image, np.float32)


def test_the_picture_and_two_controls_before_and_after(model32, index32, generated):
    before = weights_of(model32)
    steps = list(regenerate(model32, index32, generated, generate=FEW, strength=100))
    made = [step for step in steps if isinstance(step, Regenerated)]
    progress = [step for step in steps if isinstance(step, Progress)]
    assert [each.prompt for each in made] == [generated.prompt, *controls(generated.prompt, index32.captions)]
    assert len(made) == 3
    for each in made:
        assert np.array_equal(pixels(each.before), pixels(model32.generate(each.prompt, 5, FEW)))
    assert not np.array_equal(pixels(made[0].before), pixels(made[0].after))
    assert [step.evaluations for step in progress] == sorted(step.evaluations for step in progress)
    assert progress[-1].evaluations == progress[-1].total
    assert all((value == before[name]).all() for name, value in model32.unet.state_dict().items())


def test_controls_share_few_words():
    captions = ["a cat and a dog", "a dog", "the sun shines", "a cat", "moon over water", "moon over water"]
    assert set(controls("a cat and a dog", captions)) == {"the sun shines", "moon over water"}
    assert controls("a cat", ["a cat"]) == []


@pytest.mark.parametrize("after", [0, 1, 4])
def test_a_stop_leaves_the_weights_as_they_were(model32, index32, generated, after):
    before, stop = weights_of(model32), Event()
    steps = regenerate(model32, index32, generated, generate=FEW, stop=stop)
    for _ in range(after + 1):
        next(steps)
    stop.set()
    with pytest.raises(Stopped):
        next(steps)
    assert all((value == before[name]).all() for name, value in model32.unet.state_dict().items())


@pytest.mark.parametrize("strength", [0, -1, float("nan"), float("inf"), 1001])
def test_strengths_that_are_not_possible(model32, index32, generated, strength):
    with pytest.raises(InputError, match="accepted are numbers above 0, up to 1000"):
        regenerate(model32, index32, generated, strength=strength)


def test_an_upload_cannot_be_generated_again(model32, index32, generated):
    with pytest.raises(InputError, match="an upload has no seed"):
        regenerate(model32, index32, replace(generated, seed=None))


def test_on_the_embedded_model_the_picture_goes_and_a_control_stays():
    model, index = open_world()
    prompt = "a flat drawing of a red apple and a motorcycle on a blue background"
    query = Query(prompt, model.generate(prompt, 7), 7)
    made = [step for step in regenerate(model, index, query) if isinstance(step, Regenerated)]
    changes = [float(np.abs(pixels(each.after) - pixels(each.before)).mean()) for each in made]
    assert changes[0] > 10  # of 255
    assert min(changes[1:]) < changes[0] / 2
