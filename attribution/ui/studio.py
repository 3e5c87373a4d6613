"""What all visitors share: one model on one device, and whose turn it is. Pictures stay with their visitors."""

from collections.abc import Generator, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from threading import Event, Lock
from typing import TypeVar

from PIL import Image

from attribution.attribute import METHODS, AttributeSettings, check_settings
from attribution.errors import AttributionError, Stopped
from attribution.index import Index
from attribution.model import Model

WAIT = 0.25  # seconds between looks at a device that is taken
Step = TypeVar("Step")


@dataclass(frozen=True)
class Picture:
    """A visitor's picture.

    Attributes:
        image: RGB, upright.
        prompt: that it was generated from; None for an upload.
        seed: likewise.
    """

    image: Image.Image
    prompt: str | None = None
    seed: int | None = None


class Studio:
    """The model, the index, the lock of the device and the stop events of the runs in progress.

    Gradio frees a slot of its queue before cancelled work has ended, so its limits do not protect the weights:
    this lock does.
    """

    def __init__(self, model: Model, index: Index) -> None:
        self.model = model
        self.index = index
        self._device = Lock()
        self._runs: dict[str, Event] = {}

    def methods(self) -> tuple[list[str], dict[str, str]]:
        """The methods that can be used, and why the others cannot."""
        usable, missing = [], {}
        for name in METHODS:
            try:
                check_settings(self.model, self.index, AttributeSettings(method=name, top_k=1))
                usable.append(name)
            except AttributionError as error:
                missing[name] = str(error)
        return usable, missing

    @contextmanager
    def run(self, visitor: str) -> Iterator[Event]:
        """A visitor's run: gives the event that stops it, and stops the one that the visitor had before."""
        self.stop(visitor)
        event = self._runs[visitor] = Event()
        try:
            yield event
        finally:
            if self._runs.get(visitor) is event:
                del self._runs[visitor]

    def stop(self, visitor: str) -> bool:
        """Stop a visitor's run; False if there is none."""
        event = self._runs.get(visitor)
        if event is not None:
            event.set()
        return event is not None

    def alone(self, work: Generator[Step, None, None], stop: Event) -> Iterator[Step | None]:
        """Do work while nobody else uses the device: yields None while waiting, then what the work yields.

        Raises:
            Stopped: `stop` was set while waiting.
        """
        while not self._device.acquire(timeout=WAIT):
            if stop.is_set():
                raise Stopped("stopped before its turn; nothing was changed")
            yield None
        try:
            with closing(work):  # the weights are restored before the next visitor's turn
                yield from work
        finally:
            self._device.release()
