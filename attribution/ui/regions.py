"""Regions of the picture: boxes on it, the same as a table of numbers, and words of its prompt.

The annotator is shown a copy of the picture whose sides are `factor` times the picture's own. `Frame` tells the
browser so, where boxes and table are kept in step; what is sent with a question is the table, in pixels of the picture
itself.
"""

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, TypedDict

from PIL import Image

from attribution.detect import Detection
from attribution.errors import InputError
from attribution.query import Box
from attribution.ui.style import COLOURS

SHOWN_SIDE = 512  # px: small pictures are enlarged to about this
LARGEST_SHOWN = 1024  # px
COLUMNS = ["label", "x0", "y0", "x1", "y1"]
MOST = len(COLOURS)


class Frame(TypedDict):
    """Size of the picture in pixels, and how many pixels of the shown copy one of them is."""

    width: int
    height: int
    factor: float


@dataclass(frozen=True)
class Region:
    """What a question is about: a box, or a word, or neither, which is the whole picture."""

    name: str
    boxes: tuple[Box, ...] = ()
    word: str | None = None


def shown_copy(image: Image.Image) -> tuple[Image.Image, Frame]:
    """A copy to draw on: small pictures enlarged by a whole factor without smoothing, large ones reduced."""
    longest = max(image.size)
    factor: float = max(1, SHOWN_SIDE // longest)
    if longest > LARGEST_SHOWN:
        factor = LARGEST_SHOWN / longest
    size = (max(1, round(image.width * factor)), max(1, round(image.height * factor)))
    copy = image.resize(size, Image.Resampling.NEAREST if factor >= 1 else Image.Resampling.LANCZOS)
    return copy, Frame(width=image.width, height=image.height, factor=factor)


def read_regions(table: Sequence[Sequence[Any]], words: Sequence[str]) -> list[Region]:
    """The regions that a person asked about: the boxes of the table, then the words; the whole picture if none.

    Raises:
        InputError: a row lacks numbers, or there are more than MOST regions.
    """
    rows = [row for row in table if any(value not in (None, "") for value in row)]
    found = [_box_region(row, number) for number, row in enumerate(rows, 1)]
    found += [Region(f"“{word}”", word=word) for word in words]
    if len(found) > MOST:
        raise InputError(f"{len(found)} regions are marked; accepted are up to {MOST} boxes and words together")
    return found or [Region("whole picture")]


def _box_region(row: Sequence[Any], number: int) -> Region:
    numbers: list[float] = []
    for name, value in zip(COLUMNS[1:], row[1:], strict=False):
        try:
            numbers.append(float(value))
        except (TypeError, ValueError):
            numbers.append(math.nan)
        if not math.isfinite(numbers[-1]):
            shown = "empty" if value in (None, "") else repr(value)[:40]
            raise InputError(f"{name} of box {number} is {shown}; accepted are numbers, in pixels of the picture")
    if len(numbers) != 4:
        raise InputError(f"box {number} has {len(numbers)} numbers; accepted are x0, y0, x1 and y1")
    label = str(row[0] or "").strip()[:40]
    return Region(label or f"box {number}", ((numbers[0], numbers[1], numbers[2], numbers[3]),))


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


_VALID = f"""
const colours = {json.dumps([[int(colour[at : at + 2], 16) for at in (1, 3, 5)] for colour in COLOURS])};
const rows = (table?.data ?? []).filter((row) => row.some((value) => value !== null && value !== ""));
const sidesOf = (row) => row.slice(1).map((side) => (side === "" || side === null ? NaN : Number(side)));
const isBox = ([x0, y0, x1, y1]) =>
  0 <= x0 && x0 < x1 && x1 <= frame.width && 0 <= y0 && y0 < y1 && y1 <= frame.height;
"""

# (annotator, frame, table) -> table. A row that says where a box is already stays as it was typed. Without boxes, the
# annotator is made ready to draw one. There is always an empty row to type in, until there are MOST.
TABLE_FOLLOWS = f"""(drawn, frame, table) => {{
  if (!drawn || !frame) return table;
  {_VALID}
  const boxes = drawn.boxes ?? [];
  if (!boxes.length) document.querySelector('#picture [aria-label="Create box"]')?.click();
  const typed = rows.filter((row) => !isBox(sidesOf(row)));
  const kept = rows.filter((row) => isBox(sidesOf(row)));
  const data = boxes.map((box, number) => {{
    const scale = frame.factor * (box.scaleFactor || 1);
    const sides = [box.xmin, box.ymin, box.xmax, box.ymax].map((side) => side / scale);
    const same = kept.find((row) => sidesOf(row).every((side, i) => Math.abs(side - sides[i]) < 0.5));
    if (same) return same;
    const [x0, y0, x1, y1] = sides.map(Math.round);
    const label = box.label || kept[number]?.[0] || "";
    return [label, Math.max(0, x0), Math.max(0, y0), Math.min(frame.width, x1), Math.min(frame.height, y1)];
  }});
  const told = [...data.filter((row) => isBox(sidesOf(row))), ...typed];
  return {{...table, data: told.length < {MOST} ? [...told, ["", null, null, null, null]] : told}};
}}"""

# (annotator, frame, table) -> annotator, the same one where it shows these boxes already: of a new one it tells, and
# the table that follows it would lose what is being typed meanwhile.
_BOXES = f"""(drawn, frame, table, always) => {{
  if (!drawn || !frame) return drawn;
  {_VALID}
  const boxes = rows.filter((row) => isBox(sidesOf(row))).map((row, number) => {{
    const [xmin, ymin, xmax, ymax] = sidesOf(row).map((side) => side * frame.factor);
    return {{xmin, ymin, xmax, ymax, label: row[0] || "", color: colours[number % colours.length]}};
  }});
  const shown = drawn.boxes ?? [];
  const same = !always && boxes.length === shown.length && boxes.every((box, number) => {{
    const {{scaleFactor: scale = 1, ...now}} = shown[number];
    const near = (side) => Math.abs(now[side] / (scale || 1) - box[side]) < frame.factor / 2;
    return ["xmin", "ymin", "xmax", "ymax"].every(near);
  }});
  return same ? drawn : {{...drawn, boxes}};
}}"""

BOXES_FOLLOW = f"(drawn, frame, table) => ({_BOXES})(drawn, frame, table, false)"
RECOLOUR = f"(drawn, frame, table) => ({_BOXES})(drawn, frame, table, true)"  # by the order of the table

# At the start: the annotator zooms with the wheel where a person wants to scroll the page; the wheel is kept from it
# unless Control is held.
START = """() => {
  const scroll = (event) => !event.ctrlKey && event.target.closest?.("#picture") && event.stopPropagation();
  document.addEventListener("wheel", scroll, {capture: true, passive: true});
}"""
