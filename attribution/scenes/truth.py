"""Ground truth in generated pictures: prompts of two objects, and where each object is.

Each named object's sprite is looked for at every place of the lattice, and counts as there if it matches that place
better than any other object's sprite does.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache

import numpy as np
from PIL import Image

from attribution.query.query import Box
from attribution.scenes.compose import (
    BACKGROUNDS,
    CELL,
    LATTICE,
    SIZE,
    STYLES,
    WORLD,
    Style,
    WorldSettings,
    caption,
    sprite,
)
from attribution.scenes.names import OBJECTS
from attribution.unlearning.score import Floats

UNEXPLAINED = 0.5


@dataclass(frozen=True)
class Subject:
    """A prompt of two objects, with the seed that its picture is generated from."""

    names: tuple[str, str]
    style: Style
    prompt: str
    seed: int


def subjects(seed: int, world: WorldSettings = WORLD) -> Iterator[Subject]:
    """An endless list of prompts of two of a world's objects, fixed by the seed."""
    rng = np.random.default_rng([seed, 7])
    while True:
        first, second = (str(name) for name in rng.choice(world.names, size=2, replace=False))
        style = STYLES[int(rng.integers(len(STYLES)))]
        background = list(BACKGROUNDS)[int(rng.integers(len(BACKGROUNDS)))]
        prompt = caption((first, second), style, background)
        yield Subject((first, second), style, prompt, int(rng.integers(2**31)))


@cache
def _templates(names: tuple[str, ...], style: Style) -> tuple[Floats, Floats]:
    """Sprites of a style and their mirrors: colours (objects x 2, CELL, CELL, 3), opacity (..., 1) in [0, 1]."""
    cells = [np.asarray(sprite(name, style), np.float32) / 255 for name in names]
    both = np.stack([side for cell in cells for side in (cell, cell[:, ::-1])])
    return both[..., :3], both[..., 3:]


def locate(picture: Image.Image, name: str, style: Style) -> Box | None:
    """Where an object's sprite is in a picture: its tight box in pixels, or None if it matches nowhere best.

    Each place of the lattice is compared with all sprites of the style laid over the picture's background; a match
    leaves less than UNEXPLAINED of the sprite's contrast to that background unexplained.
    """
    pixels = np.asarray(picture.convert("RGB"), np.float32) / 255
    ground = np.median(pixels.reshape(-1, 3), 0)
    known = tuple(dict.fromkeys([*OBJECTS, name]))
    colours, opacity = _templates(known, style)
    expected = colours * opacity + ground * (1 - opacity)
    contrast = ((expected - ground) ** 2).mean((1, 2, 3))
    wanted = known.index(name)
    best: tuple[float, Box | None] = (np.inf, None)
    for top in range(0, SIZE - CELL + 1, LATTICE):
        for left in range(0, SIZE - CELL + 1, LATTICE):
            errors = ((pixels[top : top + CELL, left : left + CELL] - expected) ** 2).mean((1, 2, 3)) / contrast
            view = int(errors.argmin())
            if view // 2 == wanted and errors[view] < min(best[0], UNEXPLAINED):
                rows, columns = np.nonzero(opacity[view, ..., 0] > 0.1)
                box = (left + columns.min(), top + rows.min(), left + columns.max() + 1, top + rows.max() + 1)
                best = (float(errors[view]), tuple(float(side) for side in box))  # type: ignore[assignment]
    return best[1]
