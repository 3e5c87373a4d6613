"""Ids and captions by their position: a table on disk, memory-mapped, of which only what is asked for is read."""

import io
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, overload

import numpy as np
import pyarrow
import pyarrow.parquet as parquet

from attribution.batches import batches
from attribution.errors import IndexMismatch

CAPTIONS, EARLIER = "captions.arrow", "captions.parquet"  # what is written, and what earlier versions wrote
COLUMNS = ("id", "caption")
BATCH = 1 << 16  # rows of a batch of the table
LOOKED_AT = 1 << 16  # captions, at most, that are read where any would do, however many there are


class Texts(Sequence[str]):
    """A column of texts; each batch of rows is checked when it is first read, as the bytes may have changed."""

    def __init__(self, path: Path, column: pyarrow.ChunkedArray) -> None:
        self.path, self._chunks = path, column.chunks
        self._starts = np.cumsum([0, *map(len, self._chunks)])
        self._checked: set[int] = set()

    def __len__(self) -> int:
        return int(self._starts[-1])

    @overload
    def __getitem__(self, row: int) -> str: ...
    @overload
    def __getitem__(self, row: slice) -> list[str]: ...
    def __getitem__(self, row: int | slice) -> str | list[str]:
        if isinstance(row, slice):
            first, end, step = row.indices(len(self))
            return list(self._between(first, end)) if step == 1 else [self[each] for each in range(first, end, step)]
        row = range(len(self))[row]  # from the end, where it is negative; an IndexError where there is none
        number = int(np.searchsorted(self._starts, row, "right")) - 1
        text: str = self._chunk(number)[row - int(self._starts[number])].as_py()
        return text

    def __eq__(self, other: object) -> bool:
        """Whether it holds the same texts as another sequence of them."""
        return isinstance(other, Sequence) and len(self) == len(other) and list(self) == list(other)

    __hash__ = None  # type: ignore[assignment]

    def __iter__(self) -> Iterator[str]:
        return self._between(0, len(self))

    def _between(self, first: int, end: int) -> Iterator[str]:
        for number, start in enumerate(self._starts[:-1].tolist()):
            if start < end and self._starts[number + 1] > first:
                inside = max(0, first - start)
                yield from self._chunk(number).slice(inside, end - start - inside).to_pylist()

    def _chunk(self, number: int) -> Any:
        chunk = self._chunks[number]
        if number not in self._checked:
            try:
                chunk.validate(full=True)
            except pyarrow.ArrowException as error:
                raise IndexMismatch(f"{self.path} is damaged ({error}); build the index anew") from error
            self._checked.add(number)
        return chunk


def packed_texts(ids: Sequence[str], captions: Sequence[str]) -> bytes:
    """What the file holds of ids and captions."""
    schema, packed = pyarrow.schema([(name, pyarrow.string()) for name in COLUMNS]), io.BytesIO()
    with pyarrow.ipc.new_file(packed, schema) as file:
        for rows in batches(len(ids), BATCH):
            parts = [list(texts[rows.start : rows.stop]) for texts in (ids, captions)]
            file.write_batch(pyarrow.record_batch(parts, schema))
    return packed.getvalue()


def open_texts(folder: Path, count: int) -> tuple[Texts, Texts]:
    """Ids and captions of an index, as many as there should be.

    Raises:
        IndexMismatch: they are missing or damaged, or others than so many.
    """
    path = folder / CAPTIONS
    if not path.is_file() and (folder / EARLIER).is_file():
        path = folder / EARLIER
    try:
        table = _read(path).select(COLUMNS)
    except (OSError, KeyError, pyarrow.ArrowException) as error:
        raise IndexMismatch(f"{path} is missing or truncated; build the index anew") from error
    if len(table) != count:
        raise IndexMismatch(f"{path} has {len(table)} rows, the manifest says {count}; build the index anew")
    ids, captions = (Texts(path, table[name]) for name in COLUMNS)
    return ids, captions


def _read(path: Path) -> pyarrow.Table:
    """The table, of which an arrow file stays on disk."""
    if path.name == EARLIER:
        return parquet.read_table(path, columns=list(COLUMNS))
    with pyarrow.memory_map(str(path)) as file:
        return pyarrow.ipc.open_file(file).read_all()
