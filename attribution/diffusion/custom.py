"""Customised models: keys and values of cross-attention, and a new word, laid over a pretrained model.

As Kumari et al. 2023 customise Stable Diffusion. The script of diffusers that does it leaves a folder of two files:

pytorch_custom_diffusion_weights.bin    or .safetensors: keys and values of every cross-attention
<new1>.bin                              or .safetensors: the new word, and its row of the text encoder's table
"""

import re
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from attribution.diffusion.pipeline import Model
from attribution.diffusion.weights import parameters
from attribution.errors import InputError, reason

WEIGHTS = "pytorch_custom_diffusion_weights"
ENDINGS = (".safetensors", ".bin")
LAYER = re.compile(r"attn2\.processor\.to_([kv])_custom_diffusion\.weight$")


@dataclass(frozen=True)
class Custom:
    """What a customised model has of its own.

    Attributes:
        token: the new word.
        embedding: (D,) float32, its row of the text encoder's table.
        weights: keys and values of the U-Net's cross-attention, by parameter name.
    """

    token: str
    embedding: Tensor
    weights: dict[str, Tensor]


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
    return Custom(token, table[-1].detach().float().cpu().clone(), weights)


def customised(source: str, custom: Custom, device: torch.device | None = None) -> Model:
    """A pretrained model with what a customised one has of its own laid over it.

    Raises:
        InputError: it does not fit.
        WeightsUnavailable: the pretrained model cannot be had.
    """
    model = Model.load(source, device)
    held = parameters(model, "cross-attn-kv")
    shapes = {name: tuple(value.shape) for name, value in custom.weights.items()}
    if shapes != {name: tuple(value.shape) for name, value in held.items()}:
        raise InputError(
            f"the customised keys and values are of {len(shapes)} layers that do not fit the {len(held)} of"
            f" {source}; name the model that was customised"
        )
    for name, value in custom.weights.items():
        held[name].data.copy_(value)
    add_token(model, custom.token, custom.embedding)
    return model


def read_custom(folder: Path) -> Custom:
    """What a customised model has of its own, as diffusers' script leaves it; nothing is unpickled.

    Raises:
        InputError: a file is missing or damaged, or there are several words.
    """
    files = [path for path in sorted(folder.glob("*")) if path.suffix in ENDINGS]
    weights = [path for path in files if path.stem == WEIGHTS]
    words = [path for path in files if path.stem.startswith("<")]
    if not weights or len({path.stem for path in words}) != 1:
        raise InputError(
            f"{folder} holds {len(weights)} of {WEIGHTS}{ENDINGS[1]} and {len(words)} words such as <new1>.bin;"
            " accepted is one of each, as diffusers' script for Custom Diffusion leaves them"
        )
    held = _tensors(weights[0])
    word = next(iter(_tensors(words[0]).items()), None)
    named = {LAYER.sub(r"attn2.to_\1.weight", key): value for key, value in held.items() if LAYER.search(key)}
    if not named or word is None:
        raise InputError(f"{weights[0]} or {words[0]} holds no tensors of a customised model; make them anew")
    return Custom(word[0], word[1].reshape(-1).float(), named)


def _tensors(path: Path) -> dict[str, Tensor]:
    """The tensors of a file, by name; what else it holds is passed over."""
    try:
        held = load_file(path) if path.suffix == ".safetensors" else torch.load(path, "cpu", weights_only=True)
    except Exception as error:  # torch and safetensors raise a dozen kinds
        raise InputError(f"{path} could not be read ({reason(error)}); make it anew") from error
    return {key: value for key, value in held.items() if isinstance(value, Tensor)}
