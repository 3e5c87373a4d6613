"""What an answer says of how its training images were found, and of how many it may have missed."""

from dataclasses import dataclass
from typing import Literal

from scipy.stats import beta

SURE = 0.95  # one-sided, of the bound on what was left out


@dataclass(frozen=True)
class Searched:
    """How a training set was searched.

    Attributes:
        how: all images on all noises; all on few, and the better part on more; candidates in the same way; or, by
            methods that compare vectors, the images in the lists that are nearest.
        images: of the training set.
        top_k: how many were looked for.
        source: the method, or methods, that the candidates are the first of; "" where everyone is one.
        pool: how many candidates it gave.
        sampled: images by chance from outside of these, that took part too.
        entered: how many of them are among the first K.
        lacking: the index holds no projected gradients to choose candidates with.
        estimate: rows of the training set that a first estimate named, best first, before any training loss was
            measured; none where there was no such estimate, and in runs older than that.
        looked_at: images in the nearest lists.
        measured: what such a search is worth, in words.
    """

    how: Literal["exhaustive", "halving", "candidates", "approximate"]
    images: int
    top_k: int
    source: str = ""
    pool: int = 0
    sampled: int = 0
    entered: int = 0
    lacking: bool = False
    estimate: tuple[int, ...] = ()
    looked_at: int = 0
    measured: str = ""

    @property
    def outside(self) -> int:
        """Images outside the pool."""
        return self.images - self.pool if self.how == "candidates" else 0

    @property
    def missed(self) -> float | None:
        """The share of the images outside the pool that may belong to the first K, an upper bound; None if unknown."""
        if self.how == "approximate":
            return None
        if not self.outside:
            return 0.0
        if self.entered >= self.sampled:
            return 1.0 if self.sampled else None
        return float(beta.ppf(SURE, self.entered + 1, self.sampled - self.entered))  # Clopper and Pearson 1934

    @property
    def sentence(self) -> str:
        """All of it, in one or two whole sentences."""
        if self.how == "exhaustive":
            return "All training images were scored on all noises."
        if self.how == "approximate":
            return (
                f"An approximate search: {self.looked_at:,} of {self.images:,} training images were compared, those in"
                f" the lists whose vectors are nearest; {self.measured}."
            )
        if self.how == "halving":
            why = ", because the index holds no projected gradients to choose candidates with" if self.lacking else ""
            return f"All training images were looked at, and the better part of them again and again{why}."
        if not self.outside:
            return f"All {self.images:,} training images were candidates."
        rank = "rank" if " and " in self.source else "ranks"
        chosen = f"The {self.pool:,} of {self.images:,} training images that {self.source} {rank} first were searched."
        return f"{chosen} {self._left_out}".strip()

    @property
    def _left_out(self) -> str:
        if self.missed is None:
            return ""
        came = f"{self.entered:,} came" if self.entered else "none came"
        return (
            f"Of {self.sampled:,} others, taken by chance, {came} among the first {self.top_k:,}: with {SURE:.0%}"
            f" confidence, at most {self.missed:.1%} of those left out belong there."
        )
