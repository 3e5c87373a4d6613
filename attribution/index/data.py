"""Training data: where images and captions come from, and how a picture becomes the model's input."""

import hashlib
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from attribution.errors import InputError, reason


@dataclass(frozen=True)
class DataSettings:
    """Where the training set is and how it is read; the names are those of diffusers' `train_text_to_image.py`.

    Attributes:
        dataset_name: a hub id for `datasets`.
        train_data_dir: an imagefolder with `metadata.jsonl`, instead of `dataset_name`.
        image_column: column of the images.
        caption_column: column of the captions; of a list, the first is taken.
        center_crop: crop the middle square; otherwise the picture is squeezed.
        random_flip: the model was trained with mirrored images, so each mirror is scored too.
        max_train_samples: only the first so many.
    """

    dataset_name: str | None = None
    train_data_dir: Path | None = None
    image_column: str = "image"
    caption_column: str = "text"
    center_crop: bool = True
    random_flip: bool = True
    max_train_samples: int | None = None


class TrainingSet:
    """Ids, captions and images of N training pairs, images loaded one at a time.

    Attributes:
        ids: what a person would look an image up by.
        captions: one for each image.
    """

    def __init__(self, ids: list[str], captions: list[str], images: Sequence[Any]) -> None:
        self.ids = ids
        self.captions = captions
        self._images = images

    def __len__(self) -> int:
        return len(self.ids)

    def image(self, row: int) -> Image.Image:
        """The image of a row, RGB.

        Raises:
            InputError: it is damaged, or has pixels that are not finite; says which image it is.
        """
        try:
            picture: Image.Image = self._images[row]
            if picture.mode == "F" and not np.isfinite(np.asarray(picture)).all():
                raise ValueError("it has pixels that are not finite")
            return picture.convert("RGB")
        except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
            raise InputError(
                f"the training image {self.ids[row]} cannot be used ({reason(error)}); mend it or leave it out"
            ) from error

    def sha256(self) -> str:
        """A hash of the ids and captions, and of the first image's pixels."""
        digest = hashlib.sha256("\n".join([*self.ids, *self.captions]).encode())
        digest.update(self.image(0).tobytes())
        return digest.hexdigest()


class _Column(Sequence[Image.Image]):
    def __init__(self, table: Any, column: str) -> None:
        self.table, self.column = table, column

    def __len__(self) -> int:
        return len(self.table)

    def __getitem__(self, row: Any) -> Any:
        return self.table[int(row)][self.column]


def open_training_set(settings: DataSettings) -> TrainingSet:
    """Open an imagefolder or a hub data set.

    Raises:
        InputError: neither or both sources are named, or the data lack the columns, or cannot be read.
    """
    if (settings.dataset_name is None) == (settings.train_data_dir is None):
        raise InputError("name the training data by either --dataset_name or --train_data_dir")
    return _open_dataset(settings)


def _open_dataset(settings: DataSettings) -> TrainingSet:
    import datasets  # takes seconds, and the embedded world does without

    where = settings.dataset_name or str(settings.train_data_dir)
    try:
        if settings.train_data_dir is not None:
            table = datasets.load_dataset("imagefolder", data_dir=where, split="train")
        else:
            table = datasets.load_dataset(where, split="train")
    except Exception as error:  # datasets raises many kinds
        raise InputError(f"the training data {where!r} could not be read ({reason(error)})") from error
    for column in (settings.image_column, settings.caption_column):
        if column not in table.column_names:
            raise InputError(f"{where!r} has no column {column!r}; its columns are {', '.join(table.column_names)}")
    if settings.max_train_samples is not None:
        table = table.select(range(min(settings.max_train_samples, len(table))))
    captions = [text if isinstance(text, str) else text[0] for text in table[settings.caption_column]]
    return TrainingSet(_ids(table, settings.image_column), captions, _Column(table, settings.image_column))


def _ids(table: Any, image_column: str) -> list[str]:
    import datasets

    undecoded = table.cast_column(image_column, datasets.Image(decode=False))
    paths = (row["path"] for row in undecoded[image_column])
    return [os.path.basename(path) if path else str(row) for row, path in enumerate(paths)]
