"""Searches among candidates: who they are, what is refused, and what an answer says of them."""

import json
import shutil
import sys
from dataclasses import asdict, replace
from threading import Event

import numpy as np
import pytest
from scipy.stats import trim_mean

from attribution.answers.report import _settings, to_json
from attribution.answers.run import Run, _asked
from attribution.diffusion.pipeline import Model
from attribution.errors import InputError, Stopped
from attribution.index.index import Index
from attribution.index.manifest import Manifest
from attribution.methods import answer, attribute, check_settings
from attribution.methods.accepted import POOL, POOL_EACH
from attribution.methods.answer import AttributeSettings, Clock
from attribution.methods.budgets import calls
from attribution.methods.candidates import SAMPLED, beside, best_rows, choose, chosen_predictions, in_turns, sources
from attribution.methods.searched import Searched
from attribution.methods.unlearning import predicted
from attribution.query.encoded import encode
from attribution.unlearning.race import AMONG, EVERYONE, RaceSettings, schedule
from attribution.unlearning.step import UnlearnSettings

QUICK = UnlearnSettings(timesteps=2, noises=1, step_size=0.3)
CELLS = 16  # views x noises of the tiny index
SMALL = AttributeSettings(top_k=2, unlearn=QUICK, batch=6, race=RaceSettings(pool=5, survivors=3))


@pytest.fixture
def one_beside(monkeypatch):
    """One training image by chance is looked at beside the pool."""
    for module in ("candidates", "unlearning"):
        monkeypatch.setattr(sys.modules[f"attribution.methods.{module}"], "SAMPLED", 1)


ALONE = {"d-trak": ["d-trak"], "influence+": ["influence+"], "both": ["influence+", "d-trak"]}


@pytest.fixture(params=ALONE)
def sourced(request, full_folder):
    """The index that holds everything, but for the gradients that it has no candidates by; and the sources it has."""
    folder, manifest = full_folder, Manifest.read(full_folder)
    lacking = [source for source in ALONE["both"] if source not in ALONE[request.param]]
    if lacking:
        folder = full_folder.parent / f"candidates-by-{request.param}"
        if not folder.exists():
            shutil.copytree(full_folder, folder)
            for source in lacking:
                manifest.lacking(f"gradients/{source}").write(folder)
                (folder / f"gradients/{source}.npy").unlink()
    return Index.open(folder), ALONE[request.param]


def found(model, index, query, settings, stop=None):
    *progress, last = attribute(model, index, query, settings, stop)
    made = [step.evaluations for step in progress]
    assert made == sorted(made)
    assert progress[-1].evaluations == progress[-1].total == last.evaluations
    return last


@pytest.mark.usefixtures("one_beside")
@pytest.mark.parametrize("method", ["unlearning", "unlearning+", "unlearning-sgd"])
def test_the_first_of_a_search_have_the_exhaustive_scores(model32, sourced, query, method):
    full_index, named = sourced
    asked = replace(SMALL, method=method, unlearn=replace(QUICK, step_size=None))
    last = found(model32, full_index, query, asked)
    whole = found(model32, full_index, query, replace(asked, top_k=8, exhaustive=True, race=RaceSettings()))
    expected = {result.row: result for result in whole.results}
    for result in last.results:
        ours, theirs = (each.score for each in (result, expected[result.row]))
        assert ours == pytest.approx(theirs, rel=1e-3, abs=2e-5)
        assert len(result.losses) == CELLS // 2
    assert last.typical == pytest.approx(whole.typical, rel=1e-3, abs=2e-5)
    assert (last.search.how, last.search.pool, last.search.source) == ("candidates", 5, " and ".join(named))
    assert (last.search.sampled, last.search.outside, last.ranked) == (1, 3, 3)
    assert Model.sha256.func(model32) == model32.sha256


@pytest.mark.usefixtures("one_beside")
def test_the_first_of_a_search_by_the_ensemble_have_the_exhaustive_scores_in_the_likelier_view(
    model32, full_index, query, monkeypatch
):
    monkeypatch.setattr("attribution.unlearning.foreseen.ANCHORS", 3)  # so many are among the candidates
    asked = replace(SMALL, method="ensemble", unlearn=replace(QUICK, step_size=None))
    last = found(model32, full_index, query, asked)
    halved = found(model32, full_index, query, replace(asked, race=RaceSettings(pool=0, survivors=4)))
    whole = found(model32, full_index, query, replace(asked, top_k=8, exhaustive=True, race=RaceSettings()))
    *_, foreseen = attribute(model32, full_index, query, AttributeSettings("influence+", top_k=8))
    expected, likely = ({each.row: each for each in one.results} for one in (whole, foreseen))
    for result in (*last.results, *halved.results):
        theirs = expected[result.row]
        assert result.score == pytest.approx(theirs.score, rel=1e-3, abs=2e-5)
        assert result.flip == theirs.flip == likely[result.row].flip
        assert len(result.losses) == CELLS // 2
    assert last.typical == pytest.approx(whole.typical, rel=1e-3, abs=2e-5)
    assert halved.typical == pytest.approx(whole.typical, rel=1e-3, abs=2e-5)
    for one in (last, halved, whole):
        assert one.search.how in ("candidates", "halving", "exhaustive")
        assert one.evaluations < 8 * CELLS  # one view is measured


