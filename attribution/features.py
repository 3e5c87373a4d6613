"""Feature baselines: cosine similarity to the training images, the better of each image and its mirror."""

from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from attribution.score import Floats, Scores

PIXEL_SIDE = 32  # px, side of the pictures that the pixel baseline compares


def pixel_vectors(images: Iterable[Image.Image]) -> NDArray[np.uint8]:
    """Flattened RGB intensities at PIXEL_SIDE px: (n, PIXEL_SIDE, PIXEL_SIDE, 3)."""
    side = (PIXEL_SIDE, PIXEL_SIDE)
    small = (image.convert("RGB").resize(side, Image.Resampling.BOX) for image in images)
    return np.stack([np.asarray(image) for image in small])


def pixel_scores(query: Image.Image, training: NDArray[np.uint8]) -> Scores:
    """Cosine of flattened intensities with each training image and its mirror (the paper's pixel baseline)."""
    one = pixel_vectors([query])[0]
    stack = training.reshape(len(training), -1)
    norms = np.linalg.norm(stack.astype(np.float32), axis=1)
    views = [_cosine(side.astype(np.float32).ravel(), stack, norms) for side in (one, one[:, ::-1])]
    value = np.max(views, 0)
    return Scores(value, value, value, np.argmax(views, 0) == 1)


def _cosine(query: Floats, stack: NDArray[np.uint8], norms: Floats) -> Floats:
    dots = np.concatenate([part.astype(np.float32) @ query for part in np.array_split(stack, 1 + len(stack) // 1024)])
    length = np.maximum(norms * np.linalg.norm(query), 1e-12)
    cosines: Floats = dots / length
    return cosines
