"""Unlearning asked by its effect, and with other noises than the index's own."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from conftest import CAPTIONS, build_all, random_picture
from near import assert_close

from attribution.diffusion.noise import NoiseSettings, drawn_anew
from attribution.diffusion.pipeline import Model
from attribution.diffusion.weights import unlearned
from attribution.index.data import DataSettings
from attribution.index.index import Index
from attribution.index.work import BuildSettings
from attribution.methods import answer as answer_encoded
from attribution.methods import attribute, check_settings, fitting
from attribution.methods.answer import AttributeSettings, Attribution
from attribution.methods.unlearning import unlearn_query
from attribution.query.encoded import encode
from attribution.unlearning.fisher import FisherSettings
from attribution.unlearning.race import RaceSettings
from attribution.unlearning.rise import trial_bank
from attribution.unlearning.score import training_losses
from attribution.unlearning.step import Curvature, UnlearnSettings, query_bank, query_loss

QUICK = UnlearnSettings(timesteps=4, noises=1, batch=3)
SETTINGS = AttributeSettings(top_k=8, unlearn=QUICK, batch=6)
TIGHT = RaceSettings(keep=0.5, first_columns=1, growth=2.0, survivors=3)


def answer(model, index, query, settings):
    *progress, last = attribute(model, index, query, settings)
    assert isinstance(last, Attribution)
    assert [step.evaluations for step in progress] == sorted(step.evaluations for step in progress)
    assert progress[-1].evaluations == progress[-1].total == last.evaluations
    return last


def scores(found):
    return [(result.row, result.score, result.low, result.high, result.losses) for result in found.results]


def moved(model, index, query, settings):
    """How far unlearning moves the weights, in their norm; and by what share the query's loss rises on the trials."""
    asked, few = encode(model, query, index.center_crop), trial_bank(query_bank(model, settings))

    def loss():
        return query_loss(model, asked.latents, asked.text, few, asked.mask, 4)

    before = loss()
    with unlearned(model, index.weights) as weights:
        start = torch.cat([weight.flatten().clone() for weight in weights.values()])
        for _ in unlearn_query(model, index, asked, settings, weights):
            pass
        change = torch.cat([weight.flatten() for weight in weights.values()]) - start
        return float(change.norm() / start.norm()), loss() / before - 1


# By its effect


@pytest.mark.parametrize("curvature", ["diagonal", "ek-fac", "none"])
def test_the_querys_loss_rises_by_the_share_that_is_asked_for(model, exact_index, query, curvature: Curvature):
    for steps in (1, 3):
        settings = replace(QUICK, rise=1e-3, steps=steps, curvature=curvature)
        _, rise = moved(model, exact_index, query, settings)
        assert rise == pytest.approx(1e-3, rel=0.01)


def test_a_larger_rise_takes_larger_steps(model32, index32, query):
    found = [
        answer(model32, index32, query, replace(SETTINGS, unlearn=replace(QUICK, rise=rise))).step_sizes[0]
        for rise in (1e-4, 1e-3, 1e-2)
    ]
    assert found[0] < found[1] < found[2]


@pytest.mark.parametrize("method", ["unlearning", "unlearning+", "unlearning-sgd"])
def test_step_sizes_are_recorded_and_give_the_same_answer_when_they_are_named(model32, full_index, query, method):
    settings = fitting(replace(SETTINGS, unlearn=replace(QUICK, rise=1e-2)), method)
    found = answer(model32, full_index, query, settings)
    assert len(found.step_sizes) == 1
    assert (found.settings.unlearn.rise, found.settings.unlearn.step_size) == (1e-2, None)
    named = replace(settings, unlearn=replace(settings.unlearn, rise=None, step_size=found.step_sizes[0]))
    again = answer(model32, full_index, query, named)
    assert again.step_sizes == ()
    assert [result.row for result in again.results] == [result.row for result in found.results]
    expected = [result.score for result in found.results]
    assert_close([result.score for result in again.results], expected, rtol=1e-2, atol=1e-7)
    assert Model.sha256.func(model32) == model32.sha256


