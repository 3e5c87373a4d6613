"""Pictures that no model made: noise, plain grounds, gradients, textures, shapes, charts, writing, faces."""

from collections.abc import Callable

import numpy as np
from PIL import Image, ImageDraw, ImageFont

Random = np.random.Generator
Colour = tuple[int, int, int]
WORDS = ("invoice", "total", "Monday", "notice", "chapter", "sale", "open", "page", "summary", "agenda")
CELLS = (2, 4, 8, 16, 32)  # a side, of the noise; fewer is smoother


def drawn(rng: Random, side: int) -> Image.Image:
    """A picture of one of DRAWN by chance: RGB, `side` pixels square."""
    return list(DRAWN.values())[int(rng.integers(len(DRAWN)))](rng, side)


def colour(rng: Random) -> Colour:
    """Any colour."""
    red, green, blue = (int(part) for part in rng.integers(0, 256, 3))
    return red, green, blue


def _canvas(rng: Random, side: int) -> tuple[Image.Image, ImageDraw.ImageDraw]:
    picture = Image.new("RGB", (side, side), colour(rng))
    return picture, ImageDraw.Draw(picture)


def _noise(rng: Random, side: int) -> Image.Image:
    cells = min(int(rng.choice((*CELLS, side))), side)
    coarse = Image.fromarray(rng.integers(0, 256, (cells, cells, 3), np.uint8))
    return coarse.resize((side, side), Image.Resampling.BICUBIC)


def _plain(rng: Random, side: int) -> Image.Image:
    return _canvas(rng, side)[0]


def _gradient(rng: Random, side: int) -> Image.Image:
    corners = np.array([[colour(rng), colour(rng)], [colour(rng), colour(rng)]], np.uint8)
    return Image.fromarray(corners).resize((side, side), Image.Resampling.BILINEAR)


def _texture(rng: Random, side: int) -> Image.Image:
    x, y = np.meshgrid(*[np.linspace(0, 1, side)] * 2)
    turns, angle = rng.uniform(2, 12), rng.uniform(0, np.pi)
    wave = np.sin(2 * np.pi * turns * (x * np.cos(angle) + y * np.sin(angle)))
    wave = np.sign(wave) if rng.random() < 0.5 else wave * np.sin(2 * np.pi * turns * (y - x))
    share = (wave[..., None] + 1) / 2
    return Image.fromarray((share * colour(rng) + (1 - share) * colour(rng)).astype(np.uint8))


def _corners(rng: Random, side: int) -> list[tuple[float, float]]:
    """Two corners of a box, the upper left first."""
    width, height = rng.uniform(0.15, 0.6, 2) * side
    left, top = rng.uniform(0, side - width), rng.uniform(0, side - height)
    return [(left, top), (left + width, top + height)]


def _shapes(rng: Random, side: int) -> Image.Image:
    picture, pen = _canvas(rng, side)
    for _ in range(int(rng.integers(1, 5))):
        draw = (pen.ellipse, pen.rectangle)[int(rng.integers(2))]
        outline = colour(rng) if rng.random() < 0.5 else None
        draw(_corners(rng, side), fill=colour(rng), outline=outline, width=max(1, side // 32))
    points = [(float(x), float(y)) for x, y in rng.uniform(0, side, (3, 2))]
    if rng.random() < 0.5:
        pen.polygon(points, fill=colour(rng))
    return picture


def _chart(rng: Random, side: int) -> Image.Image:
    picture = Image.new("RGB", (side, side), "white")
    pen, bars, foot = ImageDraw.Draw(picture), int(rng.integers(3, 8)), 0.9 * side
    pen.line([(0.1 * side, 0.1 * side), (0.1 * side, foot), (0.95 * side, foot)], "black", max(1, side // 64))
    ink, width = colour(rng), 0.8 * side / bars
    for bar, height in enumerate(rng.uniform(0.1, 0.75, bars) * side):
        left = 0.13 * side + bar * width
        pen.rectangle([left, foot - height, left + 0.7 * width, foot - 1], ink)
    return picture


def _writing(rng: Random, side: int) -> Image.Image:
    picture, pen = _canvas(rng, side)
    height, ink = side / int(rng.integers(3, 7)), colour(rng)
    for line in range(int(side / height)):
        words = " ".join(str(word) for word in rng.choice(WORDS, 3))
        pen.text((0.05 * side, line * height), words, ink, ImageFont.load_default(0.8 * height))
    return picture


def _face(rng: Random, side: int) -> Image.Image:
    picture, pen = _canvas(rng, side)
    middle, size = rng.uniform(0.35, 0.65, 2) * side, rng.uniform(0.2, 0.34) * side

    def round_at(x: float, y: float, radius: float, fill: Colour) -> None:
        at = middle + np.array([x, y]) * size
        pen.ellipse([tuple(at - radius * size), tuple(at + radius * size)], fill)

    round_at(0, 0, 1, colour(rng))
    ink = colour(rng)
    round_at(-0.4, -0.3, 0.15, ink)
    round_at(0.4, -0.3, 0.15, ink)
    mouth = [tuple(middle - 0.55 * size), tuple(middle + 0.55 * size)]
    pen.arc(mouth, 20, 160, ink, max(1, side // 24))
    return picture


DRAWN: dict[str, Callable[[Random, int], Image.Image]] = {
    "noise": _noise,
    "plain": _plain,
    "gradient": _gradient,
    "texture": _texture,
    "shapes": _shapes,
    "chart": _chart,
    "writing": _writing,
    "face": _face,
}
