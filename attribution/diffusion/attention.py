"""Where a word of the prompt is in a picture: its cross-attention map (Hertz et al. 2023; Tang et al. 2023, "DAAM").

A picture's latents are noised at a few timesteps, so that a generated picture and an upload are read alike; the
probabilities with which latent cells attend to the word's tokens are averaged over timesteps, layers and heads.
"""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import interpolate

from attribution.diffusion.loss import prediction_norm
from attribution.diffusion.noise import NoiseBank, NoiseSettings
from attribution.diffusion.pipeline import Model
from attribution.errors import InputError

NOISE = NoiseSettings(timesteps=8, noises=2, seed=2, start=0.3, end=0.9)
INSIDE = 0.12  # of a map's largest value: what its box holds


class Watch:
    """A diffusers attention processor that also keeps the probabilities, averaged over heads: (B, N, L)."""

    def __init__(self, how: Any, kept: list[Tensor]) -> None:
        self.how, self.kept = how, kept

    def __call__(
        self, attn: Any, hidden_states: Tensor, encoder_hidden_states: Tensor, *args: Any, **kwargs: Any
    ) -> Tensor:
        """Attend as before."""
        query, key = (
            attn.head_to_batch_dim(each) for each in (attn.to_q(hidden_states), attn.to_k(encoder_hidden_states))
        )
        probabilities = attn.get_attention_scores(query, key)
        self.kept.append(probabilities.view(len(hidden_states), attn.heads, *probabilities.shape[1:]).mean(1))
        attended: Tensor = self.how(attn, hidden_states, encoder_hidden_states, *args, **kwargs)
        return attended


@contextmanager
def watched(model: Model) -> Iterator[list[Tensor]]:
    """A context in which every cross-attention's probabilities, the heads' mean (B, N, L), are kept in a list."""
    kept: list[Tensor] = []
    before = model.unet.attn_processors
    layers = {name: Watch(how, kept) if ".attn2." in name else how for name, how in before.items()}
    model.unet.set_attn_processor(layers)
    try:
        yield kept
    finally:
        model.unet.set_attn_processor(before)


def words_of(prompt: str) -> list[str]:
    """The words of a prompt, each once, in its order."""
    return list(dict.fromkeys(re.findall(r"[^\W_]+(?:['\u2019-][^\W_]+)*", prompt)))


def word_tokens(model: Model, prompt: str, word: str) -> list[int]:
    """Places of the tokens of a word, or of several words in a row, where the prompt first has it.

    Raises:
        InputError: the prompt does not have it, or it is beyond what the model reads.
    """
    found = re.search(rf"(?<!\w){re.escape(word.strip())}(?!\w)", prompt, re.IGNORECASE) if word.strip() else None
    if not found:
        raise InputError(
            f"the word {word[:60]!r} is not in the prompt; accepted are {', '.join(words_of(prompt)[:40])}"
        )
    places = model.tokens.places(prompt, *found.span())
    if not places:
        raise InputError(f"the word {word[:60]!r} is beyond the {model.tokens.limit} tokens that are read")
    return places


def word_map(model: Model, latents: Tensor, prompt: str, word: str) -> Tensor:
    """A word's cross-attention map of a picture: (h, w) on the CPU, from 0 at its least to 1 at its most, squared.

    Args:
        model: that reads the prompt.
        latents: (1, C, h, w) of the picture.
        prompt: not empty.
        word: one of its words, or several in a row.

    Raises:
        InputError: the prompt does not have the word.
    """
    tokens = word_tokens(model, prompt, word)
    bank = NoiseBank.draw(NOISE, model.latent_shape, model.train_timesteps)
    text = model.encode_text([prompt]).expand(len(bank), -1, -1)
    with torch.inference_mode(), watched(model) as kept:
        prediction_norm(model, latents.expand(len(bank), -1, -1, -1), text, bank)
    size = tuple(latents.shape[-2:])
    total = torch.zeros(size)
    for probabilities in kept:  # (B, N, L) of one layer, N its latent cells
        side = round(probabilities.shape[1] ** 0.5)
        own = probabilities[..., tokens].mean((0, 2)).float().cpu().view(1, 1, side, -1)
        total += interpolate(own, size, mode="bilinear", align_corners=False)[0, 0]
    least, most = total.min(), total.max()
    return ((total - least) / (most - least).clamp(min=1e-12)).square()


def inside(mask: Tensor) -> tuple[int, int, int, int]:
    """The box in cells, `x0, y0, x1, y1`, of the connected cells about a map's largest that are above INSIDE of it."""
    height, width = mask.shape
    above = mask >= INSIDE * mask.max()
    top, left = divmod(int(mask.argmax()), width)
    reached, edge = {(top, left)}, [(top, left)]
    while edge:
        y, x = edge.pop()
        for at in ((y - 1, x), (y + 1, x), (y, x - 1), (y, x + 1)):
            if 0 <= at[0] < height and 0 <= at[1] < width and at not in reached and above[at]:
                reached.add(at)
                edge.append(at)
    rows, columns = zip(*reached, strict=True)
    return min(columns), min(rows), max(columns) + 1, max(rows) + 1
