"""EK-FAC: the Fisher information of a linear layer in a Kronecker eigenbasis (George et al. 2018; Wang et al. 2025)."""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from attribution.diffusion.loss import precise
from attribution.errors import InputError
from attribution.unlearning.gradients import Trace, Traces


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

    @classmethod
    def all_of(cls, tensors: dict[str, Tensor]) -> dict[str, "Eigenbasis"]:
        """By parameter name, float32, what tensors are named <parameter>.inputs, .outputs and .information."""
        names, parts = {key.rpartition(".")[0] for key in tensors}, ("inputs", "outputs", "information")
        return {name: cls(*(tensors[f"{name}.{part}"].float() for part in parts)) for name in sorted(names)}

    def like(self, tensor: Tensor) -> "Eigenbasis":
        """The same on a tensor's device, of its dtype."""
        return Eigenbasis(self.inputs.to(tensor), self.outputs.to(tensor), self.information.to(tensor))


def rotate(gradient: Tensor, inputs: Tensor, outputs: Tensor) -> Tensor:
    """(..., o, i) gradients into an eigenbasis: Qs^T G Qa."""
    return outputs.T @ gradient @ inputs


def add_moments(sums: dict[str, Tensor], traces: Traces) -> dict[str, Tensor]:
    """Add the second moments of each linear layer's inputs and output gradients to running sums, token by token.

    Raises:
        InputError: a layer is not linear.
    """
    total = dict(sums)
    for name, calls in traces.items():
        for key, moment in (each for traced in calls for each in _moments(name, traced)):
            total[key] = total[key] + moment if key in total else moment
    return total


def _moments(name: str, traced: Trace) -> Iterator[tuple[str, Tensor]]:
    if not isinstance(traced.layer, nn.Linear):
        raise InputError(f"EK-FAC covers linear layers only; {name} is a {type(traced.layer).__name__}")
    for key, values in (("inputs", traced.inputs), ("outputs", traced.grads)):
        rows = precise(values.reshape(-1, values.shape[-1]))
        yield f"{name}.weight.{key}", rows.T @ rows


def eigenvectors(moments: dict[str, Tensor]) -> dict[str, Tensor]:
    """Of second moments, in columns, by the same names; found in float64 on the CPU."""
    return {name: torch.linalg.eigh(moment.cpu().double())[1].to(moment) for name, moment in moments.items()}
