"""What is known of how strong the evidence of unrelated pictures is: FLOOR in an index's folder, and its grades.

A limit is a quantile of the strengths (`Evidence.strength`) of questions that have no answer, which `floor.py`
measures, and never below 0: where a prompt explains nothing, no source is found.
"""

import json
import math
from dataclasses import dataclass
from typing import Literal, get_args

from attribution.errors import IndexMismatch
from attribution.index.index import FLOOR, Index
from attribution.query.evidence import Kind

Grade = Literal["clear source", "likely source", "uncertain", "no source found"]
GRADES: tuple[Grade, ...] = get_args(Grade)
FORMAT_VERSION = 2
ENOUGH = 100  # questions of a kind; fewer grade nothing
# The share of unrelated questions that may be above a grade's limit, of the grades above "uncertain", the best first
SHARES: dict[Grade, float] = {"clear source": 0.0, "likely source": 0.02}
SOURCES = tuple(SHARES)
ANEW = "measure it anew: python -m attribution floor"


@dataclass(frozen=True)
class Calibration:
    """What unrelated questions reached.

    Attributes:
        date: on which they were measured, YYYY-MM-DD.
        seed: of the questions.
        strengths: from -1 to 1, of every question of a kind, the strongest first.
    """

    date: str
    seed: int
    strengths: dict[Kind, tuple[float, ...]]

    def count(self, kind: Kind) -> int:
        """How many questions of a kind were measured."""
        return len(self.strengths.get(kind, ()))

    def limit(self, kind: Kind, grade: Grade) -> float:
        """What a strength must be above to have a grade; every strength has the last one."""
        if grade in SHARES:
            strengths = self.strengths[kind]
            return max(0.0, strengths[int(SHARES[grade] * len(strengths))])
        return 0.0 if grade == "uncertain" else -math.inf

    def grade(self, kind: Kind, strength: float) -> Grade:
        """The best grade whose limit a strength is above."""
        return next(grade for grade in GRADES if strength > self.limit(kind, grade))

    def alarms(self, kind: Kind, grade: Grade) -> int:
        """How many unrelated questions have a grade or a better one."""
        return self.above(kind, self.limit(kind, grade))

    def above(self, kind: Kind, strength: float) -> int:
        """How many unrelated questions are stronger than that."""
        return sum(each > strength for each in self.strengths[kind])


def read_calibration(index: Index) -> Calibration | None:
    """An index's calibration; None where it was not measured.

    Raises:
        IndexMismatch: the file is damaged, of another version, or was measured with another model.
    """
    path = index.path / FLOOR
    if not path.is_file():
        return None
    try:
        told = json.loads(path.read_text(encoding="utf-8"))
        version, made_with, own = told.get("format_version"), told.get("model"), index.manifest.model.sha256
        if version != FORMAT_VERSION:
            raise IndexMismatch(f"{path} has format version {version!r}, this program reads {FORMAT_VERSION}; {ANEW}")
        if made_with != own:
            raise IndexMismatch(f"{path} is of model {str(made_with)[:12]}, the index of {own[:12]}; {ANEW}")
        return Calibration(str(told["date"]), int(told["seed"]), sorted_strengths(told["strengths"]))
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise IndexMismatch(f"{path} is damaged; {ANEW}") from error


def sorted_strengths(told: dict[Kind, dict[str, list[float]]]) -> dict[Kind, tuple[float, ...]]:
    """Strengths by kind and maker of questions, as strengths by kind alone, the strongest first."""
    return {
        kind: tuple(sorted((float(each) for values in named.values() for each in values), reverse=True))
        for kind, named in told.items()
    }