@pytest.fixture(scope="module")
def few_images(model32, tmp_path_factory):
    """An index of 24 pictures."""
    folder = tmp_path_factory.mktemp("few")
    rows = [{"file_name": f"{number}.png", "text": CAPTIONS[number % 8]} for number in range(24)]
    for number, row in enumerate(rows):
        random_picture(100 + number).save(folder / row["file_name"])
    (folder / "metadata.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    settings = BuildSettings(DataSettings(train_data_dir=folder), NoiseSettings(2), FisherSettings(samples=48), 24)
    return Index.open(build_all(tmp_path_factory.mktemp("few") / "index", model32, settings))


def test_few_training_images_do_not_make_the_weights_leap(model32, few_images, query):
    """With the fixed step size they move by several times their norm, as it is divided by the number of images."""
    leap, _ = moved(model32, few_images, query, QUICK)
    assert leap > 2
    for rise in (1e-3, 0.1, 1e6):
        for steps in (1, 4):
            distance, reached = moved(model32, few_images, query, replace(QUICK, rise=rise, steps=steps))
            assert distance <= 1.01
            assert reached <= 1.02 * rise
    distance, reached = moved(model32, few_images, query, replace(QUICK, rise=1e-3))
    assert distance < 0.5
    assert reached == pytest.approx(1e-3, rel=0.02)


# With other noises


def with_noises(model, index, seed):
    """The index as it would be had it been built with another seed of its noise bank."""
    own = index.manifest.settings
    noise = replace(own.noise, seed=seed)
    other = replace(index, manifest=replace(index.manifest, settings=replace(own, noise=noise)))
    bank = other.bank(model)
    chunks = training_losses(model, index.encoded, bank, range(len(index)), range(len(bank)), batch=6)
    return replace(other, base_losses=np.concatenate([losses for _, losses in chunks]))


@pytest.mark.parametrize("exhaustive", [True, False])
def test_a_noise_seed_answers_as_an_index_that_was_built_with_those_noises(model, index, query, exhaustive):
    race = RaceSettings() if exhaustive else TIGHT
    asked = replace(SETTINGS, top_k=3, exhaustive=exhaustive, race=race)
    plain = answer(model, index, query, asked)
    other = with_noises(model, index, drawn_anew(5, 7))
    precise = replace(index, base_losses=np.array(index.base_losses, np.float64))
    anew = answer(model, precise, query, replace(asked, noise_seed=7))
    built = answer(model, other, query, replace(asked, unlearn=replace(QUICK, seed=drawn_anew(1, 7))))
    assert [line[0] for line in scores(anew)] == [line[0] for line in scores(built)]
    for ours, theirs in zip(scores(anew), scores(built), strict=True):
        assert_close(np.array(ours[1:4]), np.array(theirs[1:4]), rtol=1e-6, atol=1e-12)
        assert_close(np.array(ours[4]), np.array(theirs[4]), rtol=1e-9, atol=0)
    assert_close(anew.typical, built.typical, rtol=1e-6, atol=0)
    assert scores(anew) != scores(plain)
    assert anew.evaluations - QUICK.predictions == 2 * (plain.evaluations - QUICK.predictions)
    assert Model.sha256.func(model) == model.sha256


def test_as_many_predictions_are_made_as_are_counted(model32, index32, query, monkeypatch):
    predict, made = model32.predict, []

    def counting(noisy, *args):
        made.append(len(noisy))
        return predict(noisy, *args)

    settings = replace(SETTINGS, exhaustive=True, noise_seed=1, unlearn=replace(QUICK, rise=1e-3, steps=2), batch=4)
    asked = encode(model32, query)
    monkeypatch.setattr(model32, "predict", counting)
    *_, last = answer_encoded(model32, index32, asked, check_settings(model32, index32, settings))
    assert last.evaluations == sum(made)


@pytest.mark.parametrize("method", ["trak", "d-trak"])
def test_a_noise_seed_moves_the_querys_gradient_alone(model32, full_index, query, method):
    asked = AttributeSettings(method=method, top_k=8)
    own = full_index.manifest.settings
    noise = replace(own.noise, seed=drawn_anew(own.noise.seed, 7))
    other = replace(full_index, manifest=replace(full_index.manifest, settings=replace(own, noise=noise)))
    *_, anew = attribute(model32, full_index, query, replace(asked, noise_seed=7))
    *_, built = attribute(model32, other, query, asked)
    *_, plain = attribute(model32, full_index, query, asked)
    assert scores(anew) == scores(built) != scores(plain)


def test_other_noise_seeds_and_other_banks_have_other_noises():
    seeds = {drawn_anew(own, by) for own in range(20) for by in (None, *range(20))}
    assert len(seeds) == 20 * 21
    assert drawn_anew(3, None) == 3
