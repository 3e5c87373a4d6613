"""Successive halving: score many on a little noise, the better part on more, the survivors on all of it.

Everyone takes part, or a pool of candidates. All who are compared were seen with the same noises: what a noise does to
every image is no difference between two. In the first round each image is looked at in one view, that in which it is
likely to score higher, where that is known. What the survivors end with is exactly the exhaustive score. The
exhaustive way is a race of one round.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from attribution.diffusion.noise import spread
from attribution.unlearning.foreseen import Foreseen
from attribution.unlearning.score import VIEWS, Floats, ScoreKind, Scores, Views, cells, columns_at_once, score

# (rows, columns, views) -> (which of rows, which of columns, losses after unlearning (chunk, views)), chunk by chunk
Measure = Callable[[Sequence[int], Sequence[int], Views], Iterator[tuple[slice, int, Floats]]]


@dataclass(frozen=True)
class RaceSettings:
    """Who takes part in a race, and its schedule.

    Attributes:
        pool: how many training images: the first ones by a method that reads stored gradients; 0 is all of them; None
            is a number that suits the index.
        keep: share of the images that goes on after each round; None is what suits the pool.
        first_columns: columns of the noise bank in the first round, in which mirrors do not take part.
        growth: by how much the number of columns grows each round; None likewise.
        survivors: no round but the first has fewer images than this; None likewise.
        columns: the order in which the bank's columns are taken, every one once; none is what suits the index, or an
            order whose every beginning is spread over the schedule.
    """

    pool: int | None = None
    keep: float | None = None
    first_columns: int = 1
    growth: float | None = None
    survivors: int | None = None
    columns: tuple[int, ...] = ()

    @property
    def pace(self) -> "Pace":
        """The schedule, with nothing left open."""
        plain = AMONG if self.pool else EVERYONE
        return Pace(self.keep or plain.keep, self.growth or plain.growth, self.survivors or plain.survivors)


class Pace(NamedTuple):
    """How fast a race drops images; see RaceSettings."""

    keep: float
    growth: float
    survivors: int


EVERYONE = Pace(0.125, 3.0, 64)
AMONG = Pace(0.5, 2.5, 64)  # with half of these, one more of the first ten is missed in some pictures


@dataclass(frozen=True)
class Round:
    """One round: how many images, on which columns of the bank, in which views; in one of two, the likelier one's."""

    images: int
    columns: tuple[int, ...]
    views: tuple[int, ...]


@dataclass(frozen=True)
class Standing:
    """Where a race stands.

    Attributes:
        rows: of the training set, best first: all that took part in the round that has ended, or the leaders of the
            one that is under way.
        scores: theirs, in the same order, on the noises of that round.
        evaluations: predictions made so far.
        total: predictions that the whole race takes.
        ended: a round has just ended.
        settled: the last round has ended; the scores are the exhaustive ones.
        losses: (n, 2, S) before and after unlearning, of the view that scored, once settled.
        known: (N, views, S) losses after unlearning, NaN where not measured: those of all images, once settled.
    """

    rows: tuple[int, ...]
    scores: Scores
    evaluations: int
    total: int
    ended: bool
    settled: bool
    losses: Floats | None = None
    known: Floats | None = None


def fewest(top_k: int) -> int:
    """How many images are left at least, of which so many are looked for."""
    return math.ceil(1.5 * top_k)


def schedule(
    images: int, columns: int, settings: RaceSettings, views: Sequence[int] = VIEWS, beside: int = 0
) -> list[Round]:
    """The rounds for N images and a bank of S columns; the last has every column and view.

    Args:
        images: N; their number sets how many go on.
        columns: S.
        settings: of the race.
        views: of each image.
        beside: more images that take part in the first round.
    """
    order, both, pace = settings.columns or tuple(spread(columns)), tuple(views), settings.pace
    rounds = [Round(images, order[: settings.first_columns], both[:1])]
    while rounds[-1].columns != order or rounds[-1].views != both:
        wide = min(columns, max(len(rounds[-1].columns) + 1, round(len(rounds[-1].columns) * pace.growth)))
        count = min(rounds[-1].images, max(pace.survivors, round(rounds[-1].images * pace.keep)))
        rounds.append(Round(count, order[:wide], both))
    return [replace(rounds[0], images=images + beside), *rounds[1:]]


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


