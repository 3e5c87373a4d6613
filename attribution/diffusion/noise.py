"""The noise bank: the timesteps and the fixed noises that every loss is measured with.

Because the bank is drawn once from a seed, a loss depends on the image alone: not on the batch, the order,
the subset or the number of workers, and cached losses serve any subset of the training set.
"""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from attribution.errors import InputError


@dataclass(frozen=True)
class NoiseSettings:
    """Size and seed of a bank.

    Attributes:
        timesteps: strided over the part of the schedule from `start` to `end`.
        noises: different noises for each timestep.
        seed: of the noises.
        start: share of the schedule, from 0 (clean) to 1 (all noise).
        end: likewise; above `start`.
    """

    timesteps: int = 10
    noises: int = 1
    seed: int = 0
    start: float = 0.0
    end: float = 1.0


@dataclass(frozen=True)
class NoiseBank:
    """S = timesteps x noises columns.

    Attributes:
        t: (S,) int64 timesteps.
        eps: (S, C, h, w) float32 standard normal noises, one for each column, on the CPU.
    """

    t: Tensor
    eps: Tensor

    @classmethod
    def draw(cls, settings: NoiseSettings, latent_shape: tuple[int, int, int], train_timesteps: int) -> "NoiseBank":
        """Draw a bank; the timesteps are the middles of equal strides of the schedule.

        Raises:
            InputError: fewer than one or more timesteps than the schedule has, or no noise.
        """
        if not 0 <= settings.start < settings.end <= 1:
            raise InputError(
                f"timesteps from {settings.start:g} to {settings.end:g} of the schedule are not possible;"
                " accepted are 0 <= start < end <= 1"
            )
        if not 1 <= settings.timesteps <= train_timesteps or settings.noises < 1:
            raise InputError(
                f"a noise bank of {settings.timesteps} timesteps x {settings.noises} noises is not possible;"
                f" accepted are 1 to {train_timesteps} timesteps and at least one noise"
            )
        stride = train_timesteps * (settings.end - settings.start) / settings.timesteps
        first = train_timesteps * settings.start
        t = (first + (torch.arange(settings.timesteps) + 0.5) * stride).long().repeat_interleave(settings.noises)
        generator = torch.Generator().manual_seed(settings.seed)
        return cls(t, torch.randn(len(t), *latent_shape, generator=generator))

    def __len__(self) -> int:
        return len(self.t)

    def select(self, columns: list[int]) -> "NoiseBank":
        """The bank of some columns, in the order given."""
        return NoiseBank(self.t[columns], self.eps[columns])


def drawn_anew(seed: int, by: int | None) -> int:
    """Another seed in a seed's place, a different one for each of both; None leaves it as it is."""
    return seed if by is None else int(np.random.SeedSequence([seed, by]).generate_state(1)[0])


def spread(size: int) -> list[int]:
    """An order of `size` columns whose every beginning is spread over the schedule, the middle first.

    Visits the columns by the golden-ratio sequence, which is equidistributed.
    """
    golden = (5**0.5 - 1) / 2
    visits = (int((0.5 + k * golden) % 1 * size) for k in range(8 * size))
    return list(dict.fromkeys([*visits, *range(size)]))
