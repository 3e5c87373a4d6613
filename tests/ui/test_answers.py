"""What the page shows of answers, without a browser."""

import json
import re
from base64 import b64decode
from dataclasses import replace
from io import BytesIO

import pytest
from conftest import random_picture
from PIL import Image

from attribution.answers.report import Run
from attribution.errors import IndexMismatch
from attribution.methods.answer import Progress
from attribution.query.query import Query
from attribution.ui.answers import example, opened, panel

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


def test_a_panel_has_its_places_before_there_is_an_answer(answers, full_index):
    begun = {"unlearning": Progress("unlearning", 0, 1, 0.0), "clip": answers["clip"]}
    html = panel(*ASKED, begun, full_index, 4, folded=True)
    assert html.count("card empty") == 4
    assert "data-run" not in html
    assert "<td>…</td>" in html


def test_a_panel_shows_what_was_asked(answers, full_index):
    html = panel(*ASKED, answers, full_index, 4, folded=False)
    assert "behind: a &lt;i&gt;region&lt;/i&gt;" in html
    shown = re.search(r"data:image/png;base64,([^']*)'><svg viewBox='0 0 32 32'", html).group(1)
    assert Image.open(BytesIO(b64decode(shown))).tobytes() == random_picture(99).tobytes()
    assert "<rect x='4' y='4' width='16' height='8'" in html


def test_images_that_several_methods_have_carry_the_same_badge(answers, full_index):
    html = panel(*ASKED, answers, full_index, 4, folded=False)
    letters = {}
    for row, inside in re.findall(r"<li class='card' data-row='(\d+)'>(.*?)</li>", html, re.DOTALL):
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
    assert f"{len(alone)} of its 4 no other method here has" in html


def test_a_floor_tells_whether_there_is_a_clear_source(answers, full_index, plain_copy):
    answer = answers["unlearning"]
    answer = replace(answer, typical=answer.results[3].score / 2 if answer.results[3].score > 0 else 1e-6)
    some = {**answers, "unlearning": answer}
    multiples = [answer.multiple(result) for result in answer.results]
    assert "class='floor" not in panel(*ASKED, some, full_index, 4, False)
    for floor, said in ((multiples[0] + 1, "No clear source"), ((multiples[1] + multiples[2]) / 2, "2 of 4 are above")):
        (plain_copy / "floor.json").write_text(
            json.dumps({"method": "unlearning", "multiple": floor, "multiples": [floor]})
        )
        assert said in panel(*ASKED, some, replace(full_index, path=plain_copy), 4, False)
    (plain_copy / "floor.json").write_text("{")
    with pytest.raises(IndexMismatch, match="measure it anew"):
        panel(*ASKED, some, replace(full_index, path=plain_copy), 4, False)


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


def test_an_example_tells_its_question_and_whether_there_is_a_clear_source(answers, full_index, plain_copy):
    run = Run((replace(answers["unlearning"], typical=1e-9),))
    multiple = run.answers[0].multiple(run.answers[0].results[0])
    for floor, clear in ((multiple * 2, False), (multiple / 2, True)):
        (plain_copy / "floor.json").write_text(
            json.dumps({"method": "unlearning", "multiple": floor, "multiples": [floor]})
        )
        html = example(run, replace(full_index, path=plain_copy))
        assert f"data-run='{run.id}'" in html
        assert "<b>An upload" in html
        assert "a &lt;b&gt;red&lt;/b&gt; bird" in html
        assert ("no clear source" in html) != clear
