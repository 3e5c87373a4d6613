"""How long an answer will take here: measured before the first one, then by each that has ended."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from attribution.diffusion.pipeline import Model
from attribution.index.index import Index
from attribution.methods import best_method, check_settings
from attribution.methods.answer import AttributeSettings, Attribution
from attribution.methods.budgets import BUDGETS, NORMAL, Budget, calls, within
from attribution.unlearning.step import query_bank, query_gradient, query_loss

ENOUGH = 0.3  # seconds that a call takes at least, of which a pace is told
LONG = 120.0  # seconds from which on an answer is asked about before it is begun, unless the server says otherwise


@dataclass(frozen=True)
class Pace:
    """Seconds of a prediction: of one for the query, with its gradient, and of one of a training image."""

    gradient: float
    loss: float

    def seconds(self, index: Index, settings: Sequence[AttributeSettings]) -> float:
        """Seconds that answers take together; those of methods that read vectors count for nothing."""
        made = [calls(index, each) for each in settings]
        return sum(self.gradient * gradients + self.loss * losses for gradients, losses in made)


def measured(model: Model, index: Index) -> Pace:
    """The pace of this machine, by a few predictions of the first training image in ever larger batches."""
    settings = check_settings(model, index, AttributeSettings(best_method(index), 1))
    latents = torch.from_numpy(index.latents[:1, 0].copy()).to(model.device, model.dtype)
    text, bank, weights = model.encode_text([index.captions[0]]), query_bank(model, settings.unlearn), index.weights

    def gradient(count: int) -> None:
        for _ in query_gradient(model, weights, latents, text, bank.select([*range(count)]), None, count):
            pass

    def loss(count: int) -> None:
        query_loss(model, latents, text, bank.select([*range(count)]), None, count)

    return Pace(_each(gradient, settings.unlearn.batch), _each(loss, settings.batch))


def _each(call: Callable[[int], None], most: int) -> float:
    """Seconds of one, in a batch that takes ENOUGH or is the largest; the first call of all is not counted if quick."""
    count, first = 1, True
    while True:
        began = time.monotonic()
        call(count)
        took = time.monotonic() - began
        if took >= ENOUGH or (count == most and not first):
            return took / count
        count, first = (1 if first else min(most, 4 * count)), False


def paced(answer: Attribution, index: Index) -> Pace | None:
    """The pace that a finished answer went at; None where it did not unlearn."""
    asked, of_images = calls(index, answer.settings)
    took = answer.seconds
    if not of_images:
        return None
    return Pace((took.get("candidates", 0.0) + took["unlearning"]) / asked, took["scoring"] / of_images)


def choices(model: Model, index: Index, top_k: int) -> dict[Budget, AttributeSettings]:
    """The budgets that differ here, cheapest first, and what is asked of the best method in each.

    Args:
        model: the index's.
        index: of the training set; in a small one every search is of all images.
        top_k: how many results.
    """
    main = AttributeSettings(best_method(index), top_k)
    asked = {name: check_settings(model, index, within(main, index, name)) for name in BUDGETS}
    cost = {name: sum(calls(index, each)) for name, each in asked.items()}
    normal = cost[NORMAL]
    differ = {"quick": cost["quick"] < normal, NORMAL: True, "thorough": cost["thorough"] > normal}
    return {name: asked[name] for name in BUDGETS if name == "all" or (differ[name] and cost[name] < cost["all"])}


def budgets(pace: Pace | None, model: Model, index: Index, top_k: int) -> dict[Budget, float | None]:
    """The budgets that differ here, and the seconds that each takes for a region; None while no pace is known."""
    asked = choices(model, index, top_k)
    return {name: None if pace is None else pace.seconds(index, [each]) for name, each in asked.items()}


def corrected(pace: Pace | None, found: Sequence[Attribution], index: Index) -> Pace | None:
    """The pace after some answers have ended: the last one's that unlearned."""
    told = [own for answer in found if (own := paced(answer, index))]
    return told[-1] if told else pace
