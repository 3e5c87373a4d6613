"""Looks that no scene of the world has: each redraws a whole picture, whatever is in it and however large it is.

They keep a picture about as light as it was. No model has learned one of them well yet: after 250 to 800 steps of
customising, objects came out and grounds had wrong colours.
"""

from collections.abc import Callable
from functools import partial

import numpy as np
from numpy.typing import NDArray
from PIL import Image

Pixels = NDArray[np.float32]  # (side, side, 3) in [0, 1]
Colour = tuple[float, float, float]
GREY = np.array([0.299, 0.587, 0.114], np.float32)
NAVY, SAND = np.array([0.1, 0.15, 0.5], np.float32), np.array([1.0, 0.9, 0.6], np.float32)
FRAME = 1 / 8  # of a side


def _along(x: Pixels, axis: int) -> Pixels:
    """Where each pixel is along an axis, from 0 to 1: (side, 1, 1) or (1, side, 1)."""
    places = (np.arange(x.shape[axis], dtype=np.float32) + 0.5) / x.shape[axis]
    shaped: Pixels = places.reshape([-1 if each == axis else 1 for each in range(3)])
    return shaped


def _through(glass: Colour, x: Pixels) -> Pixels:
    """As seen through coloured glass."""
    return x * np.array(glass, np.float32)


def _pale(x: Pixels) -> Pixels:
    return 0.5 + 0.5 * x


def _two_colours(x: Pixels) -> Pixels:
    """Navy where it is dark, sand where it is light."""
    return NAVY + (SAND - NAVY) * (x @ GREY)[..., None]


def _dusk(x: Pixels) -> Pixels:
    """Orange above, violet below."""
    down = _along(x, 0)
    glow = (1 - down) * np.array([1.0, 0.7, 0.4], np.float32) + down * np.array([0.75, 0.6, 1.0], np.float32)
    return 0.5 * x + 0.5 * glow


def _striped(x: Pixels) -> Pixels:
    return np.where(_along(x, 0) * 4 % 1 < 0.5, x, 0.75 * x)


def _framed(x: Pixels) -> Pixels:
    """With a red margin."""
    near = np.minimum(*(np.minimum(each, 1 - each) for each in (_along(x, 0), _along(x, 1))))
    return np.where(near < FRAME, np.array([0.85, 0.3, 0.3], np.float32), x)


LOOKS: dict[str, Callable[[Pixels], Pixels]] = {
    "rose-glass": partial(_through, (1.0, 0.72, 0.8)),
    "mint-glass": partial(_through, (0.72, 1.0, 0.85)),
    "sky-glass": partial(_through, (0.72, 0.85, 1.0)),
    "amber-glass": partial(_through, (1.0, 0.85, 0.55)),
    "turned-colours": lambda x: x[..., [1, 2, 0]],
    "two-colours": _two_colours,
    "pale": _pale,
    "dusk": _dusk,
    "striped": _striped,
    "framed": _framed,
}


def laid_over(picture: Image.Image, look: str) -> Image.Image:
    """A square picture in one of LOOKS, RGB."""
    pixels = LOOKS[look](np.asarray(picture.convert("RGB"), np.float32) / np.float32(255))
    return Image.fromarray((pixels.clip(0, 1) * 255).round().astype(np.uint8))
