"""What all handlers of the page share: a visitor's run from its first word to its last, and errors as sentences.

A handler gives what changes on the page, `{component: value}`. Components are in `layout.py`, wiring in `page.py`.
"""

import math
from collections.abc import Callable, Generator
from contextlib import closing
from dataclasses import dataclass
from html import escape
from typing import Any

import gradio as gr

from attribution.errors import AttributionError, InputError, Stopped
from attribution.ui.jobs import Job
from attribution.ui.layout import Parts
from attribution.ui.studio import Picture, Studio

PROGRESS = gr.Progress()  # Gradio shows the steps of a handler that has it as a default

Update = dict[Any, Any]  # values by component
Updates = Generator[Update, None, None]
UNCHANGED: Update = gr.skip()


@dataclass(frozen=True)
class Asked:
    """What a visitor asked of the device, and what changes on the page meanwhile.

    Attributes:
        job: what to do.
        show: the change at a step of the job, or while it waits for its turn; {} is none.
        stopped: the change when it was stopped.
        begun: the change before the first step.
        ended: the change after the last.
        repeated: let Gradio send the last change once more when the run has ended, as it does, while the page may show
            another by then; for changes with a picture or a table, dicts that its diff to nothing empties in the page.
    """

    job: Job
    show: Callable[[Any], Update]
    stopped: Update
    begun: Callable[[], Update] = dict
    ended: Callable[[], Update] = dict
    repeated: bool = False


class NotYet(Exception):
    """Nothing is begun: something is told first, and the visitor has to say so again."""

    def __init__(self, update: Update) -> None:
        """Take what changes on the page."""
        super().__init__("not begun yet")
        self.update = update


class Handlers:
    """The handlers of every run, over one studio and one page."""

    def __init__(self, studio: Studio, on: Parts) -> None:
        self.studio, self.on = studio, on

    def following(self, ask: Callable[..., Asked], refused: Callable[[str], Update]) -> Callable[..., Updates]:
        """A handler that follows a run to its end. Stop can be pressed from the first update on.

        Args:
            ask: what is asked, given the page's values; it may raise.
            refused: the change when that is not possible, given the sentence that says so.
        """

        def follow(request: gr.Request, progress: gr.Progress = PROGRESS, *given: Any) -> Updates:
            try:
                asked = ask(*given)
                with (
                    self.studio.run(visitor(request)) as stop,
                    closing(self.studio.alone(asked.job, stop)) as steps,
                ):
                    yield {**asked.begun(), self.on.stop: gr.Button(interactive=True)}
                    try:
                        for step in steps:
                            if update := asked.show(step):
                                yield update
                        if update := asked.ended():
                            yield update
                    except Stopped:
                        yield asked.stopped
                    if not asked.repeated:
                        yield UNCHANGED
            except NotYet as told:
                yield told.update
                raise gr.Error(visible=False, print_exception=False) from told
            except AttributionError as error:
                yield refused(sentence(error))
                raise refusal(error) from error

        return follow

    def stop(self, request: gr.Request) -> None:
        """Stop the visitor's run, if there is one."""
        self.studio.stop(visitor(request))

    def end(self, request: gr.Request) -> None:
        """Stop the visitor's run and let it tell its last, since something else takes its place on the page."""
        self.studio.end(visitor(request))

    def starting(self) -> Update:
        """The buttons that use the device when one was pressed; Stop waits for the run."""
        return dict.fromkeys(self.on.acts, gr.Button(interactive=False))

    def controls(self, request: gr.Request) -> Update:
        """The buttons that use the device, and Stop, by whether a run of the visitor's is under way."""
        works = self.studio.works(visitor(request))
        return {
            **dict.fromkeys(self.on.acts, gr.Button(interactive=not works)),
            self.on.stop: gr.Button(interactive=works),
        }


def visitor(request: gr.Request) -> str:
    """Who asks: one open page."""
    return str(request.session_hash)


def there_is(picture: Picture | None) -> Picture:
    """The picture.

    Raises:
        InputError: there is none.
    """
    if picture is None:
        raise InputError("there is no picture yet; generate one, or upload one with its prompt")
    return picture


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


def refusal(error: AttributionError, shown: bool = True) -> gr.Error:
    """An error for a toast, which takes HTML, or for a program, which takes text."""
    told = sentence(error)
    return gr.Error(escape(told) if shown else told, duration=10, print_exception=False)
