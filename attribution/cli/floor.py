"""`python -m attribution floor`."""

import json
from pathlib import Path

from attribution.answers.floor import FloorProgress, measure_floor
from attribution.cli.asked import opened
from attribution.cli.progress import watch
from attribution.methods.answer import Progress


def floor(index: Path | None = None, pictures: int = 8) -> None:
    """Measure what unrelated pictures reach, below which an answer has no clear source; written into the index.

    Args:
        index: an index folder; the embedded one by default.
        pictures: unrelated pictures that are attributed.
    """
    model, measured = opened(index)
    for step in watch(measure_floor(model, measured, pictures), _told):
        if isinstance(step, FloorProgress):
            print(f"{step.done:3} of {step.count}: {step.multiple:.1f}")
    print(json.dumps(measured.floor))


def _told(step: Progress | FloorProgress) -> str:
    if isinstance(step, Progress):
        return f"{step.stage} {step.evaluations}/{step.total} evaluations"
    return f"picture {step.done} of {step.count}"
