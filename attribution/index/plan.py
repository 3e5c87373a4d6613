"""What a build will take, measured on a few of its batches: time, disk and memory of every step, and of a query.

Nothing is written into the index's folder. The steps come from the same table as the build's, and are asked for the
first of the same blocks, in a passing folder: the latents there are a file of the right size that is all holes.
"""

import math
import shutil
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import torch

from attribution.batches import in_parts
from attribution.diffusion.pipeline import Model
from attribution.index.build import LOOKED_AT, Builder, manifest_of, source_of, wanted_of
from attribution.index.found import moved
from attribution.index.listed import stand_in
from attribution.index.manifest import MANIFEST, FeatureRecord, Record
from attribution.index.rows import inspect_images
from attribution.index.steps import STEPS
from attribution.index.stored import Block, save_tensors
from attribution.index.work import BuildSettings, ExtendSettings, Source, Work
from attribution.unlearning.race import RaceSettings, evaluations, exhaustive, schedule
from attribution.unlearning.step import UnlearnSettings

LEAST, LONG = 3.0, 20.0  # s that a step is measured for: three calls at least, if they do not take too long
IMAGES = 256  # that are decoded to learn how long that takes
HEADER = 128  # bytes of an array's file before its numbers
LATENTS, LOSSES, FISHER, FACTORS = "latents", "base_losses", "fisher", "ekfac-factors"
SUMMED = (FISHER, FACTORS, "ekfac")  # what other steps read
QUERIES = ("a query", "a query, exhaustive")


@dataclass(frozen=True)
class Cost:
    """What a step will take, or a query.

    Attributes:
        name: of the step, as the build calls it.
        count: rows or samples that are not done yet.
        seconds: for them.
        bytes: that will be kept on disk.
        passing: bytes on disk beside these, until the step is done.
        memory: bytes of the process, at most, while it was measured.
        device: bytes of a CUDA device likewise; 0 on others.
    """

    name: str
    count: int
    seconds: float
    bytes: int = 0
    passing: int = 0
    memory: int = 0
    device: int = 0


def plan(out: Path, model: Model, settings: BuildSettings, more: ExtendSettings | None = None) -> Iterator[Cost]:
    """Measure what `build` would take with the same arguments; raises what that raises, before and while it measures.

    Images are looked at where an index is there, to compare; otherwise `build` finds those that cannot be used.

    Yields:
        What is not done yet, in the order of the build, `LOOKED_AT` first; then the two of QUERIES.
    """
    begun = (out / MANIFEST).exists()
    source = source_of(out, model, settings, inspect=begun)
    manifest = manifest_of(source, looked_at=begun)
    builder = Builder(replace(source, folder=manifest.folder), manifest, out)
    wanted = wanted_of(builder, more or ExtendSettings())
    builder.manifest = moved(builder.manifest, source, wanted)
    for name, record in wanted.items():
        builder.manifest.refuse_other_step(name, record, out)
    yield looking(source)
    with tempfile.TemporaryDirectory() as folder:
        trial = trial_source(builder, Path(folder))
        costs: dict[str, Cost] = {}
        for name in STEPS:
            new = name in wanted and not builder.manifest.finished(name)
            if new or name in (LOSSES, FISHER):  # a query is made of such
                record = STEPS[name].record(trial, more or ExtendSettings())
                costs[name] = measure(trial, name, record)
            if new:
                left = costs[name].count - builder.manifest.step(name).done
                yield replace(costs[name], count=left, seconds=costs[name].seconds * left / costs[name].count)
        yield from queries(source, costs)


def looking(source: Source) -> Cost:
    """What it takes to look at every image, which a build begins with where they are not known from before."""
    images = source.training.stored(range(min(IMAGES, len(source.training))))
    began = time.monotonic()
    inspect_images(images)
    seconds = (time.monotonic() - began) * len(source.training) / len(images)
    return Cost(LOOKED_AT, len(source.training), seconds, memory=psutil.Process().memory_info().rss)


def trial_source(builder: Builder, folder: Path) -> Source:
    """The same source for a folder that has what steps read of other steps; the index's, where it has that already."""
    source, held = replace(builder.source, folder=str(folder)), builder.source.files
    for name in SUMMED:
        if builder.manifest.finished(name):
            shutil.copyfile(held / f"{name}.safetensors", folder / f"{name}.safetensors")
    if builder.manifest.finished(LATENTS):
        (folder / f"{LATENTS}.npy").symlink_to((held / f"{LATENTS}.npy").resolve())
    else:
        with_holes(folder / f"{LATENTS}.npy", (len(source.training), source.views, *source.model.latent_shape))
    for name, step in builder.manifest.steps.items():
        if step.finished and isinstance(step.made, FeatureRecord) and step.made.shape:
            (folder / name).parent.mkdir(exist_ok=True)
            (folder / f"{name}.npy").symlink_to((held / f"{name}.npy").resolve())
    return source


