"""A query: a picture, its prompt, and the regions of it that matter."""

import hashlib
from dataclasses import dataclass

from PIL import Image

Box = tuple[float, float, float, float]
MAX_BOXES = 64


@dataclass(frozen=True)
class Query:
    """A picture, the prompt that made it, and optionally regions of it.

    Attributes:
        prompt: not empty.
        image: the picture as shown.
        seed: that generated it, or None for an upload.
        boxes: `x0, y0, x1, y1` in pixels of `image`, ends exclusive; their union is attributed.
        word: of the prompt, instead of boxes: where its cross-attention is. Neither is the whole picture.
    """

    prompt: str
    image: Image.Image
    seed: int | None = None
    boxes: tuple[Box, ...] = ()
    word: str | None = None


def region_words(query: Query) -> str:
    """What part of the picture a query is about."""
    if query.word is not None:
        return f"the word “{query.word}”"
    return "the box " + " and ".join(map(shown_box, query.boxes)) if query.boxes else "the whole picture"


def image_sha256(image: Image.Image) -> str:
    """A hash of a picture's size and RGB pixels."""
    rgb = image.convert("RGB")
    return hashlib.sha256(repr(rgb.size).encode() + rgb.tobytes()).hexdigest()


def shown_box(box: Box) -> str:
    """A box's four numbers."""
    return ", ".join(f"{side:g}" for side in box)
