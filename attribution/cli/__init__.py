"""The command line: `python -m attribution COMMAND`, each of COMMANDS in a file of this room.

ending.py    exit statuses, and one sentence for whatever fails
parsing.py   flags, from a command's parameters and the settings dataclasses among them
asked.py     the index that a command opens and the files that it will write
progress.py  long work, watched
stages.py    a build, watched: a bar for each step
costs.py     what a build will take, as a table
"""

import sys
from collections.abc import Callable, Iterable
from functools import partial
from importlib import import_module
from inspect import getdoc

from attribution.cli.ending import status_of
from attribution.cli.parsing import PROGRAM, Command, bind
from attribution.errors import InputError

COMMANDS = (
    *("scenes", "index", "generate", "attribute", "detect", "replay"),
    *("floor", "rehearse", "distill", "evaluate", "bench"),
)

Found = Command | dict[str, Command]


def main(arguments: list[str] | None = None) -> int:
    """Run a command; its exit status, see `status_of`."""
    return status_of(partial(run, sys.argv[1:] if arguments is None else arguments))


def command_of(name: str) -> Found:
    """A command, or a table of commands; it is imported now, since most of them need libraries that take seconds."""
    found: Found = getattr(import_module(f"attribution.cli.{name}"), name)
    return found


def run(
    arguments: list[str],
    program: str = PROGRAM,
    names: Iterable[str] = COMMANDS,
    find: Callable[[str], Found] = command_of,
) -> None:
    """Run the command that the first arguments name.

    Raises:
        InputError: there is none of that name, or its flags are not acceptable.
    """
    name, *others = arguments or [""]
    if name in ("-h", "--help"):
        print(_overview(program, names, find))
        return
    if name not in names:
        told = f"there is no command {name!r}" if name else "no command is named"
        raise InputError(f"{told}; accepted are {', '.join(names)}; `{program} COMMAND --help` tells more")
    found, program = find(name), f"{program} {name}"
    further = found if isinstance(found, dict) else getattr(found, "further", {})
    if isinstance(found, dict) or further.keys() & set(others[:1]):
        return run(others, program, further, further.__getitem__)
    bind(found, others, program)()


def _overview(program: str, names: Iterable[str], find: Callable[[str], Found]) -> str:
    lines = [f"usage: {program} COMMAND ...; `{program} COMMAND --help` lists a command's flags", ""]
    for name in names:
        found = find(name)
        about = ", ".join(found) if isinstance(found, dict) else str(getdoc(found)).splitlines()[0]
        lines.append(f"  {name:12} {about}")
    return "\n".join(lines)
