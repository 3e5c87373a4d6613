"""`python -m attribution floor`."""

from pathlib import Path

from attribution.answers.floor import FloorProgress, measure_floor, summary
from attribution.cli.asked import opened
from attribution.cli.progress import watch
from attribution.scenes.unrelated import unrelated_of


def floor(index: Path | None = None, pictures: int = 200, seed: int = 0) -> None:
    """Calibrate the verdict: measure unrelated pictures, boxes and words, and write it into the index; resumable.

    Args:
        index: an index folder; the embedded one by default.
        pictures: unrelated questions of each of the three kinds.
        seed: of the questions.
    """
    model, measured = opened(index)
    for _ in watch(measure_floor(model, measured, pictures, seed, unrelated_of(measured)), _told):
        pass
    print(summary(measured))


def _told(step: FloorProgress) -> str:
    return f"question {step.done} of {step.count}: {step.kind}, {step.maker}"
