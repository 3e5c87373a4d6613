"""What happens when something on the page is used. Layout and wiring are in `page.py`."""

import math
import random
import time
from collections.abc import Generator, Iterator
from contextlib import closing
from dataclasses import replace
from html import escape
from pathlib import Path
from threading import Event
from typing import Any

import gradio as gr
from PIL import Image

from attribution.attribute import (
    METHODS,
    AttributeSettings,
    Attribution,
    Progress,
    Query,
    attribute,
    check_settings,
)
from attribution.data import open_upload
from attribution.errors import AttributionError, InputError, Stopped
from attribution.model import check_prompt, check_seed
from attribution.query import region_words
from attribution.ui import words
from attribution.ui.box import read_box, shown_copy
from attribution.ui.studio import Picture, Studio

LARGEST_K = 100
DICE = 2**31 - 1  # the largest seed that the dice throw
EVERY = 0.2  # seconds between updates of the status line
STEPS = gr.Progress()

Updates = Iterator[tuple[Any, ...]]


class Handlers:
    """The page's handlers over one studio."""

    def __init__(self, studio: Studio) -> None:
        self.studio = studio

    def generate(self, prompt: str, seed: float, request: gr.Request, progress: gr.Progress = STEPS) -> Updates:
        """Generate a picture from a prompt.

        Args:
            prompt: what to draw, not empty.
            seed: a whole number of at least 0.
            request: of the visitor; Gradio fills it in.
            progress: likewise.

        Yields:
            The picture (kept in the session), an enlarged copy, its size and factor, and a note.
        """
        try:
            check_prompt(prompt)
            number = check_seed(whole(seed, "seed"))
            with self.studio.run(str(request.session_hash)) as stop:

                def report(step: int, steps: int) -> None:
                    if stop.is_set():
                        raise Stopped("stopped; the picture before is kept")
                    progress((step, steps), desc="Generating", unit="steps")

                def work() -> Generator[Image.Image, None, None]:
                    yield self.studio.model.generate(prompt, number, on_step=report)

                for image in self.studio.alone(work(), stop):
                    if image is None:
                        yield (*_unchanged(3), words.note("Waiting for another visitor's run to end."))
                        continue
                    picture = Picture(image, prompt.strip(), number)
                    yield (picture, *_shown(picture), words.generated(picture))
        except Stopped as stopped:
            yield (*_unchanged(3), words.note(sentence(stopped)))
        except AttributionError as error:
            yield (*_unchanged(3), words.note(sentence(error), "error"))
            raise refusal(error) from error

    def upload(self, path: str, request: gr.Request) -> Updates:
        """Take a file as the picture: yields the picture, an enlarged copy, its size and factor, and a note."""
        try:
            picture = Picture(open_upload(Path(path)))
            self.stop(request)
            yield (picture, *_shown(picture), words.uploaded(picture, Path(path).name, self.studio.index.center_crop))
        except AttributionError as error:
            yield (*_unchanged(3), words.note(sentence(error), "error"))
            raise refusal(error) from error

    def attribute(
        self,
        prompt: str,
        picture: Picture | None,
        x0: float | None,
        y0: float | None,
        x1: float | None,
        y1: float | None,
        top_k: float,
        exhaustive: bool,
        compared: str,
        request: gr.Request,
    ) -> Updates:
        """Find the training images that the session's picture, or a box on it, is made of.

        Args:
            prompt: of an uploaded picture; a generated one keeps the prompt that made it.
            picture: the session's, from /generate or an upload.
            x0: left end of the box in pixels of the picture; all four empty means the whole picture.
            y0: top end.
            x1: right end.
            y1: bottom end.
            top_k: how many training images to show.
            exhaustive: score every training image on all noises.
            compared: another method, to show beside unlearning.
            request: of the visitor; Gradio fills it in.

        Yields:
            A status line, the most influential training images so far, and those by the other method.
        """
        try:
            if picture is None:
                raise InputError("there is no picture yet; generate one, or upload one with its prompt")
            query = Query(picture.prompt or prompt, picture.image, picture.seed, read_box((x0, y0, x1, y1)))
            count = whole(top_k, "K")
            if not 1 <= count <= min(LARGEST_K, len(self.studio.index)):
                raise InputError(
                    f"K = {count} is not possible; accepted are 1 to {min(LARGEST_K, len(self.studio.index))}"
                )
            settings = AttributeSettings(top_k=count, exhaustive=exhaustive)
            check_settings(self.studio.model, self.studio.index, replace(settings, method=compared))
            with self.studio.run(str(request.session_hash)) as stop:
                yield from self._answer(query, settings, compared, stop)
        except Stopped:
            detail = "The ranking below, if any, is unfinished."
            yield (words.status("stopped", "Stopped.", detail), *_unchanged(3))
        except AttributionError as error:
            yield (words.status("error", "Not possible:", sentence(error)), *_unchanged(3))
            raise refusal(error) from error

    def compare(self, asked: tuple[Query, AttributeSettings] | None, method: str, request: gr.Request) -> Updates:
        """Answer the last question by another method: yields the heading and its ranking."""
        yield words.heading(method), []
        if asked is None:
            return
        query, settings = asked
        try:
            with self.studio.run(str(request.session_hash)) as stop:
                work = attribute(self.studio.model, self.studio.index, query, replace(settings, method=method), stop)
                for step in self.studio.alone(work, stop):
                    if isinstance(step, Attribution):
                        yield words.heading(method), words.gallery(step.results, self.studio.index)
        except Stopped:
            return
        except AttributionError as error:
            raise refusal(error) from error

    def _answer(self, query: Query, settings: AttributeSettings, compared: str, stop: Event) -> Updates:
        """Status and both galleries: all of them at the end, before that only what changes."""
        galleries: list[Any] = [[], []]
        asked = (query, settings)
        yield words.status("waiting", "Starting"), [], [], asked
        shown: tuple[int, tuple[int, ...]] = (0, ())
        last, done = 0.0, ""
        for turn in self.studio.alone(self._both(query, settings, compared, stop), stop):
            if turn is None:
                yield (words.status("waiting", "Waiting", "for another visitor's run to end"), *_unchanged(3))
                continue
            place, step = turn
            rows = (place, tuple(result.row for result in step.results))
            finished = isinstance(step, Attribution)  # its scores are new even where its order is not
            changed = self._shown_in(place, step, galleries) if finished or rows != shown else _unchanged(2)
            if isinstance(step, Attribution):
                done = words.done(step, region_words(query)) if place == 0 else done
                yield (gr.skip(), *changed, gr.skip())
            elif time.monotonic() - last >= EVERY or (rows[1] and not shown[1]):
                last = time.monotonic()
                yield (words.progress(step), *changed, gr.skip())
            shown = rows
        yield done, *galleries, asked

    def _shown_in(self, place: int, step: Progress | Attribution, galleries: list[Any]) -> tuple[Any, ...]:
        galleries[place] = words.gallery(step.results, self.studio.index)
        return tuple(galleries[place] if number == place else gr.skip() for number in range(2))

    def _both(
        self, query: Query, settings: AttributeSettings, compared: str, stop: Event
    ) -> Generator[tuple[int, Progress | Attribution], None, None]:
        """Steps of the answer (0) and of what it is compared with (1), the quicker one first."""
        model, index = self.studio.model, self.studio.index
        asked = [(0, settings), (1, replace(settings, method=compared))]
        for place, each in asked if METHODS[compared].curvature else reversed(asked):
            with closing(attribute(model, index, query, each, stop)) as steps:
                for step in steps:
                    yield place, step

    def stop(self, request: gr.Request) -> None:
        """Stop the visitor's run, if there is one."""
        self.studio.stop(str(request.session_hash))

    def tokens(self, prompt: str) -> str:
        """Say how much of the prompt the model reads."""
        return words.tokens(self.studio.model.count_tokens(prompt))


def throw_dice() -> int:
    """A seed by chance."""
    return random.randint(0, DICE)


def whole(value: float | None, name: str) -> int:
    """A field's number as an integer.

    Raises:
        InputError: it is empty or has a fraction.
    """
    if value is None or not math.isfinite(value) or value != int(value):
        given = "empty" if value is None else f"{value:g}"
        raise InputError(f"{name} is {given}; accepted are whole numbers")
    return int(value)


def sentence(error: AttributionError) -> str:
    """An error's message as a sentence."""
    message = str(error)
    return message[:1].upper() + message[1:] + ("" if message.endswith((".", "!", "?")) else ".")


def refusal(error: AttributionError) -> gr.Error:
    """An error as a toast."""
    return gr.Error(escape(sentence(error)), duration=10, print_exception=False)


def _shown(picture: Picture) -> tuple[dict[str, Any], Any]:
    copy, frame = shown_copy(picture.image)
    return {"image": copy, "boxes": []}, frame


def _unchanged(count: int) -> tuple[Any, ...]:
    return tuple(gr.skip() for _ in range(count))
