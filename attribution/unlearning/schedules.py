"""How a search should go, found by trying schedules on losses that were measured whole.

For some pictures the change of many candidates' losses is known on all noises. A race can then be run on what is known,
without the model, and its first images compared with the first on all noises.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import product

import numpy as np

from attribution.unlearning.foreseen import Foreseen
from attribution.unlearning.race import Measure, RaceSettings, evaluations, fewest, made, race, schedule
from attribution.unlearning.score import VIEWS, Floats, ScoreKind, Scores, Views, cells, score

POOLS = (64, 96, 112, 128, 192, 256, 384, 512, 768, 1024)
KEEPS = (0.125, 0.25, 0.375, 0.5)
GROWTHS = (2.0, 2.5, 3.34)  # to all of ten columns in five rounds, in four and in three
SURVIVORS = (15, 16, 20, 24, 32, 48, 64)


@dataclass(frozen=True)
class Known:
    """What is known of a picture's candidates.

    Attributes:
        changes: (C, views, S) of their losses, likely candidates first; the view in which a candidate is likely to
            score higher comes first, where that is known.
        kind: of score.
        values: (C, views) first-order scores, where the method foresees.
    """

    changes: Floats
    kind: ScoreKind = "difference"
    values: Floats | None = None

    @property
    def views(self) -> tuple[int, ...]:
        """Of each candidate."""
        return VIEWS[: self.changes.shape[1]]

    @property
    def columns(self) -> int:
        """S."""
        return int(self.changes.shape[-1])

    def foreseen(self, column: int) -> Foreseen | None:
        """What is foreseen, in the unit of a column."""
        return None if self.values is None else Foreseen(self.values, column)

    def scores(self, columns: Sequence[int], views: Views) -> Scores:
        """All candidates' scores on some columns in some views; the first column gives the unit."""
        rows, nothing, foreseen = range(len(self.changes)), np.zeros_like(self.changes), self.foreseen(columns[0])
        at = cells(rows, views, columns)
        expected = None if foreseen is None else foreseen.changes(rows, views, nothing, self.changes, self.kind)
        return score(nothing[at], self.changes[at], self.kind, expected)

    def first(self, count: int, column: int = 0) -> list[int]:
        """The candidates of the highest scores on all noises; a column gives the unit."""
        columns = [column, *(each for each in range(self.columns) if each != column)]
        return [int(row) for row in self.scores(columns, self.views).first(count)]


@dataclass(frozen=True)
class Tried:
    """What a schedule found of the first images of some pictures.

    Attributes:
        race: the schedule, with its columns' order.
        evaluations: predictions that its race takes.
        made: that are made for it, with images beside the pool, in calls of the U-Net that are filled up.
        shares: of each picture, the share of the first images that it found.
    """

    race: RaceSettings
    evaluations: int
    made: int
    shares: tuple[float, ...]

    @property
    def mean(self) -> float:
        """Share of the first images that was found, over the pictures."""
        return float(np.mean(self.shares))

    @property
    def worst(self) -> float:
        """The same of the picture that was searched worst."""
        return min(self.shares)


def telling_order(pictures: Sequence[Known], top_k: int) -> tuple[int, ...]:
    """The order of a bank's columns in which their beginnings tell the most about the first images.

    Each next column is the one with which those images come nearest to the front, by their places' mean logarithm.
    As in a race, mirrors are not looked at on the first column.

    Args:
        pictures: of each, what is known of its candidates.
        top_k: how many images are the first.
    """
    order: list[int] = []

    def place(column: int) -> float:
        columns, places = [*order, column], []
        for known in pictures:
            seen = known.scores(columns, known.views if order else known.views[:1])
            rank = np.argsort(np.argsort(-seen.value, kind="stable"))
            places.append(np.log(rank[known.first(top_k, columns[0])] + top_k).mean())
        return float(np.mean(places))

    columns = range(pictures[0].columns)
    while len(order) < len(columns):
        order.append(min((column for column in columns if column not in order), key=place))
    return tuple(order)


def found(known: Known, settings: RaceSettings, top_k: int) -> float:
    """The share of the first `top_k` candidates that a race finds among its pool."""
    pool = settings.pool or len(known.changes)
    rounds = schedule(pool, known.columns, settings, known.views)
    column = rounds[0].columns[0]
    measure, before, foreseen = _measure(known.changes), np.zeros_like(known.changes), known.foreseen(column)
    *_, last = race(measure, before, rounds, range(pool), known.kind, top_k, foreseen=foreseen)
    return len(set(last.rows[:top_k]) & set(known.first(top_k, column))) / top_k


def _measure(changes: Floats) -> Measure:
    """Losses that are known, where those before unlearning are taken as nothing."""

    def measure(rows: Sequence[int], columns: Sequence[int], views: Views) -> Iterator[tuple[slice, int, Floats]]:
        for number, column in enumerate(columns):
            yield slice(0, len(rows)), number, changes[cells(rows, views, [column])][..., 0]

    return measure


def schedules(candidates: int, top_k: int) -> list[RaceSettings]:
    """Schedules that are worth trying among so many candidates, without an order of columns."""
    pools = [pool for pool in POOLS if top_k <= pool <= candidates] or [candidates]
    return [
        RaceSettings(pool, keep, 1, growth, max(survivors, fewest(top_k)))
        for pool, keep, growth, survivors in product(pools, KEEPS, GROWTHS, SURVIVORS)
    ]


def try_schedules(pictures: Sequence[Known], top_k: int, beside: int, batch: int) -> Iterator[Tried]:
    """Every schedule, tried on every picture; the columns' order is then that of the other pictures.

    Args:
        pictures: of each, what is known of its candidates; two at least.
        top_k: how many images are looked for.
        beside: the pool, images that are looked at once.
        batch: predictions in one call of the U-Net.
    """
    count, columns, views = len(pictures[0].changes), pictures[0].columns, pictures[0].views
    others = [[*pictures[:number], *pictures[number + 1 :]] for number in range(len(pictures))]
    orders, order = [telling_order(each, top_k) for each in others], telling_order(pictures, top_k)
    for settings in schedules(count, top_k):
        shares = tuple(
            found(known, replace(settings, columns=left), top_k) for known, left in zip(pictures, orders, strict=True)
        )
        pool = settings.pool or count
        taken = evaluations(schedule(pool, columns, settings, views))
        calls = made(schedule(pool, columns, settings, views, beside), batch)
        yield Tried(replace(settings, columns=order), taken, calls, shares)


def cheapest(tried: Sequence[Tried], mean: float, worst: float) -> Tried:
    """The one of those that find shares as high as wanted for which the fewest predictions are made.

    Where none finds them, it is the one of the best mean.

    Args:
        tried: schedules.
        mean: wanted over the pictures.
        worst: wanted of each picture.
    """
    good = [each for each in tried if each.mean >= mean and each.worst >= worst]
    if good:
        return min(good, key=lambda each: (each.made, -each.mean, -each.evaluations))
    return max(tried, key=lambda each: (each.mean, -each.made))
