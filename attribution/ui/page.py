"""The page: its layout, and below it the wiring."""

from typing import Any, NamedTuple

import gradio as gr
from gradio_image_annotation import image_annotator

from attribution.attribute import AttributeSettings
from attribution.ui import words
from attribution.ui.box import BOX_FOLLOWS, CLEAR, NAMES, NUMBERS_FOLLOW, START
from attribution.ui.handlers import Handlers, throw_dice
from attribution.ui.studio import Studio
from attribution.ui.style import ACCENT

KEEP = (600, 7200)  # seconds: look every ten minutes, delete temporary files that are two hours old
VISITORS = 20  # runs that may wait for the device at once
QUIET: dict[str, Any] = {"show_progress": "hidden", "api_visibility": "private"}
EDGE = 8  # px, the least side of a drawn box on the screen


class Asking(NamedTuple):
    """Where a picture comes from."""

    prompt: gr.Textbox
    tokens: gr.HTML
    seed: gr.Number
    dice: gr.Button
    generate: gr.Button
    upload: gr.UploadButton


class Looking(NamedTuple):
    """The picture and the box on it."""

    picture: gr.State
    annotator: image_annotator
    frame: gr.JSON
    note: gr.HTML
    numbers: list[gr.Number]
    clear: gr.Button


class Acting(NamedTuple):
    """The question, and how far its answer is."""

    attribute: gr.Button
    stop: gr.Button
    top_k: gr.Number
    exhaustive: gr.Checkbox
    status: gr.HTML


class Answering(NamedTuple):
    """Unlearning's ranking, and another method's beside it."""

    galleries: list[gr.Gallery]
    compared: gr.Dropdown
    heading: gr.HTML
    asked: gr.State


def build_page(studio: Studio) -> gr.Blocks:
    """The page over a studio."""
    handlers = Handlers(studio)
    page = gr.Blocks(title="Attribution by unlearning", analytics_enabled=False, delete_cache=KEEP)
    with page:
        gr.HTML(f"<h1>Which training images is this picture made of?</h1><p>{words.INTRO}</p>", elem_id="intro")
        with gr.Row(elem_id="studio"):
            with gr.Column(elem_id="asking"):
                asking = _lay_asking(handlers)
            with gr.Column(elem_id="looking"):
                looking = _lay_looking()
            with gr.Column(elem_id="acting"):
                acting = _lay_acting()
        with gr.Row(elem_id="answers"):
            answering = _lay_answering(studio)
        gr.HTML(f"<p>{words.CREDITS}</p><p>{words.STORED}</p>", elem_id="credits")
        _wire_picture(handlers, asking, looking, acting, answering)
        _wire_box(looking)
        _wire_acting(handlers, asking, looking, acting, answering)
        page.load(None, None, looking.numbers, js=START)
        page.unload(handlers.stop)
    page.queue(default_concurrency_limit=VISITORS, max_size=4 * VISITORS)
    return page


def _lay_asking(handlers: Handlers) -> Asking:
    prompt = gr.Textbox(words.PROMPT, label="Prompt", lines=2, max_lines=5, elem_id="prompt")
    tokens = gr.HTML(handlers.tokens(words.PROMPT), elem_id="tokens")
    with gr.Row(equal_height=True, elem_id="seeding"):
        seed = gr.Number(7, label="Seed", elem_id="seed", scale=2, min_width=120)
        dice = gr.Button("Roll the dice", elem_id="dice", scale=1, min_width=120)
    generate = gr.Button("Generate", variant="primary", elem_id="generate")
    upload = gr.UploadButton("Upload a picture instead", file_types=["image"], type="filepath", elem_id="upload")
    gr.HTML(words.note(words.UPLOAD), elem_id="upload-note")
    return Asking(prompt, tokens, seed, dice, generate, upload)


def _lay_looking() -> Looking:
    annotator = image_annotator(
        label="Picture",
        single_box=True,
        disable_edit_boxes=True,
        box_min_size=EDGE,
        boxes_alpha=0.1,
        label_list=[""],
        label_colors=[ACCENT],
        sources=[],
        show_clear_button=False,
        show_download_button=False,
        show_share_button=False,
        show_remove_button=True,
        elem_id="picture",
    )
    note = gr.HTML(words.note(words.NO_PICTURE), elem_id="picture-note")
    with gr.Row(equal_height=True, elem_id="box"):
        numbers = [gr.Number(label=words.SIDES[name], elem_id=f"box-{name}", min_width=60) for name in NAMES]
        clear = gr.Button("Clear box", elem_id="clear-box", min_width=90)
    gr.HTML(words.note(words.BOX), elem_id="box-note")
    return Looking(gr.State(), annotator, gr.JSON(visible=False), note, numbers, clear)


