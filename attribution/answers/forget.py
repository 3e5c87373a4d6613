"""Generate again without it: the same prompt and seed, and two unrelated prompts, from the model that unlearned."""

from collections.abc import Generator
from dataclasses import dataclass, replace
from threading import Event

import numpy as np
from PIL import Image, ImageChops, ImageStat

from attribution.diffusion.pipeline import GenerateSettings, Model
from attribution.diffusion.weights import unlearned
from attribution.errors import InputError
from attribution.index.index import Index
from attribution.methods.answer import Clock, Progress, check_stop
from attribution.methods.unlearning import likely_first, unlearn_query
from attribution.query.encoded import Encoded, encode
from attribution.query.query import Query
from attribution.query.regions import check_query
from attribution.unlearning.step import UnlearnSettings

STRENGTH = 10.0  # times the step that scores are measured with, which is too small to be seen in a picture
CONTROLS = 2


@dataclass(frozen=True)
class Regenerated:
    """A prompt's picture from the model as it is, and from the model that has unlearned the query."""

    prompt: str
    before: Image.Image
    after: Image.Image

    @property
    def change(self) -> float:
        """Mean absolute difference of the intensities, as a share of their range: 0 is the same picture."""
        return float(np.mean(ImageStat.Stat(ImageChops.difference(self.before, self.after)).mean)) / 255


def controls(prompt: str, captions: list[str]) -> list[str]:
    """Captions of the training set that share the fewest words with a prompt, each with the one before it too."""
    chosen = [prompt]
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
    strength: float = STRENGTH,
    stop: Event | None = None,
) -> Generator[Progress | Regenerated, None, None]:
    """Yields Progress, then the query's prompt and each control's, before and after. Weights are restored.

    Args:
        model: the index's.
        index: gives the Fisher information and the controls' prompts.
        query: a generated picture: it has a seed.
        unlearn: the step that scores are measured with.
        generate: how the picture was sampled.
        strength: times that step; above 0.
        stop: set it to stop.

    Raises:
        InputError: the query is an upload, or a value is not acceptable.
        Stopped: after `stop` was set.
    """
    if query.seed is None:
        raise InputError("an upload has no seed to generate it from again; accepted are generated pictures")
    if not 0 < strength <= 1000:
        raise InputError(f"a strength of {strength:g} is not possible; accepted are numbers above 0, up to 1000")
    check_query(query, model, index.center_crop)
    unlearn, stop = unlearn or UnlearnSettings(), stop or Event()
    stronger = replace(unlearn, step_size=strength * unlearn.alpha)
    return _regenerate(model, index, encode(model, query, index.center_crop), stronger, generate, stop)


def _regenerate(
    model: Model, index: Index, asked: Encoded, unlearn: UnlearnSettings, generate: GenerateSettings | None, stop: Event
) -> Generator[Progress | Regenerated, None, None]:
    query = asked.query
    seed, clock, prompts = query.seed or 0, Clock(), [query.prompt, *controls(query.prompt, index.captions)]
    steps = (generate or GenerateSettings()).steps
    gradients = unlearn.steps * unlearn.timesteps * unlearn.noises
    done, total = 0, gradients + 2 * steps * len(prompts)

    def draw(prompt: str) -> Image.Image:
        return model.generate(prompt, seed, generate, on_step=lambda *_: check_stop(stop))

    before = []
    for prompt in prompts:
        before.append(draw(prompt))
        done += steps
        yield Progress("generating", done, total, clock.total())
    with unlearned(model, unlearn.weights or index.weights) as weights:
        for part in unlearn_query(model, index, asked, unlearn, weights):
            check_stop(stop)
            yield Progress("unlearning", done + part, total, clock.total())
        done += gradients
        for prompt, first in zip(prompts, before, strict=True):
            after = draw(prompt)
            done += steps
            yield Progress("generating", done, total, clock.total())
            yield Regenerated(prompt, first, after)
