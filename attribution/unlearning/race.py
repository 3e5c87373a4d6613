"""Successive halving: score everyone on a little noise, the better part on more, the survivors on all of it.

What the survivors end with is exactly the exhaustive score. The exhaustive way is a race of one round.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np

from attribution.diffusion.noise import spread
from attribution.unlearning.score import VIEWS, Floats, ScoreKind, Scores, score

# (rows, columns, views) -> (which of rows, which of columns, losses after unlearning (chunk, views)), chunk by chunk
Measure = Callable[[Sequence[int], Sequence[int], Sequence[int]], Iterator[tuple[slice, int, Floats]]]


@dataclass(frozen=True)
class RaceSettings:
    """How a training set is searched: the best of some candidates (`best.py`), or all images by halving.

    Attributes:
        pool: how many candidates there are; 0 is halving; None is a number that suits the index.
        budget: losses that may be measured after unlearning; None is a number that suits the pool.
        confidence: of the intervals that settle which candidates are the best.
        keep: of halving: share of the images that goes on after each round.
        first_columns: of halving: columns of the noise bank in the first round, in which mirrors do not take part.
        growth: of halving: by how much the number of columns grows each round.
        survivors: of halving: no round but the first has fewer images than this.
    """

    pool: int | None = None
    budget: int | None = None
    confidence: float = 0.95
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
        rows: of the training set, best first: all that took part in the round that has ended, or the leaders of the
            one that is under way.
        scores: theirs, in the same order, on the noises of that round.
        evaluations: predictions made so far.
        total: predictions that the whole race takes.
        ended: a round has just ended.
        settled: the last round has ended; the scores are the exhaustive ones.
        losses: (n, 2, S) before and after unlearning, of the view that scored, once settled.
    """

    rows: tuple[int, ...]
    scores: Scores
    evaluations: int
    total: int
    ended: bool
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
    measure: Measure,
    base_losses: Floats,
    rounds: list[Round],
    order: Sequence[int],
    kind: ScoreKind = "difference",
    leaders: int = 10,
) -> Iterator[Standing]:
    """Run a schedule; yields a standing after every call of the U-Net, and one at the end of each round.

    Args:
        measure: losses under the unlearned weights.
        base_losses: (N, views, S) losses under the pretrained weights.
        rounds: from `schedule` or `exhaustive`.
        order: the rows in the order in which the first round takes them: likely ones first.
        kind: of score.
        leaders: how many images a standing has while its round is under way.
    """
    after = np.full(base_losses.shape, np.nan, base_losses.dtype)
    rows, done, total = list(order), 0, evaluations(rounds)

    def standing(of: list[int], this: Round, ended: bool) -> Standing:
        at = np.ix_(of, this.views, sorted(this.columns))
        scores = score(base_losses[at], after[at], kind)
        best = scores.best_first(of)
        settled = ended and this is rounds[-1]
        losses = np.stack([base_losses[at], after[at]], 2)[best, scores.flip[best].astype(int)] if settled else None
        return Standing(tuple(int(of[i]) for i in best), scores.take(best), done, total, ended, settled, losses)

    latest: Standing | None = None
    for number, this in enumerate(rounds):
        rows, leading = rows[: this.images], list[int]()
        parts = list(_missing(rounds[number - 1] if number else None, this))
        for views, columns in parts:
            for which, column, losses in measure(rows, columns, views):
                after[np.ix_(rows[which], views, [columns[column]])] = losses[..., None]
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
