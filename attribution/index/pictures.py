"""The pictures of a training set that an index is of: thumbnails for all, and the images themselves where they are."""

import io
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from attribution.errors import IndexMismatch, InputError
from attribution.index.data import DataSettings, TrainingSet, open_training_set
from attribution.index.features import PIXEL_SIDE, pixel_vectors
from attribution.index.packed import Packed

THUMBNAIL_SIDE = 384  # px, at most: twice what a wide page shows them at, for screens of two pixels to one of the page
EXACT_SIDE = 128  # px, up to which a thumbnail is a PNG; a larger one is a JPEG that takes no more room
QUALITY = 85  # of such a JPEG
NEAR = 4.0  # of 255, that its intensities may differ by on average from the picture's; another picture's do by far more
KEPT = 1 << 16  # images, at most, whose pixels are kept in memory: 200 MB


@dataclass(frozen=True)
class ThumbnailFolder:
    """Thumbnails as a folder of PNGs, named by their rows in eight digits: of the world and of earlier versions."""

    path: Path

    @classmethod
    def open(cls, path: Path, count: int) -> "ThumbnailFolder":
        """Open a folder.

        Raises:
            IndexMismatch: there are more or fewer thumbnails than images.
        """
        if (found := len(list(path.glob("*.png")))) != count:
            raise IndexMismatch(
                f"{path} has {found} pictures, the manifest says {count}; run the same index command again"
            )
        return cls(path)

    def __getitem__(self, row: int) -> bytes:
        return (self.path / f"{row:08d}.png").read_bytes()

    @property
    def bytes(self) -> int:
        """Of all of them."""
        return sum(path.stat().st_size for path in self.path.glob("*.png"))


def open_thumbnails(path: Path, count: int) -> Packed | ThumbnailFolder:
    """The thumbnails of an index, at a path without an ending; of an earlier version it is a folder.

    Raises:
        IndexMismatch: they are missing or truncated, or others than so many.
    """
    return ThumbnailFolder.open(path, count) if path.is_dir() else Packed.open(path, count)


@dataclass(frozen=True)
class TrainingPictures:
    """The training pictures, and their thumbnails.

    Attributes:
        thumbnails: PNGs or JPEGs by row.
        data: where the training set was read from, and how.
        ids: of its images.
    """

    thumbnails: Packed | ThumbnailFolder
    data: DataSettings
    ids: Sequence[str]

    def small(self, row: int) -> Image.Image:
        """The thumbnail of a row, RGB."""
        with Image.open(io.BytesIO(self.thumbnails[row])) as small:
            return small.convert("RGB")

    def pixels(self, rows: range) -> NDArray[np.uint8]:
        """The pixel baseline's view of some rows, (n, 32, 32, 3); of few images it is made once and kept."""
        if len(self.ids) > KEPT:
            return pixel_vectors(map(self._smaller, rows))
        return self._pixels[rows.start : rows.stop]

    @cached_property
    def _pixels(self) -> NDArray[np.uint8]:
        return pixel_vectors(map(self._smaller, range(len(self.ids))))

    def _smaller(self, row: int) -> Image.Image:
        """The thumbnail of a row, decoded at twice the side that it is needed at, where its format can be."""
        with Image.open(io.BytesIO(self.thumbnails[row])) as small:
            small.draft("RGB", (2 * PIXEL_SIDE, 2 * PIXEL_SIDE))
            return small.convert("RGB")

    def picture(self, row: int) -> Image.Image:
        """The training image of a row, RGB: from where the training set was, if it is still there and still the same.

        Otherwise it is the thumbnail: the square that the model saw, at most THUMBNAIL_SIDE px of it.
        """
        shown = self.small(row)
        if self._training is None:
            return shown
        try:
            place = _place(self._training.ids, self.ids[row], row)
            same = _same(self._training.square(place, shown.width), shown)
            return self._training.image(place) if same else shown
        except (InputError, ValueError):
            return shown

    @cached_property
    def _training(self) -> TrainingSet | None:
        """The training set, where its folder is still there; nothing is asked of a hub."""
        folder = self.data.train_data_dir or Path(str(self.data.dataset_name))
        if not folder.is_dir():
            return None
        try:
            return open_training_set(self.data, inspect=False)
        except InputError:
            return None


def packed_thumbnail(square: Image.Image) -> bytes:
    """A thumbnail as it is kept: exactly, or what is larger in fewer bytes."""
    packed = io.BytesIO()
    if square.width <= EXACT_SIDE:
        square.save(packed, "PNG")
    else:
        square.save(packed, "JPEG", quality=QUALITY)
    return packed.getvalue()


def kind_of(thumbnail: bytes) -> str:
    """The format of a kept thumbnail: png or jpeg."""
    return "jpeg" if thumbnail.startswith(b"\xff\xd8") else "png"


def _same(square: Image.Image, shown: Image.Image) -> bool:
    """Whether a thumbnail is of a picture."""
    if shown.width <= EXACT_SIDE:
        return square.tobytes() == shown.tobytes()
    difference = np.asarray(square, np.float32) - np.asarray(shown, np.float32)
    return float(np.abs(difference).mean()) < NEAR


def _place(ids: Sequence[str], wanted: str, likely: int) -> int:
    """Where an id is; a ValueError where it is not."""
    return likely if likely < len(ids) and ids[likely] == wanted else ids.index(wanted)
