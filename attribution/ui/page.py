"""The page: what is used on it, and what then happens."""

from collections.abc import Callable
from typing import Any

import gradio as gr

from attribution.ui import layout, script, words
from attribution.ui.api import add_api
from attribution.ui.handlers import Handlers, closed, starting, throw_dice
from attribution.ui.kept import KeptRuns
from attribution.ui.layout import Parts
from attribution.ui.studio import LINE, Studio

KEEP = (600, 7200)  # seconds: look every ten minutes, delete temporary files that are two hours old
QUIET: dict[str, Any] = {"show_progress": "hidden", "api_visibility": "private"}


def build_page(studio: Studio) -> gr.Blocks:
    """The page over a studio."""
    handlers = Handlers(studio)
    page = gr.Blocks(title="Attribution by unlearning", analytics_enabled=False, delete_cache=KEEP)
    with page:
        gr.HTML(f"<h1>Which training images is this picture made of?</h1><p>{words.INTRO}</p>", elem_id="intro")
        with gr.Row(elem_id="finished"):
            parts: dict[str, Any] = layout.lay_finished(studio)
        with gr.Row(elem_id="studio"):
            with gr.Column(elem_id="asking"):
                parts |= layout.lay_asking(studio)
            with gr.Column(elem_id="looking"):
                parts |= layout.lay_looking()
                parts |= layout.lay_boxes()
            with gr.Column(elem_id="marking"):
                parts |= layout.lay_marking(studio)
        parts |= layout.lay_acting(studio)
        parts |= layout.lay_answering()
        gr.HTML(f"<p>{words.CREDITS}</p><p>{words.STORED}</p>", elem_id="credits")
        add_api(handlers)  # before all else, that the names are free
        wired = Parts(**parts)
        _wire_picture(handlers, wired)
        _wire_regions(handlers, wired)
        kept = KeptRuns(handlers)
        _wire_answers(handlers, kept, wired)
        _wire_kept(handlers, kept, wired)
        page.unload(handlers.stop)
    page.queue(default_concurrency_limit=LINE, max_size=4 * LINE)
    return page


def _wire_picture(handlers: Handlers, on: Parts) -> None:
    shown = [on.picture, on.annotator, on.frame, on.chosen, on.labels, on.note, *on.answered]
    on.prompt.change(handlers.tokens, on.prompt, on.tokens, queue=False, **QUIET)
    on.dice.click(throw_dice, None, on.seed, queue=False, **QUIET)
    asked = [on.generate.click, on.prompt.submit, on.seed.submit]
    generated = gr.on(asked, starting, **_controls(on)).then(
        handlers.generate,
        [on.prompt, on.seed, on.steps, on.guidance],
        [*shown, on.stop],
        show_progress="full",
        show_progress_on=on.annotator,
        api_visibility="private",
    )
    _free_after(generated, handlers, on)
    on.upload.upload(handlers.upload, [on.upload, on.prompt], shown, **QUIET)
    on.search.click(handlers.search_from, on.row, [*shown, on.prompt], **QUIET)


def _wire_regions(handlers: Handlers, on: Parts) -> None:
    both = [on.annotator, on.frame, on.table]
    on.annotator.change(None, both, on.table, js=script.TABLE_FOLLOWS)  # in the browser alone
    on.table.input(None, both, on.annotator, js=script.BOXES_FOLLOW)
    on.clear.click(None, both, [on.annotator, on.table], js=script.CLEAR)
    sought = gr.on([on.find.click, on.labels.submit], starting, **_controls(on)).then(
        handlers.detect,
        [on.picture, on.prompt, on.labels, on.threshold],
        [on.table, on.annotator, on.found, on.stop],
        show_progress="minimal",
        show_progress_on=on.found,
        api_visibility="private",
    )
    _free_after(sought, handlers, on)
    asked = [on.picture, on.prompt, on.chosen]
    on.chosen.input(handlers.show_words, asked, on.maps, trigger_mode="always_last", **QUIET)


def _wire_answers(handlers: Handlers, kept: KeptRuns, on: Parts) -> None:
    controls = _controls(on)
    coloured = on.attribute.click(None, [on.annotator, on.frame, on.table], on.annotator, js=script.RECOLOUR)
    answered = coloured.then(starting, **controls).then(
        handlers.attribute,
        [on.prompt, on.picture, on.table, on.chosen, on.top_k, on.exhaustive, on.compared, on.folded],
        [on.status, on.runs, *on.tabs, *on.panels, on.stop],
        show_progress="hidden",
        api_visibility="private",
    )
    forgot = on.forget.click(starting, **controls).then(
        handlers.forget, [on.picture, on.table, on.chosen], [on.status, on.forgotten, on.stop], **QUIET
    )
    answered.success(kept.remember, [on.runs, on.mine], [on.mine, on.history], queue=False, **QUIET)
    for run in (answered, forgot):
        _free_after(run, handlers, on)
    on.stop.click(handlers.stop, queue=False, **QUIET)
    on.folded.input(handlers.fold, [on.runs, on.folded], on.panels, **QUIET)
    coloured.then(None, None, None, js=script.TO_ANSWERS)
    for place, panel in enumerate(on.panels):
        opened = panel.select(_opening(handlers, place), on.runs, [on.row, *on.drawer], **QUIET)
        opened.success(None, None, None, js=script.TO_OPENED)
    on.close.click(closed, None, on.drawer, js=script.CLOSED, queue=False, **QUIET)


def _wire_kept(handlers: Handlers, kept: KeptRuns, on: Parts) -> None:
    """Runs by link, examples, and the visitor's own."""
    page = [on.picture, on.annotator, on.frame, on.chosen, on.labels, on.note, on.prompt, on.table, on.status, on.runs]
    opened = [*page, *on.tabs, *on.panels, on.seed]
    context = gr.context.Context.root_block
    assert context is not None
    context.load(None, None, None, js=script.START)
    loaded = context.load(kept.reopen_linked, on.folded, opened, **QUIET)
    loaded.success(kept.list_runs, on.mine, on.history, queue=False, **QUIET)
    chosen = on.history.input(kept.reopen_chosen, [on.history, on.folded], opened, **QUIET)
    example = on.examples.select(_reopening(kept), on.folded, opened, **QUIET)
    for reopened in (loaded, chosen, example):
        before = [on.found, on.forgotten, *on.drawer]  # of the picture before
        reopened.success(lambda: ["", "", *closed()], None, before, queue=False, **QUIET)
        reopened.success(handlers.show_words, [on.picture, on.prompt, on.chosen], on.maps, **QUIET)
    for picked in (chosen, example):
        picked.success(None, None, None, js=script.TO_ANSWERS)


def _reopening(kept: KeptRuns) -> Callable[..., tuple[Any, ...]]:
    def reopening(folded: bool, event: gr.EventData, request: gr.Request) -> tuple[Any, ...]:  # Gradio reads these
        return kept.reopen_example(event, folded, request)

    return reopening


def _opening(handlers: Handlers, place: int) -> Callable[..., tuple[Any, ...]]:
    def opening(runs: Any, event: gr.EventData) -> tuple[Any, ...]:  # Gradio reads the event's annotation
        return handlers.open_image(event, runs, place)

    return opening


def _controls(on: Parts) -> dict[str, Any]:
    controls = [on.generate, on.attribute, on.find, on.forget, on.stop]
    return {"outputs": controls, "queue": False, **QUIET}


def _free_after(run: Any, handlers: Handlers, on: Parts) -> None:
    for ended in (run.success, run.failure):  # Gradio 6.31 runs `then` after a success only
        ended(handlers.controls, **_controls(on))
