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
TRIALS = 5
OCTAVES = 20  # from the longest step to the shortest
SLOPE = 1.25  # octaves by which a loss rises more with an octave of the step, of many queries
STEEPEST = 5.0  # that a line is, and one over this the least


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


def step_sizes(
    longest: float, loss: Callable[[float], float], before: float, wanted: float, likely: float
) -> Iterator[float]:
    """Look for the step size of a loss, TRIALS times; yields the one that comes closest to the wanted loss so far.

    Every trial is where a line through the two before says that the loss is as wanted, over the logarithms of step size
    and rise; and in the middle of what is left where that is nowhere new, or a loss did not rise at all or is no
    number, which counts as too high. Where no trial rises, the longest step is taken.

    Args:
        longest: step size; the shortest is OCTAVES below it.
        loss: at a step size.
        before: loss without a step.
        wanted: loss, above that.
        likely: step size, where the search begins.
    """
    low, high, slope, tried = -float(OCTAVES), 0.0, SLOPE, dict[float, float]()
    at = min(high, max(low, math.log2(likely / longest))) if likely > 0 and longest > 0 else high
    for _ in range(TRIALS):
        error = _octaves(loss(longest * 2**at) - before, wanted - before)
        slope = _slope(slope, tried, at, error)
        tried[at] = error
        low, high = (max(low, at), high) if error < 0 else (low, min(high, at))
        yield longest * 2 ** _closest(tried)
        at = min(high, max(low, at - error / slope)) if math.isfinite(error) else at
        if at in tried:
            at = (low + high) / 2


def _octaves(rise: float, wanted: float) -> float:
    """By how many octaves a rise of a loss is above the wanted one."""
    if math.isnan(rise) or rise == math.inf:
        return math.inf
    return math.log2(rise / wanted) if rise > 0 else -math.inf


def _slope(slope: float, tried: dict[float, float], at: float, error: float) -> float:
    """The slope of a line through a trial and the one before; as it was where there is no such line."""
    if not tried or at in tried:
        return slope
    last, found = next(reversed(tried.items()))
    risen = error - found
    return min(STEEPEST, max(1 / STEEPEST, risen / (at - last))) if math.isfinite(risen) else slope


def _closest(tried: dict[float, float]) -> float:
    """The trial that came closest; where none rose, no step at all is too long, and else the longest that was not."""
    finite = {at: abs(error) for at, error in tried.items() if math.isfinite(error)}
    if finite:
        return min(finite, key=finite.__getitem__)
    short = [at for at, error in tried.items() if error < 0]
    return 0.0 if len(short) == len(tried) else max(short, default=-float(OCTAVES))


def step_to(
    weights: dict[str, Tensor],
    step: dict[str, Tensor],
    loss: Callable[[], float],
    before: float,
    wanted: float,
    longest: float,
    slope: float,
) -> Iterator[float]:
    """Move weights along a step until a loss is as high as wanted; yields the step size so far after each trial.

    Args:
        weights: the model's own; after the last trial they are where the loss is as wanted.
        step: of size 1.
        loss: under the weights.
        before: loss under the weights as they are.
        wanted: loss, above that.
        longest: share of the weights' norm that they move by at most.
        slope: of the loss along the step, at first order.
    """
    start = {name: weight.clone() for name, weight in weights.items()}

    def move(size: float) -> None:
        for name, weight in weights.items():
            weight.copy_(start[name] + size * step[name])

    def loss_at(size: float) -> float:
        move(size)
        return loss()

    likely = (wanted - before) / slope if slope > 0 else math.inf
    for size in step_sizes(longest * longest_step(weights, step), loss_at, before, wanted, likely):
        yield size
    move(size)
