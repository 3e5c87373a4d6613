"""What an answer may claim: a grade in words, why, and how often unrelated questions have the same grade.

The grade is read off the query's own evidence (`query/evidence.py`), so that it is the same however the training set
was searched, save for three rules that only lower it: an upload, an empty region, and a first score whose interval
includes zero are "uncertain" at most.
"""

from dataclasses import dataclass

from attribution.answers.calibration import ENOUGH, SOURCES, Calibration, Grade, read_calibration
from attribution.errors import IndexMismatch
from attribution.index.index import Index
from attribution.methods import METHODS
from attribution.methods.answer import Attribution
from attribution.query.evidence import Evidence, Kind

MANY: dict[Kind, str] = {"whole": "pictures", "box": "boxes", "word": "words"}


@dataclass(frozen=True)
class Verdict:
    """What is said of an answer.

    Attributes:
        grade: None where nothing can be said; `sentence` tells why.
        sentence: one or more whole sentences of plain text: what was measured, what lowers the grade, false alarms.
        alarms: how many of `unrelated` questions are graded as high or higher; None without a grade.
        unrelated: how many questions without an answer the grade was calibrated on; None without a grade.
    """

    grade: Grade | None
    sentence: str
    alarms: int | None = None
    unrelated: int | None = None

    @property
    def has_source(self) -> bool:
        """Whether the grade is above "uncertain"."""
        return self.grade in SOURCES

    @property
    def title(self) -> str:
        """The grade with a capital, or "Not graded"."""
        return "Not graded" if self.grade is None else self.grade.capitalize()


def verdict_of(answer: Attribution, index: Index) -> Verdict:
    """Grade an answer with its index's calibration; an index without one grades nothing, and the verdict says why."""
    evidence = answer.evidence
    if not graded(answer.settings.method):
        return Verdict(None, f"{answer.settings.method} finds look-alikes; whether they are sources it cannot tell.")
    if evidence is None:
        return Verdict(None, "This run is older than the grades; ask again to have one.")
    try:
        known = read_calibration(index)
    except IndexMismatch as error:
        return Verdict(None, f"The calibration cannot be read: {error}.")
    if known is None:
        return Verdict(None, "This index is not calibrated: python -m attribution floor measures unrelated pictures.")
    if (count := known.count(evidence.kind)) < ENOUGH:
        many = MANY[evidence.kind]
        return Verdict(None, f"Only {count} unrelated {many} were measured; a grade takes {ENOUGH} or more.")
    return _graded(answer, evidence, known)


def graded(method: str) -> bool:
    """Whether a method reads the model that made the picture; others find look-alikes, which need no source."""
    entry = METHODS[method]
    return entry.curvature is not None or any(part.startswith("gradients/") for part in entry.artifacts)


def _graded(answer: Attribution, evidence: Evidence, known: Calibration) -> Verdict:
    kind, count = evidence.kind, known.count(evidence.kind)
    grade = known.grade(kind, evidence.strength)
    why = _lowered(answer) if grade in SOURCES else ""
    if why:
        grade = "uncertain"
    alarms = known.alarms(kind, grade)
    if evidence.empty:
        told = ""
    elif grade in SOURCES:
        told = f"Of {count} unrelated {MANY[kind]}, {alarms or 'none'} reached this grade."
    else:
        told = f"Of {count} unrelated {MANY[kind]}, {known.above(kind, evidence.strength)} were explained better."
    return Verdict(grade, " ".join(filter(None, [_measured(answer, evidence), why, told])), alarms, count)


def _lowered(answer: Attribution) -> str:
    """Why an answer is "uncertain" at most; "" where nothing lowers it."""
    if answer.query.seed is None:
        return "An uploaded picture is uncertain at most, because this model may not have made it."
    if not answer.results or answer.results[0].low <= 0:
        return "The first score's interval includes zero, so that it is uncertain at most."
    return ""


def _measured(answer: Attribution, evidence: Evidence) -> str:
    """What was measured of the query, in a sentence."""
    places = {"whole": "on this picture", "box": "on this region", "word": f"where “{answer.query.word}” is"}
    where = places[evidence.kind]
    if evidence.empty:
        return f"The region is empty: {evidence.filled:.0%} of it differs from its ground."
    if evidence.words <= 0:
        return f"The prompt does not explain it: with it the model errs no less {where} than without any words."
    if evidence.word is not None and evidence.word <= evidence.words:
        return f"The word takes {max(evidence.word, 0.0):.0%} off the model's error {where}."
    return f"The prompt takes {evidence.words:.0%} off the model's error {where}."
