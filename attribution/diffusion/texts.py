"""What a U-Net reads of a text: the states of one text encoder (Stable Diffusion 1.x, 2.x), or those of two (SDXL).

SDXL (Podell et al. 2023) also reads one vector of the whole text, and a picture's sizes. The vector lies behind the
states, filled up with zeros to rows of their width, so that a text is one tensor whatever the family; the sizes are
those of a picture that is as large as the model makes them, and not cut: the same for training images and queries.
"""

from typing import Any

import torch
from torch import Tensor

from attribution.diffusion.fits import ENCODERS
from attribution.diffusion.tokens import Tokens


class Texts:
    """The text encoders of a pipeline.

    Args:
        pipe: with one text encoder and tokenizer, or with two.
        side: px of the square pictures that it makes.

    Attributes:
        encoders: by the pipeline's name of each.
        tokens: of the first encoder; the second reads as many.
    """

    def __init__(self, pipe: Any, side: int) -> None:
        self.encoders = {name: held for name in ENCODERS if (held := getattr(pipe, name, None)) is not None}
        tokenizers = [getattr(pipe, name.replace("text_encoder", "tokenizer")) for name in self.encoders]
        limits = [int(each.config.max_position_embeddings) for each in self.encoders.values()]
        limit = min(*limits, *(int(each.model_max_length) for each in tokenizers))
        self.tokens, *_ = self._tokens = [Tokens(each, limit) for each in tokenizers]
        self._sizes = torch.tensor([[side, side, 0, 0, side, side]])  # of the picture, its corner, of what is seen
        self._pooled = int(pipe.text_encoder_2.config.projection_dim) if len(self.encoders) > 1 else 0

    @property
    def width(self) -> int:
        """Of the states."""
        return sum(int(each.config.hidden_size) for each in self.encoders.values())

    @property
    def _rows(self) -> int:
        """Behind the states."""
        return -(-self._pooled // self.width)

    @torch.no_grad()
    def encode(self, prompts: list[str]) -> Tensor:
        """Prompts as a U-Net reads them, (B, L, D), truncated and padded; see `conditions`."""
        if not self._pooled:
            return self._read(prompts, "text_encoder", self.tokens).last_hidden_state  # type: ignore[no-any-return]
        both = [self._read(prompts, *each) for each in zip(self.encoders, self._tokens, strict=True)]
        states = torch.cat([each.hidden_states[-2] for each in both], -1)
        behind = states.new_zeros(len(states), self._rows * self.width)
        behind[:, : self._pooled] = both[1].text_embeds
        return torch.cat([states, behind.view(len(states), self._rows, self.width)], 1)

    def conditions(self, text: Tensor) -> dict[str, Any]:
        """What the U-Net is called with, of texts (B, L, D) as `encode` gives them."""
        if not self._pooled:
            return {"encoder_hidden_states": text}
        states, pooled = text[:, : -self._rows], text[:, -self._rows :].flatten(1)[:, : self._pooled]
        sizes = self._sizes.to(text).expand(len(text), -1)
        return {"encoder_hidden_states": states, "added_cond_kwargs": {"text_embeds": pooled, "time_ids": sizes}}

    def embeddings(self, prompt: str, zeros: bool) -> dict[str, Tensor]:
        """What diffusers' pipeline is called with, to generate.

        Args:
            prompt: of the picture.
            zeros: guidance is away from nothing at all, rather than from an empty text.
        """
        text, empty = self.encode([prompt]), self.encode([""])
        found = {}
        for start, each in (("", text), ("negative_", torch.zeros_like(empty) if zeros else empty)):
            told = self.conditions(each)
            found[f"{start}prompt_embeds"] = told["encoder_hidden_states"]
            if self._pooled:
                found[f"{start}pooled_prompt_embeds"] = told["added_cond_kwargs"]["text_embeds"]
        return found

    def _read(self, prompts: list[str], name: str, tokens: Tokens) -> Any:
        """What an encoder gives of prompts."""
        encoder = self.encoders[name]
        ids, attended = tokens.padded(prompts)
        masked = getattr(encoder.config, "use_attention_mask", None) and not self._pooled  # as diffusers has it
        mask = attended.to(encoder.device) if masked else None
        return encoder(ids.to(encoder.device), attention_mask=mask, output_hidden_states=self._pooled > 0)
