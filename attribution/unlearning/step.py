"""Unlearning a picture: a Newton step on some weights, held back by the Fisher information (Eq. 4 and 5)."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from attribution.batches import in_batches
from attribution.diffusion.loss import denoising_loss, precise
from attribution.diffusion.noise import NoiseBank, NoiseSettings
from attribution.diffusion.pipeline import Model
from attribution.diffusion.weights import WeightSubset, tuned
from attribution.unlearning.fisher import Information, precondition
from attribution.unlearning.rise import trial_predictions

Curvature = Literal["diagonal", "ek-fac", "none"]
# Of the embedded world, each the best of several on the same tuning pictures
STEP_SIZES: dict[Curvature, float] = {"diagonal": 0.01, "ek-fac": 0.005, "none": 6.0}


@dataclass(frozen=True)
class UnlearnSettings:
    """How a query is unlearned.

    Attributes:
        weights: the subset that changes; None is the index's own.
        curvature: the Fisher information's form; "none" is the ablation by gradient ascent (SGD).
        step_size: alpha of Eq. 5, of each step; without curvature, the learning rate. None is STEP_SIZES'.
        rise: instead of a step size, the share of the query's own loss that it rises by, in equal parts with each step;
            how large a step does that is found for every query. None leaves the step size as it is.
        steps: Newton steps; the gradient is taken anew at each.
        damping: added to the Fisher information, as a share of its mean over each parameter tensor.
        timesteps: of the noise bank that the query's gradient is averaged over.
        noises: per timestep of that bank.
        seed: of that bank.
        batch: predictions in one call of the U-Net.
        images: N of Eq. 5, where the model was trained on more images than the index holds; None is the index's.
    """

    weights: WeightSubset | None = None
    curvature: Curvature = "diagonal"
    step_size: float | None = None
    rise: float | None = None
    steps: int = 1
    damping: float = 0.1
    timesteps: int = 100
    noises: int = 2
    seed: int = 1
    batch: int = 32
    images: int | None = None

    @property
    def alpha(self) -> float:
        """The step size that holds; 1 where it is yet to be found."""
        if self.rise is not None:
            return 1.0
        return STEP_SIZES[self.curvature] if self.step_size is None else self.step_size

    @property
    def predictions(self) -> int:
        """Of the U-Net, that unlearning takes."""
        columns = self.timesteps * self.noises
        return self.steps * columns + (0 if self.rise is None else trial_predictions(columns, self.steps))


def query_bank(model: Model, settings: UnlearnSettings) -> NoiseBank:
    """The noises that the query's gradient is averaged over."""
    noise = NoiseSettings(settings.timesteps, settings.noises, settings.seed)
    return NoiseBank.draw(noise, model.latent_shape, model.train_timesteps)


def query_gradient(
    model: Model, subset: WeightSubset, latents: Tensor, text: Tensor, bank: NoiseBank, mask: Tensor | None, batch: int
) -> Iterator[tuple[int, dict[str, Tensor]]]:
    """Gradient of the query's loss, averaged over the bank: yields (columns done, running sum / all columns).

    Args:
        model: at the weights of interest.
        subset: the weights to differentiate by.
        latents: (1, C, h, w) of the query.
        text: (1, L, D) of its prompt.
        bank: S columns.
        mask: (h, w), the region; None is the whole picture.
        batch: columns in one pass, at most.
    """

    def loss(columns: range) -> Tensor:
        return denoising_loss(model, latents, text, bank.select(list(columns)), mask).sum() / len(bank)

    yield from running_gradient(model, subset, len(bank), batch, loss)


def running_gradient(
    model: Model, subset: WeightSubset, count: int, batch: int, loss: Callable[[range], Tensor]
) -> Iterator[tuple[int, dict[str, Tensor]]]:
    """Gradient of a sum of losses, some of them in one pass: yields (how many are done, running sum, `precise`).

    Args:
        model: at the weights of interest.
        subset: the weights to differentiate by.
        count: of losses.
        batch: losses in one pass, at most.
        loss: the sum of some of them.
    """

    def gradient(some: range) -> dict[str, Tensor]:
        with tuned(model, subset) as parameters, torch.enable_grad():
            grads = torch.autograd.grad(loss(some), list(parameters.values()))
        return dict(zip(parameters, grads, strict=True))

    total: dict[str, Tensor] = {}
    for some, part in in_batches(count, batch, gradient):
        total = {name: total.get(name, 0) + precise(grad) for name, grad in part.items()}
        yield some.stop, total


def query_loss(model: Model, latents: Tensor, text: Tensor, bank: NoiseBank, mask: Tensor | None, batch: int) -> float:
    """The query's loss under the model's weights, averaged over the bank; see `query_gradient`."""

    def losses(columns: range) -> float:
        with torch.inference_mode():
            return float(denoising_loss(model, latents, text, bank.select(list(columns)), mask).sum())

    return sum(part for _, part in in_batches(len(bank), batch, losses)) / len(bank)


def newton_step(
    gradient: dict[str, Tensor], information: Mapping[str, Information] | None, settings: UnlearnSettings, images: int
) -> dict[str, Tensor]:
    """The change of the weights that makes the query's loss rise: (alpha / N) F^-1 grad (Eq. 5).

    Args:
        gradient: of the query's loss, by parameter name.
        information: the Fisher information of the same parameters; None for gradient ascent, alpha grad.
        settings: step size and damping.
        images: N, the number of training images, unless the settings name it.
    """
    if information is None:
        return {name: settings.alpha * grad for name, grad in gradient.items()}
    return {
        name: settings.alpha
        / (settings.images or images)
        * precondition(grad, information[name], settings.damping)  # Eq. 5
        for name, grad in gradient.items()
    }


def add_step(weights: dict[str, Tensor], step: dict[str, Tensor]) -> None:
    """Move the weights in place."""
    for name, change in step.items():
        weights[name].add_(change)
