"""The linear datamodelling score: do scores predict how models do that were trained on random halves?

python -m attribution.scenes.proof --out DIR ...     # the world for proofs, and its index beside it
python -m attribution evaluate retrain --folder DIR  # trains; as many processes at once as there are cores
python -m attribution evaluate lds --folder DIR
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import combinations, islice
from pathlib import Path

import numpy as np

from attribution.diffusion.pipeline import Model
from attribution.errors import InputError
from attribution.evaluate.agreement import Estimate, ceiling, estimate, lds, paired_p
from attribution.evaluate.queue import open_queue
from attribution.evaluate.retrain import Removal, halves, measured
from attribution.index.index import Index
from attribution.methods import attribute
from attribution.methods.answer import AttributeSettings, Attribution
from attribution.query.query import Query
from attribution.scenes.compose import WorldSettings
from attribution.scenes.proof import PROOF, RetrainSettings
from attribution.scenes.truth import locate, subjects
from attribution.unlearning.score import Floats

PATIENCE = 50  # prompts, after which a model that drew none of their objects is of another world
JUDGED = ("unlearning", "unlearning+", "influence", "d-trak", "trak", "dino", "clip", "clip-text", "pixel", "random")


@dataclass(frozen=True)
class LdsSettings:
    """What is judged.

    Attributes:
        models: random halves.
        seeds: trainings of each half.
        queries: generated pictures with both of their objects; every other one is asked about a box.
        methods: that are judged.
        training: how each model is trained.
    """

    models: int = 64
    seeds: int = 2
    queries: int = 24
    methods: tuple[str, ...] = JUDGED
    training: RetrainSettings = field(default_factory=RetrainSettings)


def removals(index: Index, settings: LdsSettings) -> list[Removal]:
    """All trainings that are judged by."""
    return halves(len(index), settings.models, settings.seeds)


def queries_of(model: Model, count: int, seed: int = 3, world: WorldSettings = PROOF) -> list[Query]:
    """Pictures of two objects that the model drew, with both of them; every other one with the box of one.

    Raises:
        InputError: the model draws nothing of the world.
    """
    return list(islice(_queries(model, seed, world), count))


def _queries(model: Model, seed: int, world: WorldSettings) -> Iterator[Query]:
    made = 0
    for number, subject in enumerate(subjects(seed, world)):
        if number == PATIENCE and not made:
            raise InputError(
                f"{model.source} draws none of the scenes' objects; name an index of the embedded world, or of proofs"
            )
        picture = model.generate(subject.prompt, subject.seed)
        boxes = [box for name in subject.names if (box := locate(picture, name, subject.style))]
        if len(boxes) == len(subject.names):
            boxed = (boxes[made // 2 % 2],) if made % 2 else ()
            yield Query(subject.prompt, picture, subject.seed, boxed)
            made += 1


def scored(
    folder: Path, model: Model, index: Index, queries: Sequence[Query], methods: Sequence[str]
) -> dict[str, Floats]:
    """Every method's scores of every training image: (Q, N); each query and method is a job, kept in the folder."""
    queue = open_queue(folder / f"scores-{index.id[:12]}", {"queries": [[q.prompt, q.seed, q.boxes] for q in queries]})
    names = {f"{method}-{number:03d}": (method, query) for method in methods for number, query in enumerate(queries)}
    for name in queue.claimed(list(names)):
        queue.keep(name, {"scores": _scores(model, index, *names[name])})
    return {
        method: np.stack([queue.result(f"{method}-{number:03d}")["scores"] for number in range(len(queries))])
        for method in methods
    }


def _scores(model: Model, index: Index, method: str, query: Query) -> Floats:
    """Scores (N,), all on all noises."""
    exhaustive = method.startswith("unlearning")
    *_, last = attribute(model, index, query, AttributeSettings(method, len(index), exhaustive))
    assert isinstance(last, Attribution)
    scores = np.zeros(len(index))
    scores[[result.row for result in last.results]] = [result.score for result in last.results]
    return scores


@dataclass(frozen=True)
class Agreement:
    """How well each method predicts retraining.

    Attributes:
        models: halves that every seed was trained on.
        seeds: trainings of each.
        methods: mean over queries of LDS, by method, best first.
        values: (Q,) LDS of each query, by method.
        ceiling: one seed's losses against the others'; None with a single seed.
    """

    models: int
    seeds: int
    methods: dict[str, Estimate]
    values: dict[str, Floats]
    ceiling: Estimate | None


def agreement(
    folder: Path, model: Model, index: Index, queries: Sequence[Query], settings: LdsSettings
) -> Agreement | None:
    """LDS from what is trained so far: of the halves that all seeds, or at least the first, are trained on."""
    wanted = removals(index, settings)
    known = measured(folder, model, settings.training, wanted, queries)
    of_seed = [[each for each in wanted if each.seed == seed] for seed in range(settings.seeds)]
    seeds = [seed for seed in of_seed if len([each for each in seed if each in known]) >= 2]
    if not seeds:
        return None
    whole = [place for place in range(settings.models) if all(seed[place] in known for seed in seeds)]
    losses = np.stack([[known[seed[place]]["losses"] for place in whole] for seed in seeds])  # (seeds, M, Q)
    kept = np.ones((len(whole), len(index)), bool)
    for model_number, place in enumerate(whole):
        kept[model_number, list(seeds[0][place].rows)] = False
    scores = scored(folder, model, index, queries, settings.methods)
    values = {method: lds(each, kept, losses.mean(0)) for method, each in scores.items()}
    found = {method: estimate(value) for method, value in values.items()}
    best_first = dict(sorted(found.items(), key=lambda item: -item[1].mean))
    pairs = [ceiling(one, other) for one, other in combinations(losses, 2)]
    return Agreement(len(whole), len(seeds), best_first, values, estimate(np.mean(pairs, 0)) if pairs else None)


def table(found: Agreement) -> str:
    """Markdown: a line a method, with the chance that it is no better than the next-best is."""
    first = next(iter(found.methods))
    lines = ["| method | LDS | standard error | 95 % | first is no better |", "|---|---|---|---|---|"]
    for method, value in found.methods.items():
        chance = "" if method == first else f"{paired_p(found.values[first], found.values[method]):.4f}"
        interval = f"{value.low:.3f} to {value.high:.3f}"
        lines.append(f"| {method} | {value.mean:.3f} | {value.error:.3f} | {interval} | {chance} |")
    limit = "" if found.ceiling is None else f" One seed against another: {found.ceiling.mean:.3f}."
    return "\n".join([*lines, "", f"{found.models} halves, {found.seeds} seeds.{limit}"])
