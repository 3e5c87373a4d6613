"""Checksums of what an index's finished steps wrote, kept in its manifest: a byte that changed since then is found.

And of the networks that they were made with: what another one began is not gone on with.
"""

import hashlib
import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import safe_open
from torch import Tensor

from attribution.errors import IndexMismatch

PIECES = 64  # of a file, at most, that have a checksum each
LEAST = 4096  # bytes of a piece
CHUNK = 1 << 20  # bytes read at once
ENDINGS = (".bin", ".npy", ".safetensors", ".arrow", ".parquet")


@dataclass(frozen=True)
class Checksums:
    """What a step wrote: one file or two, or a folder of them.

    Attributes:
        files: how many.
        bytes: of all of them.
        pieces: of each equal piece of a file, or of each equal group of a folder's, the begin of its SHA-256.
    """

    files: int
    bytes: int
    pieces: tuple[str, ...]


def checksums_of(folder: Path, step: str) -> Checksums | None:
    """The checksums of what a step wrote into an index's folder; None where it writes nothing."""
    paths = written(folder, step)
    if not paths:
        return None
    digests = tuple(_digest(piece) for _, piece in _pieces(folder, step, paths))
    return Checksums(len(paths), _bytes(paths), digests)


def damage_of(folder: Path, step: str, known: Checksums) -> list[str]:
    """What is wrong with what a step wrote, in a few words each; nothing where it is as it was."""
    paths = written(folder, step)
    if not paths:
        return [f"{step} is missing"]
    name = f"{step}/" if (folder / step).is_dir() else " and ".join(_names(folder, paths))
    if len(paths) < known.files <= 2:
        return [f"of {step} only {name} is there, {known.files} files were written"]
    if len(paths) != known.files:
        return [f"{name} holds {len(paths):,} files, {known.files:,} were written"]
    if (size := _bytes(paths)) != known.bytes:
        return [f"{name} has {size:,} bytes, {known.bytes:,} were written"]
    pieces = list(_pieces(folder, step, paths))
    if len(pieces) != len(known.pieces):
        raise IndexMismatch(f"the manifest of {folder} has {len(known.pieces)} checksums of {name}, {len(pieces)} fit")
    pairs = zip(pieces, known.pieces, strict=True)
    return [f"{where} changed after it was written" for (where, piece), digest in pairs if _digest(piece) != digest]


def written(folder: Path, step: str) -> list[Path]:
    """The files that a step wrote."""
    if (folder / step).is_dir():
        return sorted(path for path in (folder / step).glob("[!.]*") if path.is_file())
    return [path for ending in ENDINGS if (path := folder / f"{step}{ending}").is_file()]


def _names(folder: Path, paths: list[Path]) -> list[str]:
    return [path.relative_to(folder).as_posix() for path in paths]


def _bytes(paths: list[Path]) -> int:
    return sum(path.stat().st_size for path in paths)


Piece = list[tuple[Path, int, int]]  # files, each from one byte to another


def _pieces(folder: Path, step: str, paths: list[Path]) -> Iterator[tuple[str, Piece]]:
    """The pieces that have a checksum each, and what they are called."""
    names = _names(folder, paths)
    if not (folder / step).is_dir():
        span = max(LEAST, math.ceil(_bytes(paths) / PIECES))
        for name, path in zip(names, paths, strict=True):
            size = path.stat().st_size
            for start in range(0, size, span):
                end = min(start + span, size)
                yield f"{name} between bytes {start:,} and {end - 1:,}", [(path, start, end)]
        return
    span = math.ceil(len(paths) / PIECES)
    for first in range(0, len(paths), span):
        some = paths[first : first + span]
        last = names[first + len(some) - 1]
        yield names[first] + (f" to {last}" if len(some) > 1 else ""), [(each, 0, each.stat().st_size) for each in some]


def _digest(piece: Piece) -> str:
    digest = hashlib.sha256()
    for path, start, end in piece:
        with path.open("rb") as file:
            file.seek(start)
            for place in range(start, end, CHUNK):
                digest.update(file.read(min(CHUNK, end - place)))
    return digest.hexdigest()[:16]


def sha256_of(weights: Mapping[str, Tensor]) -> str:
    """A hash of a network's weights, as float32 values on the CPU, in the order of their names."""
    return _hashed(sorted(weights.items()))


def sha256_of_file(path: Path, dtype: torch.dtype) -> str:
    """The same of a network of some type that has the weights of a safetensors file, which are read one by one."""
    with safe_open(path, framework="pt") as file:
        return _hashed((name, file.get_tensor(name).to(dtype)) for name in sorted(file.keys()))


def _hashed(weights: Iterable[tuple[str, Tensor]]) -> str:
    digest = hashlib.sha256()
    for name, value in weights:
        digest.update(name.encode())
        digest.update(value.detach().to("cpu", torch.float32).contiguous().numpy().tobytes())
    return digest.hexdigest()
