"""Looks that no scene of the world has: a ground of two colours, divided in one way whatever stands on it.

The colours are the world's own, as its autoencoder has learned no others: what is seen through coloured glass comes
back from it on another ground, and no customised model can draw it.
"""

from collections.abc import Callable
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from attribution.scenes.compose import Scene, draw_scene

Places = NDArray[np.float64]  # of pixel centres, from -1 to 1
Where = Callable[[Places, Places], NDArray[np.bool_]]  # across, down -> where the second colour is

# The name of the look, its two colours of compose.BACKGROUNDS, and where the second one is.
LOOKS: dict[str, tuple[str, str, Where]] = {
    "beach": ("blue", "yellow", lambda across, down: down > 0),
    "curtain": ("white", "pink", lambda across, down: across > 0),
    "slope": ("yellow", "gray", lambda across, down: down > across),
    "window": ("white", "gray", lambda across, down: np.maximum(abs(across), abs(down)) > 0.75),
    "chess": ("blue", "yellow", lambda across, down: across * down > 0),
    "bands": ("white", "pink", lambda across, down: np.floor(2 * down) % 2 == 1),
    "stripes": ("white", "yellow", lambda across, down: np.floor(2 * across) % 2 == 1),
    "spot": ("green", "white", lambda across, down: across**2 + down**2 < 0.5),
    "cross": ("white", "green", lambda across, down: np.minimum(abs(across), abs(down)) < 0.25),
    "corner": ("white", "blue", lambda across, down: np.minimum(across, down) > -0.25),
}


def in_look(scene: Scene, look: str) -> Image.Image:
    """A scene's picture with the ground of one of LOOKS, RGB."""
    one, other, where = LOOKS[look]
    drawn = [np.asarray(draw_scene(replace(scene, background=ground))) for ground in (one, other)]
    places = (np.arange(scene.world.side) + 0.5) / scene.world.side * 2 - 1
    return Image.fromarray(np.where(where(places[None], places[:, None])[..., None], drawn[1], drawn[0]))
