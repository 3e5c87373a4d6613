"""Check it: where pictures are drawn again, without the picture itself or without training images."""

from collections.abc import Sequence
from typing import Any

import gradio as gr

from attribution.answers import forget, remove
from attribution.answers.run import Run
from attribution.ui import again, words
from attribution.ui.layout import Parts

Runs = list[tuple[str, Run]]  # by region


def lay_check(foreseen: Sequence[str]) -> dict[str, Any]:
    """Both ways to draw a generated picture again, with words on how well the second foresees training again."""
    with gr.Accordion("Check it: generate again without it", open=False, visible=False, elem_id="check") as check:
        return {"check": check, **_lay_forgetting(), **_lay_removing(foreseen)}


def _lay_forgetting() -> dict[str, Any]:
    gr.HTML(f"<h2>Without this picture</h2>{words.note(again.FORGET)}", elem_classes=["checking"])
    with gr.Row(equal_height=True, elem_id="forgetting"):
        weakest = gr.Checkbox(True, label=again.WEAKEST, elem_id="weakest", container=False)
        strength = gr.Slider(
            forget.WEAKEST, forget.STRONGEST, 1, step=0.25, label=again.STRENGTH, info=again.UNIT, elem_id="strength"
        )
        button = gr.Button("Generate again without it", elem_id="forget")
    shown = gr.HTML(elem_id="forgotten")
    return {"weakest": weakest, "strength": strength, "forget": button, "forgotten": shown}


def _lay_removing(foreseen: Sequence[str]) -> dict[str, Any]:
    with gr.Column(visible=False, elem_id="removal") as removal:
        gr.HTML(
            f"<h2>Without these training images</h2>{words.note(again.removing(foreseen))}", elem_classes=["checking"]
        )
        with gr.Row(equal_height=True, elem_id="removing"):
            named = gr.Dropdown([], value=None, label="Remove the images of", elem_id="named")
            beside = gr.Dropdown([], value=None, label="Beside it, remove", elem_id="beside")
        with gr.Row(equal_height=True, elem_id="removing-by"):
            weakest = gr.Checkbox(True, label=again.WEAKEST, elem_id="removal-weakest", container=False)
            strength = gr.Slider(
                remove.WEAKEST,
                remove.STRONGEST,
                8,
                step=1,
                label=again.STRENGTH,
                info=again.UNIT,
                elem_id="removal-strength",
            )
            button = gr.Button("Generate again without these", elem_id="remove")
        shown = gr.HTML(elem_id="removed")
    return {
        "removal": removal,
        "named": named,
        "beside": beside,
        "removal_weakest": weakest,
        "removal_strength": strength,
        "remove": button,
        "removed": shown,
    }


def runs_shown(on: Parts, runs: Runs) -> dict[Any, Any]:
    """Finished runs, and the rankings whose images can be taken away: {component: value}."""
    rankings = [(place, answer.settings.method) for place, (_, run) in enumerate(runs) for answer in run.answers]
    several = len(runs) > 1
    named = [(f"{method}, {runs[place][0]}" if several else method, f"{place}:{method}") for place, method in rankings]
    methods = list(dict.fromkeys(method for _, method in rankings))
    return {
        on.runs: runs,
        on.named: gr.Dropdown(named, value=named[0][1] if named else None),
        on.beside: gr.Dropdown([("as many images at random", remove.CHANCE), *methods], value=remove.CHANCE),
        on.removal: gr.Column(visible=bool(runs)),
        on.removed: "",
    }
