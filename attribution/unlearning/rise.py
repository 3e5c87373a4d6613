"""How large a step is, by what it does: the step size with which the query's own loss has risen to a set level.

Unlearning is to raise that loss (Eq. 4), so a share by which it rises means the same for every query, region, form of
the Fisher information and training set. The relative change of the weights does not: a Newton step goes farthest along
the weights that the losses depend on least. It is what bounds the search, as a loss may not rise so far at all.
"""

import math
from collections.abc import Callable, Iterator, Mapping

from torch import Tensor

from attribution.diffusion.loss import precise
from attribution.diffusion.noise import NoiseBank, spread

COLUMNS = 10  # of the query's noise bank, at most, that its loss is measured on
TRIALS = 10  # which leave the step size 1.4 % to be found in
OCTAVES = 20  # from the longest step to the shortest


def trial_bank(bank: NoiseBank) -> NoiseBank:
    """The few columns of the query's noise bank that a search measures its loss on, spread over the schedule."""
    return bank.select(spread(len(bank))[:COLUMNS])


def trial_predictions(columns: int, steps: int) -> int:
    """Predictions of the U-Net for the searches of so many steps, with a query's noise bank of so many columns."""
    return min(COLUMNS, columns) * (1 + TRIALS * steps)


def longest_step(weights: Mapping[str, Tensor], step: Mapping[str, Tensor]) -> float:
    """How many times a step moves the weights by as much as their own norm; 0 where the step is nothing."""
    length = _norm(step)
    return _norm(weights) / length if length else 0.0


def _norm(tensors: Mapping[str, Tensor]) -> float:
    return math.sqrt(sum(float(precise(tensor).square().sum()) for tensor in tensors.values()))


def step_sizes(longest: float, loss: Callable[[float], float], wanted: float) -> Iterator[float]:
    """Halve the octaves below the longest step size, TRIALS times; yields what comes closest to the wanted loss so far.

    However the loss goes up and down with the step, a higher one that is wanted never has a smaller step. Where no step
    reaches it, the longest is taken; a loss that is no number counts as too high.

    Args:
        longest: step size; the shortest is OCTAVES below it.
        loss: at a step size.
        wanted: loss.
    """
    low, high = -float(OCTAVES), 0.0
    for _ in range(TRIALS):
        middle = (low + high) / 2
        if loss(longest * 2**middle) < wanted:
            low = middle
        else:
            high = middle
        yield longest * 2**high


def step_to(
    weights: dict[str, Tensor], step: dict[str, Tensor], loss: Callable[[], float], wanted: float, longest: float
) -> Iterator[float]:
    """Move weights along a step until a loss is as high as wanted; yields the step size so far after each trial.

    Args:
        weights: the model's own; after the last trial they are where the loss is as wanted.
        step: of size 1.
        loss: under the weights.
        wanted: loss.
        longest: share of the weights' norm that they move by at most.
    """
    start = {name: weight.clone() for name, weight in weights.items()}

    def move(size: float) -> None:
        for name, weight in weights.items():
            weight.copy_(start[name] + size * step[name])

    def loss_at(size: float) -> float:
        move(size)
        return loss()

    for size in step_sizes(longest * longest_step(weights, step), loss_at, wanted):
        yield size
    move(size)
