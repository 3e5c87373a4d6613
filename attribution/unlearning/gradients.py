"""Gradients of each image's own loss, many images in one backward pass."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from attribution.diffusion.loss import paired_loss
from attribution.diffusion.noise import NoiseBank
from attribution.diffusion.pipeline import Model
from attribution.diffusion.weights import WeightSubset, layers, tuned
from attribution.errors import InputError

OutputFunction = Callable[[Model, Tensor, Tensor, NoiseBank, Tensor | None], Tensor]  # see `paired_loss`


@dataclass(frozen=True)
class Trace:
    """What a layer did in one of its calls of a forward and backward pass.

    Attributes:
        layer: linear, convolution or normalisation.
        inputs: (B, ...) what it was given.
        grads: (B, ...) gradient of each image's own output function by what the layer gave.
    """

    layer: nn.Module
    inputs: Tensor
    grads: Tensor


Traces = dict[str, list[Trace]]  # by layer, a trace of each call


def trace(
    model: Model,
    subset: WeightSubset,
    latents: Tensor,
    text: Tensor,
    bank: NoiseBank,
    output: OutputFunction = paired_loss,
    mask: Tensor | None = None,
) -> Traces:
    """Run image b at column b of the bank, forwards and backwards, and keep what each layer of a subset did.

    Args:
        model: at the weights of interest.
        subset: layers; one that a forward pass calls several times has a trace of each call.
        latents: (B, C, h, w).
        text: (B, L, D).
        bank: B columns.
        output: the function of each image that is differentiated, its loss by default.
        mask: (h, w), the region; None is the whole picture.

    Raises:
        InputError: two layers share a parameter, or one is not called.
    """
    found = layers(model, subset)
    _refuse_shared(found)
    calls: list[tuple[str, Tensor, Tensor]] = []  # layer, input, output

    def record(name: str, layer: nn.Module) -> RemovableHandle:
        def hook(_layer: nn.Module, args: tuple[Tensor, ...], given: Tensor) -> None:
            calls.append((name, args[0].detach(), given))

        return layer.register_forward_hook(hook)

    handles = [record(name, layer) for name, layer in found.items()]
    try:
        with tuned(model, subset), torch.enable_grad():
            total = output(model, latents, text, bank, mask).sum()
            _refuse_idle(found, {name for name, _, _ in calls})
            grads = torch.autograd.grad(total, [given for _, _, given in calls])
    finally:
        for handle in handles:
            handle.remove()
    traces: Traces = {}
    for (name, inputs, _), grad in zip(calls, grads, strict=True):
        traces.setdefault(name, []).append(Trace(found[name], inputs, grad))
    return traces


def _refuse_shared(found: dict[str, nn.Module]) -> None:
    """Refuse layers that share a parameter: the gradient of each is but a part of the parameter's own."""
    owners: dict[nn.Parameter, str] = {}
    for name, layer in found.items():
        for parameter in layer.parameters(recurse=False):
            if (owner := owners.setdefault(parameter, name)) != name:
                raise InputError(f"the layers {owner} and {name} share a parameter; choose another subset of weights")


def _refuse_idle(found: dict[str, nn.Module], called: set[str]) -> None:
    """Refuse layers that a prediction does not call: something else computes in their place."""
    if not called or found.keys() - called:
        idle = next((name for name in found if name not in called), "that is asked for")
        raise InputError(
            f"the layer {idle} does nothing in a prediction; merge what stands in its place, such as a LoRA"
        )


def per_image_gradients(
    model: Model,
    subset: WeightSubset,
    latents: Tensor,
    text: Tensor,
    bank: NoiseBank,
    output: OutputFunction = paired_loss,
    mask: Tensor | None = None,
) -> dict[str, Tensor]:
    """Gradient of each image's own loss, image b at column b of the bank, from one backward pass; see `trace`.

    Returns:
        (B, *parameter shape) for each parameter name.
    """
    return {
        f"{name}.{key}": gradient
        for name, calls in trace(model, subset, latents, text, bank, output, mask).items()
        for key, gradient in _over_calls(calls).items()
    }


def _over_calls(calls: list[Trace]) -> dict[str, Tensor]:
    """A layer's gradients, summed over its calls."""
    first, *others = map(layer_gradients, calls)
    for other in others:
        first = {key: gradient + other[key] for key, gradient in first.items()}
    return first


def layer_gradients(traced: Trace) -> dict[str, Tensor]:
    """Gradients of a layer's parameters for each image, of one call: (B, *parameter shape) by parameter name.

    Raises:
        InputError: the layer is none of those that the U-Net of Stable Diffusion is made of.
    """
    layer, x, grad = traced.layer, traced.inputs, traced.grads
    if isinstance(layer, nn.Linear):
        weight = torch.einsum("blo,bli->boi", _tokens(grad), _tokens(x))
        bias = _tokens(grad).sum(1)
    elif isinstance(layer, nn.Conv2d) and layer.groups == 1 and layer.padding_mode == "zeros":
        patches = F.unfold(x, layer.kernel_size, layer.dilation, layer.padding, layer.stride)  # type: ignore[arg-type]
        weight = torch.einsum("bol,bpl->bop", grad.flatten(2), patches).reshape(len(x), *layer.weight.shape)
        bias = grad.sum((2, 3))
    elif isinstance(layer, nn.GroupNorm):
        weight = (grad * F.group_norm(x, layer.num_groups, eps=layer.eps)).flatten(2).sum(2)
        bias = grad.flatten(2).sum(2)
    elif isinstance(layer, nn.LayerNorm):
        weight = _tokens(grad * F.layer_norm(x, layer.normalized_shape, eps=layer.eps)).sum(1)
        bias = _tokens(grad).sum(1)
    else:
        raise InputError(
            f"a layer of type {type(layer).__name__} cannot be unlearned; choose another subset of weights"
        )
    gradients = {"weight": weight, "bias": bias}
    return {key: gradients[key] for key, _ in layer.named_parameters(recurse=False)}


def _tokens(x: Tensor) -> Tensor:
    """(B, ..., D) to (B, tokens, D)."""
    return x.reshape(len(x), -1, x.shape[-1])
