"""An index of any number of images, made of a smaller one by repeating its images with a little noise.

Everything that a search reads of it is there: latents, losses and the gradients that give candidates are really stored,
so that candidates, predictions and seconds are those of a training set of that size. Losses before unlearning are those
of the image that was repeated: nothing depends on their values but the ranking. Thumbnails, which a search does not
read, are a file with a hole.
"""

import os
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from attribution.batches import batches
from attribution.files import let_go, write_whole
from attribution.index.index import Index
from attribution.index.manifest import StepRecord
from attribution.index.steps import REQUIRED
from attribution.index.stored import ArrayFile
from attribution.index.texts import CAPTIONS, packed_texts
from attribution.methods.candidates import sources

NOISE = 0.05  # standard deviation that is added, as a share of the values' own; share of bits that are turned
ROWS = 4096  # at once
COPIED = ("fisher", "ekfac")  # as they are, where they are there
SEED = 6


def stretch(index: Index, folder: Path, rows: int) -> Iterator[str]:
    """Make the folder of an index of so many images, the first of which are this one's.

    Args:
        index: with what gives candidates.
        folder: an empty one.
        rows: N.

    Yields:
        The name of each large file that was written.

    Raises:
        InputError: there is too little room on the disk.
    """
    for name, array, axis, noise in (
        ("latents", index.latents, 0, NOISE),
        ("base_losses", index.base_losses, 0, 0.0),
        *((f"gradients/{source}", index.array(f"gradients/{source}"), 1, NOISE) for source in sources(index)),
    ):
        _repeat(array, folder / f"{name}.npy", rows, axis, noise)
        yield name
    for name in COPIED:
        if index.manifest.finished(name):
            shutil.copyfile(index.file(f"{name}.safetensors"), folder / f"{name}.safetensors")
    write_whole(folder / CAPTIONS, _texts(index, rows))
    np.save(folder / "thumbnails.npy", np.arange(1, rows + 1, dtype=np.int64))
    (folder / "thumbnails.bin").touch()
    os.truncate(folder / "thumbnails.bin", rows)
    _write_manifest(index, folder, rows)


def _repeat(few: NDArray[Any], path: Path, rows: int, axis: int, noise: float) -> None:
    """An array again and again along an axis, 0 or 1; what is repeated has noise."""
    shape, rng, count = (*few.shape[:axis], rows, *few.shape[axis + 1 :]), np.random.default_rng(SEED), few.shape[axis]
    parts = [few] if axis == 0 else list(few)
    file = ArrayFile.open(path, shape, rows * len(parts), few.dtype.type, False)
    for number, part in enumerate(parts):
        for some in batches(rows, ROWS):
            block = part[np.arange(some.start, some.stop) % count]
            block = block if few.dtype == np.uint8 else block.astype(np.float32)
            new = np.arange(some.start, some.stop) >= count
            if few.dtype == np.uint8:
                block[new] ^= np.packbits(rng.random((*block[new].shape, 8)) < noise, -1)[..., 0]
            elif noise:
                block[new] += noise * block.std() * rng.standard_normal(block[new].shape, np.float32)
            file.put(range(number * rows + some.start, number * rows + some.stop), block)
            let_go(few)
    file.close()


def _texts(index: Index, rows: int) -> bytes:
    """Ids and captions, those of images that are repeated again and again."""
    captions, several, count = list(index.captions), index.encoded.several, len(index)
    again = {row: several[row % count] for row in range(rows) if row % count in several} if several else {}
    return packed_texts([str(row) for row in range(rows)], [captions[row % count] for row in range(rows)], again)


def _write_manifest(index: Index, folder: Path, rows: int) -> None:
    own = index.manifest
    steps = {name: replace(own.step(name), finished=True, stored=None) for name in REQUIRED}
    steps |= {name: replace(own.step(name), stored=None) for name in COPIED if own.finished(name)}
    for source in sources(index):
        held, checkpoints = index.gradients(source), tuple(index.checkpoints(source))
        made = replace(held, shape=(held.shape[0], rows, *held.shape[2:]), checkpoints=checkpoints)
        steps[f"gradients/{source}"] = StepRecord(True, made=made)
    model, data = replace(own.model, source=index.model_files), replace(own.data, count=rows)
    replace(own, model=model, data=data, steps=steps, folder="").write(folder)
