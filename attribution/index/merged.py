"""Arrays and small files of a changed training set, from those of the rows that stayed and those of the new ones."""

from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from attribution.batches import batches
from attribution.files import let_go
from attribution.index.packed import Packed, PackedFile
from attribution.index.pictures import open_thumbnails
from attribution.index.stored import ArrayFile, open_array

AT_ONCE = 1 << 25  # bytes that are copied at once, about
FILES_AT_ONCE = 4096  # small files likewise


@dataclass(frozen=True)
class Merge:
    """Where rows come from.

    Attributes:
        old: the folder of the rows that there were.
        before: how many there were.
        added: the folder of those that are new.
        places: (N,) int64, of each row: its row in `old`, or ~row in `added`; see `Changes`.
    """

    old: Path
    before: int
    added: Path
    places: NDArray[np.int64]

    @property
    def new(self) -> int:
        """How many rows are new."""
        return int((self.places < 0).sum())

    def shape(self, name: str, axis: int) -> tuple[int, ...]:
        """The shape that an array will have; see `array`."""
        held = self._parts(name, axis)[0]
        return (*([len(self._parts(name, axis))] if axis else []), len(self.places), *held[-1].shape[1:])

    def array(self, path: Path, name: str, axis: int) -> Iterator[tuple[int, int]]:
        """Write an array.

        Args:
            path: of its file, without its ending.
            name: of the step that it is of.
            axis: that rows are along, 0 or 1.

        Yields:
            How many rows are written, and of how many, along both axes.

        Raises:
            IndexMismatch: an array is missing or truncated.
            InputError: there is too little room on the disk.
        """
        parts, count = self._parts(name, axis), len(self.places)
        first = parts[0][0]
        size = max(1, AT_ONCE // max(1, first[:1].nbytes))
        store = ArrayFile.open(
            path.with_suffix(".npy"), self.shape(name, axis), len(parts) * count, first.dtype.type, False
        )
        with closing(store):
            for number, (old, added) in enumerate(parts):
                for rows in batches(count, size):
                    here = range(number * count + rows.start, number * count + rows.stop)
                    store.put(here, _picked(old, added, self.places[rows.start : rows.stop]))
                    yield here.stop, len(parts) * count

    def _parts(self, name: str, axis: int) -> list[tuple[NDArray[np.floating], NDArray[np.floating]]]:
        """Of each part: rows that there were and those that are new; none of these have the former's first one."""
        old = _opened(self.old / f"{name}.npy", self.before, axis)
        added = _opened(self.added / f"{name}.npy", self.new, axis) if self.new else [each[:0] for each in old]
        width = added[0].shape[1]  # earlier versions stored mirrors in vain
        return [(each[:, :width], more) for each, more in zip(old, added, strict=True)]

    def files(self, path: Path, name: str) -> Iterator[tuple[int, int]]:
        """Write many small files as one; see `array`."""
        old: Callable[[int], bytes] = open_thumbnails(self.old / name, self.before).__getitem__
        added = Packed.open(self.added / name, self.new).__getitem__ if self.new else old
        store = PackedFile.open(path, len(self.places), 0)
        with closing(store):
            for rows in batches(len(self.places), FILES_AT_ONCE):
                where = self.places[rows.start : rows.stop].tolist()
                store.put(rows, [old(place) if place >= 0 else added(~place) for place in where])
                yield rows.stop, len(self.places)


def _opened(path: Path, count: int, axis: int) -> list[NDArray[np.floating]]:
    """The parts of an array along its first axis, or the one that it is."""
    array = open_array(path)
    array = open_array(path, (*array.shape[:axis], count, *array.shape[axis + 1 :]))  # refuses another count
    return list(array) if axis else [array]


def _picked(old: NDArray[np.floating], added: NDArray[np.floating], places: NDArray[np.int64]) -> NDArray[np.floating]:
    block = np.empty((len(places), *old.shape[1:]), old.dtype)
    stayed = places >= 0
    block[stayed] = old[places[stayed]]
    if not stayed.all():
        block[~stayed] = added[~places[~stayed]]
    let_go(old)
    return block
