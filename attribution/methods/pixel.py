"""The paper's pixel baseline: cosine of intensities."""

from threading import Event

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from attribution.diffusion.pipeline import Model
from attribution.index.features import pixel_vectors
from attribution.index.index import Index
from attribution.methods.answer import Answer, AttributeSettings, Clock, check_stop, ranked
from attribution.query.encoded import Encoded
from attribution.unlearning.score import Floats, Scores


def pixel_scores(query: Image.Image, training: NDArray[np.uint8]) -> Scores:
    """Cosine of flattened intensities with each training image and its mirror (the paper's pixel baseline)."""
    one = pixel_vectors([query])[0]
    stack = training.reshape(len(training), -1)
    norms = np.linalg.norm(stack.astype(np.float32), axis=1)
    views = [_cosine(side.astype(np.float32).ravel(), stack, norms) for side in (one, one[:, ::-1])]
    return Scores.exact(np.stack(views, 1))


def _cosine(query: Floats, stack: NDArray[np.uint8], norms: Floats) -> Floats:
    dots = np.concatenate([part.astype(np.float32) @ query for part in np.array_split(stack, 1 + len(stack) // 1024)])
    length = np.maximum(norms * np.linalg.norm(query), 1e-12)
    cosines: Floats = dots / length
    return cosines


def pixel(model: Model, index: Index, asked: Encoded, settings: AttributeSettings, stop: Event) -> Answer:
    """The pixel baseline: cosine of intensities, of the whole picture or of the boxes' crop."""
    clock = Clock()
    scores = pixel_scores(asked.crop, index.pixels)
    check_stop(stop)
    yield ranked(model, index, asked.query, settings, scores, 0, clock)
