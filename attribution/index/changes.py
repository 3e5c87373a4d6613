"""How a training set differs from the one that an index was built from: rows are compared by picture and captions."""

from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from attribution.index.data import TrainingSet
from attribution.index.manifest import Manifest
from attribution.index.texts import read_digests, read_ids


@dataclass(frozen=True)
class Changes:
    """What came, what went and what stayed.

    Attributes:
        before: how many images the index was built from.
        places: (N,) int64, of each image of the training set: its row in the index, if that has one like it; else ~k,
            which is negative, of the k-th that it has not.
        added: how many images came, of which `changed` have an id that the index has, too.
        gone: how many went, `changed` among them.
        changed: images of which the picture or captions changed.
    """

    before: int
    places: NDArray[np.int64]
    added: int
    gone: int
    changed: int

    @property
    def new(self) -> list[int]:
        """The rows of the training set that the index has nothing of."""
        rows: list[int] = np.flatnonzero(self.places < 0).tolist()
        return rows

    @property
    def any_kept(self) -> bool:
        """Whether the index has any of the images."""
        return bool((self.places >= 0).any())

    def told(self) -> str:
        """The changes in words."""
        new, changed, gone = self.added - self.changed, self.changed, self.gone - self.changed
        counts = f"{new:,} new, {changed:,} changed and {gone:,} gone"
        told = counts if self.added or self.gone else "the same ones, in another order or by other names"
        return f"{self.before:,} then, {len(self.places):,} now ({told})"


def compared(out: Path, held: Manifest, training: TrainingSet) -> Changes | None:
    """How a training set differs from the one that an index was built from.

    Args:
        out: the index's folder.
        held: its manifest.
        training: looked at.

    Returns:
        None where it has no hashes of single images: an earlier version built it, or it is hardly begun.

    Raises:
        IndexMismatch: the hashes are missing or damaged.
    """
    files, now = out / held.folder, training.digests()
    before = read_digests(files) if held.finished("captions") else None
    if before is None:
        return None
    known = {digest: row for row, digest in enumerate(before)}
    places = np.array([known.get(digest, -1) for digest in now], np.int64)
    new = np.flatnonzero(places < 0)
    places[new] = ~np.arange(len(new))
    came, went = Counter(now), Counter(before)
    ids = {each for each, digest in zip(read_ids(files), before, strict=True) if digest not in came}
    changed = sum(training.ids[row] in ids for row in new.tolist())
    return Changes(len(before), places, (came - went).total(), (went - came).total(), changed)
