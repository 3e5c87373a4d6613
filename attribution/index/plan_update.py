"""What an update will take, measured as `plan` does: only what is made anew, and the copy of what is kept."""

import hashlib
import logging
import shutil
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import psutil

from attribution.diffusion.pipeline import Model
from attribution.index.build import Builder, source_of, wanted_of
from attribution.index.checksums import written
from attribution.index.listed import LISTED
from attribution.index.manifest import FeatureRecord, Manifest
from attribution.index.plan import FISHER, LOSSES, Cost, looking, measure, plan, queries, trial_source, with_holes
from attribution.index.renewal import CAPTIONS, LATENTS, Estimates, Renewal, renewal_of
from attribution.index.steps import STEPS
from attribution.index.work import BuildSettings, ExtendSettings, Source

LOG = logging.getLogger(__name__)
KEPT = "kept rows"
SAMPLE = 1 << 26  # bytes that are copied to learn how long that takes


def plan_update(
    out: Path,
    model: Model,
    settings: BuildSettings,
    more: ExtendSettings | None = None,
    estimates: Estimates | None = None,
) -> Iterator[Cost]:
    """Measure what `update` would take with the same arguments; raises what that raises, before and while it measures.

    Yields:
        What `plan` does; steps are of the new images alone where what was made of the others is kept, and the copy of
        that is a cost of its own.
    """
    more = more or ExtendSettings()
    Manifest.read(out)
    source = source_of(out, model, settings)
    if (renewal := renewal_of(source, more, estimates)) is None:
        yield from plan(out, model, settings, more)
        return
    for sentence in renewal.told():
        LOG.warning("%s: %s", out, sentence)
    yield looking(source)
    with tempfile.TemporaryDirectory() as folder:
        yield _copying(renewal, Path(folder))
        yield from _measured(renewal, more, Path(folder))


def _measured(renewal: Renewal, more: ExtendSettings, folder: Path) -> Iterator[Cost]:
    whole = _trial(renewal, renewal.source, folder / "whole")
    some = _trial(renewal, renewal.added, folder / "added") if renewal.changes.new else None
    held, costs = Builder(renewal.source, renewal.held, renewal.source.out), dict[str, Cost]()
    later = {name: record for name, record in wanted_of(held, more).items() if not renewal.held.finished(name)}
    for name in STEPS:
        if name in renewal.merged and some is not None:
            yield measure(some, name, None if name == LATENTS else renewal.merged[name])
        again = {**later, **renewal.anew}
        is_made = name in again and name not in (CAPTIONS, *renewal.merged)
        if is_made or name in (LOSSES, FISHER):  # a query is made of such
            costs[name] = measure(whole, name, again.get(name) or STEPS[name].record(whole, more))
        if is_made:
            yield costs[name]
    yield from queries(renewal.source, costs)


def _trial(renewal: Renewal, source: Source, folder: Path) -> Source:
    """A source in a passing folder, with what steps read of other steps."""
    folder.mkdir()
    for estimate in renewal.whitening:
        shutil.copyfile(renewal.old / f"{estimate}.safetensors", folder / f"{estimate}.safetensors")
    for name in filter(LISTED.get, renewal.anew):
        vectors = f"features/{name.partition('/')[2]}"
        shape = renewal.held.made(vectors, FeatureRecord).shape or ()
        with_holes(folder / f"{vectors}.npy", (len(source.training), *shape[1:]))
    return trial_source(Builder(source, renewal.begun, source.files), folder)


def _copying(renewal: Renewal, folder: Path) -> Cost:
    """What it takes to compare what is kept with its checksums and to copy it."""
    stayed = len(renewal.changes.places) - len(renewal.changes.new)
    paths = {name: written(renewal.old, name) for name in (*renewal.merged, *renewal.copied)}
    sizes = {name: sum(path.stat().st_size for path in each) for name, each in paths.items()}
    share = stayed / renewal.changes.before
    kept = round(sum(size * (share if name in renewal.merged else 1) for name, size in sizes.items()))
    largest = max((path for each in paths.values() for path in each), key=lambda path: path.stat().st_size)
    began = time.monotonic()
    with largest.open("rb") as file:
        content = file.read(SAMPLE)
    hashlib.sha256(content).digest()
    (folder / "copy").write_bytes(content)
    hashlib.sha256((folder / "copy").read_bytes()).digest()
    seconds = (time.monotonic() - began) * kept / len(content)
    return Cost(KEPT, stayed, seconds, kept, memory=psutil.Process().memory_info().rss)
