"""Prompts as tokens: a tokenizer that threads can share, and what a prompt may be."""

from dataclasses import dataclass
from threading import Lock
from typing import Any

from torch import Tensor

from attribution.errors import InputError

MAX_PROMPT = 4000  # characters; CLIP reads 77 tokens of them


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

    def padded(self, prompts: list[str]) -> tuple[Tensor, Tensor]:
        """Token ids (B, limit), truncated and padded, and which of them are not padding."""
        how = {"padding": "max_length", "max_length": self.limit, "truncation": True, "return_tensors": "pt"}
        with self._lock:
            batch = self._tokenizer(prompts, **how)
        return batch.input_ids, batch.attention_mask

    def count(self, prompt: str) -> TokenCount:
        """How much of a prompt the model reads."""
        with self._lock:
            whole = self._tokenizer(prompt).input_ids
            kept = self._tokenizer(prompt, max_length=self.limit, truncation=True).input_ids
            fits = len(whole) <= self.limit
            text = prompt if fits else self._tokenizer.decode(kept, skip_special_tokens=True)
        return TokenCount(len(whole), self.limit, text)

    def places(self, prompt: str, start: int, end: int) -> list[int]:
        """Places of the tokens of a prompt's characters from `start` to `end` among those that are read."""
        with self._lock:
            spans = self._tokenizer(prompt, max_length=self.limit, truncation=True, return_offsets_mapping=True)
        return [
            place
            for place, (first, last) in enumerate(spans["offset_mapping"])
            if first < min(last, end) and last > start
        ]


def check_prompt(prompt: str) -> str:
    """Return the prompt, stripped.

    Raises:
        InputError: it is empty, too long, or has characters that cannot be printed.
    """
    stripped = prompt.strip()
    if not stripped:
        raise InputError("the prompt is empty; describe the picture in a few words")
    if len(stripped) > MAX_PROMPT:
        raise InputError(f"the prompt has {len(stripped):,} characters; accepted are up to {MAX_PROMPT:,}")
    if unprintable := [letter for letter in stripped if not letter.isprintable() and not letter.isspace()]:
        raise InputError(f"the prompt has the character {unprintable[0]!r}; accepted is text that can be printed")
    return stripped
