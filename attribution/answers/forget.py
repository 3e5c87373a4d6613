"""Generate again without it: the same prompt and seed, and two unrelated prompts, from the model that unlearned."""

from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from threading import Event

import numpy as np
from PIL import Image
from torch import Tensor

from attribution.diffusion.pipeline import GenerateSettings, Model
from attribution.diffusion.weights import unlearned
from attribution.errors import InputError
from attribution.index.index import Index
from attribution.index.texts import LOOKED_AT
from attribution.methods.answer import Clock, Progress, check_stop
from attribution.methods.unlearning import likely_first, unlearn_query
from attribution.query.encoded import Encoded, encode
from attribution.query.query import Query
from attribution.query.regions import check_query
from attribution.unlearning.score import Floats
from attribution.unlearning.step import UnlearnSettings

CONTROLS = 2
WEAKEST, STRONGEST = 0.25, 16.0  # times the step that scores are measured with
VISIBLE = 0.1  # of the intensities' range: a mean change inside the region that is seen at a glance


@dataclass(frozen=True)
class Regenerated:
    """A prompt's picture from the model as it is, and from the model that has unlearned the query.

    Attributes:
        prompt: of both.
        before: from the model as it is.
        after: from the model that has unlearned the query.
        strength: of the step, in steps that scores are measured with.
        inside: mean absolute difference inside the query's region, as a share of the intensities' range; of a control,
            of the whole picture.
    """

    prompt: str
    before: Image.Image
    after: Image.Image
    strength: float
    inside: float

    @property
    def change(self) -> float:
        """The same of the whole picture: 0 is the same picture."""
        return change(self.before, self.after)


def change(before: Image.Image, after: Image.Image, mask: Floats | None = None) -> float:
    """Mean absolute difference of two pictures, as a share of the intensities' range.

    Args:
        before: RGB.
        after: RGB, of the same size.
        mask: (h, w) in [0, 1] of any size, which the mean is weighted by; None is the whole picture.
    """
    each = np.abs(np.asarray(before, np.float64) - np.asarray(after, np.float64)).mean(2) / 255
    if mask is None:
        return float(each.mean())
    fitted = Image.fromarray(np.asarray(mask, np.float32)).resize(before.size, Image.Resampling.NEAREST)
    return float(np.average(each, weights=np.asarray(fitted)))


def strengths(asked: float | None, weakest: float = WEAKEST, strongest: float = STRONGEST) -> list[float]:
    """Those to try, in order: the one that was asked for, or doubled from the weakest to the strongest."""
    if asked is not None:
        return [asked]
    return [weakest * 2**doubled for doubled in range(round(np.log2(strongest / weakest)) + 1)]


def controls(prompt: str, captions: Sequence[str]) -> list[str]:
    """Captions of the training set that share the fewest words with a prompt, each with the one before it too.

    Of many the first LOOKED_AT are read.
    """
    chosen, captions = [prompt], captions[:LOOKED_AT]
    while len(chosen) <= CONTROLS:
        others = [caption for caption in dict.fromkeys(captions) if caption not in chosen]
        if not others:
            break
        chosen.append(others[likely_first(" ".join(chosen), others)[-1]])
    return chosen[1:]


def regenerate(
    model: Model,
    index: Index,
    query: Query,
    unlearn: UnlearnSettings | None = None,
    generate: GenerateSettings | None = None,
    strength: float | None = None,
    stop: Event | None = None,
) -> Generator[Progress | Regenerated, None, None]:
    """Yields Progress, then the query's prompt and each control's, before and after. Weights are restored.

    Args:
        model: the index's.
        index: gives the Fisher information and the controls' prompts.
        query: a generated picture: it has a seed.
        unlearn: the step that scores are measured with.
        generate: how the picture was sampled.
        strength: times that step, above 0; None takes the weakest of `strengths` that changes the region by VISIBLE.
        stop: set it to stop.

    Raises:
        InputError: the query is an upload, or a value is not acceptable.
        Stopped: after `stop` was set.
    """
    check_again(model, index, query, strength)
    asked = encode(model, query, index.center_crop)
    return _regenerate(model, index, asked, unlearn or UnlearnSettings(), generate, strength, stop or Event())


