"""A data set of the hub, or a local folder of tables: the rows of its split "train", as `datasets` reads them."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow.compute

from attribution.errors import InputError, reason
from attribution.index.rows import Rows


class _Column(Sequence[Any]):
    """The images of a table of `datasets`, as they are stored; a relative path is looked for in `beside`."""

    def __init__(self, table: Any, column: str, beside: str) -> None:
        self.table, self.column, self.beside = table, column, beside

    def __len__(self) -> int:
        return len(self.table)

    def __getitem__(self, row: Any) -> Any:
        stored = self.table[int(row)][self.column]
        if stored and stored["bytes"] is None and stored["path"] and not Path(stored["path"]).exists():
            return {**stored, "path": os.path.join(self.beside, stored["path"])}
        return stored


def read_table(where: str, image_column: str, caption_column: str) -> Rows:
    """The rows of the split "train", the one that diffusers' script trains on.

    Args:
        where: a hub id, or a local folder.
        image_column: of images, bytes or paths.
        caption_column: of captions.

    Raises:
        InputError: it cannot be read, or lacks a column, or the images' column holds something else.
    """
    table = _load(where)
    for column in (image_column, caption_column):
        if column not in table.column_names:
            raise InputError(f"{where!r} has no column {column!r}; its columns are {', '.join(table.column_names)}")
    captions = table.select_columns(caption_column)[:][caption_column]
    images = _images(table, where, image_column)
    paths = pyarrow.compute.struct_field(images.data.column(image_column), "path").to_pylist()
    names = [path or str(row) for row, path in enumerate(paths)]
    return Rows(names, captions, _Column(images, image_column, where), notes=_other_splits(where, table))


def _load(where: str) -> Any:
    import datasets  # takes seconds, and imagefolders do without

    try:
        config = datasets.load_dataset_builder(where).config
        text = {"keep_default_na": False, "na_values": [""]} if hasattr(config, "keep_default_na") else {}
        return datasets.load_dataset(where, split="train", **text)  # words such as None stay text in a CSV
    except Exception as error:  # datasets raises many kinds
        raise InputError(f"the training data {where!r} could not be read ({_cause(error)})") from error


def _images(table: Any, where: str, column: str) -> Any:
    import datasets

    try:
        return table.select_columns(column).cast_column(column, datasets.Image(decode=False))
    except Exception as error:  # those of pyarrow and datasets
        raise InputError(f"the column {column!r} of {where!r} holds no images ({_cause(error)})") from error


def _cause(error: BaseException) -> str:
    """What an error says that was raised from others: the first of them."""
    while error.__cause__ is not None:
        error = error.__cause__
    return reason(error)  # type: ignore[arg-type]


def _other_splits(where: str, table: Any) -> tuple[str, ...]:
    others = [
        f"{name} ({split.num_examples:,})" for name, split in (table.info.splits or {}).items() if name != "train"
    ]
    if not others:
        return ()
    return (f"of {where!r} the split train is read, as diffusers' script does; left out: {', '.join(others)}",)
