"""The Fisher information of the chosen weights: its diagonal, and what its inverse does to a gradient."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from attribution.diffusion.loss import precise
from attribution.diffusion.weights import WeightSubset
from attribution.unlearning.ekfac import Eigenbasis, rotate

EACH, FEWEST, MOST = 4, 1024, 65_536  # samples of an image, and in all

Information = Tensor | Eigenbasis  # of one parameter tensor


@dataclass(frozen=True)
class FisherSettings:
    """What the Fisher information is estimated from.

    Attributes:
        weights: the subset of the U-Net's weights that unlearning will change; "lora" is an adapter's own.
        samples: gradients in all, each of one training image at one noise; see `Samples`. By default an index that is
            there has its own, and a new one four of each image, at least 1,024 and at most 65,536.
        timesteps: of the noise bank that the samples take in turn.
        seed: of that bank and of the order of the samples.
    """

    weights: WeightSubset = "cross-attn-kv"
    samples: int | None = None
    timesteps: int = 250
    seed: int = 2


def samples_for(images: int) -> int:
    """How many samples a Fisher information is estimated from by default: EACH of every image, within bounds.

    Its error falls with the samples, not with the images; of few images more noises tell more.
    """
    return max(FEWEST, min(MOST, EACH * images))


@dataclass(frozen=True)
class Samples:
    """Which image, which view of it and which column of the noise bank each sample is of, in a shuffled order.

    Every stretch of as many samples as there are images holds each image once, and every stretch of as many as there
    are columns hardly any column twice; no triple comes again before all have come.

    Attributes:
        rows: (N,) the images, shuffled.
        first: (N,) the view that each is seen in first.
        columns: (C,) of the bank, shuffled.
        views: 2 where mirrors count, else 1.
    """

    rows: list[int]
    first: list[int]
    columns: list[int]
    views: int

    @classmethod
    def draw(cls, images: int, views: int, columns: int, seed: int) -> "Samples":
        """Shuffle images and columns by a seed."""
        generator = torch.Generator().manual_seed(seed)
        rows = torch.randperm(images, generator=generator).tolist()
        coins = torch.randint(2, (images,), generator=generator).tolist()
        first = [(coins[place // 2] + place) % views for place in range(images)]  # each two have one of each
        return cls(rows, first, torch.randperm(columns, generator=generator).tolist(), views)

    def __getitem__(self, sample: int) -> tuple[int, int, int]:
        """Row, view and column of a sample."""
        images, columns = len(self.rows), len(self.columns)
        pairing, sample = divmod(sample, images * columns)  # after as many, each image has met each column
        visit, place = divmod(sample, images)
        shift = sample // math.lcm(images, columns)  # where counting both up would pair them as before
        view = (self.first[place] + visit + pairing) % self.views
        return self.rows[place], view, self.columns[(sample + shift) % columns]


def add_squares(sums: dict[str, Tensor], gradients: dict[str, Tensor]) -> dict[str, Tensor]:
    """Add squared gradients, summed over the batch, to running sums (F of Eq. 4, before its mean)."""
    squares = {name: precise(grad).square().sum(0) for name, grad in gradients.items()}
    return {name: sums[name] + each if sums else each for name, each in squares.items()}


def compress(information: dict[str, Tensor]) -> dict[str, Tensor]:
    """A diagonal in eight bits: float8_e4m3fn and a scale for each tensor, under "<name>:scale"; on the CPU.

    Three bits of mantissa: within 6 % down to 1e-5 of each tensor's largest, and what is smaller is damped anyway.
    """
    packed = {}
    for name, values in information.items():
        values = values.cpu()  # not every device has such numbers
        scale = values.max().float().clamp(min=1e-30) / torch.finfo(torch.float8_e4m3fn).max
        packed[name], packed[f"{name}:scale"] = (values / scale).to(torch.float8_e4m3fn), scale
    return packed


def decompress(packed: dict[str, Tensor], name: str) -> Tensor:
    """One tensor of what `compress` made, float32."""
    return packed[name].float() * packed[f"{name}:scale"]


def precondition(gradient: Tensor, information: Information, damping: float) -> Tensor:
    """(F + damping)^-1 g of one parameter tensor, `precise`; damping is a share of the mean of F's diagonal, or Lambda.

    Where F and the damping are both zero, nothing is known of a weight and it does not move: the pseudo-inverse.
    """
    gradient = precise(gradient)
    if isinstance(information, Eigenbasis):
        basis = information.like(gradient)
        scaled = precondition(rotate(gradient, basis.inputs, basis.outputs), basis.information, damping)
        return basis.outputs @ scaled @ basis.inputs.T
    information = information.to(gradient)
    damped = information + damping * information.mean()
    return torch.where(damped > 0, gradient / damped, 0)
