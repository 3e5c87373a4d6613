"""Questions that have no answer: pictures and regions asked about with words that are not theirs.

They are like what people ask: a generated picture with another picture's prompt or one of no picture, a drawing that
the model never made, an empty region, a word such as "a" that is nowhere. Each depends on its random generator alone.
"""

from collections import Counter
from collections.abc import Callable, Mapping
from functools import cached_property

import numpy as np
from PIL import Image

from attribution.answers.drawn import Random, drawn
from attribution.diffusion.pipeline import Model
from attribution.diffusion.words import words_of
from attribution.index.index import Index
from attribution.index.texts import LOOKED_AT
from attribution.query.evidence import EMPTY, Kind, filled
from attribution.query.query import Box, Query

KINDS: tuple[Kind, ...] = ("whole", "box", "word")
POOL = 64  # generated pictures that the questions share
RARE = 0.1  # of the captions; a word of fewer tells what a picture is of
TRIES = 50  # captions that are tried until one shares no rare word
BOXES = 12  # that are tried, for the fullest or the emptiest
NOWHERE = (
    "a",
    "an",
    "the",
    "on",
    "of",
    "in",
    "with",
    "and",
    "at",
    "background",
    "drawing",
    "picture",
    "photo",
    "image",
)
NONSENSE = (
    "quarterly results of an insurance company",
    "minutes of the council's meeting about parking permits",
    "proof of the second lemma by induction",
    "terms and conditions apply until further notice",
    "tomorrow's arithmetic examination is postponed",
    "a theory of justice in twelve chapters",
    "subject to approval by the auditors",
    "the grammar of reported speech",
)


class Pictures:
    """What questions are made of: pictures generated for an index's captions, each made when it is first asked for."""

    def __init__(self, model: Model, index: Index, seed: int) -> None:
        self.model, self.captions, self.seed = model, index.captions, seed
        self._made: dict[int, tuple[str, Image.Image]] = {}

    def generated(self, rng: Random) -> tuple[str, Image.Image]:
        """One of POOL generated pictures, with its prompt."""
        number = int(rng.integers(POOL))
        if number not in self._made:
            own = np.random.default_rng([self.seed, POOL, number])
            prompt = self.captions[int(own.integers(len(self.captions)))]
            self._made[number] = prompt, self.model.generate(prompt, int(own.integers(2**31)))
        return self._made[number]

    def other(self, prompt: str, rng: Random) -> str:
        """A caption without any rare word of the prompt's; a prompt of no picture where there is none."""
        for _ in range(TRIES):
            found = self.captions[int(rng.integers(len(self.captions)))]
            if found.strip() and not self.rare(found) & self.rare(prompt) and found != prompt:
                return found
        return str(rng.choice(NONSENSE))

    def rare(self, text: str) -> set[str]:
        """The words of a text that fewer than RARE of the captions have."""
        read = min(LOOKED_AT, len(self.captions))
        return {word for word in words_of(text.lower()) if self._counts[word] < RARE * read}

    def read(self, prompt: str, words: list[str]) -> list[str]:
        """The words of a prompt that are not beyond what the model reads."""
        kept = " ".join(self.model.tokens.count(prompt).kept.lower().split())
        return [word for word in words if word.lower() in words_of(kept)]

    @cached_property
    def _counts(self) -> Counter[str]:
        return Counter(word for text in self.captions[:LOOKED_AT] for word in words_of(text.lower()))


Ask = Callable[[Pictures, Random], tuple[str, Image.Image]]  # a prompt, and a picture that is not of it
Maker = Callable[[Pictures, Random], Query]
Makers = Mapping[Kind, Mapping[str, Maker]]


def some_box(picture: Image.Image, rng: Random, fullest: bool = True) -> Box:
    """A box of a sixth to half of the sides: of BOXES by chance the one with the most in it, or the least."""
    width, height = picture.size
    boxes = []
    for _ in range(BOXES):
        across, down = rng.uniform(1 / 6, 1 / 2, 2) * picture.size
        left, top = rng.uniform(0, width - across), rng.uniform(0, height - down)
        boxes.append((float(left), float(top), float(left + across), float(top + down)))
    shares = [_share(picture, box) for box in boxes]
    return boxes[int(np.argmax(shares) if fullest else np.argmin(shares))]


def _share(picture: Image.Image, box: Box) -> float:
    """The share of a box that is filled."""
    x0, y0, x1, y1 = (round(side) for side in box)
    part = picture.crop((x0, y0, x1, y1))
    return filled(part, np.ones(part.size[::-1]))


def asked(kind: Kind, ask: Ask) -> Maker:
    """Ask about the whole picture, about a box with something in it, or about a word of the prompt."""

    def make(pictures: Pictures, rng: Random) -> Query:
        prompt, picture = ask(pictures, rng)
        if kind == "box":
            return Query(prompt, picture, boxes=(some_box(picture, rng),))
        if kind == "word":
            words = pictures.read(prompt, sorted(pictures.rare(prompt))) or words_of(prompt)[:1]
            return Query(prompt, picture, word=str(rng.choice(words)))
        return Query(prompt, picture)

    return make


def _other_prompt(pictures: Pictures, rng: Random) -> tuple[str, Image.Image]:
    own, picture = pictures.generated(rng)
    return pictures.other(own, rng), picture


def _nonsense(pictures: Pictures, rng: Random) -> tuple[str, Image.Image]:
    return str(rng.choice(NONSENSE)), pictures.generated(rng)[1]


def _drawing(pictures: Pictures, rng: Random) -> tuple[str, Image.Image]:
    return pictures.other("", rng), drawn(rng, pictures.model.resolution)


def _empty_box(pictures: Pictures, rng: Random) -> Query:
    for _ in range(BOXES):
        prompt, picture = pictures.generated(rng)
        box = some_box(picture, rng, fullest=False)
        if _share(picture, box) < EMPTY:  # else it is of the picture, and the prompt is its own
            return Query(prompt, picture, boxes=(box,))
    return asked("box", _other_prompt)(pictures, rng)


def _nowhere_word(pictures: Pictures, rng: Random) -> Query:
    prompt, picture = pictures.generated(rng)
    if words := pictures.read(prompt, [word for word in words_of(prompt) if word.lower() in NOWHERE]):
        return Query(prompt, picture, word=str(rng.choice(words)))
    return asked("word", _other_prompt)(pictures, rng)


ASKS: dict[str, Ask] = {"another's prompt": _other_prompt, "nonsense prompt": _nonsense, "drawing": _drawing}
OWN: Makers = {"whole": {}, "box": {"empty region": _empty_box}, "word": {"word that is nowhere": _nowhere_word}}


def makers(kind: Kind, more: Makers | None = None) -> dict[str, Maker]:
    """Every way to make a question of a kind, by its name; `more` are a world's own."""
    return {**{name: asked(kind, ask) for name, ask in ASKS.items()}, **OWN[kind], **(more or {}).get(kind, {})}


def question(pictures: Pictures, kind: Kind, number: int, more: Makers | None = None) -> tuple[str, Query]:
    """Question `number` of a kind, with the name of what makes it; the makers take turns."""
    table = makers(kind, more)
    name = list(table)[number % len(table)]
    return name, table[name](pictures, np.random.default_rng([pictures.seed, KINDS.index(kind), number]))
