"""How the defaults of unlearning were chosen: precision@10 of boxed objects, on pictures that are not reported.

To be quick, only a random pool of training scenes is ranked, unmirrored.
"""

import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from itertools import islice
from pathlib import Path

import numpy as np

from attribution.diffusion.noise import spread
from attribution.diffusion.pipeline import Model
from attribution.diffusion.weights import unlearned
from attribution.evaluate.locality import TOP
from attribution.index.index import Index
from attribution.methods.unlearning import unlearn_query
from attribution.query.encoded import encode
from attribution.query.query import Query
from attribution.scenes.compose import make_scenes
from attribution.scenes.truth import locate, subjects
from attribution.unlearning.score import ScoreKind, score, training_losses
from attribution.unlearning.step import UnlearnSettings

KINDS: tuple[ScoreKind, ...] = ("difference", "skew")


@dataclass(frozen=True)
class TuningSettings:
    """The grid, and the pictures it is tried on.

    Attributes:
        pictures: with both objects found; the seed is another than that of the reported ones.
        seed: of prompts and pictures.
        pool: training scenes that are ranked.
        step_sizes: values of alpha.
        dampings: shares of the mean Fisher information.
        samples: (timesteps, noises) of the query's gradient.
        columns: numbers of columns of the noise bank.
    """

    pictures: int = 8
    seed: int = 0
    pool: int = 1024
    step_sizes: tuple[float, ...] = (0.001, 0.003, 0.01, 0.03, 0.1)
    dampings: tuple[float, ...] = (0.1, 1.0)
    samples: tuple[tuple[int, int], ...] = ((100, 2),)
    columns: tuple[int, ...] = (3, 10)


def tune(model: Model, index: Index, settings: TuningSettings, out: Path) -> Iterator[str]:
    """Append one JSON line for each picture and point of the grid to `out`; yields each line."""
    names = [frozenset(placed.name for placed in scene.objects) for scene in make_scenes("train", len(index))]
    rng = np.random.default_rng(settings.seed)
    pool = [int(row) for row in rng.choice(len(index), min(settings.pool, len(index)), replace=False)]
    for query, boxed in islice(_queries(model, settings), settings.pictures):
        hits = np.array([boxed in names[row] for row in pool])
        for unlearn in _grid(settings):
            row = asdict(unlearn) | {"prompt": query.prompt, "boxed": boxed}
            row |= _precision(model, index, query, unlearn, pool, hits, settings.columns)
            line = json.dumps(row)
            with out.open("a", encoding="utf-8") as file:
                file.write(line + "\n")
            yield line


def _queries(model: Model, settings: TuningSettings) -> Iterator[tuple[Query, str]]:
    for number, subject in enumerate(subjects(settings.seed)):
        picture = model.generate(subject.prompt, subject.seed)
        boxes = [locate(picture, name, subject.style) for name in subject.names]
        box = boxes[number % 2]
        if box is not None and None not in boxes:
            yield Query(subject.prompt, picture, subject.seed, (box,)), subject.names[number % 2]


def _grid(settings: TuningSettings) -> Iterator[UnlearnSettings]:
    for timesteps, noises in settings.samples:
        for damping in settings.dampings:
            for step_size in settings.step_sizes:
                yield replace(
                    UnlearnSettings(), step_size=step_size, damping=damping, timesteps=timesteps, noises=noises
                )


def _precision(
    model: Model,
    index: Index,
    query: Query,
    settings: UnlearnSettings,
    pool: list[int],
    hits: np.ndarray[tuple[int], np.dtype[np.bool_]],
    columns: tuple[int, ...],
) -> dict[str, float]:
    """Share of the top ten that hold the boxed object, by kind of score and number of columns."""
    bank, asked = index.bank(model), encode(model, query, index.center_crop)
    with unlearned(model, index.weights) as weights:
        for _ in unlearn_query(model, index, asked, settings, weights):
            pass
        chunks = training_losses(model, index.encoded, bank, pool, range(len(bank)), (0,))
        after = np.concatenate([losses for _, losses in chunks])
    before, order = index.base_losses[pool][:, :1], spread(len(bank))
    measured = {}
    for count in columns:
        for kind in KINDS:
            scores = score(before[..., order[:count]], after[..., order[:count]], kind)
            measured[f"{kind}@{count}"] = float(hits[scores.best_first(pool)[:TOP]].mean())
    return measured


def summary(out: Path) -> str:
    """A Markdown table: the mean over pictures at each point of the grid."""
    rows = [json.loads(line) for line in out.read_text(encoding="utf-8").splitlines()]
    keys = [key for key in rows[0] if "@" in key]
    points: dict[tuple[float, ...], list[dict[str, float]]] = {}
    for row in rows:
        points.setdefault((row["step_size"], row["damping"], row["timesteps"], row["noises"]), []).append(row)
    table = [f"| alpha | damping | timesteps | noises | {' | '.join(keys)} |", "|---" * (4 + len(keys)) + "|"]
    for point, measured in points.items():
        figures = [f"{np.mean([row[key] for row in measured]):.2f}" for key in keys]
        table.append("| " + " | ".join([*(f"{value:g}" for value in point), *figures]) + " |")
    return "\n".join(table)
