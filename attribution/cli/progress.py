"""Long work, watched: each step in a line on standard error."""

import sys
from collections.abc import Callable, Iterable, Iterator
from typing import TypeVar

EVERY = 50  # steps, where standard error is no terminal
CLEAR = "\r\033[K"  # a terminal's line

Step = TypeVar("Step")


def watch(steps: Iterable[Step], describe: Callable[[Step], str], every: int = EVERY) -> Iterator[Step]:
    """Show each step on standard error: rewritten in place on a terminal, else a line for one of `every` steps."""
    terminal = sys.stderr.isatty()
    last = ""
    try:
        for number, step in enumerate(steps):
            last = describe(step)
            if terminal:
                print(f"{CLEAR}{last}", end="", file=sys.stderr, flush=True)
            elif number % every == 0:
                print(last, file=sys.stderr, flush=True)
            yield step
    finally:
        if terminal:
            print(CLEAR, end="", file=sys.stderr, flush=True)
    if not terminal and every > 1:
        print(last, file=sys.stderr)
