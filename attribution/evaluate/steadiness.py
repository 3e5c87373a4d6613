"""How steady answers are, from what was measured: a table, and what it does not say.

python -m attribution evaluate steadiness                          # prints what comes with this program
python -m attribution evaluate steadiness --folder DIR             # prints what was measured, and what is missing
python -m attribution evaluate steadiness --folder DIR --compute   # measures it; as many processes as there are cores
"""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from attribution.errors import InputError
from attribution.evaluate.agreement import Floats, estimate, overlap_at
from attribution.evaluate.arrays import Arrays
from attribution.evaluate.queue import Queue
from attribution.evaluate.results import Made, Results
from attribution.evaluate.twice import SECOND, TOPS, Line, SteadinessSettings, lines, noisy
from attribution.index.manifest import Manifest
from attribution.methods import METHODS

NONE = -1  # fills up a ranking that is shorter than others


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


Answers = dict[Line, Arrays]  # (Q, ...) of what `twice.measure` keeps of each query


def answers(folder: Path, index_id: str | None = None) -> Answers:
    """What a folder holds; neither model nor index is needed.

    Args:
        folder: that `measure` kept its answers in.
        index_id: of the index that they should be of; None is any.

    Raises:
        InputError: they are of another index, or damaged.
    """
    told = made_with(folder)
    if told and index_id not in (None, told["index"]):
        raise InputError(f"{folder} is of index {told['index']}, not of {index_id}; name another folder or index")
    found = {}
    for path in (folder, *sorted(folder.glob(f"{SECOND}*"))):
        for method in METHODS:
            names = sorted(each.stem for each in path.glob(f"{method}-[0-9][0-9][0-9].npz"))
            if names:
                found[Line(method, path != folder)] = _stacked([Queue(path).result(name) for name in names])
    return found


def _stacked(answered: Sequence[Arrays]) -> Arrays:
    """Arrays of several queries as one each; rankings that are shorter are filled up with NONE."""
    filled = {name: _filled([each[name] for each in answered]) for name in ("first", "again")}
    return {
        **filled,
        **{name: np.array([float(each[name]) for each in answered]) for name in ("correlation", "seconds")},
    }


def _filled(rankings: Sequence[NDArray[Any]]) -> NDArray[np.int32]:
    filled = np.full((len(rankings), max(map(len, rankings))), NONE, np.int32)
    for row, ranking in zip(filled, rankings, strict=True):
        row[: len(ranking)] = ranking
    return filled


def measured(folder: Path, index_id: str | None = None) -> list[Steadiness]:
    """How steady the answers of a folder are, the steadiest first; raises what `answers` does."""
    return judged(answers(folder, index_id))


def judged(found: Answers) -> list[Steadiness]:
    """How steady answers are, the steadiest first."""
    every = [Steadiness(line, _values(held), float(held["seconds"].mean())) for line, held in found.items()]
    return sorted(every, key=lambda each: -each.values[:, 0].mean())


def _values(held: Arrays) -> Floats:
    rows = []
    for *both, correlation in zip(held["first"], held["again"], held["correlation"], strict=True):
        first, again = (ranking[ranking != NONE].tolist() for ranking in both)
        rows.append([*(overlap_at(first, again, min(k, len(first))) for k in TOPS), float(correlation)])
    return np.array(rows)


def made_with(folder: Path) -> dict[str, Any]:
    """What a folder's answers were made with; nothing where it has none."""
    path = folder / "queue.json"
    try:
        told: dict[str, Any] = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
        return told
    except ValueError as error:
        raise InputError(f"{path} is damaged; name another folder, or delete it") from error


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
    how = "all images on all noises" if told["exhaustive"] else "by a search; correlations are of what both end with"
    return f"Index {told['index']}, noise seed {told['noise_seed']}; methods that unlearn score {how}."


def _missing(line: Line, held: Steadiness | None, queries: int) -> str:
    """How many queries a line lacks, and for how long they would be answered; "" where it lacks none."""
    lacking = queries - (0 if held is None else len(held.values))
    if lacking <= 0:
        return ""
    took = f", {held.seconds:.3g} s each where the others were measured" if held else ""
    return f"{line.method}{' by the second build' if line.second else ''} ({lacking} of {queries} queries{took})"


# As a file


def made_of(manifest: Manifest, folder: Path, settings: SteadinessSettings) -> Made:
    """What the results say of themselves."""
    command = "python -m attribution evaluate steadiness --folder DIR --compute"
    sizes = (manifest.id, manifest.model.sha256, manifest.data.count)
    return Made("steadiness", *sizes, made_with(folder), asdict(settings), command)


def packed(found: Answers) -> dict[str, NDArray[Any]]:
    """Answers as the arrays of a file."""
    return {
        f"{SECOND if line.second else ''}{line.method}/{name}": values
        for line, held in found.items()
        for name, values in held.items()
    }


def unpacked(results: Results, settings: SteadinessSettings) -> Answers:
    """Answers from a file, those that are asked for."""
    found: dict[Line, dict[str, NDArray[Any]]] = {}
    for key, values in results.arrays.items():
        name, _, what = key.rpartition("/")
        line = Line(name.removeprefix(SECOND), name.startswith(SECOND))
        if line.method in (settings.methods or METHODS):
            found.setdefault(line, {})[what] = values[: settings.queries]
    return dict(found)
