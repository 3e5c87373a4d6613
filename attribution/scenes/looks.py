"""Looks that no scene of the world has: each redraws a whole picture, whatever is in it and however large it is."""

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray
from PIL import Image

Pixels = NDArray[np.float32]  # (side, side, 3) in [0, 1]
GREY = np.array([0.299, 0.587, 0.114], np.float32)
NAVY, SAND = np.array([0.05, 0.1, 0.4], np.float32), np.array([1.0, 0.85, 0.4], np.float32)
BROWN = np.array([1.0, 0.85, 0.6], np.float32)
BLOCKS = 16  # of a mosaic, along a side


def _grey(x: Pixels) -> Pixels:
    """How light each pixel is, (side, side, 1)."""
    light: Pixels = (x @ GREY)[..., None]
    return light


def _along(x: Pixels, axis: int) -> Pixels:
    """Where each pixel is along an axis, from 0 to 1: (side, 1, 1) or (1, side, 1)."""
    places = (np.arange(x.shape[axis], dtype=np.float32) + 0.5) / x.shape[axis]
    shaped: Pixels = places.reshape([-1 if each == axis else 1 for each in range(3)])
    return shaped


def _sepia(x: Pixels) -> Pixels:
    return _grey(x) * BROWN


def _dusk(x: Pixels) -> Pixels:
    """Orange above, violet below."""
    down = _along(x, 0)
    glow = (1 - down) * np.array([1.0, 0.5, 0.1], np.float32) + down * np.array([0.4, 0.1, 0.6], np.float32)
    return 0.5 * x + 0.5 * glow


def _striped(x: Pixels) -> Pixels:
    return np.where(_along(x, 0) * 4 % 1 < 0.5, x, 0.35 * x)


def _chequered(x: Pixels) -> Pixels:
    odd = (np.floor(_along(x, 0) * 4) + np.floor(_along(x, 1) * 4)) % 2
    return np.where(odd == 1, 1 - x, x)


def _spotlit(x: Pixels) -> Pixels:
    away = (_along(x, 0) - 0.5) ** 2 + (_along(x, 1) - 0.5) ** 2
    lit: Pixels = x * np.exp(-6 * away)
    return lit


def _mosaic(x: Pixels) -> Pixels:
    edges = np.linspace(0, len(x), BLOCKS + 1).astype(int)[:-1]
    means = np.add.reduceat(np.add.reduceat(x, edges, 0), edges, 1)
    counts = np.diff([*edges, len(x)])
    means /= (counts[:, None] * counts[None])[..., None]
    return means.repeat(counts, 0).repeat(counts, 1)


LOOKS: dict[str, Callable[[Pixels], Pixels]] = {
    "negative": lambda x: 1 - x,
    "sepia": _sepia,
    "night": lambda x: x * np.array([0.25, 0.3, 0.6], np.float32),
    "dusk": _dusk,
    "striped": _striped,
    "chequered": _chequered,
    "spotlit": _spotlit,
    "turned-colours": lambda x: x[..., [1, 2, 0]],
    "mosaic": _mosaic,
    "two-colours": lambda x: NAVY + (SAND - NAVY) * _grey(x),
}


def laid_over(picture: Image.Image, look: str) -> Image.Image:
    """A square picture in one of LOOKS, RGB."""
    pixels = LOOKS[look](np.asarray(picture.convert("RGB"), np.float32) / np.float32(255))
    return Image.fromarray((pixels.clip(0, 1) * 255).round().astype(np.uint8))
