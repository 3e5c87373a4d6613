"""Rehearsing searches: some pictures' candidates are measured on all noises, and schedules are tried on what is known.

Pictures are generated from captions of the training set in which one thing is another: what is asked is seldom what was
trained on, and the images that a caption's own picture is made of are easier to find. Every other one is asked about a
box. The schedule that is chosen, and the order of the noise bank's columns, are kept in the index's folder, see
`methods.rehearsed`.
"""

import random
from collections.abc import Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from threading import Event

import numpy as np

from attribution.answers.run import now
from attribution.diffusion.pipeline import Model, check_seed
from attribution.diffusion.weights import unlearned
from attribution.errors import IndexMismatch, InputError
from attribution.evaluate.queue import open_queue
from attribution.files import write_whole, writing
from attribution.index.index import SEARCH, Index
from attribution.methods import BEST, check_settings, method_named
from attribution.methods.answer import AttributeSettings, Clock, Progress
from attribution.methods.candidates import SAMPLED, Chosen, choose, chosen_predictions, require_source, sources
from attribution.methods.rehearsed import FORMAT_VERSION, Rehearsals, Rehearsed, read_rehearsals
from attribution.methods.unlearning import unlearn_query
from attribution.query.encoded import encode
from attribution.query.prompts import prompt_with
from attribution.query.query import Box, Query
from attribution.unlearning.race import RaceSettings
from attribution.unlearning.schedules import Known, Tried, cheapest, try_schedules
from attribution.unlearning.score import Floats, Views, cells, width

FEWEST = 2
MEASURED = "rehearsal"  # in the index's folder, by method: what is known of each picture's candidates; may be deleted


@dataclass(frozen=True)
class RehearsalSettings:
    """What is rehearsed, and what a schedule must find.

    Attributes:
        pictures: that are asked about.
        seed: of them.
        candidates: of each, the first ones by what gives candidates; all of them where there are fewer images.
        top_k: images that are looked for.
        mean: share of the first images on all noises that a schedule must find, over the pictures.
        worst: share that it must find of every picture; where no schedule does, that of the best mean is taken.
    """

    pictures: int = 12
    seed: int = 3000
    candidates: int = 1024
    top_k: int = 10
    mean: float = 0.9
    worst: float = 0.7


def check(index: Index, settings: RehearsalSettings) -> None:
    """Refuse what cannot be rehearsed, before any work.

    Raises:
        InputError: names the first value that is not possible, and what is accepted; or the index gives no candidates.
    """
    for name, value, least, most in (
        ("pictures", settings.pictures, FEWEST, 1000),
        ("top_k", settings.top_k, 1, len(index)),
        ("candidates", settings.candidates, settings.top_k, len(index)),
    ):
        if not least <= value <= most:
            raise InputError(f"{name} = {value} is not possible; accepted are {least} to {most:,}")
    for name, share in (("mean", settings.mean), ("worst", settings.worst)):
        if not 0 < share <= 1:
            raise InputError(f"{name} = {share:g} is not possible; accepted are shares above 0, up to 1")
    check_seed(settings.seed)
    require_source(index)


def rehearse(model: Model, index: Index, settings: RehearsalSettings, method: str = BEST) -> Iterator[str | Rehearsed]:
    """Yields what is being done, and at last how searches by a method go, which is then in the index's folder.

    Interrupted, it goes on where it was when it is called again with the same settings; several processes share it.
    What was measured is kept, so that other shares, and more pictures, can be asked for later.

    Raises:
        InputError: what `check` raises; the method does not search; or the index's folder cannot be written to.
    """
    settings = replace(settings, candidates=min(settings.candidates, len(index)))
    check(index, settings)
    anew = RaceSettings(pool=0, columns=tuple(range(index.base_losses.shape[-1])))  # whatever was rehearsed before
    asked = check_settings(model, index, AttributeSettings(method_named(method, index), settings.top_k, race=anew))
    method = asked.method
    made_with = {"index": index.id, "model": model.sha256, "method": method, "sources": sources(index)}
    made_with |= {name: getattr(settings, name) for name in ("seed", "candidates")}
    queue = open_queue(index.path / MEASURED / method, made_with)
    names = [f"{number:04d}" for number in range(settings.pictures)]
    for name in queue.claimed(names):
        steps = _changes(model, index, query_of(model, index, settings.seed, int(name)), asked, settings.candidates)
        for step in steps:
            if isinstance(step, str):
                queue.touch(name)
                yield f"picture {int(name) + 1} of {settings.pictures}: {step}"
            else:
                queue.keep(name, step)
    if missing := [name for name in names if not queue.done(name)]:
        raise InputError(f"another process is still at work on {len(missing)} pictures; run this again when it is done")
    beside = min(SAMPLED, max(0, len(index) - settings.candidates))
    tried = try_schedules([_known(queue.result(name), asked) for name in names], settings.top_k, beside, asked.batch)
    rehearsed = _chosen(list(tried), settings)
    with writing(index.path):
        methods = {**_held(index), method: rehearsed}
        write_whole(index.path / SEARCH, Rehearsals(FORMAT_VERSION, model.sha256, methods).json)
    yield rehearsed


