"""What the page shows of answers, and whose turn it is: without a browser."""

import json
import os
import pickle
import re
import subprocess
import sys
from base64 import b64decode
from contextvars import ContextVar
from dataclasses import replace
from io import BytesIO
from threading import Event, Thread, current_thread
from types import SimpleNamespace

import gradio as gr
import pytest
from browser import ROOT
from conftest import random_picture
from PIL import Image

from attribution.answers.report import Run, RunFolder
from attribution.diffusion.pipeline import GenerateSettings
from attribution.errors import DeviceUnavailable, IndexMismatch, InputError, Stopped, WorkFailed
from attribution.methods import attribute
from attribution.methods.answer import AttributeSettings, Progress
from attribution.query.query import Query
from attribution.ui.answers import example, opened, panel
from attribution.ui.handlers import Handlers
from attribution.ui.jobs import Job, attributing, detecting, generating, mapping
from attribution.ui.kept import KeptRuns
from attribution.ui.regions import MOST, Region
from attribution.ui.studio import LINE, Picture, Studio, Waiting
from attribution.unlearning.step import UnlearnSettings

UNLEARN = UnlearnSettings(step_size=0.3, timesteps=3, noises=1, batch=4)
ASKED = ("a <i>region</i>", Query("a <b>red</b> bird", random_picture(99), None, ((4.0, 4.0, 20.0, 12.0),)))
REQUEST = SimpleNamespace(session_hash="me", query_params={})


@pytest.fixture
def studio(model32, full_index, tmp_path):
    return Studio(model32, full_index, RunFolder(tmp_path / "runs"))


@pytest.fixture(scope="module")
def answers(model32, full_index):
    query = Query("a <b>red</b> bird", random_picture(99))
    made = {}
    for method in ("unlearning", "clip", "pixel"):
        *_, made[method] = attribute(
            model32, full_index, query, AttributeSettings(method=method, top_k=4, unlearn=UNLEARN)
        )
    return made


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


# Handlers


def test_the_page_ends_with_each_methods_own_answer(studio, model32, full_index):
    handlers = Handlers(studio)
    asked = [
        AttributeSettings(method=name, top_k=8, unlearn=UNLEARN, batch=6)
        for name in ("unlearning", "influence", "clip")
    ]
    boxes = ((0.0, 0.0, 16.0, 16.0),)
    queries = [Query("a red bird and a blue key", random_picture(90)), Query("a key", random_picture(90), None, boxes)]
    regions = [Region("whole picture"), Region("a key", boxes, label="a key")]
    sampled = GenerateSettings(steps=7)
    *_, (status, runs, *rest) = handlers._answer(regions, queries, asked, False, Event(), sampled)
    tabs, panels = rest[:MOST], rest[MOST:]
    assert "data-state='done'" in status
    assert [name for name, _ in runs] == ["whole picture", "a key"]
    for query, html in zip(queries, panels, strict=False):
        for each in asked:
            *_, last = attribute(model32, full_index, query, each)
            assert cards(html, each.method) == [result.row for result in last.results]
            for result in last.results:
                assert f"score {result.score:+.4f}" in html
    assert panels[2:] == [""] * (MOST - 2)
    for html, (_, run) in zip(panels, runs, strict=False):
        assert studio.run_file(run.id).is_file()
        assert f"data-run='{run.id}'" in html
        assert run.sampled == sampled
    assert [run.label for _, run in runs] == ["", "a key"]
    assert len(tabs) == MOST


def test_a_kept_run_is_opened_again(studio, answers):
    run = Run(tuple(answers.values()), GenerateSettings(steps=7))
    studio.runs.keep(run, studio.index, studio.model)
    made = KeptRuns(Handlers(studio)).reopen(run.id, folded=False)
    picture, shown, prompt, panels, seed = made[0], made[1], made[6], made[10 + MOST : -1], made[-1]
    assert "value" not in seed  # an upload's: the seed that is there stays
    assert picture.image.tobytes() == run.query.image.tobytes()
    assert picture.settings == GenerateSettings(steps=7)
    assert shown["boxes"] == []
    assert prompt == "a <b>red</b> bird"
    assert cards(panels[0], "clip") == [result.row for result in answers["clip"].results]
    drawn = replace(run, answers=tuple(replace(each, query=replace(each.query, seed=31)) for each in run.answers))
    studio.runs.keep(drawn, studio.index, studio.model)
    assert KeptRuns(Handlers(studio)).reopen(drawn.id, folded=False)[-1] == 31
    with pytest.raises(gr.Error, match="is not kept here"):
        KeptRuns(Handlers(studio)).reopen_chosen("0" * 12, False, REQUEST)


def test_a_region_is_called_on_reopening_what_it_was_called(studio, answers):
    boxed = tuple(
        replace(each, query=replace(each.query, boxes=((1.0, 2.0, 20.0, 30.0),))) for each in answers.values()
    )
    run = Run(boxed, label="bird")
    studio.runs.keep(run, studio.index, studio.model)
    kept = KeptRuns(Handlers(studio))
    made = kept.reopen(run.id, folded=False)
    assert made[7] == [["bird", 1.0, 2.0, 20.0, 30.0]]
    assert [box["label"] for box in made[1]["boxes"]] == ["bird"]
    assert made[10].label == "1 · bird"
    mine, _ = kept.remember([("bird", run)], [])
    assert mine == [["a <b>red</b> bird · bird", run.id]]


