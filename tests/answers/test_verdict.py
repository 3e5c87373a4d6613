"""The verdict: grades by calibrated strength, what lowers them, what is not graded, and the same by any search."""

import json
from dataclasses import replace
from statistics import median

import numpy as np
import oracle
import pytest

from attribution.answers.calibration import ENOUGH, FORMAT_VERSION, Calibration, read_calibration
from attribution.answers.verdict import verdict_of
from attribution.diffusion.weights import unlearned
from attribution.errors import IndexMismatch
from attribution.index.index import Index
from attribution.methods import attribute, check_settings
from attribution.methods.answer import AttributeSettings
from attribution.methods.unlearning import unlearn_query
from attribution.query.encoded import encode
from attribution.query.evidence import Evidence
from attribution.unlearning.race import RaceSettings
from attribution.unlearning.score import losses_of
from attribution.unlearning.step import UnlearnSettings

UNRELATED = tuple(number / 1000 for number in range(199, -1, -1))  # 0.199 to 0
BOX = Evidence("box", 0.5, None, 0.6)


def calibrate(index, strengths=UNRELATED, **told):
    held = {"format_version": FORMAT_VERSION, "model": index.manifest.model.sha256, "date": "2026-01-01", "seed": 0}
    kinds = {"box": {"drawing": strengths[:50], "another's prompt": strengths[50:]}, "word": {"drawing": [0.1]}}
    (index.path / "floor.json").write_text(json.dumps({**held, "strengths": kinds, **told}))
    return index


@pytest.fixture
def calibrated(plain_copy):
    return calibrate(Index.open(plain_copy))


@pytest.fixture(scope="module")
def answer(model32, index32):
    """Of a picture that was generated, with a box; its first score is surely above zero."""
    from conftest import random_picture

    from attribution.query.query import Query

    asked = Query("a red bird", random_picture(99), 7, ((2.0, 2.0, 30.0, 30.0),))
    *_, found = attribute(model32, index32, asked, AttributeSettings(top_k=3))
    first = replace(found.results[0], low=0.1, score=0.2, high=0.3)
    return replace(found, results=(first, *found.results[1:]), evidence=BOX)


@pytest.mark.parametrize(
    ("strength", "grade", "alarms"),
    [(0.5, "clear source", 0), (0.198, "likely source", 4), (0.195, "uncertain", 199), (0.0, "no source found", 200)],
)
def test_a_grade_is_a_quantile_of_unrelated_questions(calibrated, answer, strength, grade, alarms):
    verdict = verdict_of(replace(answer, evidence=replace(BOX, words=strength)), calibrated)
    assert (verdict.grade, verdict.alarms, verdict.unrelated) == (grade, alarms, 200)
    assert verdict.has_source == (grade in ("clear source", "likely source"))
    stronger = sum(each > strength for each in UNRELATED)
    said = f"{alarms or 'none'} reached this grade" if verdict.has_source else f"{stronger} were explained better"
    assert f"Of 200 unrelated boxes, {said}" in verdict.sentence


def test_no_source_where_the_words_explain_nothing(answer, plain_copy):
    """However weak unrelated questions are."""
    index = calibrate(Index.open(plain_copy), tuple(np.linspace(-0.5, -1, 200)))
    for words, source in ((0.01, True), (0.0, False), (-0.1, False)):
        verdict = verdict_of(replace(answer, evidence=replace(BOX, words=words)), index)
        assert verdict.has_source == source
        assert ("does not explain" in verdict.sentence) == (not source)


def test_an_upload_is_uncertain_at_most(calibrated, answer):
    verdict = verdict_of(replace(answer, query=replace(answer.query, seed=None)), calibrated)
    assert verdict.grade == "uncertain"
    assert "uploaded picture is uncertain at most" in verdict.sentence
    weak = replace(answer, query=replace(answer.query, seed=None), evidence=replace(BOX, words=-0.9))
    assert verdict_of(weak, calibrated).grade == "no source found"


@pytest.mark.parametrize("low", [0.0, -0.1, -np.inf])
def test_a_first_score_whose_interval_includes_zero_is_uncertain_at_most(calibrated, answer, low):
    results = (replace(answer.results[0], low=low), *answer.results[1:])
    verdict = verdict_of(replace(answer, results=results), calibrated)
    assert verdict.grade == "uncertain"
    assert "interval includes zero" in verdict.sentence


def test_an_empty_region_has_no_source(calibrated, answer):
    verdict = verdict_of(replace(answer, evidence=replace(BOX, words=0.9, filled=0.01)), calibrated)
    assert verdict.grade == "no source found"
    assert "region is empty" in verdict.sentence


def test_what_is_not_graded_says_why(calibrated, answer, index32):
    for changed, index, said in (
        (replace(answer, settings=replace(answer.settings, method="clip")), calibrated, "look-alikes"),
        (replace(answer, evidence=None), calibrated, "older than the grades"),
        (answer, index32, "not calibrated"),
        (replace(answer, evidence=replace(BOX, kind="word", word=0.5)), calibrated, "Only 1 unrelated words"),
    ):
        verdict = verdict_of(changed, index)
        assert (verdict.grade, verdict.title, verdict.alarms, verdict.has_source) == (None, "Not graded", None, False)
        assert said in verdict.sentence


@pytest.mark.parametrize(
    ("told", "said"),
    [({"format_version": 1}, "format version 1"), ({"model": "abc"}, "of model abc"), ({"seed": "x"}, "is damaged")],
)
def test_a_calibration_of_something_else_is_refused(calibrated, answer, told, said):
    index = calibrate(calibrated, **told)
    with pytest.raises(IndexMismatch, match=f"{said}.*measure it anew"):
        read_calibration(index)
    verdict = verdict_of(answer, index)
    assert verdict.grade is None
    assert said in verdict.sentence


def test_a_clear_source_is_above_every_unrelated_question():
    for count in (ENOUGH, 200):
        known = Calibration("", 0, {"box": UNRELATED[:count]})
        assert known.alarms("box", "clear source") == 0
        assert known.limit("box", "clear source") == UNRELATED[0]


def test_verdict_and_typical_score_are_the_same_by_halving_and_exhaustively(model, index, query):
    """The typical score is the median of the same training images, here of all eight, on the same noise."""
    settings = AttributeSettings(top_k=8, exhaustive=True, unlearn=UnlearnSettings(step_size=0.1, timesteps=5))
    *_, everything = attribute(model, index, query, settings)
    halving = replace(settings, top_k=1, exhaustive=False, race=RaceSettings(first_columns=1, survivors=2))
    *_, some = attribute(model, index, query, halving)
    assert some.evidence == everything.evidence is not None
    assert some.typical == everything.typical
    at = slice(None), slice(1), oracle.spread(8)[:1]  # nothing tells the likelier view here
    expected = oracle.score(index.base_losses[at], changed(model, index, query, settings)[at], False)
    assert everything.typical == pytest.approx(median(expected))


def changed(model, index, query, settings):
    """All losses after the query was unlearned: (N, views, columns)."""
    asked = encode(model, query, index.center_crop)
    with unlearned(model, index.weights) as weights:
        for _ in unlearn_query(model, index, asked, check_settings(model, index, settings).newton, weights):
            pass
        return losses_of(model, index.encoded, index.bank(model), range(8)).cpu().numpy()
