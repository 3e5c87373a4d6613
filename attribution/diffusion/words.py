"""The words of a prompt in any script: letters with their marks and joiners, and emoji, which are words of their own.

The word characters of Python's `re` lack combining marks, which cuts the words of Hindi, Thai or Arabic apart. Here
each character is replaced by a letter for its kind, and words are found in that.
"""

import re
import unicodedata

HYPHENS = "'\u2019-\u2010\u2011\u00b7"  # join two parts of a word
KINDS = {"L": "L", "N": "L", "M": "M"}  # by Unicode's categories
# Z: zero-width joiner, F: another mark that has no width, T: a skin tone, R: half of a flag, E: another emoji
WORD = re.compile(r"L[LM]*(?:(?:[ZF]+|H)[LM]+)*|RR?|E[MTF]*(?:Z+E[MTF]*)*")
SPACELESS = (  # scripts that have no spaces between words: Thai to Lao, Myanmar, Khmer, Kana, Han
    *((0x0E00, 0x0EFF), (0x1000, 0x109F), (0x1780, 0x17FF), (0x3040, 0x30FF)),
    *((0x3400, 0x9FFF), (0xF900, 0xFAFF), (0x20000, 0x3FFFF)),
)


def kind(letter: str) -> str:
    """A character's kind, one of L, M, Z, F, H, T, R, E, or a space for what is in no word."""
    code, category = ord(letter), unicodedata.category(letter)
    if letter == "\u200d":
        return "Z"
    if letter in HYPHENS:
        return "H"
    if 0x1F3FB <= code <= 0x1F3FF:
        return "T"
    if 0x1F1E6 <= code <= 0x1F1FF:
        return "R"
    if (category == "So" and code >= 0x2300) or (category == "Cn" and 0x1F000 <= code <= 0x1FBFF):
        return "E"
    if category in ("Cf", "Cn"):
        return "F" if category == "Cf" else "L"  # of a script newer than Python's tables
    return KINDS.get(category[0], " ")


def spans(prompt: str) -> list[tuple[int, int]]:
    """Where the words of a prompt begin and end."""
    return [found.span() for found in WORD.finditer("".join(map(kind, prompt)))]


def words_of(prompt: str) -> list[str]:
    """The words of a prompt, each once, in its order."""
    return list(dict.fromkeys(prompt[start:end] for start, end in spans(prompt)))


def find_words(prompt: str, words: str) -> tuple[int, int] | None:
    """Where the prompt first has some words in a row, in any case; None where it does not have them whole.

    A part of a word counts where hyphens divide it, and in scripts that have no spaces.
    """
    words = words.strip()
    if not words:
        return None
    inner = {place for start, end in spans(prompt) for place in range(start + 1, end) if not _divides(prompt, place)}
    for found in re.finditer(f"(?={re.escape(words)})", prompt, re.IGNORECASE):
        start, end = found.start(), found.start() + len(words)
        if start not in inner and end not in inner:
            return start, end
    return None


def _divides(prompt: str, place: int) -> bool:
    """Whether a word may be cut before the character at `place`."""
    before, after = prompt[place - 1], prompt[place]
    if "H" in (kind(before), kind(after)):
        return True
    if kind(before) not in "LM" or kind(after) != "L":
        return False
    return any(first <= ord(each) <= last for each in (before, after) for first, last in SPACELESS)