def _lay_acting() -> Acting:
    defaults = AttributeSettings()
    with gr.Row(elem_id="acts"):
        attribute = gr.Button("Attribute", variant="primary", elem_id="attribute", scale=3, min_width=140)
        stop = gr.Button("Stop", elem_id="stop", scale=1, min_width=80, interactive=False)
    status = gr.HTML(words.IDLE, elem_id="run-status")
    with gr.Accordion("Settings", open=False, elem_id="settings"):
        top_k = gr.Number(defaults.top_k, label="K, training images shown", elem_id="top-k")
        exhaustive = gr.Checkbox(defaults.exhaustive, label="Exhaustive", info=words.EXHAUSTIVE, elem_id="exhaustive")
    return Acting(attribute, stop, top_k, exhaustive, status)


def _lay_answering(studio: Studio) -> Answering:
    usable, missing = studio.methods()
    first = next(name for name in ("dino", "pixel") if name in usable)
    with gr.Column(min_width=300):
        gr.HTML(f"<h2>{words.INFLUENTIAL}</h2>{words.note(words.SCORE)}")
        influential = _lay_gallery("influential", words.INFLUENTIAL)
    with gr.Column(min_width=300):
        heading = gr.HTML(words.heading(first))
        similar = _lay_gallery("similar", "The ranking compared with")
        compared = gr.Dropdown(
            [name for name in usable if name != AttributeSettings().method],
            value=first,
            label="Compare with",
            elem_id="compared",
        )
        gr.HTML(words.missing(missing), elem_id="missing")
    return Answering([influential, similar], compared, heading, gr.State())


def _lay_gallery(name: str, label: str) -> gr.Gallery:
    return gr.Gallery(
        label=label,
        show_label=False,
        columns=5,
        height="auto",
        buttons=[],
        interactive=False,
        elem_id=name,
        elem_classes=["ranking"],
    )


def _wire_picture(handlers: Handlers, asking: Asking, looking: Looking, acting: Acting, answering: Answering) -> None:
    shown = [looking.picture, looking.annotator, looking.frame, looking.note]
    prompt, seed = asking.prompt, asking.seed
    prompt.change(handlers.tokens, prompt, asking.tokens, queue=False, **QUIET)
    asking.dice.click(throw_dice, None, seed, queue=False, **QUIET)
    generated = gr.on(
        [asking.generate.click, prompt.submit, seed.submit],
        handlers.generate,
        [prompt, seed],
        shown,
        show_progress="full",
        show_progress_on=looking.annotator,
        api_name="generate",
    )
    uploaded = asking.upload.upload(handlers.upload, asking.upload, shown, **QUIET)
    for new_picture in (generated, uploaded):
        cleared = [acting.status, answering.asked, *answering.galleries]
        new_picture.success(lambda: (words.IDLE, None, [], []), None, cleared, queue=False, **QUIET)


def _wire_box(looking: Looking) -> None:
    """Keep the drawn and the typed box in step, in the browser alone."""
    both = [looking.annotator, looking.frame, *looking.numbers]
    looking.annotator.change(None, both, looking.numbers, js=NUMBERS_FOLLOW)
    left = [event for number in looking.numbers for event in (number.blur, number.submit)]
    gr.on(left, None, both, looking.annotator, js=BOX_FOLLOWS)
    looking.clear.click(None, looking.annotator, [looking.annotator, *looking.numbers], js=CLEAR)


def _wire_acting(handlers: Handlers, asking: Asking, looking: Looking, acting: Acting, answering: Answering) -> None:
    controls = [asking.generate, acting.attribute, answering.compared, acting.stop]
    asked = acting.attribute.click(lambda: _busy(True), None, controls, queue=False, **QUIET)
    answered = asked.then(
        handlers.attribute,
        [asking.prompt, looking.picture, *looking.numbers, acting.top_k, acting.exhaustive, answering.compared],
        [acting.status, *answering.galleries, answering.asked],
        show_progress="hidden",
        api_name="attribute",
    )
    for ended in (answered.success, answered.failure):  # Gradio 6.31 runs `then` after a success only
        ended(lambda: _busy(False), None, controls, queue=False, **QUIET)
    acting.stop.click(handlers.stop, queue=False, **QUIET)
    answering.compared.input(  # by the visitor alone: `change` also follows updates of ours
        handlers.compare,
        [answering.asked, answering.compared],
        [answering.heading, answering.galleries[1]],
        show_progress="full",
        show_progress_on=answering.galleries[1],
        api_visibility="private",
    )


def _busy(running: bool) -> list[Any]:
    """Generate, Attribute, the other method and Stop, while a run is under way or not."""
    idle = not running
    return [
        gr.Button(interactive=idle),
        gr.Button(interactive=idle),
        gr.Dropdown(interactive=idle),
        gr.Button(interactive=running),
    ]
