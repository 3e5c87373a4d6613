"""Handlers of the picture: generated, uploaded, or taken from the training set."""

import random
from collections.abc import Sequence
from html import escape
from pathlib import Path

import gradio as gr
from PIL import Image

from attribution.diffusion.pictures import open_upload
from attribution.diffusion.pipeline import GenerateSettings, check_seed
from attribution.diffusion.tokens import check_prompt
from attribution.errors import AttributionError, InputError
from attribution.query.labels import phrases, telling
from attribution.query.prompts import prompt_with
from attribution.ui import words
from attribution.ui.check import runs_shown
from attribution.ui.handlers import PROGRESS, UNCHANGED, Asked, Handlers, Update, sentence, whole
from attribution.ui.jobs import Job, generating
from attribution.ui.regions import EMPTY, seen_part, shown_copy
from attribution.ui.studio import Picture, Waiting
from attribution.ui.zero import on_zero_gpu

DICE = 2**31 - 1  # the largest seed that the dice throw


class Pictures:
    """Handlers of the picture, beside those of every run."""

    def __init__(self, handlers: Handlers) -> None:
        self.handlers, self.studio, self.on = handlers, handlers.studio, handlers.on

    def generation(self, prompt: str, seed: float, steps: float, guidance: float) -> Asked:
        """A picture of the prompt."""
        check_prompt(prompt)
        number = check_seed(whole(seed, "seed"))
        settings = GenerateSettings(whole(steps, "steps"), guidance)
        job = Job(generating, (prompt, number, settings, None if on_zero_gpu() else _report))

        def show(made: Image.Image | Waiting) -> Update:
            if isinstance(made, Waiting):
                return self.noted(words.note(f"Waiting: {made.ahead} ahead of this one."))
            picture = Picture(made, prompt.strip(), number, settings)
            return self.taken(picture, words.generated(picture))

        return Asked(job, show, self.noted(words.note(words.KEPT_PICTURE)), repeated=True)

    def entered(self, picture: Picture | None, prompt: str, seed: float, steps: float, guidance: float) -> Asked:
        """A picture of the prompt in which Enter was pressed; an upload stays, whose prompt it is."""
        if picture is not None and picture.prompt is None:
            raise InputError("the prompt is of the picture that is here; press Attribute, or Generate for a new one")
        return self.generation(prompt, seed, steps, guidance)

    def upload(self, path: str, request: gr.Request) -> Update:
        """Take a file as the picture; the prompt before was another picture's."""
        try:
            picture = Picture(open_upload(Path(path)))
        except AttributionError as error:
            gr.Warning(escape(sentence(error)), duration=10)
            return self.refused(sentence(error))
        note = words.uploaded(picture, Path(path).name, self.studio.index.center_crop)
        self.handlers.end(request)
        return {**self.taken(picture, note + words.note(words.ASK_PROMPT, "warning")), self.on.prompt: ""}

    def search_from(self, row: int | None, request: gr.Request) -> Update:
        """Take an opened training image as the picture, with its caption as the prompt."""
        if row is None:
            return UNCHANGED
        self.handlers.end(request)
        index = self.studio.index
        picture = Picture(index.picture(row))
        caption = index.captions[row]
        return {**self.taken(picture, words.searched(index.ids[row]), caption), self.on.prompt: caption}

    def prompt_about(self, event: gr.EventData) -> str:
        """A prompt about the word that was clicked, or any."""
        word = event._data.get("word") if isinstance(event._data, dict) else None
        return prompt_with(str(word or ""), self.studio.index.captions, random.Random())

    def tokens(self, prompt: str) -> str:
        """Say how much of the prompt the model reads."""
        try:
            if prompt.strip():
                check_prompt(prompt)
        except InputError as error:
            return words.note(sentence(error), "error")
        return words.tokens(self.studio.model.tokens.count(prompt))

    def reworded(self, prompt: str, picture: Picture | None, chosen: list[str]) -> Update:
        """The words and objects of a new prompt of a picture that was not generated; words of both stay chosen."""
        if picture is None or picture.prompt is not None:
            return UNCHANGED
        return self.read(prompt, chosen)

    def taken(self, picture: Picture, note: str, prompt: str = "") -> Update:
        """A new picture with a note; nothing is marked or answered yet."""
        return {**self.shown(picture, prompt), self.on.note: note, **self.cleared()}

    def shown(self, picture: Picture, prompt: str = "") -> Update:
        """A picture to draw on, with its prompt's words and the labels to look for."""
        copy, frame = shown_copy(picture.image)
        return {
            self.on.picture: picture,
            self.on.annotator: {"image": copy, "boxes": []},
            self.on.frame: {**frame, **seen_part(picture.image, self.studio.model, self.studio.index.center_crop)},
            self.on.check: gr.Accordion(visible=picture.seed is not None),
            **self.read(picture.prompt or prompt),
        }

    def read(self, prompt: str, chosen: Sequence[str] = ()) -> Update:
        """A prompt's words to pick, and the labels to look for."""
        told = telling(prompt)
        return {
            self.on.chosen: gr.CheckboxGroup(told, value=[word for word in chosen if word in told], visible=bool(told)),
            self.on.labels: " . ".join(phrases(prompt)),
        }

    def cleared(self) -> Update:
        """Nothing is marked or answered."""
        on = self.on
        told: Update = {
            on.table: EMPTY,
            on.status: words.IDLE,
            **runs_shown(on, []),
            **dict.fromkeys(on.tabs, gr.Tab(visible=False)),
        }
        return {
            **told,
            **dict.fromkeys([on.marked, on.found, on.maps, on.forgotten, on.link, *on.panels], ""),
            **self.closed(),
        }

    def closed(self) -> Update:
        """No training image is open."""
        hidden = gr.Button(visible=False)
        return {self.on.opened: "", self.on.search: hidden, self.on.close: hidden}

    def noted(self, note: str) -> Update:
        """A note, and the picture before with all that belongs to it."""
        return {self.on.note: note}

    def refused(self, told: str) -> Update:
        """What is not possible, said beside the picture."""
        return self.noted(words.note(told, "error"))


def _report(step: int, count: int) -> None:
    PROGRESS((step, count), desc="Generating", unit="steps")


def throw_dice() -> int:
    """A seed by chance."""
    return random.randint(0, DICE)
