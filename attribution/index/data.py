"""Training data: where images and captions come from, and how a picture becomes the model's input."""

import copy
import csv
import hashlib
import io
import json
import logging
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from PIL import Image

from attribution.diffusion.pictures import to_square
from attribution.errors import InputError, reason
from attribution.files import cache_folder, write_whole
from attribution.index.captions import has_texts, read_coco, read_prompted, read_texts
from attribution.index.folder import METADATA, files_of, pictures_of, read_folder
from attribution.index.known import inspect_new
from attribution.index.rows import (
    SHOWN,
    Chosen,
    Rows,
    Tell,
    check_captions,
    decode,
    inspect_images,
    listed,
    open_image,
    silent,
    unique_ids,
)
from attribution.index.table import ENDINGS, Table, is_saved, read_table
from attribution.index.typed import ADDED

LOG = logging.getLogger(__name__)
BAD_ROWS = "left-out.csv"  # in an index's folder, what was left out of it


@dataclass(frozen=True)
class DataSettings:
    """Where the training set is and how it is read; the names are those of diffusers' `train_text_to_image.py`.

    Attributes:
        dataset_name: a hub id for `datasets`, or a local folder that it reads.
        train_data_dir: a folder, instead of `dataset_name`: images with `metadata.jsonl`, or with a .txt beside each,
            or tables of `datasets`.
        image_column: column of the images.
        caption_column: column of the captions; losses are averaged over all that an image has.
        center_crop: crop the middle square; otherwise the picture is squeezed.
        random_flip: the model was trained with mirrored images, so each mirror is scored too.
        max_train_samples: only the first so many.
        skip_bad: leave out rows that cannot be used, rather than refuse the training set.
        dataset_config_name: the configuration of a data set that has several.
        dataset_split: the split that was trained on.
        cache_dir: where `datasets` keeps its tables.
        captions_file: a JSON file of COCO's kind with the captions of the images in `train_data_dir`.
        instance_prompt: the one caption of all images in `train_data_dir`, as for DreamBooth.
    """

    dataset_name: str | None = None
    train_data_dir: Path | None = None
    image_column: str = "image"
    caption_column: str = "text"
    center_crop: bool = True
    random_flip: bool = True
    max_train_samples: int | None = None
    skip_bad: bool = False
    dataset_config_name: str | None = field(default=None, metadata=ADDED)
    dataset_split: str = field(default="train", metadata=ADDED)
    cache_dir: Path | None = field(default=None, metadata=ADDED)
    captions_file: Path | None = field(default=None, metadata=ADDED)
    instance_prompt: str | None = field(default=None, metadata=ADDED)

    def anywhere(self) -> "DataSettings":
        """The same without the place of the data, which their hash tells apart better."""
        return replace(self, dataset_name=None, train_data_dir=None, captions_file=None, cache_dir=None)

    def of_pictures(self) -> "DataSettings":
        """How each picture is read, and nothing of which rows there are, which their hash tells, too."""
        return DataSettings(center_crop=self.center_crop, random_flip=self.random_flip)


