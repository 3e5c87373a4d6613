"""Does the verdict hold? Grades of unrelated questions not used for its calibration, and of objects that are there.

Unrelated questions are graded as if their pictures had been generated, as in the calibration. The evidence alone is
graded; `answered` of the objects are attributed too, by halving, so that the rule of the first score's interval is
seen. What was measured is kept, and graded in the summary.
"""

import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

from attribution.answers.calibration import SOURCES, Grade, read_calibration
from attribution.answers.floor import unrelated
from attribution.answers.unrelated import Makers
from attribution.diffusion.pipeline import Model
from attribution.errors import InputError
from attribution.index.index import Index
from attribution.methods import answer, check_settings
from attribution.methods.answer import AttributeSettings, Attribution
from attribution.query.encoded import encode
from attribution.query.evidence import Evidence
from attribution.query.query import Query
from attribution.scenes.truth import locate, subjects

OBJECT = "object that is there"


@dataclass(frozen=True)
class VerdictSettings:
    """What is graded.

    Attributes:
        unrelated: questions of each kind.
        objects: boxed objects of generated pictures of two.
        answered: of those, how many are attributed too.
        seed: of both; another one than the calibration's.
    """

    unrelated: int = 34
    objects: int = 40
    answered: int = 0
    seed: int = 1001


def measure(
    model: Model, index: Index, settings: VerdictSettings, out: Path, more: Makers | None = None
) -> Iterator[str]:
    """Append one JSON line for each question to `out`; yields each line. What `out` holds is not measured again."""
    held = [json.loads(line) for line in out.read_text(encoding="utf-8").splitlines()] if out.is_file() else []
    done = sum(row["maker"] != OBJECT for row in held)
    for step in unrelated(model, index, settings.unrelated, settings.seed, more, done):
        yield _add(out, {"seed": settings.seed, "maker": step.maker, "evidence": asdict(step.evidence)})
    known = len(held) - done
    for number, query in enumerate(_objects(model, settings) if known < settings.objects else ()):
        if number >= known:
            row = {"seed": settings.seed, "maker": OBJECT, "prompt": query.prompt}
            yield _add(out, row | _measured(model, index, query, number < settings.answered))


def _objects(model: Model, settings: VerdictSettings) -> Iterator[Query]:
    """Boxes of objects that are there, of pictures with both of their objects."""
    made = 0
    for subject in subjects(settings.seed):
        if made == settings.objects:
            return
        picture = model.generate(subject.prompt, subject.seed)
        boxes = [locate(picture, name, subject.style) for name in subject.names]
        box = boxes[made % 2]
        if box is not None and None not in boxes:
            made += 1
            yield Query(subject.prompt, picture, subject.seed, (box,))


def _measured(model: Model, index: Index, query: Query, attributed: bool) -> dict[str, object]:
    """A question's evidence and, where it is attributed too, the first score and its interval."""
    asked = encode(model, query, index.center_crop)
    row: dict[str, object] = {"evidence": asdict(asked.evidence)}
    if attributed:
        *_, last = answer(model, index, asked, check_settings(model, index, AttributeSettings()))
        assert isinstance(last, Attribution)
        row["first"] = [last.results[0].low, last.results[0].score, last.results[0].high]
    return row


def _add(out: Path, row: dict[str, object]) -> str:
    line = json.dumps(row)
    with out.open("a", encoding="utf-8") as file:
        file.write(line + "\n")
    return line


def summary(out: Path, index: Index) -> str:
    """A Markdown table: by what was asked, how many, and how many are graded above "uncertain".

    Raises:
        InputError: the index is not calibrated, or was calibrated with the same seed.
    """
    rows, known = [json.loads(line) for line in out.read_text(encoding="utf-8").splitlines()], read_calibration(index)
    if known is None or known.seed in {row["seed"] for row in rows}:
        raise InputError("the index is not calibrated with another seed; run python -m attribution floor first")
    groups: dict[str, list[Grade]] = {}
    for row in rows:
        evidence = Evidence(**row["evidence"])
        grade = known.grade(evidence.kind, evidence.strength)
        names = [OBJECT] if row["maker"] == OBJECT else ["unrelated, all", f"unrelated, {evidence.kind}"]
        for name in names:
            groups.setdefault(name, []).append(grade)
        if "first" in row:
            lowered = grade in SOURCES and row["first"][0] <= 0
            groups.setdefault(f"{OBJECT}, attributed", []).append("uncertain" if lowered else grade)
    table = ["| asked | questions | above uncertain | clear source |", "|---|---|---|---|"]
    for name, grades in groups.items():
        above = sum(grade in SOURCES for grade in grades)
        table.append(f"| {name} | {len(grades)} | {above} | {grades.count(SOURCES[0])} |")
    return "\n".join(table)
