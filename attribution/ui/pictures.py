"""Handlers of the picture: generated, uploaded, or taken from the training set."""

import random
from pathlib import Path

import gradio as gr
from PIL import Image

from attribution.diffusion.pictures import open_upload
from attribution.diffusion.pipeline import GenerateSettings, check_seed
from attribution.diffusion.tokens import check_prompt
from attribution.errors import AttributionError, InputError
from attribution.query.labels import phrases, telling
from attribution.ui import words
from attribution.ui.handlers import PROGRESS, UNCHANGED, Asked, Handlers, Update, Updates, refusal, sentence, whole
from attribution.ui.jobs import Job, generating
from attribution.ui.regions import EMPTY, shown_copy
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

    def upload(self, path: str, prompt: str, request: gr.Request) -> Updates:
        """Take a file as the picture."""
        try:
            picture = Picture(open_upload(Path(path)))
            note = words.uploaded(picture, Path(path).name, self.studio.index.center_crop)
            self.handlers.end(request)
            yield self.taken(picture, note, prompt)
        except AttributionError as error:
            yield self.refused(sentence(error))
            raise refusal(error) from error

    def search_from(self, row: int | None, request: gr.Request) -> Update:
        """Take an opened training image as the picture, with its caption as the prompt."""
        if row is None:
            return UNCHANGED
        self.handlers.end(request)
        index = self.studio.index
        picture = Picture(index.picture(row))
        caption = index.captions[row]
        return {**self.taken(picture, words.searched(index.ids[row]), caption), self.on.prompt: caption}

    def tokens(self, prompt: str) -> str:
        """Say how much of the prompt the model reads."""
        try:
            if prompt.strip():
                check_prompt(prompt)
        except InputError as error:
            return words.note(sentence(error), "error")
        return words.tokens(self.studio.model.tokens.count(prompt))

    def taken(self, picture: Picture, note: str, prompt: str = "") -> Update:
        """A new picture with a note; nothing is marked or answered yet."""
        return {**self.shown(picture, prompt), self.on.note: note, **self.cleared()}

    def shown(self, picture: Picture, prompt: str = "") -> Update:
        """A picture to draw on, with its prompt's words and the labels to look for."""
        copy, frame = shown_copy(picture.image)
        read = picture.prompt or prompt
        return {
            self.on.picture: picture,
            self.on.annotator: {"image": copy, "boxes": []},
            self.on.frame: frame,
            self.on.chosen: gr.CheckboxGroup(telling(read), value=[], visible=bool(telling(read))),
            self.on.labels: " . ".join(phrases(read)),
        }

    def cleared(self) -> Update:
        """Nothing is marked or answered."""
        on = self.on
        told: Update = {
            on.table: EMPTY,
            on.status: words.IDLE,
            on.runs: [],
            **dict.fromkeys(on.tabs, gr.Tab(visible=False)),
        }
        return {**told, **dict.fromkeys([on.found, on.maps, on.forgotten, *on.panels], ""), **self.closed()}

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
