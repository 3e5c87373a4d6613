"""Rankings side by side: how far methods agree, and training images that are nearly the same."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.stats import spearmanr

from attribution.index.features import pixel_vectors
from attribution.index.index import Index
from attribution.methods.answer import Attribution, Result
from attribution.unlearning.score import Floats

DUPLICATE = 0.95  # correlation of intensities above which two training images are nearly the same
Rows = Sequence[int]


@dataclass(frozen=True)
class Agreement:
    """Two rankings against each other.

    Attributes:
        overlap: share of the first K of the one that is among the first K of the other.
        correlation: Spearman's, over the images that both rank; None where they are fewer than three.
        common: how many images both rank.
    """

    overlap: float
    correlation: float | None
    common: int


def agreement(one: Rows, other: Rows, top_k: int) -> Agreement:
    """How far two rankings (rows, best first) agree."""
    places = {row: place for place, row in enumerate(other)}
    both = [row for row in one if row in places]
    correlation = None
    if len(both) >= 3:
        correlation = float(spearmanr(np.arange(len(both)), [places[row] for row in both]).statistic)
    shared = len(set(one[:top_k]) & set(other[:top_k]))
    return Agreement(shared / max(1, min(top_k, len(one))), correlation, len(both))


def finders(answers: Mapping[str, Attribution]) -> dict[int, list[str]]:
    """By row, the methods that have it among their first K, in the order of `answers`."""
    found: dict[int, list[str]] = {}
    for method, answer in answers.items():
        for result in answer.results:
            found.setdefault(result.row, []).append(method)
    return found


def rank_of(row: int, answer: Attribution) -> int | None:
    """A training image's rank, from 1; None where the method gave it no final score."""
    return answer.rows.index(row) + 1 if row in answer.rows else None


def fold(results: Sequence[Result], index: Index) -> list[tuple[Result, list[Result]]]:
    """Results, best first, each with those after it that are nearly the same picture or its mirror.

    Near is a correlation of intensities above DUPLICATE.
    """
    pixels = [pixel_vectors([index.pictures.small(result.row)])[0] for result in results]
    vectors = [_centred(each) for each in pixels]
    mirrors = [_centred(each[:, ::-1]) for each in pixels]
    kept: list[tuple[int, list[Result]]] = []
    for number, result in enumerate(results):
        for first, alike in kept:
            if max(vectors[first] @ vectors[number], vectors[first] @ mirrors[number]) > DUPLICATE:
                alike.append(result)
                break
        else:
            kept.append((number, []))
    return [(results[number], alike) for number, alike in kept]


def _centred(pixels: NDArray[np.uint8]) -> Floats:
    flat: Floats = pixels.astype(np.float64).ravel()
    flat -= flat.mean()
    return flat / max(float(np.linalg.norm(flat)), 1e-12)
