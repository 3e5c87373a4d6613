"""Handlers of the page, without a browser: what changes on it, by component."""

import asyncio
from dataclasses import replace
from threading import Event, Thread
from types import SimpleNamespace

import gradio as gr
import pytest
from conftest import UNLEARN, random_picture
from test_answers import cards
from test_line import job_of

from attribution.answers.report import Run
from attribution.diffusion.pipeline import GenerateSettings
from attribution.methods import attribute, check_settings, fitting
from attribution.methods.answer import AttributeSettings
from attribution.query.query import Query
from attribution.ui.answering import Answering
from attribution.ui.asking import Questions
from attribution.ui.handlers import UNCHANGED, Handlers
from attribution.ui.jobs import Job, attributing
from attribution.ui.kept import KeptRuns
from attribution.ui.marks import Marks
from attribution.ui.page import lay
from attribution.ui.pictures import Pictures
from attribution.ui.regions import Region
from attribution.ui.studio import Picture

REQUEST = SimpleNamespace(session_hash="me", query_params={})


@pytest.fixture
def handlers(studio):
    """Handlers of a page that nobody serves."""

    async def laid():  # Gradio takes the loop that runs, or leaves new ones open
        with gr.Blocks():
            return lay(studio)

    return Handlers(studio, asyncio.run(laid()))


@pytest.fixture
def kept(handlers):
    return KeptRuns(Pictures(handlers))


def attribution(handlers, picture, compared=(), top_k=2):
    """The updates of an attribution, from the page's values."""
    questions = Questions(handlers)
    follow = handlers.following(questions.attribution, questions.refused)
    asked = ("a bus", picture, [], [], top_k, False, list(compared), True)
    return follow(REQUEST, gr.Progress(), *asked)


def test_the_page_ends_with_each_methods_own_answer(handlers, studio, model32, full_index):
    main = AttributeSettings(top_k=8, unlearn=UNLEARN, batch=6)
    asked = [check_settings(model32, full_index, fitting(main, name)) for name in ("unlearning", "influence", "clip")]
    boxes = ((0.0, 0.0, 16.0, 16.0),)
    queries = [Query("a red bird and a blue key", random_picture(90)), Query("a key", random_picture(90), None, boxes)]
    regions = [Region("whole picture"), Region("a key", boxes, label="a key")]
    sampled, on = GenerateSettings(steps=7), handlers.on
    answering = Answering(studio, on, regions, queries, asked, False, sampled)
    seen = answering.begun()
    for step in studio.alone(Job(attributing, (queries, asked)), Event()):
        seen |= answering.take(step)
    ended = answering.ended()
    assert "data-state='done'" in ended[on.status]
    assert [name for name, _ in ended[on.runs]] == ["whole picture", "a key"]
    panels = [ended[panel] for panel in on.panels]
    assert [seen[panel] for panel in on.panels] == panels  # as they came, bit by bit
    for query, html in zip(queries, panels, strict=False):
        for each in asked:
            *_, last = attribute(model32, full_index, query, each)
            assert cards(html, each.method) == [result.row for result in last.results]
            for result in last.results:
                assert f"score {result.score:+.4f}" in html
    assert set(panels[2:]) == {""}
    for html, (_, run) in zip(panels, ended[on.runs], strict=False):
        assert studio.run_file(run.id).is_file()
        assert f"data-run='{run.id}'" in html
        assert run.sampled == sampled
    assert [run.label for _, run in ended[on.runs]] == ["", "a key"]
    assert [seen[tab].visible for tab in on.tabs] == [True, True, False, False]


def test_a_kept_run_is_opened_again(kept, studio, answers):
    on, run = kept.on, Run(tuple(answers.values()), GenerateSettings(steps=7))
    studio.runs.keep(run, studio.index, studio.model)
    made = kept.reopen(run.id, folded=False)
    assert on.seed not in made  # an upload's: the seed that is there stays
    assert made[on.picture].image.tobytes() == run.query.image.tobytes()
    assert made[on.picture].settings == GenerateSettings(steps=7)
    assert made[on.annotator]["boxes"] == []
    assert made[on.prompt] == "a <b>red</b> bird"
    assert cards(made[on.panels[0]], "clip") == [result.row for result in answers["clip"].results]
    drawn = replace(run, answers=tuple(replace(each, query=replace(each.query, seed=31)) for each in run.answers))
    studio.runs.keep(drawn, studio.index, studio.model)
    assert kept.reopen(drawn.id, folded=False)[on.seed] == 31
    with pytest.raises(gr.Error, match="is not kept here"):
        kept.reopen_chosen("0" * 12, False, REQUEST)


