"""Files that are written whole or not at all, whoever else writes the same ones."""

import os
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

PARTIAL = ".partial"  # how the names of unfinished files end


@contextmanager
def whole(path: Path) -> Iterator[Path]:
    """A path beside `path` to write to, which takes its place when the context ends, and is deleted if that fails.

    Each call has a name of its own, so that two writers of one file do not meet: the last one's stays.

    Raises:
        OSError: the folder is gone, may not be written to, or is full.
    """
    partial = path.with_name(f".{uuid.uuid4().hex}{PARTIAL}")
    try:
        yield partial
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


def write_whole(path: Path, content: bytes) -> None:
    """Write a file, whole or not at all; raises what `whole` raises."""
    with whole(path) as partial:
        partial.write_bytes(content)
