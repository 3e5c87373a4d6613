"""A query: a picture, its prompt, and the regions of it that matter, as a latent mask and as a crop."""

import hashlib
import math
from dataclasses import dataclass

import torch
from PIL import Image, ImageOps
from torch import Tensor

from attribution.attention import inside, word_map, word_tokens
from attribution.data import Frame, to_pixels, to_square, upright
from attribution.errors import InputError
from attribution.model import Model, check_prompt, check_seed

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


def region_mask(query: Query, model: Model, center_crop: bool = True) -> Tensor | None:
    """How much each latent cell counts: (h, w) in [0, 1]; None for the whole picture.

    Of boxes, the share of the cell that the box covering most of it covers; of a word, its attention map.

    Raises:
        InputError: a box is not finite, reversed, outside, or smaller than one latent cell; no such word.
    """
    if query.word is not None:
        square, _ = to_square(query.image, model.resolution, center_crop)
        return word_map(model, model.encode_images(to_pixels([square])), query.prompt, query.word)
    if not query.boxes:
        return None
    _, frame = to_square(query.image, model.resolution, center_crop)
    masks = []
    for box in query.boxes:
        check_box(box, query.image.size, model.scale / min(frame.scale_x, frame.scale_y))
        x0, y0, x1, y1 = (side / model.scale for side in _into(frame, box))
        across, down = _cover(x0, x1, model.latent_shape[2]), _cover(y0, y1, model.latent_shape[1])
        masks.append(down[:, None] * across[None, :])
    mask = torch.stack(masks).amax(0)
    if not mask.any():
        raise InputError(
            f"the box {_shown(query.boxes[0])} is outside what the model sees,"
            f" the middle square of {min(query.image.size)} px"
        )
    return mask


def check_box(box: Box, size: tuple[int, int], smallest: float) -> None:
    """Refuse a box that is not inside a picture of `size`, or has a side under `smallest` pixels.

    Raises:
        InputError: naming the box and what is accepted.
    """
    width, height = size
    accepted = (
        f"accepted are x0 < x1 from 0 to {width} and y0 < y1 from 0 to {height},"
        f" each side {math.ceil(smallest)} px or more"
    )
    if len(box) != 4 or not all(math.isfinite(side) for side in box):
        raise InputError(f"the box {box!r} is not four finite numbers; {accepted}")
    x0, y0, x1, y1 = box
    if x0 < 0 or y0 < 0 or x1 > width or y1 > height:
        raise InputError(f"the box {_shown(box)} reaches outside the picture; {accepted}")
    if x1 - x0 < smallest - 1e-6 or y1 - y0 < smallest - 1e-6:
        raise InputError(f"the box {_shown(box)} is empty, reversed or too small; {accepted}")


def region_crop(query: Query, model: Model, center_crop: bool = True) -> Image.Image:
    """What feature baselines look at: the square around the region, padded with white, or the whole picture's square.

    Args:
        query: its boxes are inside its picture.
        model: gives a word's region, and the side of the whole picture's square.
        center_crop: cut the whole picture's middle square; otherwise squeeze it.
    """
    square, frame = to_square(query.image, model.resolution, center_crop)
    boxes, mask = query.boxes, region_mask(query, model, center_crop)
    if mask is None:
        return square
    if query.word is not None:
        boxes = (mask_box(mask, model, frame),)
    sides = list(zip(*boxes, strict=True))
    corners = (math.floor(min(sides[0])), math.floor(min(sides[1])), math.ceil(max(sides[2])), math.ceil(max(sides[3])))
    part = upright(query.image).crop(corners)
    return ImageOps.pad(part, (max(part.size),) * 2, color="white")


def mask_box(mask: Tensor, model: Model, frame: Frame) -> Box:
    """The box of a word's mask (h, w), in pixels of the picture."""
    x0, y0, x1, y1 = (float(side * model.scale) for side in inside(mask))
    return (
        x0 / frame.scale_x + frame.left,
        y0 / frame.scale_y + frame.top,
        x1 / frame.scale_x + frame.left,
        y1 / frame.scale_y + frame.top,
    )


def check_query(query: Query, model: Model, center_crop: bool) -> None:
    """Refuse a query before any work.

    Raises:
        InputError: the prompt, the seed or a region is not possible.
    """
    check_prompt(query.prompt)
    if len(query.boxes) > MAX_BOXES:
        raise InputError(f"{len(query.boxes):,} boxes are given; accepted are up to {MAX_BOXES}")
    if query.seed is not None:
        check_seed(query.seed)
    if query.word is None:
        region_mask(query, model, center_crop)
        return
    word_tokens(model, query.prompt, query.word)
    if query.boxes:
        raise InputError(
            f"the word {query.word!r} and {len(query.boxes)} boxes are given; accepted is one or the other"
        )


def region_words(query: Query) -> str:
    """What part of the picture a query is about."""
    if query.word is not None:
        return f"the word “{query.word}”"
    return "the box " + " and ".join(map(_shown, query.boxes)) if query.boxes else "the whole picture"


def image_sha256(image: Image.Image) -> str:
    """A hash of a picture's size and RGB pixels."""
    rgb = image.convert("RGB")
    return hashlib.sha256(repr(rgb.size).encode() + rgb.tobytes()).hexdigest()


def _cover(start: float, end: float, cells: int) -> Tensor:
    """The share of each of `cells` unit cells that lies between start and end."""
    edges = torch.arange(cells)
    return (torch.minimum(edges + 1, torch.tensor(end)) - torch.maximum(edges, torch.tensor(start))).clamp(0, 1)


def _into(frame: Frame, box: Box) -> Box:
    x0, y0, x1, y1 = box
    return (
        (x0 - frame.left) * frame.scale_x,
        (y0 - frame.top) * frame.scale_y,
        (x1 - frame.left) * frame.scale_x,
        (y1 - frame.top) * frame.scale_y,
    )


def _shown(box: Box) -> str:
    return ", ".join(f"{side:g}" for side in box)
