"""Regions of the picture: boxes on it, the same as a table of numbers, and words of its prompt.

The annotator is shown a copy of the picture whose sides are `factor` times the picture's own. `Frame` tells the
browser so, where boxes and table are kept in step; what is sent with a question is the table, in pixels of the picture
itself.
"""

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, TypedDict

from PIL import Image

from attribution.diffusion.pictures import to_square
from attribution.diffusion.pipeline import Model
from attribution.errors import InputError
from attribution.query.grounding import Detection
from attribution.query.query import Box
from attribution.ui.style import COLOURS

SHOWN_SIDE = 512  # px: small pictures are enlarged to about this
LARGEST_SHOWN = 1024  # px
SMOOTH = 128  # px: a picture of fewer is shown pixel by pixel
COLUMNS = ["label", "x0", "y0", "x1", "y1"]
MOST = len(COLOURS)


class Frame(TypedDict):
    """Size of the picture in pixels, and how many pixels of the shown copy one of them is."""

    width: int
    height: int
    factor: float


@dataclass(frozen=True)
class Region:
    """What a question is about: a box with a label, or a word, or neither, which is the whole picture."""

    name: str
    boxes: tuple[Box, ...] = ()
    word: str | None = None
    label: str = ""


def shown_copy(image: Image.Image) -> tuple[Image.Image, Frame]:
    """A copy to draw on: small pictures enlarged by a whole factor, tiny ones without smoothing, large ones reduced."""
    longest = max(image.size)
    factor: float = max(1, SHOWN_SIDE // longest)
    if longest > LARGEST_SHOWN:
        factor = LARGEST_SHOWN / longest
    size = (max(1, round(image.width * factor)), max(1, round(image.height * factor)))
    copy = image.resize(size, Image.Resampling.NEAREST if longest < SMOOTH else Image.Resampling.LANCZOS)
    return copy, Frame(width=image.width, height=image.height, factor=factor)


def seen_part(image: Image.Image, model: Model, center_crop: bool) -> dict[str, Any]:
    """What the browser needs to refuse a box: `least`, px a side, and `seen`, the part that the model sees."""
    _, frame = to_square(image, model.resolution, center_crop)
    right, bottom = frame.left + model.resolution / frame.scale_x, frame.top + model.resolution / frame.scale_y
    least = model.scale / min(frame.scale_x, frame.scale_y)
    return {"least": least, "seen": [frame.left, frame.top, right, bottom], "most": MOST}


def read_regions(table: Sequence[Sequence[Any]], words: Sequence[str]) -> list[Region]:
    """The regions that a person asked about: the boxes of the table, then the words; the whole picture if none.

    Raises:
        InputError: a row lacks numbers, or there are more than MOST regions.
    """
    rows = [row for row in table if any(value not in (None, "") for value in row)]
    labels = [str(row[0] or "").strip()[:40] for row in rows]
    free = (name for number in itertools.count(1) if (name := f"box {number}") not in labels)
    found = [_box_region(row, label or next(free)) for row, label in zip(rows, labels, strict=True)]
    found += [Region(f"“{word}”", word=word) for word in words]
    if len(found) > MOST:
        raise InputError(f"{len(found)} regions are marked; accepted are up to {MOST} boxes and words together")
    return found or [Region("whole picture")]


def _box_region(row: Sequence[Any], label: str) -> Region:
    numbers: list[float] = []
    for name, value in zip(COLUMNS[1:], row[1:], strict=False):
        try:
            numbers.append(float(value))
        except (TypeError, ValueError):
            numbers.append(math.nan)
        if not math.isfinite(numbers[-1]):
            shown = "empty" if value in (None, "") else repr(value)[:40]
            raise InputError(f"{name} of {label} is {shown}; accepted are numbers, in pixels of the picture")
    if len(numbers) != 4:
        raise InputError(f"{label} has {len(numbers)} numbers; accepted are x0, y0, x1 and y1")
    return Region(label, ((numbers[0], numbers[1], numbers[2], numbers[3]),), label=label)


EMPTY: list[list[Any]] = [["", None, None, None, None]]  # a row to type in


def found_rows(detections: Sequence[Detection]) -> list[list[Any]]:
    """Detections as rows of the table, the best MOST of them."""
    return [[each.label, *(round(side, 1) for side in each.box)] for each in detections[:MOST]] or EMPTY


def drawn_boxes(table: Sequence[Sequence[Any]], factor: float) -> list[dict[str, Any]]:
    """Rows of the table as the annotator's boxes, coloured by their order."""
    return [
        {
            "label": str(label),
            "color": tuple(int(COLOURS[number % MOST][at : at + 2], 16) for at in (1, 3, 5)),
            **{
                side: round(factor * float(value))
                for side, value in zip(("xmin", "ymin", "xmax", "ymax"), sides, strict=True)
            },
        }
        for number, (label, *sides) in enumerate(table)
        if None not in sides
    ]
