"""An order by chance, which every method should beat."""

from threading import Event

import numpy as np

from attribution.diffusion.pipeline import Model
from attribution.index.index import Index
from attribution.methods.answer import Answer, AttributeSettings, Clock, check_stop, ranked
from attribution.query.encoded import Encoded
from attribution.query.query import image_sha256
from attribution.unlearning.score import Scores


def chance(model: Model, index: Index, asked: Encoded, settings: AttributeSettings, stop: Event) -> Answer:
    """An order by chance, fixed by the seed and the picture."""
    clock = Clock()
    check_stop(stop)
    rng = np.random.default_rng([settings.seed, int(image_sha256(asked.query.image)[:8], 16)])
    scores = Scores.exact(rng.random((len(index), 1)))
    yield ranked(model, index, asked.query, settings, scores, 0, clock)
