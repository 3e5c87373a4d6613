"""The Fisher information of the chosen weights: its diagonal, and what its inverse does to a gradient."""

from dataclasses import dataclass

import torch
from torch import Tensor

from attribution.diffusion.weights import WeightSubset
from attribution.unlearning.ekfac import Eigenbasis, rotate

Information = Tensor | Eigenbasis  # of one parameter tensor


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


def precondition(gradient: Tensor, information: Information, damping: float) -> Tensor:
    """(F + damping)^-1 g of one parameter tensor; damping is a share of the mean of F's diagonal, or of Lambda.

    Where F and the damping are both zero, nothing is known of a weight and it does not move: the pseudo-inverse.
    """
    if isinstance(information, Eigenbasis):
        basis = information.like(gradient)
        scaled = precondition(rotate(gradient, basis.inputs, basis.outputs), basis.information, damping)
        return basis.outputs @ scaled @ basis.inputs.T
    information = information.to(gradient)
    damped = information + damping * information.mean()
    return torch.where(damped > 0, gradient / damped, 0)