def test_a_region_is_called_on_reopening_what_it_was_called(kept, studio, answers):
    boxed = tuple(
        replace(each, query=replace(each.query, boxes=((1.0, 2.0, 20.0, 30.0),))) for each in answers.values()
    )
    on, run = kept.on, Run(boxed, label="bird")
    studio.runs.keep(run, studio.index, studio.model)
    made = kept.reopen(run.id, folded=False)
    assert made[on.table] == [["bird", 1.0, 2.0, 20.0, 30.0]]
    assert [box["label"] for box in made[on.annotator]["boxes"]] == ["bird"]
    assert made[on.tabs[0]].label == "1 · bird"
    assert kept.remember([("bird", run)], [])[on.mine] == [["a <b>red</b> bird · bird", run.id]]


def test_a_visitors_own_runs_are_remembered_newest_first(kept, answers):
    run = Run((answers["clip"],))
    mine = kept.remember([("whole", run)], [["old", "0" * 12], ["again", run.id]])[kept.on.mine]
    assert [run_id for _, run_id in mine] == [run.id, "0" * 12]


@pytest.mark.parametrize(
    "bad", [{"top_k": 0}, {"top_k": 2.5}, {"top_k": 101}, {"picture": None}, {"compared": ["magic"]}]
)
def test_what_is_not_possible_is_refused_before_any_work(handlers, bad):
    asked = {"picture": Picture(random_picture(1), "a bus", 1), "top_k": 2, "compared": ["clip"]} | bad
    steps = attribution(handlers, **asked)
    update = next(steps)
    assert list(update) == [handlers.on.status]
    assert "data-state='error'" in update[handlers.on.status]
    with pytest.raises(gr.Error, match=r"accepted|no picture|no method"):
        next(steps)


def test_what_takes_a_runs_place_waits_for_its_last_word(handlers, kept, studio, answers):
    run = Run((answers["clip"],))
    studio.runs.keep(run, studio.index, studio.model)
    steps, stop, status = attribution(handlers, Picture(random_picture(1))), handlers.on.stop, handlers.on.status
    assert next(steps)[stop].interactive
    told, told_before = [], []

    def open_another():
        kept.reopen_chosen(run.id, False, REQUEST)
        told_before.append(len(told))

    opening = Thread(target=open_another)
    opening.start()
    opening.join(0.5)
    assert handlers.controls(REQUEST)[stop].interactive
    for step in steps:
        told.append(step)
    opening.join(10)
    assert told_before == [len(told)]
    assert "data-state='stopped'" in told[-2][status]
    assert told[-1] == UNCHANGED  # Gradio sends the last one again
    assert not handlers.controls(REQUEST)[stop].interactive


def test_a_run_whose_visitor_left_frees_the_device(handlers, studio):
    steps = attribution(handlers, Picture(random_picture(1)), ["pixel"])
    while "data-state='running'" not in str(next(steps).get(handlers.on.status)):
        assert studio.waiting <= 1
    assert studio.waiting == 1
    steps.close()
    assert studio.waiting == 0
    assert not handlers.controls(REQUEST)[handlers.on.stop].interactive


def test_a_words_map_waits_for_its_turn(handlers, studio):
    marks, ahead = Marks(handlers), studio.alone(job_of(1, 2), Event())
    next(ahead)
    shown = marks.show_words(Picture(random_picture(1), "a red bird", 1), "", ["red", "bird"])
    assert "1 ahead" in next(shown)
    ahead.close()
    *_, html = shown
    assert html.count("data:image/png") == 2
    assert studio.waiting == 0
    assert list(marks.show_words(None, "", ["red"])) == [""]
    assert "is not in the prompt" in [*marks.show_words(Picture(random_picture(1)), "a bus", ["red"])][-1]
