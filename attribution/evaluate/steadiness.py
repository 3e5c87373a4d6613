"""How steady answers are, from what was measured: a table, and what it does not say.

python -m attribution evaluate steadiness --folder DIR             # prints what was measured, and what is missing
python -m attribution evaluate steadiness --folder DIR --compute   # measures it; as many processes as there are cores
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from attribution.errors import InputError
from attribution.evaluate.agreement import Floats, estimate, overlap_at
from attribution.evaluate.queue import Queue
from attribution.evaluate.twice import SECOND, TOPS, Line, SteadinessSettings, lines, noisy
from attribution.methods import METHODS


@dataclass(frozen=True)
class Steadiness:
    """A line's answers.

    Attributes:
        line: what was compared.
        values: (Q, 3) of each query: overlap@10, overlap@50, and the rank correlation, NaN where too few are ranked.
        seconds: that a query took, on average.
    """

    line: Line
    values: Floats
    seconds: float


def measured(folder: Path, index_id: str | None = None) -> list[Steadiness]:
    """What a folder holds, the steadiest first; neither model nor index is needed.

    Args:
        folder: that `measure` kept its answers in.
        index_id: of the index that they should be of; None is any.

    Raises:
        InputError: they are of another index, or damaged.
    """
    told = made_with(folder)
    if told and index_id not in (None, told["index"]):
        raise InputError(f"{folder} is of index {told['index']}, not of {index_id}; name another folder or index")
    found = []
    for path in (folder, *sorted(folder.glob(f"{SECOND}*"))):
        for method in METHODS:
            names = sorted(each.stem for each in path.glob(f"{method}-[0-9][0-9][0-9].npz"))
            if names:
                found.append(_read(Queue(path), names, Line(method, path != folder)))
    return sorted(found, key=lambda each: -each.values[:, 0].mean())


def made_with(folder: Path) -> dict[str, Any]:
    """What a folder's answers were made with; nothing where it has none."""
    path = folder / "queue.json"
    try:
        told: dict[str, Any] = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
        return told
    except ValueError as error:
        raise InputError(f"{path} is damaged; name another folder, or delete it") from error


def _read(queue: Queue, names: Sequence[str], line: Line) -> Steadiness:
    rows, seconds = [], []
    for name in names:
        held = queue.result(name)
        first, again = held["first"].tolist(), held["again"].tolist()
        rows.append([*(overlap_at(first, again, min(k, len(first))) for k in TOPS), float(held["correlation"])])
        seconds.append(float(held["seconds"]))
    return Steadiness(line, np.array(rows), float(np.mean(seconds)))


def table(found: Sequence[Steadiness]) -> str:
    """Markdown: a line a method, each figure with its standard error over queries."""
    figures = [*(f"overlap@{k}" for k in TOPS), "rank correlation"]
    lines = [f"| method | drawn anew | queries | {' | '.join(f'{each} | s.e.' for each in figures)} |"]
    lines.append("|---" * (3 + 2 * len(figures)) + "|")
    for each in found:
        cells = " | ".join(_figure(values[np.isfinite(values)]) for values in each.values.T)
        lines.append(f"| {each.line.method} | {each.line.anew} | {len(each.values)} | {cells} |")
    return "\n".join(lines)


def _figure(values: Floats) -> str:
    """A mean and its standard error, as two cells; nothing where there are too few values."""
    if not len(values):
        return " | "
    mean = estimate(values)
    return f"{mean.mean:.3f} | {mean.error:.3f}" if len(values) > 1 else f"{mean.mean:.3f} | "


def notes(found: Sequence[Steadiness], settings: SteadinessSettings, told: dict[str, Any]) -> str:
    """What the table does not say: how all was scored, what never changes, what was not measured."""
    fixed = [line.method for line in lines(settings.methods, True)]
    still = [method for method in settings.methods or METHODS if not noisy(method)]
    held = {each.line: each for each in found}
    second = any(line.second for line in held)
    sentences = [_scored(told)] if told else []
    if still:
        sentences.append(f"Without any noise, and so always the same: {', '.join(still)}.")
    if fixed and not second:
        sentences.append(
            f"The training gradients of {', '.join(fixed)} are the same in both answers;"
            " `--second INDEX`, a second build with other noises, draws them anew too."
        )
    wanted = [*lines(settings.methods, False), *(lines(settings.methods, True) if second else [])]
    if missing := [words for line in wanted if (words := _missing(line, held.get(line), settings.queries))]:
        sentences.append(f"Not measured: {', '.join(missing)}; `--compute` measures what the index can answer.")
    return "\n".join(sentences)


def _scored(told: dict[str, Any]) -> str:
    how = "all images on all noises" if told["exhaustive"] else "by halving; correlations are of what both end with"
    return f"Index {told['index']}, noise seed {told['noise_seed']}; methods that unlearn score {how}."


def _missing(line: Line, held: Steadiness | None, queries: int) -> str:
    """How many queries a line lacks, and for how long they would be answered; "" where it lacks none."""
    lacking = queries - (0 if held is None else len(held.values))
    if lacking <= 0:
        return ""
    took = f", {held.seconds:.3g} s each where the others were measured" if held else ""
    return f"{line.method}{' by the second build' if line.second else ''} ({lacking} of {queries} queries{took})"
