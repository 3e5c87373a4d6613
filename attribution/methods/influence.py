"""First-order influence: what the Newton step does to each training loss, without measuring any (Appendix A.3)."""

from collections.abc import Generator
from threading import Event

import numpy as np
import torch
from torch import Tensor

from attribution.diffusion.pipeline import Model
from attribution.index.index import Index
from attribution.methods.answer import Answer, AttributeSettings, Clock, Progress, check_stop, ranked
from attribution.methods.trak import over_checkpoints, projected_gradients, trak_predictions
from attribution.query.encoded import Encoded
from attribution.unlearning.projection import Projection, first_order, whitening
from attribution.unlearning.score import Floats, Scores
from attribution.unlearning.signs import agreement
from attribution.unlearning.step import newton_step, query_bank, query_gradient


def influence(model: Model, index: Index, asked: Encoded, settings: AttributeSettings, stop: Event) -> Answer:
    """First-order influence: each training loss's gradient times the query's Newton step (Appendix A.3)."""
    clock, unlearn = Clock(), settings.newton
    phi, kept = projected_gradients(index, "influence")
    bank, gradient = query_bank(model, unlearn), {}
    for done, so_far in query_gradient(
        model, index.weights, asked.latents, asked.text, bank, asked.mask, unlearn.batch
    ):
        check_stop(stop)
        gradient = so_far
        yield Progress("gradient", done, len(bank), clock.total())
    step = newton_step(gradient, index.information(gradient, unlearn.curvature), unlearn, len(index))
    scales = whitening(index.fisher, kept.whitening)
    whitened = {name: _unscaled(change, scales[name].to(change))[None] for name, change in step.items()}
    projected = Projection(kept.dimension, kept.seed)(whitened)[0]
    views = len(index.views)
    slopes = np.zeros((len(index), views))
    for each in phi:
        slopes += first_order(each[:, :views], projected)
    slopes /= len(phi) * kept.scale
    yield ranked(model, index, asked.query, settings, Scores.exact(slopes), len(bank), clock)


SIGNED = "influence+"


def signed_influence(model: Model, index: Index, asked: Encoded, settings: AttributeSettings, stop: Event) -> Answer:
    """First-order influence by EK-FAC, of the signs of training gradients; see `unlearning.signs`."""
    clock, predictions = Clock(), trak_predictions(index, SIGNED, False)
    scores = yield from signed_scores(model, index, asked, settings, stop, clock, predictions)
    yield ranked(model, index, asked.query, settings, Scores.exact(scores), predictions, clock)


def signed_scores(
    model: Model,
    index: Index,
    asked: Encoded,
    settings: AttributeSettings,
    stop: Event,
    clock: Clock,
    predictions: int,
) -> Generator[Progress, None, Floats]:
    """Yields Progress, of all `predictions`, and returns the scores of all training images, (N, views).

    The query's gradient is taken at the noises that the training images' were, which is far better than at others,
    however many these are.
    """
    bits, _ = projected_gradients(index, SIGNED)

    def scores(number: int, wanted: Tensor) -> Floats:
        return agreement(bits[number], wanted)[:, : len(index.views)]

    given = (SIGNED, scores, index.bank(model, settings.noise_seed), index.signs)
    return (yield from over_checkpoints(*given, model, index, asked, settings, stop, clock, predictions))


def _unscaled(change: Tensor, scale: Tensor) -> Tensor:
    """A change over its scale; none where the scale is zero, as of weights that no loss depends on."""
    return torch.where(scale > 0, change / scale, 0)
