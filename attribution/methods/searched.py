"""What an answer says of how its training images were found, and of how many it may have missed."""

from dataclasses import dataclass
from typing import Literal

from scipy.stats import beta

from attribution.unlearning.best import End

SURE = 0.95  # one-sided, of the bound on what was left out


@dataclass(frozen=True)
class Searched:
    """How a training set was searched.

    Attributes:
        how: all images on all noises; all on few, and the better part on more; or candidates, which were looked at
            until the first K were clear.
        images: of the training set.
        top_k: how many were looked for.
        sources: the methods that the candidates are the first of; none where everyone is one.
        pool: how many candidates they gave.
        sampled: images by chance outside of these, which were scored too.
        entered: how many of them are among the first K.
        end: whether the first K were settled, or the budget was spent before.
        confidence: of the intervals that settled it.
        lacking: the index holds no projected gradients to choose candidates with.
    """

    how: Literal["exhaustive", "halving", "candidates"]
    images: int
    top_k: int
    sources: tuple[str, ...] = ()
    pool: int = 0
    sampled: int = 0
    entered: int = 0
    end: End | None = None
    confidence: float | None = None
    lacking: bool = False

    @property
    def outside(self) -> int:
        """Images outside the pool."""
        return self.images - self.pool if self.how == "candidates" else 0

    @property
    def missed(self) -> float | None:
        """The share of the images outside the pool that may belong to the first K, an upper bound; None if unknown."""
        if not self.outside:
            return 0.0
        if self.entered >= self.sampled:
            return 1.0 if self.sampled else None
        return float(beta.ppf(SURE, self.entered + 1, self.sampled - self.entered))  # Clopper and Pearson 1934

    @property
    def sentence(self) -> str:
        """All of it, in whole sentences."""
        if self.how == "exhaustive":
            return "All training images were scored on all noises."
        if self.how == "halving":
            why = ", because the index holds no projected gradients to choose candidates with" if self.lacking else ""
            return f"All training images were looked at, and the better part of them again and again{why}."
        return f"{self._chosen} {self._ended} {self._left_out}".strip()

    @property
    def _chosen(self) -> str:
        if not self.sources:
            return f"All {self.images:,} training images were candidates."
        return f"The candidates were {self.pool:,} of {self.images:,} training images, by {' and '.join(self.sources)}."

    @property
    def _ended(self) -> str:
        first = f"the first {self.top_k:,}" if self.top_k > 1 else "the first"
        if self.end == "settled":
            return f"It is settled which are {first} of them, by intervals of {self.confidence:.0%} confidence."
        return f"The budget was spent before it was settled which are {first} of them."

    @property
    def _left_out(self) -> str:
        if not self.outside or self.missed is None:
            return ""
        entered = f"{self.entered or 'none'} {'is' if self.entered == 1 else 'are'}"
        return (
            f"Of {self.sampled:,} training images by chance from outside of them, {entered} among the first"
            f" {self.top_k:,}: with {SURE:.0%} confidence at most {self.missed:.1%} of the {self.outside:,} outside"
            " belong there."
        )
