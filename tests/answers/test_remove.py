"""Generating again from the model that unlearned training images."""

from threading import Event

import numpy as np
import pytest
import torch
from near import assert_close

from attribution.answers.forget import VISIBLE, Regenerated, controls
from attribution.answers.remove import (
    CHANCE,
    STRONGEST,
    WEAKEST,
    Named,
    by_chance,
    regenerate_without,
    removal_settings,
    unlearn_rows,
)
from attribution.diffusion.loss import denoising_loss
from attribution.diffusion.pipeline import GenerateSettings
from attribution.diffusion.weights import unlearned
from attribution.errors import InputError, Stopped
from attribution.methods import attribute
from attribution.methods.answer import AttributeSettings, Progress
from attribution.query.query import Query
from attribution.scenes.truth import locate
from attribution.scenes.world import open_world
from attribution.unlearning.step import UnlearnSettings, query_bank

FEW = GenerateSettings(steps=3)
SMALL = UnlearnSettings(timesteps=4, noises=1, batch=3)
NAMED, BESIDE = Named("d-trak", (1, 4)), Named(CHANCE, (0, 6))


@pytest.fixture
def generated(model32):
    prompt = "a red bird and a blue key"
    return Query(prompt, model32.generate(prompt, 5, FEW), 5)


def weights_of(model):
    return {name: value.clone() for name, value in model.unet.state_dict().items()}


def pixels(image):
    return np.asarray(image, np.float32)


def without(model, index, query, named=NAMED, beside=BESIDE, **asked):
    return regenerate_without(model, index, query, named, beside, SMALL, FEW, **asked)


def test_the_picture_without_each_and_two_controls(model32, index32, generated):
    before = weights_of(model32)
    steps = list(without(model32, index32, generated, strength=100))
    made = [step for step in steps if isinstance(step, Regenerated)]
    progress = [step for step in steps if isinstance(step, Progress)]
    others = controls(generated.prompt, index32.captions)
    assert [each.prompt for each in made] == [generated.prompt, generated.prompt, *others]
    assert {each.strength for each in made} == {100}
    for each in made:
        assert np.array_equal(pixels(each.before), pixels(model32.generate(each.prompt, 5, FEW)))
        assert not np.array_equal(pixels(each.before), pixels(each.after))
    assert not np.array_equal(pixels(made[0].after), pixels(made[1].after))
    assert [step.evaluations for step in progress] == sorted(step.evaluations for step in progress)
    assert progress[-1].evaluations == progress[-1].total
    assert all((value == before[name]).all() for name, value in model32.unet.state_dict().items())


def test_each_of_two_sets_is_taken_from_the_model_as_it_was(model32, index32, generated):
    """What stands beside does not depend on what was taken away first."""

    def pictures(*sets):
        made = without(model32, index32, generated, *sets, strength=100)
        return [pixels(step.after) for step in made if isinstance(step, Regenerated)]

    one, other = pictures(NAMED, BESIDE), pictures(BESIDE, NAMED)
    assert np.array_equal(one[0], other[1])
    assert np.array_equal(one[1], other[0])
    assert not np.array_equal(one[2], other[2])  # controls are of the first


def test_the_weakest_step_that_shows_is_taken_for_both(model32, index32, generated, monkeypatch):
    tried = []

    def seen(before, after, mask=None):
        tried.append(pixels(after))
        return VISIBLE if len(tried) == 3 else VISIBLE / 2

    monkeypatch.setattr("attribution.answers.forget.change", seen)
    steps = list(without(model32, index32, generated))
    first, *others = (step for step in steps if isinstance(step, Regenerated))
    assert first.strength == WEAKEST * 4
    assert {each.strength for each in others} == {first.strength}
    assert np.array_equal(tried[2], pixels(first.after))
    *_, last = (step for step in steps if isinstance(step, Progress))
    assert last.evaluations == last.total


