"""The page: what is used on it, and what then happens."""

from collections.abc import Callable
from typing import Any

import gradio as gr

from attribution.answers.provenance import credits_of, model_name, source_name
from attribution.ui import layout, script, words
from attribution.ui.api import add_api
from attribution.ui.asking import Questions
from attribution.ui.check import lay_check
from attribution.ui.checking import Checks
from attribution.ui.first import begin_with
from attribution.ui.handlers import Handlers, Update
from attribution.ui.kept import KeptRuns
from attribution.ui.layout import Parts
from attribution.ui.marks import Marks
from attribution.ui.pictures import Pictures, throw_dice
from attribution.ui.proof import lay_proof
from attribution.ui.studio import LINE, Studio

KEEP = (600, 7200)  # seconds: look every ten minutes, delete temporary files that are two hours old
QUIET: dict[str, Any] = {"show_progress": "hidden", "api_visibility": "private"}
AT_ONCE: dict[str, Any] = {"queue": False, **QUIET}
LOOK = (
    0.02  # seconds between looks at the queue: Gradio's 1 ms is work of its own, and kept a browser on one core waiting
)


def build_page(studio: Studio) -> gr.Blocks:
    """The page over a studio."""
    page = gr.Blocks(title="Attribution by unlearning", analytics_enabled=False, delete_cache=KEEP)
    with page:
        parts = lay(studio)
        add_api(studio)  # before all else, that the names are free
        handlers = Handlers(studio, parts)
        pictures = Pictures(handlers)
        kept = KeptRuns(pictures)
        _wire_picture(pictures)
        _wire_regions(Marks(handlers))
        questions = Questions(handlers)
        _wire_answers(questions, pictures, kept)
        page.load(questions.budgets, None, parts.budget, **AT_ONCE)
        _wire_checks(Checks(handlers))
        _wire_kept(kept, Marks(handlers), page)
        page.unload(handlers.stop)
    if studio.shipped:
        begin_with(kept.first())
    page.queue(default_concurrency_limit=LINE, max_size=4 * LINE)
    page._queue.sleep_when_free = page._queue.progress_update_sleep_when_free = LOOK
    return page


def lay(studio: Studio) -> Parts:
    """The components of the page, where they are seen."""
    credits = credits_of(studio.index)
    gr.HTML(words.introduction(credits.about or own_world(studio)), elem_id="intro")
    with gr.Row(elem_id="finished"):
        parts: dict[str, Any] = layout.lay_finished(studio)
    with gr.Row(elem_id="studio"):
        with gr.Column(elem_id="asking"):
            parts |= layout.lay_asking(studio)
        with gr.Column(elem_id="looking"):
            parts |= layout.lay_looking()
        with gr.Column(elem_id="marking"):
            parts |= layout.lay_marking(studio)
            parts |= layout.lay_boxes()
    parts |= layout.lay_acting(studio)
    parts |= layout.lay_answering()
    parts |= lay_check(studio.proof.foreseen if studio.proof else ())
    lay_proof(studio)
    gr.HTML(words.credited(credits), elem_id="credits")
    return Parts(**parts)


def own_world(studio: Studio) -> str:
    """A model and training set of somebody's own, in a few words."""
    index = studio.index
    return words.own(model_name(index), studio.model.resolution, len(index), source_name(index))


def _wire_picture(pictures: Pictures) -> None:
    on, handlers = pictures.on, pictures.handlers
    taken = [*on.shown, *on.answered]
    on.prompt.change(pictures.tokens, on.prompt, on.tokens, **AT_ONCE)
    read = [on.chosen, on.labels]
    on.prompt.change(pictures.reworded, [on.prompt, on.picture, on.chosen], read, **AT_ONCE)
    on.chips.select(_prompting(pictures), None, on.prompt, **AT_ONCE)
    on.dice.click(throw_dice, None, on.seed, **AT_ONCE)
    asked = [on.prompt, on.seed, on.steps, on.guidance]
    pressed: list[Any] = [on.generate.click, on.seed.submit]
    for events, ask, given in (
        (pressed, pictures.generation, asked),
        ([on.prompt.submit], pictures.entered, [on.picture, *asked]),
    ):
        generated = gr.on(events, handlers.starting, None, on.acts, **AT_ONCE).then(
            handlers.following(ask, pictures.refused),
            given,
            [*taken, on.stop],
            show_progress="full",
            show_progress_on=on.annotator,
            api_visibility="private",
        )
        _free_after(generated, handlers)
        _follow_address(generated, on)
    uploaded = on.upload.upload(pictures.upload, on.upload, [*taken, on.prompt], **QUIET)
    searched = on.search.click(pictures.search_from, on.row, [*taken, on.prompt], **QUIET)
    for taken_in_place in (uploaded, searched):
        _follow_address(taken_in_place, on)


def _wire_regions(marks: Marks) -> None:
    on, handlers = marks.on, marks.handlers
    both = [on.annotator, on.frame, on.table]
    on.annotator.change(None, both, [on.table, on.annotator], js=script.TABLE_FOLLOWS)  # in the browser alone
    on.annotator.change(None, [on.annotator, on.frame, on.chosen], [on.annotator, on.marked], js=script.REFUSE)
    on.table.input(None, both, on.annotator, js=script.BOXES_FOLLOW)
    for told in (on.table.input, on.chosen.input):
        told(marks.typed, [on.picture, on.table, on.chosen], on.marked, trigger_mode="always_last", **AT_ONCE)
    on.clear.click(None, both, [on.annotator, on.table], js=script.CLEAR)
    sought = gr.on([on.find.click, on.labels.submit], handlers.starting, None, on.acts, **AT_ONCE).then(
        handlers.following(marks.detection, marks.refused),
        [on.picture, on.prompt, on.labels, on.threshold],
        [on.table, on.annotator, on.found, on.stop],
        show_progress="minimal",
        show_progress_on=on.found,
        api_visibility="private",
    )
    _free_after(sought, handlers)
    asked = [on.picture, on.prompt, on.chosen]
    on.chosen.input(marks.show_words, asked, on.maps, trigger_mode="always_last", **QUIET)


