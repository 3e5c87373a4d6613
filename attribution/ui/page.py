"""The page: its layout, and below it the wiring."""

import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import gradio as gr
from gradio_image_annotation import image_annotator

from attribution.attribute import AttributeSettings
from attribution.model import GenerateSettings
from attribution.ui import answers, words
from attribution.ui.api import add_api
from attribution.ui.handlers import Handlers, throw_dice
from attribution.ui.regions import BOXES_FOLLOW, COLUMNS, EMPTY, MOST, RECOLOUR, START, TABLE_FOLLOWS
from attribution.ui.studio import LINE, Studio
from attribution.ui.style import COLOURS

KEEP = (600, 7200)  # seconds: look every ten minutes, delete temporary files that are two hours old
QUIET: dict[str, Any] = {"show_progress": "hidden", "api_visibility": "private"}
EDGE = 8  # px, the least side of a drawn box on the screen
QUICK = ("dino", "clip", "pixel")  # compared with at first
# A click on a card opens its image; what is hovered or focused is marked in every ranking.
CARDS = """
const cards = (row) => document.querySelectorAll(`.card[data-row="${row}"]`);
const rowOf = (event) => event.target.closest?.(".card[data-row]")?.dataset.row;
const mark = (event) => {
  document.querySelectorAll(".card.marked").forEach((card) => card.classList.remove("marked"));
  const row = rowOf(event);
  if (row !== undefined) cards(row).forEach((card) => card.classList.add("marked"));
};
element.addEventListener("click", (event) => {
  const row = rowOf(event);
  if (row !== undefined) trigger("select", {row: Number(row)});
});
element.addEventListener("mouseover", mark);
element.addEventListener("focusin", mark);
"""
EXAMPLES = """
element.addEventListener("click", (event) => {
  const run = event.target.closest?.("[data-run]")?.dataset.run;
  if (run) trigger("select", {run});
});
"""
SMOOTH = "behavior: matchMedia('(prefers-reduced-motion: reduce)').matches ? 'auto' : 'smooth'"
# Waits until there is something to read: a page without answers is too short to scroll that far.
TO_ANSWERS = f"""async () => {{
  for (let i = 0; i < 100 && !document.querySelector(".asked, .status[data-state=error]"); i++)
    await new Promise((resolve) => setTimeout(resolve, 50));
  document.querySelector("#acts").scrollIntoView({{block: "start", {SMOOTH}}});
}}"""
TO_OPENED = "() => document.querySelector('.opened')?.focus({preventScroll: true})"


@dataclass(frozen=True)
class Parts:
    """The components that handlers read and write."""

    prompt: gr.Textbox
    tokens: gr.HTML
    seed: gr.Number
    dice: gr.Button
    steps: gr.Slider
    guidance: gr.Slider
    generate: gr.Button
    upload: gr.UploadButton
    picture: gr.State
    annotator: image_annotator
    frame: gr.JSON
    note: gr.HTML
    labels: gr.Textbox
    threshold: gr.Slider
    find: gr.Button
    found: gr.HTML
    chosen: gr.CheckboxGroup
    maps: gr.HTML
    table: gr.Dataframe
    clear: gr.Button
    attribute: gr.Button
    stop: gr.Button
    top_k: gr.Number
    exhaustive: gr.Checkbox
    compared: gr.Dropdown
    folded: gr.Checkbox
    status: gr.HTML
    runs: gr.State
    tabs: list[gr.Tab]
    panels: list[gr.HTML]
    row: gr.State
    opened: gr.HTML
    search: gr.Button
    close: gr.Button
    forget: gr.Button
    forgotten: gr.HTML
    examples: gr.HTML
    history: gr.Dropdown
    mine: gr.BrowserState


def build_page(studio: Studio) -> gr.Blocks:
    """The page over a studio."""
    handlers = Handlers(studio)
    page = gr.Blocks(title="Attribution by unlearning", analytics_enabled=False, delete_cache=KEEP)
    with page:
        gr.HTML(f"<h1>Which training images is this picture made of?</h1><p>{words.INTRO}</p>", elem_id="intro")
        with gr.Row(elem_id="finished"):
            parts: dict[str, Any] = _lay_finished(studio)
        with gr.Row(elem_id="studio"):
            with gr.Column(elem_id="asking"):
                parts |= _lay_asking(handlers)
            with gr.Column(elem_id="looking"):
                parts |= _lay_looking()
                parts |= _lay_boxes()
            with gr.Column(elem_id="marking"):
                parts |= _lay_marking(studio)
        parts |= _lay_acting(studio)
        parts |= _lay_answering()
        gr.HTML(f"<p>{words.CREDITS}</p><p>{words.STORED}</p>", elem_id="credits")
        add_api(handlers)  # before all else, that the names are free
        wired = Parts(**parts)
        _wire_picture(handlers, wired)
        _wire_regions(handlers, wired)
        _wire_answers(handlers, wired)
        _wire_kept(handlers, wired)
        page.unload(handlers.stop)
    page.queue(default_concurrency_limit=LINE, max_size=4 * LINE)
    return page


