"""The pictures of a training set that an index is of: thumbnails for all, and the images themselves where they are."""

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from PIL import Image

from attribution.errors import IndexMismatch, InputError
from attribution.index.data import DataSettings, TrainingSet, open_training_set

THUMBNAIL_SIDE = 128  # px, at most


@dataclass(frozen=True)
class TrainingPictures:
    """The training pictures, and their thumbnails.

    Attributes:
        thumbnails: folder of PNGs, one a row.
        data: where the training set was read from, and how.
        ids: of its images.
    """

    thumbnails: Path
    data: DataSettings
    ids: list[str]

    @classmethod
    def open(cls, thumbnails: Path, data: DataSettings, ids: list[str]) -> "TrainingPictures":
        """The pictures of a training set.

        Raises:
            IndexMismatch: there are more or fewer thumbnails than images.
        """
        if (found := len(list(thumbnails.glob("*.png")))) != len(ids):
            raise IndexMismatch(
                f"{thumbnails} has {found} pictures, the manifest says {len(ids)}; build the index anew"
            )
        return cls(thumbnails, data, ids)

    def thumbnail(self, row: int) -> Path:
        """The thumbnail of a row, a PNG."""
        return self.thumbnails / f"{row:08d}.png"

    def picture(self, row: int) -> Image.Image:
        """The training image of a row, RGB: from where the training set was, if it is still there and still the same.

        Otherwise it is the thumbnail, which is smaller where the image has more than THUMBNAIL_SIDE px a side.
        """
        with Image.open(self.thumbnail(row)) as small:
            shown = small.convert("RGB")
        if max(shown.size) < THUMBNAIL_SIDE or self._training is None:
            return shown  # a thumbnail that was not made smaller is the training image
        try:
            picture = self._training.image(row)
        except InputError:
            return shown
        return picture if small_copy(picture).tobytes() == shown.tobytes() else shown

    @cached_property
    def _training(self) -> TrainingSet | None:
        """The training set, where its folder is still there, with the same images; nothing is asked of a hub."""
        folder = self.data.train_data_dir or Path(str(self.data.dataset_name))
        if not folder.is_dir():
            return None
        try:
            training = open_training_set(self.data)
        except InputError:
            return None
        return training if training.ids == self.ids else None


def small_copy(picture: Image.Image) -> Image.Image:
    """A picture's thumbnail."""
    small = picture.copy()
    small.thumbnail((THUMBNAIL_SIDE, THUMBNAIL_SIDE))
    return small
