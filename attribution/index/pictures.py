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

        Otherwise it is the thumbnail: the square that the model saw, at most THUMBNAIL_SIDE px of it.
        """
        with Image.open(self.thumbnail(row)) as small:
            shown = small.convert("RGB")
        if self._training is None:
            return shown
        try:
            place = self._training.ids.index(self.ids[row])
            same = self._training.square(place, shown.width).tobytes() == shown.tobytes()
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