def _lay_asking(handlers: Handlers) -> dict[str, Any]:
    defaults = GenerateSettings()
    prompt = gr.Textbox(words.PROMPT, label="Prompt", lines=2, max_lines=5, elem_id="prompt")
    tokens = gr.HTML(handlers.tokens(words.PROMPT), elem_id="tokens")
    with gr.Row(equal_height=True, elem_id="seeding"):
        seed = gr.Number(7, label="Seed", elem_id="seed", scale=3, min_width=80)
        dice = gr.Button("Roll the dice", elem_id="dice", scale=3, min_width=80)
        generate = gr.Button("Generate", variant="primary", elem_id="generate", scale=5, min_width=100)
    with gr.Accordion("Steps and guidance", open=False, elem_id="sampling"):
        steps = gr.Slider(1, 100, defaults.steps, step=1, label="Steps", elem_id="steps")
        guidance = gr.Slider(1, 20, defaults.guidance, step=0.5, label="Guidance", elem_id="guidance")
    with gr.Row(equal_height=True, elem_id="uploading"):
        upload = gr.UploadButton(
            "Upload instead", file_types=["image"], type="filepath", elem_id="upload", scale=0, min_width=140
        )
        gr.HTML(words.note(words.UPLOAD), elem_id="upload-note")
    return {
        "prompt": prompt,
        "tokens": tokens,
        "seed": seed,
        "dice": dice,
        "steps": steps,
        "guidance": guidance,
        "generate": generate,
        "upload": upload,
    }


def _lay_looking() -> dict[str, Any]:
    annotator = image_annotator(
        label="Picture",
        disable_edit_boxes=True,
        box_min_size=EDGE,
        boxes_alpha=0.1,
        label_list=[""],
        label_colors=[COLOURS[0]],
        sources=[],
        show_clear_button=False,
        show_download_button=False,
        show_share_button=False,
        show_remove_button=True,
        elem_id="picture",
    )
    note = gr.HTML(words.note(words.NO_PICTURE), elem_id="picture-note")
    return {"picture": gr.State(), "annotator": annotator, "frame": gr.JSON(visible=False), "note": note}


def _lay_marking(studio: Studio) -> dict[str, Any]:
    gr.HTML(f"<h2>What matters?</h2>{words.note(words.REGIONS)}", elem_id="regions-note")
    with gr.Row(equal_height=True, elem_id="finding"):
        labels = gr.Textbox(label="Objects", placeholder="guitar . frog", max_lines=1, elem_id="labels", scale=5)
        threshold = gr.Slider(
            0, 1, studio.threshold, step=0.01, label="Threshold", elem_id="threshold", scale=4, min_width=160
        )
        find = gr.Button("Find", elem_id="find", scale=2, min_width=80)
    found = gr.HTML(elem_id="found")
    chosen = gr.CheckboxGroup([], label="Words of the prompt", visible=False, elem_id="words")
    maps = gr.HTML(elem_id="maps")
    return {
        "labels": labels,
        "threshold": threshold,
        "find": find,
        "found": found,
        "chosen": chosen,
        "maps": maps,
    }


def _lay_boxes() -> dict[str, Any]:
    table = gr.Dataframe(
        EMPTY,
        headers=COLUMNS,
        datatype=["str", "number", "number", "number", "number"],
        type="array",
        interactive=True,
        column_count=len(COLUMNS),
        label="Boxes, in pixels of the picture",
        elem_id="boxes",
        buttons=[],
    )
    clear = gr.Button("Clear boxes", size="sm", elem_id="clear", min_width=90)
    return {"table": table, "clear": clear}


