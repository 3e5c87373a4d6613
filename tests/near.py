"""What is elsewhere, brought here: numbers of another device, answers of another thread's event loop."""

import asyncio
from collections.abc import Coroutine
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import torch
from torch.testing import assert_close as close


def at_home(values: Any) -> Any:
    """Tensors on the CPU; all else as it is."""
    return values.cpu() if isinstance(values, torch.Tensor) else values


def assert_close(actual: Any, expected: Any, **how: Any) -> None:
    """torch.testing's, of values that may be on different devices."""
    close(at_home(actual), at_home(expected), **how)


def awaited(coroutine: Coroutine[Any, Any, Any]) -> Any:
    """What it returns, from a loop of a thread of its own: the browser's loop runs in the tests' thread."""
    with ThreadPoolExecutor(1) as thread:
        return thread.submit(asyncio.run, coroutine).result()