def check_again(model: Model, index: Index, query: Query, strength: float | None) -> None:
    """Refuse what cannot be generated again; raises what `regenerate` does."""
    if query.seed is None:
        raise InputError("an upload has no seed to generate it from again; accepted are generated pictures")
    if strength is not None and not 0 < strength <= 1000:
        raise InputError(f"a strength of {strength:g} is not possible; accepted are numbers above 0, up to 1000")
    check_query(query, model, index.center_crop)


class Course:
    """How far it is: denoising steps and gradients made, of all that it may take."""

    def __init__(self, total: int) -> None:
        self.done, self.total, self.clock = 0, total, Clock()

    def at(self, stage: str, more: int) -> Progress:
        """Progress after `more` of them."""
        self.done += more
        return Progress(stage, self.done, self.total, self.clock.total())


def _regenerate(
    model: Model,
    index: Index,
    asked: Encoded,
    unlearn: UnlearnSettings,
    generate: GenerateSettings | None,
    strength: float | None,
    stop: Event,
) -> Generator[Progress | Regenerated, None, None]:
    query, tried = asked.query, strengths(strength)
    prompts = [query.prompt, *controls(query.prompt, index.captions)]
    steps = (generate or GenerateSettings()).steps
    course = Course(unlearn.predictions + steps * (2 * len(prompts) - 1 + len(tried)))

    def draw(prompt: str) -> Image.Image:
        return model.generate(prompt, query.seed or 0, generate, on_step=lambda *_: check_stop(stop))

    before = yield from drawn(draw, prompts, steps, course)
    with unlearned(model, unlearn.weights or index.weights) as weights:
        start, before_it = {name: weight.clone() for name, weight in weights.items()}, 0
        for taken in unlearn_query(model, index, asked, unlearn, weights):
            check_stop(stop)
            yield course.at("unlearning", taken.predictions - before_it)
            before_it = taken.predictions
        step = {name: weight - start[name] for name, weight in weights.items()}
        weakest = weakest_visible(weights, start, step, tried, asked, before[0], partial(draw, query.prompt))
        without = yield from settled(weakest, len(tried), steps, course)
        yield without
        for prompt, first in zip(prompts[1:], before[1:], strict=True):
            (after,) = yield from drawn(draw, [prompt], steps, course)
            yield Regenerated(prompt, first, after, without.strength, change(first, after))


def drawn(
    draw: Callable[[str], Image.Image], prompts: Sequence[str], steps: int, course: Course
) -> Generator[Progress, None, list[Image.Image]]:
    """Pictures of some prompts, with Progress after each."""
    pictures = []
    for prompt in prompts:
        pictures.append(draw(prompt))
        yield course.at("generating", steps)
    return pictures


def settled(
    trials: Iterator[Regenerated], most: int, steps: int, course: Course
) -> Generator[Progress, None, Regenerated]:
    """The last of some trials, with Progress after each; of those that were not needed too."""
    made = []
    for trial in trials:
        made.append(trial)
        yield course.at("generating", steps)
    yield course.at("generating", steps * (most - len(made)))
    return made[-1]


def move(weights: dict[str, Tensor], start: dict[str, Tensor], step: dict[str, Tensor], strength: float = 1.0) -> None:
    """Put weights to where a step of some strength leads from a start, in place."""
    for name, weight in weights.items():
        weight.copy_(start[name] + strength * step[name])


def weakest_visible(
    weights: dict[str, Tensor],
    start: dict[str, Tensor],
    step: dict[str, Tensor],
    tried: list[float],
    asked: Encoded,
    before: Image.Image,
    draw: Callable[[], Image.Image],
) -> Iterator[Regenerated]:
    """The query's picture after ever stronger steps, until one changes its region by VISIBLE; the weights stay so."""
    mask = None if asked.mask is None else asked.mask.cpu().numpy()
    for strength in tried:
        move(weights, start, step, strength)
        after = draw()
        made = Regenerated(asked.query.prompt, before, after, strength, change(before, after, mask))
        yield made
        if made.inside >= VISIBLE:
            return
