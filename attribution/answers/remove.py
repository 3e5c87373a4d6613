"""Remove these and generate again: the same prompt and seed from the model that unlearned some training images.

Beside it stands the same for other images, at random or of another method, by a step of the same strength, and two
unrelated prompts after the first step, as controls.
"""

from collections.abc import Generator, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from threading import Event

import numpy as np
from PIL import Image
from torch import Tensor

from attribution.answers.forget import (
    Course,
    Regenerated,
    change,
    check_again,
    controls,
    drawn,
    move,
    settled,
    strengths,
    weakest_visible,
)
from attribution.diffusion.pipeline import GenerateSettings, Model
from attribution.diffusion.weights import parameters, unlearned
from attribution.errors import InputError
from attribution.index.index import Index
from attribution.methods.answer import Progress, check_stop
from attribution.query.encoded import Encoded, encode
from attribution.query.query import Query
from attribution.unlearning.removal import Images, unlearn_images
from attribution.unlearning.score import Floats
from attribution.unlearning.step import UnlearnSettings

WEAKEST, STRONGEST = 1.0, 64.0  # times alpha, the step size that scores are measured with
NOISES = 20  # that each image's gradient is averaged over, one a timestep
CHANCE = "chance"


@dataclass(frozen=True)
class Named:
    """Training images that are taken away together.

    Attributes:
        by: the method that names them; CHANCE where none does.
        rows: of the training set.
    """

    by: str
    rows: tuple[int, ...]


def by_chance(index: Index, named: Named, seed: int) -> Named:
    """As many other training images, by a seed; all others where they are fewer."""
    order = np.random.default_rng(seed).permutation(len(index))
    others = [int(row) for row in order if int(row) not in named.rows]
    return Named(CHANCE, tuple(others[: len(named.rows)]))


def removal_settings(model: Model, index: Index) -> UnlearnSettings:
    """The step by default: with EK-FAC where the index holds it, which harms other pictures less than the diagonal."""
    try:
        index.require_information(parameters(model, index.weights), "ek-fac")
    except InputError:
        return UnlearnSettings(timesteps=NOISES, noises=1)
    return UnlearnSettings(curvature="ek-fac", timesteps=NOISES, noises=1)


def unlearn_rows(
    model: Model, index: Index, rows: Sequence[int], settings: UnlearnSettings, weights: dict[str, Tensor]
) -> Iterator[int]:
    """Move `weights`, the model's own, to where training images are unlearned; yields predictions made so far.

    Args:
        model: the index's, at its pretrained weights.
        index: of the training set.
        rows: to take away, at least one and not all.
        settings: of the step, see `removal_settings`; its alpha is a strength of 1.
        weights: of the subset that changes, in place: those of `unlearned`.

    Raises:
        InputError: none, all, or rows that are not there; or a rise, which is of a query's loss.
    """
    check_rows(index, rows)
    if settings.rise is not None:
        raise InputError(f"a rise of {settings.rise:g} is of a query's loss; training images take a step size")
    subset = settings.weights or index.weights
    images = Images(index.encoded.view(rows, index.views), index.encoded.text(model, rows))
    information = index.information(weights, settings.curvature)
    yield from unlearn_images(model, subset, images, information, settings, len(index), weights)


def check_rows(index: Index, rows: Sequence[int]) -> None:
    """Refuse rows that cannot be taken away; raises what `unlearn_rows` does."""
    if wrong := [row for row in rows if not 0 <= row < len(index)]:
        raise InputError(f"there is no row {wrong[0]}; accepted are 0 to {len(index) - 1}")
    if not 0 < len(set(rows)) < len(index):
        raise InputError(f"{len(set(rows))} of {len(index)} images cannot be removed; accepted are 1 to all but one")


