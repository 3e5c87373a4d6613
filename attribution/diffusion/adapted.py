"""A model whose layers are adapted by a LoRA: merged into their weights, or beside them as layers of their own.

W' = W + scale (alpha / r) B A, of linear layers and convolutions, in the U-Net and the text encoders.
"""

import math
import re
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from attribution.diffusion.fits import ENCODERS
from attribution.diffusion.lora import Lora
from attribution.diffusion.pipeline import Model
from attribution.diffusion.plain import BESIDE
from attribution.errors import InputError

Adapted = nn.Linear | nn.Conv2d
DOWN, UP = BESIDE
PART = re.compile(r"(?:base_model\.model\.)?(?:(unet|text_encoder(?:_2)?)\.|lora_(unet|te[12]?)_)?")
PARTS = {"unet": "unet", "te": ENCODERS[0], "te1": ENCODERS[0], "te2": ENCODERS[1]} | {each: each for each in ENCODERS}
# Kohya's files of SDXL have the names of its authors' own U-Net; its attentions are those that people adapt.
SGM = re.compile(r"(?:middle_block_1|(input|output)_blocks_(\d+)_1)_(.*)")
SGM_LAYERS = 3  # of a block


@torch.no_grad()
def merge_lora(model: Model, lora: Lora, scale: float = 1.0) -> None:
    """Add an adapter to a model's weights, in place; all of it, or nothing.

    Raises:
        InputError: it was trained for another model.
    """
    for name, _, layer in list(_resolved(model, lora)):  # refuses before the first is changed
        _merge(lora, name, layer, scale)


@torch.no_grad()
def keep_apart(model: Model, lora: Lora, scale: float = 1.0) -> None:
    """Put an adapter's matrices beside the layers of a U-Net, as layers of their own, in place; all of it, or nothing.

    What it has of text encoders is merged.

    Raises:
        InputError: it was trained for another model, or another one is beside the same layer.
    """
    found = list(_resolved(model, lora))
    if twice := [name for name, _, layer in found if hasattr(layer, DOWN)]:
        raise InputError(
            f"two LoRAs of {lora.source} are of the layer {twice[0]}; merge one of them and save the model"
        )
    for name, part, layer in found:
        if part == "unet":
            _put_beside(lora, name, layer, scale)
        else:
            _merge(lora, name, layer, scale)


def _merge(lora: Lora, name: str, layer: Adapted, scale: float) -> None:
    weight, (up, down) = layer.weight, (each.double().flatten(1) for each in _factors(lora, name))
    added = scale * _strength(lora, name, len(down)) * up @ down
    weight.copy_(weight.double() + added.reshape(weight.shape).to(weight.device))


def _put_beside(lora: Lora, name: str, layer: Adapted, scale: float) -> None:
    """W x + strength B A x is what the layer gives from now on."""
    weight, (up, down) = layer.weight, _factors(lora, name)
    if isinstance(layer, nn.Conv2d):
        how = {"stride": layer.stride, "padding": layer.padding, "dilation": layer.dilation, "bias": False}
        first: nn.Module = nn.Conv2d(layer.in_channels, len(down), layer.kernel_size, **how)  # type: ignore[arg-type]
        then: nn.Module = nn.Conv2d(len(down), layer.out_channels, 1, bias=False)
    else:
        first, then = (nn.Linear(each[0].numel(), len(each), bias=False) for each in (down, up))
    for place, new, factor in ((DOWN, first, down), (UP, then, up)):
        new.weight.copy_(factor.reshape(new.weight.shape))  # type: ignore[operator, arg-type]
        layer.add_module(place, new.to(weight).requires_grad_(False))
    layer.register_buffer("lora_strength", weight.new_tensor(scale * _strength(lora, name, len(down))))
    layer.register_forward_hook(_with_lora)


def _with_lora(layer: Any, args: tuple[Tensor, ...], given: Tensor) -> Tensor:
    beside: Tensor = getattr(layer, UP)(getattr(layer, DOWN)(args[0]))
    strength: Tensor = layer.lora_strength
    return given + strength * beside


