"""The paper's pixel baseline: cosine of intensities."""

from collections.abc import Sequence
from threading import Event

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from attribution.batches import batches
from attribution.diffusion.pipeline import Model
from attribution.index.features import pixel_vectors
from attribution.index.index import Index
from attribution.methods.answer import Answer, AttributeSettings, Clock, check_stop, ranked
from attribution.query.encoded import Encoded
from attribution.unlearning.score import VIEWS, Floats, Scores

ROWS = 1024  # training images that are in memory at once


def pixel_cosines(query: Image.Image, training: NDArray[np.uint8], views: Sequence[int] = VIEWS) -> Floats:
    """Cosines (n, views) of flattened intensities with training images and their mirrors (the paper's baseline)."""
    one = pixel_vectors([query])[0]
    sides = [side.astype(np.float32).ravel() for side in (one, one[:, ::-1])[: len(views)]]
    stack = training.reshape(len(training), -1).astype(np.float32)
    norms = np.linalg.norm(stack, axis=1)
    return np.stack([stack @ side / np.maximum(norms * np.linalg.norm(side), 1e-12) for side in sides], 1)


def pixel(model: Model, index: Index, asked: Encoded, settings: AttributeSettings, stop: Event) -> Answer:
    """The pixel baseline: cosine of intensities, of the whole picture or of the boxes' crop."""
    clock = Clock()
    cosines = np.empty((len(index), len(index.views)), np.float32)
    for rows in batches(len(index), ROWS):
        check_stop(stop)
        cosines[rows.start : rows.stop] = pixel_cosines(asked.crop, index.pictures.pixels(rows), index.views)
    yield ranked(model, index, asked.query, settings, Scores.exact(cosines), 0, clock)
