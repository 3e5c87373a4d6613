"""The plot of a training image's losses: where its marks are, in the units of the template that draws it."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby

LEFT, WIDTH = 58, 262  # of the timesteps' axis
ZERO, HEIGHT = 81, 60  # of the losses' axis: none, and the largest above it
BAR = 28  # the largest change's


@dataclass(frozen=True)
class Mark:
    """One timestep: its losses, at heights y0 and y1 on the line of x, and the height of its change's bar."""

    t: int
    before: float
    after: float
    x: float
    y0: float
    y1: float
    bar: float


@dataclass(frozen=True)
class LossPlot:
    """Marks by timestep, the largest loss and the largest change, which the two axes end at."""

    marks: list[Mark]
    most: float
    largest: float


def loss_marks(losses: Sequence[tuple[float, float]], timesteps: Sequence[int]) -> LossPlot:
    """A training image's loss at each timestep before and after unlearning, and its change.

    The changes are small beside the losses, so that they have an axis of their own. The score is the mean change.

    Args:
        losses: (before, after) for each column of the noise bank; a timestep's noises are averaged.
        timesteps: of the columns.
    """
    points = []
    for t, columns in groupby(sorted(zip(timesteps, losses, strict=True)), key=lambda each: each[0]):
        before, after = zip(*(pair for _, pair in columns), strict=True)
        points.append((t, sum(before) / len(before), sum(after) / len(after)))
    most = max(max(point[1:]) for point in points) or 1.0
    largest = max(abs(after - before) for _, before, after in points) or 1.0
    step = WIDTH / max(1, len(points) - 1)
    marks = [
        Mark(
            t,
            before,
            after,
            LEFT + number * step,
            ZERO - HEIGHT * before / most,
            ZERO - HEIGHT * after / most,
            BAR * (after - before) / largest,
        )
        for number, (t, before, after) in enumerate(points)
    ]
    return LossPlot(marks, most, largest)
