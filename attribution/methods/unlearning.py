"""The paper's method: unlearn the query, then see which training images' losses rose (Eq. 4 to 6)."""

from collections.abc import Generator, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from threading import Event

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from attribution.batches import batches
from attribution.diffusion.loss import precise
from attribution.diffusion.noise import NoiseBank, spread
from attribution.diffusion.pipeline import Model
from attribution.diffusion.weights import pretrained, unlearned
from attribution.index.index import Index
from attribution.index.texts import LOOKED_AT
from attribution.methods.answer import (
    MOST_RANKS,
    MOST_SCORES,
    Answer,
    AttributeSettings,
    Attribution,
    Clock,
    Progress,
    Result,
    check_scores,
    check_stop,
    to_results,
)
from attribution.methods.candidates import (
    SAMPLED,
    beside,
    by_chance,
    choose,
    chosen_predictions,
    estimated,
    holds,
    pool_of,
    searched,
)
from attribution.methods.influence import SIGNED, signed_scores
from attribution.methods.rehearsed import noise_order
from attribution.methods.trak import trak_predictions
from attribution.query.encoded import Encoded
from attribution.unlearning.foreseen import Foreseen
from attribution.unlearning.race import Measure, Round, Standing, evaluations, exhaustive, race, schedule
from attribution.unlearning.rise import step_to, trial_bank
from attribution.unlearning.score import (
    Floats,
    ScoreKind,
    Views,
    cells,
    score,
    views_at,
    width,
)
from attribution.unlearning.step import (
    UnlearnSettings,
    add_step,
    newton_step,
    query_bank,
    query_gradient,
    query_loss,
)


@dataclass(frozen=True)
class Entered:
    """Who takes part in a race.

    Attributes:
        rows: of the training set, likely ones first.
        sampled: the last of them, by chance from outside the pool; none where everyone takes part.
        foreseen: (N, views) scores of all training images, which tell the likelier view; None where there are none.
        first: a first estimate of the results, where the rows were chosen by what the index holds.
        predictions: that choosing took.
    """

    rows: list[int]
    sampled: list[int]
    foreseen: Floats | None = None
    first: tuple[Result, ...] = ()
    predictions: int = 0

    @property
    def estimate(self) -> tuple[int, ...]:
        """Rows of the first estimate, best first."""
        return tuple(result.row for result in self.first)

    @property
    def likely(self) -> NDArray[np.integer] | None:
        """(N,) the view of each training image in which it is likely to score higher, where that is known."""
        return None if self.foreseen is None else self.foreseen.argmax(1)


def unlearning(model: Model, index: Index, asked: Encoded, settings: AttributeSettings, stop: Event) -> Answer:
    """Answer with the loss change of training images after a Newton step that unlearns the query.

    Of a method that foresees it is the mean of that and of what was foreseen.
    """
    clock, unlearn, bank = Clock(), settings.newton, index.bank(model, settings.noise_seed)
    total, each = predicted(index, settings), _measured(settings)
    entered = yield from _entered(model, index, asked, settings, stop, clock, total)
    done, first, estimate = entered.predictions, entered.first, entered.estimate

    def at(stage: str, made: int, results: tuple[Result, ...] = ()) -> Progress:
        return Progress(stage, made, total, clock.total(), results or first, bool(first) and not results, estimate)

    with unlearned(model, unlearn.weights or index.weights) as weights:
        for taken in unlearn_query(model, index, asked, unlearn, weights):
            check_stop(stop)
            yield at("unlearning", done + taken.predictions)
        clock.lap("unlearning")

        done += unlearn.predictions
        measure, base = _losses(model, index, bank, settings, stop)
        begun = not first  # a first estimate stays until all were looked at
        rounds, likely = _rounds(index, settings), entered.likely
        column = first_column(index, settings)
        foreseen = None if not settings.foresees or entered.foreseen is None else Foreseen(entered.foreseen, column)
        for standing in race(measure, base, rounds, entered.rows, settings.kind, settings.k, likely, foreseen):
            begun |= standing.ended
            results = to_results(standing, index, settings.k) if begun else ()
            yield at("scoring", done + each * standing.evaluations, results)
    clock.lap("scoring")
    typical = _typical(settings.kind, base, standing, column, likely, foreseen)
    made_with, rows = (index.id, model.sha256), standing.rows
    ranks = (rows[:MOST_RANKS], len(rows))
    scores = tuple(standing.scores.value[:MOST_SCORES].tolist())
    found = Attribution(asked.query, settings, results, total, clock.laps, *made_with, *ranks, typical)
    search = searched(index, settings, entered.sampled, rows, estimate)
    yield replace(found, scores=scores, step_sizes=taken.step_sizes, search=search)


