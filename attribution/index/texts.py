"""Ids and captions by their position: a table on disk, memory-mapped, of which only what is asked for is read."""

import io
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, overload

import numpy as np
import pyarrow
import pyarrow.parquet as parquet

from attribution.batches import batches
from attribution.errors import IndexMismatch

CAPTIONS, EARLIER = "captions.arrow", "captions.parquet"  # what is written, and what earlier versions wrote
COLUMNS = ("id", "caption")
ALL_CAPTIONS = "captions"  # a column, where any image has several; "caption" is the first
DIGEST = "sha256"  # a column: of each row's picture and captions; earlier versions wrote none
BATCH = 1 << 16  # rows of a batch of the table
LOOKED_AT = 1 << 16  # captions, at most, that are read where any would do, however many there are


class _Column:
    """A column of a table; each batch of rows is checked when it is first read, as the bytes may have changed."""

    def __init__(self, path: Path, column: pyarrow.ChunkedArray) -> None:
        self.path, self._chunks = path, column.chunks
        self._starts = np.cumsum([0, *map(len, self._chunks)])
        self._checked: set[int] = set()

    def at(self, row: int) -> Any:
        """What a row holds."""
        number = int(np.searchsorted(self._starts, row, "right")) - 1
        return self._chunk(number)[row - int(self._starts[number])].as_py()

    def between(self, first: int, end: int) -> Iterator[Any]:
        """What some rows hold."""
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


class Texts(_Column, Sequence[str]):
    """A text for each row."""

    def __len__(self) -> int:
        return int(self._starts[-1])

    @overload
    def __getitem__(self, row: int) -> str: ...
    @overload
    def __getitem__(self, row: slice) -> list[str]: ...
    def __getitem__(self, row: int | slice) -> str | list[str]:
        if isinstance(row, slice):
            first, end, step = row.indices(len(self))
            return list(self.between(first, end)) if step == 1 else [self[each] for each in range(first, end, step)]
        row = range(len(self))[row]  # from the end, where it is negative; an IndexError where there is none
        text: str = self.at(row)
        return text

    def __eq__(self, other: object) -> bool:
        """Whether it holds the same texts as another sequence of them."""
        return isinstance(other, Sequence) and len(self) == len(other) and list(self) == list(other)

    __hash__ = None  # type: ignore[assignment]

    def __iter__(self) -> Iterator[str]:
        return self.between(0, len(self))


class Several(_Column, Mapping[int, tuple[str, ...]]):
    """By row, all captions of the images that have several."""

    def __getitem__(self, row: int) -> tuple[str, ...]:
        if not 0 <= row < self._starts[-1] or (found := self.at(row)) is None:
            raise KeyError(row)
        return tuple(found)

    def __iter__(self) -> Iterator[int]:
        return (row for row, found in enumerate(self.between(0, int(self._starts[-1]))) if found is not None)

    def __len__(self) -> int:
        missing: int = sum(chunk.null_count for chunk in self._chunks)
        return int(self._starts[-1]) - missing


def packed_texts(
    ids: Sequence[str],
    captions: Sequence[str],
    several: Mapping[int, tuple[str, ...]],
    digests: Sequence[bytes] = (),
) -> bytes:
    """What the file holds of ids, captions, all captions of the images that have several, by row, and hashes."""
    fields, packed = [(name, pyarrow.string()) for name in COLUMNS], io.BytesIO()
    fields += [(ALL_CAPTIONS, pyarrow.list_(pyarrow.string()))] if several else []
    fields += [(DIGEST, pyarrow.binary(32))] if digests else []
    schema = pyarrow.schema(fields)
    with pyarrow.ipc.new_file(packed, schema) as file:
        for rows in batches(len(ids), BATCH):
            parts: list[list[Any]] = [list(texts[rows.start : rows.stop]) for texts in (ids, captions)]
            if several:
                parts.append([several.get(row) for row in rows])
            if digests:
                parts.append(list(digests[rows.start : rows.stop]))
            file.write_batch(pyarrow.record_batch([*map(pyarrow.array, parts, schema.types)], schema))
    return packed.getvalue()


def open_texts(folder: Path, count: int) -> tuple[Texts, Texts]:
    """Ids and captions of an index, as many as there should be.

    Raises:
        IndexMismatch: they are missing or damaged, or others than so many.
    """
    path, table = _open(folder)
    if len(table) != count:
        raise IndexMismatch(f"{path} has {len(table)} rows, the manifest says {count}; build the index anew")
    ids, captions = (Texts(path, table[name]) for name in COLUMNS)
    return ids, captions


def open_several(folder: Path) -> Mapping[int, tuple[str, ...]]:
    """By row, all captions of the images that have several.

    Raises:
        IndexMismatch: they are missing or damaged.
    """
    path, table = _open(folder)
    return Several(path, table[ALL_CAPTIONS]) if ALL_CAPTIONS in table.column_names else {}


def read_digests(folder: Path) -> list[bytes] | None:
    """The hashes of all rows' pictures and captions; None where an earlier version wrote none.

    Raises:
        IndexMismatch: they are missing or damaged.
    """
    _, table = _open(folder)
    digests: list[bytes] | None = table[DIGEST].to_pylist() if DIGEST in table.column_names else None
    return digests


def read_ids(folder: Path) -> list[str]:
    """All ids; raises what `read_digests` does."""
    ids: list[str] = _open(folder)[1]["id"].to_pylist()
    return ids


def _open(folder: Path) -> tuple[Path, pyarrow.Table]:
    """The table and its file; an arrow file stays on disk."""
    path = folder / CAPTIONS
    if not path.is_file() and (folder / EARLIER).is_file():
        path = folder / EARLIER
    try:
        if path.name == EARLIER:
            table = parquet.read_table(path)
        else:
            with pyarrow.memory_map(str(path)) as file:
                table = pyarrow.ipc.open_file(file).read_all()
        table.select(COLUMNS)
    except (OSError, KeyError, pyarrow.ArrowException) as error:
        raise IndexMismatch(f"{path} is missing or truncated; build the index anew") from error
    return path, table
