"""Frozen dataclasses to JSON and back, strictly: nothing is missing or unknown, and every value is of its kind.

Only a field that is marked as ADDED, as it came later than the form of the file, may be missing: it has its default
then. It is written only where it has another value, so that what does without it stays as it was.
"""

from dataclasses import asdict, fields, is_dataclass
from pathlib import Path
from types import UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from attribution.errors import IndexMismatch

ADDED = {"added": True}  # a field's metadata


def told_of(value: Any) -> Any:
    """What is written of a value; `read_as` reads it back."""
    if is_dataclass(value):
        held = {each: getattr(value, each.name) for each in fields(value)}
        return {
            each.name: told_of(inner)
            for each, inner in held.items()
            if not (each.metadata.get("added") and inner == each.default)
        }
    if isinstance(value, dict):
        return {key: told_of(inner) for key, inner in value.items()}
    return [told_of(inner) for inner in value] if isinstance(value, tuple) else value


def read_as(kind: Any, told: Any, where: str) -> Any:
    """A value of a type from what JSON holds of it.

    Raises:
        ValueError: it does not fit; says where.
    """
    if is_dataclass(kind):
        return _read_record(kind, told, where)
    origin, inner = get_origin(kind), get_args(kind)
    if origin in (Union, UnionType):
        return _read_one_of(inner, told, where)
    if origin is dict and isinstance(told, dict):
        return {key: read_as(inner[1], value, f"{where} {key}") for key, value in told.items()}
    if origin is tuple and isinstance(told, list):
        kinds = (inner[0],) * len(told) if inner[-1] is ... else inner
        if len(kinds) == len(told):
            return tuple(read_as(each, value, where) for each, value in zip(kinds, told, strict=True))
    if origin is Literal and told in inner:
        return told
    if kind is Path and isinstance(told, str):
        return Path(told)
    if kind is float and type(told) is int:
        return float(told)
    if isinstance(kind, type) and type(told) is kind:
        return told
    raise ValueError(f"its {where} is {str(told)[:40]!r}")


def _read_record(kind: Any, told: Any, where: str) -> Any:
    hints = {each.name: get_type_hints(kind)[each.name] for each in fields(kind)}
    added = {each.name for each in fields(kind) if each.metadata.get("added")}
    if not isinstance(told, dict):
        raise ValueError(f"its {where} is {str(told)[:40]!r}")
    for name in sorted((hints.keys() ^ told.keys()) - (added - told.keys())):
        raise ValueError(f"its {where} {'lacks' if name in hints else 'has an unknown'} {name!r}")
    return kind(**{name: read_as(hint, told[name], f"{where} {name}") for name, hint in hints.items() if name in told})


def _read_one_of(kinds: tuple[Any, ...], told: Any, where: str) -> Any:
    for kind in kinds:
        if kind is type(None) and told is None:
            return None
        try:
            return read_as(kind, told, where)
        except ValueError:
            continue
    raise ValueError(f"its {where} is {str(told)[:40]!r}")


def refuse_differing(begin: str, held: Any, wanted: Any, end: str) -> None:
    """Refuse a record other than the one that is held; what an earlier version did not ask is no difference.

    Raises:
        IndexMismatch: a field that is compared differs; names both values between `begin` and `end`.
    """
    if type(held) is not type(wanted):
        raise IndexMismatch(f"{begin} {held!r}, now it is {wanted!r}; {end}")
    for each in fields(wanted):
        was, now = (getattr(record, each.name) for record in (held, wanted))
        known = not (each.metadata.get("added") and each.default in (was, now))
        if known and each.compare and was != now:
            was, now = (asdict(value) if is_dataclass(value) else value for value in (was, now))  # type: ignore[arg-type]
            raise IndexMismatch(f"{begin} {each.name} = {was!r}, now it is {now!r}; {end}")
