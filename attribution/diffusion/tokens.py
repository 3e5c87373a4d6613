"""Prompts as tokens: a tokenizer that threads can share, and what a prompt may be."""

import unicodedata
from dataclasses import dataclass
from itertools import count, takewhile
from threading import Lock
from typing import Any

from torch import Tensor

from attribution.errors import InputError

MAX_PROMPT = 4000  # characters; CLIP reads 77 tokens of them
Token = tuple[int, tuple[int, int]]  # its id, and the characters that it is of, as first and one past the last
SPACES = "\t\n\v\f\r\x85"  # the control characters that a text may have


@dataclass(frozen=True)
class TokenCount:
    """A prompt in tokens, the two markers included: how many, how many fit, and the words that are kept."""

    count: int
    limit: int
    kept: str


class Tokens:
    """A model's tokenizer. Truncation and padding are states of it, so that one thread at a time may use it.

    Attributes:
        limit: tokens that the text encoder reads, the two markers included.
    """

    def __init__(self, tokenizer: Any, limit: int) -> None:
        self._tokenizer, self.limit, self._lock = tokenizer, limit, Lock()
        self._vectors = _vectors(tokenizer)

    def padded(self, prompts: list[str]) -> tuple[Tensor, Tensor]:
        """Token ids (B, limit), truncated and padded, and which of them are not padding."""
        how = {"padding": "max_length", "max_length": self.limit, "return_tensors": "pt"}
        if self._vectors:
            ids = [[each for each, _ in self._cut(self._whole(prompt))] for prompt in prompts]
            with self._lock:
                batch = self._tokenizer.pad({"input_ids": ids}, **how)
        else:
            with self._lock:
                batch = self._tokenizer(prompts, truncation=True, **how)
        return batch.input_ids, batch.attention_mask

    def count(self, prompt: str) -> TokenCount:
        """How much of a prompt the model reads."""
        whole = self._whole(prompt)
        if len(whole) <= self.limit:
            return TokenCount(len(whole), self.limit, prompt)
        further = {each for vectors in self._vectors.values() for each in vectors[1:]}
        kept = [each for each, _ in self._cut(whole) if each not in further]
        with self._lock:
            return TokenCount(len(whole), self.limit, self._tokenizer.decode(kept, skip_special_tokens=True))

    def places(self, prompt: str, start: int, end: int) -> list[int]:
        """Places of the tokens of a prompt's characters from `start` to `end` among those that are read."""
        kept = enumerate(self._cut(self._whole(prompt)))
        return [place for place, (_, (first, last)) in kept if first < min(last, end) and last > start]

    def _whole(self, prompt: str) -> list[Token]:
        """All tokens of a prompt, the two markers included; a word of several vectors is as many of them."""
        with self._lock:
            told = self._tokenizer(prompt, return_offsets_mapping=True)
        tokens = zip(told["input_ids"], told["offset_mapping"], strict=True)
        return [(each, span) for token, span in tokens for each in self._vectors.get(token, (token,))]

    def _cut(self, whole: list[Token]) -> list[Token]:
        """As many as are read, the last of which is the marker of the end."""
        return whole if len(whole) <= self.limit else [*whole[: self.limit - 1], whole[-1]]


def _vectors(tokenizer: Any) -> dict[int, tuple[int, ...]]:
    """Words that textual inversion gave several vectors, by diffusers <cat>, <cat>_1, ...: their ids, by the first."""
    added = tokenizer.get_added_vocab()
    found = {}
    for word, token in added.items():
        further = list(takewhile(added.__contains__, (f"{word}_{number}" for number in count(1))))
        if further:
            found[token] = (token, *(added[each] for each in further))
    return found


def unreadable(text: str) -> str:
    """The first character that no text has, a control character or half of one (a lone surrogate); "" if there is none.

    All else is text: joiners and direction marks belong to scripts, and an emoji may be newer than Python's tables.
    """
    bad = (letter for letter in text if unicodedata.category(letter) in ("Cc", "Cs") and letter not in SPACES)
    return next(bad, "")


def check_prompt(prompt: str) -> str:
    """Return the prompt, stripped.

    Raises:
        InputError: nothing in it can be seen, or it is too long, or has control characters.
    """
    stripped = prompt.strip()
    if bad := unreadable(stripped):
        raise InputError(f"the prompt has the character {bad!r}; accepted is text without control characters")
    if all(letter.isspace() or unicodedata.category(letter) in ("Cc", "Cf") for letter in stripped):
        raise InputError("the prompt is empty; describe the picture in a few words")
    if len(stripped) > MAX_PROMPT:
        raise InputError(f"the prompt has {len(stripped):,} characters; accepted are up to {MAX_PROMPT:,}")
    return stripped
