"""Gradients in one bit a number: the signs of those numbers of whitened gradients that training losses depend on most.

First-order influence by EK-FAC, g_i^T (F + damping)^-1 g_q (Grosse et al. 2023), is the product of two whitened
gradients. In EK-FAC's eigenbasis the energy of a whitened gradient is spread over many numbers of about one size, so
that random projections of a few hundred drown it in noise, while of many numbers the signs alone keep nearly all of
it. What they do not keep is how long a training image's gradient is: the longest would be everyone's first otherwise.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from attribution.batches import batches
from attribution.diffusion.loss import precise
from attribution.files import let_go
from attribution.unlearning.ekfac import Eigenbasis, rotate
from attribution.unlearning.projection import ROWS

BITS = 16  # for each number of a projection: they take as many bytes as its numbers do in float16
Bits = NDArray[np.uint8]


@dataclass(frozen=True)
class SignProjection:
    """The numbers of gradients, whitened in EK-FAC's eigenbasis, whose expected energy is the largest.

    Lambda is the mean square of a gradient's number, so Lambda / (Lambda + damping) that of a whitened one.

    Attributes:
        bases: EK-FAC by parameter name.
        dimension: how many numbers are taken, a multiple of 8; zeros fill up where there are fewer.
        damping: added to Lambda, as a share of its mean over each parameter tensor.
    """

    bases: Mapping[str, Eigenbasis]
    dimension: int
    damping: float

    @classmethod
    def like(cls, bases: Mapping[str, Eigenbasis], dimension: int, damping: float) -> "SignProjection":
        """One that takes as much room as projected gradients of `dimension` numbers, or as all numbers need."""
        numbers = sum(basis.information.numel() for basis in bases.values())
        return cls(bases, min(BITS * dimension, 8 * -(-numbers // 8)), damping)

    @cached_property
    def chosen(self) -> dict[str, Tensor]:
        """By parameter name, in sorted order, where the numbers are in its flattened eigenbasis, rising: int64."""
        energies = {name: self._energy(self.bases[name]).flatten() for name in sorted(self.bases)}
        every = torch.cat(list(energies.values()))
        first = torch.zeros(len(every), dtype=torch.bool)
        first[torch.argsort(every, descending=True, stable=True)[: self.dimension]] = True
        parts = first.split([len(energy) for energy in energies.values()])
        return {name: part.nonzero()[:, 0] for name, part in zip(energies, parts, strict=True)}

    def _energy(self, basis: Eigenbasis) -> Tensor:
        held = basis.information.cpu().double()
        damped = held + self.damping * held.mean()
        return torch.where(damped > 0, held / damped, 0)

    def __call__(self, gradients: dict[str, Tensor]) -> Tensor:
        """The chosen numbers of B whitened gradients.

        Args:
            gradients: (B, *parameter shape) by parameter name, of all that there are bases of.

        Returns:
            (B, dimension) on the gradients' device, float32, or float64 if they are.
        """
        parts = [self._numbers(gradients[name], name, places) for name, places in self.chosen.items()]
        missing = self.dimension - sum(part.shape[1] for part in parts)
        return torch.cat([*parts, parts[0].new_zeros(len(parts[0]), missing)], 1)

    def _numbers(self, gradient: Tensor, name: str, places: Tensor) -> Tensor:
        gradient = precise(gradient)
        basis = self.bases[name].like(gradient)
        damped = basis.information + self.damping * basis.information.mean()
        rotated = rotate(gradient, basis.inputs, basis.outputs).flatten(1)
        here = places.to(gradient.device)
        return rotated[:, here] * torch.where(damped > 0, damped.rsqrt(), 0).flatten()[here]


def to_bits(numbers: Tensor) -> Bits:
    """Signs of (..., dimension) numbers, eight in a byte: (..., dimension / 8); a bit is set where one is above 0."""
    return np.packbits((numbers > 0).cpu().numpy(), axis=-1)


def agreement(bits: Bits, query: Tensor, rows: int = ROWS) -> NDArray[np.float64]:
    """How far signs agree with the query's numbers, these by their size: 1 where every one does, -1 where none does.

    Args:
        bits: (N, views, dimension / 8) from `to_bits`, memory-mapped or not.
        query: (dimension,) numbers of the query's whitened gradient.
        rows: in memory at once.

    Returns:
        (N, views); zeros where the query's numbers are.
    """
    numbers = query.detach().to("cpu", torch.float64).numpy()
    tables = _sums_by_byte(numbers / (np.abs(numbers).sum() or 1.0))
    result = np.zeros(bits.shape[:-1])
    for block in batches(len(bits), rows):
        columns = np.ascontiguousarray(np.moveaxis(bits[block.start : block.stop], -1, 0))
        for table, column in zip(tables, columns, strict=True):
            result[block.start : block.stop] += table[column]
        let_go(bits)
    return result


def _sums_by_byte(query: NDArray[np.float64]) -> NDArray[np.float64]:
    """What each of a byte's 256 values adds for each byte of an image's bits: (dimension / 8, 256)."""
    signs = 2.0 * np.unpackbits(np.arange(256, dtype=np.uint8)[:, None], axis=1) - 1
    return query.reshape(-1, 8) @ signs.T
