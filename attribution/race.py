"""Successive halving: score everyone on a little noise, the better part on more, the survivors on all of it.

What the survivors end with is exactly the exhaustive score. The exhaustive way is a race of one round.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from attribution.noise import spread
from attribution.score import VIEWS, Floats, ScoreKind, Scores, score

# (rows, columns, views) -> chunks of (which of rows, losses after unlearning (chunk, views, columns))
Measure = Callable[[Sequence[int], Sequence[int], Sequence[int]], Iterator[tuple[slice, Floats]]]


@dataclass(frozen=True)
class RaceSettings:
    """The schedule of a race.

    Attributes:
        keep: share of the images that goes on after each round.
        first_columns: columns of the noise bank in the first round, in which mirrors do not take part.
        growth: by how much the number of columns grows each round.
        survivors: no round but the first has fewer images than this.
    """

    keep: float = 0.125
    first_columns: int = 1
    growth: float = 3.0
    survivors: int = 64


@dataclass(frozen=True)
class Round:
    """One round: how many images, on which columns of the bank, in which views."""

    images: int
    columns: tuple[int, ...]
    views: tuple[int, ...]


@dataclass(frozen=True)
class Standing:
    """Where a race stands.

    Attributes:
        rows: of the training set, best first, among the images of the latest round.
        scores: theirs, in the same order, from what has been measured of each.
        evaluations: predictions made so far.
        total: predictions that the whole race takes.
        settled: the last round is over; the scores are the exhaustive ones.
        losses: (n, 2, S) before and after unlearning, of the view that scored, once settled.
    """

    rows: tuple[int, ...]
    scores: Scores
    evaluations: int
    total: int
    settled: bool
    losses: Floats | None = None


def schedule(images: int, columns: int, settings: RaceSettings, views: Sequence[int] = VIEWS) -> list[Round]:
    """The rounds for N images and a bank of S columns; the last has every column and view."""
    order, both = spread(columns), tuple(views)
    rounds = [Round(images, tuple(order[: settings.first_columns]), both[:1])]
    while rounds[-1].columns != tuple(order) or rounds[-1].views != both:
        width = min(columns, max(len(rounds[-1].columns) + 1, round(len(rounds[-1].columns) * settings.growth)))
        count = min(rounds[-1].images, max(settings.survivors, round(rounds[-1].images * settings.keep)))
        rounds.append(Round(count, tuple(order[:width]), both))
    return rounds


def exhaustive(images: int, columns: int, views: Sequence[int] = VIEWS) -> list[Round]:
    """One round with everything."""
    return [Round(images, tuple(range(columns)), tuple(views))]


def evaluations(rounds: list[Round]) -> int:
    """Predictions that a schedule takes; what an earlier round measured is not measured again."""
    total, before = 0, Round(0, (), ())
    for this in rounds:
        known = len(before.columns) * len(before.views)
        total += this.images * (len(this.columns) * len(this.views) - known)
        before = this
    return total


def race(
    measure: Measure, base_losses: Floats, rounds: list[Round], order: Sequence[int], kind: ScoreKind = "difference"
) -> Iterator[Standing]:
    """Run a schedule; yields a standing after every chunk.

    Args:
        measure: losses under the unlearned weights.
        base_losses: (N, views, S) losses under the pretrained weights.
        rounds: from `schedule` or `exhaustive`.
        order: the rows in the order in which the first round takes them: likely ones first.
        kind: of score.
    """
    after = np.full(base_losses.shape, np.nan, base_losses.dtype)
    rows, done, total = list(order), 0, evaluations(rounds)
    for number, this in enumerate(rounds):
        rows = rows[: this.images]
        for views, columns in _missing(rounds[number - 1] if number else None, this):
            for which, losses in measure(rows, columns, views):
                after[np.ix_(rows[which], views, columns)] = losses
                done += losses.size
                if number == 0:
                    yield _standing(base_losses, after, rows[: which.stop], this, kind, (done, total, False))
        last = number == len(rounds) - 1
        standing = _standing(base_losses, after, rows, this, kind, (done, total, last))
        yield standing
        rows = list(standing.rows)


def _missing(before: Round | None, this: Round) -> Iterator[tuple[tuple[int, ...], tuple[int, ...]]]:
    """What a round adds to the one before it, as rectangles of views x columns."""
    known_columns, known_views = (before.columns, before.views) if before else ((), ())
    new_views = tuple(view for view in this.views if view not in known_views)
    new_columns = tuple(column for column in this.columns if column not in known_columns)
    if new_views and known_columns:
        yield new_views, known_columns
    if new_columns:
        yield this.views, new_columns


def _standing(
    base: Floats, after: Floats, rows: list[int], this: Round, kind: ScoreKind, counts: tuple[int, int, bool]
) -> Standing:
    at = np.ix_(rows, this.views, sorted(this.columns))
    scores = score(base[at], after[at], kind)
    best = scores.best_first(rows)
    losses = np.stack([base[at], after[at]], 2)[best, scores.flip[best].astype(int)] if counts[2] else None
    return Standing(tuple(int(rows[i]) for i in best), scores.take(best), *counts, losses)
