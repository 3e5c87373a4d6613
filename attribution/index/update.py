"""An index of a training set that was changed since: what was made of the images that stayed is kept.

What the index will be is put together in a folder within its own, from the files that there are and from what is made
of the new images alone; then its manifest, one file that takes another's place, names that folder. Until then the index
is what it was, and whatever ends an update, the same command goes on with it. Rows have the order of the training set,
as if the index had been built from it, and images that are gone are in no file of it.
"""

import logging
import shutil
from collections.abc import Generator, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np

from attribution.diffusion.pipeline import Model
from attribution.errors import IndexMismatch
from attribution.files import writing
from attribution.index.blocks import Maker, made_here
from attribution.index.build import LOOKED_AT, Builder, BuildProgress, Watch, make_all, make_step, source_of, tidy
from attribution.index.checksums import checksums_of, damage_of, written
from attribution.index.found import manifest_to_begin, sweep
from attribution.index.manifest import MANIFEST, DataRecord, FeatureRecord, GradientRecord, Manifest, StepRecord
from attribution.index.merged import Merge
from attribution.index.renewal import LATENTS, THUMBNAILS, Estimates, Renewal, renewal_of, unchanged
from attribution.index.rows import listed
from attribution.index.steps import STEPS
from attribution.index.typed import refuse_differing
from attribution.index.work import BuildSettings, ExtendSettings

LOG = logging.getLogger(__name__)


def update(
    out: Path,
    model: Model,
    settings: BuildSettings,
    more: ExtendSettings | None = None,
    estimates: Estimates | None = None,
    tell: Watch = lambda _: None,
    make: Maker = made_here,
) -> Iterator[BuildProgress]:
    """Make an index one of its training set as that is now, then whatever `build` makes; interrupted, it goes on.

    Args:
        out: its folder.
        model: the same that it was built with.
        settings: likewise, save for which rows the training set has.
        more: what is added.
        estimates: whether what was estimated from all images is kept or made anew; None keeps it while at most SHARE of
            these images changed.
        tell: see `build`.
        make: likewise.

    Raises:
        IndexMismatch: there is no index, or one of another model, other settings, or none of the images; or it is
            damaged, or has no hashes of single images.
        InputError: see `build`.
        WeightsUnavailable: a network that the index was made with cannot be had.
    """
    more = more or ExtendSettings()
    Manifest.read(out)  # refuses a folder that is no index before images are looked at
    source = source_of(out, model, settings, tell=lambda *done: tell(BuildProgress(LOOKED_AT, *done)))
    with writing(out):
        renewal = renewal_of(source, more, estimates)
        builder = (yield from _renew(renewal, tell, make)) if renewal else unchanged(source)
        yield from make_all(builder, more, tell, make)


def _renew(renewal: Renewal, tell: Watch, make: Maker) -> Generator[BuildProgress, None, Builder]:
    """Put together what an index will be, and let it be that."""
    source, out = renewal.source, renewal.source.out
    for sentence in renewal.told():
        LOG.warning("%s: %s", out, sentence)
    sweep(out, renewal.held, but=source.folder)
    builder = Builder(source, _begun(source.files, renewal.begun), source.files)
    yield from _make_added(renewal, tell, make)
    for name in STEPS:
        if not builder.manifest.finished(name):
            yield from _renew_step(builder, renewal, name, tell, make)
    finished = replace(builder.manifest, folder=source.folder)
    finished.write(out)  # from here on the index is the new one
    sweep(out, finished)
    return Builder(source, finished, out)


def _begun(home: Path, wanted: Manifest) -> Manifest:
    """The manifest of what is put together in a folder, as far as that is; begun anew where it is of other images."""
    if (home / MANIFEST).exists() and (held := Manifest.read(home)).id == wanted.id:
        return replace(wanted, steps=held.steps)
    shutil.rmtree(home, ignore_errors=True)
    home.mkdir(parents=True)
    return wanted


