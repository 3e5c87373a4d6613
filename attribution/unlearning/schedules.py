"""How a search should go, found by trying schedules on losses that were measured whole.

For some pictures the change of many candidates' losses is known on all noises. A race can then be run on what is known,
without the model, and its first images compared with the first on all noises. Of the views of a candidate, the one in
which it is likely to score higher comes first throughout, where that is known.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import product

import numpy as np

from attribution.unlearning.race import Measure, RaceSettings, evaluations, race, schedule
from attribution.unlearning.score import VIEWS, Floats, Views, cells

POOLS = (192, 256, 384, 512, 768, 1024)
KEEPS = (0.125, 0.25, 0.375, 0.5)
GROWTHS = (2.0, 2.5, 3.34)  # to all of ten columns in five rounds, in four and in three
SURVIVORS = (24, 32, 48, 64)


@dataclass(frozen=True)
class Tried:
    """What a schedule found of the first images of some pictures.

    Attributes:
        race: the schedule, with its columns' order.
        evaluations: predictions that its race takes.
        shares: of each picture, the share of the first images that it found.
    """

    race: RaceSettings
    evaluations: int
    shares: tuple[float, ...]

    @property
    def mean(self) -> float:
        """Share of the first images that was found, over the pictures."""
        return float(np.mean(self.shares))

    @property
    def worst(self) -> float:
        """The same of the picture that was searched worst."""
        return min(self.shares)


def first_rows(changes: Floats, count: int) -> list[int]:
    """The candidates of the highest scores on all noises: (C, views, S) changes of losses to `count` rows."""
    return [int(row) for row in np.argsort(-changes.mean(-1).max(1), kind="stable")[:count]]


def telling_order(pictures: Sequence[Floats], top_k: int) -> tuple[int, ...]:
    """The order of a bank's columns in which their beginnings tell the most about the first images.

    Each next column is the one with which those images come nearest to the front, by their places' mean logarithm.
    As in a race, mirrors are not looked at on the first column.

    Args:
        pictures: of each (C, views, S), the changes of its candidates' losses on all noises.
        top_k: how many images are the first.
    """
    order: list[int] = []
    wanted = [first_rows(changes, top_k) for changes in pictures]

    def place(column: int) -> float:
        columns = [*order, column]
        means = [changes[:, : None if order else 1, columns].mean(-1).max(1) for changes in pictures]
        ranks = (np.argsort(np.argsort(-mean, kind="stable")) for mean in means)
        return float(np.mean([np.log(rank[rows] + top_k).mean() for rank, rows in zip(ranks, wanted, strict=True)]))

    columns = range(pictures[0].shape[-1])
    while len(order) < len(columns):
        order.append(min((column for column in columns if column not in order), key=place))
    return tuple(order)


def found(changes: Floats, settings: RaceSettings, top_k: int) -> float:
    """The share of the first `top_k` candidates, (C, views, S) best likely first, that a race finds among its pool."""
    images, views, columns = changes.shape
    pool = settings.pool or images
    rounds = schedule(pool, columns, settings, VIEWS[:views])
    *_, last = race(_known(changes), np.zeros_like(changes), rounds, range(pool), leaders=top_k)
    return len(set(last.rows[:top_k]) & set(first_rows(changes, top_k))) / top_k


def _known(changes: Floats) -> Measure:
    """Losses that are known, where those before unlearning are taken as nothing."""

    def measure(rows: Sequence[int], columns: Sequence[int], views: Views) -> Iterator[tuple[slice, int, Floats]]:
        for number, column in enumerate(columns):
            yield slice(0, len(rows)), number, changes[cells(rows, views, [column])][..., 0]

    return measure


def schedules(candidates: int, top_k: int) -> list[RaceSettings]:
    """Schedules that are worth trying among so many candidates, without an order of columns."""
    pools = [pool for pool in POOLS if top_k <= pool <= candidates] or [candidates]
    return [
        RaceSettings(pool, keep, 1, growth, max(survivors, 2 * top_k))
        for pool, keep, growth, survivors in product(pools, KEEPS, GROWTHS, SURVIVORS)
    ]


def try_schedules(pictures: Sequence[Floats], top_k: int) -> Iterator[Tried]:
    """Every schedule, tried on every picture; the columns' order is then that of the other pictures.

    Args:
        pictures: of each (C, views, S), the changes of its candidates' losses, likely ones first; two at least.
        top_k: how many images are looked for.
    """
    count, columns = len(pictures[0]), pictures[0].shape[-1]
    views = VIEWS[: pictures[0].shape[1]]
    others = [[*pictures[:number], *pictures[number + 1 :]] for number in range(len(pictures))]
    orders, order = [telling_order(each, top_k) for each in others], telling_order(pictures, top_k)
    for settings in schedules(count, top_k):
        shares = tuple(
            found(changes, replace(settings, columns=left), top_k)
            for changes, left in zip(pictures, orders, strict=True)
        )
        taken = evaluations(schedule(settings.pool or count, columns, settings, views))
        yield Tried(replace(settings, columns=order), taken, shares)


def cheapest(tried: Sequence[Tried], mean: float, worst: float) -> Tried:
    """The schedule of the fewest predictions that finds shares as high as wanted; where none does, the best mean.

    Args:
        tried: schedules.
        mean: wanted over the pictures.
        worst: wanted of each picture.
    """
    good = [each for each in tried if each.mean >= mean and each.worst >= worst]
    if good:
        return min(good, key=lambda each: (each.evaluations, -each.mean))
    return max(tried, key=lambda each: (each.mean, -each.evaluations))
