"""An imagefolder, read as diffusers' `train_text_to_image.py` reads it: all that is in it is one training set.

The script loads `data_files={"train": DIR/**}`: no word in a file's or folder's name makes a split of it, and files and
folders whose names begin with a dot (folders: also with two underscores) are passed over. Metadata are read here row by
row, rather than by `datasets`, so that one row does not spoil the others, and words such as None, NA or 2024-01-01 in
a table stay the text that they are.
"""

import csv
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet as parquet
from PIL import Image

from attribution.errors import InputError, reason
from attribution.index.rows import Rows, listed

METADATA = ("metadata.csv", "metadata.jsonl", "metadata.parquet")
HELP = (
    "captions may also stand in a .txt beside each image, in a file of COCO's kind that --captions_file names, or be"
    " one for all, by --instance_prompt"
)
Row = tuple[dict[str, Any], str]  # its cells, and what is wrong with it


def read_folder(folder: Path, files: list[Path], image_column: str, caption_column: str) -> Rows:
    """The rows of all metadata files among the files of a folder, in the order of their paths.

    Raises:
        InputError: there are no metadata, or they lack a column.
    """
    tables = [path for path in files if path.name in METADATA]
    _refuse_others(folder, files, tables, caption_column)
    rows = [
        (f"{table.relative_to(folder)}, row {number}", table.parent, row)
        for table in tables
        for number, row in enumerate(_read(table), start=1)
    ]
    _require_columns(folder, [cells for _, _, (cells, fault) in rows if not fault], image_column, caption_column)
    return _rows(folder, files, rows, image_column, caption_column)


def files_of(folder: Path) -> list[Path]:
    """What `DIR/**` holds for `datasets`, in the order of paths.

    Raises:
        InputError: there is no such folder.
    """
    if not folder.is_dir():
        raise InputError(f"the training data {str(folder)!r} could not be read: there is no such folder")
    return list(_walk(folder))


def _walk(folder: Path) -> Iterator[Path]:
    for parent, folders, names in os.walk(folder):
        folders[:] = sorted(name for name in folders if not name.startswith((".", "__")))
        yield from (Path(parent, name) for name in sorted(names) if not name.startswith("."))


def _refuse_others(folder: Path, files: list[Path], tables: list[Path], caption_column: str) -> None:
    kinds = sorted({path.name for path in tables})
    if not tables:
        raise InputError(
            f"the training data {str(folder)!r} could not be read: there is no metadata.jsonl with a file_name and"
            f" a {caption_column} for each image{_labels(folder, files)}; {HELP}"
        )
    if len(kinds) > 1:
        raise InputError(
            f"{str(folder)!r} has metadata of several kinds, {' and '.join(kinds)}; accepted is one of them"
        )
    if archives := [path.name for path in files if path.suffix.lower() == ".zip"]:
        raise InputError(f"{str(folder)!r} has the archives {listed(archives)}, which are not read here; unpack them")


def _labels(folder: Path, files: list[Path]) -> str:
    """That the names of folders, which `datasets` takes for labels, are no captions."""
    names = sorted({path.relative_to(folder).parts[0] for path in pictures_of(files) if path.parent != folder})
    return f", and the names of its folders ({listed(names)}) are no captions" if names else ""


def _read(table: Path) -> Iterator[Row]:
    """The rows of a metadata file.

    Raises:
        InputError: it cannot be read.
    """
    readers = {".jsonl": _read_jsonl, ".csv": _read_csv, ".parquet": _read_parquet}
    try:
        yield from readers[table.suffix](table)
    except (OSError, ValueError, csv.Error, pyarrow.ArrowException) as error:
        raise InputError(f"{table} could not be read ({reason(error)})") from error


def _read_jsonl(table: Path) -> Iterator[Row]:
    for line in table.read_text(encoding="utf-8-sig").split("\n"):
        if not line.strip():
            continue
        try:
            cells = json.loads(line)
        except ValueError as error:
            yield {}, f"its line is not JSON: {error}"
        else:
            yield (cells, "") if isinstance(cells, dict) else ({}, "its line is not a JSON object")


def _read_csv(table: Path) -> Iterator[Row]:
    """Cells as the text that they are; an empty one is missing, as it is for pandas."""
    with table.open(encoding="utf-8-sig", newline="") as file:
        for cells in csv.DictReader(file):
            if cells.pop(None, None):
                yield cells, "it has more cells than the table has columns: put a text with commas in quotes"
            else:
                yield {key: text or None for key, text in cells.items()}, ""


def _read_parquet(table: Path) -> Iterator[Row]:
    for cells in parquet.read_table(table).to_pylist():
        yield cells, ""


def _require_columns(folder: Path, rows: list[dict[str, Any]], image_column: str, caption_column: str) -> None:
    keys = list(dict.fromkeys(key for row in rows for key in row))
    columns = ["image" if key == "file_name" else key.removesuffix("_file_name") for key in keys]
    for column in (image_column, caption_column):
        if rows and column not in columns:
            raise InputError(
                f"{str(folder)!r} has no column {column!r}; its columns are {', '.join(columns)}; name those of images"
                " and captions with --image_column and --caption_column"
            )


def _rows(
    folder: Path, files: list[Path], rows: list[tuple[str, Path, Row]], image_column: str, caption_column: str
) -> Rows:
    key = "file_name" if image_column == "image" else f"{image_column}_file_name"
    names, captions, images, faults = [], [], [], {}
    for place, (where, parent, (cells, fault)) in enumerate(rows):
        path, misnamed = inside(parent, cells.get(key))
        if fault or misnamed:
            faults[place] = fault or misnamed
        names.append(os.path.relpath(path, folder).replace(os.sep, "/") if path else where)
        captions.append(cells.get(caption_column))
        images.append({"bytes": None, "path": path and str(path)})
    told = "left out, as by diffusers' script, are the images of {} that no metadata file names"
    return Rows(names, captions, images, faults, left_out(told, folder, files, names))


def inside(parent: Path, name: Any) -> tuple[Path | None, str]:
    """A row's image, and what is wrong with its name; `datasets` too refuses one outside the metadata's folder."""
    if not isinstance(name, str) or not name:
        return None, "it names no image file"
    path = os.path.normpath(name.replace("\\", "/"))
    if Path(path).is_absolute() or path.split("/")[0] == ".." or "://" in name:
        return None, f"{name!r} is not a path inside the folder of its metadata"
    return parent / path, ""


def pictures_of(files: list[Path]) -> list[Path]:
    """Those files that are pictures, by the endings of their names."""
    Image.init()
    return [path for path in files if path.suffix.lower() in Image.EXTENSION]


def left_out(told: str, folder: Path, files: list[Path], names: list[str]) -> tuple[str, ...]:
    """A sentence on the pictures among `files` that are not among `names`, if there are any."""
    pictures = {path.relative_to(folder).as_posix() for path in pictures_of(files)}
    without = sorted(pictures - set(names))
    return (f"{told.format(repr(str(folder)))} ({len(without):,}): {listed(without)}",) if without else ()
