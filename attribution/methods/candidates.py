"""Candidates for a race, by methods that only read what the index holds; and what is known of those left out."""

from collections.abc import Generator, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from threading import Event

import numpy as np
from numpy.typing import NDArray

from attribution.diffusion.pipeline import Model
from attribution.errors import InputError
from attribution.index.index import Index
from attribution.methods.answer import AttributeSettings, Clock, Progress, Result, to_results
from attribution.methods.influence import SIGNED, signed_scores
from attribution.methods.searched import Searched
from attribution.methods.trak import trak_predictions, trak_scores
from attribution.query.encoded import Encoded
from attribution.unlearning.race import Standing
from attribution.unlearning.score import Floats, Scores

D_TRAK = "d-trak"
# Give candidates, of each training image one inner product with the query's vector. Of the ten images that unlearning
# ranks first among 4,096, the first 256 of both, taken in turns, hold more than the first 512 of either.
SOURCES = (SIGNED, D_TRAK)
SEED = 64  # of their order
SAMPLED = 64  # training images by chance that are looked at beside the pool


def holds(index: Index, source: str) -> bool:
    """Whether an index holds what a method of SOURCES reads."""
    return f"gradients/{source}" in index.artifacts and index.gradients(source).weights == index.weights


def sources(index: Index) -> list[str]:
    """The methods of SOURCES that an index can answer by; the first one gives the first estimate, too."""
    return [source for source in SOURCES if holds(index, source)]


def require_source(index: Index) -> None:
    """Refuse to go on without any of SOURCES.

    Raises:
        InputError: the index holds none; says how to add one.
    """
    if not sources(index):
        index.require(f"gradients/{D_TRAK}")
        raise InputError(f"the gradients {D_TRAK!r} are of other weights than the index; add those of {index.weights}")


@dataclass(frozen=True)
class Chosen:
    """Who was chosen.

    Attributes:
        rows: the candidates, likely ones first.
        first: a first estimate of the results: those of the first source alone, with its scores.
        foreseen: (N, views) scores of all, in each view; None where no source tells these apart.
    """

    rows: list[int]
    first: tuple[Result, ...]
    foreseen: Floats | None

    @property
    def likely(self) -> NDArray[np.integer] | None:
        """(N,) the view of each in which it is likely to score higher, where that is known."""
        return None if self.foreseen is None else self.foreseen.argmax(1)


def choose(
    model: Model,
    index: Index,
    asked: Encoded,
    settings: AttributeSettings,
    count: int,
    stop: Event,
    clock: Clock,
    total: int,
) -> Generator[Progress, None, Chosen]:
    """The first images of every source, taken in turns: yields Progress, of all `total` predictions.

    The first estimate is there as soon as the first source has ranked the images.

    Args:
        model: the index's.
        index: that holds one source at least.
        asked: the query.
        settings: of the answer.
        count: of candidates.
        stop: set it to stop.
        clock: since the beginning.
        total: predictions that will be made.
    """
    settings = replace(settings, noise_seed=None)  # at other noises than theirs, stored gradients tell far less
    given, made, foreseen, first = list[Floats](), 0, None, tuple[Result, ...]()
    for source in sources(index):
        if source == SIGNED:
            steps = signed_scores(model, index, asked, settings, stop, clock, total)
        else:
            steps = trak_scores(source, False, model, index, asked, settings, stop, clock, total)
        scores = yield from _after(made, first, steps)
        foreseen = scores if source == SIGNED else foreseen
        given.append(scores.max(1) if source == SIGNED else scores)
        made += trak_predictions(index, source, False)
        if not first:
            first = estimated(index, given[0], settings.k)
            yield _with(first, Progress("gradient", made, total, clock.total()))
    rankings = [best_rows(scores, count) for scores in given]
    return Chosen(in_turns(rankings, count), first, foreseen)


def estimated(index: Index, scores: Floats, count: int) -> tuple[Result, ...]:
    """A first estimate of the results: the first images by scores (N,) that are not the method's."""
    rows = best_rows(scores, count)
    return to_results(Standing(tuple(rows), Scores.exact(scores[rows, None]), 0, 0, False, False), index, count)


def _with(first: tuple[Result, ...], step: Progress) -> Progress:
    """Progress with a first estimate, where there is one."""
    return replace(step, results=first, estimated=bool(first), estimate=tuple(result.row for result in first))


def _after(
    made: int, first: tuple[Result, ...], steps: Generator[Progress, None, Floats]
) -> Generator[Progress, None, Floats]:
    """Progress of what follows other predictions, and a first estimate."""
    while True:
        try:
            step = next(steps)
        except StopIteration as end:
            scores: Floats = end.value
            return scores
        yield _with(first, replace(step, evaluations=made + step.evaluations))


def chosen_predictions(index: Index) -> int:
    """Predictions of the U-Net that choosing takes."""
    return sum(trak_predictions(index, source, False) for source in sources(index))


def in_turns(rankings: Sequence[Sequence[int]], count: int) -> list[int]:
    """The first `count` different rows of some rankings, one of each after another."""
    rows: dict[int, None] = {}
    for places in zip(*rankings, strict=True):
        rows |= dict.fromkeys(places)
        if len(rows) >= count:
            break
    return list(rows)[:count]


def pool_of(settings: AttributeSettings) -> int:
    """How many candidates an answer chooses; 0 where everyone is one."""
    return 0 if settings.exhaustive else settings.race.pool or 0


def best_rows(scores: Floats, count: int) -> list[int]:
    """Rows of the highest scores, best first; only those are sorted."""
    return [int(row) for row in Scores.exact(scores[:, None]).first(count)]


def by_chance(images: int) -> list[int]:
    """Training images by chance, the same ones for every query: SAMPLED, or as many as there are."""
    return beside(images, [])


def beside(images: int, pool: Sequence[int]) -> list[int]:
    """Training images by chance from outside a pool: SAMPLED, or as many as there are, first those of `by_chance`."""
    inside, shuffled = set(pool), np.random.default_rng(SEED).permutation(images)
    return list(islice((int(row) for row in shuffled if row not in inside), SAMPLED))


def searched(
    index: Index, settings: AttributeSettings, sampled: Sequence[int], rows: Sequence[int], estimate: Sequence[int]
) -> Searched:
    """What an answer says of how it was found.

    Args:
        index: of the training set.
        settings: of the answer.
        sampled: training images by chance outside of the pool, that took part.
        rows: of the training set, best first.
        estimate: the rows that were shown first.
    """
    images, top_k = len(index), settings.k
    if settings.exhaustive:
        return Searched("exhaustive", images, top_k)
    if not settings.race.pool:
        return Searched("halving", images, top_k, lacking=not sources(index))
    entered = len(set(sampled) & set(rows[:top_k]))
    counts = (settings.race.pool, len(sampled), entered)
    source = " and ".join(sources(index))
    return Searched("candidates", images, top_k, source, *counts, estimate=tuple(estimate))
