"""Textual inversion (Gal et al. 2023): a new word of one or several vectors, as people have it in a file.

diffusers    learned_embeds.safetensors or .bin: {"<cat>": (D,) or (n, D)}
the web UI   .pt or .bin: {"string_to_param": {"*": (n, D)}, "name": "cat"}; .safetensors: {"emb_params": (n, D)}
SDXL         {"clip_l": (n, D), "clip_g": (n, D')}, a table for each text encoder

The last two kinds do not say the word: it is the file's name then.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeGuard

import torch
from torch import Tensor

from attribution.diffusion.fits import ENCODERS
from attribution.diffusion.pipeline import Model
from attribution.diffusion.tensors import read_file
from attribution.diffusion.texts import Texts
from attribution.errors import InputError

TABLES = dict(zip(("clip_l", "clip_g"), ENCODERS, strict=True))
ACCEPTED = "accepted are files of diffusers ({'<word>': vectors}), of the web UI, or of SDXL with clip_l and clip_g"


@dataclass(frozen=True)
class Inversion:
    """A new word.

    Attributes:
        source: the file that it is of.
        word: as a prompt has it.
        vectors: (n, D) float32, by text encoder.
    """

    source: str
    word: str
    vectors: dict[str, Tensor]


def read_inversion(path: Path) -> Inversion:
    """The word of a file; nothing is unpickled.

    Raises:
        InputError: it is not there, is damaged or of another kind.
    """
    held = read_file(path)
    word, found = path.stem, {ENCODERS[0]: held.get("emb_params")}
    if "string_to_param" in held:
        word, found = str(held.get("name") or word), {ENCODERS[0]: dict(held["string_to_param"]).get("*")}
    elif held.keys() == TABLES.keys():
        found = {TABLES[name]: value for name, value in held.items()}
    elif len(held) == 1 and "emb_params" not in held:
        [(word, value)] = held.items()
        found = {ENCODERS[0]: value}
    vectors = {name: torch.atleast_2d(value.detach().float()) for name, value in found.items() if _is_table(value)}
    if len(vectors) < len(found) or len({len(each) for each in vectors.values()}) > 1 or not word.strip():
        raise InputError(f"{path} holds {', '.join(list(held)[:4]) or 'nothing'}, which is no new word; {ACCEPTED}")
    return Inversion(str(path), word.strip(), vectors)


def _is_table(value: Any) -> TypeGuard[Tensor]:
    return isinstance(value, Tensor) and value.ndim in (1, 2) and value.numel() > 0


@torch.no_grad()
def teach(model: Model, inversion: Inversion) -> None:
    """Teach a model a word, in place: for its tokenizers <cat>, <cat>_1, ..., as diffusers calls the vectors.

    Raises:
        InputError: it knows the word already, or the vectors are of other text encoders.
    """
    encoders, word = model.texts.encoders, inversion.word
    widths = {name: int(each.get_input_embeddings().weight.shape[1]) for name, each in encoders.items()}
    given = {name: int(each.shape[1]) for name, each in inversion.vectors.items()}
    if given != widths:
        raise InputError(
            f"the vectors of {inversion.source} are of widths {list(given.values())}, {model.source} reads"
            f" {list(widths.values())}; name a word that was learned with this model"
        )
    for name, vectors in inversion.vectors.items():
        tokenizer = getattr(model.pipe, name.replace("text_encoder", "tokenizer"))
        words = [word, *(f"{word}_{number}" for number in range(1, len(vectors)))]
        if known := [each for each in words if each in tokenizer.get_vocab()]:
            raise InputError(
                f"{model.source} knows the word {known[0]!r} of {inversion.source} already; rename it there"
            )
        tokenizer.add_tokens(words)
        encoders[name].resize_token_embeddings(len(tokenizer), mean_resizing=False)
        table = encoders[name].get_input_embeddings().weight.requires_grad_(False)
        table[-len(words) :] = vectors.to(table)
    model.texts = Texts(model.pipe, model.resolution)  # whose tokens know the word
