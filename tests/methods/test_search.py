"""Searches among candidates: who they are, what is refused, and what an answer says of them."""

import sys
from dataclasses import replace
from threading import Event

import numpy as np
import pytest

from attribution.answers.report import _settings, to_json
from attribution.answers.run import Run
from attribution.diffusion.pipeline import Model
from attribution.errors import InputError, Stopped
from attribution.methods import answer, attribute, check_settings
from attribution.methods.accepted import POOL
from attribution.methods.answer import AttributeSettings
from attribution.methods.candidates import first, pooled, used_sources
from attribution.methods.searched import Searched
from attribution.query.encoded import encode
from attribution.unlearning.best import least
from attribution.unlearning.race import RaceSettings
from attribution.unlearning.step import UnlearnSettings

QUICK = UnlearnSettings(timesteps=2, noises=1, step_size=0.3)
CELLS = 16  # views x noises of the tiny index
SMALL = AttributeSettings(top_k=2, unlearn=QUICK, batch=6, race=RaceSettings(pool=5))


@pytest.fixture
def few_typical(monkeypatch):
    """Two training images stand for all, so that a search among eight has something to find."""
    monkeypatch.setattr(sys.modules["attribution.methods.unlearning"], "TYPICAL", 2)


def found(model, index, query, settings, stop=None):
    *progress, last = attribute(model, index, query, settings, stop)
    made = [step.evaluations for step in progress]
    assert made == sorted(made)
    assert all(step.evaluations <= step.total for step in progress)
    assert progress[-1].evaluations == progress[-1].total == last.evaluations
    return last


@pytest.mark.usefixtures("few_typical")
@pytest.mark.parametrize("method", ["unlearning", "unlearning+", "unlearning-sgd"])
def test_the_first_of_a_search_have_the_exhaustive_scores(model32, full_index, query, method):
    asked = replace(SMALL, method=method, unlearn=replace(QUICK, step_size=None))
    last = found(model32, full_index, query, asked)
    whole = found(model32, full_index, query, replace(asked, top_k=8, exhaustive=True, race=RaceSettings()))
    expected = {result.row: result for result in whole.results}
    for result in last.results:
        ours, theirs = (each.score for each in (result, expected[result.row]))
        assert ours == pytest.approx(theirs, rel=1e-3, abs=2e-5)
        assert len(result.losses) == CELLS // 2
    assert last.typical == pytest.approx(whole.typical, rel=1e-3, abs=2e-5)
    assert (last.search.how, last.search.pool, last.search.sources) == ("candidates", 5, ("d-trak", "influence"))
    assert Model.sha256.func(model32) == model32.sha256


@pytest.mark.usefixtures("few_typical")
@pytest.mark.parametrize("noise_seed", [None, 7])
def test_as_many_predictions_are_made_as_are_counted(model32, full_index, query, monkeypatch, noise_seed):
    settings = check_settings(model32, full_index, replace(SMALL, batch=1, noise_seed=noise_seed))
    asked, made, predict = encode(model32, query), [], model32.predict
    monkeypatch.setattr(model32, "predict", lambda noisy, *given: (made.append(len(noisy)), predict(noisy, *given))[1])
    *_, last = answer(model32, full_index, asked, settings)
    assert last.evaluations == sum(made)


@pytest.mark.usefixtures("few_typical")
@pytest.mark.parametrize("batch", [1, 5, 64])
def test_an_answer_does_not_depend_on_the_batch_size(model32, full_index, query, batch):
    ours, theirs = (found(model32, full_index, query, replace(SMALL, batch=size)) for size in (6, batch))
    assert ours.rows == theirs.rows
    assert (ours.search, ours.evaluations) == (theirs.search, theirs.evaluations)


@pytest.mark.usefixtures("few_typical")
def test_a_stop_in_the_midst_leaves_the_model_as_it_was(model32, full_index, query):
    stop = Event()
    steps = attribute(model32, full_index, query, SMALL, stop)
    while not next(steps).results:
        pass
    stop.set()
    with pytest.raises(Stopped):
        list(steps)
    assert Model.sha256.func(model32) == model32.sha256


def test_the_default_is_a_search_among_candidates_and_is_recorded_whole(model32, full_index):
    used = check_settings(model32, full_index, AttributeSettings(unlearn=QUICK))
    assert used.race.pool == min(POOL, len(full_index))
    assert used.race.budget >= least(used.race.pool, used.k, CELLS)
    assert check_settings(model32, full_index, used) == used


def test_an_index_without_gradients_halves_everyone_and_says_so(model32, index32, query):
    last = found(model32, index32, query, AttributeSettings(top_k=2, unlearn=QUICK, batch=6))
    assert (last.settings.race.pool, last.search.how) == (0, "halving")
    assert "because the index holds no projected gradients" in to_json(last)["search"]["sentence"]


