"""What an index is on disk: arrays, sums and files, written block by block and opened without being read."""

import math
import os
import shutil
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pyarrow
import pyarrow.parquet as parquet
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from attribution.errors import IndexMismatch, InputError

Sums = dict[str, Tensor]
Block = NDArray[np.floating] | Sums | dict[str, bytes]  # rows of an array, sums over samples, or files by name
KEPT_EVERY = 16  # blocks, after which running sums are written


def open_array(path: Path, shape: tuple[int, ...]) -> NDArray[np.floating]:
    """An array on disk, memory-mapped.

    Raises:
        IndexMismatch: it is missing, truncated, pickled or of another shape.
    """
    try:
        array: NDArray[np.floating] = np.load(path, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise IndexMismatch(f"{path} is missing or truncated; build the index anew") from error
    if array.shape != shape:
        raise IndexMismatch(f"{path} has shape {array.shape}, the manifest says {shape}; build the index anew")
    return array


def read_captions(path: Path, count: int) -> tuple[list[str], list[str]]:
    """Ids and captions, as many as there should be.

    Raises:
        IndexMismatch: they are missing or damaged, or others than so many.
    """
    try:
        table = parquet.read_table(path, columns=["id", "caption"])
    except (OSError, pyarrow.ArrowException) as error:
        raise IndexMismatch(f"{path} is missing or truncated; build the index anew") from error
    if len(table) != count:
        raise IndexMismatch(f"{path} has {len(table)} rows, the manifest says {count}; build the index anew")
    return table["id"].to_pylist(), table["caption"].to_pylist()


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
    each = [torch.isfinite(values).all() for values in block.values() if isinstance(values, Tensor)]
    return None if not each or bool(torch.stack(each).all()) else 0


@dataclass(frozen=True)
class ArrayFile:
    """An array that is filled block by block; `array` is (rows, numbers of a row)."""

    array: NDArray[np.floating]
    done: None = None

    @classmethod
    def open(
        cls, path: Path, shape: tuple[int, ...], rows: int, dtype: type[np.floating], going_on: bool
    ) -> "ArrayFile":
        """Open a file for writing.

        Args:
            path: of the file.
            shape: of the array.
            rows: how many rows the first axes of `shape` make together.
            dtype: of the numbers.
            going_on: what the file holds already is kept.

        Raises:
            InputError: there is too little room on the disk.
            IndexMismatch: it is to be gone on with, but truncated.
        """
        path.parent.mkdir(exist_ok=True)
        if going_on and path.is_file():
            open_array(path, shape)  # refuses a truncated file, which "r+" would silently fill up with zeros
            return cls(np.load(path, mmap_mode="r+").reshape(rows, -1))
        _require_room(path, math.prod(shape) * np.dtype(dtype).itemsize)
        array = np.lib.format.open_memmap(path, mode="w+", dtype=dtype, shape=shape)
        if hasattr(os, "posix_fallocate"):  # a mapped file that finds the disk full would end the process
            with path.open("r+b") as file:
                os.posix_fallocate(file.fileno(), 0, path.stat().st_size)
        return cls(array.reshape(rows, -1))

    def put(self, rows: range, block: Block) -> None:
        """Write some rows."""
        assert isinstance(block, np.ndarray)
        self.array[rows.start : rows.stop] = block.reshape(len(block), -1)
        self.array.flush()  # type: ignore[attr-defined]

    def close(self) -> None:
        """Nothing is left to be written."""


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
            kept = {name: total.cpu() for name, total in self.sums.items()}
            save_file(kept, f"{self.path}.new", metadata={"done": str(self.done)})
            os.replace(f"{self.path}.new", self.path)


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
