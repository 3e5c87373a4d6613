"""What figures are measured on, and with: the machine, its memory, seconds, predictions of the U-Net."""

import os
import platform
import resource
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Literal

import torch

from attribution.diffusion.pipeline import Model

STATUS = Path("/proc/self/status")
Clock = Literal["seconds", "cpu"]  # of `Spent`


@dataclass(frozen=True)
class Spent:
    """What work took.

    Attributes:
        seconds: by the clock.
        cpu: seconds of processors, of all threads; on a machine that others use too, they tell more than the clock.
        predictions: of the U-Net, as it was called.
    """

    seconds: float = 0.0
    cpu: float = 0.0
    predictions: float = 0.0

    def __add__(self, other: "Spent") -> "Spent":
        return Spent(self.seconds + other.seconds, self.cpu + other.cpu, self.predictions + other.predictions)

    def __sub__(self, other: "Spent") -> "Spent":
        return self + -1 * other

    def __rmul__(self, times: float) -> "Spent":
        return Spent(times * self.seconds, times * self.cpu, times * self.predictions)


class Meter:
    """A context that counts what a model's U-Net is asked for, and reads the clocks beside it."""

    def __init__(self, model: Model) -> None:
        self._unet, self._predictions = model.unet, 0

    def __enter__(self) -> "Meter":
        self._handle = self._unet.register_forward_pre_hook(self._count)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._handle.remove()

    def _count(self, _unet: torch.nn.Module, arguments: tuple[Any, ...]) -> None:
        self._predictions += len(arguments[0])

    def read(self) -> Spent:
        """What was spent so far; only differences mean something."""
        return Spent(time.monotonic(), time.process_time(), self._predictions)


def peak_memory() -> float:
    """The largest resident size of this process so far, in MB.

    Linux is asked for this program's own: what getrusage tells is never less than what the process that started this
    one held then.
    """
    if STATUS.is_file():
        lines = STATUS.read_text(encoding="utf-8").splitlines()
        told = next((line.split()[1] for line in lines if line.startswith("VmHWM:")), None)
        if told is not None:
            return int(told) * 1024 / 1e6
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e6


def machine(model: Model) -> dict[str, str | int]:
    """What the figures were measured on."""
    return {
        "processor": _processor(),
        "cores": os.cpu_count() or 0,
        "threads": torch.get_num_threads(),
        "device": str(model.device),
        "dtype": str(model.dtype),
        "torch": torch.__version__,
        "python": platform.python_version(),
    }


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor()
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), "")