def _wire_answers(questions: Questions, pictures: Pictures, kept: KeptRuns) -> None:
    on, handlers = questions.on, questions.handlers
    coloured = on.attribute.click(None, on.annotator, None, js=script.COLOUR_TABS)
    answered = coloured.then(handlers.starting, None, on.acts, **AT_ONCE).then(
        handlers.following(questions.attribution, questions.refused),
        [on.prompt, on.picture, on.table, on.chosen, on.top_k, on.budget, on.compared, on.folded, on.agreed],
        [on.status, *on.finished, on.link, *on.tabs, *on.panels, on.stop, on.attribute, on.agreed],
        **QUIET,
    )
    _follow_address(answered, on)
    answered.success(kept.remember, [on.runs, on.mine], [on.mine, on.history], **AT_ONCE)
    answered.then(questions.budgets, None, on.budget, **AT_ONCE)
    _free_after(answered, handlers)
    on.stop.click(handlers.stop, **AT_ONCE)
    for other in (on.budget.input, on.compared.input):
        other(questions.plain, None, [on.attribute, on.agreed], **AT_ONCE)
    on.folded.input(questions.fold, [on.runs, on.folded], on.panels, **QUIET)
    coloured.then(None, None, None, js=script.TO_ANSWERS)
    for place, panel in enumerate(on.panels):
        opened = panel.select(_opening(questions, place), on.runs, [on.row, *on.drawer], **QUIET)
        opened.success(None, None, None, js=script.TO_OPENED)
    on.close.click(pictures.closed, None, on.drawer, js=script.CLOSED, **AT_ONCE)


def _wire_checks(checks: Checks) -> None:
    on, handlers = checks.on, checks.handlers
    forgot = on.forget.click(handlers.starting, None, on.acts, **AT_ONCE).then(
        handlers.following(checks.forgetting, checks.refused),
        [on.picture, on.table, on.chosen, on.weakest, on.strength],
        [on.status, on.forgotten, on.strength, on.stop],
        **QUIET,
    )
    removed = on.remove.click(handlers.starting, None, on.acts, **AT_ONCE).then(
        handlers.following(checks.removing, checks.refused),
        [on.runs, on.named, on.beside, on.removal_weakest, on.removal_strength],
        [on.status, on.removed, on.removal_strength, on.stop],
        **QUIET,
    )
    for strength, weakest in ((on.strength, on.weakest), (on.removal_strength, on.removal_weakest)):
        strength.input(None, None, weakest, js="() => false")  # whoever chooses one wants that one
    for run in (forgot, removed):
        _free_after(run, handlers)


def _wire_kept(kept: KeptRuns, marks: Marks, page: gr.Blocks) -> None:
    """Runs by link, examples, and the visitor's own."""
    on = kept.on
    outputs = [*on.shown, on.prompt, on.seed, on.table, on.status, on.link, *on.tabs, *on.panels]
    outputs += [on.found, on.forgotten, *on.finished, *on.drawer]
    page.load(None, None, None, js=script.START)
    loaded = page.load(kept.reopen_linked, on.folded, outputs, **QUIET)
    loaded.success(kept.list_runs, on.mine, on.history, **AT_ONCE)
    chosen = on.history.input(kept.reopen_chosen, [on.history, on.folded], outputs, **QUIET)
    example = on.examples.select(_reopening(kept), on.folded, outputs, **QUIET)
    for reopened in (loaded, chosen, example):
        reopened.success(marks.show_words, [on.picture, on.prompt, on.chosen], on.maps, **QUIET)
    for ended in (loaded.success, loaded.failure):
        ended(None, None, None, js=script.TO_LINKED)
    for picked in (chosen, example):
        _follow_address(picked, on)
        picked.success(None, None, None, js=script.TO_ANSWERS)
    for reopened in (loaded, chosen, example):
        reopened.success(None, on.annotator, None, js=script.COLOUR_TABS)


def _prompting(pictures: Pictures) -> Callable[..., str]:
    def prompting(event: gr.EventData) -> str:  # Gradio reads the event's annotation
        return pictures.prompt_about(event)

    return prompting


def _reopening(kept: KeptRuns) -> Callable[..., Update]:
    def reopening(folded: bool, event: gr.EventData, request: gr.Request) -> Update:  # Gradio reads these
        return kept.reopen_example(event, folded, request)

    return reopening


def _opening(questions: Questions, place: int) -> Callable[..., Update]:
    def opening(runs: Any, event: gr.EventData) -> Update:  # Gradio reads the event's annotation
        return questions.open_image(event, runs, place)

    return opening


def _follow_address(run: Any, on: Parts) -> None:
    run.success(None, on.link, None, js=script.FOLLOW_RUNS)


def _free_after(run: Any, handlers: Handlers) -> None:
    for ended in (run.success, run.failure):  # Gradio 6.31 runs `then` after a success only
        ended(handlers.controls, None, [*handlers.on.acts, handlers.on.stop], **AT_ONCE)
