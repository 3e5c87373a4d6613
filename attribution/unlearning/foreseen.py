"""What a first-order method foresees of training losses, in the unit of what is measured of them.

Scores of a method such as `influence+` rank training images as changes of their losses do, but have no unit. They get
one from the images that it ranks first: there, what is foreseen is as large as what is measured, root mean squares of
both. A mean of the two is then no matter of the one's unit. As it needs a few losses only, at a single noise, a search
of candidates and one of all images have the same unit.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from attribution.unlearning.score import Floats, ScoreKind, Scores, Views, cells, changes_of

ANCHORS = 32  # images whose measured losses give the unit


@dataclass(frozen=True)
class Foreseen:
    """First-order scores of training images.

    Attributes:
        values: (N, views), higher is more influential.
        column: of the noise bank, whose losses give them a unit.
    """

    values: Floats
    column: int

    @cached_property
    def likely(self) -> NDArray[np.intp]:
        """(N,) the view of each image in which it is likely to score higher."""
        best: NDArray[np.intp] = self.values.argmax(1)
        return best

    @cached_property
    def anchors(self) -> NDArray[np.intp]:
        """The images that it ranks first."""
        return Scores.exact(self.values).first(ANCHORS)

    def changes(self, rows: Sequence[int], views: Views, before: Floats, after: Floats, kind: ScoreKind) -> Floats:
        """The changes of losses that are foreseen, (n, v), of some rows and views.

        Args:
            rows: of the training set.
            views: of all rows the same, or (n, v) of each its own.
            before: (N, views, S) losses.
            after: likewise, NaN where not measured yet: as long as none of the anchors was, nothing is foreseen.
            kind: of score.
        """
        own = self.values[self.anchors, self.likely[self.anchors]]
        at = self.anchors, self.likely[self.anchors], self.column
        measured = changes_of(before[at], after[at], kind)
        seen = np.isfinite(measured)
        length = float(np.linalg.norm(own[seen]))
        unit = float(np.linalg.norm(measured[seen])) / length if length else 0.0
        return np.asarray(unit * self.values[cells(rows, views)])
