"""The linear datamodelling score: do scores predict how models do that were trained on random halves?

python -m attribution.scenes.proof --out DIR         # the world for proofs: pictures, model, index
python -m attribution evaluate retrain --folder DIR  # trains; as many processes at once as there are cores
python -m attribution evaluate lds --folder DIR --out FILE.npz
python -m attribution evaluate lds                   # prints the results that come with this program
python -m attribution evaluate lds --folder DIR --results OLD.npz --out NEW.npz   # adds methods that these lack
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from itertools import combinations, islice
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from attribution.diffusion.pipeline import Model
from attribution.errors import InputError
from attribution.evaluate.agreement import Estimate, ceiling, estimate, lds, paired_p
from attribution.evaluate.results import Made, Results, by_method, rounded
from attribution.evaluate.retrain import MEASURED, Removal, halves, measured
from attribution.evaluate.scored import exhaustively, held, is_held, score_shuffled, scored
from attribution.index.index import Index
from attribution.index.typed import told_of
from attribution.query.query import Query
from attribution.scenes.compose import WorldSettings
from attribution.scenes.proof import PROOF
from attribution.scenes.retraining import RetrainSettings
from attribution.scenes.truth import locate, subjects
from attribution.unlearning.score import Floats

MANY = 3  # halves that two seeds must share to be compared
PATIENCE = 50  # prompts, after which a model that drew none of their objects is of another world
JUDGED = (
    *("ensemble", "unlearning", "unlearning+", "influence+", "influence", "d-trak", "trak"),
    *("dino", "clip", "clip-text", "pixel", "random"),
)


CONTROLLED = "unlearning+"  # the method that the controls are of
SHUFFLED = "shuffled"


@dataclass(frozen=True)
class LdsSettings:
    """What is judged.

    Attributes:
        models: random halves.
        seeds: trainings of each half.
        queries: generated pictures with both of their objects; every other one is asked about a box.
        methods: that are judged.
        shuffled: the first queries, which the model with shuffled weights is asked about too, to control CONTROLLED.
        training: how each model is trained.
    """

    models: int = 64
    seeds: int = 2
    queries: int = 64
    methods: tuple[str, ...] = JUDGED
    shuffled: int = 16
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


@dataclass(frozen=True)
class Evidence:
    """What the methods are judged by.

    Attributes:
        numbers: (M,) of the halves that a model was trained on.
        kept: (M, N) the images of each.
        losses: (S, M, Q) of the queries, by seed; NaN where that model is not trained.
        scores: (Q, N) by method.
        shuffled: (C, N) by CONTROLLED with shuffled weights, of the first C queries; none where it was not asked.
    """

    numbers: NDArray[np.integer]
    kept: NDArray[np.bool_]
    losses: Floats
    scores: Mapping[str, Floats]
    shuffled: Floats | None = None

    def of(self, methods: Sequence[str], settings: LdsSettings) -> "Evidence":
        """The part of it that is asked for."""
        rows, queries = self.numbers < settings.models, settings.queries
        losses, scores = self.losses[: settings.seeds, rows, :queries], {each: self.scores[each] for each in methods}
        parts = {method: each[:queries] for method, each in scores.items()}
        shuffled = None if self.shuffled is None else self.shuffled[:queries]
        return Evidence(self.numbers[rows], self.kept[rows], losses, parts, shuffled)

    def lacks(self, settings: LdsSettings) -> list[str]:
        """What is asked for and not there, in words."""
        seeds, _, queries = self.losses.shape
        trained = [int(np.isfinite(losses[:, 0]).sum()) for losses in self.losses] + [0] * (settings.seeds - seeds)
        told = [
            f"{settings.models - count} of {settings.models} halves with seed {seed}"
            for seed, count in enumerate(trained)
            if count < settings.models
        ]
        few = [f"{settings.queries - queries} of {settings.queries} queries"] if queries < settings.queries else []
        return [*told, *few]


def gathered(folder: Path, model: Model, index: Index, queries: Sequence[Query], settings: LdsSettings) -> Evidence:
    """What is trained so far, measured, and what the methods say.

    Raises:
        InputError: fewer than two halves are trained.
    """
    trained = trained_evidence(folder, model, index, queries, settings)
    found = replace(trained, scores=scored(folder, model, index, queries, settings.methods))
    few = queries[: settings.shuffled]
    if not few or CONTROLLED not in settings.methods:
        return found
    for _ in score_shuffled(folder, model, index, few, SHUFFLED, exhaustively(index, CONTROLLED)):
        pass
    whole = is_held(folder, index, few, SHUFFLED)  # or another process is still at it
    return replace(found, shuffled=held(folder, index, few, SHUFFLED)) if whole else found


def with_further_methods(
    results: Results, folder: Path, model: Model, index: Index, queries: Sequence[Query], settings: LdsSettings
) -> Evidence:
    """Finished results, and the scores of methods that they lack, judged by the same trainings.

    Raises:
        InputError: the results are of another model, training set, training, or other queries than the folder's.
    """
    own, made = made_of(index, model, queries, settings), results.made
    wanted = (own.model_sha256, own.images, json.loads(json.dumps(told_of(own.fixed))))
    for what, ours, theirs in zip(
        ("model", "number of images", "queries or training"), wanted, _judged_by(made), strict=True
    ):
        if ours != theirs:
            raise InputError(f"the results are of another {what} than {folder}; name the folder that they were made of")
    evidence = unpacked(results)
    further = [method for method in settings.methods if method not in evidence.scores]
    return replace(evidence, scores={**evidence.scores, **scored(folder, model, index, queries, further)})


def _judged_by(made: Made) -> tuple[str, int, dict[str, Any]]:
    return made.model_sha256, made.images, made.fixed


def trained_evidence(
    folder: Path, model: Model, index: Index, queries: Sequence[Query], settings: LdsSettings
) -> Evidence:
    """What is trained so far, measured, and no scores; raises what `gathered` does."""
    wanted = removals(index, settings)
    known = measured(folder, model, settings.training, wanted, queries)
    by_seed = [[each for each in wanted if each.seed == seed] for seed in range(settings.seeds)]
    numbers = [place for place in range(settings.models) if any(seed[place] in known for seed in by_seed)]
    if len(numbers) < 2:
        raise InputError(
            f"no two models are trained in {folder} yet; run `python -m attribution evaluate retrain` first"
        )
    losses = np.full((settings.seeds, len(numbers), len(queries)), np.nan)
    kept = np.ones((len(numbers), len(index)), bool)
    for row, place in enumerate(numbers):
        kept[row, list(by_seed[0][place].rows)] = False
        for seed, halves_of in enumerate(by_seed):
            if halves_of[place] in known:
                losses[seed, row] = known[halves_of[place]]["losses"]
    return Evidence(np.array(numbers), kept, losses, {})


@dataclass(frozen=True)
class Agreement:
    """How well each method predicts retraining.

    Attributes:
        models: halves that a model was trained on.
        trainings: of them, by seed.
        methods: mean over queries of LDS, by method, best first.
        values: (Q,) LDS of each query, by method.
        ceiling: one seed's losses against another's; None with a single seed.
    """

    models: int
    trainings: tuple[int, ...]
    methods: dict[str, Estimate]
    values: dict[str, Floats]
    ceiling: Estimate | None


def agreement(evidence: Evidence) -> Agreement:
    """LDS by all models: the losses of several seeds on the same half are averaged."""
    losses = aligned(evidence.losses)
    values = {method: lds(each, evidence.kept, np.nanmean(losses, 0)) for method, each in evidence.scores.items()}
    found = {method: estimate(value) for method, value in values.items()}
    best_first = dict(sorted(found.items(), key=lambda item: -item[1].mean))
    pairs = [
        ceiling(*_common(one, other)) for one, other in combinations(losses, 2) if len(_common(one, other)[0]) >= MANY
    ]
    counts = tuple(int(np.isfinite(each[:, 0]).sum()) for each in evidence.losses)
    limit = estimate(np.mean(pairs, 0)) if pairs else None
    return Agreement(len(evidence.numbers), counts, best_first, values, limit)


def aligned(losses: Floats) -> Floats:
    """Losses (S, M, Q), each seed's shifted to agree with the first one's where both are trained, on average.

    What a seed does to all halves alike then makes no difference between a half that has one model and one that has
    two. A seed that shares fewer than MANY halves with the first says too little for that, and is left out.
    """
    result = losses.copy()
    for seed in range(1, len(losses)):
        one, other = _common(losses[0], losses[seed])
        result[seed] += (one - other).mean(0) if len(one) >= MANY else np.nan
    return result


def _common(one: Floats, other: Floats) -> tuple[Floats, Floats]:
    """Two seeds' losses (M, Q), of the halves that both are trained on."""
    both = np.isfinite(one[:, 0]) & np.isfinite(other[:, 0])
    return one[both], other[both]


