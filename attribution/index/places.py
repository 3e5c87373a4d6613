"""Where what an index was made of lies: named relative to its folder, so that all can be moved together."""

import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from attribution.diffusion.source import ModelFiles
from attribution.index.data import DataSettings


def portable(source: str, folder: Path) -> str:
    """A folder or file beside the index, or in it, is named relative to it, so that both can be moved together."""
    path = Path(source).resolve()
    if path.exists() and path.parent == folder.resolve().parent:
        return os.path.join("..", path.name)
    if path.exists() and path.parent == folder.resolve():
        return path.name
    return str(path) if path.exists() else source


def located(source: str, folder: Path) -> str:
    """What `portable` named, where it is now; what is not there is a hub id."""
    beside = (folder / source).resolve()
    return str(beside) if beside.exists() else source


def portable_data(data: DataSettings, folder: Path) -> DataSettings:
    """A training set's settings as an index records them."""
    return _renamed(data, lambda source: portable(source, folder))


def located_data(data: DataSettings, folder: Path) -> DataSettings:
    """What `portable_data` recorded, where it is now."""
    return _renamed(data, lambda source: located(source, folder))


def _renamed(data: DataSettings, name: Callable[[str], str]) -> DataSettings:
    def path(source: Path | None) -> Path | None:
        return source and Path(name(str(source)))

    return replace(
        data,
        dataset_name=data.dataset_name and name(data.dataset_name),
        train_data_dir=path(data.train_data_dir),
        captions_file=path(data.captions_file),
    )


def portable_model(files: ModelFiles, folder: Path) -> str | ModelFiles:
    """A model as an index records it: its pipeline's name alone, where nothing else is said of it."""
    named = files.renamed(lambda source: portable(source, folder))
    plain = ModelFiles(named.pretrained_model_name_or_path)
    return plain.pretrained_model_name_or_path if named == plain else named


def located_model(source: str | ModelFiles, folder: Path) -> ModelFiles:
    """What `portable_model` recorded, where it is now."""
    files = source if isinstance(source, ModelFiles) else ModelFiles(source)
    return files.renamed(lambda source: located(source, folder))
