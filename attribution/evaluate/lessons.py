"""What `fast` learns from: generated pictures, and how training images rank for each; a job for each picture.

"query"   learned from: ranked by the default method, searching as for an answer
"quick"   learned from: ranked by the method that gives a search its candidates, in a tenth of the time; all have a box
"held"    judged by: ranked by the default method among many more candidates, all of them on all noises
"""

import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray

from attribution.diffusion.pipeline import Model, check_seed
from attribution.errors import InputError
from attribution.evaluate.arrays import Arrays
from attribution.evaluate.queue import Queue, open_queue
from attribution.evaluate.rehearsal import query_of
from attribution.index.features import FEATURES
from attribution.index.index import Index
from attribution.methods import answer, best_method, check_settings, fitting
from attribution.methods.answer import TOP_K, AttributeSettings, Attribution
from attribution.methods.candidates import D_TRAK, holds, sources
from attribution.methods.features import network_of, seen_as
from attribution.query.encoded import Encoded, encode
from attribution.query.query import Query
from attribution.scenes.truth import locate, subjects
from attribution.scenes.world import EMBEDDED
from attribution.unlearning.race import RaceSettings

Kind = Literal["query", "held", "quick"]
KINDS = get_args(Kind)
BASES = FEATURES["fast"].joins
RIVALS = ("dino", "clip", "clip-text", D_TRAK, "random")  # rank held-out pictures' images too, where the index can


@dataclass(frozen=True)
class LessonSettings:
    """Which pictures are asked about, and how well.

    Attributes:
        queries: generated pictures that are learned from; every other one is about a box.
        held_out: further ones that are judged by, and never learned from.
        quick: further ones with a box that are learned from, if the index holds what gives candidates.
        seed: of the pictures; those held out are of the next one, quick ones of the one after that.
        pool: candidates of a picture that is learned from.
        held_pool: candidates of a picture that is held out, which are scored on all noises.
        relevant: how many of a ranking's first images are to be found: K of mAP(K).
    """

    queries: int = 100
    held_out: int = 20
    quick: int = 300
    seed: int = 1507
    pool: int = 256
    held_pool: int = 512
    relevant: int = 50


@dataclass(frozen=True)
class Lesson:
    """A picture and what is known of it.

    Attributes:
        seen: by feature, (D,) float32 of the picture (or its box) or prompt.
        rows: of the training set, best first by the default method.
        ranked: by method, the rows as others rank them; of pictures that are held out.
        boxed: that it is about a box.
    """

    seen: dict[str, NDArray[np.floating]]
    rows: NDArray[np.integer]
    ranked: dict[str, NDArray[np.integer]]
    boxed: bool


@dataclass(frozen=True)
class Asked:
    """How many pictures of a kind are done, of how many, and the seconds that the rest will take."""

    kind: Kind
    done: int
    count: int
    left: float = float("nan")


def check_lessons(index: Index, settings: LessonSettings) -> None:
    """Refuse what nothing could be learned from.

    Raises:
        InputError: a number is not possible, or the index lacks what is learned over.
    """
    for base in BASES:
        index.require(f"features/{base}")
    images = len(index)
    for name, value, least, most in (
        ("queries", settings.queries, 2, None),
        ("held_out", settings.held_out, 1, None),
        ("quick", settings.quick, 0, None),
        ("relevant", settings.relevant, 1, images),
        ("pool", settings.pool, settings.relevant, images),
        ("held_pool", settings.held_pool, settings.relevant, images),
    ):
        if value < least or (most is not None and value > most):
            accepted = f"whole numbers from {least}" if most is None else f"{least} to {most:,}"
            raise InputError(f"{name} = {value} is not possible; accepted are {accepted}")
    check_seed(settings.seed)


def fitted(index: Index, settings: LessonSettings) -> LessonSettings:
    """Settings for a training set that has fewer images than the pools and the ranking's first ones are by default."""
    plain, most = LessonSettings(), len(index)
    names = ("pool", "held_pool", "relevant")
    small = {name: most for name in names if getattr(settings, name) == getattr(plain, name) > most}
    return replace(settings, **small)


def lessons_in(folder: Path, index: Index, settings: LessonSettings) -> Queue:
    """The folder's queue of pictures.

    Raises:
        InputError: the folder holds pictures of another index, or of other settings.
    """
    told = {name: value for name, value in vars(settings).items() if name not in ("queries", "held_out", "quick")}
    return open_queue(folder, {**made_of(index), **told})


