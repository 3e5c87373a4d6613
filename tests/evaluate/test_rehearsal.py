"""Rehearsals of a tiny index: what is measured, what is kept, and what searches make of it."""

import shutil
from dataclasses import replace

import numpy as np
import pytest

from attribution.diffusion.pipeline import Model
from attribution.errors import IndexMismatch, InputError
from attribution.evaluate.queue import Queue
from attribution.evaluate.rehearsal import MEASURED, RehearsalSettings, query_of, rehearse
from attribution.index.index import SEARCH, Index
from attribution.index.manifest import Manifest
from attribution.methods import attribute, check_settings
from attribution.methods.answer import AttributeSettings
from attribution.methods.rehearsed import Rehearsed, noise_order, read_rehearsals, rehearsed
from attribution.unlearning.race import EVERYONE, RaceSettings
from attribution.unlearning.step import UnlearnSettings

SETTINGS = RehearsalSettings(pictures=2, candidates=6, top_k=2, mean=0.5, worst=0.5)
EVERY = RaceSettings(0, EVERYONE.keep, 1, EVERYONE.growth, EVERYONE.survivors)
QUICK = UnlearnSettings(timesteps=2, noises=1, rise=0.5)


@pytest.fixture
def own(full_folder, tmp_path):
    """A copy of the index that holds everything, beside its model."""
    folder = shutil.copytree(full_folder, full_folder.parent / f"rehearsed-{tmp_path.name}")
    yield Index.open(folder)
    shutil.rmtree(folder)


@pytest.mark.parametrize("method", ["ensemble", "unlearning+"])
def test_what_is_found_is_kept_and_searches_go_by_it(model32, own, query, method):
    settings = AttributeSettings(method, top_k=2, unlearn=QUICK)
    before = check_settings(model32, own, settings)
    *told, found = rehearse(model32, own, SETTINGS, method)
    assert isinstance(found, Rehearsed)
    assert any("picture 2 of 2" in line for line in told)
    assert rehearsed(own, method) == found
    assert (found.pictures, found.candidates, found.top_k, found.race.pool) == (2, 6, 2, 6)
    assert 0 <= found.worst <= found.mean <= 1
    used = check_settings(model32, own, replace(settings, top_k=1)).race
    assert used == replace(found.race, pool=8)  # at least POOL_EACH for each that is looked for
    assert before.race.columns == ()
    *_, last = attribute(model32, own, query, settings)
    assert last.settings.race.columns == found.race.columns
    assert Model.sha256.func(model32) == model32.sha256


def test_every_method_has_its_own_rehearsal_and_those_that_are_searched_alike_share_one(model32, own):
    assert noise_order(own, "ensemble") == ()
    *_, plain = rehearse(model32, own, SETTINGS, "unlearning+")
    assert rehearsed(own, "ensemble") is None
    assert rehearsed(own, "unlearning") == rehearsed(own, "unlearning-sgd") == plain
    *_, mixed = rehearse(model32, own, SETTINGS)
    assert read_rehearsals(own).methods == {"unlearning+": plain, "ensemble": mixed}
    assert noise_order(own, "ensemble") == mixed.race.columns
    *_, newton = rehearse(model32, own, SETTINGS, "unlearning")
    assert (rehearsed(own, "unlearning"), rehearsed(own, "unlearning+")) == (newton, plain)


def test_what_was_rehearsed_with_another_model_or_cannot_be_read_is_made_anew(model32, own):
    *_, found = rehearse(model32, own, SETTINGS)
    for text in ("{", replace(read_rehearsals(own), model="0" * 64).json.decode()):
        (own.path / SEARCH).write_text(text)
        *_, again = rehearse(model32, own, SETTINGS)
        assert again == found
        assert read_rehearsals(own).methods == {"ensemble": found}


def test_of_an_ensemble_the_likelier_view_of_each_candidate_is_measured_and_what_is_foreseen_kept(model32, own):
    list(rehearse(model32, own, SETTINGS))
    settings = AttributeSettings("influence+", top_k=8)
    for number in range(2):
        known = Queue(own.path / MEASURED / "ensemble").result(f"{number:04d}")
        assert (known["changes"].shape, known["values"].shape) == ((6, 1, 8), (6, 1))
        asked = query_of(model32, own, SETTINGS.seed, number)
        *_, last = attribute(model32, own, asked, settings)
        values = {result.score for result in last.results}
        assert {float(value) for value in known["values"][:, 0]} <= values


def test_the_changes_are_those_of_an_exhaustive_answer(model32, own):
    list(rehearse(model32, own, SETTINGS, "unlearning+"))
    settings = AttributeSettings("unlearning+", top_k=8, exhaustive=True)
    for number in range(2):
        asked = query_of(model32, own, SETTINGS.seed, number)
        assert len(asked.boxes) == number
        *_, whole = attribute(model32, own, asked, settings)
        scores = sorted(
            Queue(own.path / MEASURED / "unlearning+").result(f"{number:04d}")["changes"].mean(-1).max(1), reverse=True
        )
        ours, theirs = scores[0], max(result.score for result in whole.results)
        assert ours <= theirs + 2e-5
        every = np.array([result.score for result in whole.results])
        assert all(np.abs(every - score).min() < 2e-5 for score in scores)


