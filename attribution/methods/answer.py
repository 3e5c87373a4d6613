"""What an answer is: its settings, its progress, and the attribution at the end."""

import math
import time
from collections.abc import Generator, Sequence
from dataclasses import dataclass, field, replace
from threading import Event

import numpy as np
from numpy.typing import NDArray

from attribution.diffusion.noise import drawn_anew
from attribution.diffusion.pipeline import Model
from attribution.errors import Stopped, WorkFailed
from attribution.index.index import Index
from attribution.index.lists import DEPTHS
from attribution.methods.searched import Searched
from attribution.query.evidence import Evidence
from attribution.query.query import Query
from attribution.unlearning.race import RaceSettings, Standing
from attribution.unlearning.score import Floats, ScoreKind, Scores
from attribution.unlearning.step import UnlearnSettings

TOP_K = 10
ENSEMBLE = "ensemble"  # the method whose scores are half foreseen, half measured
MOST_SCORES = 200  # that an answer keeps, of its ranking's first
MOST_RANKS = 5000  # of a method's ranking, that an answer keeps: what is further down tells nobody anything


@dataclass(frozen=True)
class AttributeSettings:
    """How a query is answered.

    Attributes:
        method: a key of METHODS.
        top_k: how many results; None is TOP_K, or all where there are fewer.
        exhaustive: score every image, on all noises where it unlearns, instead of searching.
        score: kind of score.
        unlearn: the Newton step.
        race: how the best images are searched.
        batch: predictions in one call of the U-Net.
        seed: of the method "random".
        noise_seed: draws anew the noises that the query's gradient and the training images' losses are measured with;
            None leaves the ones that `unlearn` and the index name.
    """

    method: str = "unlearning"
    top_k: int | None = None
    exhaustive: bool = False
    score: ScoreKind = "difference"
    unlearn: UnlearnSettings = field(default_factory=UnlearnSettings)
    race: RaceSettings = field(default_factory=RaceSettings)
    batch: int = 64
    seed: int = 0
    noise_seed: int | None = None

    @property
    def newton(self) -> UnlearnSettings:
        """The Newton step, with the noises that it is taken with."""
        return replace(self.unlearn, seed=drawn_anew(self.unlearn.seed, self.noise_seed))

    @property
    def foresees(self) -> bool:
        """Whether scores are means of changes of losses that are measured and that are foreseen."""
        return self.method == ENSEMBLE

    @property
    def kind(self) -> ScoreKind:
        """Of score: the trimmed mean is part of a method that foresees."""
        return "trimmed" if self.foresees else self.score

    @property
    def k(self) -> int:
        """How many results, once the settings are checked: they have a number then."""
        return TOP_K if self.top_k is None else self.top_k


@dataclass(frozen=True)
class Result:
    """One training image of an answer.

    Attributes:
        rank: from 1.
        row: of the training set.
        id: the training set's name for it.
        score: higher is more influential.
        low: lower end of a 95 % interval of the score over the noises.
        high: upper end.
        caption: the training image's.
        flip: whether the mirror scored higher.
        losses: (before, after) at each column of the index's noise bank, where the method unlearns and is done.
    """

    rank: int
    row: int
    id: str
    score: float
    low: float
    high: float
    caption: str
    flip: bool
    losses: tuple[tuple[float, float], ...] = ()


@dataclass(frozen=True)
class Progress:
    """Where a query is: a stage, how much of all its predictions are made, seconds left, and the ranking so far.

    Attributes:
        stage: what is being done.
        evaluations: predictions made.
        total: predictions that will be made.
        seconds: since the beginning.
        results: the first K so far, or fewer.
        estimated: these are a first estimate by what the index holds: no training loss was measured yet.
        estimate: rows of the first estimate, once there is one, best first.
    """

    stage: str
    evaluations: int
    total: int
    seconds: float
    results: tuple[Result, ...] = ()
    estimated: bool = False
    estimate: tuple[int, ...] = ()

    @property
    def eta(self) -> float | None:
        """Seconds left at the pace so far."""
        return self.seconds / self.evaluations * (self.total - self.evaluations) if self.evaluations else None


