"""The noise floor: unrelated pictures, and the share of its own score that each one's first result reaches."""

import numpy as np
import pytest

from attribution.attribute import AttributeSettings, Query, attribute
from attribution.errors import InputError
from attribution.floor import FloorProgress, measure_floor, top_share, unrelated
from attribution.index import Index
from attribution.loss import denoising_loss
from attribution.methods import _encoded
from attribution.unlearn import UnlearnSettings


def test_the_floor_is_the_largest_share_and_is_kept_in_the_index(model32, plain_copy):
    index = Index.open(plain_copy)
    assert index.floor is None
    steps = [step for step in measure_floor(model32, index, 3) if isinstance(step, FloorProgress)]
    assert [step.done for step in steps] == [1, 2, 3]
    held = Index.open(plain_copy).floor
    assert held["shares"] == [step.share for step in steps]
    assert held["share"] == max(held["shares"])
    query = unrelated(0, model32.resolution)
    *_, answer = attribute(model32, index, query, AttributeSettings(top_k=1))
    assert top_share(answer) == pytest.approx(held["shares"][0])


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


def test_the_own_score_is_how_much_the_querys_loss_rose(model, index, query, monkeypatch):
    """Against the losses before, and after the same step without the context that takes it back."""
    from attribution import methods

    boxed = Query(query.prompt, query.image, None, ((0, 0, 16, 32),))
    latents, text, mask = _encoded(model, index, boxed)
    bank = index.bank(model)
    seen = []
    kept = methods.race

    def look(*given, **named):
        seen.append(denoising_loss(model, latents, text, bank, mask).mean().item())
        return kept(*given, **named)

    monkeypatch.setattr(methods, "race", look)
    before = denoising_loss(model, latents, text, bank, mask).mean().item()
    settings = AttributeSettings(top_k=3, unlearn=UnlearnSettings(step_size=1e-4, timesteps=20))
    *_, answer = attribute(model, index, boxed, settings)
    assert answer.own == pytest.approx(seen[0] - before, rel=1e-9)
    assert answer.own > 0
    assert answer.share(answer.results[0]) == pytest.approx(answer.results[0].score / answer.own)
