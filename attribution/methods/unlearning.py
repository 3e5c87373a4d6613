"""The paper's method: unlearn the query, then see which training images' losses rose (Eq. 4 to 6)."""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from threading import Event

import numpy as np
from torch import Tensor

from attribution.diffusion.noise import NoiseBank
from attribution.diffusion.pipeline import Model
from attribution.diffusion.weights import unlearned
from attribution.index.index import Index
from attribution.methods.answer import (
    MOST_RANKS,
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
from attribution.unlearning.score import Floats, training_losses
from attribution.unlearning.step import UnlearnSettings, add_step, newton_step, query_bank, query_gradient


def unlearning(model: Model, index: Index, asked: Encoded, settings: AttributeSettings, stop: Event) -> Answer:
    """Answer with the loss change of training images after a Newton step that unlearns the query."""
    clock, unlearn, bank = Clock(), settings.unlearn, index.bank(model)
    rounds = _rounds(index, len(bank), settings)
    gradients = unlearn.steps * unlearn.timesteps * unlearn.noises
    total = gradients + evaluations(rounds)
    with unlearned(model, unlearn.weights or index.weights) as weights:
        for done in unlearn_query(model, index, asked, unlearn, weights):
            check_stop(stop)
            yield Progress("unlearning", done, total, clock.total())
        clock.lap("unlearning")

        order, typical = likely_first(asked.query.prompt, index.captions), 0.0
        measure, base = _measure(model, index, bank, settings.batch, stop), index.base_losses[:, : len(index.views)]
        for standing in race(measure, base, rounds, order, settings.score, settings.top_k):
            if standing.ended and len(standing.rows) == len(index):
                typical = float(np.median(standing.scores.value))
            results = to_results(standing, index, settings.top_k)
            yield Progress("scoring", gradients + standing.evaluations, total, clock.total(), results)
    clock.lap("scoring")
    made_with, rows = (index.id, model.sha256), standing.rows
    ranks = (rows[:MOST_RANKS], len(rows))
    yield Attribution(asked.query, settings, results, total, clock.laps, *made_with, *ranks, typical)


def _measure(model: Model, index: Index, bank: NoiseBank, batch: int, stop: Event) -> Measure:
    """Losses of training images under the weights that the model has now, for a race."""

    def measure(rows: Sequence[int], columns: Sequence[int], views: Sequence[int]) -> Iterator[tuple[slice, Floats]]:
        for which, losses in training_losses(model, index.encoded, bank, rows, columns, views, batch):
            check_stop(stop)
            check_scores(losses, rows[which], index)
            yield which, losses

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


def _rounds(index: Index, columns: int, settings: AttributeSettings) -> list[Round]:
    if settings.exhaustive:
        return exhaustive(len(index), columns, index.views)
    race_settings = replace(settings.race, survivors=max(settings.race.survivors, 2 * settings.top_k))
    return schedule(len(index), columns, race_settings, index.views)