@dataclass(frozen=True)
class Attribution:
    """A finished answer.

    Attributes:
        query: what was asked.
        settings: how.
        results: the first K.
        evaluations: predictions made.
        seconds: by stage.
        index_id: of the index.
        model_sha256: of the model.
        rows: of the training set, best first: the first MOST_RANKS that have a final score.
        ranked: how many have a final score, or are among those that an approximate search is good for.
        typical: the median score of some training images by chance on one noise, the same ones for every query, each in
            the view that is looked at first; None where it does not unlearn.
        evidence: what the query itself tells of whether the model made it; None in runs that are older than that.
        scores: of the first MOST_SCORES of `rows`; a run that an earlier version kept has none.
        step_sizes: alpha of each step, where it was found by its effect; otherwise the settings name it.
        search: how the training images were found; None where a method that scores them all did so, and in runs older
            than that.
    """

    query: Query
    settings: AttributeSettings
    results: tuple[Result, ...]
    evaluations: int
    seconds: dict[str, float]
    index_id: str
    model_sha256: str
    rows: tuple[int, ...] = ()
    ranked: int = 0
    typical: float | None = None
    evidence: Evidence | None = None
    scores: tuple[float, ...] = ()
    step_sizes: tuple[float, ...] = ()
    search: Searched | None = None

    def multiple(self, result: Result) -> float | None:
        """How many times the typical score a result's is: infinite where the typical one is none; None without one."""
        if self.typical is None:
            return None
        if self.typical > 0:
            return result.score / self.typical
        return math.inf if result.score > 0 else 0.0


Answer = Generator[Progress | Attribution, None, None]  # close it to stop early


def default_top_k(count: int) -> int:
    """How many results there are unless a number is named, of `count` training images."""
    return min(TOP_K, count)


def to_results(standing: Standing, index: Index, top_k: int) -> tuple[Result, ...]:
    """The first `top_k` of a standing, with what the index knows of them."""
    scores = standing.scores
    return tuple(
        Result(
            rank=place + 1,
            row=row,
            id=index.ids[row],
            score=float(scores.value[place]),
            low=float(scores.low[place]),
            high=float(scores.high[place]),
            caption=index.captions[row],
            flip=bool(scores.flip[place]),
            losses=() if standing.losses is None else tuple(map(tuple, standing.losses[place].T.tolist())),
        )
        for place, row in enumerate(standing.rows[:top_k])
    )


def check_stop(stop: Event) -> None:
    """Leave the work that is under way.

    Raises:
        Stopped: `stop` was set.
    """
    if stop.is_set():
        raise Stopped("stopped; the model is as it was")


class Clock:
    """Seconds by stage."""

    def __init__(self) -> None:
        self.began = self.last = time.monotonic()
        self.laps: dict[str, float] = {}

    def lap(self, stage: str) -> None:
        """End a stage."""
        now = time.monotonic()
        self.laps[stage], self.last = now - self.last, now

    def total(self) -> float:
        """Seconds since the beginning."""
        return time.monotonic() - self.began


def check_scores(values: Floats, rows: Sequence[int] | NDArray[np.integer], index: Index) -> None:
    """Refuse scores or losses that are no numbers.

    Args:
        values: (n, ...) of n training images.
        rows: n, of the training set.
        index: names them.

    Raises:
        WorkFailed: one of them is not finite; names the first.
    """
    finite = np.isfinite(values).reshape(len(values), -1).all(1)
    if not finite.all():
        bad = int(rows[int(np.argmin(finite))])
        raise WorkFailed(
            f"the training image {index.ids[bad]} has no finite score; its features or gradients are damaged,"
            " or the step is too large for this model: choose a smaller step size, or build the index anew"
        )


def ranked(
    model: Model,
    index: Index,
    query: Query,
    settings: AttributeSettings,
    scores: Scores,
    predictions: int,
    clock: Clock,
    some: NDArray[np.integer] | None = None,
    search: Searched | None = None,
) -> Attribution:
    """The answer of a method that scores training images at once.

    Args:
        model: the index's.
        index: of the training set.
        query: what was asked.
        settings: how.
        scores: of all N training images, or of some.
        predictions: that this took.
        clock: since the beginning.
        some: rows of these; the first DEPTHS[-1] are kept, as no more is known of what they miss.
        search: how these were found.

    Raises:
        WorkFailed: a score is not finite.
    """
    about = np.arange(len(index)) if some is None else some
    check_scores(scores.value, about, index)
    best = scores.first(MOST_RANKS if some is None else DEPTHS[-1])
    rows = tuple(about[best].tolist())
    results = to_results(Standing(rows, scores.take(best), 0, 0, True, True), index, settings.k)
    clock.lap("ranking")
    spent, made_with = (predictions, clock.laps), (index.id, model.sha256)
    first = tuple(scores.value[best[:MOST_SCORES]].tolist())
    count = len(index) if some is None else len(rows)
    return Attribution(query, settings, results, *spent, *made_with, rows, count, scores=first, search=search)
