"""How a search grows with the training set: the same pool of candidates in ever more images, repeated with noise.

Each size is measured in a process of its own, so that the memory of one does not hide that of another.
"""

import multiprocessing
import tempfile
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, TypeVar, get_args

import numpy as np
import torch

from attribution.diffusion.overlaid import open_model
from attribution.diffusion.pipeline import Model
from attribution.errors import InputError, WorkFailed
from attribution.evaluate.machine import Clock, Meter, Spent, peak_memory
from attribution.evaluate.stretched import stretch
from attribution.index.index import Index
from attribution.methods import attribute, best_method
from attribution.methods.accepted import POOL
from attribution.methods.answer import TOP_K, AttributeSettings, Attribution, Progress
from attribution.methods.candidates import require_source
from attribution.query.query import Query
from attribution.unlearning.race import RaceSettings

FROM = 4000  # images, from which on exponents are fitted
EXPONENT, ROOM = 0.3, 300.0  # that seconds should not grow faster than; MB that memory should not grow by
OPENING, ENCODING, CANDIDATES = "opening", "encoding", "candidates"
FIRST, ANSWER = "first answer", "answer"  # with and without what is made once
UNLEARNING, SCORING = "unlearning", "scoring"  # as an answer's progress has them
STAGES = (OPENING, FIRST, ENCODING, CANDIDATES, UNLEARNING, SCORING, ANSWER)
T = TypeVar("T")


@dataclass(frozen=True)
class GrowthSettings:
    """On how many images a search is measured.

    Attributes:
        sizes: numbers of training images, such as 1000 4000 16000 64000 256000; of fewer than the index holds they are
            its first. None is measured by default.
        pool: candidates of the search, however many images there are.
        answers: after the first one, of which the quickest counts.
    """

    sizes: tuple[int, ...] = ()
    pool: int = POOL
    answers: int = 2


def check_growth(index: Index, settings: GrowthSettings) -> None:
    """Refuse what cannot be measured.

    Raises:
        InputError: names it, and what is accepted.
    """
    for name, value, least, why in (
        ("growth_answers", settings.answers, 1, ""),
        ("growth_pool", settings.pool, TOP_K, ", as many as are looked for"),
        *(("growth", size, settings.pool, ", the candidates (--growth_pool)") for size in settings.sizes),
    ):
        if value < least:
            raise InputError(f"{name} = {value} is not possible; accepted are whole numbers from {least}{why}")
    if settings.sizes:
        require_source(index)


@dataclass(frozen=True)
class Grown:
    """A search among so many images.

    Attributes:
        images: N.
        spent: by stage, see STAGES.
        peak: the most that was resident in a process that opened the index and answered, in MB.
    """

    images: int
    spent: Mapping[str, Spent]
    peak: float


def exponent(seconds: Mapping[int, float]) -> float | None:
    """The exponent b of seconds = a N^b, by least squares of their logarithms; None of fewer than two sizes."""
    if len(seconds) < 2:
        return None
    slope, _ = np.polyfit(np.log(list(seconds)), np.log(list(seconds.values())), 1)
    return float(slope)


