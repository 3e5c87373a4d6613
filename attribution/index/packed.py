"""Many small files as one: NAME.bin holds their bytes one after another; NAME.npy, (N,) int64, where each ends."""

import os
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from attribution.errors import IndexMismatch
from attribution.index.stored import ArrayFile, Block, open_array

ENDING = ".bin"


@dataclass(frozen=True)
class Packed:
    """N small files, memory-mapped: opening them takes as long however many there are.

    Attributes:
        path: of the file of their bytes.
        ends: (N,) int64, one past the last byte of each.
        content: all bytes.
    """

    path: Path
    ends: NDArray[Any]
    content: NDArray[np.uint8]

    @classmethod
    def open(cls, path: Path, count: int) -> "Packed":
        """Open what `PackedFile` wrote.

        Args:
            path: without its ending.
            count: how many small files there should be.

        Raises:
            IndexMismatch: it is missing or truncated, or of other than so many.
        """
        ends, there = open_array(path.with_suffix(".npy"), (count,)), path.with_suffix(ENDING)
        try:
            content = np.memmap(there, np.uint8, "r")
        except (OSError, ValueError) as error:
            raise IndexMismatch(f"{there} is missing or empty; run the same index command again") from error
        if len(content) != (whole := int(ends[-1])):
            raise IndexMismatch(
                f"{there} has {len(content):,} bytes where {whole:,} belong; delete it and run the same index command"
                " again"
            )
        return cls(there, ends, content)

    def __len__(self) -> int:
        return len(self.ends)

    def __getitem__(self, row: int) -> bytes:
        """The small file of a row.

        Raises:
            IndexMismatch: where it lies is damaged.
        """
        first, end = int(self.ends[row - 1]) if row else 0, int(self.ends[row])
        if not 0 <= first <= end <= len(self.content):
            raise IndexMismatch(
                f"{self.path.with_suffix('.npy')} is damaged at row {row}; delete it and build it again"
            )
        return self.content[first:end].tobytes()

    @property
    def bytes(self) -> int:
        """Of both files."""
        return self.content.nbytes + self.ends.nbytes


@dataclass
class PackedFile:
    """Small files that are put one after another into one; in order, as where one ends the next begins.

    Attributes:
        content: the file of bytes, open for writing.
        ends: the array of their ends, open for writing.
        rows: that are in it.
        size: bytes that they take.
    """

    content: BinaryIO
    ends: ArrayFile
    rows: int
    size: int
    done: None = None

    @classmethod
    def open(cls, path: Path, count: int, done: int) -> "PackedFile":
        """Open it for writing; what lies after the rows that are done is cut off.

        Args:
            path: without its ending.
            count: of small files, in the end.
            done: how many are kept of what is there.

        Raises:
            InputError: there is too little room on the disk.
            IndexMismatch: it is to be gone on with, but truncated.
            OSError: it cannot be written.
        """
        there, table = path.with_suffix(ENDING), path.with_suffix(".npy")
        if not done and path.is_dir():  # an earlier version had begun a folder of files
            shutil.rmtree(path)
        size = int(open_array(table, (count,))[done - 1]) if done else 0
        if done and there.stat().st_size < size:
            raise IndexMismatch(f"{there} is truncated; delete it and run the same index command again")
        ends = ArrayFile.open(table, (count,), count, np.int64, done > 0)
        content = there.open("r+b" if done else "wb")
        content.truncate(size)
        return cls(content, ends, done, size)

    def put(self, rows: range, block: Block) -> None:
        """Add those of some rows, which follow the rows that are done."""
        parts: Sequence[bytes] = block  # type: ignore[assignment]
        assert rows.start == self.rows
        self.content.seek(self.size)
        self.content.write(b"".join(parts))
        self.content.flush()
        os.fsync(self.content.fileno())
        ends = self.size + np.cumsum([len(part) for part in parts])
        self.ends.put(rows, ends)
        self.rows, self.size = rows.stop, int(ends[-1])

    def close(self) -> None:
        """Close both files."""
        self.content.close()
        self.ends.close()
