"""Add a feature of joined ones to an index that is there, from what the index holds: no training picture is read."""

from collections.abc import Iterator
from pathlib import Path

from attribution.diffusion.pipeline import Model
from attribution.files import writing
from attribution.index.build import Builder, BuildProgress, make_step
from attribution.index.data import TrainingSet
from attribution.index.index import Index
from attribution.index.manifest import FeatureRecord, Manifest
from attribution.index.places import portable
from attribution.index.rows import Rows
from attribution.index.work import BuildSettings, Source


def add_joined(index: Index, model: Model, name: str, weights: Path) -> Iterator[BuildProgress]:
    """Make a feature of the features that it joins; one of that name is replaced. The index's id stays.

    Args:
        index: that holds those features.
        model: the index's.
        name: of the feature.
        weights: the file of its network, in the index's folder or beside it, or anywhere.

    Raises:
        InputError: the index lacks a feature that it joins.
        IndexMismatch: an array of the index is missing or truncated.
        WeightsUnavailable: the file holds no such network.
    """
    rows = Rows(list(index.ids), [], [])
    training = TrainingSet(rows, [(caption,) for caption in index.captions], [], index.center_crop)
    settings = BuildSettings(index.manifest.settings.data)
    with writing(index.path):
        held = Manifest.read(index.path)
        source = Source(index.path, model, training, settings, held.folder)
        without = held.lacking(f"features/{name}").lacking(f"lists/{name}")
        builder = Builder(source, without, index.path)
        record = FeatureRecord(portable(str(weights), index.path))
        yield from make_step(builder, f"features/{name}", record, lambda _: None)