def _make_added(renewal: Renewal, tell: Watch, make: Maker) -> Iterator[BuildProgress]:
    """Make of the new images alone what the index has of each image."""
    if not renewal.changes.new:
        return
    source, out = renewal.added, renewal.source.out
    wanted = manifest_to_begin(source, DataRecord(len(source.training), source.training.sha256()))
    builder = Builder(source, _begun(source.files, wanted), source.files)
    for estimate in renewal.whitening:
        shutil.copyfile(renewal.old / f"{estimate}.safetensors", source.files / f"{estimate}.safetensors")
    for name, record in renewal.merged.items():
        if builder.manifest.finished(name):
            continue
        if isinstance(record, FeatureRecord | GradientRecord):
            made = STEPS[name].work(source, record).made
            refuse_differing(f"{out} holds {name} with", record, made, "put the networks back that it was made with")
        yield from make_step(builder, name, None if name == LATENTS else record, tell, make)


def _renew_step(builder: Builder, renewal: Renewal, name: str, tell: Watch, make: Maker) -> Iterator[BuildProgress]:
    """Keep a step of the index, or make it anew; one that it has not is left for later."""
    if name in renewal.anew:
        yield from make_step(builder, name, renewal.anew[name], tell, make)
        tidy(builder, name)
    elif name in renewal.merged:
        yield from _merge(builder, renewal, name)
    elif name in renewal.copied:
        _copy(builder, renewal, name)


def _merge(builder: Builder, renewal: Renewal, name: str) -> Iterator[BuildProgress]:
    """Keep the rows of a step, among those that were made of new images."""
    _refuse_damaged(renewal, name)
    held, made, axis = renewal.held.step(name), renewal.merged[name], int(name.startswith("gradients/"))
    merge = Merge(renewal.old, renewal.changes.before, renewal.added.files, renewal.changes.places)
    path = builder.source.files / name
    written_rows = merge.files(path, name) if name == THUMBNAILS else merge.array(path, name, axis)
    for done, total in written_rows:
        yield BuildProgress(f"kept {name}", done, total)
    if isinstance(made, FeatureRecord | GradientRecord):
        made = replace(made, shape=merge.shape(name, axis))
    if held.finished:
        _finish(builder, renewal, name, StepRecord(True, (), made))
    else:
        builder.save(builder.manifest.having(name, StepRecord(blocks=_blocks(renewal, held), made=made)))


def _blocks(renewal: Renewal, held: StepRecord) -> tuple[tuple[int, int], ...]:
    """The rows that are done of a step that was not finished: new ones, and those that were done."""
    places = renewal.changes.places
    known = np.zeros(renewal.changes.before, bool)
    for first, end in held.blocks:
        known[first:end] = True
    done = np.where(places < 0, True, known[np.maximum(places, 0)])
    edges = np.flatnonzero(np.diff(done, prepend=False, append=False))
    return tuple((int(first), int(end)) for first, end in edges.reshape(-1, 2))


def _copy(builder: Builder, renewal: Renewal, name: str) -> None:
    """Keep a step as it is."""
    _refuse_damaged(renewal, name)
    for path in written(renewal.old, name):
        shutil.copyfile(path, builder.source.files / path.name)
    _finish(builder, renewal, name, StepRecord(True, (), renewal.held.step(name).made))


def _finish(builder: Builder, renewal: Renewal, name: str, step: StepRecord) -> None:
    """Record a step that is whole."""
    stored, since = checksums_of(builder.source.files, name), renewal.since.get(name)
    builder.save(builder.manifest.having(name, replace(step, stored=stored, since=since)))


def _refuse_damaged(renewal: Renewal, name: str) -> None:
    """Keep nothing that changed after it was written: it would be taken for whole from then on."""
    stored = renewal.held.step(name).stored
    if stored and (damage := damage_of(renewal.old, name, stored)):
        raise IndexMismatch(
            f"{renewal.source.out} is damaged: {listed(damage)}; copy these files from where they are whole, or delete"
            " them and run this command on the training images as they were"
        )
