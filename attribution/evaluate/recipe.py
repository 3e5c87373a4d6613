"""The published recipe (Wang et al. 2024), written as plainly as possible: what all else here saves is seen by it.

One Newton step along the query's gradient, a mean over 50,000 samples of timestep and noise; then the loss of every
training image and of its mirror at 20 timesteps. Nothing is searched and nothing is shared with the fast path but the
one loss. Losses before are of the training set alone: they are measured once for all queries, and not counted.

As that takes minutes for the embedded world and hours for a large one, `measure` runs it on some of the images and
some of the samples and scales up what it took in proportion.
"""

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

from attribution.batches import batches
from attribution.diffusion.loss import denoising_loss
from attribution.diffusion.noise import NoiseBank, NoiseSettings
from attribution.diffusion.pipeline import Model
from attribution.diffusion.weights import tuned, unlearned
from attribution.evaluate.machine import Meter, Spent
from attribution.index.index import Index
from attribution.query.encoded import Encoded
from attribution.unlearning.step import UnlearnSettings

TIMESTEPS = 20  # of a score, strided over the schedule
GRADIENTS = 50_000  # samples of the query's gradient
AT_ONCE = 80  # of them in a call
BEFORE, GRADIENT, AFTER = "losses before", "the query's gradient", "losses after"  # its parts


@dataclass(frozen=True)
class RecipeSettings:
    """What part of the published recipe is run.

    Attributes:
        queries: how many of the pictures it is run for, at most.
        images: how many training images are scored, spread over the training set, at most.
        gradients: samples of the query's gradient, of the 50,000.
        seed: of the samples and of the noises.
    """

    queries: int = 1
    images: int = 64
    gradients: int = 400
    seed: int = 4


def recipe(
    model: Model,
    index: Index,
    asked: Encoded,
    rows: Sequence[int],
    samples: NoiseBank,
    noises: NoiseBank,
    settings: UnlearnSettings,
) -> Iterator[str | Tensor]:
    """Yields the name of a part after each call of it, and in the end the scores of `rows`, (n,).

    Args:
        model: the index's.
        index: of the training set.
        asked: the query.
        rows: of the training set.
        samples: of timestep and noise, that the query's gradient is averaged over.
        noises: that losses are averaged over.
        settings: step size and damping; the Fisher information is the diagonal one.
    """
    before, after = [], []
    for row in rows:
        before.append(_losses(model, index, row, noises))
        yield BEFORE
    gradient: dict[str, Tensor] = {}
    for some in batches(len(samples), AT_ONCE):
        part = _gradient(model, index, asked, samples.select(list(some)))
        gradient = {name: gradient.get(name, 0) + grad / len(samples) for name, grad in part.items()}
        yield GRADIENT
    with unlearned(model, index.weights) as weights:
        for name, weight in weights.items():
            fisher = index.fisher[name].to(weight)
            damped = fisher + settings.damping * fisher.mean()
            weight += settings.alpha / len(index) * gradient[name] / damped  # Eq. 5
        for row in rows:
            after.append(_losses(model, index, row, noises))
            yield AFTER
    yield (torch.stack(after) - torch.stack(before)).amax(1)  # Eq. 6, the larger of the image's and its mirror's


def _losses(model: Model, index: Index, row: int, noises: NoiseBank) -> Tensor:
    """Losses of a training image and of its mirror, averaged over noises: (views,)."""
    latents, text = index.encoded.view([row], index.views)[0], index.encoded.text(model, [row])
    with torch.inference_mode():
        return denoising_loss(model, latents, text.repeat_interleave(len(latents), 0), noises).mean(1)


def _gradient(model: Model, index: Index, asked: Encoded, samples: NoiseBank) -> dict[str, Tensor]:
    """Gradient of the sum of the query's losses at some samples, by parameter name."""
    with tuned(model, index.weights) as weights, torch.enable_grad():
        loss = denoising_loss(model, asked.latents, asked.text, samples, asked.mask).sum()
        return dict(zip(weights, torch.autograd.grad(loss, list(weights.values())), strict=True))


def draw_samples(model: Model, count: int, seed: int) -> NoiseBank:
    """Samples of timestep and noise by chance, as in training."""
    generator = torch.Generator().manual_seed(seed)
    t = torch.randint(model.train_timesteps, (count,), generator=generator)
    return NoiseBank(t, torch.randn(count, *model.latent_shape, generator=generator))


@dataclass(frozen=True)
class Fraction:
    """What part of the recipe was run, of what it is in whole.

    Attributes:
        images: that were scored.
        of_images: in the training set.
        gradients: samples of the query's gradient.
        of_gradients: in the recipe.
        timesteps: of every score.
        views: of every image.
    """

    images: int
    of_images: int
    gradients: int
    of_gradients: int = GRADIENTS
    timesteps: int = TIMESTEPS
    views: int = 2

    @property
    def told(self) -> dict[str, Any]:
        """As JSON has it, with what the seconds and predictions were multiplied by."""
        scaled = {"images": self.of_images / self.images, "gradients": self.of_gradients / self.gradients}
        return {**asdict(self), "scaled_by": scaled}

    @property
    def sentence(self) -> str:
        """In words."""
        return (
            f"The published recipe was run on {self.images:,} of {self.of_images:,} training images at"
            f" {self.timesteps} timesteps in {self.views} views, with {self.gradients:,} of {self.of_gradients:,}"
            f" gradient samples; its figures are scaled up in proportion, {self.of_images / self.images:,.1f} and"
            f" {self.of_gradients / self.gradients:,.1f} times. Losses before unlearning are not counted."
        )


def fraction(index: Index, settings: RecipeSettings) -> Fraction:
    """What part of the recipe some settings run."""
    images = min(settings.images, len(index))
    return Fraction(images, len(index), settings.gradients, views=len(index.views))


@dataclass(frozen=True)
class Run:
    """A run of the recipe on a fraction.

    Attributes:
        whole: what all of it would take.
        rows: of the training set that were scored, best first.
    """

    whole: Spent
    rows: tuple[int, ...]


def measure(meter: Meter, model: Model, index: Index, asked: Encoded, settings: RecipeSettings) -> Iterator[str | Run]:
    """Run the recipe on a fraction: yields what is being done, and in the end the run, scaled up."""
    part = fraction(index, settings)
    rows = [len(index) * place // part.images for place in range(part.images)]
    noises = NoiseBank.draw(NoiseSettings(TIMESTEPS, seed=settings.seed), model.latent_shape, model.train_timesteps)
    steps = recipe(
        model, index, asked, rows, draw_samples(model, part.gradients, settings.seed), noises, UnlearnSettings()
    )
    spent, last = dict.fromkeys((BEFORE, GRADIENT, AFTER), Spent()), meter.read()
    for step in steps:
        if isinstance(step, Tensor):
            whole = GRADIENTS / part.gradients * spent[GRADIENT] + len(index) / part.images * spent[AFTER]
            yield Run(whole, tuple(rows[place] for place in step.argsort(descending=True).tolist()))
            return
        now = meter.read()
        spent[step], last = spent[step] + (now - last), now
        yield f"published recipe: {step}"
