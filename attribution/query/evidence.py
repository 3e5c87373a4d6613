"""What a picture itself tells of whether the model made it for its prompt, region by region.

A picture that a model made for some words has a smaller denoising loss with them than without any: the difference is
the information that the words hold about the region (Kong et al. 2024, arXiv 2310.07972). For the words of another
picture, or a picture of another origin, the loss is larger with the words. Only the query is measured: no training
image, and nothing of how the training set is searched.
"""

import re
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from attribution.batches import in_batches
from attribution.diffusion.loss import denoising_loss
from attribution.diffusion.noise import NoiseBank, NoiseSettings
from attribution.diffusion.pipeline import Model
from attribution.query.query import Query

Kind = Literal["whole", "box", "word"]
NOISE = NoiseSettings(timesteps=20, seed=5, start=0.2, end=0.9)
BATCH = 10  # columns of that bank in one call, each with two or three texts
APART = 24  # of 255: a pixel that differs from the region's median colour by more, in a channel, is not ground
EMPTY = 0.05  # share of a region's pixels; where fewer are not ground, there is nothing in it


@dataclass(frozen=True)
class Evidence:
    """What was measured of a query.

    Attributes:
        kind: of its region.
        words: the share of the region's loss that the prompt takes away from what it is without any words. It is 1 if
            nothing is left, 0 if the prompt changes nothing, and below 0 if the region is less likely with it.
        word: the same for the asked word alone, against the prompt without it; None where no word is asked about.
        filled: the share of the region's pixels that differ from its most common colour, 0 to 1.
    """

    kind: Kind
    words: float
    word: float | None
    filled: float

    @property
    def empty(self) -> bool:
        """Whether the region is plain ground."""
        return self.filled < EMPTY

    @property
    def strength(self) -> float:
        """From -1 to 1: the smaller of `words` and `word`; -1 for an empty region."""
        measured = self.words if self.word is None else min(self.words, self.word)
        return -1.0 if self.empty else max(-1.0, measured)


def kind_of(query: Query) -> Kind:
    """What kind of region a query is about."""
    if query.word is not None:
        return "word"
    return "box" if query.boxes else "whole"


def measure_evidence(
    model: Model, query: Query, latents: Tensor, mask: Tensor | None, square: Image.Image, pixels: Tensor | None
) -> Evidence:
    """Measure a query with the pretrained model.

    Args:
        model: at its pretrained weights.
        query: what was asked.
        latents: (1, C, h, w) of its picture.
        mask: (h, w) in [0, 1], the region in latent cells; None is the whole picture.
        square: what the model sees of the picture.
        pixels: (side, side) in [0, 1], the region in pixels of `square`; None is all of it.
    """
    texts = [query.prompt, ""]
    if query.word is not None:
        texts.append(without(query.prompt, query.word))
    losses = _losses(model, latents, texts, mask)
    words = 1 - losses[0] / losses[1]
    word = None if query.word is None else 1 - losses[0] / losses[2]
    weights = np.ones(square.size[::-1]) if pixels is None else pixels.numpy().astype(float)
    return Evidence(kind_of(query), words, word, filled(square, weights))


def without(prompt: str, word: str) -> str:
    """The prompt without a word, where it first has it; see `word_tokens`."""
    cut = re.sub(rf"(?<!\w){re.escape(word.strip())}(?!\w)", "", prompt, count=1, flags=re.IGNORECASE)
    return " ".join(cut.split())


def _losses(model: Model, latents: Tensor, texts: list[str], mask: Tensor | None) -> list[float]:
    """The region's loss with each text, a mean over NOISE."""
    bank = NoiseBank.draw(NOISE, model.latent_shape, model.train_timesteps)
    many, encoded = latents.expand(len(texts), -1, -1, -1), model.encode_text(texts)

    def measure(columns: range) -> Tensor:
        with torch.inference_mode():
            return denoising_loss(model, many, encoded, bank.select(list(columns)), mask)

    table = torch.cat([losses for _, losses in in_batches(len(bank), BATCH, measure)], 1)
    return [float(loss) for loss in table.double().mean(1)]


def filled(square: Image.Image, weights: NDArray[np.floating]) -> float:
    """The share of a region's pixels that differ from its median colour by more than APART.

    Args:
        square: the picture, RGB.
        weights: (height, width) in [0, 1], how much each pixel belongs to the region.
    """
    colours = np.asarray(square.convert("RGB"), float)
    median = [_weighted_median(colours[..., channel], weights) for channel in range(3)]
    apart = np.abs(colours - median).max(-1) > APART
    return float((apart * weights).sum() / weights.sum())


def _weighted_median(values: NDArray[np.floating], weights: NDArray[np.floating]) -> float:
    order = values.ravel().argsort()
    reached = weights.ravel()[order].cumsum()
    return float(values.ravel()[order][np.searchsorted(reached, reached[-1] / 2)])
