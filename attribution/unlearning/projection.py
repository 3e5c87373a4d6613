"""Projected gradients of each image, and what a step along one does to training losses, to first order."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from attribution.batches import batches, in_batches
from attribution.diffusion.loss import paired_loss, precise, prediction_norm
from attribution.diffusion.noise import NoiseBank
from attribution.diffusion.pipeline import Model
from attribution.diffusion.weights import WeightSubset
from attribution.errors import InputError
from attribution.files import let_go
from attribution.unlearning.fisher import precondition
from attribution.unlearning.gradients import OutputFunction, per_image_gradients

ROWS = 1024  # training images in one block of a streamed pass

# What is differentiated: the loss for TRAK, JourneyTRAK and influence; its own output function for D-TRAK.
GRADIENT_OUTPUTS: dict[str, OutputFunction] = {
    "loss": paired_loss,
    "d-trak": prediction_norm,
    "influence": paired_loss,
    "influence+": paired_loss,
}


@dataclass(frozen=True)
class GradientSettings:
    """How gradients are kept and compared.

    Attributes:
        dimension: of a projected gradient; of influence+, whose numbers take a bit each, sixteen times as many.
        seed: of the projection, and of JourneyTRAK's noises.
        damping: ridge of TRAK's kernel, as a share of the mean of its diagonal.
        whitening: damping of the Fisher information, or of EK-FAC, whose root the gradients of influence, and of
            influence+, are divided by.
        journey: where JourneyTRAK takes the query's gradient, a share of the schedule from 0 (clean) to 1 (all noise).
        journey_noises: that this one gradient is averaged over.
    """

    dimension: int = 4096
    seed: int = 3
    damping: float = 0.1
    whitening: float = 0.1
    journey: float = 0.7
    journey_noises: int = 16


class Projecting(Protocol):
    """Fewer numbers in place of a gradient, from which inner products can be told."""

    @property
    def dimension(self) -> int:
        """How many numbers."""

    def __call__(self, gradients: dict[str, Tensor]) -> Tensor:
        """(B, dimension) of (B, *parameter shape) by parameter name, float32, or float64 if they are."""


@dataclass(frozen=True)
class Projection:
    """A fixed random projection that keeps inner products: a count sketch (Charikar et al. 2002).

    Each number of a gradient is added to one of the buckets, with a sign; both are drawn for its parameter's name.
    E <Px, Py> = <x, y>, with a variance of at most 2 / dimension |x|^2 |y|^2. Gradients that fit are kept as they are:
    concatenated by sorted name and filled up with zeros. No matrix is made: the tables hold 4 bytes for each parameter
    (77 MB for the keys and values of SD 1.4) on each device, and stay in memory.

    Attributes:
        dimension: number of buckets.
        seed: of the tables.
        scales: that gradients are multiplied by first, by parameter name.

    Raises:
        InputError: there is no bucket, or the seed is negative.
    """

    dimension: int
    seed: int
    scales: Mapping[str, Tensor] | None = None

    def __post_init__(self) -> None:
        if self.dimension < 1 or self.seed < 0:
            what = f"a projection to {self.dimension} numbers with seed {self.seed}"
            raise InputError(f"{what} is not possible; accepted are at least one number, and seeds from 0")

    def __call__(self, gradients: dict[str, Tensor]) -> Tensor:
        """Project B gradients, each on its own.

        Args:
            gradients: (B, *parameter shape) by parameter name, in any order.

        Returns:
            (B, dimension) on the gradients' device, float32, or float64 if they are.
        """
        if self.scales is not None:
            gradients = {name: gradient * self.scales[name].to(gradient) for name, gradient in gradients.items()}
        flat = {name: precise(gradient.flatten(1)) for name, gradient in sorted(gradients.items())}
        first = next(iter(flat.values()))
        missing = self.dimension - sum(gradient.shape[1] for gradient in flat.values())
        if missing >= 0:
            return torch.cat([*flat.values(), first.new_zeros(len(first), missing)], 1)
        sums = first.new_zeros(len(first), 2 * self.dimension)  # of what has a positive sign, then of the rest
        for name, gradient in flat.items():
            table = _table(self.seed, name, gradient.shape[1], self.dimension, gradient.device)
            for buckets, values in zip(sums, gradient, strict=True):  # image by image: much faster on a CPU
                buckets.index_add_(0, table, values)
        return sums[:, : self.dimension] - sums[:, self.dimension :]


@lru_cache(maxsize=1024)
def _table(seed: int, name: str, numel: int, dimension: int, device: torch.device) -> Tensor:
    """(numel,) int32 in [0, 2 dimension): the bucket, plus `dimension` if the sign is negative."""
    # Stored gradients need the same table for ever: numpy promises that of the raw stream, not of distributions.
    stream = np.random.PCG64([seed, *name.encode()]).random_raw(numel)
    return torch.from_numpy((stream % (2 * dimension)).astype(np.int32)).to(device)


def gradients_by_call(
    model: Model,
    subset: WeightSubset,
    latents: Tensor,
    text: Tensor,
    bank: NoiseBank,
    project: Projecting,
    output: OutputFunction,
    batch: int,
    mask: Tensor | None = None,
) -> Iterator[tuple[float, Tensor]]:
    """Projected gradient of each image, averaged over the bank, a call of the U-Net at a time.

    Args:
        model: at the weights of interest.
        subset: the weights to differentiate by.
        latents: (n, C, h, w).
        text: (n, L, D).
        bank: S columns.
        project: to the numbers that are kept.
        output: of `GRADIENT_OUTPUTS`.
        batch: predictions in one pass; images and columns are cut to fit.
        mask: (h, w), the region of a query; None is the whole picture.

    Yields:
        The share of the calls that is done, up to 1, and the sums so far, which are the averages when it is 1:
        (n, dimension) on the model's device, float32, or float64 if the model is.
    """
    columns = len(bank)
    means = precise(torch.zeros(len(latents), project.dimension, dtype=model.dtype, device=model.device))

    def projected(pairs: range) -> tuple[Tensor, Tensor]:
        image, column = torch.tensor(pairs) // columns, torch.tensor(pairs) % columns
        noises = bank.select(column.tolist())
        gradients = per_image_gradients(model, subset, latents[image], text[image], noises, output, mask)
        return image.to(means.device), project(gradients) / columns

    pairs = len(latents) * columns
    for done, (image, part) in in_batches(pairs, batch, projected):
        means.index_add_(0, image, part)
        yield done.stop / pairs, means


def mean_gradients(
    model: Model,
    subset: WeightSubset,
    latents: Tensor,
    text: Tensor,
    bank: NoiseBank,
    project: Projecting,
    output: OutputFunction,
    batch: int,
    mask: Tensor | None = None,
) -> Tensor:
    """Projected gradient of each image, averaged over the bank: (n, dimension); see `gradients_by_call`."""
    *_, (_, means) = gradients_by_call(model, subset, latents, text, bank, project, output, batch, mask)
    return means


def whitening(fisher: Mapping[str, Tensor], damping: float) -> dict[str, Tensor]:
    """(F + damping)^-1/2 by parameter name, F diagonal.

    A gradient times a Newton step, g . F^-1 h, is the product of the two whitened gradients: a projection keeps that
    far better, as both are then of moderate length. It is zero where F and the damping are: see `precondition`.
    """
    return {name: precondition(torch.ones_like(values), values, damping).sqrt() for name, values in fisher.items()}


def first_order(phi: NDArray[np.floating], step: Tensor, rows: int = ROWS) -> NDArray[np.float64]:
    """How much each training loss rises along a step, to first order: grad L(z_i) . step (Appendix A.3 of the paper).

    Args:
        phi: (N, dimension) or (N, views, dimension) projected gradients of the losses, memory-mapped or not.
        step: (dimension,) the change of the weights, projected likewise as a batch of one.
        rows: in memory at once.

    Returns:
        (N,) or (N, views).
    """
    vector = step.detach().to("cpu", torch.float64).numpy()
    result = np.empty(phi.shape[:-1])
    for block in batches(len(phi), rows):
        result[block.start : block.stop] = np.asarray(phi[block.start : block.stop], np.float64) @ vector
        let_go(phi)
    return result