def test_the_ensemble_adds_one_multiple_of_influence_to_trimmed_means(model32, full_index, query):
    asked = replace(SMALL, method="ensemble", unlearn=replace(QUICK, step_size=None), top_k=8)
    whole = found(model32, full_index, query, replace(asked, exhaustive=True, race=RaceSettings()))
    *_, alone = attribute(model32, full_index, query, AttributeSettings("influence+", top_k=8))
    foreseen = {each.row: each.score for each in alone.results}
    units = []
    for result in whole.results:
        before, after = np.array(result.losses).T
        units.append((2 * result.score - trim_mean(after - before, 0.2)) / foreseen[result.row])
    assert units == pytest.approx([units[0]] * 8, rel=1e-4)
    assert units[0] > 0


@pytest.mark.parametrize("race", [SMALL.race, RaceSettings(pool=0, survivors=3), None])
def test_what_is_foreseen_has_the_indexs_own_noises_however_it_is_searched(model32, full_index, query, race):
    asked = replace(SMALL, method="ensemble", unlearn=replace(QUICK, step_size=None), noise_seed=7)
    asked = replace(asked, race=race or RaceSettings(), exhaustive=race is None)
    shown = next(step.results for step in attribute(model32, full_index, query, asked) if step.results)
    *_, alone = attribute(model32, full_index, query, AttributeSettings("influence+", top_k=2))
    assert [(each.row, each.score) for each in shown] == [(each.row, each.score) for each in alone.results]


@pytest.mark.usefixtures("one_beside")
@pytest.mark.parametrize("race", [SMALL.race, RaceSettings(pool=0, survivors=3), None])
@pytest.mark.parametrize("noise_seed", [None, 7])
def test_the_ensemble_makes_as_many_predictions_as_are_counted(
    model32, full_index, query, monkeypatch, noise_seed, race
):
    asked = replace(SMALL, method="ensemble", unlearn=replace(QUICK, step_size=None), batch=1, noise_seed=noise_seed)
    asked = replace(asked, race=race or RaceSettings(), exhaustive=race is None)
    assert_counted(model32, full_index, query, monkeypatch, asked)


@pytest.mark.usefixtures("one_beside")
@pytest.mark.parametrize("noise_seed", [None, 7])
def test_as_many_predictions_are_made_as_are_counted(model32, sourced, query, monkeypatch, noise_seed):
    full_index, _ = sourced
    assert_counted(model32, full_index, query, monkeypatch, replace(SMALL, batch=1, noise_seed=noise_seed))


def assert_counted(model32, full_index, query, monkeypatch, asked):
    """What an answer says of its predictions is what the model was asked for, and what was foretold."""
    settings = check_settings(model32, full_index, asked)
    asked, made, predict = encode(model32, query), [], model32.predict
    monkeypatch.setattr(model32, "predict", lambda noisy, *given: (made.append(len(noisy)), predict(noisy, *given))[1])
    *_, last = answer(model32, full_index, asked, settings)
    assert last.evaluations == sum(made) == predicted(full_index, settings) == sum(calls(full_index, settings))


@pytest.mark.parametrize("batch", [1, 5, 64])
def test_an_answer_does_not_depend_on_the_batch_size(model32, sourced, query, batch):
    full_index, _ = sourced
    ours, theirs = (found(model32, full_index, query, replace(SMALL, batch=size)) for size in (6, batch))
    assert ours.rows == theirs.rows
    assert (ours.search, ours.evaluations) == (theirs.search, theirs.evaluations)


def test_a_first_estimate_is_there_before_any_loss_is_measured_and_stays_until_all_were(model32, sourced, query):
    full_index, named = sourced
    *progress, last = attribute(model32, full_index, query, SMALL)
    estimated = [step for step in progress if step.estimated]
    given = [list(attribute(model32, full_index, query, AttributeSettings(name, top_k=2)))[-1] for name in named]
    assert estimated[0].evaluations == given[0].evaluations  # nothing else
    first = given[0].rows[:2]
    assert {tuple(result.row for result in step.results) for step in estimated} == {first}
    assert {step.stage for step in estimated} == {"gradient", "unlearning", "scoring"}
    assert progress[progress.index(estimated[0]) :][: len(estimated)] == estimated  # it does not go away meanwhile
    measured = [step for step in progress if step.results and not step.estimated]
    assert progress[-len(measured) :] == measured
    assert measured[-1].results == last.results
    assert {step.estimate for step in progress if step.estimated or step.results} == {first}
    assert last.search.estimate == first


