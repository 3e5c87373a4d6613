"""Work for the device, as functions of (model, index, stop, ...) whose arguments can be sent to another process.

On a ZeroGPU Space (`zero.py`) each job runs in a process that has the GPU; elsewhere in this one.
"""

from collections.abc import Callable, Generator, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from threading import Event
from typing import Any

import numpy as np
from PIL import Image

from attribution.answers.forget import Regenerated, regenerate
from attribution.answers.remove import Named, regenerate_without
from attribution.diffusion.attention import word_map
from attribution.diffusion.pictures import to_pixels, to_square
from attribution.diffusion.pipeline import GenerateSettings, Model
from attribution.index.index import Index
from attribution.methods import METHODS, answer
from attribution.methods.answer import AttributeSettings, Attribution, Progress, check_stop
from attribution.methods.candidates import sources
from attribution.methods.unlearning import choosing, predicted
from attribution.query.detect import Found, find
from attribution.query.encoded import encode
from attribution.query.query import Query
from attribution.unlearning.score import Floats

Steps = Generator[Any, None, None]


@dataclass(frozen=True)
class Job:
    """A function of this module and its arguments after (model, index, stop)."""

    run: Callable[..., Steps]
    asked: tuple[Any, ...]

    @property
    def short(self) -> bool:
        """Whether it takes seconds: it need not wait for one that takes minutes."""
        return self.run in SHORT


def generating(
    model: Model,
    _index: Index,
    stop: Event,
    prompt: str,
    seed: int,
    settings: GenerateSettings | None = None,
    report: Callable[[int, int], None] | None = None,
) -> Generator[Image.Image, None, None]:
    """A picture; `report`, which cannot be sent to another process, is told of the steps."""

    def on_step(step: int, count: int) -> None:
        check_stop(stop)
        if report is not None:
            report(step, count)

    yield model.generate(prompt, seed, settings, on_step)


def detecting(
    model: Model,
    index: Index,
    stop: Event,
    image: Image.Image,
    labels: list[str],
    prompt: str,
    threshold: float | None,
    detector: str | None,
) -> Generator[Found, None, None]:
    """The objects that were found."""
    found = find(model, index, image, labels, prompt, threshold, detector)
    check_stop(stop)
    yield found


def mapping(
    model: Model, index: Index, _stop: Event, image: Image.Image, prompt: str, chosen: Sequence[str]
) -> Generator[tuple[str, Image.Image], None, None]:
    """Words of the prompt, each with the picture as the model reads it, dark where it does not attend to the word."""
    square, _ = to_square(image, model.resolution, index.center_crop)
    latents = model.encode_images(to_pixels([square]))
    for word in chosen:
        yield word, lit(square, word_map(model, latents, prompt, word).numpy())


def lit(square: Image.Image, mask: Floats) -> Image.Image:
    """A picture, dark where a mask (h, w) in [0, 1] is low."""
    light = Image.fromarray((255 * (0.2 + 0.8 * mask)).astype(np.uint8)).resize(square.size, Image.Resampling.BICUBIC)
    return Image.composite(square, Image.new("RGB", square.size, "#1c1917"), light)


@dataclass(frozen=True)
class Answered:
    """A step of one of several answers.

    Attributes:
        place: of the query.
        method: that answers.
        state: of this answer.
        whole: how far all answers together are.
    """

    place: int
    method: str
    state: Progress | Attribution
    whole: Progress


@dataclass
class Tally:
    """How far several answers together are, in the predictions of those that unlearn; the others take a second.

    Attributes:
        total: predictions of all answers.
        done: those of the answers that have ended.
        seconds: that these took.
    """

    total: int
    done: int = 0
    seconds: float = 0.0

    def begun(self, method: str) -> Progress:
        """The whole when a method is asked."""
        return Progress(f"Asking {method}", self.done, self.total, self.seconds)

    def at(self, step: Progress | Attribution, counted: bool) -> Progress:
        """The whole at a step of an answer whose predictions are counted, or are not."""
        if isinstance(step, Progress):
            done, seconds = (step.evaluations, step.seconds) if counted else (0, 0.0)
            return Progress(step.stage, self.done + done, self.total, self.seconds + seconds)
        if counted:
            self.done, self.seconds = self.done + step.evaluations, self.seconds + sum(step.seconds.values())
        return Progress("ranking", self.done, self.total, self.seconds)


def attributing(
    model: Model, index: Index, stop: Event, queries: Sequence[Query], settings: Sequence[AttributeSettings]
) -> Generator[Answered, None, None]:
    """Steps of every query's answers: the quick methods first, and of these the one that gives first estimates."""
    costs = [predicted(index, each) if METHODS[each.method].curvature else 0 for each in settings]
    given = next(iter(sources(index)), "")
    quick_first = sorted(zip(costs, settings, strict=True), key=lambda each: (each[0], each[1].method != given))
    searching = [each.method for each in settings if choosing(index, each) and "race" in METHODS[each.method].uses]
    tally = Tally(max(1, len(queries) * sum(costs)))
    for place, query in enumerate(queries):
        asked, early = encode(model, query, index.center_crop), dict[str, Progress]()  # once, for all methods
        for cost, each in quick_first:
            begun = tally.begun(each.method)
            yield Answered(place, each.method, _so_far(begun, early.get(each.method)), begun)
            with closing(answer(model, index, asked, each, stop)) as steps:
                for step in steps:
                    whole = tally.at(step, cost > 0)
                    yield Answered(place, each.method, _so_far(step, early.get(each.method)), whole)
            if each.method == given and isinstance(step, Attribution):
                early = dict.fromkeys(searching, estimated_by(step))
                for method, state in early.items():
                    yield Answered(place, method, state, whole)


def estimated_by(found: Attribution) -> Progress:
    """The first estimate of methods that search, where the one that gives it has answered already."""
    rows = tuple(result.row for result in found.results)
    return Progress("waiting", 0, 1, 0.0, found.results, True, rows)


def _so_far(step: Progress | Attribution, early: Progress | None) -> Progress | Attribution:
    """A step, with the first estimate as long as it has no results of its own."""
    if early is None or isinstance(step, Attribution) or step.results:
        return step
    return replace(step, results=early.results, estimated=True, estimate=early.estimate)


def forgetting(
    model: Model,
    index: Index,
    stop: Event,
    query: Query,
    settings: GenerateSettings | None,
    strength: float | None = None,
) -> Generator[Progress | Regenerated, None, None]:
    """Pictures before and after the query is unlearned, by a step of some strength or the weakest that shows."""
    with closing(regenerate(model, index, query, None, settings, strength, stop)) as steps:
        yield from steps


def removing(
    model: Model,
    index: Index,
    stop: Event,
    query: Query,
    named: Named,
    beside: Named,
    settings: GenerateSettings | None,
    strength: float | None = None,
) -> Generator[Progress | Regenerated, None, None]:
    """Pictures before and after training images are unlearned, by a step of some strength or the weakest that shows."""
    with closing(regenerate_without(model, index, query, named, beside, None, settings, strength, stop)) as steps:
        yield from steps


SHORT = (generating, detecting, mapping)
