"""Flags: from a command's parameters, and from the fields of the settings dataclasses among them.

Every field of a settings dataclass is a flag, with the field's default and the line about it in the dataclass's
docstring. Flags are named by the fields alone, wherever they are nested; where two would meet, `@flags` tells apart.
"""

import inspect
from collections.abc import Callable, Iterator
from contextlib import redirect_stderr
from dataclasses import MISSING, Field, dataclass, fields, is_dataclass
from functools import partial, wraps
from io import StringIO
from itertools import takewhile
from typing import Annotated, Any, NoReturn, get_type_hints

import tyro
from docstring_parser import parse as parse_docstring
from tyro import _errors as refusals  # not yet stable: the range of versions in requirements.txt is narrow
from tyro.constructors import ConstructorRegistry, StructConstructorSpec, StructFieldSpec, StructTypeInfo

from attribution.errors import InputError

PROGRAM = "python -m attribution"

Command = Callable[..., None]


@dataclass(frozen=True)
class Names:
    """How the flags of a settings dataclass are called.

    Attributes:
        prefix: of each field's name.
        bare: fields that go without the prefix.
        hidden: fields that are no flags; they keep their defaults.
        renamed: whole names, by field.
    """

    prefix: str = ""
    bare: tuple[str, ...] = ()
    hidden: tuple[str, ...] = ()
    renamed: dict[str, str] | None = None

    def of(self, field: str) -> str:
        """A field's flag, without its dashes."""
        return (self.renamed or {}).get(field) or (field if field in self.bare else self.prefix + field)


def flags(names: dict[type, Names]) -> Callable[[Command], Command]:
    """Tell a command how the flags of some settings dataclasses are called."""

    def named(command: Command) -> Command:
        command.flags = names  # type: ignore[attr-defined]
        return command

    return named


def with_further(**commands: Command) -> Callable[[Command], Command]:
    """Give a command further ones, which are called by a name after its own."""

    def named(command: Command) -> Command:
        command.further = commands  # type: ignore[attr-defined]
        return command

    return named


def bind(command: Command, arguments: list[str], program: str) -> Callable[[], None]:
    """A command bound to the values of its arguments, not yet run.

    Raises:
        InputError: they do not parse; names the flag and what is accepted.
        SystemExit: after printing help that was asked for.
    """

    @wraps(command)
    def bound(*values: Any, **named: Any) -> Callable[[], None]:
        return partial(command, *values, **named)

    registry = ConstructorRegistry()
    registry.struct_rule(partial(_settings, getattr(command, "flags", {})))
    more = f"`{program} --help` lists what is accepted"
    try:
        with redirect_stderr(StringIO()), refusals.on_parse_error(partial(_refuse, arguments, more)):
            found: Callable[[], None] = tyro.cli(
                bound,
                prog=program,
                args=arguments,
                use_underscores=True,
                registry=registry,
                config=(tyro.conf.DisallowNone,),
            )
    except SystemExit as leaving:
        if not leaving.code:  # --help
            raise
        raise InputError(f"the flags of `{program}` were not understood; {more}") from None
    return found


# From dataclasses to flags


def _settings(names: dict[type, Names], info: StructTypeInfo) -> StructConstructorSpec | None:
    """Tyro's view of a settings dataclass; None for anything else."""
    kind = info.type
    if not is_dataclass(kind):
        return None
    return StructConstructorSpec(kind, tuple(_fields(kind, names.get(kind, Names()))))


def _fields(kind: type, names: Names) -> Iterator[StructFieldSpec]:
    hints = get_type_hints(kind, include_extras=True)
    told = {each.arg_name: each.description for each in parse_docstring(inspect.getdoc(kind) or "").params}
    for field in fields(kind):
        if field.name not in names.hidden:
            named = tyro.conf.arg(name=names.of(field.name), prefix_name=False)
            hint: Any = Annotated[hints[field.name], named]
            yield StructFieldSpec(field.name, hint, _default(field), told.get(field.name))


def _default(field: Field[Any]) -> Any:
    if field.default_factory is not MISSING and not is_dataclass(field.default_factory):
        return field.default_factory()
    return tyro.MISSING_NONPROP if field.default is MISSING else field.default


# From tyro's refusals to sentences


def _refuse(arguments: list[str], more: str, event: refusals.ParseErrorEvent) -> NoReturn:
    raise InputError(f"{_told(arguments, event)}; {more}")


def _told(arguments: list[str], event: refusals.ParseErrorEvent) -> str:
    """What is wrong with the arguments, and what is accepted."""
    if isinstance(event, refusals.MissingArgs):
        return f"{' and '.join(_flag(each.arg) for each in event.missing_arguments)} must be given"
    if isinstance(event, refusals.UnrecognizedArgs):
        return f"{' '.join(event.tokens)} is no flag, and no value of one"
    if isinstance(event, refusals.InvalidChoice):
        accepted = ", ".join(sorted(set(event.choices) - {"None"}))
        return f"{_flag(event.argument)} {event.value} is not possible; accepted are {accepted}"
    argument = getattr(event, "argument", None)
    if isinstance(event, refusals.BadValue | refusals.InstantiationFailure) and argument is not None:
        flag = _flag(argument)
        return f"{' '.join([flag, *_given(arguments, flag)])} is not possible; accepted is {argument.lowered.metavar}"
    return "the flags were not understood"


def _flag(argument: Any) -> str:
    """How an argument is written, or what a positional one is called."""
    written = argument.lowered.name_or_flags
    return str(written[-1]) if str(written[-1]).startswith("-") else str(argument.lowered.metavar)


def _given(arguments: list[str], flag: str) -> list[str]:
    """What was written after a flag."""
    written = [each.replace("-", "_") for each in arguments]
    place = written.index(flag.replace("-", "_")) if flag.replace("-", "_") in written else len(arguments)
    return list(takewhile(lambda each: not each.startswith("--"), arguments[place + 1 :]))
