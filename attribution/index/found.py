"""What a build finds of an index that is there already: content decides what is gone on with, not places."""

from dataclasses import replace
from pathlib import Path
from typing import Any

from attribution.index.checksums import written
from attribution.index.manifest import FeatureRecord, GradientRecord, Manifest, Record, StepRecord
from attribution.index.steps import STEPS
from attribution.index.work import Source


def placed(held: Manifest, wanted: Manifest) -> Manifest:
    """An index's manifest with its model and training data where they are now; their content is the same."""
    now = wanted.settings.data
    names = ("dataset_name", "train_data_dir", "captions_file", "cache_dir")
    data = replace(held.settings.data, **{name: getattr(now, name) for name in names})
    model = replace(held.model, source=wanted.model.source)
    return replace(held, model=model, settings=replace(held.settings, data=data))


def without_lost(held: Manifest, folder: Path) -> Manifest:
    """An index's manifest with those finished steps as not begun whose files are gone: they are made again."""

    def lost(name: str, step: StepRecord) -> bool:
        return step.finished and step.stored is not None and len(written(folder, name)) < step.stored.files

    steps = {name: StepRecord() if lost(name, step) else step for name, step in held.steps.items()}
    return replace(held, steps=steps)


def moved(held: Manifest, source: Source, wanted: dict[str, Record | None]) -> Manifest:
    """An index's manifest with the networks of finished steps where they are now, if those have the same weights."""
    for name, record in wanted.items():
        step = held.step(name)
        if step.finished and isinstance(record, FeatureRecord | GradientRecord) and _differ_by_place(step.made, record):
            made = STEPS[name].work(source, record).made  # loads the networks to learn their hashes
            if isinstance(made, FeatureRecord | GradientRecord) and _at(step.made, made) == step.made:
                held = held.having(name, replace(step, made=made))
    return held


def _differ_by_place(held: Record | None, wanted: FeatureRecord | GradientRecord) -> bool:
    """Whether it may be that the networks were moved, and no more."""
    if type(held) is not type(wanted) or not held.sha256:
        return False
    place = "weights" if isinstance(wanted, FeatureRecord) else "checkpoints"
    known: Any = held.sha256
    return getattr(held, place) != getattr(wanted, place) and _at(held, replace(wanted, sha256=known)) == held


def _at(held: Record | None, record: FeatureRecord | GradientRecord) -> Record:
    """A record with the places of another; None among them is the index's own model, which has none."""
    if isinstance(record, FeatureRecord) and isinstance(held, FeatureRecord):
        return replace(record, weights=held.weights)
    if isinstance(record, GradientRecord) and isinstance(held, GradientRecord):
        own = [[each is None for each in made.checkpoints] for made in (held, record)]
        return replace(record, checkpoints=held.checkpoints) if own[0] == own[1] else record
    return record
