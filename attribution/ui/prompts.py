"""What can be asked for: the things that training captions name, and prompts made of them by chance."""

import random
import re
from collections import Counter
from collections.abc import Sequence

from attribution.query.labels import phrases

LOOKED_AT = 2000  # captions, of which the things are counted
MOST_CHIPS = 12


def things(captions: Sequence[str], most: int = MOST_CHIPS) -> list[str]:
    """The things that captions name most often, by their names.

    Args:
        captions: of a training set; the first LOOKED_AT are read.
        most: how many.
    """
    named = Counter(name for caption in captions[:LOOKED_AT] for name in phrases(caption))
    return sorted(name for name, _ in named.most_common(most))


def first_prompt(captions: Sequence[str]) -> str:
    """What the page begins with where no example is open: the first caption that names a thing, or the first.

    Args:
        captions: of a training set, at least one.
    """
    return next((caption for caption in captions[:LOOKED_AT] if phrases(caption)), captions[0])


def prompt_with(name: str, captions: Sequence[str], chance: random.Random) -> str:
    """A caption by chance, in which one thing by chance is another one.

    Args:
        name: the other one, one of `things`; "" is one that another caption names.
        captions: of a training set, at least one.
        chance: what is drawn from.
    """
    caption = chance.choice(captions)
    others = phrases(chance.choice(captions))
    new = name or (chance.choice(others) if others else "")
    named = phrases(caption)
    if not named or not new or new in named:
        return caption
    return replaced(caption, chance.choice(named), new)


def replaced(caption: str, old: str, new: str) -> str:
    """A caption with another thing in it, and the article that goes before it."""
    article = "an" if new[:1].lower() in "aeiou" else "a"
    found = re.search(rf"(?:\b(an?)\s+)?\b{re.escape(old)}\b", caption, re.IGNORECASE)
    if found is None:
        return caption
    put = f"{article} {new}" if found[1] else new
    return caption[: found.start()] + put + caption[found.end() :]