def made_of(index: Index) -> dict[str, Any]:
    """What answers about pictures are made with."""
    networks = {base: network_of(index, base).sha256 for base in BASES}
    return {
        "index": index.id,
        "model": index.manifest.model.sha256,
        "method": best_method(index),
        "networks": networks,
    }


def names_of(index: Index, settings: LessonSettings) -> dict[Kind, list[str]]:
    """The jobs' names by kind."""
    quick = settings.quick if holds(index, D_TRAK) else 0
    counts: dict[Kind, int] = {"quick": quick, "held": settings.held_out, "query": settings.queries}
    return {kind: [f"{kind}-{number:05d}" for number in range(count)] for kind, count in counts.items()}


def ask(queue: Queue, model: Model, index: Index, settings: LessonSettings) -> Iterator[Asked]:
    """Ask about every picture that was not asked about yet; yields how far all are, at the beginning and after each."""
    for kind, names in names_of(index, settings).items():
        began, mine = time.monotonic(), 0
        yield Asked(kind, sum(map(queue.done, names)), len(names))
        for name in queue.claimed(names):
            queue.keep(name, _lesson(model, index, settings, kind, int(name.rpartition("-")[2])))
            mine, done = mine + 1, sum(map(queue.done, names))
            yield Asked(kind, done, len(names), (time.monotonic() - began) / mine * (len(names) - done))


def read_lessons(queue: Queue, names: list[str]) -> list[Lesson]:
    """Finished lessons; raises what `Queue.result` does where one is not."""
    return [_read(queue.result(name)) for name in names]


def _read(held: dict[str, NDArray[Any]]) -> Lesson:
    def named(kind: str) -> dict[str, NDArray[Any]]:
        return {key.removeprefix(kind): value for key, value in held.items() if key.startswith(kind)}

    return Lesson(named("seen "), held["rows"], named("ranked "), bool(held["boxed"]))


def _lesson(model: Model, index: Index, settings: LessonSettings, kind: Kind, number: int) -> Arrays:
    seed, held = settings.seed + KINDS.index(kind), kind == "held"
    query = question(model, index, seed, 2 * number + 1 if kind == "quick" else number)
    asked = encode(model, query, index.center_crop)
    rows = _ranked(model, index, asked, _search(index, settings, kind))
    found = {"rows": rows if held else rows[: settings.relevant], "boxed": np.array(bool(query.boxes))}
    found |= {f"seen {base}": seen_as(index, asked, base).numpy() for base in BASES}
    for rival in RIVALS if held else ():
        if rival == "random" or any(part.endswith(f"/{rival}") for part in index.artifacts):
            found[f"ranked {rival}"] = _ranked(model, index, asked, fitting(AttributeSettings(), rival))
    return found


def _search(index: Index, settings: LessonSettings, kind: Kind) -> AttributeSettings:
    """How training images are ranked for a picture."""
    if kind == "quick":
        return fitting(AttributeSettings(), D_TRAK)
    plain, columns = AttributeSettings(best_method(index), min(TOP_K, settings.relevant)), index.base_losses.shape[-1]
    if kind == "held" and (settings.held_pool == len(index) or not sources(index)):
        return replace(plain, exhaustive=True)
    if kind == "held":
        return replace(plain, race=RaceSettings(settings.held_pool, keep=1.0, first_columns=columns))
    race = RaceSettings(settings.pool if sources(index) else 0)
    return replace(plain, race=replace(race, survivors=max(race.pace.survivors, settings.relevant)))


def _ranked(model: Model, index: Index, asked: Encoded, settings: AttributeSettings) -> NDArray[np.int32]:
    """Rows of the training set, best first, that have a final score."""
    *_, last = answer(model, index, asked, check_settings(model, index, settings))
    assert isinstance(last, Attribution)
    return np.array(last.rows, np.int32)


def question(model: Model, index: Index, seed: int, number: int) -> Query:
    """A generated picture of its own for each number, every other one with a box.

    In the embedded world the prompts are new and a box is around an object; elsewhere a search is rehearsed by the same
    questions: training captions in which one thing is another, and a quarter of the picture, anywhere.
    """
    if index.path.resolve() == EMBEDDED:
        subject = next(islice(subjects(seed), number, None))
        picture = model.generate(subject.prompt, subject.seed)
        box = locate(picture, subject.names[number // 2 % 2], subject.style) if number % 2 else None
        return Query(subject.prompt, picture, subject.seed, (box,) if box else ())
    return query_of(model, index, seed, number)
