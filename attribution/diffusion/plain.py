"""A U-Net whose keys and values are computed by plain layers: whatever stands in their place is merged into them.

In a program, a pipeline may have adapters (LoRA), Custom Diffusion's processors or fused projections, which compute
keys and values beside the layers of those names, or instead of them. What is differentiated, changed and hashed must be
what computes.
"""

import re
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from diffusers import StableDiffusionPipeline
from diffusers.models.attention_processor import Attention, AttnProcessor2_0
from torch import Tensor, nn

from attribution.diffusion.fits import ENCODERS
from attribution.errors import InputError

KEYS_AND_VALUES = r"attn2\.to_[kv]$"  # of cross-attention, by diffusers' names
BESIDE = ("lora_A", "lora_B")  # layers beside a layer, of an adapter that is kept apart
FUSED = {"to_qkv": ("to_q", "to_k", "to_v"), "to_kv": ("to_k", "to_v")}
CUSTOM = "_custom_diffusion"  # how Custom Diffusion's processors call layers of their own: to_k_custom_diffusion, ...


def make_plain(source: str, pipe: StableDiffusionPipeline) -> None:
    """Merge into a pipeline's layers, in place, what computes beside them or in their place; predictions stay the same.

    Raises:
        InputError: an adapter is of a kind that cannot be merged.
    """
    for part in (pipe.unet, *(held for name in ENCODERS if (held := getattr(pipe, name, None)) is not None)):
        _merge_adapters(source, part)
    for layer in [each for each in pipe.unet.modules() if isinstance(each, Attention)]:
        if layer.fused_projections:
            _unfuse(layer)
        if "CustomDiffusion" in type(layer.processor).__name__:
            _take_over(layer)


@torch.no_grad()
def _merge_adapters(source: str, part: Any) -> None:
    """Merge the adapters that are on into the layers that they wrap, and take the wrapping away."""
    wrapped = [(name, each) for name, each in part.named_modules() if hasattr(each, "base_layer")]
    for name, wrapping in wrapped:
        if not hasattr(wrapping, "merge"):
            raise InputError(
                f"the layer {name} of {source} is adapted by a {type(wrapping).__name__}, which cannot be merged;"
                " accepted are adapters such as LoRA"
            )
        if not (getattr(wrapping, "disable_adapters", False) or getattr(wrapping, "merged", False)):
            wrapping.merge()
        owner, _, own = name.rpartition(".")
        setattr(part.get_submodule(owner), own, wrapping.base_layer)
    if wrapped and hasattr(part, "peft_config"):
        del part.peft_config
        part._hf_peft_config_loaded = False


@torch.no_grad()
def _unfuse(layer: Any) -> None:
    """Give the rows of a fused projection back to the layers that it was fused from."""
    for fused, names in FUSED.items():
        if not hasattr(layer, fused):
            continue
        for kind, values in getattr(layer, fused).named_parameters():
            rows = [getattr(getattr(layer, name), kind) for name in names]
            for own, part in zip(rows, values.split([len(each) for each in rows]), strict=True):
                own.copy_(part)
        delattr(layer, fused)
    layer.fused_projections = False
    layer.set_processor(AttnProcessor2_0())


@torch.no_grad()
def _take_over(layer: Any) -> None:
    """Copy the layers of a Custom Diffusion processor over those that it stands in for."""
    for name, values in layer.processor.named_parameters():
        layer.get_parameter(name.replace(CUSTOM, "")).copy_(values)
    layer.set_processor(AttnProcessor2_0())


@contextmanager
def reading(unet: nn.Module, text: Tensor) -> Iterator[set[str]]:
    """A context in which the names of the layers that are given a text as it is are collected.

    Args:
        unet: predicts inside the context.
        text: (B, L, D) what it is given.
    """
    readers: set[str] = set()

    def look(name: str) -> Any:
        def hook(_layer: nn.Module, args: tuple[Any, ...]) -> None:
            if any(isinstance(each, Tensor) and each.data_ptr() == text.data_ptr() for each in args):
                readers.add(name)

        return hook

    with ExitStack() as stack:
        for name, layer in unet.named_modules():
            if list(layer.parameters(recurse=False)):
                stack.callback(layer.register_forward_pre_hook(look(name)).remove)
        yield readers


def refuse_other_readers(source: str, unet: nn.Module, readers: set[str]) -> None:
    """Refuse a U-Net whose text is not read by the keys and values of its cross-attention, all of them and them alone.

    Raises:
        InputError: naming the first layer.
    """
    known = {name for name, layer in unet.named_modules() if re.search(KEYS_AND_VALUES, name)}
    if not known:
        raise InputError(f"the U-Net of {source} has no cross-attention; accepted are models that read a text with it")
    readers = {name.removesuffix(f".{BESIDE[0]}") for name in readers}
    if other := sorted(readers - known):
        raise InputError(
            f"the text is read by the layer {other[0]} of the U-Net of {source}; accepted are attn2.to_k and attn2.to_v"
        )
    if unread := sorted(known - readers):
        raise InputError(
            f"the layer {unread[0]} of the U-Net of {source} reads no text; merge what stands in its place"
        )
