"""The components of the page, and where they are. What they do is wired in `page.py`."""

from dataclasses import dataclass
from typing import Any

import gradio as gr
from gradio_image_annotation import image_annotator

from attribution.answers.networks import detector_behind
from attribution.diffusion.pipeline import GenerateSettings
from attribution.methods import best_method
from attribution.methods.answer import default_top_k
from attribution.methods.budgets import NORMAL
from attribution.query.prompts import first_prompt, things
from attribution.ui import answers, words
from attribution.ui.pace import budgets
from attribution.ui.regions import COLUMNS, EMPTY, MOST
from attribution.ui.script import CARDS, CHIPS, EXAMPLES
from attribution.ui.studio import Studio
from attribution.ui.style import COLOURS

EDGE = 8  # px, the least side of a drawn box on the screen
QUICK = ("influence+", "d-trak", "dino", "clip")  # compared with at first


@dataclass(frozen=True)
class Parts:
    """The components that handlers read and write."""

    prompt: gr.Textbox
    tokens: gr.HTML
    chips: gr.HTML
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
    marked: gr.HTML
    clear: gr.Button
    attribute: gr.Button
    stop: gr.Button
    top_k: gr.Number
    budget: gr.Radio
    agreed: gr.State
    compared: gr.Dropdown
    folded: gr.Checkbox
    status: gr.HTML
    runs: gr.State
    link: gr.Textbox
    tabs: list[gr.Tab]
    panels: list[gr.HTML]
    row: gr.State
    opened: gr.HTML
    search: gr.Button
    close: gr.Button
    check: gr.Accordion
    strength: gr.Slider
    weakest: gr.Checkbox
    forget: gr.Button
    forgotten: gr.HTML
    removal: gr.Column
    named: gr.Dropdown
    beside: gr.Dropdown
    removal_strength: gr.Slider
    removal_weakest: gr.Checkbox
    remove: gr.Button
    removed: gr.HTML
    examples: gr.HTML
    history: gr.Dropdown
    mine: gr.BrowserState

    @property
    def acts(self) -> list[gr.Button]:
        """What uses the device."""
        return [self.generate, self.attribute, self.find, self.forget, self.remove]

    @property
    def shown(self) -> list[Any]:
        """The picture and what is drawn on it."""
        return [self.picture, self.annotator, self.frame, self.chosen, self.labels, self.note, self.check]

    @property
    def drawer(self) -> list[Any]:
        """The training image that is opened."""
        return [self.opened, self.search, self.close]

    @property
    def answered(self) -> list[Any]:
        """What belongs to one picture alone."""
        asked = [self.table, self.marked, self.found, self.maps, self.status, self.link, self.forgotten]
        return [*asked, *self.finished, *self.drawer, *self.tabs, *self.panels]

    @property
    def finished(self) -> list[Any]:
        """Finished runs, and what of them can be taken away."""
        return [self.runs, self.named, self.beside, self.removal, self.removed]


def lay_asking(studio: Studio) -> dict[str, Any]:
    """Prompt, seed, sampling, Generate and Upload."""
    defaults = GenerateSettings()
    first = first_prompt(studio.index.captions)
    prompt = gr.Textbox(first, label="Prompt", lines=1, max_lines=5, elem_id="prompt")  # one: Enter submits
    tokens = gr.HTML(words.tokens(studio.model.tokens.count(first)), elem_id="tokens")
    chips = gr.HTML(words.chips(things(studio.index.captions)), elem_id="chips", js_on_load=CHIPS)
    with gr.Row(equal_height=True, elem_id="seeding"):
        seed = gr.Number(7, label="Seed", elem_id="seed", scale=5, min_width=80)
        dice = gr.Button("Dice", elem_id="dice", scale=2, min_width=60)
        generate = gr.Button("Generate", variant="primary", elem_id="generate", scale=4, min_width=100)
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
        "chips": chips,
        "seed": seed,
        "dice": dice,
        "steps": steps,
        "guidance": guidance,
        "generate": generate,
        "upload": upload,
    }


def lay_looking() -> dict[str, Any]:
    """The picture to draw on, and what is said of it."""
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


