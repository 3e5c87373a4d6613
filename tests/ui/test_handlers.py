"""Handlers of the page, without a browser: what changes on it, by component."""

import itertools
from dataclasses import replace
from threading import Event, Thread
from types import SimpleNamespace

import gradio as gr
import pytest
from conftest import UNLEARN, random_picture
from near import awaited
from test_answers import cards
from test_line import job_of

from attribution.answers.run import Run
from attribution.diffusion.pipeline import GenerateSettings
from attribution.errors import InputError
from attribution.methods import attribute, check_settings, fitting
from attribution.methods.answer import AttributeSettings, Attribution, Progress
from attribution.query.query import Query
from attribution.ui.answering import REDRAWN, Answering, link_of
from attribution.ui.asking import Questions
from attribution.ui.handlers import UNCHANGED, Handlers
from attribution.ui.jobs import Answered, Job, attributing
from attribution.ui.kept import KeptRuns
from attribution.ui.marks import Marks
from attribution.ui.page import LOOK, build_page, lay
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

    return Handlers(studio, awaited(laid()))


@pytest.fixture
def kept(handlers):
    return KeptRuns(Pictures(handlers))


def attribution(handlers, picture, compared=(), top_k=2, budget="normal", agreed=0.0):
    """The updates of an attribution, from the page's values."""
    questions = Questions(handlers)
    follow = handlers.following(questions.attribution, questions.refused)
    asked = ("a bus", picture, [], [], top_k, budget, list(compared), True, agreed)
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


def test_a_changing_ranking_is_shown_now_and_then_and_a_finished_answer_at_once(handlers, studio, answers, monkeypatch):
    """A change that is held back is shown with the next one, or at the next step when it is time."""
    clock, answer, panel = SimpleNamespace(now=100.0), answers["unlearning"], handlers.on.panels[0]
    monkeypatch.setattr("attribution.ui.answering.time", SimpleNamespace(monotonic=lambda: clock.now))
    region = [Region("whole picture")]
    answering = Answering(studio, handlers.on, region, [answer.query], [answer.settings], folded=False)

    def shown(seconds, state):
        clock.now += seconds
        update = answering.take(Answered(0, "unlearning", state, Progress("scoring", 1, 2, 1.0)))
        return cards(update[panel], "unlearning") if panel in update else None

    def ranked(*places):
        return Progress("scoring", 1, 2, 1.0, tuple(answer.results[place] for place in places))

    rows = [result.row for result in answer.results]
    assert shown(0, ranked(0, 1)) == [rows[0], rows[1]]
    assert shown(REDRAWN / 3, ranked(1, 2)) is None
    assert shown(REDRAWN / 3, ranked(2, 3)) is None
    assert shown(REDRAWN, ranked(2, 3)) == [rows[2], rows[3]]
    assert shown(REDRAWN * 2, ranked(2, 3)) is None
    assert shown(REDRAWN / 3, ranked(3, 2)) == [rows[3], rows[2]]  # none was drawn for long
    assert shown(REDRAWN / 3, ranked(1, 2)) is None
    assert shown(0, answer) == rows


