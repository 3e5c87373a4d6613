"""What `datasets` reads: a data set of the hub, a folder of tables or of WebDataset shards, one of `save_to_disk`."""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow.compute

from attribution.errors import InputError, reason
from attribution.index.rows import Rows, listed

SAVED = ("state.json", "dataset_dict.json")  # of one data set, and of several splits, by `save_to_disk`
ENDINGS = (".parquet", ".tar", ".arrow", ".csv", ".jsonl", ".json")  # kinds of files that hold tables


@dataclass(frozen=True)
class Table:
    """Which table is read.

    Attributes:
        where: a hub id, or a local folder.
        config: one of its configurations; None where there is only one.
        split: one of its splits, or a part of one, such as "train[:1000]".
        cache: the folder that `datasets` keeps its tables in; None is its own.
        files: which files of a local folder are read, as one split; none is those that `datasets` chooses.
    """

    where: str
    config: str | None = None
    split: str = "train"
    cache: Path | None = None
    files: tuple[str, ...] = ()


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


def is_saved(folder: Path) -> bool:
    """Whether `save_to_disk` wrote a folder."""
    return any((folder / name).is_file() for name in SAVED)


def read_table(asked: Table, image_column: str, caption_column: str) -> Rows:
    """The rows of a split; diffusers' script trains on "train".

    Args:
        asked: which table.
        image_column: of images, bytes or paths.
        caption_column: of captions.

    Raises:
        InputError: it cannot be read, or lacks a column, or the images' column holds something else.
    """
    where, (table, splits) = asked.where, _load(asked)
    for column in (image_column, caption_column):
        if column not in table.column_names:
            raise InputError(
                f"{where!r} has no column {column!r}; its columns are {', '.join(table.column_names)}; name those of"
                " images and captions with --image_column and --caption_column"
            )
    captions = table.select_columns(caption_column)[:][caption_column]
    images = _images(table, where, image_column)
    paths = pyarrow.compute.struct_field(images.data.column(image_column), "path").to_pylist()
    names = [path or str(row) for row, path in enumerate(paths)]
    return Rows(names, captions, _Column(images, image_column, where), notes=_other_splits(asked, splits))


def _load(asked: Table) -> tuple[Any, dict[str, int]]:
    """A split, and how many rows each split has, where that is known."""
    import datasets  # takes seconds, and imagefolders do without

    where, how = asked.where, {"name": asked.config, "cache_dir": asked.cache and str(asked.cache)}
    if asked.files:
        how["data_files"] = {"train": list(asked.files)}  # type: ignore[assignment]
    try:
        if is_saved(Path(where)):
            return _saved(asked, datasets.load_from_disk(where))
        config = datasets.load_dataset_builder(where, **how).config
        text = {"keep_default_na": False, "na_values": [""]} if hasattr(config, "keep_default_na") else {}
        table = datasets.load_dataset(where, split=asked.split, **how, **text)  # words such as None stay text in a CSV
        return table, {name: split.num_examples for name, split in (table.info.splits or {}).items()}
    except InputError:
        raise
    except Exception as error:  # datasets raises many kinds
        raise InputError(f"the training data {where!r} could not be read ({_cause(error)})") from error


def _saved(asked: Table, held: Any) -> tuple[Any, dict[str, int]]:
    """The split of a data set that `save_to_disk` wrote; one that was saved alone may have any name."""
    import datasets

    if isinstance(held, datasets.Dataset):
        if asked.split not in ("train", str(held.split)):
            raise InputError(f"{asked.where!r} was saved without splits; leave out --dataset_split {asked.split}")
        return held, {}
    if asked.split not in held:
        raise InputError(
            f"{asked.where!r} has no split {asked.split!r}; accepted for --dataset_split are {listed(list(held))}"
        )
    return held[asked.split], {name: len(split) for name, split in held.items()}


def _images(table: Any, where: str, column: str) -> Any:
    import datasets

    try:
        return table.select_columns(column).cast_column(column, datasets.Image(decode=False))
    except Exception as error:  # those of pyarrow and datasets
        raise InputError(f"the column {column!r} of {where!r} holds no images ({_cause(error)})") from error


def _cause(error: BaseException) -> str:
    """What an error says that was raised from others: the first of them; which flag mends it, where one does."""
    while error.__cause__ is not None:
        error = error.__cause__
    told = " ".join(str(error).split("\n"))
    if told.startswith("Config name is missing"):
        names = told.partition("configs: ")[2].partition("]")[0].strip("[")
        return f"it has several configurations; choose one with --dataset_config_name: {names}"
    return reason(error) + ("; choose one with --dataset_split" if told.startswith("Unknown split") else "")  # type: ignore[arg-type]


def _other_splits(asked: Table, splits: dict[str, int]) -> tuple[str, ...]:
    read = asked.split.partition("[")[0]
    others = [f"{name} ({count:,})" for name, count in splits.items() if name != read]
    if not others:
        return ()
    as_script = ", as diffusers' script does" if read == "train" else ""
    return (f"of {asked.where!r} the split {read} is read{as_script}; left out: {', '.join(others)}",)
