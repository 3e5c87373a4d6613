"""How many pictures a model's networks are given at once: as many as memory holds, however large they are.

A device that tells when its memory is full is given less then; a computer's own memory does not tell, it ends the
process. So what a picture takes is found beforehand, from the layers' outputs, and what is given follows it.
"""

from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from attribution.diffusion.pipeline import Model

ENCODED = 2e9  # bytes for encoding pictures, on any device: more at once are no faster
PREDICTED = 1e9  # bytes for the U-Net on a CPU, likewise
LAYER = 4  # times the largest output that are in memory while a layer works
KEPT = 1.5  # times all outputs that a backward pass keeps: additions and activations have no layer of their own


@dataclass(frozen=True)
class AtOnce:
    """How many a call takes at most.

    Attributes:
        pictures: to encode.
        predictions: of the U-Net.
        gradients: predictions that a backward pass follows.
    """

    pictures: int
    predictions: int
    gradients: int

    @classmethod
    def of(cls, model: Model, most: int, captions: int = 1) -> "AtOnce":
        """What fits of at most so many, each with so many captions; one prediction is made to find out."""
        largest, _ = outputs(model.vae, lambda: _encode(model))
        pictures = _fitting(ENCODED, LAYER * largest, most)
        if model.device.type != "cpu":
            return cls(pictures, most, most)
        largest, total = outputs(model.unet, lambda: _predict(model))
        return cls(
            pictures, _fitting(PREDICTED, LAYER * largest, most), _fitting(PREDICTED, KEPT * captions * total, most)
        )


def outputs(network: nn.Module, call: Callable[[], Any]) -> tuple[int, int]:
    """Bytes of the largest output of a network's layers in a call, and of all of them."""
    sizes = [0]

    def look(_layer: nn.Module, _args: Any, given: Any) -> None:
        if isinstance(given, Tensor):
            sizes.append(given.nelement() * given.element_size())

    with ExitStack() as stack:
        for layer in network.modules():
            if not list(layer.children()):
                stack.callback(layer.register_forward_hook(look).remove)
        call()
    return max(sizes), sum(sizes)


@torch.no_grad()
def _encode(model: Model) -> Any:
    picture = torch.zeros(1, 3, model.resolution, model.resolution)
    return model.vae.encode(picture.to(model.device, model.dtype))


@torch.no_grad()
def _predict(model: Model) -> Any:
    latents = torch.zeros(1, *model.latent_shape).to(model.device, model.dtype)
    t = torch.tensor([0], device=model.device)
    return model.unet(latents, t, **model.texts.conditions(model.encode_text(["a"])))


def _fitting(room: float, each: float, most: int) -> int:
    return max(1, min(most, int(room / max(each, 1))))