def test_an_answer_that_cannot_be_kept_is_given_with_a_sentence(handlers, studio, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("attribution.answers.kept.write_zip", full)
    seen, on = {}, handlers.on
    for update in attribution(handlers, Picture(random_picture(1)), ["pixel"]):
        seen |= {} if update == UNCHANGED else update
    assert "data-state='done'" in seen[on.status]
    assert "This answer could not be kept" in seen[on.status]
    assert "No space left on device" in seen[on.status]
    assert len(cards(seen[on.panels[0]], "ensemble")) == 2
    assert "runs/" not in seen[on.panels[0]]  # no link to what is not there
    assert len(seen[on.runs]) == 1  # its images can be opened


def test_one_bar_runs_over_all_methods_and_regions(studio):
    """It never goes back, and ends full; every step says what is being done."""
    main = AttributeSettings(top_k=2, unlearn=UNLEARN, batch=6)
    asked = [
        check_settings(studio.model, studio.index, fitting(main, name))
        for name in ("unlearning", "unlearning+", "clip")
    ]
    queries = [Query("a red bird and a blue key", random_picture(seed)) for seed in (90, 91)]
    steps = list(studio.alone(Job(attributing, (queries, asked)), Event()))
    wholes = [step.whole for step in steps]
    assert {whole.total for whole in wholes} == {wholes[-1].evaluations}
    assert wholes[-1].total == sum(
        step.state.evaluations
        for step in steps
        if isinstance(step.state, Attribution) and step.method.startswith("unlearning")
    )
    for before, after in itertools.pairwise(wholes):
        assert after.evaluations >= before.evaluations
        assert after.seconds >= before.seconds - 0.01
    assert all(whole.stage for whole in wholes)
    assert [step.whole.stage for step in steps if step.whole.stage.startswith("Asking")] == [
        "Asking clip",
        "Asking unlearning",
        "Asking unlearning+",
    ] * 2


def test_a_first_estimate_stands_as_soon_as_the_method_that_gives_it_has_answered(studio):
    main = AttributeSettings("ensemble", top_k=2, unlearn=replace(UNLEARN, step_size=None), batch=6)
    named = ("ensemble", "clip", "influence+", "unlearning")
    asked = [check_settings(studio.model, studio.index, fitting(main, name)) for name in named]
    steps = list(studio.alone(Job(attributing, ([Query("a red bird", random_picture(90))], asked)), Event()))
    ended = [step.method for step in steps if isinstance(step.state, Attribution)]
    assert ended[0] == "influence+"
    given = next(step.state for step in steps if isinstance(step.state, Attribution))
    for method in ("ensemble", "unlearning"):
        own = [step.state for step in steps if step.method == method]
        assert own[0].results == given.results
        assert own[0].estimated
        assert all(state.results for state in own)  # it does not go away
        assert own[-1].settings.method == method
        first = [step.method for step in steps].index(method)
        assert [step.method for step in steps][:first].count("clip") == 0


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


def test_one_link_opens_all_regions_of_an_answer(kept, studio, answers):
    on, boxed = kept.on, ((1.0, 2.0, 20.0, 30.0),)

    def run_of(**asked):
        return Run(tuple(replace(each, query=replace(each.query, **asked)) for each in answers.values()))

    runs = [run_of(), run_of(boxes=boxed), run_of(word="bird")]
    for run in runs:
        studio.runs.keep(run, studio.index, studio.model)
    link = link_of(studio, [(run.region, run) for run in runs])
    assert link == ",".join(run.id for run in runs)
    made = kept.reopen(link, folded=False)
    assert [run.id for _, run in made[on.runs]] == [run.id for run in runs]
    assert made[on.link] == link
    assert [made[tab].visible for tab in on.tabs] == [True, True, True, False]
    assert made[on.table] == [["", *boxed[0]]]
    assert made[on.chosen].value == ["bird"]
    for panel, run in zip(on.panels, runs, strict=False):
        assert f"data-run='{run.id}'" in made[panel]
    other = run_of(image=random_picture(5))
    studio.runs.keep(other, studio.index, studio.model)
    with pytest.raises(InputError, match="are of several pictures"):
        kept.reopen(f"{runs[0].id},{other.id}", folded=False)


def test_an_upload_asks_for_its_prompt_and_reads_its_words(handlers, tmp_path):
    pictures, on = Pictures(handlers), handlers.on
    random_picture(3).save(tmp_path / "mine.png")
    update = pictures.upload(str(tmp_path / "mine.png"), REQUEST)
    assert update[on.prompt] == ""
    assert "Write above what it shows" in update[on.note]
    assert not update[on.chosen].visible
    read = pictures.reworded("a red bird", update[on.picture], ["bird", "bus"])
    assert read[on.chosen].visible
    assert read[on.chosen].value == ["bird"]
    assert read[on.labels] == "red bird"
    assert pictures.reworded("a red bird", Picture(random_picture(1), "a bus", 1), []) == UNCHANGED
    with pytest.raises(InputError, match="press Attribute, or Generate"):  # Enter does not throw the picture away
        pictures.entered(update[on.picture], "a red bird", 1, 2, 3)
    assert pictures.entered(None, "a red bird", 1, 2, 3).job.asked[0] == "a red bird"


@pytest.mark.parametrize(
    ("rows", "chosen", "said"),
    [
        ([["", 0, 0, 16, 16], ["", 1, None, None, None]], [], ""),
        ([["", 0, 0, 1, 16]], [], "too small"),
        ([["", 0, 0, 40, 16]], [], "reaches outside the picture"),
        ([["", 0, 0, 16, 16]] * 3, ["red", "bird"], "5 regions are marked; accepted are up to 4"),
        ([], ["red"], ""),
    ],
)
def test_what_is_typed_is_refused_where_it_is_typed(handlers, rows, chosen, said):
    told = Marks(handlers).typed(Picture(random_picture(1), "a red bird", 1), rows, chosen)
    assert said in told
    assert bool(told) == bool(said)


def test_the_browser_knows_which_boxes_the_model_cannot_see(handlers):
    wide = random_picture(1, (64, 32))
    frame = Pictures(handlers).shown(Picture(wide))[handlers.on.frame]
    assert frame["seen"] == [16, 0, 48, 32]
    assert frame["least"] == 4
    assert frame["most"] == 4


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


def test_a_words_map_does_not_wait_for_long_work(handlers, studio):
    marks, ahead = Marks(handlers), studio.alone(job_of(1, 2), Event())
    next(ahead)
    *_, html = marks.show_words(Picture(random_picture(1), "a red bird", 1), "", ["red", "bird"])
    assert html.count("data:image/png") == 2
    assert studio.waiting == 1
    ahead.close()
    assert list(marks.show_words(None, "", ["red"])) == [""]
    assert "is not in the prompt" in [*marks.show_words(Picture(random_picture(1)), "a bus", ["red"])][-1]


def test_the_queue_is_not_looked_at_a_thousand_times_a_second(studio):
    async def built():
        return build_page(studio)

    queue = awaited(built())._queue
    assert queue.sleep_when_free == queue.progress_update_sleep_when_free == LOOK
    assert LOOK >= 0.01
