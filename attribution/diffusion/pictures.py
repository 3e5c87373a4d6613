"""A picture as people and the model see it: opened upright, cut to the model's square, turned into pixels."""

import io
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import numpy as np
import torch
from PIL import Image, UnidentifiedImageError
from torch import Tensor

from attribution.errors import InputError

MAX_SIDE = 4096  # px
MAX_BYTES = 10_000_000
FORMATS = ("PNG", "JPEG", "WEBP")
PNG, TEXTS = b"\x89PNG\r\n\x1a\n", (b"iCCP", b"tEXt", b"zTXt", b"iTXt")
ORIENTATION = 0x0112  # the tag of EXIF that says how a photograph is to be turned
TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
ACCEPTED = f"accepted are PNG, JPEG and WebP files up to {MAX_BYTES // 1_000_000} MB and {MAX_SIDE} px a side"


@dataclass(frozen=True)
class Frame:
    """How a picture of any size was cut to the model's square: x_square = (x - left) * scale_x, likewise y."""

    left: float
    top: float
    scale_x: float
    scale_y: float


def to_square(image: Image.Image, side: int, center_crop: bool = True) -> tuple[Image.Image, Frame]:
    """The model's square view of any picture, be it a training image or a query, and the frame that maps boxes into it.

    As diffusers' `train_text_to_image.py` does it: the shorter side is resized to `side` (bilinear, antialiased) and
    the middle is cut out. Without `--center_crop` that script cuts out another square each time. No single view is that
    one, so without `center_crop` the whole picture is squeezed here, which leaves nothing out.

    Args:
        image: any mode; see `upright`.
        side: px.
        center_crop: cut the middle square; otherwise squeeze.
    """
    image = upright(image)
    width, height = image.size
    short = min(width, height)
    across, down = (side * width // short, side * height // short) if center_crop else (side, side)
    left, top = round((across - side) / 2), round((down - side) / 2)
    scale_x, scale_y = across / width, down / height
    frame = Frame(left / scale_x, top / scale_y, scale_x, scale_y)
    if image.size != (side, side):
        right, bottom = min(width, frame.left + side / scale_x), min(height, frame.top + side / scale_y)
        area = (frame.left, frame.top, right, bottom)
        image = image.resize((side, side), Image.Resampling.BILINEAR, box=area)
    return image, frame


def as_trained(image: Image.Image) -> Image.Image:
    """A training image as diffusers' `train_text_to_image.py` reads it, RGB, whole.

    `datasets` undoes an EXIF rotation, then the script does `.convert("RGB")`: transparency is dropped, so that the
    colour beneath it shows, and greys of 16 bits are cut off at 255. That is not what a person sees (`upright` is), but
    it is what the model was trained on.
    """
    return _plain(_turned(image))


def upright(image: Image.Image) -> Image.Image:
    """A picture as a person sees it, RGB: EXIF rotation undone, transparency on white, 16 bits scaled to 8."""
    image = _eight_bits(_turned(image))
    key = image.info.get("transparency")
    if isinstance(key, tuple) and max(key) > 255:  # of 16 bits a colour, which Pillow reads as 8
        image.info["transparency"] = tuple(value >> 8 for value in key)
    if "A" in image.getbands() or "transparency" in image.info:
        rgba = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", rgba.size, "white"), rgba)
    return _plain(image)


def _plain(image: Image.Image) -> Image.Image:
    """A picture as RGB, without its metadata: they would be taken for a rotation or transparency to come."""
    rgb = image.convert("RGB")
    rgb.info = {}
    return rgb


def _turned(image: Image.Image) -> Image.Image:
    """A picture with its EXIF rotation undone; damaged EXIF data say nothing."""
    try:
        turn = TURNS.get(image.getexif().get(ORIENTATION, 1))
    except Exception:  # Pillow's parser raises a dozen kinds
        turn = None
    return image if turn is None else image.transpose(turn)


def _eight_bits(image: Image.Image) -> Image.Image:
    """Greys of 16 bits as greys of 8, and their transparent key as an alpha channel; other pictures as they are."""
    if not image.mode.startswith("I"):
        return image
    values = np.asarray(image)
    grey = Image.fromarray((values.clip(0, 65535) / 257).round().astype(np.uint8))
    if (key := image.info.get("transparency")) is None:
        return grey
    return Image.merge("LA", (grey, Image.fromarray(np.where(values == key, 0, 255).astype(np.uint8))))


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
    content = file.read()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Pillow's, of large pictures and of damaged EXIF data
            try:
                return _decoded(content, name)
            except ValueError:  # Pillow refuses a PNG with more than 1 MB of text or colour profile
                return _decoded(_without_texts(content), name)
    except (UnidentifiedImageError, OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise InputError(f"{name} is not an image that can be read; {ACCEPTED}") from error


def _decoded(content: bytes, name: str) -> Image.Image:
    with Image.open(io.BytesIO(content), formats=FORMATS) as image:
        if max(image.size) > MAX_SIDE:
            raise InputError(f"{name} is {image.width} x {image.height} px; {ACCEPTED}")
        return upright(image)


def _without_texts(content: bytes) -> bytes:
    """A PNG file without its texts and colour profile; other files as they are."""
    if not content.startswith(PNG):
        return content
    kept, place = [PNG], len(PNG)
    while place < len(content):
        end = place + 12 + int.from_bytes(content[place : place + 4], "big")  # length, kind, data, checksum
        if content[place + 4 : place + 8] not in TEXTS:
            kept.append(content[place:end])
        place = end
    return b"".join(kept)