def _lay_acting(studio: Studio) -> dict[str, Any]:
    defaults = AttributeSettings()
    usable, missing = studio.methods()
    with gr.Row(equal_height=True, elem_id="acts"):
        attribute = gr.Button("Attribute", variant="primary", elem_id="attribute", scale=2, min_width=140)
        stop = gr.Button("Stop", elem_id="stop", scale=1, min_width=80, interactive=False)
        status = gr.HTML(words.IDLE, elem_id="run-status")
    with gr.Row(elem_id="how"):
        compared = gr.Dropdown(
            [name for name in usable if name != defaults.method],
            value=[name for name in QUICK if name in usable],
            multiselect=True,
            label="Compare with",
            info=words.COMPARED,
            elem_id="compared",
        )
        with gr.Accordion("Settings", open=False, elem_id="settings"):
            with gr.Row():
                top_k = gr.Number(defaults.top_k, label="K, training images shown", elem_id="top-k", min_width=120)
                exhaustive = gr.Checkbox(
                    defaults.exhaustive, label="Exhaustive", info=words.EXHAUSTIVE, elem_id="exhaustive", min_width=120
                )
                folded = gr.Checkbox(
                    True, label="Fold near-duplicates", info=words.FOLDED, elem_id="folded", min_width=120
                )
            gr.HTML(words.missing(missing), elem_id="missing")
    return {
        "attribute": attribute,
        "stop": stop,
        "status": status,
        "compared": compared,
        "top_k": top_k,
        "exhaustive": exhaustive,
        "folded": folded,
    }


def _lay_answering() -> dict[str, Any]:
    tabs, panels = [], []
    with gr.Tabs(elem_id="answers"):
        for place in range(MOST):
            with gr.Tab("", visible=False, id=place, elem_id=f"answer-{place}") as tab:
                panels.append(gr.HTML(elem_classes=["panel"], js_on_load=CARDS))
            tabs.append(tab)
    with gr.Column(elem_id="drawer"):
        opened = gr.HTML(elem_id="opened")
        with gr.Row(elem_id="drawn"):
            search = gr.Button("Search from this image", size="sm", visible=False, elem_id="search")
            close = gr.Button("Close", size="sm", visible=False, elem_id="close")
    with gr.Accordion("Generate again without it", open=False, elem_id="check"):
        gr.HTML(words.note(words.FORGET))
        forget = gr.Button("Generate again without it", elem_id="forget")
        forgotten = gr.HTML(elem_id="forgotten")
    return {
        "runs": gr.State([]),
        "tabs": tabs,
        "panels": panels,
        "row": gr.State(),
        "opened": opened,
        "search": search,
        "close": close,
        "forget": forget,
        "forgotten": forgotten,
    }


def _lay_finished(studio: Studio) -> dict[str, Any]:
    shown = "".join(answers.example(run, studio.index) for run in studio.shipped)
    examples = gr.HTML(words.examples(shown), elem_id="examples", js_on_load=EXAMPLES, visible=bool(shown))
    history = gr.Dropdown([], value=None, label=words.HISTORY, elem_id="history", visible=False)
    mine = gr.BrowserState([], storage_key="attribution-runs", secret="attribution-runs")
    return {"examples": examples, "history": history, "mine": mine}


def _wire_picture(handlers: Handlers, on: Parts) -> None:
    shown = [on.picture, on.annotator, on.frame, on.chosen, on.labels, on.note]
    on.prompt.change(handlers.tokens, on.prompt, on.tokens, queue=False, **QUIET)
    on.dice.click(throw_dice, None, on.seed, queue=False, **QUIET)
    generated = gr.on(
        [on.generate.click, on.prompt.submit, on.seed.submit],
        handlers.generate,
        [on.prompt, on.seed, on.steps, on.guidance],
        shown,
        show_progress="full",
        show_progress_on=on.annotator,
        api_visibility="private",
    )
    uploaded = on.upload.upload(handlers.upload, [on.upload, on.prompt], shown, **QUIET)
    searched = on.search.click(handlers.search_from, on.row, [*shown, on.prompt], **QUIET)
    for new_picture in (generated, uploaded, searched):
        new_picture.success(_cleared, None, _answer_parts(on), queue=False, **QUIET)


def _answer_parts(on: Parts) -> list[Any]:
    asked = [on.table, on.found, on.maps, on.status, on.runs, on.forgotten]
    return [*asked, *_drawer(on), *on.tabs, *on.panels]


def _drawer(on: Parts) -> list[Any]:
    return [on.opened, on.search, on.close]


def _closed() -> list[Any]:
    return ["", gr.Button(visible=False), gr.Button(visible=False)]


def _cleared() -> list[Any]:
    """What was answered belongs to the picture before."""
    return [EMPTY, "", "", words.IDLE, [], "", *_closed(), *[gr.Tab(visible=False)] * MOST, *[""] * MOST]


