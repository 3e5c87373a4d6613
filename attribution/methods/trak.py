"""TRAK and its kin: the query's projected gradient against the training images', through TRAK's kernel.

TRAK (Park et al. 2023, arXiv 2303.14186), JourneyTRAK (Georgiev et al. 2023, arXiv 2312.06205) and D-TRAK
(Zheng et al. 2024, arXiv 2311.00500) share one formula; they differ in what is differentiated, and at which timesteps.
"""

from collections.abc import Callable, Generator
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from threading import Event

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from attribution.batches import batches
from attribution.diffusion.noise import NoiseBank, NoiseSettings, drawn_anew
from attribution.diffusion.pipeline import Model
from attribution.diffusion.weights import checkpoint
from attribution.errors import InputError
from attribution.files import let_go
from attribution.index.index import Index
from attribution.index.manifest import GradientRecord
from attribution.methods.answer import Answer, AttributeSettings, Clock, Progress, check_stop, ranked
from attribution.query.encoded import Encoded
from attribution.unlearning.projection import (
    GRADIENT_OUTPUTS,
    ROWS,
    GradientSettings,
    Projecting,
    Projection,
    first_order,
    mean_gradients,
)
from attribution.unlearning.score import Floats, Scores


def journey_bank(settings: GradientSettings, latent_shape: tuple[int, int, int], train_timesteps: int) -> NoiseBank:
    """The one timestep at which JourneyTRAK takes the query's gradient, with its noises.

    Raises:
        InputError: the timestep is outside the schedule, or there is no noise.
    """
    if not 0 <= settings.journey <= 1:
        raise InputError(f"a journey of {settings.journey:g} of the schedule is not possible; accepted are 0 to 1")
    noises = NoiseSettings(timesteps=1, noises=settings.journey_noises, seed=settings.seed)
    bank = NoiseBank.draw(noises, latent_shape, train_timesteps)
    timestep = min(int(settings.journey * train_timesteps), train_timesteps - 1)
    return replace(bank, t=torch.full_like(bank.t, timestep))


@dataclass(frozen=True)
class Kernel:
    """TRAK's kernel: scores are phi(q)^T (Phi^T Phi + lambda I)^-1 phi(i) (Park et al. 2023, Section 3.2).

    Its weights 1 - p are of classifiers, and one model stands for its ensemble.

    Attributes:
        factor: (dimension, dimension) float64, lower Cholesky factor, 134 MB at dimension 4096.
    """

    factor: Tensor

    @classmethod
    def of(cls, phi: NDArray[np.floating], damping: float, rows: int = ROWS) -> "Kernel":
        """Accumulate Phi^T Phi in float64 and factor it; N dimension^2 multiplications.

        Args:
            phi: (N, dimension) projected gradients, memory-mapped or not; the views of an image already averaged.
            damping: lambda, as a share of the mean of the diagonal of Phi^T Phi; above 0.
            rows: in memory at once.

        Raises:
            InputError: no damping, or gradients that are all zero or not finite.
        """
        gram = np.zeros((phi.shape[1], phi.shape[1]))
        for block in batches(len(phi), rows):
            part = np.asarray(phi[block.start : block.stop], np.float64)
            gram += part.T @ part
            let_go(phi)
        ridge = damping * gram.trace() / len(gram)
        if not 0 < ridge < np.inf:
            what = f"damping {damping:g} of gradients whose mean square is {gram.trace() / phi.size:g}"
            raise InputError(f"{what} is not possible; accepted are dampings above 0 and gradients finite and not zero")
        gram[np.diag_indices_from(gram)] += ridge
        return cls(torch.linalg.cholesky(torch.from_numpy(gram)))

    def scores(self, phi: NDArray[np.floating], query: Tensor, rows: int = ROWS) -> NDArray[np.float64]:
        """Scores of all training images, (N,); higher is more influential.

        Args:
            phi: (N, dimension), what the kernel was made of.
            query: (dimension,) projected gradient of the query, of the same output function.
            rows: in memory at once.
        """
        right = query.detach().to("cpu", torch.float64)[:, None]
        return first_order(phi, torch.cholesky_solve(right, self.factor)[:, 0], rows)


