"""Do methods find the exemplars that a customised model's pictures are made of? Recall@K and mAP (Section 5.2).

FOLDER/customised     a job each: a model customised on an unseen emoji or a look, and its pictures
FOLDER/candidates     of each model: the exemplars among training scenes, as an index (see `candidates`)
FOLDER/rankings       a job each: the exemplars' ranks in one method's answers about one model's pictures

Any number of processes share a folder. The ranks alone are what the tables are made of.
"""

import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache, partial
from itertools import product
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from attribution.diffusion.custom import customise_with
from attribution.diffusion.overlaid import open_model
from attribution.diffusion.pipeline import Model
from attribution.evaluate.agreement import average_precision, estimate, paired_p, ranks_of, recall_at
from attribution.evaluate.arrays import Arrays
from attribution.evaluate.candidates import check_methods, exemplar_rows, make_candidates, settings_for
from attribution.evaluate.customised import Case, Cases, RetrievalSettings, customise_all
from attribution.evaluate.queue import Queue, open_queue
from attribution.index.index import Index
from attribution.methods import attribute
from attribution.methods.answer import Attribution
from attribution.query.query import Query
from attribution.unlearning.score import Floats


@dataclass(frozen=True)
class Job:
    """One method's answers about all pictures of one model, whose prompts have the new word or lack it."""

    case: str
    method: str
    worded: bool

    @property
    def name(self) -> str:
        """Of its file."""
        return f"{self.case}-{self.method}-{'with' if self.worded else 'without'}"


def jobs_of(cases: Cases, settings: RetrievalSettings) -> list[Job]:
    """All of them, those of one model together."""
    return [Job(*each) for each in product(cases.kinds, settings.methods, (True, False))]


def run_all(folder: Path, index: Index, cases: Cases, settings: RetrievalSettings, here: bool = True) -> Iterator[str]:
    """Do what is to do and no other process does; yields how far that is.

    Args:
        folder: of all of it.
        index: of the pretrained model.
        cases: the customised models.
        settings: what is judged.
        here: the models are customised here.

    Raises:
        InputError: the index lacks what a method needs, or the folder holds work of other settings.
    """
    check_methods(settings.methods, index)
    if here:
        yield from customise_all(folder, index, settings)
    yield from rank_all(folder, index, cases, settings)


# Rankings


def rankings(folder: Path, cases: Cases, settings: RetrievalSettings) -> Queue:
    """The queue of what methods say; where there is none yet, none is begun.

    Raises:
        InputError: the folder holds rankings of other models, another index or other settings.
    """
    if not (folder / "rankings" / "queue.json").is_file():
        return Queue(folder / "rankings")
    return _open(folder / "rankings", cases, settings)


def _open(folder: Path, cases: Cases, settings: RetrievalSettings) -> Queue:
    return open_queue(folder, {**cases.made, "scenes": settings.scenes})


def rank_all(folder: Path, index: Index, cases: Cases, settings: RetrievalSettings) -> Iterator[str]:
    """Build the candidates of each model that is there, and let every method rank them; yields how far that is."""
    ready = [name for name in cases.kinds if cases.ready(name)]
    built, queue = (_open(folder / part, cases, settings) for part in ("candidates", "rankings"))
    yield from _build_all(folder, index, cases, settings, built, ready)
    opened = lru_cache(maxsize=1)(partial(_opened, folder, index, cases))
    jobs = {job.name: job for job in jobs_of(cases, settings) if job.case in ready and built.done(job.case)}
    for name in queue.claimed(list(jobs)):
        began, job, ranks = time.monotonic(), jobs[name], list[NDArray[np.int64]]()
        case, model, candidates = opened(job.case)
        asked = settings_for(job.method, index, candidates, settings.batch)
        relevant = exemplar_rows(candidates)
        for prompt, picture in zip(case.asked(job.worded), case.pictures, strict=True):
            *_, last = attribute(model, candidates, Query(prompt, picture), asked)
            assert isinstance(last, Attribution)
            ranks.append(ranks_of(last.rows, relevant))
            queue.touch(name)
            yield f"{name}: {len(ranks)} of {len(case.pictures)} pictures"
        seconds = np.array(time.monotonic() - began)
        queue.keep(name, {"ranks": np.stack(ranks).astype(np.int32), "seconds": seconds})


def _build_all(
    folder: Path, index: Index, cases: Cases, settings: RetrievalSettings, built: Queue, ready: Sequence[str]
) -> Iterator[str]:
    for name in built.claimed(ready):
        began, case = time.monotonic(), cases.load(name)
        model = customise_with(open_model(index.model_files), case.custom)
        for step in make_candidates(built.folder / name, model, index, case, settings.scenes, settings.batch):
            built.touch(name)
            yield f"candidates of {name}: {step.step} {step.done} of {step.total}"
        built.keep(name, {"seconds": np.array(time.monotonic() - began)})


