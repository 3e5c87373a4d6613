"""What was estimated from all rows of a training set, and kept when that was changed: what is known of it."""

from dataclasses import dataclass, replace


@dataclass(frozen=True)
class EarlierRecord:
    """The training set that something was estimated from, and how much was changed since, over all changes.

    Attributes:
        count: how many images it had.
        sha256: its hash.
        added: images that came since; one whose picture or captions changed is among these and among the next.
        gone: images that are no longer in the training set.
    """

    count: int
    sha256: str
    added: int = 0
    gone: int = 0

    @property
    def share(self) -> float:
        """How much was changed, of the images that there were; at most, as one that came and went counts twice."""
        return (self.added + self.gone) / self.count

    def after(self, added: int, gone: int) -> "EarlierRecord":
        """The same after one more change."""
        return replace(self, added=self.added + added, gone=self.gone + gone)
