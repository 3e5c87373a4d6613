"""The blocks that a step still lacks: which they are, how this process makes them, and whether they may be kept."""

import math
from collections.abc import Callable, Generator, Iterator
from dataclasses import dataclass

import numpy as np

from attribution.batches import in_parts
from attribution.errors import InputError
from attribution.index.manifest import Record, StepRecord
from attribution.index.stored import Block, first_not_finite
from attribution.index.work import Part, Source, Work


@dataclass(frozen=True)
class Task:
    """A step that is to be made.

    Attributes:
        name: of the step.
        source: what it is made from.
        record: the settings that it was asked for with.
        work: how its blocks are made.
    """

    name: str
    source: Source
    record: Record | None
    work: Work


Made = Generator[tuple[range, Part], None, None]  # the blocks that are not done, with their rows, in order
Maker = Callable[[Task, StepRecord], Made]


def made_here(task: Task, held: StepRecord) -> Made:
    """Blocks that this process makes, one after another; before each, how far it is."""
    work = task.work
    for part, gaps in gaps_of(work, held):
        with work.during(part):
            for gap in gaps:
                for rows, made in in_parts(end_of(work, gap), work.batch, work.block, gap.start):
                    yield from within(gap, rows, made)


def gaps_of(work: Work, held: StepRecord) -> Iterator[tuple[int, list[range]]]:
    """The ranges of rows that are not done, for each part of the rows that has any."""
    size = work.count // work.parts
    for part in range(work.parts):
        if gaps := list(held.gaps(range(part * size, (part + 1) * size))):
            yield part, gaps


def end_of(work: Work, gap: range) -> int:
    """One past the last row that is asked for to fill a gap: past its end where all blocks are of one size."""
    return gap.start + math.ceil(len(gap) / work.batch) * work.batch if work.even else gap.stop


def within(gap: range, rows: range, made: Part) -> Iterator[tuple[range, Part]]:
    """What of a block is in a gap, if anything is."""
    kept = range(rows.start, min(rows.stop, gap.stop))
    if kept:
        yield kept, made[: len(kept)] if isinstance(made, np.ndarray) else made


def require_finite(task: Task, rows: range, block: Block) -> None:
    """Refuse a block with numbers that are not finite.

    Raises:
        InputError: there are some; names the first training image that they come from.
    """
    place = first_not_finite(block)
    if place is None:
        return
    work = task.work
    if work.total:  # a sum does not tell which sample it was
        alone = (first_not_finite(_whole(work.block(range(sample, sample + 1)))) is not None for sample in rows)
        place = next((place for place, bad in enumerate(alone) if bad), 0)
    image = task.source.training.ids[work.row(rows[place])]
    raise InputError(
        f"{task.name} of training image {image} is not finite; check the model's weights, mend the image or leave it"
        " out"
    )


def _whole(parts: Iterator[Part]) -> Block:
    *_, block = parts
    assert not isinstance(block, float)
    return block