def made(rounds: list[Round], batch: int) -> int:
    """Predictions that a schedule really makes, in calls of the U-Net that are filled up; see `losses_by_call`."""
    total = 0
    for before, this in zip([None, *rounds], rounds, strict=False):
        for views, columns in _missing(before, this):
            at_once = max(1, batch // len(views))
            chunks, rest = divmod(this.images, at_once)
            calls = chunks * len(columns)
            if rest:
                calls += math.ceil(len(columns) / columns_at_once(rest, at_once))
            total += calls * at_once * len(views)
    return total


def race(
    measure: Measure,
    base_losses: Floats,
    rounds: list[Round],
    order: Sequence[int],
    kind: ScoreKind = "difference",
    leaders: int = 10,
    likely: NDArray[np.integer] | None = None,
    foreseen: Foreseen | None = None,
) -> Iterator[Standing]:
    """Run a schedule; yields a standing after every call of the U-Net, and one at the end of each round.

    Args:
        measure: losses under the unlearned weights.
        base_losses: (N, views, S) losses under the pretrained weights.
        rounds: from `schedule` or `exhaustive`.
        order: the rows in the order in which the first round takes them: likely ones first.
        kind: of score.
        leaders: how many images a standing has while its round is under way.
        likely: (N,) the view of each image in which it is likely to score higher; None is the image, not its mirror.
        foreseen: the losses' changes; half of every score then.
    """
    after = np.full(base_losses.shape, np.nan, base_losses.dtype)
    rows, done, total = list(order), 0, evaluations(rounds)

    def seen(of: Sequence[int], views: tuple[int, ...]) -> Views:
        """The views of a round, of each of some images the likelier one or the other where it is one of two."""
        if likely is None or len(views) == base_losses.shape[1]:
            return views
        own: NDArray[np.integer] = np.asarray(views) ^ likely[np.asarray(of, np.intp), None]
        return own

    def standing(of: list[int], this: Round, ended: bool) -> Standing:
        views = seen(of, this.views)
        at = cells(of, views, sorted(this.columns))
        expected = None if foreseen is None else foreseen.changes(of, views, base_losses, after, kind)
        scores = score(base_losses[at], after[at], kind, expected)
        best, settled = scores.best_first(of), ended and this is rounds[-1]
        losses = np.stack([base_losses[at], after[at]], 2)[best, scores.flip[best].astype(int)] if settled else None
        if isinstance(views, np.ndarray):
            scores = replace(scores, flip=views[:, 0] == 1)
        first, known = tuple(int(of[i]) for i in best), after if settled else None
        return Standing(first, scores.take(best), done, total, ended, settled, losses, known)

    latest: Standing | None = None
    for number, this in enumerate(rounds):
        rows, leading = rows[: this.images], list[int]()
        parts = list(_missing(rounds[number - 1] if number else None, this))
        for views, columns in parts:
            for which, column, losses in measure(rows, columns, seen(rows, views)):
                after[cells(rows[which], seen(rows[which], views), [columns[column]])] = losses[..., None]
                done += losses.size
                whole = (views, columns) == parts[-1] and column == len(columns) - 1
                if whole:  # these images have all of this round's noises now
                    best = standing([*leading, *rows[which]], this, False)
                    leading = list(best.rows[:leaders])
                    if latest is None or len(leading) == leaders:
                        first = best.scores.take(np.arange(len(leading)))
                        latest = replace(best, rows=best.rows[:leaders], scores=first)
                if latest is not None:
                    yield replace(latest, evaluations=done, ended=False)
        latest = standing(rows, this, True)
        yield latest
        rows = list(latest.rows)


def _missing(before: Round | None, this: Round) -> Iterator[tuple[tuple[int, ...], tuple[int, ...]]]:
    """What a round adds to the one before it, as rectangles of views x columns."""
    known_columns, known_views = (before.columns, before.views) if before else ((), ())
    new_views = tuple(view for view in this.views if view not in known_views)
    new_columns = tuple(column for column in this.columns if column not in known_columns)
    if new_views and known_columns:
        yield new_views, known_columns
    if new_columns:
        yield this.views, new_columns
