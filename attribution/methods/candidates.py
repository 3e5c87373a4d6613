"""Candidates for a race, by methods that only read what the index holds; and what is known of those left out."""

from collections.abc import Mapping, Sequence
from itertools import chain, zip_longest

from attribution.diffusion.weights import WeightSubset
from attribution.index.index import Index
from attribution.methods.answer import AttributeSettings
from attribution.methods.searched import Searched
from attribution.unlearning.best import End
from attribution.unlearning.score import Floats, Scores

# What gives candidates, by what it reads of an index: of each training image one inner product with the query's vector
SOURCES = {"d-trak": "gradients/d-trak", "influence": "gradients/influence"}


def sources(index: Index, weights: WeightSubset | None) -> tuple[str, ...]:
    """The methods that can give candidates from an index, when some weights are unlearned; None are the index's own."""
    own = weights in (None, index.weights)
    held = [name for name, part in SOURCES.items() if part in index.artifacts and (own or name != "influence")]
    return tuple(name for name in held if index.gradients(name).weights == index.weights)


def used_sources(index: Index, settings: AttributeSettings) -> tuple[str, ...]:
    """The methods that give an answer its candidates; none where everyone is one, or it is searched otherwise."""
    if settings.exhaustive or not settings.race.pool or settings.race.pool == len(index):
        return ()
    return sources(index, settings.unlearn.weights)


def searched(
    index: Index, settings: AttributeSettings, sampled: Sequence[int], rows: Sequence[int], end: End | None
) -> Searched:
    """What an answer says of how it was found.

    Args:
        index: of the training set.
        settings: of the answer.
        sampled: training images by chance outside the pool, which were scored.
        rows: of the training set, best first.
        end: of a search among candidates.
    """
    images, top_k, race = len(index), settings.k, settings.race
    if settings.exhaustive:
        return Searched("exhaustive", images, top_k)
    if not race.pool:
        return Searched("halving", images, top_k, lacking=not sources(index, settings.unlearn.weights))
    entered = len(set(sampled) & set(rows[:top_k]))
    used, chance = used_sources(index, settings), (len(sampled), entered)
    return Searched("candidates", images, top_k, used, race.pool, *chance, end, race.confidence)


def pooled(scores: Mapping[str, Floats], count: int) -> list[int]:
    """The first images by several methods, in turns, so many in all.

    Args:
        scores: (N,) of all training images by each method.
        count: of images, at most N.
    """
    firsts = [first(each, count) for each in scores.values()]
    in_turns = dict.fromkeys(chain.from_iterable(zip_longest(*firsts)))
    return list(in_turns)[:count]


def first(scores: Floats, count: int) -> list[int]:
    """Rows of the highest scores, best first; only those are sorted."""
    return [int(row) for row in Scores.exact(scores[:, None]).first(count)]


def outside(sample: Sequence[int], pool: Sequence[int]) -> list[int]:
    """The images of a sample that are not in a pool."""
    inside = set(pool)
    return [row for row in sample if row not in inside]
