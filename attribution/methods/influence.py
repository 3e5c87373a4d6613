"""First-order influence: what the Newton step does to each training loss, without measuring any (Appendix A.3)."""

from collections.abc import Mapping
from threading import Event

import numpy as np
import torch
from torch import Tensor

from attribution.diffusion.pipeline import Model
from attribution.index.index import Index
from attribution.methods.answer import Answer, AttributeSettings, Clock, Progress, check_stop, ranked
from attribution.methods.trak import projected_gradients
from attribution.query.encoded import Encoded
from attribution.unlearning.projection import Projection, first_order, whitening
from attribution.unlearning.score import Floats, Scores
from attribution.unlearning.step import newton_step, query_bank, query_gradient


def influence(model: Model, index: Index, asked: Encoded, settings: AttributeSettings, stop: Event) -> Answer:
    """First-order influence: each training loss's gradient times the query's Newton step (Appendix A.3)."""
    clock, unlearn = Clock(), settings.newton
    projected_gradients(index, "influence")  # refuses, before any work
    bank, gradient = query_bank(model, unlearn), {}
    for done, so_far in query_gradient(
        model, index.weights, asked.latents, asked.text, bank, asked.mask, unlearn.batch
    ):
        check_stop(stop)
        gradient = so_far
        yield Progress("gradient", done, len(bank), clock.total())
    step = newton_step(gradient, index.information(gradient, unlearn.curvature), unlearn, len(index))
    yield ranked(model, index, asked.query, settings, Scores.exact(slopes(index, step)), len(bank), clock)


def slopes(index: Index, step: Mapping[str, Tensor]) -> Floats:
    """How much each training loss rises along a step, to first order: (N, views).

    Args:
        index: holds the training losses' gradients.
        step: the change of the index's weights, by parameter name.

    Raises:
        InputError: the index holds no such gradients.
    """
    phi, kept = projected_gradients(index, "influence")
    scales = whitening(index.fisher, kept.whitening)
    whitened = {name: _unscaled(change, scales[name].to(change))[None] for name, change in step.items()}
    projected = Projection(kept.dimension, kept.seed)(whitened)[0]
    views = len(index.views)
    found = np.zeros((len(index), views))
    for each in phi:
        found += first_order(each[:, :views], projected)
    return found / (len(phi) * kept.scale)


def _unscaled(change: Tensor, scale: Tensor) -> Tensor:
    """A change over its scale; none where the scale is zero, as of weights that no loss depends on."""
    return torch.where(scale > 0, change / scale, 0)