def test_a_visitors_own_runs_are_remembered_newest_first(studio, answers):
    kept, run = KeptRuns(Handlers(studio)), Run((answers["clip"],))
    mine, _ = kept.remember([("whole", run)], [["old", "0" * 12], ["again", run.id]])
    assert [run_id for _, run_id in mine] == [run.id, "0" * 12]


@pytest.mark.parametrize(
    "bad", [{"top_k": 0}, {"top_k": 2.5}, {"top_k": 101}, {"picture": None}, {"compared": ["magic"]}]
)
def test_what_is_not_possible_is_refused_before_any_work(studio, bad):
    asked = {"picture": Picture(random_picture(1), "a bus", 1), "top_k": 2, "compared": ["clip"]} | bad
    steps = Handlers(studio).attribute(
        "a bus", asked["picture"], [], [], asked["top_k"], False, asked["compared"], True, REQUEST
    )
    status, *rest = next(steps)
    assert "data-state='error'" in status
    assert len(rest) == 2 + 2 * MOST
    with pytest.raises(gr.Error, match=r"accepted|no picture"):
        next(steps)


def test_what_takes_a_runs_place_waits_for_its_last_word(studio, answers):
    kept, run = KeptRuns(Handlers(studio)), Run((answers["clip"],))
    studio.runs.keep(run, studio.index, studio.model)
    steps = kept.handlers.attribute("a bus", Picture(random_picture(1)), [], [], 2, False, [], True, REQUEST)
    stop = next(steps)[-1]
    assert stop.interactive
    told = []
    told_before = []

    def open_another():
        kept.reopen_chosen(run.id, False, REQUEST)
        told_before.append(len(told))

    opening = Thread(target=open_another)
    opening.start()
    opening.join(0.5)
    assert kept.handlers.controls(REQUEST)[-1].interactive  # Stop
    for step in steps:
        told.append(step)
    opening.join(10)
    assert told_before == [len(told)]
    assert "data-state='stopped'" in told[-2][0]
    assert all(update == gr.skip() for update in told[-1])  # Gradio sends the last one again
    assert not kept.handlers.controls(REQUEST)[-1].interactive


def test_a_run_whose_visitor_left_frees_the_device(studio):
    handlers = Handlers(studio)
    steps = handlers.attribute("a bus", Picture(random_picture(1)), [], [], 2, False, ["pixel"], True, REQUEST)
    while "data-state='running'" not in str(next(steps)[0]):
        assert studio.waiting <= 1
    assert studio.waiting == 1
    steps.close()
    assert studio.waiting == 0
    assert not handlers.controls(REQUEST)[-1].interactive


# The line


def test_first_come_first_served(studio):
    order, gates = [], {name: Event() for name in "abc"}
    started = Event()

    def work(_model, _index, _stop, name):
        order.append(name)
        started.set()
        gates[name].wait(10)
        yield name

    def visit(name):
        list(studio.alone(Job(work, (name,)), Event()))

    threads = []
    for waiting, name in enumerate("abc", 1):
        threads.append(Thread(target=visit, args=(name,)))
        threads[-1].start()
        if name == "a":
            assert started.wait(10)
        for _ in range(1000):
            if studio.waiting == waiting:
                break
            Event().wait(0.01)
    assert order == ["a"]
    for name in "abc":
        gates[name].set()
    for thread in threads:
        thread.join(10)
    assert order == ["a", "b", "c"]
    assert studio.waiting == 0


def test_those_who_wait_are_told_their_place_and_can_leave(studio):
    ahead = studio.alone(job_of("first", "second"), Event())
    assert next(ahead) == "first"
    stop = Event()
    behind = studio.alone(job_of("mine"), stop)
    assert next(behind) == Waiting(1)
    stop.set()
    with pytest.raises(Stopped):
        next(behind)
    assert studio.waiting == 1
    ahead.close()
    assert studio.waiting == 0
    assert list(studio.alone(job_of("mine"), Event())) == ["mine"]


def test_a_long_line_refuses(studio):
    first = studio.alone(job_of(1, 2), Event())
    next(first)
    others = [studio.alone(job_of(1), Event()) for _ in range(LINE - 1)]
    for other in others:
        next(other)
    with pytest.raises(InputError, match=f"{LINE} runs are waiting already"):
        next(studio.alone(job_of(1), Event()))
    for each in (*others, first):
        each.close()
    assert studio.waiting == 0


def test_a_librarys_error_is_told_in_a_sentence_and_the_next_in_line_goes_on(studio, caplog):
    with pytest.raises(WorkFailed, match=r"could not be done here \(out of memory\)"):
        list(studio.alone(Job(broken, ()), Event()))
    assert "broken failed" in caplog.text
    assert "RuntimeError: out of memory" in caplog.text
    assert list(studio.alone(job_of("next"), Event())) == ["next"]