@dataclass(frozen=True)
class Growth:
    """A search among ever more images.

    Attributes:
        pool: candidates.
        sizes: from few to many.
        clock: that tells how it grows.
    """

    pool: int
    sizes: tuple[Grown, ...]
    clock: Clock = "seconds"

    def exponents(self, clock: Clock) -> dict[str, float | None]:
        """Of every stage, by "seconds" or "cpu", over the sizes from FROM up."""
        large = [each for each in self.sizes if each.images >= FROM]
        return {stage: exponent({each.images: getattr(each.spent[stage], clock) for each in large}) for stage in STAGES}

    @property
    def json(self) -> dict[str, Any]:
        """Everything."""
        exponents = {clock: self.exponents(clock) for clock in get_args(Clock)}
        return {"pool": self.pool, "from": FROM, "exponents": exponents, "sizes": [asdict(each) for each in self.sizes]}

    @property
    def table(self) -> str:
        """Markdown: a line a size, then the exponents."""
        rows = [("images", *STAGES, "most memory, MB"), ("---",) * (len(STAGES) + 2)]
        for each in self.sizes:
            rows.append(
                (f"{each.images:,}", *(f"{each.spent[stage].seconds:.3g}" for stage in STAGES), f"{each.peak:,.0f}")
            )
        for name, slopes in (
            ("exponent", self.exponents("seconds")),
            ("exponent of CPU seconds", self.exponents("cpu")),
        ):
            found = slopes.values()
            rows.append((name, *("" if each is None else f"{each:.2f}" for each in found), ""))
        return "\n".join(f"| {' | '.join(row)} |" for row in rows)

    @property
    def sentences(self) -> list[str]:
        """What the table does not say, and whether it is as it should be."""
        told = (
            f"Growth: {self.pool:,} candidates at every size; seconds by stage, of the quickest answer after the first;"
            f" exponents over the sizes from {FROM:,} images up."
        )
        large = [each for each in self.sizes if each.images >= FROM]
        slope = self.exponents(self.clock)[ANSWER]
        if slope is None:
            return [told]
        more, by = large[-1].peak - large[0].peak, "CPU seconds" if self.clock == "cpu" else "seconds"
        return [
            told,
            f"An answer's {by} grow as N^{slope:.2f}, {_kept(slope <= EXPONENT)} N^{EXPONENT}; memory by"
            f" {more:,.0f} MB, {_kept(more <= ROOM)} {ROOM:.0f} MB.",
        ]


def _kept(kept: bool) -> str:
    return "within the bar of" if kept else "beyond the bar of"


def grow(index: Index, settings: GrowthSettings, query: Query, clock: Clock) -> Iterator[str | Growth]:
    """Measure a search at every size: yields what is being done, and all that was found after each size.

    Args:
        index: that is stretched.
        settings: to which sizes.
        query: what is asked.
        clock: that tells how it grows.

    Raises:
        InputError: there is too little room on the disk.
        WorkFailed: a process that measured has ended.
    """
    found: list[Grown] = []
    race = AttributeSettings(best_method(index), race=RaceSettings(pool=settings.pool))
    for size in sorted(set(settings.sizes)):
        with tempfile.TemporaryDirectory() as made:
            for name in stretch(index, Path(made), size):
                yield f"growth: {name} of {size:,} images"
            yield f"growth: a search among {size:,} images"
            found.append(apart(measured, Path(made), race, query, settings.answers, torch.get_num_threads()))
        yield Growth(settings.pool, tuple(found), clock)


def apart(work: Callable[..., T], *arguments: Any) -> T:
    """Do work in a process of its own.

    Raises:
        WorkFailed: the process has ended before it was done.
    """
    try:
        with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as process:
            return process.submit(work, *arguments).result()
    except BrokenProcessPool as error:
        raise WorkFailed("a process that measured was ended, probably as memory was too small") from error


def measured(folder: Path, settings: AttributeSettings, query: Query, answers: int, threads: int) -> Grown:
    """What opening an index takes, the first answer, and the quickest of some after it."""
    torch.set_num_threads(threads)
    model = open_model(Index.open(folder).model_files)
    with Meter(model) as meter:
        began = meter.read()
        index = Index.open(folder)
        opened = meter.read() - began
        first, *others = (_stages(meter, model, index, query, settings) for _ in range(1 + answers))
    best = min(others, key=lambda spent: spent[ANSWER].seconds)
    return Grown(len(index), {OPENING: opened, FIRST: first[ANSWER], **best}, peak_memory())


def _stages(meter: Meter, model: Model, index: Index, query: Query, settings: AttributeSettings) -> dict[str, Spent]:
    """What each stage of an answer took, and all of it."""
    spent, began, chosen = dict.fromkeys(STAGES[2:], Spent()), meter.read(), False
    last = began
    for step in attribute(model, index, query, settings):
        stage = ENCODING if last is began else _stage(step) if chosen else CANDIDATES
        now = meter.read()
        spent[stage], last = spent[stage] + (now - last), now
        chosen |= isinstance(step, Progress) and step.stage == "unlearning"
    return {**spent, ANSWER: last - began}


def _stage(step: Progress | Attribution) -> str:
    return step.stage if isinstance(step, Progress) else SCORING
