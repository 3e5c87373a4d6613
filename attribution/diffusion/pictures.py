"""A picture as people and the model see it: opened upright, cut to the model's square, turned into pixels."""

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import numpy as np
import torch
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import Tensor

from attribution.errors import InputError

MAX_SIDE = 4096  # px
MAX_BYTES = 10_000_000
FORMATS = ("PNG", "JPEG", "WEBP")
ACCEPTED = f"accepted are PNG, JPEG and WebP files up to {MAX_BYTES // 1_000_000} MB and {MAX_SIDE} px a side"


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
