"""The noise floor: unrelated pictures, and the multiple of the typical score that each one's first result reaches."""

import math
from dataclasses import replace

import numpy as np
import pytest

from attribution.answers.floor import FloorProgress, measure_floor, top_multiple, unrelated
from attribution.errors import InputError
from attribution.index.index import Index
from attribution.methods import attribute
from attribution.methods.answer import AttributeSettings
from attribution.unlearning.race import RaceSettings
from attribution.unlearning.step import UnlearnSettings


def test_the_floor_is_the_largest_multiple_and_is_kept_in_the_index(model32, plain_copy):
    index = Index.open(plain_copy)
    assert index.floor is None
    steps = [step for step in measure_floor(model32, index, 3) if isinstance(step, FloorProgress)]
    assert [step.done for step in steps] == [1, 2, 3]
    held = Index.open(plain_copy).floor
    assert held["multiples"] == [step.multiple for step in steps]
    assert held["multiple"] == max(held["multiples"])
    query = unrelated(0, model32.resolution)
    *_, answer = attribute(model32, index, query, AttributeSettings(top_k=1))
    assert top_multiple(answer) == pytest.approx(held["multiples"][0])


def test_unrelated_pictures_are_noise_under_prompts_of_no_picture(index32):
    made = [unrelated(number, 32) for number in range(5)]
    assert not {query.prompt for query in made} & set(index32.captions)
    assert len({query.image.tobytes() for query in made}) == 5
    assert unrelated(3, 32).image.tobytes() == made[3].image.tobytes()
    roughness = [np.abs(np.diff(np.asarray(query.image, float), axis=1)).mean() for query in made]
    assert roughness[0] < roughness[2] < roughness[3]


@pytest.mark.parametrize("count", [0, -1, 101])
def test_a_count_that_is_not_possible(model32, index32, count):
    with pytest.raises(InputError, match="accepted are 1 to 100"):
        list(measure_floor(model32, index32, count))


@pytest.mark.parametrize("exhaustive", [True, False])
def test_the_typical_score_is_the_median_of_all_training_images(model, index, query, exhaustive):
    """Against all scores by an exhaustive query; a race knows them of its first round."""
    settings = AttributeSettings(top_k=8, exhaustive=True, unlearn=UnlearnSettings(step_size=0.1, timesteps=5))
    if not exhaustive:
        settings = replace(settings, exhaustive=False, race=RaceSettings(first_columns=8, survivors=2))
    *_, answer = attribute(model, index, query, settings)
    *_, everything = attribute(model, index, query, replace(settings, exhaustive=True))
    if exhaustive:
        assert answer.typical == pytest.approx(np.median([result.score for result in everything.results]))
    assert answer.typical is not None
    first = answer.results[0]
    for typical, multiple in ((first.score / 3, 3.0), (0.0, math.inf if first.score > 0 else 0.0), (None, None)):
        assert replace(answer, typical=typical).multiple(first) == (multiple and pytest.approx(multiple))
