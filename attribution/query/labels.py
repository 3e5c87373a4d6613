"""Names of objects: those that a prompt has, those that a person writes, and the caption that a detector reads."""

import math
import re
from collections.abc import Sequence

from attribution.diffusion.attention import words_of
from attribution.errors import InputError

MAX_LABELS = 50
MAX_LABEL = 100  # characters of one
BREAKS = re.compile(
    r"(an?|the|this|that|these|those|some|and|or|of|in|on|at|by|with|without|to|from|for|into|onto|over|under|near|next"
    r"|behind|beside|between|above|below|inside|outside|around|against|through|is|are|was|were|be|as|its|his|her|their"
    r"|one|two|three|four|five|six|seven|eight|nine|ten|several|many)"
)


MEDIA = re.compile(r"drawing|painting|photo|photograph|picture|image|illustration|sketch|background|style")


def phrases(prompt: str) -> list[str]:
    """The things that a prompt names, in its order: runs of words between articles, prepositions and punctuation.

    "a flat drawing of a red apple and a motorcycle on a blue background" names a red apple and a motorcycle: a run that
    ends with a medium or a background is left out.
    """
    named: list[str] = []
    for part in re.split(r"[^\w\s'-]+", prompt.lower()):
        run: list[str] = []
        for word in [*part.split(), "and"]:
            if not BREAKS.fullmatch(word):
                run.append(word)
                continue
            if run and not MEDIA.fullmatch(run[-1]):
                named.append(" ".join(run))
            run = []
    return list(dict.fromkeys(named))[:MAX_LABELS]


def telling(prompt: str) -> list[str]:
    """The words of a prompt, without articles, prepositions and the like."""
    return [word for word in words_of(prompt) if not BREAKS.fullmatch(word.lower())]


def parse_labels(text: str) -> list[str]:
    """Labels typed in one line, between full stops, commas or semicolons."""
    return [part.strip() for part in re.split(r"[.,;?\n]+", text) if part.strip()]


def check_labels(labels: Sequence[str]) -> list[str]:
    """Labels in lower case, each once.

    Raises:
        InputError: there is none, or too many, or one is empty, too long, unprintable or has a separator in it.
    """
    accepted = f'accepted are 1 to {MAX_LABELS} names of up to {MAX_LABEL} characters, such as "apple . motorcycle"'
    cleaned = list(dict.fromkeys(" ".join(label.lower().split()) for label in labels))
    if not cleaned or len(cleaned) > MAX_LABELS:
        raise InputError(f"there are {len(cleaned)} labels to look for; {accepted}")
    for label in cleaned:
        if not 0 < len(label) <= MAX_LABEL or not label.isprintable() or re.search(r"[.?]", label):
            raise InputError(f"the label {label[:60]!r} cannot be looked for; {accepted}")
    return cleaned


def check_threshold(threshold: float) -> float:
    """A threshold.

    Raises:
        InputError: it is not from 0 to 1.
    """
    if not (math.isfinite(threshold) and 0 <= threshold <= 1):
        raise InputError(f"the threshold {threshold!r} is not possible; accepted are 0 to 1")
    return threshold


def caption_of(labels: Sequence[str]) -> tuple[str, list[tuple[int, int]]]:
    """What GroundingDINO reads, "apple . motorcycle .", and where each label is in it."""
    text, spans = "", []
    for label in labels:
        spans.append((len(text), len(text) + len(label)))
        text += label + " . "
    return text.strip(), spans
