"""What a build finds of an index that is there already: content decides what is gone on with, not places."""

import re
import shutil
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

from attribution.errors import IndexMismatch
from attribution.files import PARTIAL
from attribution.index.changes import compared
from attribution.index.checksums import written
from attribution.index.listed import LISTED, hash_of
from attribution.index.lists import ListRecord
from attribution.index.manifest import (
    MANIFEST,
    DataRecord,
    FeatureRecord,
    GradientRecord,
    IndexSettings,
    Manifest,
    ModelRecord,
    Record,
    StepRecord,
)
from attribution.index.places import portable_data, portable_model
from attribution.index.steps import STEPS
from attribution.index.work import Source

UPDATED = "rows-"  # how the folders begin that the files of an index lie in since it was updated; its id follows
ADDED_ROWS = "added"  # a folder in such a one, of an update that is under way: what is made of rows that are new


def manifest_to_begin(source: Source, data: DataRecord) -> Manifest:
    """The manifest of an index of a source that nothing is finished of."""
    model, settings = source.model, source.settings
    return Manifest.begin(
        ModelRecord(
            portable_model(model.files, source.out),
            model.sha256,
            model.latent_shape,
            model.train_timesteps,
            model.prediction_type,
        ),
        data,
        IndexSettings(portable_data(settings.data, source.out), settings.noise, settings.fisher),
    )


def refuse_others(held: Manifest, wanted: Manifest, source: Source) -> None:
    """Refuse to go on with an index of another model, other settings or other data; says how these were changed.

    Raises:
        IndexMismatch: it is.
    """
    out = source.out
    held.refuse_other(replace(wanted, data=held.data), out)
    changes = None if held.data == wanted.data else compared(out, held, source.training)
    if changes is None or not changes.any_kept:
        held.refuse_other(wanted, out)
    else:
        raise IndexMismatch(
            f"{out} was built from other training images: {changes.told()}; add --update to keep what was made of those"
            " that stayed, or name another --out folder"
        )


def sweep(out: Path, manifest: Manifest, but: str = "") -> None:
    """Delete what builds and updates left behind that were ended: all that is no part of an index, but one folder."""
    for folder in {out, out / manifest.folder}:
        for stray in folder.glob(f".*{PARTIAL}"):
            stray.unlink(missing_ok=True)
    for folder in out.glob(f"{UPDATED}*"):
        if folder.name not in (manifest.folder, but) and re.fullmatch(f"{UPDATED}[0-9a-f]{{12}}", folder.name):
            shutil.rmtree(folder)
    if not manifest.folder:
        return
    (out / manifest.folder / MANIFEST).unlink(missing_ok=True)
    if (out / manifest.folder / ADDED_ROWS).is_dir():
        shutil.rmtree(out / manifest.folder / ADDED_ROWS)
    for name in STEPS:  # the first files of all, which an update replaced
        for path in (*written(out, name), out / f"{name}{PARTIAL}.safetensors"):
            path.unlink(missing_ok=True)
        for folder in (out / name, (out / name).parent):
            if folder != out and folder.is_dir():
                with suppress(OSError):  # it holds something else
                    folder.rmdir()


def file_of(out: Path, manifest: Manifest, name: str) -> Path:
    """Where a file of an index lies that was opened with a manifest.

    Raises:
        IndexMismatch: it was updated since then, and its files are of other images now.
    """
    if Manifest.read(out).folder != manifest.folder:
        raise IndexMismatch(f"{out} was updated since it was opened; open it again")
    return out / manifest.folder / name


def placed(held: Manifest, wanted: Manifest) -> Manifest:
    """An index's manifest with its model and training data where they are now; their content is the same."""
    now = wanted.settings.data
    names = ("dataset_name", "train_data_dir", "captions_file", "cache_dir")
    data = replace(held.settings.data, **{name: getattr(now, name) for name in names})
    model = replace(held.model, source=wanted.model.source)
    return replace(held, model=model, settings=replace(held.settings, data=data))


def without_lost(held: Manifest, folder: Path) -> Manifest:
    """An index's manifest with those finished steps as not begun whose files are gone: they are made again.

    So are lists of vectors that are gone, or are other ones now.
    """
    files = folder / held.folder

    def lost(name: str, step: StepRecord) -> bool:
        return step.finished and step.stored is not None and len(written(files, name)) < step.stored.files

    steps = {name: StepRecord() if lost(name, step) else step for name, step in held.steps.items()}
    held = replace(held, steps=steps)
    return replace(held, steps={name: StepRecord() if stale(held, name) else step for name, step in steps.items()})


def stale(held: Manifest, name: str) -> bool:
    """Whether a step is of lists that are of other vectors than there are now, or is in the order of lost ones."""
    if name not in LISTED:
        return False
    feature = name.partition("/")[2]
    vectors, made = held.step(f"features/{feature}"), held.step(f"listed/{feature}").made
    if not vectors.finished or (name.startswith("listed/") and not held.finished(f"lists/{feature}")):
        return True
    known = made.vectors if isinstance(made, ListRecord) else ""
    return bool(known) and hash_of(vectors.stored) not in ("", known)


def moved(held: Manifest, source: Source, wanted: dict[str, Record | None]) -> Manifest:
    """An index's manifest with the networks of finished steps where they are now, if those have the same weights."""
    for name, record in wanted.items():
        step = held.step(name)
        if step.finished and isinstance(record, FeatureRecord | GradientRecord) and differ_by_place(step.made, record):
            now, made = STEPS[name].work(source, record).made, step.made  # loads the networks to learn their hashes
            networks = FeatureRecord | GradientRecord
            if isinstance(now, networks) and isinstance(made, networks) and at(made, now) == made:
                held = held.having(name, replace(step, made=at(now, made)))
    return held


def differ_by_place(held: Record | None, wanted: FeatureRecord | GradientRecord) -> bool:
    """Whether it may be that the networks were moved, and no more."""
    if type(held) is not type(wanted) or not held.sha256:
        return False
    place = "weights" if isinstance(wanted, FeatureRecord) else "checkpoints"
    known: Any = held.sha256
    return getattr(held, place) != getattr(wanted, place) and at(held, replace(wanted, sha256=known)) == held


def at(held: Record | None, record: FeatureRecord | GradientRecord) -> Record:
    """A record with the places of another; None among them is the index's own model, which has none."""
    if isinstance(record, FeatureRecord) and isinstance(held, FeatureRecord):
        return replace(record, weights=held.weights)
    if isinstance(record, GradientRecord) and isinstance(held, GradientRecord):
        own = [[each is None for each in made.checkpoints] for made in (held, record)]
        return replace(record, checkpoints=held.checkpoints) if own[0] == own[1] else record
    return record