def _held(index: Index) -> dict[str, Rehearsed]:
    """What was rehearsed before, where that can be read and is of the same model."""
    try:
        held = read_rehearsals(index)
    except IndexMismatch:
        return {}
    return held.methods if held else {}


def _known(result: Mapping[str, Floats], asked: AttributeSettings) -> Known:
    """What was measured of a picture's candidates."""
    return Known(result["changes"], asked.kind, result.get("values"))


def _chosen(tried: Sequence[Tried], settings: RehearsalSettings) -> Rehearsed:
    best = cheapest(tried, settings.mean, settings.worst)
    told = (now()[:10], settings.pictures, settings.seed, settings.candidates, settings.top_k, best.evaluations)
    return Rehearsed(*told, round(best.mean, 4), round(best.worst, 4), best.race)


def query_of(model: Model, index: Index, seed: int, number: int) -> Query:
    """A generated picture of a caption by chance, in which one thing is another; every other one about a box."""
    rng = np.random.default_rng([seed, number])
    prompt = prompt_with("", index.captions, random.Random(f"{seed} {number}"))
    picture = model.generate(prompt, seed + number)
    return Query(prompt, picture, seed + number, (box_anywhere(picture.size, rng),) if number % 2 else ())


def box_anywhere(size: tuple[int, int], rng: np.random.Generator) -> Box:
    """A box by chance anywhere in a picture, of half its sides."""
    left, top = (float(rng.uniform(0, side / 2)) for side in size)
    return left, top, left + size[0] / 2, top + size[1] / 2


def _changes(
    model: Model, index: Index, query: Query, settings: AttributeSettings, candidates: int
) -> Generator[str | dict[str, Floats], None, None]:
    """Yields what is being done, and at last what is known of the candidates, see `Known`."""
    asked, total = encode(model, query, index.center_crop), chosen_predictions(index)
    chosen = yield from _telling(choose(model, index, asked, settings, candidates, Event(), Clock(), total))
    rows, bank = chosen.rows, index.bank(model)
    views: Views = index.views
    if chosen.likely is not None and len(index.views) > 1:
        seen = np.asarray(views) ^ chosen.likely[rows, None]
        views = seen[:, :1] if settings.foresees else seen
    changes = np.empty((len(rows), width(views), len(bank)), np.float32)
    with unlearned(model, settings.newton.weights or index.weights) as weights:
        for taken in unlearn_query(model, index, asked, settings.newton, weights):
            yield f"unlearning, {taken.predictions:,} predictions"
        for which, column, losses in index.losses_by(
            model, index.encoded, bank, rows, range(len(bank)), views, settings.batch
        ):
            changes[which, :, column] = losses
            yield f"candidates on all noises, {which.stop:,} of {len(rows):,}"
    changes -= index.base_losses[cells(rows, views)]
    known = {"changes": changes}
    if settings.foresees and chosen.foreseen is not None:
        known["values"] = chosen.foreseen[cells(rows, views)]
    yield known


def _telling(steps: Generator[Progress, None, Chosen]) -> Generator[str, None, Chosen]:
    while True:
        try:
            next(steps)
        except StopIteration as end:
            chosen: Chosen = end.value
            return chosen
        yield "choosing candidates"
