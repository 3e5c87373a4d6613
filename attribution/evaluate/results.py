"""Finished results in one small file each, which the commands print without a model or an index.

A file holds numbers by name, and under MADE a JSON text of what they were made of.
"""

import json
from collections.abc import Collection, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from attribution.answers.run import now
from attribution.errors import InputError
from attribution.evaluate.arrays import UNREADABLE, Arrays, read_arrays, write_arrays
from attribution.files import assets_folder
from attribution.index.typed import told_of
from attribution.methods import METHODS
from attribution.version import VERSION

FORMAT = 1
MADE = "made"
ENDING = ".npz"


@dataclass(frozen=True)
class Made:
    """What results were made of.

    Attributes:
        kind: of results, the name of the command.
        index: id of the index that was asked.
        model_sha256: of its model.
        images: N, of its training set.
        fixed: what every number depends on; results of something else are other results.
        settings: of the command, as JSON has them; how much was done follows from them.
        command: that computes the results anew.
        date: when they were written, UTC.
        program: version of this program.
        format: of the file.
    """

    kind: str
    index: str
    model_sha256: str
    images: int
    fixed: dict[str, Any]
    settings: dict[str, Any]
    command: str
    date: str = ""
    program: str = VERSION
    format: int = FORMAT


@dataclass(frozen=True)
class Results:
    """A file's content."""

    made: Made
    arrays: Arrays


def committed(kind: str) -> Path:
    """Where the results are that come with this program."""
    return assets_folder() / "results" / f"{kind}{ENDING}"


def read_results(path: Path, kind: str) -> Results:
    """Results of a kind.

    Raises:
        InputError: there are none, or they are damaged, of another kind or another version of the format.
    """
    if not path.is_file():
        raise InputError(f"there are no results of `evaluate {kind}` in {path}; --folder DIR computes them")
    try:
        arrays = read_arrays(path)
        made = Made(**json.loads(str(arrays.pop(MADE))))
    except (*UNREADABLE, KeyError, TypeError) as error:
        raise InputError(f"{path} holds no results that can be read; name another file") from error
    if (made.kind, made.format) != (kind, FORMAT):
        raise InputError(
            f"{path} holds results of `evaluate {made.kind}` in format {made.format}; accepted are those of"
            f" `evaluate {kind}` in format {FORMAT}"
        )
    return Results(made, arrays)


def check_replaced(path: Path | None, made: Made) -> None:
    """Refuse to write results over something else.

    Raises:
        InputError: the file is there and holds no results, or those of another kind, index or other settings.
    """
    if path is None or not path.exists():
        return
    held = read_results(path, made.kind).made
    if held.index != made.index:
        raise InputError(f"{path} holds results of index {held.index}, not of {made.index}; name another file")
    wanted = json.loads(json.dumps(told_of(made.fixed)))
    for key in sorted(wanted.keys() | held.fixed.keys()):
        if wanted.get(key) != held.fixed.get(key):
            raise InputError(
                f"{path} holds results with {key} = {_short(held.fixed.get(key))}, now it is"
                f" {_short(wanted.get(key))}; name another file"
            )


def refuse_ignored(settings: Any, used: Collection[str]) -> None:
    """Refuse settings that finished results leave no choice of.

    Args:
        settings: a dataclass with a default for every field.
        used: fields that may be chosen nevertheless.

    Raises:
        InputError: another one is not at its default.
    """
    plain = type(settings)()
    for field in fields(settings):
        value = getattr(settings, field.name)
        if field.name not in used and value != getattr(plain, field.name):
            raise InputError(f"{field.name} = {value} is not among finished results; --folder DIR computes with it")


def held_methods(wanted: Sequence[str], held: Collection[str]) -> list[str]:
    """Those of the wanted methods that are among results.

    Raises:
        InputError: there is no such method.
    """
    if unknown := [method for method in wanted if method not in METHODS and method not in held]:
        raise InputError(
            f"there is no method {unknown[0]!r}; accepted are {', '.join({**METHODS, **dict.fromkeys(held)})}"
        )
    return [method for method in wanted if method in held]


def provenance(made: Made, path: Path, lacking: Sequence[str]) -> str:
    """Where printed results come from, what they lack, and how they are computed anew."""
    missing = f" Not in them: {', '.join(lacking)}." if lacking else ""
    return (
        f"Finished results of {made.date} from {path.name}: index {made.index}, {made.images} training images,"
        f" model {made.model_sha256[:12]}. Nothing was computed.{missing} Anew: `{made.command}`."
    )


def _short(value: Any) -> str:
    told = json.dumps(value)
    return told if len(told) <= 200 else f"{told[:200]}..."


def write_results(path: Path, made: Made, arrays: dict[str, NDArray[Any]]) -> None:
    """Write results, whole or not at all; raises what `check_replaced` does."""
    check_replaced(path, made)
    told = json.dumps(told_of({**asdict(made), "date": now()}))
    write_arrays(path, {**arrays, MADE: np.array(told)})


def rounded(scores: NDArray[np.floating]) -> NDArray[np.float16]:
    """Scores (Q, N) in half precision, each query's about its median and scaled to at most 1; no rank means less."""
    about = scores - np.median(scores, 1, keepdims=True)
    largest = np.maximum(np.abs(about).max(1, keepdims=True), np.finfo(np.float64).tiny)
    return np.asarray(about / largest, np.float16)


def by_method(arrays: Arrays, name: str) -> dict[str, NDArray[np.float64]]:
    """The arrays `name/METHOD`, by method."""
    parts = {key.partition("/"): value for key, value in arrays.items()}
    return {method: value.astype(np.float64) for (kind, _, method), value in parts.items() if kind == name}
