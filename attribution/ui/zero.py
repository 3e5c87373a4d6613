"""ZeroGPU, a kind of Hugging Face Space: `spaces` lends each job a process that has a GPU."""

import os
from collections.abc import Callable, Generator
from contextlib import closing
from threading import Event
from typing import Any

import gradio as gr

from attribution.errors import AttributionError, DeviceUnavailable, Stopped

ZERO = "SPACES_ZERO_GPU"  # set on such a Space
FIRST, LONGEST = 60.0, 120.0  # seconds of the GPU that are asked for before a job's pace is known, and at most

Steps = Generator[Any, None, None]
Run = Callable[[Any, Event], Steps]  # of a job that can be pickled, until a stop event is set


def on_zero_gpu() -> bool:
    """Whether this is a ZeroGPU Space."""
    return bool(os.environ.get(ZERO))


def prepare() -> None:
    """On a ZeroGPU Space, import `spaces`: it stands in for CUDA, and has to before a model is loaded."""
    if on_zero_gpu():
        import spaces  # noqa: F401


def on_gpu(steps: Run, seconds: Callable[[Any], float]) -> Run:
    """`steps`, with the GPU of a ZeroGPU Space for an estimate of seconds; unchanged anywhere else.

    A stop event cannot be sent: there, a stop ends the stream, which ends the process's work at its next step. Nor can
    an error: `spaces` keeps its kind alone, so ours are sent as a last step. Those of `spaces` itself (no GPU is free,
    or the visitor's share of it is used up) become ours.
    """
    if not on_zero_gpu():
        return steps
    import spaces

    @spaces.GPU(duration=seconds)  # type: ignore[untyped-decorator]
    def sent(job: Any) -> Steps:
        try:
            yield from steps(job, Event())
        except AttributionError as error:
            yield error

    def watched(job: Any, stop: Event) -> Steps:
        try:
            with closing(sent(job)) as received:
                for step in received:
                    if stop.is_set():
                        raise Stopped("stopped; the model is as it was")
                    if isinstance(step, AttributionError):
                        raise step
                    yield step
        except gr.Error as error:
            raise DeviceUnavailable(f"the lent GPU gave no answer: {error.message}") from error

    return watched
