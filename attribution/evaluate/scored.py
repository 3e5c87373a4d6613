"""Scores of every training image for every query, a job each: by methods, by variants of unlearning, by controls."""

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch

from attribution.diffusion.noise import NoiseBank
from attribution.diffusion.pipeline import Model
from attribution.diffusion.weights import unlearned
from attribution.evaluate.queue import Queue, open_queue
from attribution.index.index import Index
from attribution.methods import METHODS, attribute, check_settings
from attribution.methods.answer import AttributeSettings, Attribution
from attribution.methods.unlearning import unlearn_query
from attribution.query.encoded import encode
from attribution.query.query import Query, image_sha256
from attribution.unlearning.score import Floats, score, training_losses

SHUFFLE_SEED = 0


def jobs(folder: Path, index: Index) -> Queue:
    """The queue of an index's scores, in the folder of a world for proofs."""
    return open_queue(folder / f"scores-{index.id[:12]}", {})


def job_name(name: str, query: Query) -> str:
    """Of a method's or variant's scores for a query: the same, however many others are asked."""
    told = [query.prompt, query.seed, query.boxes, query.word, image_sha256(query.image)]
    return f"{name.replace(' ', '_')}-{hashlib.sha256(repr(told).encode()).hexdigest()[:12]}"


def exhaustively(index: Index, method: str) -> AttributeSettings:
    """How a method is asked for the scores of all images, on all noises."""
    return AttributeSettings(method, len(index), "race" in METHODS[method].uses)


def scored(
    folder: Path, model: Model, index: Index, queries: Sequence[Query], methods: Sequence[str]
) -> dict[str, Floats]:
    """Every method's scores of every training image: (Q, N); each query and method is a job, kept in the folder."""
    asked = {method: exhaustively(index, method) for method in methods}
    for _ in score_all(folder, model, index, queries, asked):
        pass
    return {method: held(folder, index, queries, method) for method in methods}


def score_all(
    folder: Path, model: Model, index: Index, queries: Sequence[Query], asked: Mapping[str, AttributeSettings]
) -> Iterator[str]:
    """Ask about every query in several ways, by their names; yields the name of each job that this process has done."""
    queue = jobs(folder, index)
    names = {job_name(name, query): (query, settings) for name, settings in asked.items() for query in queries}
    for name in queue.claimed(list(names)):
        queue.keep(name, {"scores": _scores(model, index, *names[name])})
        yield name


def held(folder: Path, index: Index, queries: Sequence[Query], name: str) -> Floats:
    """Scores (Q, N) that are all there; raises what `Queue.result` does where one is not."""
    queue = jobs(folder, index)
    return np.stack([queue.result(job_name(name, query))["scores"] for query in queries])


def is_held(folder: Path, index: Index, queries: Sequence[Query], name: str) -> bool:
    """Whether the scores of all queries are there."""
    queue = jobs(folder, index)
    return all(queue.done(job_name(name, query)) for query in queries)


def _scores(model: Model, index: Index, query: Query, settings: AttributeSettings) -> Floats:
    """Scores (N,)."""
    *_, last = attribute(model, index, query, settings)
    assert isinstance(last, Attribution)
    scores = np.zeros(len(index))
    scores[[result.row for result in last.results]] = [result.score for result in last.results]
    return scores


# Losses at noises, or of weights, that are not the index's


def losses_now(model: Model, index: Index, bank: NoiseBank, batch: int = 64) -> Floats:
    """Losses of all training images under the weights that the model has now: (N, views, columns)."""
    rows, views = range(len(index)), index.views
    parts = training_losses(model, index.encoded, bank, rows, range(len(bank)), views, batch)
    return np.concatenate([losses for _, losses in parts])


def losses_after(model: Model, index: Index, query: Query, settings: AttributeSettings, bank: NoiseBank) -> Floats:
    """What `losses_now` finds once the query is unlearned; the model ends as it was."""
    checked = check_settings(model, index, settings)
    with unlearned(model, checked.newton.weights or index.weights) as weights:
        for _ in unlearn_query(model, index, encode(model, query), checked.newton, weights):
            pass
        return losses_now(model, index, bank, checked.batch)


@contextmanager
def shuffled(model: Model) -> Iterator[None]:
    """A context in which every tensor of the U-Net's weights has its own numbers in another order."""
    generator = torch.Generator().manual_seed(SHUFFLE_SEED)
    with unlearned(model, "all") as weights:
        for weight in weights.values():
            order = torch.randperm(weight.numel(), generator=generator).to(weight.device)
            weight.copy_(weight.flatten()[order].view_as(weight))
        yield


def score_shuffled(
    folder: Path, model: Model, index: Index, queries: Sequence[Query], name: str, settings: AttributeSettings
) -> Iterator[str]:
    """The control: scores by a model that knows nothing, with the index's noises; yields each job that was done."""
    queue, bank = jobs(folder, index), index.bank(model)
    names = {job_name(name, query): query for query in queries}
    if all(queue.done(each) for each in names):
        return
    with shuffled(model):
        before = losses_now(model, index, bank, settings.batch)
        for each in queue.claimed(list(names)):
            after = losses_after(model, index, names[each], settings, bank)
            queue.keep(each, {"scores": score(before, after, settings.score).value})
            yield each