def _entered(
    model: Model, index: Index, asked: Encoded, settings: AttributeSettings, stop: Event, clock: Clock, total: int
) -> Generator[Progress, None, Entered]:
    """Who takes part: everyone, or those that are chosen, and some by chance."""
    pool, predictions = pool_of(settings), choosing(index, settings)
    if not predictions:
        return Entered(likely_first(asked.query.prompt, index.captions), [])
    if pool:
        chosen = yield from choose(model, index, asked, settings, pool, stop, clock, total)
        sampled = beside(len(index), chosen.rows)
        entered = Entered([*chosen.rows, *sampled], sampled, chosen.foreseen, chosen.first, predictions)
    else:
        plain = replace(settings, noise_seed=None)  # as among candidates
        foreseen = yield from signed_scores(model, index, asked, plain, stop, clock, total)
        rows = likely_first(asked.query.prompt, index.captions)
        entered = Entered(rows, [], foreseen, estimated(index, foreseen.max(1), settings.k), predictions)
    clock.lap("candidates")
    yield Progress("unlearning", predictions, total, clock.total(), entered.first, True, entered.estimate)
    return entered


def first_column(index: Index, settings: AttributeSettings) -> int:
    """The column of the noise bank on which a search looks at every training image that takes part."""
    named = settings.race.columns or noise_order(index, settings.method)
    return (named or spread(index.base_losses.shape[-1]))[0]


def _typical(
    kind: ScoreKind,
    base: Floats,
    last: Standing,
    column: int,
    likely: NDArray[np.integer] | None,
    foreseen: Foreseen | None,
) -> float:
    """The median score of training images by chance, all of which took part, on the noise that is looked at first."""
    assert last.known is not None
    rows = by_chance(len(base))
    views = np.zeros((len(rows), 1), np.intp) if likely is None else likely[rows, None]
    at = cells(rows, views, [column])
    expected = None if foreseen is None else foreseen.changes(rows, views, base, last.known, kind)
    return float(np.median(score(base[at], last.known[at], kind, expected).value))


def _losses(
    model: Model, index: Index, bank: NoiseBank, settings: AttributeSettings, stop: Event
) -> tuple[Measure, Floats]:
    """How losses after unlearning are measured; and those before (N, views, S), the index's or measured beside them."""
    measure, base = _measure(model, index, bank, settings.batch, stop), index.base_losses[:, : len(index.views)]
    if settings.noise_seed is None:
        return measure, base
    anew = np.full(base.shape, np.nan, base.dtype)
    return _with_base(model, measure, anew, settings.batch), anew


def _measure(model: Model, index: Index, bank: NoiseBank, batch: int, stop: Event) -> Measure:
    """Losses of training images under the weights that the model has now, for a race."""

    def measure(rows: Sequence[int], columns: Sequence[int], views: Views) -> Iterator[tuple[slice, int, Floats]]:
        for which, column, losses in index.losses_by(model, index.encoded, bank, rows, columns, views, batch):
            check_stop(stop)
            check_scores(losses, rows[which], index)
            yield which, column, losses

    return measure


