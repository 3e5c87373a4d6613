"""What retrieval has found, as a file of results: the exemplars' ranks, which all of its tables are made of."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import product
from typing import Any

import numpy as np
from numpy.typing import NDArray

from attribution.errors import InputError
from attribution.evaluate.arrays import Arrays
from attribution.evaluate.customised import Case, Cases, RetrievalSettings
from attribution.evaluate.queue import Queue
from attribution.evaluate.results import Made, Results
from attribution.evaluate.retrieval import Job, jobs_of
from attribution.index.manifest import Manifest

MISSING = -1  # fills up what has fewer exemplars than others, and what is not done


@dataclass(frozen=True)
class Recalled:
    """Finished rankings from a file, in the place of a queue of them.

    Attributes:
        jobs: arrays, by the job's name.
    """

    jobs: Mapping[str, Arrays]

    def done(self, name: str) -> bool:
        """Whether a job has its result."""
        return name in self.jobs

    def result(self, name: str) -> Arrays:
        """A finished job's arrays, by name."""
        return self.jobs[name]


def made_of(manifest: Manifest, cases: Cases, settings: RetrievalSettings) -> Made:
    """What the results say of themselves."""
    command = "python -m attribution evaluate retrieval --folder DIR --compute"
    sizes = (manifest.id, manifest.model.sha256, manifest.data.count)
    fixed = {**cases.made, "scenes": settings.scenes}
    told = {**asdict(settings), "kinds": dict(cases.kinds)}
    return Made("retrieval", *sizes, fixed, told, command)


def packed(queue: Queue, cases: Cases, settings: RetrievalSettings) -> dict[str, NDArray[Any]]:
    """Finished rankings as the arrays of a file: those of all models, by method and with or without the new word."""
    arrays: dict[str, NDArray[Any]] = {}
    for method, worded in product(settings.methods, (True, False)):
        names = [Job(case, method, worded).name for case in cases.kinds]
        held = [queue.result(name) if queue.done(name) else None for name in names]
        if any(held):
            arrays[f"ranks/{_line(method, worded)}"] = _filled(
                [None if each is None else each["ranks"] for each in held]
            )
            seconds = [float(each["seconds"]) if each else np.nan for each in held]
            arrays[f"seconds/{_line(method, worded)}"] = np.array(seconds)
    return arrays


def _line(method: str, worded: bool) -> str:
    return f"{method}-{'with' if worded else 'without'}"


def _filled(ranks: Sequence[NDArray[Any] | None]) -> NDArray[np.int32]:
    """Ranks (P, R) of each model as (models, P, R), where R is the most exemplars that one has."""
    shapes = [each.shape for each in ranks if each is not None]
    filled = np.full((len(ranks), *np.max(shapes, 0)), MISSING, np.int32)
    for place, each in zip(filled, ranks, strict=True):
        if each is not None:
            place[: each.shape[0], : each.shape[1]] = each
    return filled


def unpacked(results: Results, settings: RetrievalSettings) -> tuple[Recalled, Cases]:
    """Finished rankings from a file, and the models that they are of."""
    kinds = results.made.settings["kinds"]
    cases = Cases(kinds, results.made.fixed, lambda _name: False, _gone)
    jobs: dict[str, Arrays] = {}
    for place, case in enumerate(kinds):
        for job in (each for each in jobs_of(cases, settings) if each.case == case):
            line = _line(job.method, job.worded)
            if f"ranks/{line}" in results.arrays:
                ranks = results.arrays[f"ranks/{line}"][place]
                if (ranks != MISSING).any():
                    jobs[job.name] = {"ranks": _trimmed(ranks), "seconds": results.arrays[f"seconds/{line}"][place]}
    return Recalled(jobs), cases


def _trimmed(ranks: NDArray[Any]) -> NDArray[Any]:
    there = ranks != MISSING
    kept: NDArray[Any] = ranks[there.any(1)][:, there.any(0)]
    return kept


def _gone(name: str) -> Case:
    raise InputError(f"the model {name} is not in a file of results; name the folder that it was made in")
