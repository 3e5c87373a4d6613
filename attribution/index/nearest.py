"""A search of the images whose vectors are nearest, by looking at the nearest lists alone; see `index.lists`."""

import logging
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from attribution.errors import IndexMismatch
from attribution.files import let_go
from attribution.index.found import stale
from attribution.index.index import Index
from attribution.index.listed import read_lists, read_rows
from attribution.index.lists import Floats, ListRecord, Rows, unit
from attribution.index.stored import open_array

LOG = logging.getLogger(__name__)


@dataclass(frozen=True)
class Lists:
    """An index's vectors, list by list.

    Attributes:
        made: how they were put into lists.
        file: that tells which list holds whom.
        centres: (L, D) of the lists.
        ends: (L,) one past the last place of each list.
        vectors: (N, views, D), memory-mapped.
    """

    made: ListRecord
    file: Path
    centres: Floats
    ends: NDArray[np.int64]
    vectors: Floats

    def near(self, wanted: Floats) -> Iterator[tuple[Rows, Floats]]:
        """The images in the lists that are nearest to a vector (D,): rows (n,), and their vectors (n, views, D).

        Raises:
            IndexMismatch: what lists hold is damaged.
        """
        closest = np.argsort(-(self.centres @ unit(wanted)), kind="stable")[: self.made.near]
        for number in closest.tolist():
            places = range(int(self.ends[number - 1]) if number else 0, int(self.ends[number]))
            rows = read_rows(self.file, places)
            if len(rows) != len(places) or not ((rows >= 0) & (rows < len(self.vectors))).all():
                raise IndexMismatch(
                    f"{self.file} is damaged; delete it and run the index command with --approximate again"
                )
            if len(rows):
                yield rows, np.array(self.vectors[places.start : places.stop])
                let_go(self.vectors)


def lists_of(index: Index, name: str) -> Lists | None:
    """The lists of a feature's vectors; None where the index holds none that are of its vectors as they are now.

    Raises:
        IndexMismatch: they are missing, truncated or damaged.
    """
    step, lists = f"listed/{name}", f"lists/{name}.safetensors"
    if not index.manifest.finished(step):
        return None
    if stale(index.manifest, step):
        LOG.warning(
            "%s: the lists of %s are of other vectors than the index holds now, so all images are compared; run the"
            " index command with --approximate %s again",
            index.path,
            name,
            name,
        )
        return None
    made, shape, file = index.manifest.made(step, ListRecord), index.array(f"features/{name}").shape, index.file(lists)
    centres, ends = read_lists(file)
    if centres.shape != (made.made, shape[2]) or ends.shape != (made.made,) or ends[-1] != shape[0]:
        raise IndexMismatch(f"{file} is damaged; delete it and run the index command with --approximate again")
    return Lists(made, file, centres, ends, open_array(index.file(f"{step}.npy"), shape))
