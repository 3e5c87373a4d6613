"""Named arrays in one file, of which nothing is ever unpickled."""

import io
import zipfile
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from attribution.files import whole

Arrays = Mapping[str, NDArray[Any]]
UNREADABLE = (OSError, ValueError, EOFError, zipfile.BadZipFile, zlib.error)  # what a damaged file raises


def write_arrays(path: Path, arrays: Arrays) -> None:
    """Write arrays, whole or not at all."""
    with whole(path) as partial, partial.open("wb") as file:
        np.savez_compressed(file, allow_pickle=False, **arrays)


def read_arrays(path: Path) -> dict[str, NDArray[Any]]:
    """All arrays of a file, by name; raises one of UNREADABLE where they cannot be read."""
    with np.load(io.BytesIO(path.read_bytes()), allow_pickle=False) as held:
        return dict(held)