def projected_gradients(index: Index, name: str) -> tuple[NDArray[np.floating], GradientRecord]:
    """Projected gradients (checkpoints, N, views, dimension) that were added to an index, and how.

    Raises:
        InputError: they were not added, or are of other weights than the index's.
    """
    phi, made = index.array(f"gradients/{name}"), index.gradients(name)
    if made.weights != index.weights:
        raise InputError(f"the gradients {name!r} are of {made.weights}, the index is of {index.weights}")
    return phi, made


def trak(
    name: str, journey: bool, model: Model, index: Index, asked: Encoded, settings: AttributeSettings, stop: Event
) -> Answer:
    """TRAK and its kin: the query's projected gradient against the training images', through TRAK's kernel.

    Args:
        name: of the gradients.
        journey: the query's gradient is taken at one denoising step alone, not over the index's noise bank.
        model: the index's.
        index: of the training set to search.
        asked: what to attribute.
        settings: how.
        stop: set it to stop.
    """
    clock, predictions = Clock(), trak_predictions(index, name, journey)
    total = yield from trak_scores(name, journey, model, index, asked, settings, stop, clock, predictions)
    yield ranked(model, index, asked.query, settings, Scores.exact(total[:, None]), predictions, clock)


def trak_predictions(index: Index, name: str, journey: bool) -> int:
    """Predictions of the U-Net that such an answer takes."""
    made, noise = index.gradients(name), index.manifest.settings.noise
    columns = made.journey_noises if journey else noise.timesteps * noise.noises
    return len(made.checkpoints) * columns


def trak_scores(
    name: str,
    journey: bool,
    model: Model,
    index: Index,
    asked: Encoded,
    settings: AttributeSettings,
    stop: Event,
    clock: Clock,
    predictions: int,
) -> Generator[Progress, None, Floats]:
    """Yields Progress, of all `predictions`, and returns the scores of all training images, (N,); see `trak`."""
    phi, kept = projected_gradients(index, name)
    if journey:
        noises = replace(kept, seed=drawn_anew(kept.seed, settings.noise_seed))
        bank = journey_bank(noises, model.latent_shape, model.train_timesteps)
    else:
        bank = index.bank(model, settings.noise_seed)

    def scores(number: int, wanted: Tensor) -> Floats:
        return _kernel(index, name, number, kept.damping).scores(phi[number, :, 0], wanted)

    given = (name, scores, bank, Projection(kept.dimension, kept.seed))
    return (yield from over_checkpoints(*given, model, index, asked, settings, stop, clock, predictions))


def over_checkpoints(
    name: str,
    scores: Callable[[int, Tensor], Floats],
    bank: NoiseBank,
    project: Projecting,
    model: Model,
    index: Index,
    asked: Encoded,
    settings: AttributeSettings,
    stop: Event,
    clock: Clock,
    predictions: int,
) -> Generator[Progress, None, Floats]:
    """Yields Progress, of all `predictions`, and returns scores, averaged over the checkpoints of some gradients.

    Args:
        name: of the gradients in the index.
        scores: of all training images, by a checkpoint's number and the query's projected gradient, (dimension,).
        bank: noises that the query's gradient is averaged over.
        project: the query's gradient as those in the index are.
        model: the index's.
        index: of the training set.
        asked: the query.
        settings: of the answer.
        stop: set it to stop.
        clock: since the beginning.
        predictions: that will be made.
    """
    picture, output, total = (asked.latents, asked.text), GRADIENT_OUTPUTS[name], np.zeros(1)
    how, sources = (settings.unlearn.batch, asked.mask), index.checkpoints(name)
    for number, source in enumerate(sources):
        check_stop(stop)
        yield Progress("gradient", number * len(bank), predictions, clock.total())
        with checkpoint(model, source):
            wanted = mean_gradients(model, index.weights, *picture, bank, project, output, *how)[0]
        total = total + scores(number, wanted) / len(sources)
    return total


@lru_cache(maxsize=8)
def _cached_kernel(path: Path, changed: float, checkpoint: int, damping: float) -> Kernel:
    return Kernel.of(np.load(path, mmap_mode="r", allow_pickle=False)[checkpoint, :, 0], damping)


def _kernel(index: Index, name: str, checkpoint: int, damping: float) -> Kernel:
    """TRAK's kernel of an index's gradients, whose views are averaged already; made once."""
    path = index.file(f"gradients/{name}.npy")
    return _cached_kernel(path, path.stat().st_mtime, checkpoint, damping)
