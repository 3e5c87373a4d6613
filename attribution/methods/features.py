"""Feature baselines: cosine similarity to the training images, the better of each image and its mirror.

To all of them; or, where an index holds lists of a feature's vectors, to those in the nearest lists.
"""

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
from attribution.index.lists import DEPTHS
from attribution.index.nearest import lists_of
from attribution.methods.answer import Answer, AttributeSettings, Clock, check_stop, ranked
from attribution.methods.searched import Searched
from attribution.query.encoded import Encoded
from attribution.unlearning.score import Floats, Scores

ROWS = 4096  # training images that are in memory at once


def feature_scores(query: Tensor, training: NDArray[np.floating], mapper: Encode | None = None) -> Scores:
    """Cosine of one vector with each training image, the larger over the views; see `cosines_of`."""
    return Scores.exact(cosines_of(query, training, mapper))


def cosines_of(query: Tensor, training: NDArray[np.floating], mapper: Encode | None = None) -> Floats:
    """Cosines (N, views) of one vector (D,) with each training image (N, views, D).

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
    return cosines


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
    wanted = seen_as(index, asked, base)
    if found := None if mapper else near_scores(index, name, wanted, settings):
        rows, scores, search = found
        yield ranked(model, index, asked.query, settings, scores, 0, clock, rows, search)
        return
    yield ranked(model, index, asked.query, settings, feature_scores(wanted, vectors, mapper), 0, clock)


def near_scores(
    index: Index, name: str, wanted: Tensor, settings: AttributeSettings
) -> tuple[NDArray[np.integer], Scores, Searched] | None:
    """Rows and cosines of the images in the nearest lists, in order, and how they were found.

    None where all images are to be compared: it is asked for, or more images than such a search was measured for, or
    the index holds no lists, or these hold too few images.
    """
    if settings.exhaustive or settings.k > DEPTHS[-1] or (lists := lists_of(index, name)) is None:
        return None
    parts = [(rows, cosines_of(wanted, vectors)) for rows, vectors in lists.near(wanted.numpy())]
    rows = np.concatenate([part[0] for part in parts]) if parts else np.zeros(0, np.int64)
    if len(rows) < settings.k:
        return None
    order = np.argsort(rows)
    cosines = np.concatenate([part[1] for part in parts])[order]
    how = Searched("approximate", len(index), settings.k, looked_at=len(rows), measured=lists.made.measured)
    return rows[order], Scores.exact(cosines), how