def broken(_model, _index, _stop):
    yield 1
    raise RuntimeError("out of memory\nand pages of hints")


def test_every_step_is_taken_in_one_thread_in_the_context_of_who_asks(studio):
    """Gradio takes a generator's steps in any of its threads; torch keeps its modes by thread."""
    asking = ContextVar("asking", default="nobody")

    def work(_model, _index, _stop):
        try:
            for _ in range(3):
                yield current_thread().name, asking.get()
        finally:
            ended.append(current_thread().name)

    def ask(name):
        asking.set(name)
        taken.append(next(steps))

    ended, taken = [], []
    steps = studio.alone(Job(work, ()), Event())
    for name in "ab":
        thread = Thread(target=ask, args=(name,))
        thread.start()
        thread.join(10)
    steps.close()
    (device,) = {name for name, _ in taken}
    assert [who for _, who in taken] == ["a", "b"]
    assert ended == [device]
    assert device != current_thread().name


def test_a_words_map_waits_for_its_turn(studio):
    ahead = studio.alone(job_of(1, 2), Event())
    next(ahead)
    shown = Handlers(studio).show_words(Picture(random_picture(1), "a red bird", 1), "", ["red", "bird"])
    assert "1 ahead" in next(shown)
    ahead.close()
    *_, html = shown
    assert html.count("data:image/png") == 2
    assert studio.waiting == 0
    assert list(Handlers(studio).show_words(None, "", ["red"])) == [""]
    assert "is not in the prompt" in [*Handlers(studio).show_words(Picture(random_picture(1)), "a bus", ["red"])][-1]


def told(_model, _index, _stop, *values):
    yield from values


def job_of(*values):
    return Job(told, values)


# A ZeroGPU Space


@pytest.fixture
def lent(studio, monkeypatch):
    """A studio whose jobs are sent as `spaces` 0.51 sends them, and what was asked of it and closed.

    Arguments and steps go through pipes; of an error only its kind comes back; closing the stream stops the work.
    """
    asked, closed = [], []

    def gpu(duration):
        def decorate(task):
            def sent(*given):
                asked.append(duration(*given))
                steps = task(*pickle.loads(pickle.dumps(given)))
                try:
                    for step in steps:
                        yield pickle.loads(pickle.dumps(step))
                except GeneratorExit:
                    closed.append(True)
                    raise
                except gr.Error:
                    raise
                except Exception as error:
                    raise gr.Error(type(error).__name__, title="ZeroGPU worker error") from None

            return sent

        return decorate

    monkeypatch.setenv("SPACES_ZERO_GPU", "true")
    monkeypatch.setitem(sys.modules, "spaces", SimpleNamespace(GPU=gpu))
    return Studio(studio.model, studio.index, studio.runs), asked, closed


QUERY = Query("a red bird", random_picture(99), 3)
QUICK = Job(attributing, ([QUERY], [AttributeSettings(method="pixel", top_k=2)]))


def test_jobs_can_be_sent_to_the_process_that_has_the_gpu(lent):
    """`spaces.GPU` is asked for as many seconds as the job's last took, and half of that more."""
    studio, asked, _ = lent
    *_, (place, method, answer) = studio.alone(QUICK, Event())
    assert (place, method, len(answer.results)) == (0, "pixel", 2)
    *_, picture = studio.alone(Job(generating, ("a red bird", 3, GenerateSettings(steps=2))), Event())
    assert picture.size == (32, 32)
    list(studio.alone(Job(detecting, (QUERY.image, ["bird"], "a red bird", 0.3, None)), Event()))
    assert asked == [60.0] * 3
    list(studio.alone(QUICK, Event()))
    assert 5 < asked[-1] < 60


def test_a_stop_ends_the_work_of_the_process_that_has_the_gpu(lent):
    studio, _, closed = lent
    stop = Event()
    steps = studio.alone(QUICK, stop)
    stop.set()
    with pytest.raises(Stopped):
        list(steps)
    assert closed == [True]
    assert studio.waiting == 0


def test_errors_of_the_process_that_has_the_gpu_arrive_whole(lent):
    studio, _, _ = lent
    with pytest.raises(InputError, match="the word 'cat' is not in the prompt"):
        list(studio.alone(Job(mapping, (QUERY.image, "a red bird", ["cat"])), Event()))
    with pytest.raises(DeviceUnavailable, match="gave no answer: RuntimeError"):
        list(studio.alone(Job(broken, ()), Event()))
    assert studio.waiting == 0


def test_spaces_is_imported_before_torch(tmp_path):
    """It stands in for CUDA, which a model looks for when it is loaded."""
    code = "import sys; sys.exit('torch: ' + str('torch' in sys.modules))"
    (tmp_path / "spaces.py").write_text(code)
    environment = {**os.environ, "SPACES_ZERO_GPU": "true", "PYTHONPATH": str(tmp_path)}
    command = [sys.executable, "app.py"]
    ended = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=120, check=False)
    assert ended.stderr.splitlines()[-1] == "torch: False"
