"""Training data: where images and captions come from, and how a picture becomes the model's input."""

import hashlib
import os
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import Tensor

from attribution.errors import InputError, reason
from attribution.scenes import compose

SCENES = "emoji-scenes"  # the name of the embedded training set
MAX_SIDE = 4096  # px
MAX_BYTES = 10_000_000
FORMATS = ("PNG", "JPEG", "WEBP")
ACCEPTED = f"accepted are PNG, JPEG and WebP files up to {MAX_BYTES // 1_000_000} MB and {MAX_SIDE} px a side"


@dataclass(frozen=True)
class DataSettings:
    """Where the training set is and how it is read; the names are those of diffusers' `train_text_to_image.py`.

    Attributes:
        dataset_name: a hub id for `datasets`, or "emoji-scenes".
        train_data_dir: an imagefolder with `metadata.jsonl`, instead of `dataset_name`.
        image_column: column of the images.
        caption_column: column of the captions; of a list, the first is taken.
        resolution: px, side of the model's input.
        center_crop: crop the middle square; otherwise the picture is squeezed.
        random_flip: the model was trained with mirrored images, so each mirror is scored too.
        max_train_samples: only the first so many.
    """

    dataset_name: str | None = None
    train_data_dir: Path | None = None
    image_column: str = "image"
    caption_column: str = "text"
    resolution: int = 512
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


class _Scenes(Sequence[Image.Image]):
    def __init__(self, scenes: list[compose.Scene]) -> None:
        self.scenes = scenes

    def __len__(self) -> int:
        return len(self.scenes)

    def __getitem__(self, row: Any) -> Any:
        return compose.draw_scene(self.scenes[row])


class _Column(Sequence[Image.Image]):
    def __init__(self, table: Any, column: str) -> None:
        self.table, self.column = table, column

    def __len__(self) -> int:
        return len(self.table)

    def __getitem__(self, row: Any) -> Any:
        return self.table[int(row)][self.column]


def open_training_set(settings: DataSettings) -> TrainingSet:
    """Open the embedded scenes, an imagefolder or a hub data set.

    Raises:
        InputError: neither or both sources are named, or the data lack the columns, or cannot be read.
    """
    if (settings.dataset_name is None) == (settings.train_data_dir is None):
        raise InputError("name the training data by either --dataset_name or --train_data_dir")
    if settings.dataset_name == SCENES:
        wanted = settings.max_train_samples
        scenes = compose.make_scenes("train", None if wanted is None else min(wanted, compose.TRAIN_SCENES))
        ids = [f"{row:05d}.png" for row in range(len(scenes))]
        return TrainingSet(ids, [scene.caption for scene in scenes], _Scenes(scenes))
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


@dataclass(frozen=True)
class EncodedSet:
    """What scoring needs of a training set.

    Attributes:
        latents: (N, 2, C, h, w) float16 or float32, memory-mapped or not; axis 1 is image, mirror.
        captions: N.
    """

    latents: NDArray[np.floating]
    captions: list[str]

    def __len__(self) -> int:
        return len(self.captions)

    def view(self, rows: Sequence[int], views: Sequence[int]) -> Tensor:
        """Latents of rows and views: (n, views, C, h, w) float32."""
        picked = np.asarray(self.latents[list(rows)])[:, list(views)]
        return torch.from_numpy(picked.astype(np.promote_types(picked.dtype, np.float32)))


@dataclass(frozen=True)
class Frame:
    """How a picture of any size was cut to the model's square: x_square = (x - left) * scale_x, likewise y."""

    left: float
    top: float
    scale_x: float
    scale_y: float


def to_square(image: Image.Image, side: int, center_crop: bool = True) -> tuple[Image.Image, Frame]:
    """The model's square view of a picture, and the frame that maps boxes into it.

    Args:
        image: any mode; see `upright`.
        side: px.
        center_crop: cut the middle square; otherwise squeeze.
    """
    image = upright(image)
    width, height = image.size
    across, down = (min(width, height),) * 2 if center_crop else (width, height)
    left, top = (width - across) / 2, (height - down) / 2
    if image.size != (side, side):
        area = (left, top, left + across, top + down)
        image = image.resize((side, side), Image.Resampling.LANCZOS, box=area)
    return image, Frame(left, top, side / across, side / down)


def upright(image: Image.Image) -> Image.Image:
    """A picture as it is looked at, RGB: EXIF rotation is undone and transparency put on white."""
    image = ImageOps.exif_transpose(image)
    if "A" in image.getbands() or "transparency" in image.info:
        rgba = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", rgba.size, "white"), rgba)
    return image.convert("RGB")


def to_pixels(images: Sequence[Image.Image]) -> Tensor:
    """RGB pictures of one size to (B, 3, H, W) float32 in [-1, 1]."""
    stack = np.stack([np.asarray(image, np.float32) for image in images])
    return torch.from_numpy(stack).permute(0, 3, 1, 2).contiguous() / 127.5 - 1


def open_upload(path: Path) -> Image.Image:
    """Open a picture from outside, upright and RGB, its size checked before it is decoded.

    Raises:
        InputError: not a PNG, JPEG or WebP file, or over MAX_BYTES or MAX_SIDE, or damaged.
    """
    if not path.is_file():
        raise InputError(f"there is no image file {path.name!r}; {ACCEPTED}")
    if path.stat().st_size > MAX_BYTES:
        raise InputError(f"{path.name} has {path.stat().st_size / 1e6:.1f} MB; {ACCEPTED}")
    with path.open("rb") as file:
        return decode_upload(file, path.name)


def decode_upload(file: IO[bytes], name: str) -> Image.Image:
    """A picture of an opened file; see `open_upload`."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Pillow's, of large pictures and of damaged EXIF data
            with Image.open(file, formats=FORMATS) as image:
                if max(image.size) > MAX_SIDE:
                    raise InputError(f"{name} is {image.width} x {image.height} px; {ACCEPTED}")
                return upright(image)
    except (UnidentifiedImageError, OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise InputError(f"{name} is not an image that can be read; {ACCEPTED}") from error
