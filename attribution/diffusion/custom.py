"""Customised models: keys and values of cross-attention, and new words, laid over a pretrained model.

As Kumari et al. 2023 customise Stable Diffusion. What is read is what people have of it:

pytorch_custom_diffusion_weights.bin    or .safetensors, of diffusers' script: weights of every cross-attention
<new1>.bin                              or .safetensors, beside it: a new word, and its row of the text encoder's table
delta.bin                               of the authors' script: both of them in one file
"""

import re
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor, nn

from attribution.diffusion.pipeline import Model
from attribution.diffusion.tensors import read_file, read_tensors
from attribution.diffusion.weights import parameters
from attribution.errors import InputError

WEIGHTS = "pytorch_custom_diffusion_weights"
ENDINGS = (".safetensors", ".bin")
DELTA = "delta.bin"
LAYER = re.compile(r".*attn2\.to_(?:[qkv]|out\.0)\.(?:weight|bias)")


@dataclass(frozen=True)
class Custom:
    """What a customised model has of its own.

    Attributes:
        words: the new words, each with its (D,) float32 row of the text encoder's table.
        weights: keys and values of the U-Net's cross-attention, perhaps queries and outputs too, by parameter name.
    """

    words: dict[str, Tensor]
    weights: dict[str, Tensor]

    @property
    def token(self) -> str:
        """The new word, the first where there are several."""
        return next(iter(self.words))


def add_token(model: Model, token: str, embedding: Tensor | None = None) -> nn.Parameter:
    """Teach a model a new word, in place.

    Args:
        model: whose tokenizer and text encoder change.
        token: the word.
        embedding: (D,) its row of the text encoder's table; by default the mean of all others.

    Returns:
        (words, D) the table, whose last row is the new word's.

    Raises:
        InputError: the model has the word already, or the embedding is of another length.
    """
    tokenizer, encoder = model.pipe.tokenizer, model.text_encoder
    if len(model.texts.encoders) > 1:
        raise InputError(
            f"{model.source} has two text encoders; new words are accepted for Stable Diffusion 1.x and 2.x"
        )
    if token in tokenizer.get_vocab():
        raise InputError(f"{model.source} knows the word {token!r} already; name a model that is not customised yet")
    width = encoder.get_input_embeddings().weight.shape[1]
    if embedding is not None and embedding.shape != (width,):
        raise InputError(f"the embedding of {token!r} is {tuple(embedding.shape)}, {model.source} has {(width,)}")
    tokenizer.add_tokens([token])
    encoder.resize_token_embeddings(len(tokenizer), mean_resizing=False)
    table: nn.Parameter = encoder.get_input_embeddings().weight.requires_grad_(False)
    table[-1] = table[:-1].mean(0) if embedding is None else embedding.to(table)
    return table


def custom_of(model: Model, token: str) -> Custom:
    """What a model that was customised in place has of its own; on the CPU."""
    table = model.text_encoder.get_input_embeddings().weight
    weights = {name: value.detach().cpu().clone() for name, value in parameters(model, "cross-attn-kv").items()}
    return Custom({token: table[-1].detach().float().cpu().clone()}, weights)


def customise_with(model: Model, custom: Custom) -> Model:
    """Lay what a customised model has of its own over a pretrained one, in place; the same model.

    Raises:
        InputError: it does not fit.
    """
    kept, held = parameters(model, "cross-attn-kv"), parameters(model, "cross-attn")
    shapes = {name: tuple(value.shape) for name, value in held.items()}
    fits = all(shapes.get(name) == tuple(value.shape) for name, value in custom.weights.items())
    if not fits or kept.keys() - custom.weights.keys():
        raise InputError(
            f"the customised keys and values are of {len(custom.weights)} layers that do not fit the {len(kept)} of"
            f" {model.source}; name the model that was customised"
        )
    for word, embedding in custom.words.items():
        add_token(model, word, embedding)
    for name, value in custom.weights.items():
        held[name].data.copy_(value)
    return model


def read_custom(source: Path) -> Custom:
    """What a customised model has of its own, as diffusers' or the authors' script leaves it; nothing is unpickled.

    Args:
        source: a folder of diffusers' script, or with a delta.bin, or such a file itself.

    Raises:
        InputError: a file is missing or damaged.
    """
    delta = source / DELTA if source.is_dir() else source
    if delta.is_file():
        held = read_file(delta)
        return _custom(delta, held.get("unet") or {}, held.get("modifier_token") or {})
    files = [path for path in sorted(source.glob("*")) if path.suffix in ENDINGS]
    weights = [path for path in files if path.stem == WEIGHTS]
    words = {path.stem: path for path in reversed(files) if path.stem.startswith("<")}  # safetensors come last
    if not weights or not words:
        raise InputError(
            f"{source} holds {len(weights)} of {WEIGHTS}{ENDINGS[1]} and {len(words)} words such as <new1>.bin;"
            " accepted is one of the first with its words, as diffusers' script for Custom Diffusion leaves them, or a"
            f" {DELTA}"
        )
    rows = [_word(path) for _, path in sorted(words.items())]
    return _custom(weights[-1], read_tensors(weights[-1]), dict(rows))


def _word(path: Path) -> tuple[str, Tensor]:
    word = next(iter(read_tensors(path).items()), None)
    if word is None:
        raise InputError(f"{path} holds no row of a new word; make it anew")
    return word


def _custom(path: Path, held: dict[str, Tensor], words: dict[str, Tensor]) -> Custom:
    named = {key.replace(".processor.", ".").replace("_custom_diffusion", ""): value for key, value in held.items()}
    if not named or not words:
        raise InputError(f"{path} holds no tensors of a customised model, or no new word; make them anew")
    if other := [name for name in named if not LAYER.fullmatch(name)]:
        raise InputError(f"{path} holds {other[0]}; accepted are weights of cross-attention (attn2) alone")
    return Custom({word: row.detach().reshape(-1).float() for word, row in words.items()}, named)
