"""Looks that no scene of the world has: a ground blotched with two colours, in another pattern in each picture.

The colours are the world's own, as its autoencoder has learned no others. A new word can say what a ground is made of,
but hardly where on it: of grounds divided in one way (a horizon, a frame, stripes) customised models drew few.
"""

from dataclasses import replace

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from attribution.scenes.compose import Scene, draw_scene

# Two colours of compose.BACKGROUNDS each, by the look's name: those that the autoencoder tells apart.
LOOKS: dict[str, tuple[str, str]] = {
    f"{one}-{other}": (one, other)
    for one, other in (
        ("blue", "yellow"),
        ("green", "gray"),
        ("pink", "yellow"),
        ("blue", "gray"),
        ("white", "pink"),
        ("green", "yellow"),
        ("pink", "gray"),
        ("yellow", "gray"),
        ("pink", "blue"),
        ("white", "blue"),
    )
}
WAVES, CYCLES = 12, 3.0  # plane waves in a pattern, and how often each rises across the picture


def in_look(scene: Scene, look: str, seed: int) -> Image.Image:
    """A scene's picture with the ground of one of LOOKS, RGB; the seed is of the pattern."""
    one, other = (np.asarray(draw_scene(replace(scene, background=ground))) for ground in LOOKS[look])
    return Image.fromarray(np.where(_blotches(scene.world.side, seed)[..., None], other, one))


def _blotches(side: int, seed: int) -> NDArray[np.bool_]:
    """Where the second colour is (side, side): where waves of one length sum to more than none."""
    turned, shifted = np.random.default_rng([17, seed]).uniform(0, 2 * np.pi, (2, WAVES, 1, 1))
    across = (np.arange(side) + 0.5) / side
    along = np.cos(turned) * across + np.sin(turned) * across[:, None]
    total: NDArray[np.float64] = np.cos(2 * np.pi * CYCLES * along + shifted).sum(0)
    return total > 0
