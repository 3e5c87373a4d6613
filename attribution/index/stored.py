"""What an index is on disk: arrays, sums and files, written block by block and opened without being read."""

import math
import os
import shutil
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from attribution.errors import IndexMismatch, InputError, reason
from attribution.files import whole

Sums = dict[str, Tensor]
Block = NDArray[Any] | Sums | dict[str, bytes] | list[bytes]  # rows of an array, sums, or files by name or by row
KEPT_EVERY = 16  # blocks, after which running sums are written


def open_array(path: Path, *shapes: tuple[int, ...]) -> NDArray[np.floating]:
    """An array on disk, memory-mapped.

    Args:
        path: of the file.
        shapes: of which it may have any; where none is named, any at all.

    Raises:
        IndexMismatch: it is missing, truncated, pickled or of another shape.
    """
    try:
        array: NDArray[np.floating] = np.load(path, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise IndexMismatch(f"{path} is missing or truncated; build the index anew") from error
    if shapes and array.shape not in shapes:
        raise IndexMismatch(f"{path} has shape {array.shape}, the manifest says {shapes[0]}; build the index anew")
    return array


def open_views(path: Path, count: int, views: int, *rest: int) -> NDArray[np.floating]:
    """An array (count, views, ...) on disk, memory-mapped; raises what `open_array` does.

    Earlier versions stored mirrors, too, of images that were not trained on with them; those are passed over.
    """
    return open_array(path, (count, views, *rest), (count, 2, *rest))[:, :views]


def load_tensors(path: Path) -> Sums:
    """All tensors of a file, by name.

    Raises:
        IndexMismatch: it is missing or damaged.
    """
    try:
        return load_file(path)
    except (OSError, SafetensorError) as error:
        raise IndexMismatch(f"{path} is missing or damaged; build the index anew") from error


def tensor_shapes(path: Path) -> dict[str, tuple[int, ...]]:
    """The shapes of a file's tensors by name, of which none is read.

    Raises:
        IndexMismatch: it is missing or damaged.
    """
    try:
        with safe_open(path, framework="pt") as file:
            return {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118
    except (OSError, SafetensorError) as error:
        raise IndexMismatch(f"{path} is missing or damaged; build the index anew") from error


def as_array(values: Tensor, dtype: type[np.floating]) -> NDArray[np.floating]:
    """A tensor of any device and kind of number as an array; what is too large for `dtype` becomes infinite."""
    precise = values.detach().cpu().to(torch.promote_types(values.dtype, torch.float32))
    with np.errstate(over="ignore"):
        return precise.numpy().astype(dtype)


def first_not_finite(block: Block) -> int | None:
    """The place in a block of the first row that is not finite; 0 of sums, which have no rows; None if all are."""
    if isinstance(block, np.ndarray):
        finite = np.isfinite(block).reshape(len(block), -1).all(1)
        return None if finite.all() else int(np.argmin(finite))
    if isinstance(block, list):
        return None
    each = [torch.isfinite(values).all() for values in block.values() if isinstance(values, Tensor)]
    return None if not each or bool(torch.stack(each).all()) else 0


def save_tensors(path: Path, tensors: Sums, metadata: dict[str, str] | None = None) -> None:
    """Write tensors by name, whole or not at all.

    Raises:
        OSError: the folder is gone, may not be written to, or is full.
    """
    held = {name: values.cpu().contiguous() for name, values in tensors.items()}
    try:
        with whole(path) as partial:
            save_file(held, partial, metadata=metadata)
    except SafetensorError as error:  # a full disk, among others
        raise OSError(reason(error)) from error


@dataclass(frozen=True)
class ArrayFile:
    """An array that is filled block by block; it is written to, not mapped: a full disk would end the process.

    Attributes:
        file: open for writing.
        start: the byte that its numbers begin at.
        row: bytes of a row.
        dtype: of the numbers.
    """

    file: BinaryIO
    start: int
    row: int
    dtype: np.dtype[Any]
    done: None = None

    @classmethod
    def open(cls, path: Path, shape: tuple[int, ...], rows: int, dtype: type[np.number], going_on: bool) -> "ArrayFile":
        """Open a file for writing, room for all of it reserved.

        Args:
            path: of the file.
            shape: of the array.
            rows: how many rows the first axes of `shape` make together.
            dtype: of the numbers.
            going_on: what the file holds already is kept.

        Raises:
            InputError: there is too little room on the disk.
            IndexMismatch: it is to be gone on with, but truncated.
            OSError: it cannot be written.
        """
        path.parent.mkdir(exist_ok=True)
        if going_on and path.is_file():
            open_array(path, shape)  # refuses a truncated file
        else:
            _require_room(path, math.prod(shape) * np.dtype(dtype).itemsize)
            np.lib.format.open_memmap(path, mode="w+", dtype=dtype, shape=shape)
        start = np.load(path, mmap_mode="r").offset
        row = math.prod(shape) // rows * np.dtype(dtype).itemsize
        file = path.open("r+b")
        if hasattr(os, "posix_fallocate"):
            os.posix_fallocate(file.fileno(), 0, start + rows * row)
        return cls(file, start, row, np.dtype(dtype))

    def put(self, rows: range, block: Block) -> None:
        """Write some rows."""
        assert isinstance(block, np.ndarray)
        content = np.ascontiguousarray(block, self.dtype).tobytes()
        assert len(content) == len(rows) * self.row
        self.file.seek(self.start + rows.start * self.row)
        self.file.write(content)
        self.file.flush()
        os.fsync(self.file.fileno())

    def close(self) -> None:
        """Close the file."""
        self.file.close()


def _require_room(path: Path, needed: int) -> None:
    free = shutil.disk_usage(path.parent).free
    if needed > free:
        raise InputError(
            f"{path} needs {needed / 1e6:,.0f} MB of disk, {free / 1e6:,.0f} MB are free; make room there, or name"
            " another --out folder"
        )


@dataclass
class SumFile:
    """Running sums over samples, kept on disk now and then, and where a build is interrupted, to go on from there.

    Attributes:
        path: of the file.
        sums: by name, on the device that blocks come from.
        done: samples in them.
        puts: blocks that were added since it was opened.
    """

    path: Path
    sums: Sums = field(default_factory=dict)
    done: int = 0
    puts: int = 0

    @classmethod
    def open(cls, path: Path) -> "SumFile":
        """What was kept; nothing, to begin anew, where that is damaged."""
        if not path.is_file():
            return cls(path)
        try:
            with safe_open(path, framework="pt") as file:
                sums = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
                return cls(path, sums, int(file.metadata()["done"]))
        except SafetensorError:
            return cls(path)

    def put(self, samples: range, block: Block) -> None:
        """Add the sums over some samples, which follow those that were added before."""
        sums: Sums = block  # type: ignore[assignment]
        self.sums = {name: self.sums[name].to(each) + each if self.sums else each for name, each in sums.items()}
        self.done, self.puts = samples.stop, self.puts + 1
        if self.puts % KEPT_EVERY == 0:
            self.close()

    def close(self) -> None:
        """Write what there is, whole or not at all."""
        if self.sums:
            save_tensors(self.path, self.sums, {"done": str(self.done)})


@dataclass(frozen=True)
class Files:
    """Files in a folder, by their names in it."""

    folder: Path
    done: None = None

    def put(self, _rows: range, block: Block) -> None:
        """Write those of some rows."""
        for name, content in block.items():  # type: ignore[union-attr]
            (self.folder / name).parent.mkdir(exist_ok=True)
            (self.folder / name).write_bytes(content)  # type: ignore[arg-type]

    def close(self) -> None:
        """Nothing is left open."""
