"""How searches of an index go: SEARCH in its folder, which `python -m attribution rehearse` writes."""

import json
from dataclasses import dataclass

from attribution.errors import IndexMismatch
from attribution.index.index import SEARCH, Index
from attribution.index.typed import read_as, told_of
from attribution.unlearning.race import RaceSettings

FORMAT_VERSION = 1
ANEW = "make it anew: python -m attribution rehearse"


@dataclass(frozen=True)
class Rehearsed:
    """The schedule that suits an index, and what it was chosen by.

    Attributes:
        format_version: of the file.
        model: hash of the weights that it was measured with.
        method: that was rehearsed.
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

    format_version: int
    model: str
    method: str
    date: str
    pictures: int
    seed: int
    candidates: int
    top_k: int
    evaluations: int
    mean: float
    worst: float
    race: RaceSettings

    @property
    def json(self) -> bytes:
        """As its file has it."""
        return (json.dumps(told_of(self), indent=1) + "\n").encode()


def read_rehearsed(index: Index) -> Rehearsed | None:
    """How searches of an index go; None where that was not measured.

    Raises:
        IndexMismatch: the file is damaged, of another version, or was measured with another model.
    """
    path = index.path / SEARCH
    if not path.is_file():
        return None
    try:
        held: Rehearsed = read_as(Rehearsed, json.loads(path.read_text(encoding="utf-8")), "search")
    except (OSError, ValueError) as error:
        raise IndexMismatch(f"{path} is damaged or of another program; {ANEW}") from error
    columns = index.base_losses.shape[-1]
    if held.format_version != FORMAT_VERSION or sorted(held.race.columns) != list(range(columns)):
        raise IndexMismatch(f"{path} is of another version or another noise bank; {ANEW}")
    if held.model != index.manifest.model.sha256:
        raise IndexMismatch(
            f"{path} is of model {held.model[:12]}, the index of {index.manifest.model.sha256[:12]}; {ANEW}"
        )
    return held