def _wire_regions(handlers: Handlers, on: Parts) -> None:
    both = [on.annotator, on.frame, on.table]
    on.annotator.change(None, both, on.table, js=TABLE_FOLLOWS)  # in the browser alone
    on.table.input(None, both, on.annotator, js=BOXES_FOLLOW)
    on.clear.click(None, both, [on.annotator, on.table], js=CLEAR)
    gr.on(
        [on.find.click, on.labels.submit],
        handlers.detect,
        [on.picture, on.prompt, on.labels, on.threshold],
        [on.table, on.annotator, on.found],
        show_progress="minimal",
        show_progress_on=on.found,
        api_visibility="private",
    )
    asked = [on.picture, on.prompt, on.chosen]
    on.chosen.input(handlers.show_words, asked, on.maps, trigger_mode="always_last", **QUIET)


CLEAR = f"""(drawn, frame, table) =>
  [drawn && {{...drawn, boxes: []}}, {{...table, data: {json.dumps(EMPTY)}}}]"""


def _wire_answers(handlers: Handlers, on: Parts) -> None:
    controls = [on.generate, on.attribute, on.find, on.forget, on.stop]
    busy: dict[str, Any] = {"outputs": controls, "queue": False, **QUIET}
    coloured = on.attribute.click(None, [on.annotator, on.frame, on.table], on.annotator, js=RECOLOUR)
    answered = coloured.then(lambda: _busy(True), **busy).then(
        handlers.attribute,
        [on.prompt, on.picture, on.table, on.chosen, on.top_k, on.exhaustive, on.compared, on.folded],
        [on.status, on.runs, *on.tabs, *on.panels],
        show_progress="hidden",
        api_visibility="private",
    )
    forgot = on.forget.click(lambda: _busy(True), **busy).then(
        handlers.forget, [on.picture, on.table, on.chosen], [on.status, on.forgotten], **QUIET
    )
    answered.success(handlers.remember, [on.runs, on.mine], [on.mine, on.history], queue=False, **QUIET)
    for run in (answered, forgot):
        for ended in (run.success, run.failure):  # Gradio 6.31 runs `then` after a success only
            ended(lambda: _busy(False), **busy)
    on.stop.click(handlers.stop, queue=False, **QUIET)
    on.folded.input(handlers.fold, [on.runs, on.folded], on.panels, **QUIET)
    coloured.then(None, None, None, js=TO_ANSWERS)
    for place, panel in enumerate(on.panels):
        opened = panel.select(_opening(handlers, place), on.runs, [on.row, *_drawer(on)], **QUIET)
        opened.success(None, None, None, js=TO_OPENED)
    on.close.click(_closed, None, _drawer(on), queue=False, **QUIET)


def _wire_kept(handlers: Handlers, on: Parts) -> None:
    """Runs by link, examples, and the visitor's own."""
    page = [on.picture, on.annotator, on.frame, on.chosen, on.labels, on.note, on.prompt, on.table, on.status, on.runs]
    opened = [*page, *on.tabs, *on.panels, on.seed]
    context = gr.context.Context.root_block
    assert context is not None
    context.load(None, None, None, js=START)
    loaded = context.load(handlers.reopen_linked, on.folded, opened, **QUIET)
    loaded.success(handlers.list_runs, on.mine, on.history, queue=False, **QUIET)
    chosen = on.history.input(handlers.reopen_chosen, [on.history, on.folded], opened, **QUIET)
    example = on.examples.select(_reopening(handlers), on.folded, opened, **QUIET)
    for reopened in (loaded, chosen, example):
        reopened.success(_closed, None, _drawer(on), queue=False, **QUIET)
        reopened.success(handlers.show_words, [on.picture, on.prompt, on.chosen], on.maps, **QUIET)
    for picked in (chosen, example):
        picked.success(None, None, None, js=TO_ANSWERS)


def _reopening(handlers: Handlers) -> Callable[..., tuple[Any, ...]]:
    def reopening(folded: bool, event: gr.EventData) -> tuple[Any, ...]:  # Gradio reads the event's annotation
        return handlers.reopen_example(event, folded)

    return reopening


def _opening(handlers: Handlers, place: int) -> Callable[..., tuple[Any, ...]]:
    def opening(runs: Any, event: gr.EventData) -> tuple[Any, ...]:  # Gradio reads the event's annotation
        return handlers.open_image(event, runs, place)

    return opening


def _busy(running: bool) -> list[Any]:
    """The buttons that use the device and Stop, while a run is under way or not."""
    return [*[gr.Button(interactive=not running)] * 4, gr.Button(interactive=running)]
