"""How the program ends: exit statuses, and one sentence on standard error for whatever fails."""

import os
import sys
import traceback
from collections.abc import Callable
from contextlib import suppress

from attribution.errors import AttributionError, reason

DEBUG = "ATTRIBUTION_DEBUG"  # set it to see where an error came from
FAILED, INTERRUPTED, PIPE_CLOSED = 2, 130, 141  # the last two as shells tell signals 2 and 13


def status_of(work: Callable[[], None]) -> int:
    """Do the work of a command; 0, or another exit status after one sentence on standard error.

    An interruption, and a reader of the output that has left, are said nothing about.
    """
    try:
        work()
        sys.stdout.flush()
    except BrokenPipeError:
        _discard_output()
        return PIPE_CLOSED
    except KeyboardInterrupt:
        return INTERRUPTED
    except Exception as error:
        if os.environ.get(DEBUG):
            traceback.print_exc()
        with suppress(OSError):
            print(f"error: {sentence(error)}", file=sys.stderr)
        return FAILED
    return 0


def sentence(error: Exception) -> str:
    """An error in one line; one of a library's with its kind, and how to see where it came from."""
    if isinstance(error, AttributionError):
        return " ".join(str(error).split("\n"))
    kind = type(error).__name__
    told = reason(error)
    if isinstance(error, OSError) and error.strerror:
        told = f"{error.filename}: {error.strerror}" if error.filename else error.strerror
    return f"{told} ({kind}; the environment variable {DEBUG}=1 shows where it happened)"


def _discard_output() -> None:
    """Nobody reads the output any more: what is still buffered goes nowhere, rather than fail as Python exits."""
    with suppress(OSError, ValueError):
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, sys.stdout.fileno())
        os.close(nowhere)
