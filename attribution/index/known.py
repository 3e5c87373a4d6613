"""Images that were decoded before are not decoded again: a build that goes on begins at once.

Their hashes are kept in the user's cache, each by the name, size and times of its file, or by a hash of its bytes where
a table holds them. An image that was changed is another one; one that cannot be used is looked at each time.
"""

import hashlib
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet as parquet

from attribution.files import cache_folder, whole
from attribution.index.rows import Chosen, Tell, inspect_images, silent

SETTLED = 2_000_000_000  # ns, after which another change gives a file another time


def inspect_new(images: Sequence[Any], name: str, tell: Tell = silent) -> list[tuple[str, str]]:
    """What `inspect_images` finds; only images that are not known are decoded.

    Args:
        images: as they are stored.
        name: of the training set: what is known is kept by it.
        tell: of the images that are decoded.
    """
    known, marks = _read(name), [_mark(images[row]) for row in range(len(images))]
    new = [row for row, mark in enumerate(marks) if mark not in known]
    found = dict(zip(new, inspect_images(Chosen(images, new), tell), strict=True))
    fresh = {marks[row]: digest for row, (digest, fault) in found.items() if marks[row] and not fault}
    if fresh:
        _write(name, {mark: known[mark] for mark in marks if mark in known} | fresh)
    return [found[row] if row in found else (known[mark], "") for row, mark in enumerate(marks)]


def _mark(stored: Any) -> str:
    """What an image is known by: another one for other contents; "" where it is not to be known.

    A file that changed just now could change once more within the same tick of the clock.
    """
    content, path = (stored or {}).get("bytes"), (stored or {}).get("path")
    if content is not None:
        return hashlib.blake2b(content, digest_size=16).hexdigest()
    try:
        told = Path(str(path)).stat()
    except (OSError, ValueError):
        return ""
    if told.st_mtime_ns > time.time_ns() - SETTLED:
        return ""
    named = (str(path), told.st_size, told.st_mtime_ns, told.st_ctime_ns, told.st_ino)
    return hashlib.blake2b(repr(named).encode(), digest_size=16).hexdigest()


def _file_of(name: str) -> Path:
    folder = cache_folder() / "known-images"
    folder.mkdir(exist_ok=True)
    return folder / f"{hashlib.sha256(name.encode()).hexdigest()[:16]}.parquet"


def _read(name: str) -> dict[str, str]:
    """Hashes of images by their marks; none where they cannot be read."""
    try:
        table = parquet.read_table(_file_of(name), columns=["mark", "sha256"])
    except (OSError, pyarrow.ArrowException):
        return {}
    return dict(zip(table["mark"].to_pylist(), table["sha256"].to_pylist(), strict=True))


def _write(name: str, known: dict[str, str]) -> None:
    """Keep hashes by marks; a cache that cannot be written to costs the next build its time, no more."""
    with suppress(OSError), whole(_file_of(name)) as partial:
        table = pyarrow.table({"mark": list(known), "sha256": list(known.values())})
        parquet.write_table(table, partial, compression="zstd")