def _with_base(model: Model, measure: Measure, base: Floats, batch: int) -> Measure:
    """Measure losses under the pretrained weights too, into `base` (N, views, S), a batch before those after it."""

    def both(rows: Sequence[int], columns: Sequence[int], views: Views) -> Iterator[tuple[slice, int, Floats]]:
        for some in batches(len(rows), max(1, batch // width(views))):
            here, seen = rows[some.start : some.stop], views_at(views, some)
            with pretrained(model):
                for which, column, losses in measure(here, columns, seen):
                    at = cells(here[which], views_at(seen, range(len(here))[which]), [columns[column]])
                    base[at] = losses[..., None]
            for which, column, losses in measure(here, columns, seen):
                yield slice(some.start + which.start, some.start + which.stop), column, losses

    return both


@dataclass(frozen=True)
class Unlearning:
    """How far unlearning is.

    Attributes:
        predictions: made so far.
        step_sizes: of the steps so far, where they are found by their effect; the last one's may not be final.
    """

    predictions: int
    step_sizes: tuple[float, ...] = ()


def unlearn_query(
    model: Model, index: Index, asked: Encoded, settings: UnlearnSettings, weights: dict[str, Tensor]
) -> Iterator[Unlearning]:
    """Move `weights`, the model's own, to where the query is unlearned; yields how far it is, call by call."""
    subset, picture = settings.weights or index.weights, (asked.latents, asked.text)
    information = index.information(weights, settings.curvature)
    bank, sizes = query_bank(model, settings), tuple[float, ...]()
    few = trial_bank(bank)
    loss = partial(query_loss, model, *picture, few, asked.mask, settings.batch)
    before, done = (0.0, 0) if settings.rise is None else (loss(), len(few))
    for number in range(1, settings.steps + 1):
        gradient: dict[str, Tensor] = {}
        for columns, so_far in query_gradient(model, subset, *picture, bank, asked.mask, settings.batch):
            gradient = so_far
            yield Unlearning(done + columns, sizes)
        done, step = done + len(bank), newton_step(gradient, information, settings, len(index))
        if settings.rise is None:
            add_step(weights, step)
            continue
        reached, wanted = (before * (1 + settings.rise * at / settings.steps) for at in (number - 1, number))
        slope, known = sum(float((precise(gradient[name]) * step[name]).sum()) for name in step), sizes
        for size in step_to(weights, step, loss, reached, wanted, 1 / settings.steps, slope):
            done, sizes = done + len(few), (*known, size)
            yield Unlearning(done, sizes)


def likely_first(prompt: str, captions: Sequence[str]) -> list[int]:
    """Rows by how many words of the prompt their captions share: only the order in which a race looks at them.

    Of many captions the first LOOKED_AT are read, and the others follow as they are.
    """
    words = set(prompt.lower().split())
    shared = [len(words.intersection(text.lower().split())) / (1 + len(text.split())) for text in captions[:LOOKED_AT]]
    first = np.argsort(-np.asarray(shared), kind="stable").tolist()
    return [*first, *range(len(first), len(captions))]


def predicted(index: Index, settings: AttributeSettings) -> int:
    """Predictions that an answer by unlearning takes."""
    asked = choosing(index, settings) + settings.unlearn.predictions
    return asked + _measured(settings) * evaluations(_rounds(index, settings))


def choosing(index: Index, settings: AttributeSettings) -> int:
    """Predictions that choosing candidates takes; where everyone is one, a first estimate by SIGNED, if it is held."""
    if pool_of(settings):
        return chosen_predictions(index)
    return trak_predictions(index, SIGNED, False) if holds(index, SIGNED) else 0


def _measured(settings: AttributeSettings) -> int:
    """How often a training loss is measured: after unlearning, and before where the index does not hold it."""
    return 1 if settings.noise_seed is None else 2


def _rounds(index: Index, settings: AttributeSettings) -> list[Round]:
    images, columns = len(index), index.base_losses.shape[-1]  # of the noise bank
    views = index.views[:1] if settings.foresees else index.views  # the likelier one is all that it scores
    if settings.exhaustive:
        return exhaustive(images, columns, views)
    if pool := pool_of(settings):
        return schedule(pool, columns, settings.race, views, min(SAMPLED, images - pool))
    return schedule(images, columns, settings.race, views)
