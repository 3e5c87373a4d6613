"""Which K candidates score highest, found with as few predictions as that takes (best-arm identification).

Every candidate is looked at once. Then noises are added where they decide: to those candidates whose intervals reach
farthest across the boundary between the K-th and the next (after UGapE, Gabillon et al. 2012). A candidate whose
interval lies below the boundary is left alone. It ends when no interval crosses it, or the budget is spent; the first
K are then given the rest of the bank, so that their scores are the exhaustive ones.

An interval is of a candidate's score on the whole bank: it closes as the bank is used up. Candidates that were seen
with different noises are compared by how far they are above the yardsticks, some images that are seen with all of them:
what a noise does to every image is no difference between two.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from statistics import NormalDist
from typing import Literal

import numpy as np
from numpy.typing import DTypeLike, NDArray

from attribution.diffusion.noise import spread
from attribution.unlearning.race import Standing
from attribution.unlearning.score import Floats, ScoreKind, Scores, changes, score

End = Literal["settled", "budget"]
Places = NDArray[np.intp]  # among the candidates
# (candidates, a view and a column of each) -> (which of them, their losses before unlearning, and after), call by call
Look = Callable[[Places, Places, Places], Iterator[tuple[slice, Floats, Floats]]]
PRIOR = 4.0  # degrees of freedom that all candidates' noise has in the estimate of one's own


@dataclass(frozen=True)
class BestSettings:
    """What is looked for, and when that ends.

    Attributes:
        top_k: how many.
        budget: losses that may be measured after unlearning.
        confidence: of each interval, two-sided.
        at_once: candidates that are looked at once more in a step.
    """

    top_k: int
    budget: int
    confidence: float = 0.95
    at_once: int = 64


def least(candidates: int, top_k: int, cells: int) -> int:
    """The smallest budget: one look at every candidate, and all cells (views x columns) for the first K."""
    return candidates + top_k * (cells - 1)


class Known:
    """What is known of n candidates' losses, cell by cell: a view at a column of the bank.

    Attributes:
        before: (n, views, S) losses under the pretrained weights, NaN where nobody looked.
        after: (n, views, S) after unlearning, likewise.
        cells: (n,) how many of `order` are known.
        order: (views x S, 2) view and column of each cell, spread over the schedule.
    """

    def __init__(
        self, candidates: int, views: int, columns: int, kind: ScoreKind, dtype: DTypeLike = np.float64
    ) -> None:
        self.before = np.full((candidates, views, columns), np.nan, dtype)
        self.after, self.kind = self.before.copy(), kind
        self.cells = np.zeros(candidates, int)
        self.order = np.array([(view, column) for column in spread(columns) for view in range(views)])

    @property
    def whole(self) -> NDArray[np.bool_]:
        """(n,) whether all cells of a candidate are known."""
        return np.asarray(self.cells == len(self.order))

    def put(self, places: Places, losses: tuple[Floats, Floats]) -> None:
        """Add all losses (m, views, S), before and after, of some candidates."""
        self.before[places], self.after[places] = losses
        self.cells[places] = len(self.order)

    def look(self, look: Look, places: Places) -> Iterator[int]:
        """Measure the next cell of some candidates, of one named twice the next two; yields how many, call by call."""
        further = np.array([np.sum(places[:i] == place) for i, place in enumerate(places)], int)
        views, columns = self.order[self.cells[places] + further].T
        for which, before, after in look(places, views, columns):
            at = (places[which], views[which], columns[which])
            self.before[at], self.after[at] = before, after
            np.add.at(self.cells, places[which], 1)
            yield len(after)

    def scores(self, places: Places) -> Scores:
        """Scores of candidates that are wholly known."""
        return score(self.before[places], self.after[places], self.kind)


@dataclass(frozen=True)
class Estimate:
    """What is thought of the candidates' scores on the whole bank.

    Attributes:
        value: (n,) the score's estimate.
        half: (n,) of its interval's width; 0 where the candidate is wholly known.
        flip: (n,) whether the mirror's is the larger so far.
    """

    value: Floats
    half: Floats
    flip: NDArray[np.bool_]

    @classmethod
    def of(cls, known: Known, yardsticks: Places, confidence: float) -> "Estimate":
        """From what is known; the yardsticks are wholly known.

        What is not known of a candidate is taken to be like what is, in each column at that column's scale: where the
        columns differ much, a few calm ones tell little of the whole bank, and the interval says so.
        """
        change = changes(known.before, known.after, known.kind).astype(np.float64)
        common = change[yardsticks].mean(0)  # (views, S): what a noise does to images by chance
        above = change - common
        scale, seen = _scales(above[known.whole]), np.isfinite(above)
        count, even = seen.sum(-1), above / scale  # (n, views), (n, views, S)
        mean = np.nansum(even, -1) / np.maximum(count, 1)
        squares, freedom = np.nansum((even - mean[..., None]) ** 2, (1, 2)), np.maximum(count - 1, 0).sum(1)
        noise = (PRIOR * _pooled(squares, freedom, even[yardsticks]) + squares) / (PRIOR + freedom)
        unseen = np.where(seen, 0.0, scale)
        rest, columns = unseen.sum(-1), above.shape[-1]
        guess = (np.nansum(above, -1) + mean * rest) / columns + common.mean(-1)
        variance = noise[:, None] * (rest**2 / np.maximum(count, 0.5) + (unseen**2).sum(-1)) / columns**2
        half = NormalDist().inv_cdf((1 + confidence) / 2) * np.sqrt(variance)
        value = guess.max(1)
        wide = np.maximum((guess + half).max(1) - value, value - (guess - half).max(1))
        any_seen = known.cells > 0
        return cls(np.where(any_seen, value, -np.inf), np.where(any_seen, wide, np.inf), guess.argmax(1) == 1)

    def best(self, count: int) -> Places:
        """The first few candidates, best first; ties go to the earlier."""
        return _first(-self.value, count)

    def boundary(self, top: Places) -> float:
        """Half-way between the last of the first K and the next; none where there is no next."""
        rest = np.delete(self.value, top)
        return float((self.value[top].min() + rest.max()) / 2) if len(rest) else -np.inf

    def across(self, top: Places) -> Floats:
        """(n,) how far each interval reaches across the boundary, from its own side; not positive where it does not."""
        boundary = self.boundary(top)
        reach = self.value + self.half - boundary
        reach[top] = boundary - (self.value[top] - self.half[top])
        return reach

    def take(self, places: Places) -> Scores:
        """As the scores of some candidates."""
        value, half = self.value[places], self.half[places]
        return Scores(value, value - half, value + half, self.flip[places])


def _scales(above: Floats) -> Floats:
    """How much each column tells two images apart, relative to the others: (S,) from images (n, views, S)."""
    sizes = np.sqrt((above**2).mean((1, 2), keepdims=True))
    scale: Floats = np.sqrt(((above / np.maximum(sizes, 1e-12)) ** 2).mean((0, 1)))
    return scale / scale.mean() if scale.min() > 0 else np.ones_like(scale)


def _pooled(squares: Floats, freedom: NDArray[np.integer], yardsticks: Floats) -> float:
    """The noise's variance over all candidates; of a bank of one column, the yardsticks' own."""
    total = freedom.sum()
    return float(squares.sum() / total) if total else float(np.var(yardsticks))


def _first(key: Floats, count: int) -> Places:
    """Places of the smallest keys, in order: only those are sorted."""
    count = min(count, len(key))
    limit = np.partition(key, count - 1)[count - 1] if count else -np.inf
    found = np.flatnonzero(key <= limit)
    return found[np.argsort(key[found], kind="stable")][:count]


class Search:
    """A search for the best candidates.

    Attributes:
        rows: of the training set, of each candidate.
        known: of their losses; the yardsticks' are put there first.
        yardsticks: which candidates those are.
        settings: when it ends.
        spent: losses measured.
        end: why it ended; None before.
    """

    def __init__(self, rows: Sequence[int], known: Known, yardsticks: Places, settings: BestSettings) -> None:
        self.rows, self.known, self.yardsticks, self.settings = np.asarray(rows), known, yardsticks, settings
        self.spent, self.end = 0, None  # type: int, End | None

    def run(self, look: Look) -> Iterator[Standing]:
        """Search; yields a standing after every call of the U-Net, and a last one, settled, of all wholly known."""
        yield from self._look(look, np.flatnonzero(self.known.cells == 0))
        top = self._best()
        while len(places := self._undecided()):
            yield from self._look(look, places)
            if self._missing(best := self._best()) <= self.settings.budget - self.spent:
                top = best
        yield from self._look(look, np.repeat(top, self._unknown[top]))
        yield self._settled()

    @property
    def _unknown(self) -> Places:
        """(n,) cells of each candidate that are not known."""
        return np.asarray(len(self.known.order) - self.known.cells)

    def _missing(self, top: Places) -> int:
        return int(self._unknown[top].sum())

    def _estimate(self) -> Estimate:
        return Estimate.of(self.known, self.yardsticks, self.settings.confidence)

    def _best(self) -> Places:
        return self._estimate().best(self.settings.top_k)

    def _undecided(self) -> Places:
        """Whom to look at next, several times where they are few; nobody when the search is at its end."""
        estimate = self._estimate()
        top = estimate.best(self.settings.top_k)
        reach = np.where(self.known.whole, -np.inf, estimate.across(top))
        crossing = _first(-reach, int((reach > 0).sum()))
        left = self.settings.budget - self.spent - self._missing(top)
        if not len(crossing) or left < 1:
            self.end = "budget" if len(crossing) else "settled"
            return crossing[:0]
        return _in_turns(crossing, self._unknown, min(self.settings.at_once, left))

    def _look(self, look: Look, places: Places) -> Iterator[Standing]:
        for made in self.known.look(look, places):
            self.spent += made
            yield self._standing()

    def _standing(self) -> Standing:
        estimate = self._estimate()
        best = estimate.best(min(self.settings.top_k, int((self.known.cells > 0).sum())))
        rows = tuple(int(row) for row in self.rows[best])
        return Standing(rows, estimate.take(best), self.spent, self.settings.budget, False, False)

    def _settled(self) -> Standing:
        whole = np.flatnonzero(self.known.whole)
        scores = self.known.scores(whole)
        best = scores.best_first(self.rows[whole].tolist())
        both = np.stack([self.known.before[whole], self.known.after[whole]], 2)
        losses = both[best, scores.flip[best].astype(int)]
        rows = tuple(int(row) for row in self.rows[whole[best]])
        return Standing(rows, scores.take(best), self.spent, self.spent, True, True, losses)


def _in_turns(places: Places, unknown: Places, count: int) -> Places:
    """So many of some candidates, in turns, each as often as it has unknown cells."""
    turns = np.concatenate([places[unknown[places] > turn] for turn in range(int(unknown[places].max()))])
    return turns[:count]
