"""The regions of a query: boxes or a word, as a mask over latent cells and as a crop."""

import math
from collections.abc import Sequence

import torch
from PIL import Image, ImageOps
from torch import Tensor

from attribution.diffusion.attention import inside, word_tokens
from attribution.diffusion.pictures import Frame, to_square, upright
from attribution.diffusion.pipeline import Model, check_seed
from attribution.diffusion.tokens import check_prompt
from attribution.errors import InputError
from attribution.query.query import MAX_BOXES, Box, Query, shown_box


def box_mask(query: Query, model: Model, center_crop: bool = True) -> Tensor | None:
    """How much each latent cell counts: the share of it, from 0 to 1, that the box covering most of it covers.

    Returns:
        (h, w) on the CPU; None where the query has no boxes.

    Raises:
        InputError: a box is not finite, reversed, outside, or smaller than one latent cell.
    """
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
            f"the box {shown_box(query.boxes[0])} is outside what the model sees,"
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
        raise InputError(f"the box {shown_box(box)} reaches outside the picture; {accepted}")
    if x1 - x0 < smallest - 1e-6 or y1 - y0 < smallest - 1e-6:
        raise InputError(f"the box {shown_box(box)} is empty, reversed or too small; {accepted}")


def crop(image: Image.Image, boxes: Sequence[Box]) -> Image.Image:
    """What feature baselines look at: the square around all boxes, padded with white; the boxes are inside."""
    sides = list(zip(*boxes, strict=True))
    corners = (math.floor(min(sides[0])), math.floor(min(sides[1])), math.ceil(max(sides[2])), math.ceil(max(sides[3])))
    part = upright(image).crop(corners)
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
        box_mask(query, model, center_crop)
        return
    word_tokens(model, query.prompt, query.word)
    if query.boxes:
        raise InputError(
            f"the word {query.word!r} and {len(query.boxes)} boxes are given; accepted is one or the other"
        )
