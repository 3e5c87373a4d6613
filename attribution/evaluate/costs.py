"""What every method costs on this machine, for a query."""

import time
from collections.abc import Iterator
from dataclasses import dataclass, replace

from attribution.diffusion.pipeline import Model
from attribution.errors import AttributionError
from attribution.index.index import Index
from attribution.methods import METHODS, attribute, bytes_read, check_settings
from attribution.methods.answer import AttributeSettings, Attribution
from attribution.query.query import Query


@dataclass(frozen=True)
class Cost:
    """What a method costs on this machine.

    Attributes:
        evaluations: predictions of the U-Net for a query.
        seconds: for a query: measured, or for unlearning estimated from one batch of each kind.
        bytes: on disk, of what it reads.
        missing: why it cannot be used; "" where it can.
    """

    evaluations: int = 0
    seconds: float = 0.0
    bytes: int = 0
    missing: str = ""


def costs(model: Model, index: Index) -> Iterator[tuple[str, Cost]]:
    """The cost of every method, on the first training image as the query."""
    query = Query(index.captions[0], index.pictures.small(0))
    for name, method in METHODS.items():
        try:
            settings = check_settings(model, index, replace(AttributeSettings(), method=name, top_k=1))
            found = _estimate(model, index, query, settings) if method.curvature and name != "influence" else None
            found = found or _measure(model, index, query, settings)
        except AttributionError as error:
            found = Cost(missing=str(error))
        yield name, replace(found, bytes=bytes_read(index, name))


def _measure(model: Model, index: Index, query: Query, settings: AttributeSettings) -> Cost:
    for _ in attribute(model, index, query, settings):
        pass  # reads from disk and loads networks
    began = time.monotonic()
    *_, last = attribute(model, index, query, settings)
    assert isinstance(last, Attribution)
    return Cost(last.evaluations, time.monotonic() - began)


def _estimate(model: Model, index: Index, query: Query, settings: AttributeSettings) -> Cost:
    """From the first steps of unlearning and the first of scoring."""
    steps, began = attribute(model, index, query, settings), time.monotonic()
    seconds, total = 0.0, 0
    gradients = settings.unlearn.predictions
    for step in steps:
        if isinstance(step, Attribution):
            break
        total = step.total
        if step.evaluations >= gradients + 4 * settings.batch:
            scoring = (step.seconds - seconds) / (step.evaluations - gradients)
            steps.close()
            return Cost(step.total, seconds + scoring * (step.total - gradients))
        if step.stage == "unlearning":
            seconds = step.seconds
    return Cost(total, time.monotonic() - began)