def measure(trial: Source, name: str, record: Record | None) -> Cost:
    """What a whole step takes, from its first calls; what other steps read of it is left in the trial's folder."""
    with peak_of(trial.model.device) as peak:
        work = STEPS[name].work(trial, record)
        each, rows, block = _sample(work)
        began = time.monotonic()
        kept, passing = _bytes(trial.files / name, work, rows, block)
        seconds = each * work.count + time.monotonic() - began
    _leave_for_lists(trial.files, name, work)
    return Cost(name, work.count, seconds, kept, passing, *peak)


def _leave_for_lists(folder: Path, name: str, work: Work) -> None:
    """What lists of vectors are made from, in the right size: vectors that are all holes, lists that hold anyone."""
    kind, _, feature = name.partition("/")
    if kind == "features" and work.shape and not (folder / f"{name}.npy").exists():
        with_holes(folder / f"{name}.npy", work.shape)
    if kind == "lists":
        stand_in(folder / f"lists/{feature}.safetensors", work.count)


def with_holes(path: Path, shape: tuple[int, ...]) -> None:
    """A file of an array that takes no room."""
    path.parent.mkdir(exist_ok=True)
    np.lib.format.open_memmap(path, mode="w+", dtype=np.float16, shape=shape)


def _sample(work: Work) -> tuple[float, range, Block]:
    """Seconds for each row of a step, without the first call where there are others; and a block of it."""
    size = work.count // work.parts
    end = math.ceil(size / work.batch) * work.batch if work.even else size
    points, began = list[tuple[float, float]](), time.monotonic()
    found: tuple[range, Block] = range(0), {}
    with work.during(0):
        for rows, part in in_parts(end, work.batch, work.block):
            share = part if isinstance(part, float) else 1
            points.append((time.monotonic() - began, rows.start + share * len(rows)))
            if not isinstance(part, float):
                found = rows, part
            if points[-1][0] > (LEAST if len(points) > 2 else LONG):
                break
    (first, before), (last, after) = points[0] if len(points) > 1 else (0.0, 0.0), points[-1]
    return (last - first) / (after - before), *found


def _bytes(path: Path, work: Work, rows: range, block: Block) -> tuple[int, int]:
    """Bytes that a step leaves on disk, and that it needs beside these before it is done."""
    if work.shape is not None:
        return math.prod(work.shape) * np.dtype(work.dtype).itemsize + HEADER, 0
    held: Any = block
    if work.size:
        return work.size, 0
    if work.total is None:
        files, table = (held, 8) if work.packed else (held.values(), 0)  # bytes for where each ends
        return round((sum(map(len, files)) / len(rows) + table) * work.count), 0
    file = path.with_name(f"{path.name}.safetensors")
    save_tensors(file, work.total(held))
    kept, sums = file.stat().st_size, sum(each.nbytes for each in held.values())
    if path.name not in SUMMED:
        file.unlink()
    return (0, kept + sums) if path.name == FACTORS else (kept, sums)


@contextmanager
def peak_of(device: torch.device) -> Iterator[list[int]]:
    """A context that fills a list: the most memory of this process that was seen in it, and of a CUDA device."""
    found, ended, process = list[int](), threading.Event(), psutil.Process()
    seen = [process.memory_info().rss]

    def look() -> None:
        while not ended.wait(0.02):
            seen.append(max(seen.pop(), process.memory_info().rss))

    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    watching = threading.Thread(target=look, daemon=True)
    watching.start()
    try:
        yield found
    finally:
        ended.set()
        watching.join()
        found += [*seen, torch.cuda.max_memory_allocated(device) if device.type == "cuda" else 0]


def queries(source: Source, costs: dict[str, Cost]) -> Iterator[Cost]:
    """What a query by unlearning takes with the default settings: its gradient, and losses of training images."""
    losses, gradients = costs[LOSSES], costs[FISHER]
    count, views, columns = len(source.training), source.views, len(source.bank(source.settings.noise))
    each, step = losses.seconds / losses.count / views / columns, UnlearnSettings().predictions
    unlearning = step * gradients.seconds / gradients.count
    memory = max(losses.memory, gradients.memory), max(losses.device, gradients.device)
    raced = (schedule(count, columns, RaceSettings(), tuple(range(views))), exhaustive(count, columns, range(views)))
    for name, rounds in zip(QUERIES, raced, strict=True):
        predictions = evaluations(rounds)
        yield Cost(name, step + predictions, unlearning + each * predictions, 0, 0, *memory)