def table(found: Agreement) -> str:
    """Markdown: a line a method, with the chance that the best is no better."""
    first = next(iter(found.methods), "")
    lines = ["| method | LDS | standard error | 95 % | first is no better |", "|---|---|---|---|---|"]
    for method, value in found.methods.items():
        chance = "" if method == first else f"{paired_p(found.values[first], found.values[method]):.4f}"
        interval = f"{value.low:.3f} to {value.high:.3f}"
        lines.append(f"| {method} | {value.mean:.3f} | {value.error:.3f} | {interval} | {chance} |")
    by_seed = ", ".join(f"{count} with seed {seed}" for seed, count in enumerate(found.trainings))
    limit = "" if found.ceiling is None else f" One seed against another: {found.ceiling.mean:.3f}."
    return "\n".join([*lines, "", f"{found.models} halves; trained: {by_seed}.{limit}"])


# As a file


def made_of(index: Index, model: Model, queries: Sequence[Query], settings: LdsSettings) -> Made:
    """What the results say of themselves."""
    fixed = {"training": asdict(settings.training), "noise": asdict(MEASURED), "queries": _told(queries)}
    command = "python -m attribution evaluate lds --folder DIR"
    return Made("lds", index.id, model.sha256, len(index), fixed, asdict(settings), command)


def _told(queries: Sequence[Query]) -> list[list[Any]]:
    return [[query.prompt, query.seed, query.boxes] for query in queries]


def packed(evidence: Evidence) -> dict[str, NDArray[Any]]:
    """Evidence as the arrays of a file."""
    scores = {f"scores/{method}": rounded(each) for method, each in evidence.scores.items()}
    kept, losses = np.packbits(evidence.kept, axis=1), evidence.losses.astype(np.float32)
    shuffled = {} if evidence.shuffled is None else {"shuffled": rounded(evidence.shuffled)}
    return {"numbers": evidence.numbers.astype(np.int32), "kept": kept, "losses": losses, **scores, **shuffled}


def unpacked(results: Results) -> Evidence:
    """Evidence from a file."""
    arrays = results.arrays
    kept = np.unpackbits(arrays["kept"], axis=1, count=results.made.images).astype(bool)
    losses = arrays["losses"].astype(np.float64)
    shuffled = arrays["shuffled"].astype(np.float64) if "shuffled" in arrays else None
    return Evidence(arrays["numbers"], kept, losses, by_method(arrays, "scores"), shuffled)
