"""How well scores predict what retraining does: LDS, leave-K-out, retrieval, steadiness (numbers in, numbers out).

Conventions: Q queries, N training images, M retrained models. Scores are higher for more influential images. A
retrained model's loss on a query rises when influential images were left out.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.stats import spearmanr

Floats = NDArray[np.floating]
Rows = Sequence[int]


@dataclass(frozen=True)
class Estimate:
    """A mean over queries.

    Attributes:
        mean: of the values.
        error: standard error of the mean.
        low: lower end of a 95 % bootstrap interval of the mean.
        high: upper end.
    """

    mean: float
    error: float
    low: float
    high: float


def estimate(values: Floats, seed: int = 0, draws: int = 10_000) -> Estimate:
    """The mean of values (Q,), with its standard error and a bootstrap interval over queries."""
    rng = np.random.default_rng(seed)
    means = values[rng.integers(len(values), size=(draws, len(values)))].mean(1)
    low, high = np.quantile(means, (0.025, 0.975))
    error = values.std(ddof=1) / np.sqrt(len(values)) if len(values) > 1 else np.nan
    return Estimate(float(values.mean()), float(error), float(low), float(high))


def paired_p(one: Floats, other: Floats, seed: int = 0, draws: int = 10_000) -> float:
    """How likely it is that `one`'s mean is no higher than `other`'s: a one-sided paired bootstrap over Q queries."""
    rng = np.random.default_rng(seed)
    difference = one - other
    means = difference[rng.integers(len(difference), size=(draws, len(difference)))].mean(1)
    return float((1 + (means <= 0).sum()) / (1 + draws))


def lds(scores: Floats, kept: NDArray[np.bool_], losses: Floats) -> Floats:
    """The linear datamodelling score of each query (Park et al. 2023, Section 2; Ilyas et al. 2022).

    A model's predicted output is the sum of the scores of the images that it was trained on; a high score should mean
    a low loss.

    Args:
        scores: (Q, N).
        kept: (M, N), which images each model was trained on.
        losses: (M, Q) of the queries.

    Returns:
        (Q,) Spearman's rank correlations of predicted and negative measured losses, from -1 to 1.
    """
    predicted = scores @ kept.T.astype(scores.dtype)  # (Q, M)
    return np.array([spearmanr(predicted[q], -losses[:, q]).statistic for q in range(len(scores))])


def ceiling(one: Floats, other: Floats) -> Floats:
    """What LDS could reach: the rank correlation of two seeds' losses (M, Q) of the same subsets, for each query."""
    return np.array([spearmanr(one[:, q], other[:, q]).statistic for q in range(one.shape[1])])


def equivalent_random(change: float, counts: Sequence[int], changes: Floats) -> float:
    """How many random images would have to be removed for the same change of loss (Section 5.1 of the paper).

    Args:
        change: of a query's loss when a method's top images were removed.
        counts: of random images removed, rising.
        changes: mean change of loss at each count; made monotone by its running maximum first.

    Returns:
        A number between the first and the last count, by linear interpolation; the last where even that is not enough.
    """
    rising = np.maximum.accumulate(np.asarray(changes, np.float64))
    return float(np.interp(change, rising, np.asarray(counts, np.float64)))


def ranks_of(ranking: Rows, relevant: Rows) -> NDArray[np.int64]:
    """Ranks from 1 of the relevant images, in their order (R,); 0 of one that is not ranked.

    Raises:
        ValueError: nothing is relevant.
    """
    if not len(relevant):
        raise ValueError("no image is relevant: recall and precision are not defined")
    places = {row: rank for rank, row in enumerate(ranking, start=1)}
    return np.array([places.get(row, 0) for row in relevant])


def recall_at(ranks: NDArray[np.integer], k: int) -> float:
    """Recall@K: the share of the relevant images, whose `ranks_of` these are, that are among the first K."""
    return float(((ranks >= 1) & (ranks <= k)).mean())


def average_precision(ranks: NDArray[np.integer]) -> float:
    """Mean of the precisions at the `ranks_of` the relevant images; one that is not ranked counts as 0."""
    found = np.sort(ranks[ranks >= 1])
    return float((np.arange(1, len(found) + 1) / found).sum() / len(ranks))


def overlap_at(one: Rows, other: Rows, k: int) -> float:
    """Share of the first K of one ranking that are among the first K of another."""
    return len(set(one[:k]) & set(other[:k])) / k
