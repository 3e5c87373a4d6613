"""Candidates for a race, by a method that only reads what the index holds; and what is known of those left out."""

from collections.abc import Sequence
from itertools import islice

import numpy as np

from attribution.index.index import Index
from attribution.methods.answer import AttributeSettings
from attribution.methods.searched import Searched
from attribution.unlearning.score import Floats, Scores

# Gives candidates: of each training image one inner product with the query's vector. The images that unlearning ranks
# first are among its first few hundred; first-order influence, DINO and CLIP each missed many of them.
SOURCE = "d-trak"
SAMPLED = 64  # training images by chance that are looked at beside the pool


def has_source(index: Index) -> bool:
    """Whether an index holds what gives candidates."""
    return f"gradients/{SOURCE}" in index.artifacts and index.gradients(SOURCE).weights == index.weights


def pool_of(settings: AttributeSettings) -> int:
    """How many candidates an answer chooses; 0 where everyone is one."""
    return 0 if settings.exhaustive else settings.race.pool or 0


def best_rows(scores: Floats, count: int) -> list[int]:
    """Rows of the highest scores, best first; only those are sorted."""
    return [int(row) for row in Scores.exact(scores[:, None]).first(count)]


def beside(images: int, pool: Sequence[int]) -> list[int]:
    """Training images by chance from outside a pool: SAMPLED, or as many as there are."""
    inside, shuffled = set(pool), np.random.default_rng(SAMPLED).permutation(images)
    return list(islice((int(row) for row in shuffled if row not in inside), SAMPLED))


def searched(
    index: Index, settings: AttributeSettings, sampled: Sequence[int], rows: Sequence[int], estimate: Sequence[int]
) -> Searched:
    """What an answer says of how it was found.

    Args:
        index: of the training set.
        settings: of the answer.
        sampled: training images by chance outside of the pool, that took part.
        rows: of the training set, best first.
        estimate: the rows that were shown first.
    """
    images, top_k = len(index), settings.k
    if settings.exhaustive:
        return Searched("exhaustive", images, top_k)
    if not settings.race.pool:
        return Searched("halving", images, top_k, lacking=not has_source(index))
    entered = len(set(sampled) & set(rows[:top_k]))
    counts = (settings.race.pool, len(sampled), entered)
    return Searched("candidates", images, top_k, SOURCE, *counts, estimate=tuple(estimate))
