"""Two answers to the same question that differ in their noises alone.

Training gradients are drawn once, when an index is built. A second build of the same pictures with other noises
(`python -m attribution index ... --seed 1`) is what they are compared with.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from attribution.answers.compare import agreement
from attribution.diffusion.pipeline import Model
from attribution.errors import InputError
from attribution.evaluate.queue import Queue, open_queue
from attribution.index.index import Index
from attribution.methods import METHODS, answer, check_settings
from attribution.methods.answer import AttributeSettings, Attribution
from attribution.query.encoded import encode
from attribution.query.query import Query

TOPS = (10, 50)
QUERY_SEED = 3  # of the pictures that are asked about
# Their query is seen with the training gradients' own noises, so that a second build draws both anew.
OWN_NOISES = ("trak", "d-trak", "influence+")
SECOND = "second-"  # begins the name of the folder for a second build's answers, in the other answers' folder


@dataclass(frozen=True)
class SteadinessSettings:
    """What is compared.

    Attributes:
        queries: generated pictures with both of their objects; every other one is asked about a box.
        methods: that are asked; none is all that the index can answer.
        noise_seed: of the second answer to each query; the first one has the noises that the page has.
        exhaustive: methods that unlearn score all images on all noises, rather than searching as the page does.
    """

    queries: int = 24
    methods: tuple[str, ...] = ()
    noise_seed: int = 1
    exhaustive: bool = True


@dataclass(frozen=True)
class Line:
    """A line of the table: a method, and whether its second answer is a second build's."""

    method: str
    second: bool = False

    @property
    def anew(self) -> str:
        """What differs between the two answers."""
        if self.method == "random":
            return "the order"
        if self.second:
            return "the query's gradient, the training gradients"
        return "the query's gradient" + (", the training losses" if "race" in METHODS[self.method].uses else "")


def noisy(method: str) -> bool:
    """Whether a method's answer depends on a seed at all."""
    return bool({"noise_seed", "random_seed"} & set(METHODS[method].uses))


def lines(methods: Sequence[str], second: bool) -> list[Line]:
    """What there is to measure of some methods, those with training gradients alone where it is by a second build.

    Raises:
        InputError: there is no such method.
    """
    if unknown := [method for method in methods if method not in METHODS]:
        raise InputError(f"there is no method {unknown[0]!r}; accepted are {', '.join(METHODS)}")
    wanted = [method for method in methods or METHODS if noisy(method)]
    return [Line(method, second) for method in wanted if not second or _gradients(method)]


def _gradients(method: str) -> list[str]:
    """The training gradients that a method reads, by their names in an index."""
    return [part for part in METHODS[method].artifacts if part.startswith("gradients/")]


def asked(line: Line, settings: SteadinessSettings) -> tuple[AttributeSettings, AttributeSettings]:
    """How the two answers of a line are asked for."""
    exhaustive = settings.exhaustive and "exhaustive" in METHODS[line.method].uses
    plain, seed = AttributeSettings(line.method, exhaustive=exhaustive), settings.noise_seed
    if line.method == "random":
        return plain, replace(plain, seed=seed + 1)
    if line.method not in OWN_NOISES:
        return plain, replace(plain, noise_seed=seed)
    if line.second:
        return plain, plain
    return replace(plain, noise_seed=seed), replace(plain, noise_seed=seed + 1)


def check_second(index: Index, second: Index, methods: Sequence[str]) -> None:
    """Refuse a second build that differs in more than its noises, or does not differ in them.

    Raises:
        InputError: names what differs, and both values.
    """
    own, other = index.manifest, second.manifest
    noise = own.settings.noise
    parts: list[tuple[str, Any, Any]] = [
        ("model", own.model.sha256[:12], other.model.sha256[:12]),
        ("training pictures", own.data, other.data),
        ("noise bank, but for its seed,", noise, replace(other.settings.noise, seed=noise.seed)),
    ]
    names = dict.fromkeys(name for line in lines(methods, True) for name in _gradients(line.method))
    parts += [(name, index.artifacts[name], second.artifacts.get(name)) for name in names if name in index.artifacts]
    for what, held, found in parts:
        if held != found:
            raise InputError(
                f"{second.path} is no second build of this index: its {what} is {found}, here it is {held}"
            )
    if noise.seed == other.settings.noise.seed:
        raise InputError(f"{second.path} has the same noises as this index; build it with another --seed")


def measure(
    folder: Path,
    model: Model,
    index: Index,
    second: Index | None,
    queries: Sequence[Query],
    settings: SteadinessSettings,
) -> Iterator[str]:
    """Answer every query twice by every method; yields the name of each pair that this process has answered.

    Args:
        folder: that the answers are kept in, and that several processes may share.
        model: the index's.
        index: that is asked.
        second: a second build of it; None leaves the training gradients as they are.
        queries: as many as `settings` says.
        settings: what is compared.

    Raises:
        InputError: the folder is of another index or other settings, the second build is none, or a method is unknown
            or cannot be used with the index.
    """
    known = {"index": index.id, "noise_seed": settings.noise_seed, "exhaustive": settings.exhaustive}
    builds: list[tuple[Path, dict[str, Any], Index | None]] = [(folder, known, None)]
    if second is not None:
        check_second(index, second, settings.methods)
        builds.append((folder / f"{SECOND}{second.id}", {**known, "second": second.id}, second))
    for path, made_with, other in builds:
        queue = open_queue(path, {**made_with, "queries": QUERY_SEED})
        wanted = _usable(model, index, lines(settings.methods, other is not None), settings)
        jobs = {_name(line, number): (line, query) for (number, query), line in product(enumerate(queries), wanted)}
        for name in queue.claimed(list(jobs)):
            line, query = jobs[name]
            first, again = asked(line, settings)
            queue.keep(name, _compared(model, query, (index, first), (other or index, again), _alive(queue, name)))
            yield f"{name}{' by the second build' if other else ''}"


def _usable(model: Model, index: Index, wanted: list[Line], settings: SteadinessSettings) -> list[Line]:
    """The lines that an index can answer; those of methods that were named have to be."""
    found = []
    for line in wanted:
        try:
            check_settings(model, index, asked(line, settings)[0])
            found.append(line)
        except InputError:
            if settings.methods:
                raise
    return found


def _name(line: Line, number: int) -> str:
    return f"{line.method}-{number:03d}"


def _alive(queue: Queue, name: str) -> Callable[[], None]:
    return lambda: queue.touch(name)


Asked = tuple[Index, AttributeSettings]


def _compared(
    model: Model, query: Query, one: Asked, other: Asked, alive: Callable[[], None]
) -> dict[str, NDArray[Any]]:
    """The first images of two answers, best first; their rank correlation; and what both took."""
    encoded, answers = encode(model, query, one[0].center_crop), list[Attribution]()
    for index, settings in (one, other):
        for step in answer(model, index, encoded, check_settings(model, index, settings)):
            alive()
            if isinstance(step, Attribution):
                answers.append(step)
    first, again = (each.rows for each in answers)
    correlation = agreement(first, again, 1).correlation
    return {
        "first": np.array(first[: max(TOPS)]),
        "again": np.array(again[: max(TOPS)]),
        "correlation": np.array(np.nan if correlation is None else correlation),
        "evaluations": np.array(sum(each.evaluations for each in answers)),
        "seconds": np.array(sum(sum(each.seconds.values()) for each in answers)),
    }