@pytest.mark.parametrize("named", [["d-trak"], ["influence+"], ["influence+", "d-trak"]])
def test_candidates_of_a_rehearsal_are_those_of_the_sources_that_there_are(model32, own, named):
    for source in {"d-trak", "influence+"} - set(named):
        Manifest.read(own.path).lacking(f"gradients/{source}").write(own.path)
    index = Index.open(own.path)
    list(rehearse(model32, index, replace(SETTINGS, candidates=3), "unlearning+"))
    for number in range(2):
        asked = query_of(model32, index, SETTINGS.seed, number)
        ranked = [list(attribute(model32, index, asked, AttributeSettings(name, top_k=8)))[-1].rows for name in named]
        rows = list(dict.fromkeys(row for places in zip(*ranked, strict=True) for row in places))[:3]
        settings = AttributeSettings("unlearning+", top_k=8, exhaustive=True)
        *_, whole = attribute(model32, index, asked, settings)
        scores = {result.row: result.score for result in whole.results}
        changes = Queue(index.path / MEASURED / "unlearning+").result(f"{number:04d}")["changes"]
        np.testing.assert_allclose(changes.mean(-1).max(1), [scores[row] for row in rows], rtol=0, atol=2e-5)


def test_what_was_measured_by_other_sources_is_refused(model32, own):
    list(rehearse(model32, own, SETTINGS, "unlearning+"))
    Manifest.read(own.path).lacking("gradients/influence+").write(own.path)
    with pytest.raises(InputError, match="sources"):
        next(rehearse(model32, Index.open(own.path), SETTINGS, "unlearning+"))


def test_what_was_measured_is_not_measured_again(model32, own, monkeypatch):
    first = list(rehearse(model32, own, SETTINGS))[-1]
    monkeypatch.setattr(model32, "generate", lambda *_: pytest.fail("a picture is drawn again"))
    [again] = rehearse(model32, own, replace(SETTINGS, mean=1.0))
    assert again.race.columns == first.race.columns


def test_what_a_search_names_stays(model32, own):
    *_, found = rehearse(model32, own, SETTINGS, "unlearning+")
    order = tuple(range(own.base_losses.shape[-1]))
    named = RaceSettings(5, 0.7, 1, 2.0, 4, order)
    assert check_settings(model32, own, AttributeSettings(top_k=1, unlearn=QUICK, race=named)).race == named
    everyone = check_settings(model32, own, AttributeSettings(top_k=1, unlearn=QUICK, race=RaceSettings(pool=0))).race
    assert everyone == replace(EVERY, columns=found.race.columns)


@pytest.mark.parametrize("columns", [(0, 1), (0, 0, 1, 2), (0, 1, 2, 4)])
def test_columns_that_are_not_the_banks_are_refused(model32, own, columns):
    settings = AttributeSettings(top_k=1, unlearn=QUICK, race=RaceSettings(columns=columns))
    told = " ".join(map(str, columns))
    with pytest.raises(InputError, match=f"race_columns = {told} is not possible; accepted are 0 to 7, each once"):
        check_settings(model32, own, settings)


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"pictures": 1}, "pictures = 1 is not possible; accepted are 2 to 1,000"),
        ({"candidates": 1}, "candidates = 1 is not possible; accepted are 2 to 8"),
        ({"top_k": 9}, "top_k = 9 is not possible"),
        ({"mean": 1.5}, "mean = 1.5 is not possible; accepted are shares above 0, up to 1"),
        ({"worst": 0.0}, "worst = 0 is not possible"),
    ],
)
def test_what_cannot_be_rehearsed_is_refused_before_any_work(model32, own, change, told):
    with pytest.raises(InputError, match=told):
        next(rehearse(model32, own, replace(SETTINGS, **change)))
    assert not (own.path / MEASURED).exists()


def test_an_index_without_gradients_says_how_to_add_them(model32, index32):
    with pytest.raises(InputError, match="--gradients d-trak"):
        next(rehearse(model32, index32, SETTINGS))


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("{", "is damaged or of another program"),
        ('{"format_version": 1}', "is damaged or of another program"),
    ],
)
def test_a_damaged_file_is_named(model32, own, text, told):
    (own.path / SEARCH).write_text(text)
    with pytest.raises(IndexMismatch, match=f"{SEARCH} {told}; make it anew: python -m attribution rehearse"):
        check_settings(model32, own, AttributeSettings(top_k=1, unlearn=QUICK))


def test_what_is_of_another_model_or_bank_is_refused(model32, own):
    *_, found = rehearse(model32, own, SETTINGS)
    held = read_rehearsals(own)
    (own.path / SEARCH).write_bytes(replace(held, model="0" * 64).json)
    with pytest.raises(IndexMismatch, match="is of model 000000000000, the index of"):
        read_rehearsals(own)
    other = {"ensemble": replace(found, race=replace(found.race, columns=(0,)))}
    (own.path / SEARCH).write_bytes(replace(held, methods=other).json)
    with pytest.raises(IndexMismatch, match="another noise bank"):
        read_rehearsals(own)