def test_the_search_ends_at_the_strongest(model32, index32, generated, monkeypatch):
    monkeypatch.setattr("attribution.answers.forget.change", lambda *_: 0.0)
    first, *_ = (step for step in without(model32, index32, generated) if isinstance(step, Regenerated))
    assert first.strength == STRONGEST


@pytest.mark.parametrize("after", [0, 2, 4, 6, 8])
def test_a_stop_leaves_the_weights_as_they_were(model32, index32, generated, after):
    before, stop = weights_of(model32), Event()
    steps = without(model32, index32, generated, stop=stop)
    for _ in range(after + 1):
        next(steps)
    stop.set()
    with pytest.raises(Stopped):
        next(steps)
    assert all((value == before[name]).all() for name, value in model32.unet.state_dict().items())


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"named": Named("dino", ())}, "0 of 8 images cannot be removed; accepted are 1 to all but one"),
        ({"beside": Named(CHANCE, tuple(range(8)))}, "8 of 8 images cannot be removed"),
        ({"named": Named("dino", (2, 8))}, "there is no row 8; accepted are 0 to 7"),
        ({"named": Named("dino", (-1,))}, "there is no row -1"),
        ({"strength": 0}, "a strength of 0 is not possible"),
        ({"strength": float("nan")}, "a strength of nan is not possible"),
    ],
)
def test_what_is_not_possible_is_refused_before_any_work(model32, index32, generated, changed, said):
    with pytest.raises(InputError, match=said):
        without(model32, index32, generated, **changed)
    with pytest.raises(InputError, match="an upload has no seed"):
        without(model32, index32, Query(generated.prompt, generated.image))


def test_other_images_by_chance_are_as_many_and_none_of_the_named(index32):
    other = by_chance(index32, NAMED, 3)
    assert other == by_chance(index32, NAMED, 3)
    assert len(set(other.rows)) == 2
    assert not set(other.rows) & set(NAMED.rows)
    assert len(by_chance(index32, Named("dino", tuple(range(6))), 0).rows) == 2


def test_the_losses_of_what_is_taken_away_rise(model32, index32):
    """By as much as the gradient says, for a step so small that it is linear."""
    rows = [2, 5]
    settings = UnlearnSettings(step_size=1e-5, timesteps=6, noises=1)
    bank = query_bank(model32, settings)
    latents = index32.encoded.view(rows, (0,))[:, 0]
    text = model32.encode_text([index32.captions[row] for row in rows])

    def losses():
        with torch.inference_mode():
            return denoising_loss(model32, latents, text, bank).double().mean(1)

    before = losses()
    with unlearned(model32, index32.weights) as weights:
        list(unlearn_rows(model32, index32, rows, settings, weights))
        assert (losses() > before).all()
    assert_close(losses(), before, rtol=0, atol=0)


def test_a_rise_is_of_a_query_alone(model32, index32):
    with (
        unlearned(model32, index32.weights) as weights,
        pytest.raises(InputError, match=r"a rise of 0\.1 is of a query"),
    ):
        next(unlearn_rows(model32, index32, [1], UnlearnSettings(rise=0.1), weights))


def test_the_step_is_with_ek_fac_where_the_index_holds_it(model32, index32, full_index):
    assert removal_settings(model32, index32).curvature == "diagonal"
    assert removal_settings(model32, full_index).curvature == "ek-fac"


def test_on_the_embedded_model_the_named_images_matter_and_random_ones_do_not():
    model, index = open_world()
    prompt = "a flat drawing of a red apple and a motorcycle on a blue background"
    picture = model.generate(prompt, 7)
    box = locate(picture, "motorcycle", "flat")
    assert box is not None
    query = Query(prompt, picture, 7, (box,))
    *_, answer = attribute(model, index, query, AttributeSettings("d-trak", 10))
    named = Named("d-trak", tuple(result.row for result in answer.results))
    made = regenerate_without(model, index, query, named, by_chance(index, named, 7))
    this, chance, *others = (step for step in made if isinstance(step, Regenerated))
    assert this.inside >= VISIBLE
    assert this.inside > 3 * chance.inside
    assert max(each.change for each in others) < this.inside / 2