class TrainingSet:
    """Ids, captions and images of N training pairs, images loaded one at a time.

    Attributes:
        ids: what a person would look an image up by; no two are the same.
        captions: one for each image, the first of several.
        several: by row, all captions of the images that have more than one.
        notes: sentences about what was left out.
        left_out: by the name of each image that cannot be used, why.
    """

    left_out: dict[str, str]

    def __init__(self, rows: Rows, captions: list[tuple[str, ...]], hashes: list[str], center_crop: bool) -> None:
        self.left_out = {}
        self.ids = unique_ids(rows.names)
        self.captions = [first for first, *_ in captions]
        self.several = {row: each for row, each in enumerate(captions) if len(each) > 1}
        self.notes = rows.notes
        self._images: Sequence[Any] = rows.images
        self._hashes, self._center_crop = hashes, center_crop

    def __len__(self) -> int:
        return len(self.ids)

    def image(self, row: int) -> Image.Image:
        """The image of a row, RGB, whole; see `attribution.diffusion.pictures.as_trained`.

        Raises:
            InputError: it cannot be read, or not any more; says which image it is.
        """
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # Pillow's, of large pictures and of damaged EXIF data
                return decode(open_image(self._images[row]))
        except Exception as error:  # Pillow raises a dozen kinds
            raise InputError(
                f"the training image {self.ids[row]} cannot be used ({reason(error)}); mend it or leave it out"
            ) from error

    def chosen(self, rows: Sequence[int]) -> "TrainingSet":
        """Some of the rows, by the same ids."""
        some = copy.copy(self)
        some.ids, some.captions = [self.ids[row] for row in rows], [self.captions[row] for row in rows]
        some.several = {new: self.several[old] for new, old in enumerate(rows) if old in self.several}
        some._images = Chosen(self._images, rows)
        some._hashes = [self._hashes[row] for row in rows if self._hashes]
        return some

    def digests(self) -> list[bytes]:
        """A hash of the picture and captions of each row, 32 bytes; zeros where the images were not looked at."""
        if not self._hashes:
            return [bytes(32)] * len(self)
        each = enumerate(zip(self._hashes, self.captions, strict=True))
        told = ([found, *self.several.get(row, (caption,))] for row, (found, caption) in each)
        return [hashlib.sha256(json.dumps(row).encode()).digest() for row in told]

    def stored(self, rows: Sequence[int]) -> Sequence[Any]:
        """Some images as they are stored: `{"bytes": ..., "path": ...}` of each, one of them given."""
        return Chosen(self._images, rows)

    def square(self, row: int, side: int) -> Image.Image:
        """The image of a row as the model saw it, (side, side) px RGB: all that an index knows of it is made of this.

        Raises:
            InputError: it cannot be read, or not any more.
        """
        return to_square(self.image(row), side, self._center_crop)[0]

    def sha256(self) -> str:
        """A hash of all ids, captions and images."""
        hashes = self._hashes or [found for found, _ in inspect_images(self._images)]
        told = [self.ids, self.captions, hashes, *([list(self.several.items())] if self.several else [])]
        return hashlib.sha256(json.dumps(told).encode()).hexdigest()


def open_training_set(settings: DataSettings, inspect: bool = True, tell: Tell = silent) -> TrainingSet:
    """Open a folder or a data set of the hub, all of its rows checked.

    Args:
        settings: where it is, and how it is read.
        inspect: decode every image that is not known from before, which takes about a millisecond each; otherwise only
            captions are checked.
        tell: of the images that are decoded.

    Raises:
        InputError: neither or both sources are named, or the data lack the columns, or cannot be read, or rows cannot
            be used (the first are named) and are not to be skipped; or a setting is of no use for such data.
    """
    rows = _read(settings)
    if settings.max_train_samples is not None:
        rows = rows.select(range(min(settings.max_train_samples, len(rows))))
    return _checked(rows, settings, inspect, tell)


def _read(settings: DataSettings) -> Rows:
    """The rows by whichever reader is for them."""
    folder, prompt, captions = settings.train_data_dir, settings.instance_prompt, settings.captions_file
    if (settings.dataset_name is None) == (folder is None):
        raise InputError("name the training data by either --dataset_name or --train_data_dir")
    if captions is not None and prompt is not None:
        raise InputError("captions come from either --captions_file or --instance_prompt; name one of them")
    if folder is None:
        _refuse_unused(settings, "a table, whose captions are a column", "captions_file", "instance_prompt")
        return read_table(_table(settings, str(settings.dataset_name)), *_columns(settings))
    files = files_of(folder)
    if captions is None and prompt is None and _are_tables(folder, files):
        return read_table(_table(settings, str(folder), _tables_among_pictures(folder, files)), *_columns(settings))
    _refuse_unused(settings, "images in a folder, which are all one set", "dataset_config_name", "dataset_split")
    if captions is not None:
        return read_coco(folder, files, captions)
    if prompt is not None:
        return read_prompted(folder, files, prompt)
    with_texts = has_texts(files) and not any(path.name in METADATA for path in files)
    return read_texts(folder, files) if with_texts else read_folder(folder, files, *_columns(settings))


def _table(settings: DataSettings, where: str, files: tuple[str, ...] = ()) -> Table:
    return Table(where, settings.dataset_config_name, settings.dataset_split, settings.cache_dir, files)


