"""Two steps for each feature that can be searched approximately: which list each image is in, and vectors list by list.

lists/<feature>.safetensors    centres (L, D) float32; rows (N,) int32, list by list; ends (L,) int64, of each list
listed/<feature>.npy           (N, views, D) float16, the feature's vectors in the order of these rows
"""

import hashlib
import json
from collections.abc import Iterator
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import safe_open
from safetensors.torch import save

from attribution.batches import batches
from attribution.errors import IndexMismatch
from attribution.files import let_go
from attribution.index.checksums import Checksums, checksums_of
from attribution.index.features import FEATURES
from attribution.index.lists import ROUNDS, ListRecord, Rows, Trial, faiss, learned, nearest, points
from attribution.index.stored import open_array, tensor_shapes
from attribution.index.work import ExtendSettings, Part, Source, Step, Work, in_one

BLOCK = 4096  # images at once
GATHERED = 16_384  # images whose vectors are read at once in the order of lists


def list_record(source: Source, more: ExtendSettings) -> ListRecord:
    """How images are to be put into lists, checked."""
    faiss()
    return ListRecord(**asdict(more.nearest.checked(len(source.training))))


def lists_work(name: str, source: Source, record: ListRecord) -> Work:
    """Learn lists, put each image into one, and measure what searching them is worth: one block in many calls."""
    vectors, file = open_array(source.files / f"features/{name}.npy"), f"lists/{name}.safetensors"
    count, lists = len(vectors), record.count(len(vectors))
    drawn, asked = record.drawn(count)

    def block(_rows: range) -> Iterator[Part]:
        trial, inside = Trial(asked, vectors[asked], count), np.empty(count, np.int64)
        learning, each = len(drawn) * lists, lists + len(asked) * vectors.shape[1]  # products, of all and of an image
        whole = ROUNDS * learning + count * each
        some = np.concatenate([points(vectors[drawn[at.start : at.stop]]) for at in batches(len(drawn), BLOCK)])
        let_go(vectors)
        rounds = learned(some, lists, record.seed)
        for number in range(1, ROUNDS + 1):
            centres = next(rounds)
            yield number * learning / whole
        for rows in batches(count, BLOCK):
            part = np.array(vectors[rows.start : rows.stop])
            let_go(vectors)
            inside[rows.start : rows.stop] = nearest(points(part), centres)
            trial.look(rows, part)
            if rows.stop < count:
                yield (ROUNDS * learning + rows.stop * each) / whole
        now = hash_of(checksums_of(source.files, f"features/{name}"))
        found = {**trial.judge(record, centres, inside), "vectors": now}
        yield {file: _packed(centres, inside, found)}

    return Work(count, count, block, made=record, size=4 * count + lists * (4 * vectors.shape[-1] + 8))


def listed_work(name: str, source: Source, record: ListRecord) -> Work:
    """The vectors of images in the order of their lists."""
    vectors, file = open_array(source.files / f"features/{name}.npy"), source.files / f"lists/{name}.safetensors"

    def block(rows: range) -> NDArray[np.floating]:
        order = read_rows(file, rows)
        part = np.asarray(vectors[np.sort(order)])[np.argsort(np.argsort(order))]
        let_go(vectors)
        return part

    return Work(len(vectors), GATHERED, in_one(block), made=_found(file, record), shape=vectors.shape)


def _packed(centres: NDArray[np.float32], inside: Rows, found: dict[str, Any]) -> bytes:
    held = {
        "centres": torch.from_numpy(centres),
        "rows": torch.from_numpy(np.argsort(inside, kind="stable").astype(np.int32)),
        "ends": torch.from_numpy(np.bincount(inside, minlength=len(centres)).cumsum()),
    }
    return save(held, {"found": json.dumps(found)})


def stand_in(path: Path, count: int) -> None:
    """What a dry run reads in place of lists: the images in an order by chance."""
    order = np.random.default_rng(0).permutation(count)
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(_packed(np.zeros((1, 1), np.float32), order, {}))


def _found(file: Path, record: ListRecord) -> ListRecord:
    """A record with what was found when the lists were made."""
    tensor_shapes(file)  # refuses what is damaged
    with safe_open(file, framework="np") as held:
        told = json.loads(held.metadata()["found"])
    return replace(record, **{**told, "recall": tuple(told.get("recall", ()))})


def read_lists(file: Path) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """The centres of lists, and where each ends.

    Raises:
        IndexMismatch: the file is missing or damaged.
    """
    if not {"centres", "ends", "rows"} <= tensor_shapes(file).keys():
        raise IndexMismatch(f"{file} is damaged; delete it and run the index command with --approximate again")
    with safe_open(file, framework="np") as held:
        return held.get_tensor("centres"), held.get_tensor("ends")


def read_rows(file: Path, places: range) -> NDArray[np.int32]:
    """The training images at some places in the order of lists."""
    with safe_open(file, framework="np") as held:
        rows: NDArray[np.int32] = held.get_slice("rows")[places.start : places.stop]
    return rows


def hash_of(stored: Checksums | None) -> str:
    """A hash of a file by its checksums; "" where there are none."""
    return hashlib.sha256("".join(stored.pieces).encode()).hexdigest()[:16] if stored else ""


SEARCHED = tuple(name for name, feature in FEATURES.items() if feature.base is None)
LISTED = {
    **{f"lists/{name}": Step(list_record, partial(lists_work, name)) for name in SEARCHED},
    **{f"listed/{name}": Step(list_record, partial(listed_work, name)) for name in SEARCHED},
}
