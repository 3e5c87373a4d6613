"""What the page shows of answers, without a browser."""

import json
import re
from base64 import b64decode
from dataclasses import replace
from io import BytesIO

import pytest
from conftest import random_picture
from markupsafe import escape
from PIL import Image

from attribution.answers.calibration import FORMAT_VERSION
from attribution.answers.networks import detector_behind, network_behind
from attribution.answers.ranking import ESTIMATE
from attribution.answers.run import Run
from attribution.answers.verdict import verdict_of
from attribution.methods.answer import Progress
from attribution.methods.searched import Searched
from attribution.query.evidence import Evidence
from attribution.query.query import Query
from attribution.scenes.world import open_world
from attribution.ui.answers import examples, opened, panel

ASKED = ("a <i>region</i>", Query("a <b>red</b> bird", random_picture(99), None, ((4.0, 4.0, 20.0, 12.0),)))


def cards(html, method):
    part = re.search(rf"<div class='ranking' data-method='{re.escape(method)}'>.*?</ol>", html, re.DOTALL)
    return [int(row) for row in re.findall(r"data-row='(\d+)'", part.group(0))]


def test_a_panel_shows_every_ranking_in_its_order(answers, full_index):
    html = panel(*ASKED, answers, full_index, 4, folded=False, run_id="0123456789ab")
    for method, answer in answers.items():
        assert cards(html, method) == [result.row for result in answer.results]
        for result in answer.results:
            assert f"score {result.score:+.4f}" in html
    assert "data-run='0123456789ab'" in html
    assert "data-copy='0123456789ab'" in html


def test_a_panel_has_its_places_before_there_is_an_answer(answers, full_index):
    begun = {"unlearning": Progress("unlearning", 0, 1, 0.0), "clip": answers["clip"]}
    html = panel(*ASKED, begun, full_index, 4, folded=True)
    assert html.count("card empty") == 4
    assert "data-run" not in html
    assert "<td>…</td>" in html


def test_a_first_estimate_is_called_one_and_shows_no_scores(answers, full_index):
    results = answers["unlearning"].results
    for estimated in (True, False):
        html = panel(
            *ASKED, {"unlearning": Progress("unlearning", 1, 9, 0.1, results, estimated)}, full_index, 4, False
        )
        assert cards(html, "unlearning") == [result.row for result in results]
        assert (ESTIMATE in html, ", score " in html) == (estimated, not estimated)
        assert "<p class='note found'></p>" in html  # its place is kept


def test_images_that_a_first_estimate_did_not_name_are_marked(answers, full_index):
    """While it settles and when it has: the first two were named, and one that is not shown any more."""
    answer = answers["unlearning"]
    rows = [result.row for result in answer.results]
    estimate = (*rows[:2], 99)
    settling = Progress("scoring", 5, 9, 0.1, answer.results, False, estimate)
    found = Searched("candidates", 4096, 4, "d-trak", 320, 64, 0, estimate=estimate)
    for state in (settling, replace(answer, search=found)):
        html = panel(*ASKED, {"unlearning": state}, full_index, 4, False)
        marked = re.findall(r"data-row='(\d+)'(?:(?!</li>).)*class='came'", html, re.DOTALL)
        assert [int(row) for row in marked] == rows[2:]
        assert f"Of these {len(rows)}, the first estimate had named 2; the others are marked as new." in html
    for named in (tuple(rows), ()):  # all of them; or none is known, as of earlier runs
        known = replace(answer, search=replace(answer.search, estimate=named))
        html = panel(*ASKED, {"unlearning": known}, full_index, 4, False)
        assert "class='came'" not in html
        assert (f"The first estimate had named all {len(rows)}." in html) == bool(named)


def test_a_panel_tells_how_its_images_were_found(answers, full_index):
    found = Searched("candidates", 4096, 4, "d-trak", 320, 64, 0)
    html = panel(*ASKED, {"unlearning": replace(answers["unlearning"], search=found)}, full_index, 4, False)
    assert f"<p class='note found'>{found.sentence}</p>" in html
    assert "at most 4.6% of those left out belong there" in html


def test_a_panel_shows_what_was_asked(answers, full_index):
    html = panel(*ASKED, answers, full_index, 4, folded=False)
    assert "behind: a &lt;i&gt;region&lt;/i&gt;" in html
    shown = re.search(r"data:image/png;base64,([^']*)'><svg viewBox='0 0 32 32'", html).group(1)
    assert Image.open(BytesIO(b64decode(shown))).tobytes() == random_picture(99).tobytes()
    assert "<rect x='4' y='4' width='16' height='8'" in html


def test_images_that_several_methods_have_carry_the_same_badge(answers, full_index):
    html = panel(*ASKED, answers, full_index, 4, folded=False)
    letters = {}
    for row, inside in re.findall(r"<li class='card[^']*' data-row='(\d+)'>(.*?)</li>", html, re.DOTALL):
        badge = re.search(r"class='badge'[^>]*>(\w)<", inside)
        letters.setdefault(int(row), set()).add(badge.group(1) if badge else None)
    methods = {row: sum(row in cards(html, method) for method in answers) for row in letters}
    for row, badges in letters.items():
        assert len(badges) == 1
        assert (badges == {None}) == (methods[row] == 1)
    assert len({next(iter(b)) for row, b in letters.items() if methods[row] > 1}) == sum(
        n > 1 for n in methods.values()
    )