def _columns(settings: DataSettings) -> tuple[str, str]:
    return settings.image_column, settings.caption_column


def _are_tables(folder: Path, files: list[Path]) -> bool:
    """Whether a folder's files are tables and shards, rather than images with metadata or texts."""
    if is_saved(folder) or any(path.name in METADATA for path in files) or has_texts(files):
        return is_saved(folder)
    kinds = {path.suffix.lower() for path in files}
    return ".parquet" in kinds or (not pictures_of(files) and not kinds.isdisjoint(ENDINGS))


def _tables_among_pictures(folder: Path, files: list[Path]) -> tuple[str, ...]:
    """The tables of a folder that holds the pictures, too, that they name: `datasets` would read those instead."""
    among = bool(pictures_of(files)) and not is_saved(folder)
    return tuple(str(path) for path in files if among and path.suffix.lower() == ".parquet")


def _refuse_unused(settings: DataSettings, what: str, *names: str) -> None:
    """Refuse settings that say nothing about such data."""
    for name in names:
        if getattr(settings, name) != getattr(DataSettings, name):
            told = settings.train_data_dir or settings.dataset_name
            raise InputError(f"--{name} is of no use for {str(told)!r}, which holds {what}; leave it out")


def _checked(rows: Rows, settings: DataSettings, inspect: bool, tell: Tell) -> TrainingSet:
    """The rows as a training set, without the bad ones.

    Raises:
        InputError: some cannot be used, and are not to be skipped.
    """
    captions, faults = check_captions(rows)
    found = inspect_new(rows.images, _name(settings), tell) if inspect else []
    faults = {row: fault for row, (_, fault) in enumerate(found) if fault} | faults
    told = _told(rows, faults)
    left_out = {rows.names[row]: fault for row, fault in sorted(faults.items())}
    if faults and not settings.skip_bad:
        raise InputError(f"{told}{_all_listed(left_out)}; mend them, or leave them out with --skip_bad")
    good = [row for row in range(len(rows)) if row not in faults]
    captions = [captions[row] for row in good]
    rows = rows.select(good, *([f"left out, {told}"] if faults else []), *_notes(captions))
    for note in rows.notes if inspect else ():
        LOG.warning("%s", note)
    training = TrainingSet(rows, captions, [found[row][0] for row in good if found], settings.center_crop)
    training.left_out = left_out
    return training


def _name(settings: DataSettings) -> str:
    """What tells one training set from another."""
    folder, file = settings.train_data_dir, settings.captions_file
    where = [str(path.resolve()) if path else "" for path in (folder, file)]
    return repr(
        (settings.dataset_name, settings.dataset_config_name, settings.dataset_split, settings.image_column, *where)
    )


def bad_rows(left_out: dict[str, str]) -> bytes:
    """The images that cannot be used, and why, as a table: CSV."""
    table = io.StringIO(newline="")
    csv.writer(table, lineterminator="\n").writerows([("image", "fault"), *left_out.items()])
    return table.getvalue().encode(errors="backslashreplace")


def _all_listed(left_out: dict[str, str]) -> str:
    """Where all images are named that cannot be used, if they are more than a sentence holds."""
    if len(left_out) <= SHOWN:
        return ""
    try:
        path = cache_folder() / BAD_ROWS
        write_whole(path, bad_rows(left_out))
    except OSError:
        return ""
    return f" (all are named in {path})"


def _told(rows: Rows, faults: dict[int, str]) -> str:
    named = listed([f"{rows.names[row]} ({fault})" for row, fault in sorted(faults.items())])
    return f"of {len(rows):,} training images {len(faults):,} cannot be used: {named}"


def _notes(captions: list[tuple[str, ...]]) -> Iterator[str]:
    """Sentences on images that have several captions, and on blank ones, if there are any."""
    if count := sum(len(each) > 1 for each in captions):
        yield (
            f"images with several captions ({count:,}): their losses are averaged over all of them, of which diffusers'"
            " script draws any each time; the first is shown"
        )
    if count := sum(not caption.strip() for each in captions for caption in each):
        yield f"blank captions ({count:,}): these images count as trained on without a text"