def test_an_estimate_is_scored_by_the_first_source(model32, sourced, query):
    full_index, named = sourced
    *progress, _ = attribute(model32, full_index, query, SMALL)
    shown = next(step for step in progress if step.estimated).results
    *_, alone = attribute(model32, full_index, query, AttributeSettings(named[0], top_k=2))
    assert [(each.row, each.score) for each in shown] == [(each.row, each.score) for each in alone.results]


@pytest.mark.parametrize("count", [1, 2, 5, 8])
def test_candidates_are_the_first_of_each_source_in_turns(model32, sourced, query, count):
    full_index, named = sourced
    assert sources(full_index) == named
    settings = check_settings(model32, full_index, replace(SMALL, top_k=1))
    total = chosen_predictions(full_index)
    steps = choose(model32, full_index, encode(model32, query), settings, count, Event(), Clock(), total)
    made = []
    while True:
        try:
            made.append(next(steps))
        except StopIteration as end:
            chosen = end.value
            break
    ranked = [
        list(list(attribute(model32, full_index, query, AttributeSettings(name, top_k=8)))[-1].rows) for name in named
    ]
    turns = [row for places in zip(*ranked, strict=True) for row in places]
    assert chosen.rows == list(dict.fromkeys(turns))[:count]
    assert [result.row for result in chosen.first] == ranked[0][:1]
    assert [step.evaluations for step in made] == [0, *[8] * len(named)]  # after the first source, the estimate is told
    assert [step.estimated for step in made] == [False, *[True] * len(named)]
    assert {step.total for step in made} == {total}
    assert total == 8 * len(named)


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
    assert used.race == RaceSettings(len(full_index), AMONG.keep, 1, AMONG.growth, AMONG.survivors)
    assert check_settings(model32, full_index, used) == used


def test_the_pool_grows_with_what_is_looked_for(model32, full_index, monkeypatch):
    monkeypatch.setattr(type(full_index), "__len__", lambda _: 10_000)
    pools = [
        check_settings(model32, full_index, AttributeSettings(top_k=k, unlearn=QUICK)).race.pool for k in (1, 10, 100)
    ]
    assert pools == [POOL, POOL, 100 * POOL_EACH]


def test_an_index_without_gradients_halves_everyone_and_says_so(model32, index32, query):
    last = found(model32, index32, query, AttributeSettings(top_k=2, unlearn=QUICK, batch=6))
    assert last.settings.race == RaceSettings(0, EVERYONE.keep, 1, EVERYONE.growth, EVERYONE.survivors)
    assert last.search.how == "halving"
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
        (RaceSettings(keep=0.0), "race_keep = 0 is not possible"),
        (RaceSettings(growth=float("nan")), "race_growth = nan is not possible"),
        (RaceSettings(survivors=0), "race_survivors = 0 is not possible"),
    ],
)
def test_what_no_search_can_have_is_refused_before_any_work(model32, full_index, query, race, told):
    with pytest.raises(InputError, match=told):
        attribute(model32, full_index, query, replace(SMALL, race=race))


def test_gradients_of_other_weights_than_the_indexs_give_no_candidates(model32, sourced, query, monkeypatch):
    index, named = sourced
    other = {key: replace(record, weights="attn") for key, record in index.artifacts.items() if "gradients" in key}
    monkeypatch.setattr(Index, "gradients", lambda _, name: other[f"gradients/{name}"])
    assert sources(index) == []
    told = "holds no gradients/d-trak" if named == ["influence+"] else "are of other weights than the index; add those"
    with pytest.raises(InputError, match=told):
        check_settings(model32, index, SMALL)
    assert check_settings(model32, index, replace(SMALL, race=RaceSettings())).race.pool == 0


def test_a_pool_without_gradients_is_refused_and_what_to_add_is_told(model32, index32, query):
    with pytest.raises(InputError, match=r"holds no gradients/d-trak; .* `python -m attribution index .* --gradients"):
        attribute(model32, index32, query, SMALL)


# Runs that an earlier version kept

EARLIER = {"keep": 0.125, "first_columns": 1, "growth": 3.0, "survivors": 64}


def test_settings_of_an_earlier_run_are_halving_and_keep_its_id(model32, full_index, query):
    settings = check_settings(model32, full_index, replace(SMALL, race=RaceSettings(pool=0)))
    last = found(model32, full_index, query, settings)
    told = to_json(last)["settings"]
    assert told["race"] == {"pool": 0, **EARLIER, "columns": ()}
    assert _settings({**told, "race": EARLIER}) == settings
    among = replace(last, settings=check_settings(model32, full_index, SMALL))
    assert Run((among,)).id != Run((last,)).id


