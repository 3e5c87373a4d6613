"""How searches of an index go, by method: SEARCH in its folder, which `python -m attribution rehearse` writes."""

import json
from dataclasses import dataclass

from attribution.errors import IndexMismatch
from attribution.index.index import SEARCH, Index
from attribution.index.typed import read_as, told_of
from attribution.unlearning.race import RaceSettings

FORMAT_VERSION = 2
ALIKE = ("unlearning+", "unlearning")  # methods that go by one another's schedule where they have none of their own
ANEW = "make it anew: python -m attribution rehearse"


@dataclass(frozen=True)
class Rehearsed:
    """The schedule that suits an index, and what it was chosen by.

    Attributes:
        date: on which it was, YYYY-MM-DD.
        pictures: generated ones that it was chosen by.
        seed: of these.
        candidates: whose losses were measured on all noises.
        top_k: images that were looked for.
        evaluations: predictions that its race takes.
        mean: share of the first images on all noises that it found of a picture, with a columns' order of the others.
        worst: the same of the picture that was searched worst.
        race: the schedule.
    """

    date: str
    pictures: int
    seed: int
    candidates: int
    top_k: int
    evaluations: int
    mean: float
    worst: float
    race: RaceSettings


@dataclass(frozen=True)
class Rehearsals:
    """What was rehearsed with an index: the file.

    Attributes:
        format_version: of the file.
        model: hash of the weights that all was measured with.
        methods: how each is searched.
    """

    format_version: int
    model: str
    methods: dict[str, Rehearsed]

    @property
    def json(self) -> bytes:
        """As the file has it."""
        return (json.dumps(told_of(self), indent=1) + "\n").encode()


def rehearsed(index: Index, method: str) -> Rehearsed | None:
    """How searches by a method go: as one was rehearsed that is searched alike; None where that was not measured.

    Raises:
        IndexMismatch: what `read_rehearsals` raises.
    """
    held = read_rehearsals(index)
    names = [method, *(ALIKE if method.startswith(ALIKE[-1]) else ())]
    return next((held.methods[name] for name in names if name in held.methods), None) if held else None


def noise_order(index: Index, method: str) -> tuple[int, ...]:
    """The order in which searches by a method take the columns of the noise bank; () where it was not measured.

    Raises:
        IndexMismatch: what `read_rehearsals` raises.
    """
    held = rehearsed(index, method)
    return held.race.columns if held else ()


def read_rehearsals(index: Index) -> Rehearsals | None:
    """How searches of an index go; None where that was not measured.

    Raises:
        IndexMismatch: the file is damaged, of another version, or was measured with another model.
    """
    path = index.path / SEARCH
    if not path.is_file():
        return None
    try:
        held: Rehearsals = read_as(Rehearsals, json.loads(path.read_text(encoding="utf-8")), "search")
    except (OSError, ValueError) as error:
        raise IndexMismatch(f"{path} is damaged or of another program; {ANEW}") from error
    bank = list(range(index.base_losses.shape[-1]))
    if held.format_version != FORMAT_VERSION or any(sorted(own.race.columns) != bank for own in held.methods.values()):
        raise IndexMismatch(f"{path} is of another version or another noise bank; {ANEW}")
    if held.model != index.manifest.model.sha256:
        raise IndexMismatch(
            f"{path} is of model {held.model[:12]}, the index of {index.manifest.model.sha256[:12]}; {ANEW}"
        )
    return held
