"""Comparisons on the CPU, wherever the numbers are."""

from typing import Any

import torch
from torch.testing import assert_close as close


def at_home(values: Any) -> Any:
    """Tensors on the CPU; all else as it is."""
    return values.cpu() if isinstance(values, torch.Tensor) else values


def assert_close(actual: Any, expected: Any, **how: Any) -> None:
    """torch.testing's, of values that may be on different devices."""
    close(at_home(actual), at_home(expected), **how)
