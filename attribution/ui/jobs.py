"""Work for the device, as functions of (model, index, stop, ...) whose arguments can be sent to another process.

On a ZeroGPU Space (`zero.py`) each job runs in a process that has the GPU; elsewhere in this one.
"""

from collections.abc import Callable, Generator, Sequence
from contextlib import closing
from dataclasses import dataclass
from threading import Event
from typing import Any

import numpy as np
from PIL import Image

from attribution.answers.forget import Regenerated, regenerate
from attribution.diffusion.attention import word_map
from attribution.diffusion.pictures import to_pixels, to_square
from attribution.diffusion.pipeline import GenerateSettings, Model
from attribution.index.index import Index
from attribution.methods import METHODS, answer
from attribution.methods.answer import AttributeSettings, Attribution, Progress, check_stop
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


def attributing(
    model: Model, index: Index, stop: Event, queries: Sequence[Query], settings: Sequence[AttributeSettings]
) -> Generator[tuple[int, str, Progress | Attribution], None, None]:
    """Steps of every query's answers, as (place of the query, method, step); the quick methods first."""
    quick_first = sorted(settings, key=lambda each: bool(METHODS[each.method].curvature))
    for place, query in enumerate(queries):
        asked = encode(model, query, index.center_crop)  # once, for all methods
        for each in quick_first:
            with closing(answer(model, index, asked, each, stop)) as steps:
                for step in steps:
                    yield place, each.method, step


def forgetting(
    model: Model, index: Index, stop: Event, query: Query, settings: GenerateSettings | None
) -> Generator[Progress | Regenerated, None, None]:
    """Pictures before and after the query is unlearned."""
    with closing(regenerate(model, index, query, generate=settings, stop=stop)) as steps:
        yield from steps