def lay_marking(studio: Studio) -> dict[str, Any]:
    """Objects to find, and words."""
    named = things(studio.index.captions)
    gr.HTML(f"<h2>What matters?</h2>{words.note(words.REGIONS)}", elem_id="regions-note")
    with gr.Row(equal_height=True, elem_id="finding"):
        labels = gr.Textbox(
            label="Objects to find",
            placeholder=" . ".join(named[:2]),
            max_lines=1,
            elem_id="labels",
            scale=5,
            min_width=120,
        )
        find = gr.Button("Find", elem_id="find", scale=2, min_width=80)
    found = gr.HTML(elem_id="found")
    with gr.Accordion("How objects are found", open=False, elem_id="searching"):
        threshold = gr.Slider(0, 1, studio.threshold, step=0.01, label="Threshold", elem_id="threshold")
        gr.HTML(words.note(words.detecting(detector_behind(studio.index))))
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


def lay_boxes() -> dict[str, Any]:
    """The boxes as numbers."""
    table = gr.Dataframe(
        EMPTY,
        headers=COLUMNS,
        datatype=["str", "number", "number", "number", "number"],
        type="array",
        interactive=True,
        column_count=len(COLUMNS),
        column_widths=["32%", *["17%"] * 4],
        label="Boxes, in pixels of the picture: draw or type them",
        elem_id="boxes",
        buttons=[],
    )
    marked = gr.HTML(elem_id="marked")  # what cannot be asked about of it
    clear = gr.Button("Clear boxes", size="sm", elem_id="clear", min_width=90)
    return {"table": table, "marked": marked, "clear": clear}


def lay_acting(studio: Studio) -> dict[str, Any]:
    """What starts and stops a run, its progress, and its settings."""
    top = default_top_k(len(studio.index))
    (usable, missing), main = studio.methods(), best_method(studio.index)
    with gr.Row(equal_height=True, elem_id="acts"):
        attribute = gr.Button("Attribute", variant="primary", elem_id="attribute", scale=2, min_width=140)
        stop = gr.Button("Stop", elem_id="stop", scale=1, min_width=80, interactive=False)
        status = gr.HTML(words.IDLE, elem_id="run-status")
    with gr.Row(elem_id="how"):
        compared = gr.Dropdown(
            [name for name in usable if name != main],
            value=[name for name in QUICK if name in usable],
            multiselect=True,
            label="Compare with",
            info=words.compared(main, usable, studio.embedded),
            elem_id="compared",
        )
        with gr.Column(elem_id="far"):
            budget = lay_budgets(studio, top)
            with gr.Accordion("Settings", open=False, elem_id="settings"):
                with gr.Row():
                    top_k = gr.Number(top, label="Training images shown (K)", elem_id="top-k", min_width=120)
                    folded = gr.Checkbox(
                        True, label="Fold near-duplicates", info=words.FOLDED, elem_id="folded", min_width=120
                    )
                if studio.embedded:
                    told = words.missing(dict.fromkeys(missing, words.NOT_HERE))
                else:  # what a developer would add is told to those who serve their own
                    told = words.lacking(missing, studio.index.artifacts)
                gr.HTML(told, elem_id="missing")
    return {
        "attribute": attribute,
        "stop": stop,
        "status": status,
        "compared": compared,
        "top_k": top_k,
        "budget": budget,
        "agreed": gr.State(0.0),
        "folded": folded,
    }


def lay_budgets(studio: Studio, top_k: int) -> gr.Radio:
    """How much of a search is asked for, and how long each takes for a region."""
    told = words.budgets(budgets(studio.pace, studio.model, studio.index, top_k))
    first = next((name for _, name in told if name == NORMAL), told[-1][1])
    return gr.Radio(told, value=first, label=words.BUDGET, elem_id="budget", visible=len(told) > 1)


def lay_answering() -> dict[str, Any]:
    """Rankings, and the training image that is opened."""
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
    return {
        "runs": gr.State([]),
        "link": gr.Textbox("", visible=False),  # ids of the runs that are shown, for the address
        "tabs": tabs,
        "panels": panels,
        "row": gr.State(),
        "opened": opened,
        "search": search,
        "close": close,
    }


def lay_finished(studio: Studio) -> dict[str, Any]:
    """Examples, and the visitor's own runs."""
    shown = answers.examples(studio.shipped, studio.index)
    examples = gr.HTML(shown, elem_id="examples", js_on_load=EXAMPLES, visible=bool(studio.shipped))
    history = gr.Dropdown([], value=None, label=words.HISTORY, elem_id="history", visible=False)
    mine = gr.BrowserState([], storage_key="attribution-runs", secret="attribution-runs")
    return {"examples": examples, "history": history, "mine": mine}
