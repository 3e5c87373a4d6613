"""Calibration: what unrelated questions reach, so that a grade is told with its rate of false alarms; resumable.

Every question's strength is measured as if its picture had been generated for its prompt: that uploads are never
graded above "uncertain" would hide false alarms.
"""

import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from attribution.answers.calibration import (
    ENOUGH,
    FORMAT_VERSION,
    SHARES,
    Calibration,
    read_calibration,
    sorted_strengths,
)
from attribution.answers.unrelated import KINDS, Makers, Pictures, question
from attribution.diffusion.pipeline import Model
from attribution.errors import InputError
from attribution.files import write_whole, writing
from attribution.index.index import FLOOR, Index
from attribution.query.encoded import encode
from attribution.query.evidence import Evidence, Kind

MOST = 5000
UNFINISHED = "floor.unfinished.jsonl"


@dataclass(frozen=True)
class FloorProgress:
    """An unrelated question's evidence, what made the question, and how many are measured of how many."""

    done: int
    count: int
    kind: Kind
    maker: str
    evidence: Evidence


def measure_floor(
    model: Model, index: Index, count: int = 200, seed: int = 0, more: Makers | None = None
) -> Iterator[FloorProgress]:
    """Measure `count` unrelated questions of each kind and write what they reach into the index.

    Interrupted, it goes on where it was when it is called again with the same model, index, count and seed.

    Args:
        model: the index's.
        index: that is calibrated.
        count: questions about whole pictures, as many about boxes, and as many about words.
        seed: of the questions.
        more: ways of a world of its own to make such questions.

    Raises:
        InputError: the count is not possible, or the index's folder cannot be written to, or another process does.
    """
    if not ENOUGH <= count <= MOST:
        raise InputError(f"{count} unrelated pictures of each kind are not possible; accepted are {ENOUGH} to {MOST}")
    with writing(index.path):
        yield from _measure(model, index, count, seed, more)


def _measure(model: Model, index: Index, count: int, seed: int, more: Makers | None) -> Iterator[FloorProgress]:
    path = index.path / UNFINISHED
    made_with = json.dumps({"format_version": FORMAT_VERSION, "model": model.sha256, "count": count, "seed": seed})
    measured = _kept(path, made_with)
    write_whole(path, _lines([made_with, *map(_line, measured)]))
    for step in unrelated(model, index, count, seed, more, len(measured)):
        with path.open("ab") as file:
            file.write(_lines([_line(step)]))
        measured.append(step)
        yield step
    write_whole(index.path / FLOOR, (json.dumps(_told(made_with, measured), indent=1) + "\n").encode())
    path.unlink()


def unrelated(
    model: Model, index: Index, count: int, seed: int, more: Makers | None = None, start: int = 0
) -> Iterator[FloorProgress]:
    """The evidence of `count` unrelated questions of each kind, from the one with the number `start` on."""
    pictures, total = Pictures(model, index, seed), count * len(KINDS)
    for place in range(start, total):
        kind = KINDS[place // count]
        maker, query = question(pictures, kind, place % count, more)
        yield FloorProgress(place + 1, total, kind, maker, encode(model, query, index.center_crop).evidence)


def _lines(texts: list[str]) -> bytes:
    return "".join(f"{text}\n" for text in texts).encode()


def _line(step: FloorProgress) -> str:
    return json.dumps(asdict(step))


def _kept(path: Path, made_with: str) -> list[FloorProgress]:
    """What an earlier call with the same settings measured; a last line that is not whole is left out."""
    lines = path.read_text(encoding="utf-8").split("\n") if path.is_file() else []
    if lines[:1] != [made_with]:
        return []
    told = [json.loads(line) for line in lines[1:-1]]  # what follows the last line break is not whole
    return [FloorProgress(**{**each, "evidence": Evidence(**each["evidence"])}) for each in told]


def _told(made_with: str, measured: list[FloorProgress]) -> dict[str, Any]:
    """The calibration as it is written: settings, date, the strengths by kind and maker, and the grades' limits."""
    strengths: dict[Kind, dict[str, list[float]]] = {}
    for step in measured:
        strengths.setdefault(step.kind, {}).setdefault(step.maker, []).append(round(step.evidence.strength, 6))
    known = Calibration("", 0, sorted_strengths(strengths))
    limits = {kind: {grade: round(known.limit(kind, grade), 6) for grade in SHARES} for kind in strengths}
    date = datetime.now(UTC).date().isoformat()
    return {**json.loads(made_with), "date": date, "limits": limits, "strengths": strengths}


def summary(index: Index) -> str:
    """A Markdown table: by kind, how many unrelated questions were measured, the grades' limits and false alarms."""
    known = read_calibration(index)
    if known is None:
        return "not calibrated"
    columns = [f"{grade}: above, false alarms" for grade in SHARES]
    table = [f"| kind | questions | {' | '.join(columns)} |", "|---" * (2 + len(columns)) + "|"]
    for kind in known.strengths:
        cells = [f"{known.limit(kind, grade):.3f}, {known.alarms(kind, grade)}" for grade in SHARES]
        table.append(f"| {kind} | {known.count(kind)} | {' | '.join(cells)} |")
    return "\n".join(table)
