"""Speed and memory of the whole application on this machine: pictures, attributions, resident size."""

import os
import platform
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import psutil
import torch

from attribution.attribute import AttributeSettings, Progress, Query, attribute
from attribution.evaluate.locality import subjects
from attribution.index import Index
from attribution.model import Model

TIMED = ("generate", "first_top_k", "attribute")


@dataclass(frozen=True)
class BenchSettings:
    """How much is measured: pictures generated and attributed by halving, and the seed of their prompts."""

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
