"""Captions that are read again and again: what the text encoder makes of each is kept in memory.

Encoding a caption of the embedded world takes a fifth as long as a prediction, and a race asks for the same captions
in every round, the next query for many of them again. The projections to keys and values are not kept: they change
with every query, and are 4 % of a prediction.
"""

from collections.abc import Callable

import torch
from torch import Tensor

KEPT_BYTES = 256 * 2**20  # of encoded captions, at most: 16,000 of the embedded world's, 1,000 of SD 1.5's


class Captions:
    """Encoded captions of one model, whose text encoder is frozen; those longest unasked for make room first.

    Attributes:
        encode: B texts to the text encoder's hidden states (B, L, D).
        limit: bytes that may be kept.
    """

    def __init__(self, encode: Callable[[list[str]], Tensor], limit: int = KEPT_BYTES) -> None:
        self.encode, self.limit = encode, limit
        self._kept: dict[str, Tensor] = {}  # the one asked for last at the end

    def __call__(self, captions: list[str]) -> Tensor:
        """Hidden states (B, L, D); what is not kept is encoded once, however often it is among them."""
        known = {caption: self._kept.get(caption) for caption in captions}
        if missing := [caption for caption, states in known.items() if states is None]:
            known |= zip(missing, self.encode(missing).unbind(), strict=True)
        states = {caption: each for caption, each in known.items() if each is not None}
        self._keep(states)
        return torch.stack([states[caption] for caption in captions])

    @property
    def bytes(self) -> int:
        """That are kept."""
        return sum(states.untyped_storage().nbytes() for states in list(self._kept.values()))

    def _keep(self, states: dict[str, Tensor]) -> None:
        for caption, each in states.items():
            known = self._kept.pop(caption, None)
            self._kept[caption] = each.clone() if known is None else each  # a view would keep the whole batch
        size = max(each.numel() * each.element_size() for each in states.values())
        for caption in list(self._kept)[: max(0, len(self._kept) - self.limit // size)]:
            self._kept.pop(caption, None)
