"""Diagonal Fisher information of the chosen weights: the mean of squared per-image gradients."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from attribution.loss import paired_loss
from attribution.model import Model, WeightSubset
from attribution.noise import NoiseBank


@dataclass(frozen=True)
class FisherSettings:
    """What the Fisher information is estimated from.

    Attributes:
        weights: the subset that unlearning will change.
        samples: gradients in all; sample s is of image s mod N, mirrored on every second pass.
        timesteps: of the noise bank that the samples take in turn.
        seed: of that bank.
    """

    weights: WeightSubset = "cross-attn-kv"
    samples: int = 16_384
    timesteps: int = 250
    seed: int = 2


@contextmanager
def tuned(model: Model, subset: WeightSubset) -> Iterator[dict[str, nn.Parameter]]:
    """The parameters of a subset by name, requiring gradients inside the context only."""
    layers = model.tunable(subset)
    parameters = {f"{name}.{key}": p for name, layer in layers.items() for key, p in layer.named_parameters()}
    try:
        for parameter in parameters.values():
            parameter.requires_grad_(True)
        yield parameters
    finally:
        for parameter in parameters.values():
            parameter.requires_grad_(False)


def per_image_gradients(
    model: Model, subset: WeightSubset, latents: Tensor, text: Tensor, bank: NoiseBank
) -> dict[str, Tensor]:
    """Gradient of each image's own loss, image b at column b of the bank, from one backward pass.

    A linear layer's gradient for image b is the sum over its tokens of (output gradient) x (input).

    Args:
        model: at the weights of interest.
        subset: linear layers, each called once in a forward pass.
        latents: (B, C, h, w).
        text: (B, L, D).
        bank: B columns.

    Returns:
        (B, *parameter shape) for each parameter name.
    """
    layers = model.tunable(subset)
    inputs: dict[str, Tensor] = {}
    outputs: dict[str, Tensor] = {}

    def record(name: str, layer: nn.Linear) -> RemovableHandle:
        def hook(_layer: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> None:
            inputs[name], outputs[name] = args[0].detach(), output

        return layer.register_forward_hook(hook)

    handles = [record(name, layer) for name, layer in layers.items()]
    try:
        with tuned(model, subset):
            loss = paired_loss(model, latents, text, bank).sum()
            grads = torch.autograd.grad(loss, list(outputs.values()))
    finally:
        for handle in handles:
            handle.remove()
    gradients = {}
    for (name, layer), grad in zip(((name, layers[name]) for name in outputs), grads, strict=True):
        gradients[f"{name}.weight"] = torch.einsum("blo,bli->boi", grad, inputs[name])
        if layer.bias is not None:
            gradients[f"{name}.bias"] = grad.sum(1)
    return gradients


def add_squares(sums: dict[str, Tensor], gradients: dict[str, Tensor]) -> dict[str, Tensor]:
    """Add squared gradients, summed over the batch, to running sums (F of Eq. 4, before its mean)."""
    return {
        name: sums.get(name, torch.zeros((), device=grad.device)) + grad.square().sum(0)
        for name, grad in gradients.items()
    }
