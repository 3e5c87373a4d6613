"""The box on the picture: one drawn, or four numbers, kept in step in the browser.

The annotator is shown a copy of the picture whose sides are `factor` times the picture's own. `Frame` tells the
browser so; what is sent with a query is the four numbers, in pixels of the picture itself.
"""

from typing import TypedDict

from PIL import Image

from attribution.attribute import Box
from attribution.errors import InputError
from attribution.ui.style import ACCENT

SHOWN_SIDE = 512  # px: small pictures are enlarged to about this
LARGEST_SHOWN = 1024  # px
NAMES = ("x0", "y0", "x1", "y1")


class Frame(TypedDict):
    """Size of the picture in pixels, and how many pixels of the shown copy one of them is."""

    width: int
    height: int
    factor: float


def shown_copy(image: Image.Image) -> tuple[Image.Image, Frame]:
    """A copy to draw on: small pictures enlarged by a whole factor without smoothing, large ones reduced."""
    longest = max(image.size)
    factor: float = max(1, SHOWN_SIDE // longest)
    if longest > LARGEST_SHOWN:
        factor = LARGEST_SHOWN / longest
    size = (max(1, round(image.width * factor)), max(1, round(image.height * factor)))
    copy = image.resize(size, Image.Resampling.NEAREST if factor >= 1 else Image.Resampling.LANCZOS)
    return copy, Frame(width=image.width, height=image.height, factor=factor)


def read_box(numbers: tuple[float | None, ...]) -> tuple[Box, ...]:
    """The typed box as a query has it: none if all four fields are empty.

    Raises:
        InputError: some are empty.
    """
    missing = [name for name, number in zip(NAMES, numbers, strict=True) if number is None]
    if len(missing) == len(NAMES):
        return ()
    if missing:
        raise InputError(
            f"the box has no {' and no '.join(missing)}; give all four numbers, or clear the box for the whole picture"
        )
    x0, y0, x1, y1 = (float(number) for number in numbers if number is not None)
    return ((x0, y0, x1, y1),)


_COLOR = [int(ACCENT[at : at + 2], 16) for at in (1, 3, 5)]
_VALID = """
const isBox = ([x0, y0, x1, y1]) =>
  [x0, y0, x1, y1].every((side) => typeof side === "number" && Number.isFinite(side)) &&
  0 <= x0 && x0 < x1 && x1 <= frame.width && 0 <= y0 && y0 < y1 && y1 <= frame.height;
"""

# (annotator, frame, x0, y0, x1, y1) -> x0, y0, x1, y1. A box that came from the numbers leaves them as they are,
# and so does its absence while the numbers make no box. Without a box, the annotator is made ready to draw one.
NUMBERS_FOLLOW = f"""(drawn, frame, ...numbers) => {{
  if (!drawn || !frame) return numbers;
  {_VALID}
  const box = drawn.boxes?.[0];
  if (!box) {{
    document.querySelector('#picture [aria-label="Create box"]')?.click();
    return isBox(numbers) ? [null, null, null, null] : numbers;
  }}
  const scale = frame.factor * (box.scaleFactor || 1);
  const sides = [box.xmin, box.ymin, box.xmax, box.ymax].map((side) => side / scale);
  if (isBox(numbers) && sides.every((side, i) => Math.abs(side - numbers[i]) < 0.5)) return numbers;
  const [x0, y0, x1, y1] = sides.map(Math.round);
  if (x1 - x0 < 1 || y1 - y0 < 1) return numbers;
  return [Math.max(0, x0), Math.max(0, y0), Math.min(frame.width, x1), Math.min(frame.height, y1)];
}}"""

# (annotator, frame, x0, y0, x1, y1) -> annotator
BOX_FOLLOWS = f"""(drawn, frame, ...numbers) => {{
  if (!drawn || !frame) return drawn;
  {_VALID}
  const [xmin, ymin, xmax, ymax] = numbers.map((side) => side * frame.factor);
  return {{...drawn, boxes: isBox(numbers) ? [{{xmin, ymin, xmax, ymax, label: "", color: {_COLOR}}}] : []}};
}}"""

# At the start: () -> x0, y0, x1, y1. Gradio's empty number fields hold 0 until told otherwise, and the annotator
# zooms with the wheel where a person wants to scroll the page: the wheel is kept from it unless Control is held.
START = """() => {
  const scroll = (event) => !event.ctrlKey && event.target.closest?.("#picture") && event.stopPropagation();
  document.addEventListener("wheel", scroll, {capture: true, passive: true});
  return [null, null, null, null];
}"""

# (annotator) -> annotator, x0, y0, x1, y1
CLEAR = "(drawn) => [drawn && {...drawn, boxes: []}, null, null, null, null]"