def test_a_run_without_an_order_of_columns_has_the_id_of_those_that_knew_none(model32, full_index, query):
    last = found(model32, full_index, query, SMALL)
    told = to_json(last)["settings"]
    assert "columns" not in _asked(last.settings)["race"]
    assert _settings({**told, "race": {key: told["race"][key] for key in ("pool", *EARLIER)}}) == last.settings
    order = tuple(range(CELLS // 2))[::-1]
    ordered = replace(last, settings=replace(last.settings, race=replace(last.settings.race, columns=order)))
    assert Run((ordered,)).id != Run((last,)).id
    assert _settings(json.loads(json.dumps(to_json(ordered)["settings"]))) == ordered.settings


@pytest.mark.parametrize(("method", "exhaustive"), [("unlearning", True), ("clip", False)])
def test_an_earlier_run_without_a_race_may_be_asked_again(model32, full_index, method, exhaustive):
    settings = check_settings(model32, full_index, AttributeSettings(method, exhaustive=exhaustive))
    told = asdict(settings)
    earlier = _settings({**told, "race": EARLIER})
    assert earlier == settings
    assert check_settings(model32, full_index, earlier) == settings


# Candidates


def test_the_first_rows_are_those_of_a_full_sort_and_ties_go_to_the_earlier():
    scores = np.random.default_rng(0).integers(0, 50, 500).astype(float)
    scores[::7] += 0.5
    for count in (1, 10, 500):
        ours = best_rows(scores, count)
        assert [scores[row] for row in ours] == sorted(scores, reverse=True)[:count]


def test_rankings_are_taken_in_turns_each_row_once():
    assert in_turns([[0, 1, 2, 3]], 3) == [0, 1, 2]
    assert in_turns([[0, 1, 2, 3], [3, 0, 4, 5]], 4) == [0, 3, 1, 2]
    assert in_turns([[0, 1, 2, 3], [3, 0, 4, 5]], 5) == [0, 3, 1, 2, 4]
    assert in_turns([[0, 1, 2], [0, 1, 2]], 3) == [0, 1, 2]
    assert in_turns([[0, 1], [1, 0], [2, 3]], 4) == [0, 1, 2, 3]
    rng = np.random.default_rng(3)
    for count in (1, 7, 20):
        one, other = ([int(row) for row in rng.permutation(20)[:count]] for _ in range(2))
        every = dict.fromkeys(row for pair in zip(one, other, strict=True) for row in pair)
        assert in_turns([one, other], count) == list(every)[:count]


def test_images_by_chance_are_from_outside_the_pool_and_the_same_ones_each_time():
    pool = list(range(0, 4096, 3))
    sampled = beside(4096, pool)
    assert len(set(sampled)) == SAMPLED
    assert not set(sampled) & set(pool)
    assert sampled == beside(4096, pool)
    assert np.std(sampled) > 1000  # from everywhere
    assert set(beside(20, list(range(12)))) == set(range(12, 20))


def test_a_schedule_goes_on_with_as_many_whoever_takes_part_beside():
    alone, more = (schedule(512, 10, RaceSettings(pool=512), beside=count) for count in (0, 64))
    assert [each.images for each in alone] == [512, 256, 128, 64]
    assert [each.images for each in more] == [576, 256, 128, 64]


@pytest.mark.parametrize(
    ("sampled", "entered", "expected"), [(29, 0, 0.0981), (29, 1, 0.1532), (29, 29, 1.0), (0, 0, None), (1, 0, 0.95)]
)
def test_the_bound_on_what_was_left_out(sampled, entered, expected):
    found = Searched("candidates", 4096, 10, "d-trak", 256, sampled, entered)
    assert found.missed == (expected if expected is None else pytest.approx(expected, abs=1e-3))
    assert ("belong there" in found.sentence) == (expected is not None)


@pytest.mark.parametrize(
    ("source", "told"),
    [
        ("d-trak", "that d-trak ranks first were searched."),
        ("influence+", "that influence+ ranks first were searched."),
        ("influence+ and d-trak", "that influence+ and d-trak rank first were searched."),
    ],
)
def test_the_sentence_names_the_sources(source, told):
    found = Searched("candidates", 4096, 10, source, 512, 64, 1)
    assert found.sentence.startswith(f"The 512 of 4,096 training images {told} Of 64 others, ")


def test_the_bound_holds_in_nineteen_cases_of_twenty():
    rng, shares = np.random.default_rng(1), np.repeat([0.01, 0.05, 0.2], 400)
    bounds = [Searched("candidates", 999, 1, "x", 9, 30, int(rng.binomial(30, share))).missed for share in shares]
    assert np.mean(np.array(bounds) >= shares) >= 0.95
