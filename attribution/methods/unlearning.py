"""The paper's method: unlearn the query, then see which training images' losses rose (Eq. 4 to 6)."""

from collections.abc import Iterator, Sequence
from threading import Event

import numpy as np
from torch import Tensor

from attribution.diffusion.noise import NoiseBank
from attribution.diffusion.pipeline import Model
from attribution.diffusion.weights import unlearned
from attribution.index.index import Index
from attribution.methods.answer import (
    MOST_RANKS,
    MOST_SCORES,
    Answer,
    AttributeSettings,
    Attribution,
    Clock,
    Progress,
    check_scores,
    check_stop,
    to_results,
)
from attribution.query.encoded import Encoded
from attribution.unlearning.race import Measure, Round, evaluations, exhaustive, race, schedule
from attribution.unlearning.score import Floats, losses_by_call, score
from attribution.unlearning.step import UnlearnSettings, add_step, newton_step, query_bank, query_gradient

TYPICAL = 32  # training images that stand for all in the typical score


def unlearning(model: Model, index: Index, asked: Encoded, settings: AttributeSettings, stop: Event) -> Answer:
    """Answer with the loss change of training images after a Newton step that unlearns the query."""
    clock, unlearn, bank = Clock(), settings.unlearn, index.bank(model)
    rounds, done, total = _rounds(index, settings), _gradients(settings), predicted(index, settings)
    with unlearned(model, unlearn.weights or index.weights) as weights:
        for taken in unlearn_query(model, index, asked, unlearn, weights):
            check_stop(stop)
            yield Progress("unlearning", taken, total, clock.total())
        clock.lap("unlearning")

        measure, base = _measure(model, index, bank, settings.batch, stop), index.base_losses[:, : len(index.views)]
        sample = typical_rows(len(index))
        after = np.empty_like(base[sample])
        for which, column, losses in measure(sample, range(len(bank)), index.views):
            after[which, :, column] = losses
            done += losses.size
            yield Progress("scoring", done, total, clock.total())
        typical = float(np.median(score(base[sample], after, settings.score).value))
        order = likely_first(asked.query.prompt, index.captions)
        for standing in race(measure, base, rounds, order, settings.score, settings.k):
            results = to_results(standing, index, settings.k)
            yield Progress("scoring", done + standing.evaluations, total, clock.total(), results)
    clock.lap("scoring")
    made_with, rows = (index.id, model.sha256), standing.rows
    ranks = (rows[:MOST_RANKS], len(rows))
    first = tuple(standing.scores.value[:MOST_SCORES].tolist())
    yield Attribution(asked.query, settings, results, total, clock.laps, *made_with, *ranks, typical, scores=first)


def typical_rows(images: int) -> list[int]:
    """The training images whose median score is the typical one: TYPICAL of them, the same for every query."""
    return sorted(int(row) for row in np.random.default_rng(TYPICAL).permutation(images)[:TYPICAL])


def _measure(model: Model, index: Index, bank: NoiseBank, batch: int, stop: Event) -> Measure:
    """Losses of training images under the weights that the model has now, for a race."""

    def measure(
        rows: Sequence[int], columns: Sequence[int], views: Sequence[int]
    ) -> Iterator[tuple[slice, int, Floats]]:
        for which, column, losses in losses_by_call(model, index.encoded, bank, rows, columns, views, batch):
            check_stop(stop)
            check_scores(losses, rows[which], index)
            yield which, column, losses

    return measure


def unlearn_query(
    model: Model, index: Index, asked: Encoded, settings: UnlearnSettings, weights: dict[str, Tensor]
) -> Iterator[int]:
    """Move `weights`, the model's own, to where the query is unlearned; yields predictions made so far."""
    subset = settings.weights or index.weights
    information = index.information(weights, settings.curvature)
    bank = query_bank(model, settings)
    for step in range(settings.steps):
        gradient: dict[str, Tensor] = {}
        for done, so_far in query_gradient(model, subset, asked.latents, asked.text, bank, asked.mask, settings.batch):
            gradient = so_far
            yield step * len(bank) + done
        add_step(weights, newton_step(gradient, information, settings, len(index)))


def likely_first(prompt: str, captions: list[str]) -> list[int]:
    """Rows by how many words of the prompt their captions share: only the order in which a race looks at them."""
    words = set(prompt.lower().split())
    shared = [len(words.intersection(text.lower().split())) / (1 + len(text.split())) for text in captions]
    return [int(row) for row in np.argsort(-np.asarray(shared), kind="stable")]


def predicted(index: Index, settings: AttributeSettings) -> int:
    """Predictions that an answer by unlearning takes."""
    columns: int = index.base_losses.shape[-1]
    sampled = len(typical_rows(len(index))) * len(index.views) * columns
    return _gradients(settings) + sampled + evaluations(_rounds(index, settings))


def _gradients(settings: AttributeSettings) -> int:
    return settings.unlearn.steps * settings.unlearn.timesteps * settings.unlearn.noises


def _rounds(index: Index, settings: AttributeSettings) -> list[Round]:
    columns = index.base_losses.shape[-1]  # of the noise bank
    if settings.exhaustive:
        return exhaustive(len(index), columns, index.views)
    return schedule(len(index), columns, settings.race, index.views)
