"""Rows of training data as they are stored: what each is called, and what is wrong with it."""

import hashlib
import io
import os
import warnings
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from attribution.batches import batches
from attribution.diffusion.pictures import as_trained
from attribution.errors import reason

SHOWN = 8  # names in a sentence, at most
Tell = Callable[[int, int], None]  # how many images are done, and of how many


@dataclass(frozen=True)
class Rows:
    """Rows that are not checked yet.

    Attributes:
        names: the path of each image within its folder, or what else a person would look it up by.
        captions: of any type: text, a list of texts, or what is neither.
        images: `{"bytes": ..., "path": ...}` of each, one of them given; None where there is no image.
        faults: by row, what is wrong with a row that cannot be read at all.
        notes: sentences about what is left out.
    """

    names: list[str]
    captions: list[Any]
    images: Sequence[Any]
    faults: dict[int, str] = field(default_factory=dict)
    notes: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.names)

    def select(self, rows: Sequence[int], *notes: str) -> "Rows":
        """Some of the rows, and what is to be said of it."""
        faults = {new: self.faults[old] for new, old in enumerate(rows) if old in self.faults}
        names, captions = [self.names[row] for row in rows], [self.captions[row] for row in rows]
        return Rows(names, captions, Chosen(self.images, rows), faults, (*self.notes, *notes))


class Chosen(Sequence[Any]):
    """Some items of a sequence, each fetched when it is asked for."""

    def __init__(self, items: Sequence[Any], places: Sequence[int]) -> None:
        self.items, self.places = items, places

    def __len__(self) -> int:
        return len(self.places)

    def __getitem__(self, place: Any) -> Any:
        return self.items[self.places[place]]


def listed(names: Sequence[str]) -> str:
    """Names in a sentence: the first SHOWN, and how many more there are."""
    more = len(names) - SHOWN
    return ", ".join(names[:SHOWN]) + (f" and {more:,} more" if more > 0 else "")


def unique_ids(names: Sequence[str]) -> list[str]:
    """What each image is looked up by: its file's name; its path where names repeat; and the row where paths do."""
    short = [os.path.basename(name) for name in names]
    if len(set(short)) == len(short):
        return short
    times = Counter(names)
    ids = [name if times[name] == 1 else f"{name} (row {row})" for row, name in enumerate(names)]
    return ids if len(set(ids)) == len(ids) else [f"{row}: {name}" for row, name in enumerate(names)]


def captions_of(value: Any) -> tuple[str, ...]:
    """A row's captions: one, or all of a list.

    Raises:
        ValueError: there is none, or one is not text that can be stored.
    """
    if isinstance(value, list | tuple):
        if not value:
            raise ValueError("its list of captions is empty")
        return tuple(_caption(each) for each in value)
    return (_caption(value),)


def _caption(value: Any) -> str:
    if value is None:
        raise ValueError("it has no caption")
    if not isinstance(value, str):
        raise ValueError(f"its caption is {repr(value)[:40]}, which is not text")
    try:
        value.encode()
    except UnicodeEncodeError as error:
        raise ValueError("its caption has half a character (a lone surrogate)") from error
    return value


def open_image(stored: Any) -> Image.Image:
    """An image as it is stored, opened but not decoded yet.

    Raises:
        ValueError: there is none, or it is somewhere else.
        OSError: it cannot be read.
    """
    content, path = (stored or {}).get("bytes"), (stored or {}).get("path")
    if content is not None:
        return Image.open(io.BytesIO(content))
    if not path:
        raise ValueError("it has no image")
    if "://" in path:
        raise ValueError("its image is an address; download it first")
    if not Path(path).is_file():
        raise ValueError("there is no such file")
    return Image.open(io.BytesIO(Path(path).read_bytes()))


def decode(image: Image.Image) -> Image.Image:
    """An opened training image as the model saw it; see `as_trained`.

    Raises:
        ValueError: it has pixels that are not finite; Pillow raises a dozen other kinds where it is damaged.
    """
    if image.mode == "F" and not np.isfinite(np.asarray(image)).all():
        raise ValueError("it has pixels that are not finite")
    return as_trained(image)


def _digest(stored: Any) -> str:
    """A hash of an image's pixels; of a JPEG's bytes, as its decoders differ in the last bit."""
    image = open_image(stored)
    if image.format == "JPEG":
        content = stored["bytes"] if stored.get("bytes") is not None else Path(stored["path"]).read_bytes()
        image.draft("RGB", (1, 1))  # at an eighth of its size: the file is read to its end, in a third of the time
        decode(image)
        return hashlib.sha256(content).hexdigest()
    rgb = decode(image)
    return hashlib.sha256(repr(rgb.size).encode() + rgb.tobytes()).hexdigest()


def _inspect(stored: Any) -> tuple[str, str]:
    """An image's hash, and what is wrong with it ("" for nothing)."""
    try:
        return _digest(stored), ""
    except Exception as error:  # Pillow raises a dozen kinds
        return "", reason(error)


def silent(_done: int, _total: int) -> None:
    """Tell nobody."""


def inspect_images(images: Sequence[Any], tell: Tell = silent) -> list[tuple[str, str]]:
    """Decode every image, several at a time: its hash, and what is wrong with it ("" for nothing)."""
    found: list[tuple[str, str]] = []
    with ThreadPoolExecutor(os.cpu_count()) as pool, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Pillow's, of large pictures and of damaged EXIF data
        for rows in batches(len(images), 256):
            found += pool.map(_inspect, [images[row] for row in rows])
            tell(rows.stop, len(images))
    return found


def check_captions(rows: Rows) -> tuple[list[tuple[str, ...]], dict[int, str]]:
    """The captions of each row, none where they cannot be used, and by row what is wrong with it."""
    captions, faults = [], dict(rows.faults)
    for row, value in enumerate(rows.captions):
        try:
            captions.append(captions_of(value))
        except ValueError as error:
            captions.append(())
            faults.setdefault(row, str(error))
    return captions, faults