def _factors(lora: Lora, name: str) -> tuple[Tensor, Tensor]:
    return lora.layers[name].up, lora.layers[name].down


def _resolved(model: Model, lora: Lora) -> Iterator[tuple[str, str, Adapted]]:
    """Each layer's name in the file, the part of the model that it is of, and what it is there."""
    tables = {part: _by_names(network) for part, network in model.networks.items()}
    for name in lora.layers:
        part, own = _named(lora, name)
        layer = tables.get(part, {}).get(own)
        if not isinstance(layer, nn.Linear | nn.Conv2d):
            raise InputError(
                f"the LoRA {lora.source} was made for another model: {model.source} has no layer {own} in its {part};"
                " name the model that it was trained on"
            )
        _check_shape(lora, name, layer.weight)
        yield name, part, layer


def _by_names(network: nn.Module) -> dict[str, nn.Module]:
    """Its layers by name, with points and with underscores, with and without the `text_model` of some versions."""
    named = {name.removeprefix("text_model."): layer for name, layer in network.named_modules()}
    named |= {f"text_model.{name}": layer for name, layer in named.items()}
    return {spelt: layer for name, layer in named.items() for spelt in (name, name.replace(".", "_"))}


def _named(lora: Lora, name: str) -> tuple[str, str]:
    """The part of the pipeline that a layer of the file is in, and its name there, as far as that goes."""
    start = PART.match(name)
    told, own = (start[1] or start[2], name[start.end() :]) if start else (None, name)
    text = own.startswith(("text_model", "encoder."))
    part = PARTS.get(told or lora.part or "", ENCODERS[0] if text else "unet")
    own = _by_diffusers(own.replace(".processor.", "."))
    if part in ENCODERS:
        return part, re.sub(r"\.to_(q|k|v|out)$", r".\1_proj", own)
    return part, re.sub(r"\.to_out$", ".to_out.0", own)


def _by_diffusers(own: str) -> str:
    """The name in a diffusers U-Net of an attention's layer that has its authors' name; others as they are."""
    if not (found := SGM.fullmatch(own)):
        return own
    side, place, rest = found.groups()
    if side is None:
        return f"mid_block_attentions_0_{rest}"
    block, number = divmod(int(place) - (side == "input"), SGM_LAYERS)
    return f"{'down' if side == 'input' else 'up'}_blocks_{block}_attentions_{number}_{rest}"


def _check_shape(lora: Lora, name: str, weight: Tensor) -> None:
    """Refuse the factors of a layer whose product is of another shape than the layer's weight."""
    up, down = lora.layers[name].up, lora.layers[name].down
    outputs, inputs = len(up), down[0].numel()
    if (up[0].numel(), outputs, inputs) != (len(down), len(weight), weight[0].numel()):
        raise InputError(
            f"the LoRA {lora.source} was made for another model: its layer {name} is of {outputs} by {inputs} weights,"
            f" that of {len(weight)} by {weight[0].numel()} here; name the model that it was trained on"
        )


def _strength(lora: Lora, name: str, rank: int) -> float:
    """Alpha / r, or alpha / sqrt(r) as PEFT's rank-stabilised LoRA has it."""
    part, own = _named(lora, name)
    config = lora.config.get(part) or lora.config.get("") or {}
    alpha = lora.layers[name].alpha
    if alpha is None:
        alpha = _by_pattern(config.get("alpha_pattern") or {}, own, config.get("lora_alpha", rank))
    return float(alpha) / (math.sqrt(rank) if config.get("use_rslora") else rank)


def _by_pattern(patterns: dict[str, float], name: str, otherwise: float) -> float:
    """The value of the first pattern that a layer's name ends with, as PEFT reads them."""
    return next((value for key, value in patterns.items() if re.match(rf"(.*\.)?({key})$", name)), otherwise)
