"""Generating again from the model that unlearned a picture."""

from dataclasses import replace
from threading import Event

import numpy as np
import pytest
from PIL import Image

from attribution.answers.forget import (
    STRONGEST,
    VISIBLE,
    WEAKEST,
    Regenerated,
    change,
    controls,
    regenerate,
    strengths,
)
from attribution.diffusion.pipeline import GenerateSettings
from attribution.errors import InputError, Stopped
from attribution.methods.answer import Progress
from attribution.query.query import Query
from attribution.scenes.truth import locate
from attribution.scenes.world import open_world
from attribution.unlearning.step import UnlearnSettings

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


def test_a_step_of_a_set_effect_can_be_generated_from_too(model32, index32, generated):
    unlearn = UnlearnSettings(rise=1e-3, steps=2, timesteps=3, noises=1)
    steps = list(regenerate(model32, index32, generated, unlearn, FEW, strength=1))
    progress = [step for step in steps if isinstance(step, Progress)]
    assert [step.evaluations for step in progress] == sorted(step.evaluations for step in progress)
    assert progress[-1].evaluations == progress[-1].total
    assert len(steps) - len(progress) == 3


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


def test_the_weakest_step_that_shows_is_taken(model32, index32, generated, monkeypatch):
    tried = []

    def seen(before, after, mask=None):
        tried.append(pixels(after))
        return VISIBLE if len(tried) == 3 else VISIBLE / 2

    monkeypatch.setattr("attribution.answers.forget.change", seen)
    steps = list(regenerate(model32, index32, generated, generate=FEW))
    first, *others = (step for step in steps if isinstance(step, Regenerated))
    assert first.strength == WEAKEST * 4
    assert first.inside == VISIBLE
    assert {each.strength for each in others} == {first.strength}
    assert np.array_equal(tried[2], pixels(first.after))
    assert len(tried) == 3 + len(others)
    *_, last = (step for step in steps if isinstance(step, Progress))
    assert last.evaluations == last.total


def test_the_search_ends_at_the_strongest(model32, index32, generated, monkeypatch):
    monkeypatch.setattr("attribution.answers.forget.change", lambda *_: 0.0)
    first, *_ = (s for s in regenerate(model32, index32, generated, generate=FEW) if isinstance(s, Regenerated))
    assert first.strength == STRONGEST
    assert strengths(None) == [0.25, 0.5, 1, 2, 4, 8, 16]
    assert strengths(3.0) == [3.0]


def test_a_step_of_some_strength_is_that_many_times_the_step(model32, index32, generated):
    """One step of twice the size is the step of size one, twice as long."""
    double = UnlearnSettings(step_size=2 * UnlearnSettings().alpha)
    twice, larger = (
        next(s for s in regenerate(model32, index32, generated, *how) if isinstance(s, Regenerated))
        for how in ((None, FEW, 60.0), (double, FEW, 30.0))
    )
    assert np.abs(pixels(twice.after) - pixels(larger.after)).max() <= 1
    assert twice.inside == twice.change == change(twice.before, twice.after) > 0


def test_a_change_is_weighted_by_the_region():
    black, white = (Image.new("RGB", (4, 4), colour) for colour in ("black", "white"))
    half = black.copy()
    half.paste(white.crop((0, 0, 2, 4)), (0, 0))
    assert change(black, half) == 0.5
    assert change(black, half, np.array([[1.0, 0.0]])) == 1.0
    assert change(black, half, np.array([[0.0, 1.0]])) == 0.0
    assert change(black, half, np.array([[0.75, 0.25]])) == pytest.approx(0.75)


def test_on_the_embedded_model_the_region_changes_and_the_controls_stay():
    model, index = open_world()
    prompt = "a flat drawing of a red apple and a motorcycle on a blue background"
    picture = model.generate(prompt, 7)
    box = locate(picture, "motorcycle", "flat")
    assert box is not None
    query = Query(prompt, picture, 7, (box,))
    this, *others = (step for step in regenerate(model, index, query) if isinstance(step, Regenerated))
    assert VISIBLE <= this.inside < 0.3
    assert this.strength <= 4
    assert max(each.change for each in others) < 0.03
