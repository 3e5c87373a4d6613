"""Speed and memory of the whole application on this machine: pictures, attributions, resident size."""

import os
import platform
import resource
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import median
from typing import Any

import psutil
import torch

from attribution.diffusion.pipeline import Model
from attribution.errors import AttributionError
from attribution.index.index import Index
from attribution.methods import METHODS, attribute, bytes_read, check_settings
from attribution.methods.answer import AttributeSettings, Attribution, Progress
from attribution.query.query import Query
from attribution.scenes.truth import subjects


@dataclass(frozen=True)
class BenchSettings:
    """How much is measured: pictures generated and attributed, and the seed of their prompts."""

    queries: int = 10
    seed: int = 3


def bench(model: Model, index: Index, settings: BenchSettings) -> Iterator[dict[str, Any]]:
    """Yield one measurement a query, then the summary."""
    measured = []
    for number, subject in enumerate(subjects(settings.seed)):
        if number == settings.queries:
            break
        measured.append(_one(model, index, subject.prompt, subject.seed))
        yield measured[-1]
    yield {
        "machine": machine(model),
        "images": len(index),
        "median_seconds": {
            key: median(row[key] for row in measured) for key in ("generate", "first_top_k", "attribute")
        },
        "evaluations": measured[0]["evaluations"],
        "rss_mb": [row["rss_mb"] for row in measured],
        "queries": measured,
    }


def _one(model: Model, index: Index, prompt: str, seed: int) -> dict[str, Any]:
    began = time.monotonic()
    picture = model.generate(prompt, seed)
    generated = time.monotonic()
    first, evaluations = None, 0
    side = picture.width
    query = Query(prompt, picture, seed, ((0.0, 0.0, side / 2, side / 2),))
    for step in attribute(model, index, query, AttributeSettings()):
        if isinstance(step, Progress):
            evaluations = step.total
            if first is None and step.results:
                first = time.monotonic()
    return {
        "generate": generated - began,
        "first_top_k": (first or generated) - generated,
        "attribute": time.monotonic() - generated,
        "evaluations": evaluations,
        "rss_mb": round(psutil.Process().memory_info().rss / 1e6),
    }


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


def peak_memory() -> float:
    """The largest resident size of this process so far, in MB."""
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