def _opened(folder: Path, index: Index, cases: Cases, name: str) -> tuple[Case, Model, Index]:
    case = cases.load(name)
    candidates = Index.open(folder / "candidates" / name / "index")
    return case, customise_with(open_model(index.model_files), case.custom), candidates


# What they say


class Finished(Protocol):
    """Rankings that are finished: a queue's, or a file's."""

    def done(self, name: str) -> bool:
        """Whether a job has its result."""

    def result(self, name: str) -> Arrays:
        """A finished job's arrays, by name."""


@dataclass(frozen=True)
class Found:
    """How well a method finds the exemplars, by the models that it is done with.

    Attributes:
        method: that looks.
        worded: whether the prompts have the new word.
        recall: mean Recall@K over each model's pictures, by model.
        precision: mean average precision likewise.
    """

    method: str
    worded: bool
    recall: Mapping[str, float]
    precision: Mapping[str, float]

    def of(self, cases: Cases, kind: str) -> Floats:
        """Recall@K of the models of a kind."""
        return np.array([value for name, value in self.recall.items() if cases.kinds[name] == kind])


def found(queue: Finished, cases: Cases, settings: RetrievalSettings) -> list[Found]:
    """What is finished, by method, the highest recall first; with the new word, then without it."""
    every = []
    for worded, method in product((True, False), settings.methods):
        jobs = [Job(name, method, worded) for name in cases.kinds]
        ranks = {job.case: queue.result(job.name)["ranks"] for job in jobs if queue.done(job.name)}
        if ranks:
            at_k = partial(recall_at, k=settings.k)
            every.append(Found(method, worded, _means(at_k, ranks), _means(average_precision, ranks)))
    return sorted(every, key=lambda each: (not each.worded, -np.mean(list(each.recall.values()))))


def _means(judge: Callable[[NDArray[np.integer]], float], ranks: Mapping[str, NDArray[Any]]) -> dict[str, float]:
    """A judge's mean over each model's pictures, by model."""
    return {name: float(np.mean([judge(one) for one in each])) for name, each in ranks.items()}


def table(every: Sequence[Found], cases: Cases, settings: RetrievalSettings) -> str:
    """Markdown: a line a method and kind of prompt; standard errors are over models."""
    lines = [
        f"| method | new word | models | Recall@{settings.k} | mAP | objects | styles | first is no better |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for each in every:
        kinds = [each.of(cases, kind) for kind in ("object", "style")]
        cells = [_figure(np.array(list(values.values()))) for values in (each.recall, each.precision)]
        cells += [_figure(values) if len(values) else "" for values in kinds]
        begin = f"| {each.method} | {'with' if each.worded else 'without'} | {len(each.recall)}"
        lines.append(f"{begin} | {' | '.join(cells)} | {_chance(every[0], each)} |")
    return "\n".join(lines)


def _figure(values: Floats) -> str:
    whole = estimate(values)
    return f"{whole.mean:.3f} ± {whole.error:.3f}" if len(values) > 1 else f"{whole.mean:.3f}"


def _chance(first: Found, other: Found) -> str:
    """The chance that the first one's recall is no higher, over models that both are done with."""
    both = [name for name in first.recall if name in other.recall]
    if first is other or len(both) < 2:
        return ""
    one, two = (np.array([each.recall[name] for name in both]) for each in (first, other))
    return f"{paired_p(one, two):.4f}"


def left(queue: Finished, cases: Cases, settings: RetrievalSettings) -> str:
    """A sentence about what is done and what is still to do, with the hours that it would take on one such device."""
    jobs = jobs_of(cases, settings)
    todo = [job for job in jobs if not queue.done(job.name)]
    told = f"{len(jobs) - len(todo)} of {len(jobs)} rankings are done, among {settings.scenes} scenes and the exemplars"
    if not todo:
        return f"{told}."
    spent = [(job.method, float(queue.result(job.name)["seconds"])) for job in jobs if queue.done(job.name)]
    means = {method: np.mean([each for name, each in spent if name == method]) for method, _ in spent}
    counts = Counter(job.method for job in todo)
    known = sum(means[method] * count for method, count in counts.items() if method in means)
    hours = f", {known / 3600:.1f} hours at the pace so far" if all(method in means for method in counts) else ""
    wanted = ", ".join(f"{method} {count}" for method, count in counts.items())
    return f"{told}; to do: {wanted}{hours}. Add --compute to do it."