def regenerate_without(
    model: Model,
    index: Index,
    query: Query,
    named: Named,
    beside: Named,
    unlearn: UnlearnSettings | None = None,
    generate: GenerateSettings | None = None,
    strength: float | None = None,
    stop: Event | None = None,
) -> Generator[Progress | Regenerated, None, None]:
    """Yields Progress and the query's picture without `named`, without `beside`, and each control without `named`.

    Weights are restored.

    Args:
        model: the index's.
        index: gives the training images, the Fisher information and the controls' prompts.
        query: a generated picture: it has a seed.
        named: the images that are taken away.
        beside: those that are taken away in their place, by a step of the same strength.
        unlearn: the step of strength 1; None is `removal_settings`.
        generate: how the picture was sampled.
        strength: times that step, above 0; None takes the weakest, from WEAKEST to STRONGEST, at which the removal of
            `named` is visible, as `regenerate` does.
        stop: set it to stop.

    Raises:
        InputError: the query is an upload, or a value is not acceptable.
        Stopped: after `stop` was set.
    """
    check_again(model, index, query, strength)
    for each in (named, beside):
        check_rows(index, each.rows)
    settings = unlearn or removal_settings(model, index)
    removal = _Removal(model, index, encode(model, query, index.center_crop), settings, generate, stop or Event())
    return removal.run(named, beside, strengths(strength, WEAKEST, STRONGEST))


@dataclass(frozen=True)
class _Removal:
    """What a removal is made with, whichever images are taken away."""

    model: Model
    index: Index
    asked: Encoded
    settings: UnlearnSettings
    generate: GenerateSettings | None
    stop: Event

    def run(self, named: Named, beside: Named, tried: list[float]) -> Generator[Progress | Regenerated, None, None]:
        """See `regenerate_without`."""
        prompt, *others = [self.asked.query.prompt, *controls(self.asked.query.prompt, self.index.captions)]
        course = self.course(len(named.rows) + len(beside.rows), 2 * (1 + len(others)) + len(tried))
        before = yield from drawn(self.draw, [prompt, *others], self.steps, course)
        with unlearned(self.model, self.settings.weights or self.index.weights) as weights:
            start = {name: weight.clone() for name, weight in weights.items()}
            step = yield from self.step_of(named, weights, start, course)
            other = yield from self.step_of(beside, weights, start, course)
            trials = weakest_visible(weights, start, step, tried, self.asked, before[0], partial(self.draw, prompt))
            without = yield from settled(trials, len(tried), self.steps, course)
            yield without
            move(weights, start, other, without.strength)
            (after,) = yield from drawn(self.draw, [prompt], self.steps, course)
            yield Regenerated(prompt, before[0], after, without.strength, change(before[0], after, self.mask))
            move(weights, start, step, without.strength)
            for control, first in zip(others, before[1:], strict=True):
                (after,) = yield from drawn(self.draw, [control], self.steps, course)
                yield Regenerated(control, first, after, without.strength, change(first, after))

    @property
    def mask(self) -> Floats | None:
        """Of the query's region."""
        return None if self.asked.mask is None else self.asked.mask.cpu().numpy()

    @property
    def steps(self) -> int:
        """Of denoising, a picture."""
        return (self.generate or GenerateSettings()).steps

    def course(self, images: int, pictures: int) -> Course:
        """How far it is, at the beginning."""
        return Course(self.settings.predictions * images + self.steps * pictures)

    def draw(self, prompt: str) -> Image.Image:
        """A picture from the weights that the model has now."""
        return self.model.generate(
            prompt, self.asked.query.seed or 0, self.generate, on_step=lambda *_: check_stop(self.stop)
        )

    def step_of(
        self, named: Named, weights: dict[str, Tensor], start: dict[str, Tensor], course: Course
    ) -> Generator[Progress, None, dict[str, Tensor]]:
        """The step of strength 1 that takes some images away; the weights are at the start again."""
        before = 0
        for done in unlearn_rows(self.model, self.index, named.rows, self.settings, weights):
            check_stop(self.stop)
            yield course.at("removing", done - before)
            before = done
        step = {name: weight - start[name] for name, weight in weights.items()}
        for name, weight in weights.items():
            weight.copy_(start[name])
        return step