def test_halving_may_be_chosen_and_exhaustive_stays_as_it_is(model32, full_index, query):
    halved = found(model32, full_index, query, replace(SMALL, race=RaceSettings(pool=0)))
    assert (halved.search.how, halved.search.lacking) == ("halving", False)
    assert "because" not in halved.search.sentence
    whole = found(model32, full_index, query, replace(SMALL, exhaustive=True, race=RaceSettings()))
    assert (whole.search.how, whole.settings.race) == ("exhaustive", RaceSettings())


@pytest.mark.parametrize(
    ("race", "told"),
    [
        (RaceSettings(pool=9), r"race_pool = 9 is not possible; accepted are 2, as many as are looked for, to 8"),
        (RaceSettings(pool=1), "race_pool = 1 is not possible; accepted are 2, as many as are looked for, to 8"),
        (RaceSettings(pool=-1), "race_pool = -1 is not possible"),
        (RaceSettings(budget=0), r"race_budget = 0 is not possible; accepted are numbers from 38: a look at each of 8"),
        (RaceSettings(pool=5, budget=34), "race_budget = 34 is not possible; accepted are numbers from 35"),
        (RaceSettings(confidence=1.0), "race_confidence = 1 is not possible"),
        (RaceSettings(confidence=float("nan")), "race_confidence = nan is not possible"),
        (RaceSettings(pool=5, keep=0.5), "--race_keep is of halving, which a race among 5 candidates is not"),
        (RaceSettings(pool=0, budget=50), "halving does not use --race_budget"),
        (RaceSettings(survivors=3, confidence=0.9), "halving does not use --race_confidence"),
    ],
)
def test_what_no_search_can_have_is_refused_before_any_work(model32, full_index, query, race, told):
    with pytest.raises(InputError, match=told):
        attribute(model32, full_index, query, replace(SMALL, race=race))


def test_a_pool_without_gradients_is_refused_and_what_to_add_is_told(model32, index32, query):
    with pytest.raises(InputError, match=r"holds no gradients/d-trak; .* `python -m attribution index .* --gradients"):
        attribute(model32, index32, query, SMALL)


def test_influence_gives_no_candidates_where_other_weights_are_unlearned(model32, full_index):
    other = replace(SMALL, unlearn=replace(QUICK, weights="cross-attn"))
    used = [check_settings(model32, full_index, settings) for settings in (SMALL, other)]
    assert [used_sources(full_index, each) for each in used] == [("d-trak", "influence"), ("d-trak",)]


# Runs that an earlier version kept


def test_settings_of_an_earlier_run_are_halving_and_keep_its_id(model32, full_index, query):
    settings = check_settings(model32, full_index, replace(SMALL, race=RaceSettings(pool=0)))
    last = found(model32, full_index, query, settings)
    told = to_json(last)["settings"]
    for name in ("pool", "budget", "confidence"):
        del told["race"][name]
    assert _settings(told) == settings
    again = replace(last, settings=replace(settings, race=RaceSettings(survivors=settings.race.survivors)))
    assert Run((again,)).id == Run((last,)).id
    among = replace(last, settings=check_settings(model32, full_index, SMALL))
    assert Run((among,)).id != Run((last,)).id


# Candidates


def test_candidates_are_the_first_of_each_in_turns():
    one, other = np.array([5.0, 4, 3, 2, 1, 0]), np.array([0.0, 0, 9, 8, 7, 0])
    assert pooled({"one": one, "other": other}, 4) == [0, 2, 1, 3]
    assert pooled({"one": one}, 3) == [0, 1, 2]
    assert sorted(pooled({"one": one, "other": other}, 6)) == list(range(6))
    assert pooled({"one": one, "other": other}, 1) == [0]


def test_the_first_rows_are_those_of_a_full_sort_and_ties_go_to_the_earlier():
    scores = np.random.default_rng(0).integers(0, 50, 500).astype(float)
    scores[::7] += 0.5
    for count in (1, 10, 500):
        ours = first(scores, count)
        assert [scores[row] for row in ours] == sorted(scores, reverse=True)[:count]


@pytest.mark.parametrize(
    ("sampled", "entered", "expected"), [(29, 0, 0.0981), (29, 1, 0.1532), (29, 29, 1.0), (0, 0, None), (1, 0, 0.95)]
)
def test_the_bound_on_what_was_left_out(sampled, entered, expected):
    found = Searched("candidates", 4096, 10, ("d-trak",), 256, sampled, entered, "settled", 0.95)
    assert found.missed == (expected if expected is None else pytest.approx(expected, abs=1e-3))
    assert ("belong there" in found.sentence) == (expected is not None)


def test_the_bound_holds_in_nineteen_cases_of_twenty():
    rng, shares = np.random.default_rng(1), np.repeat([0.01, 0.05, 0.2], 400)
    bounds = [Searched("candidates", 999, 1, ("x",), 9, 30, int(rng.binomial(30, share))).missed for share in shares]
    assert np.mean(np.array(bounds) >= shares) >= 0.95
