"""Feature baselines: cosine similarity to the training images, the better of each image and its mirror."""

from threading import Event

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from attribution.diffusion.pipeline import Model
from attribution.index.features import FEATURES, Encode, open_feature
from attribution.index.index import Index
from attribution.methods.answer import Answer, AttributeSettings, Clock, check_stop, ranked
from attribution.query.encoded import Encoded
from attribution.unlearning.score import Floats, Scores


def feature_scores(query: Tensor, training: NDArray[np.floating], mapper: Encode | None = None) -> Scores:
    """Cosine of one vector (D,) with each training image (N, views, D), the larger over the views.

    Args:
        query: not mapped yet.
        training: memory-mapped or not; read in blocks.
        mapper: applied to both sides first.
    """

    def prepared(vectors: NDArray[np.floating]) -> Floats:
        rows = vectors.reshape(-1, vectors.shape[-1]).astype(np.float32)
        if mapper is not None:
            rows = mapper(rows).numpy()  # type: ignore[arg-type]
        unit: Floats = rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-12)
        return unit

    one = prepared(query.numpy()[None])[0]
    blocks = np.array_split(np.arange(len(training)), 1 + len(training) // 4096)
    cosines = np.concatenate([(prepared(training[block]) @ one).reshape(len(block), -1) for block in blocks])
    return Scores.exact(cosines)


def _network(index: Index, name: str) -> Encode:
    """A feature's network, the one that the index's vectors are of.

    Raises:
        IndexMismatch: there is another one in its place now.
    """
    network = open_feature(name, index.feature_weights(name))
    index.check_network(name, network)
    return network


def feature(name: str, model: Model, index: Index, asked: Encoded, settings: AttributeSettings, stop: Event) -> Answer:
    """Cosine similarity of a feature: of the picture, or the boxes' crop, or the prompt, with each training image."""
    clock, entry = Clock(), FEATURES[name]
    base = entry.base or name
    vectors = index.array(f"features/{base}")
    mapper = _network(index, name) if entry.base else None
    check_stop(stop)
    seen = asked.query.prompt if entry.of == "captions" else asked.crop
    wanted = _network(index, base)([seen])[0]
    yield ranked(model, index, asked.query, settings, feature_scores(wanted, vectors, mapper), 0, clock)
