"""Fisher information of the chosen weights, from per-image gradients: its diagonal, and EK-FAC."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from attribution.errors import InputError
from attribution.loss import paired_loss
from attribution.model import Model, WeightSubset
from attribution.noise import NoiseBank

OutputFunction = Callable[[Model, Tensor, Tensor, NoiseBank, Tensor | None], Tensor]  # see `paired_loss`


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
    parameters = model.parameters(subset)
    try:
        for parameter in parameters.values():
            parameter.requires_grad_(True)
        yield parameters
    finally:
        for parameter in parameters.values():
            parameter.requires_grad_(False)


@dataclass(frozen=True)
class Trace:
    """What a layer did in one forward and backward pass.

    Attributes:
        layer: linear, convolution or normalisation.
        inputs: (B, ...) what it was given.
        grads: (B, ...) gradient of each image's own output function by what the layer gave.
    """

    layer: nn.Module
    inputs: Tensor
    grads: Tensor


def trace(
    model: Model,
    subset: WeightSubset,
    latents: Tensor,
    text: Tensor,
    bank: NoiseBank,
    output: OutputFunction = paired_loss,
    mask: Tensor | None = None,
) -> dict[str, Trace]:
    """Run image b at column b of the bank, forwards and backwards, and keep what each layer of a subset did.

    Args:
        model: at the weights of interest.
        subset: layers, each called once in a forward pass.
        latents: (B, C, h, w).
        text: (B, L, D).
        bank: B columns.
        output: the function of each image that is differentiated, its loss by default.
        mask: (h, w), the region; None is the whole picture.
    """
    layers = model.tunable(subset)
    inputs: dict[str, Tensor] = {}
    outputs: dict[str, Tensor] = {}

    def record(name: str, layer: nn.Module) -> RemovableHandle:
        def hook(_layer: nn.Module, args: tuple[Tensor, ...], given: Tensor) -> None:
            inputs[name], outputs[name] = args[0].detach(), given

        return layer.register_forward_hook(hook)

    handles = [record(name, layer) for name, layer in layers.items()]
    try:
        with tuned(model, subset), torch.enable_grad():
            total = output(model, latents, text, bank, mask).sum()
            grads = torch.autograd.grad(total, list(outputs.values()))
    finally:
        for handle in handles:
            handle.remove()
    return {
        name: Trace(layers[name], inputs[name], grad) for (name, _), grad in zip(outputs.items(), grads, strict=True)
    }


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
        for name, traced in trace(model, subset, latents, text, bank, output, mask).items()
        for key, gradient in layer_gradients(traced).items()
    }


def layer_gradients(traced: Trace) -> dict[str, Tensor]:
    """Gradients of a layer's parameters for each image: (B, *parameter shape) by parameter name.

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


def add_squares(sums: dict[str, Tensor], gradients: dict[str, Tensor]) -> dict[str, Tensor]:
    """Add squared gradients, summed over the batch, to running sums (F of Eq. 4, before its mean)."""
    return {
        name: sums.get(name, torch.zeros((), device=grad.device)) + grad.square().sum(0)
        for name, grad in gradients.items()
    }


def compress(information: dict[str, Tensor]) -> dict[str, Tensor]:
    """A diagonal in eight bits: float8_e4m3fn and a scale for each tensor, under "<name>:scale".

    Three bits of mantissa: within 6 % down to 1e-5 of each tensor's largest, and what is smaller is damped anyway.
    """
    packed = {}
    for name, values in information.items():
        scale = values.max().float().clamp(min=1e-30) / torch.finfo(torch.float8_e4m3fn).max
        packed[name], packed[f"{name}:scale"] = (values / scale).to(torch.float8_e4m3fn).cpu(), scale.cpu()
    return packed


def decompress(packed: dict[str, Tensor], name: str) -> Tensor:
    """One tensor of what `compress` made, float32."""
    return packed[name].float() * packed[f"{name}:scale"]


@dataclass(frozen=True)
class Eigenbasis:
    """EK-FAC of a linear layer's weight (George et al. 2018; Wang et al. 2025): the Fisher in a Kronecker eigenbasis.

    Attributes:
        inputs: (i, i) eigenvectors Qa of E[a a^T], in columns; a is what the layer is given, token by token.
        outputs: (o, o) eigenvectors Qs of E[g g^T], in columns; g is the gradient by what it gives.
        information: (o, i) Lambda = E[(Qs^T G Qa)^2] over per-image gradients G.
    """

    inputs: Tensor
    outputs: Tensor
    information: Tensor

    def like(self, tensor: Tensor) -> "Eigenbasis":
        """The same on a tensor's device, of its dtype."""
        return Eigenbasis(self.inputs.to(tensor), self.outputs.to(tensor), self.information.to(tensor))


Information = Tensor | Eigenbasis  # of one parameter tensor


def rotate(gradient: Tensor, inputs: Tensor, outputs: Tensor) -> Tensor:
    """(..., o, i) gradients into an eigenbasis: Qs^T G Qa."""
    return outputs.T @ gradient @ inputs


def precondition(gradient: Tensor, information: Information, damping: float) -> Tensor:
    """(F + damping)^-1 g of one parameter tensor; damping is a share of the mean of F's diagonal, or of Lambda."""
    if isinstance(information, Eigenbasis):
        basis = information.like(gradient)
        scaled = precondition(rotate(gradient, basis.inputs, basis.outputs), basis.information, damping)
        return basis.outputs @ scaled @ basis.inputs.T
    information = information.to(gradient)
    return gradient / (information + damping * information.mean())


def add_moments(sums: dict[str, Tensor], traces: dict[str, Trace]) -> dict[str, Tensor]:
    """Add the second moments of each linear layer's inputs and output gradients to running sums, token by token.

    Raises:
        InputError: a layer is not linear.
    """
    added = {}
    for name, traced in traces.items():
        if not isinstance(traced.layer, nn.Linear):
            raise InputError(f"EK-FAC covers linear layers only; {name} is a {type(traced.layer).__name__}")
        for key, values in (("inputs", traced.inputs), ("outputs", traced.grads)):
            rows = values.reshape(-1, values.shape[-1])
            added[f"{name}.weight.{key}"] = rows.T @ rows
    return {name: sums.get(name, torch.zeros_like(moment)) + moment for name, moment in added.items()}


def eigenvectors(moments: dict[str, Tensor]) -> dict[str, Tensor]:
    """Of second moments, in columns, by the same names; found in float64 on the CPU."""
    return {name: torch.linalg.eigh(moment.double().cpu())[1].to(moment) for name, moment in moments.items()}
