"""The paper's method: unlearn the query, then see which training images' losses rose (Eq. 4 to 6)."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from threading import Event

import numpy as np
from torch import Tensor

from attribution.diffusion.pipeline import Model
from attribution.diffusion.weights import last_change, unlearned
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
    check_stop,
    to_results,
)
from attribution.methods.candidates import outside, pooled, searched, used_sources
from attribution.methods.influence import slopes
from attribution.methods.measured import Losses, predictions_each
from attribution.methods.trak import trak_predictions, trak_scores
from attribution.query.encoded import Encoded
from attribution.unlearning.best import BestSettings, Known, Search
from attribution.unlearning.race import Round, Standing, evaluations, exhaustive, race, schedule
from attribution.unlearning.rise import step_to, trial_bank
from attribution.unlearning.score import Floats, score
from attribution.unlearning.step import (
    UnlearnSettings,
    add_step,
    newton_step,
    query_bank,
    query_gradient,
    query_loss,
)

TYPICAL = 32  # training images that stand for all in the typical score


def unlearning(model: Model, index: Index, asked: Encoded, settings: AttributeSettings, stop: Event) -> Answer:
    """Answer with the loss change of training images after a Newton step that unlearns the query."""
    clock, unlearn, total = Clock(), settings.newton, predicted(index, settings)
    scores, done = dict[str, Floats](), 0
    if "d-trak" in (used := used_sources(index, settings)):
        scores["d-trak"] = yield from trak_scores("d-trak", False, model, index, asked, settings, stop, clock, total)
        done = trak_predictions(index, "d-trak", False)
        clock.lap("candidates")
    with unlearned(model, unlearn.weights or index.weights) as weights:
        for taken in unlearn_query(model, index, asked, unlearn, weights):
            check_stop(stop)
            yield Progress("unlearning", done + taken.predictions, total, clock.total())
        clock.lap("unlearning")
        done += unlearn.predictions

        losses, sample = Losses(model, index, settings, stop), typical_rows(len(index))
        after = np.empty_like(losses.base[sample])
        for which, column, some in losses.measure(sample, range(after.shape[-1]), index.views):
            after[which, :, column] = some
            done += losses.each * some.size
            yield Progress("scoring", done, total, clock.total())
        if "influence" in used:
            scores["influence"] = slopes(index, last_change(model)).max(1)
        order = likely_first(asked.query.prompt, index.captions)
        wanted = settings.race.pool or 0
        pool = pooled(scores, wanted) if scores else order[:wanted]  # where everyone is a candidate, or nobody
        search = _search(index, settings, pool, sample, (losses.base[sample], after))
        for standing in (
            search.run(losses.look(search.rows.tolist())) if search else _race(losses, index, settings, order)
        ):
            results = to_results(standing, index, settings.k)
            made = done + losses.each * standing.evaluations
            yield Progress("scoring", made, made if standing.settled else total, clock.total(), results)
    clock.lap("scoring")
    made_with, rows = (index.id, model.sha256), standing.rows
    ranks = (rows[:MOST_RANKS], len(rows))
    typical = float(np.median(score(losses.base[sample], after, settings.score).value))
    found = Attribution(asked.query, settings, results, made, clock.laps, *made_with, *ranks, typical)
    yield replace(
        found,
        scores=tuple(standing.scores.value[:MOST_SCORES].tolist()),
        step_sizes=taken.step_sizes,
        search=searched(index, settings, outside(sample, pool), rows, search.end if search else None),
    )


def typical_rows(images: int) -> list[int]:
    """The training images whose median score is the typical one: TYPICAL of them, the same for every query."""
    return sorted(int(row) for row in np.random.default_rng(TYPICAL).permutation(images)[:TYPICAL])


def _search(
    index: Index, settings: AttributeSettings, pool: list[int], sample: list[int], known: tuple[Floats, Floats]
) -> Search | None:
    """A search among a pool and the sample, whose losses (n, views, S) before and after are known; None is halving."""
    if not pool:
        return None
    rows = [*pool, *outside(sample, pool)]
    _, views, columns = known[0].shape
    candidates = Known(len(rows), views, columns, settings.score, known[0].dtype)
    places = {row: place for place, row in enumerate(rows)}
    yardsticks = np.array([places[row] for row in sample])
    candidates.put(yardsticks, known)
    how = BestSettings(settings.k, settings.race.budget or 0, settings.race.confidence)
    return Search(rows, candidates, yardsticks, how)


def _race(losses: Losses, index: Index, settings: AttributeSettings, order: list[int]) -> Iterator[Standing]:
    return race(losses.measure, losses.base, _rounds(index, settings), order, settings.score, settings.k)


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
        wanted, known = before * (1 + settings.rise * number / settings.steps), sizes
        for size in step_to(weights, step, loss, wanted, 1 / settings.steps):
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
    """Predictions that an answer by unlearning takes, at most."""
    columns: int = index.base_losses.shape[-1]
    sample, cells = len(typical_rows(len(index))), len(index.views) * columns
    race, more = settings.race, 0
    if race.pool:
        searched = min(race.budget or 0, min(race.pool, len(index) - sample) * cells)
        more = trak_predictions(index, "d-trak", False) if "d-trak" in used_sources(index, settings) else 0
    else:
        searched = evaluations(_rounds(index, settings))
    return settings.unlearn.predictions + more + predictions_each(settings) * (sample * cells + searched)


def _rounds(index: Index, settings: AttributeSettings) -> list[Round]:
    columns = index.base_losses.shape[-1]  # of the noise bank
    if settings.exhaustive:
        return exhaustive(len(index), columns, index.views)
    return schedule(len(index), columns, settings.race, index.views)
