"""Which weights of the U-Net are differentiated, changed and put back."""

import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Literal

from torch import Tensor, nn

from attribution.diffusion.fits import check_finite
from attribution.diffusion.networks import load_network
from attribution.diffusion.pipeline import Model
from attribution.diffusion.plain import KEYS_AND_VALUES
from attribution.diffusion.source import ModelFiles
from attribution.errors import InputError, WeightsUnavailable

WeightSubset = Literal["cross-attn-kv", "cross-attn", "attn", "all", "lora"]

# Layers of the U-Net by diffusers' names: attn1 is self-, attn2 cross-attention; lora_A and lora_B are an adapter's.
WEIGHT_PATTERNS: dict[WeightSubset, str] = {
    "cross-attn-kv": KEYS_AND_VALUES,
    "cross-attn": r"attn2\.(to_[qkv]|to_out\.0)$",
    "attn": r"attn[12]\.(to_[qkv]|to_out\.0)$",
    "all": r"^(?!.*\.lora_[AB]$)",
    "lora": r"\.lora_[AB]$",
}


def layers(model: Model, subset: WeightSubset) -> dict[str, nn.Module]:
    """The layers of a subset of weights, by name: those with parameters of their own.

    Raises:
        InputError: it is an adapter's, and the model has none that is kept apart.
    """
    pattern = re.compile(WEIGHT_PATTERNS[subset])
    named = {name: layer for name, layer in model.unet.named_modules() if pattern.search(name)}
    if subset == "lora" and not named:
        raise InputError(
            f"the U-Net of {model.source} has no LoRA apart from its weights; build an index with --lora_weights and"
            " --fisher_weights lora, or choose another subset of weights"
        )
    return {name: layer for name, layer in named.items() if list(layer.parameters(recurse=False))}


def parameters(model: Model, subset: WeightSubset) -> dict[str, nn.Parameter]:
    """The parameters of a subset of weights, by name."""
    return {
        f"{name}.{key}": parameter
        for name, layer in layers(model, subset).items()
        for key, parameter in layer.named_parameters(recurse=False)
    }


@contextmanager
def tuned(model: Model, subset: WeightSubset) -> Iterator[dict[str, nn.Parameter]]:
    """The parameters of a subset by name, requiring gradients inside the context only."""
    named = parameters(model, subset)
    try:
        for parameter in named.values():
            parameter.requires_grad_(True)
        yield named
    finally:
        for parameter in named.values():
            parameter.requires_grad_(False)


@contextmanager
def unlearned(model: Model, subset: WeightSubset) -> Iterator[dict[str, Tensor]]:
    """A context in which the weights of a subset may be changed in place; they are restored bit for bit."""
    with tuned(model, subset) as named:
        weights = {name: parameter.data for name, parameter in named.items()}
    before = _copies(weights)
    model.changed.append((weights, before))
    try:
        yield weights
    finally:
        model.changed.pop()
        _put(before, weights)


@contextmanager
def pretrained(model: Model) -> Iterator[None]:
    """In the midst of `unlearned`, a context in which the weights are the pretrained ones; then they are as before.

    Both ways bit for bit. It takes as much memory again as the weights that were changed.
    """
    changed = list(model.changed)
    now = [_copies(weights) for weights, _ in changed]
    for weights, before in reversed(changed):
        _put(before, weights)
    try:
        yield
    finally:
        for (weights, _), kept in zip(changed, now, strict=True):
            _put(kept, weights)


@contextmanager
def holding(model: Model, values: Mapping[str, Tensor]) -> Iterator[None]:
    """A context in which parameters of the U-Net, by name, have other values; they are restored bit for bit."""
    named = dict(model.unet.named_parameters())
    weights = {name: named[name].data for name in values}
    before = _copies(weights)
    try:
        _put(values, weights)
        yield
    finally:
        _put(before, weights)


def _copies(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: weight.clone() for name, weight in weights.items()}


def _put(values: Mapping[str, Tensor], weights: dict[str, Tensor]) -> None:
    for name, weight in weights.items():
        weight.copy_(values[name])


@contextmanager
def checkpoint(model: Model, source: str | None) -> Iterator[None]:
    """A context in which the U-Net has the weights of another pipeline of the same shape; None changes nothing.

    Raises:
        WeightsUnavailable: they cannot be had, or do not fit.
        InputError: they are incomplete or not finite.
    """
    if source is None:
        yield
        return
    unet = model.unet
    before = {name: value.clone() for name, value in unet.state_dict().items()}
    try:
        other = load_network(type(unet), ModelFiles(source), "unet", model.dtype)
        check_finite(source, {"unet": other})
        unet.load_state_dict(other.state_dict())
    except InputError:
        raise
    except Exception as error:  # diffusers, torch and the hub raise a dozen kinds
        raise WeightsUnavailable(f"no U-Net that fits {model.source!r} could be loaded from {source!r}") from error
    try:
        yield
    finally:
        unet.load_state_dict(before)
