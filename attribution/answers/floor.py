"""A noise floor: what unrelated pictures reach, below which an answer has no clear source.

Scores grow with a picture's gradient, and a picture that the model never saw has a large one: but then the losses of
all training images rise. What is compared is a score as a multiple of the typical training image's
(`Attribution.multiple`). An unrelated picture is noise, smooth or fine, under a prompt of none of a picture's words.
"""

import json
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from PIL import Image

from attribution.diffusion.pipeline import Model
from attribution.errors import InputError
from attribution.files import write_whole
from attribution.index.index import FLOOR, Index
from attribution.methods import attribute
from attribution.methods.answer import AttributeSettings, Attribution, Progress
from attribution.query.query import Query

METHOD = "unlearning"
CELLS = (4, 8, 16, 64)  # a side, of the noise; fewer is smoother
PROMPTS = (
    "quarterly results of an insurance company",
    "minutes of the council's meeting about parking permits",
    "proof of the second lemma by induction",
    "terms and conditions apply until further notice",
    "tomorrow's arithmetic examination is postponed",
    "a theory of justice in twelve chapters",
    "subject to approval by the auditors",
    "the grammar of reported speech",
)
MOST = 100


@dataclass(frozen=True)
class FloorProgress:
    """An unrelated picture's first score as a multiple of the typical one; how many are done, of how many."""

    done: int
    count: int
    multiple: float


def unrelated(number: int, side: int) -> Query:
    """Unrelated picture `number`: coloured noise of CELLS in turn, under one of PROMPTS in turn."""
    rng = np.random.default_rng([number, 17])
    cells = min(CELLS[number % len(CELLS)], side)
    coarse = Image.fromarray(rng.integers(0, 256, (cells, cells, 3), np.uint8))
    return Query(PROMPTS[number % len(PROMPTS)], coarse.resize((side, side), Image.Resampling.BICUBIC))


def measure_floor(model: Model, index: Index, count: int = 8) -> Iterator[Progress | FloorProgress]:
    """Attribute unrelated pictures and write into the index the largest multiple that one of them reaches.

    Raises:
        InputError: the count is not possible.
    """
    if not 1 <= count <= MOST:
        raise InputError(f"{count} unrelated pictures are not possible; accepted are 1 to {MOST}")
    multiples: list[float] = []
    for number in range(count):
        query = unrelated(number, model.resolution)
        for step in attribute(model, index, query, AttributeSettings(method=METHOD, top_k=1)):
            if isinstance(step, Progress):
                yield step
                continue
            multiples.append(top_multiple(step) or 0.0)
            yield FloorProgress(number + 1, count, multiples[-1])
    held = {"method": METHOD, "multiple": max(multiples), "multiples": multiples}
    write_whole(index.path / FLOOR, (json.dumps(held, indent=1) + "\n").encode())


def top_multiple(answer: Attribution) -> float | None:
    """The first result's score as a multiple of the typical one."""
    return answer.multiple(answer.results[0])