def test_agreement_is_told_in_numbers(answers, full_index):
    html = panel(*ASKED, answers, full_index, 4, folded=False)
    main, clip = (set(cards(html, method)) for method in ("unlearning", "clip"))
    assert f"<th scope='row'>clip</th><td>{len(main & clip)} of 4</td>" in html
    alone = main - clip - set(cards(html, "pixel"))
    assert f"{len(alone)} of its 4 images are named by it alone" in html


def graded(answer, index, path, words):
    """An answer of a generated picture, and its index with a calibration by which no unrelated question is above 0."""
    first = replace(answer.results[0], low=0.1, score=0.2, high=0.3)
    query, evidence = replace(answer.query, seed=7), Evidence("box", words, None, 1.0)
    held = {"format_version": FORMAT_VERSION, "model": index.manifest.model.sha256, "date": "2026-01-01", "seed": 0}
    (path / "floor.json").write_text(json.dumps({**held, "strengths": {"box": {"drawing": [-0.5] * 200}}}))
    graded = replace(answer, query=query, evidence=evidence, results=(first, *answer.results[1:]))
    return graded, replace(index, path=path)


@pytest.mark.parametrize(("words", "grade"), [(0.4, "Clear source"), (-0.2, "No source found")])
def test_a_panel_has_the_verdict(answers, full_index, plain_copy, words, grade):
    answer, index = graded(answers["unlearning"], full_index, plain_copy, words)
    html = panel(*ASKED, {**answers, "unlearning": answer}, index, 4, False)
    told = f"<strong>{grade}</strong> {escape(verdict_of(answer, index).sentence)}</p>"
    assert f"<p class='verdict' data-grade='{grade.lower()}'>{told}" in html


def test_a_calibration_that_is_damaged_is_told_and_the_answer_shown(answers, full_index, plain_copy):
    (plain_copy / "floor.json").write_text("{")
    html = panel(*ASKED, answers, replace(full_index, path=plain_copy), 4, False)
    assert "<strong>Not graded</strong>" in html
    assert "measure it anew" in html
    assert len(cards(html, "unlearning")) == 4


def test_captions_are_escaped(answers, full_index):
    index = replace(full_index, captions=["<script>alert('1')</script>"] * len(full_index))
    results = tuple(replace(each, caption="<script>x</script>'") for each in answers["unlearning"].results)
    html = panel(*ASKED, {"unlearning": replace(answers["unlearning"], results=results)}, index, 4, False)
    html += opened(results[0].row, Run(tuple(answers.values())), index, list(range(8)))
    assert "<script" not in html


def test_an_opened_image_has_its_ranks_and_its_losses(answers, full_index, model32):
    run = Run(tuple(answers.values()))
    result = answers["unlearning"].results[1]
    html = opened(result.row, run, full_index, full_index.bank(model32).t.tolist())
    assert full_index.ids[result.row] in html
    assert f"2 of {len(answers['unlearning'].rows)}" in html
    assert f"{answers['clip'].rows.index(result.row) + 1} of 8" in html
    assert html.count("<circle") == 2 * len(set(full_index.bank(model32).t.tolist()))


def test_an_image_that_is_opened_before_the_end_has_no_ranks_yet(answers, full_index):
    html = opened(answers["unlearning"].results[1].row, None, full_index, [])
    assert "known when the run has ended" in html
    assert "<table" not in html


def test_an_example_tells_its_question_and_its_grade(answers, full_index, plain_copy):
    for words, grade in ((0.4, "clear source"), (-0.6, "no source found")):
        answer, index = graded(answers["unlearning"], full_index, plain_copy, words)
        html = examples([Run((answer,))], index)
        assert f"data-run='{Run((answer,)).id}'" in html
        assert f"· {grade}</b><i>a &lt;b&gt;red&lt;/b&gt; bird</i>" in html


def test_what_is_not_above_zero_is_dimmed_and_equals_are_marked(answers, full_index):
    given = zip(answers["clip"].results, (0.9, 0.4, 0.4, -0.1), strict=True)
    results = tuple(replace(each, score=score, low=score, high=score) for each, score in given)
    html = panel(*ASKED, {"clip": replace(answers["clip"], results=results)}, full_index, 4, False)
    assert re.findall(r"<li class='card( weak)?'", html) == ["", "", "", " weak"]
    assert re.findall(r"class='rank'[^>]*>([^<]*)<", html) == ["1", "=2", "=2", "4"]


def test_a_panel_says_which_network_is_a_miniature(answers, full_index):
    assert "This CLIP is a miniature of 0.0 million" in panel(*ASKED, answers, full_index, 4, False)
    index = open_world()[1]
    assert "CLIP is a miniature of 1.5 million parameters" in network_behind(index, "clip")
    assert network_behind(index, "clip") == network_behind(index, "clip-abc")
    assert "DINO is a miniature of 0.5 million parameters" in network_behind(index, "dino")
    assert "GroundingDINO is a miniature of 3.3 million parameters" in detector_behind(index)
    assert not any(network_behind(index, method) for method in ("unlearning", "pixel", "dinov2"))
    assert detector_behind(full_index) == ""
