"""Feature baselines: cosine similarity to the training images, the better of each image and its mirror."""

from threading import Event

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import normalize

from attribution.batches import batches
from attribution.diffusion.pipeline import Model
from attribution.files import let_go
from attribution.index.features import FEATURES, Encode, Encoder, open_feature
from attribution.index.index import Index
from attribution.methods.answer import Answer, AttributeSettings, Clock, check_stop, ranked
from attribution.query.encoded import Encoded
from attribution.unlearning.score import Scores

ROWS = 4096  # training images that are in memory at once


def feature_scores(query: Tensor, training: NDArray[np.floating], mapper: Encode | None = None) -> Scores:
    """Cosine of one vector (D,) with each training image (N, views, D), the larger over the views.

    Args:
        query: not mapped yet.
        training: memory-mapped or not; read in blocks.
        mapper: applied to both sides first.
    """

    def mapped(vectors: Tensor) -> Tensor:
        return vectors if mapper is None else mapper(vectors)  # type: ignore[arg-type]

    one, cosines = normalize(mapped(query.float()[None]), eps=1e-12)[0], np.empty(training.shape[:2], np.float32)
    for rows in batches(len(training), ROWS):
        part = np.array(training[rows.start : rows.stop])
        let_go(training)
        vectors = mapped(torch.from_numpy(part).float().flatten(0, 1))
        dots = vectors @ one / vectors.norm(dim=1).clamp_min(1e-12)
        cosines[rows.start : rows.stop] = dots.reshape(part.shape[:2])
    return Scores.exact(cosines)


def network_of(index: Index, name: str) -> Encoder:
    """A feature's network, the one that the index's vectors are of.

    Raises:
        IndexMismatch: there is another one in its place now.
    """
    network = open_feature(name, index.feature_weights(name))
    index.check_network(name, network)
    return network


def seen_as(index: Index, asked: Encoded, name: str) -> Tensor:
    """A feature of a query, (D,) float32: of the picture, or the boxes' crop, or the prompt, or of several of these."""
    entry, network = FEATURES[name], network_of(index, name)
    if entry.joins and network.ask is not None:
        return network.ask([torch.cat([seen_as(index, asked, base) for base in entry.joins]).numpy()])[0]
    return network([asked.query.prompt if entry.of == "captions" else asked.crop])[0]


def feature(name: str, model: Model, index: Index, asked: Encoded, settings: AttributeSettings, stop: Event) -> Answer:
    """Cosine similarity of a feature: of the picture, or the boxes' crop, or the prompt, with each training image."""
    clock, entry = Clock(), FEATURES[name]
    base = entry.base or name
    vectors = index.array(f"features/{base}")
    mapper = network_of(index, name) if entry.base else None
    check_stop(stop)
    scores = feature_scores(seen_as(index, asked, base), vectors, mapper)
    yield ranked(model, index, asked.query, settings, scores, 0, clock)
