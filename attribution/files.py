"""Where files are, and how they are written: whole or not at all, whoever else writes the same ones."""

import atexit
import mmap
import os
import shutil
import tempfile
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from filelock import FileLock, Timeout
from numpy.typing import NDArray

from attribution.errors import InputError, reason

PARTIAL = ".partial"  # how the names of unfinished files end
LOCK = ".lock"  # an empty file in a folder of one writer


def assets_folder() -> Path:
    """What this project trained: beside the package in a checkout, inside it where it was installed."""
    package = Path(__file__).parent
    inside, beside = package / "assets", package.parent / "assets"
    return inside if inside.is_dir() else beside


def cache_folder() -> Path:
    """One user's cache: ATTRIBUTION_CACHE, else XDG_CACHE_HOME, else ~/.cache; nobody else may look into a new one.

    Raises:
        OSError: it cannot be made.
    """
    base = os.environ.get("ATTRIBUTION_CACHE") or os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    folder = Path(base) / "attribution-by-unlearning"
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    return folder


def passing_folder() -> Path:
    """A temporary folder of this user's, gone when this process ends."""
    folder = Path(tempfile.mkdtemp(prefix="attribution-by-unlearning-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return folder


@contextmanager
def whole(path: Path) -> Iterator[Path]:
    """A path beside `path` to write to, which takes its place when the context ends, and is deleted if that fails.

    Each call has a name of its own, so that two writers of one file do not meet: the last one's stays.

    Raises:
        OSError: the folder is gone, may not be written to, or is full.
    """
    path = path.resolve()  # what a link leads to is replaced, not the link
    partial = _unfinished(path.parent)
    try:
        yield partial
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


def write_whole(path: Path, content: bytes) -> None:
    """Write a file, whole or not at all; raises what `whole` raises."""
    with whole(path) as partial:
        partial.write_bytes(content)


@contextmanager
def writing(folder: Path) -> Iterator[None]:
    """A context in which nobody else writes into a folder, which is made where it is not there; many may read it.

    The lock is the operating system's: it ends with this process, however that ends. Errors of other files than those
    in the folder, such as a picture that is not there any more, pass through as they are.

    Raises:
        InputError: another one writes there, or the folder cannot be written to, or its disk is full.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with FileLock(folder / LOCK, blocking=False, thread_local=False):
            yield
    except Timeout as error:
        raise InputError(f"{folder} is being written to by another process; wait for it, or name another") from error
    except OSError as error:
        if not _may_be_of(folder, error):
            raise
        told = error.strerror or reason(error)
        raise InputError(f"{folder} cannot be written to ({told}); make room there, or name another folder") from error


def _may_be_of(folder: Path, error: OSError) -> bool:
    """Whether an error is of a folder or of what is in it, as far as it says."""
    if not isinstance(error.filename, str):
        return True  # a full disk, told by a file that is open
    named, folder = Path(error.filename).resolve(), folder.resolve()
    return folder in (named, *named.parents) or named in folder.parents


def let_go(array: NDArray[Any]) -> None:
    """Give back the memory of what was read of a memory-mapped array: read again, it comes from the file again.

    Without it, whoever reads a whole array that is larger than memory seems to hold all of it.
    """
    held: Any = array
    while isinstance(held, np.ndarray):
        held = held.base
    if isinstance(held, mmap.mmap) and hasattr(mmap, "MADV_DONTNEED"):
        held.madvise(mmap.MADV_DONTNEED)


def try_folder(folder: Path) -> None:
    """Make an empty file in a folder and delete it.

    Raises:
        OSError: it is none, or may not be written to.
    """
    trial = _unfinished(folder)
    trial.touch(exist_ok=False)
    trial.unlink()


def _unfinished(folder: Path) -> Path:
    """A name that nobody else uses."""
    return folder / f".{uuid.uuid4().hex}{PARTIAL}"
