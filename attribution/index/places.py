"""Where what an index was made of lies: named relative to its folder, so that all can be moved together."""

import os
from pathlib import Path

from attribution.diffusion.source import ModelFiles


def portable(source: str, folder: Path) -> str:
    """A folder or file beside the index is named relative to it, so that both can be moved together."""
    path = Path(source).resolve()
    if path.exists() and path.parent == folder.resolve().parent:
        return os.path.join("..", path.name)
    return str(path) if path.exists() else source


def located(source: str, folder: Path) -> str:
    """What `portable` named, where it is now; what is not there is a hub id."""
    beside = (folder / source).resolve()
    return str(beside) if beside.exists() else source


def portable_model(files: ModelFiles, folder: Path) -> str | ModelFiles:
    """A model as an index records it: its pipeline's name alone, where nothing else is said of it."""
    named = files.renamed(lambda source: portable(source, folder))
    plain = ModelFiles(named.pretrained_model_name_or_path)
    return plain.pretrained_model_name_or_path if named == plain else named


def located_model(source: str | ModelFiles, folder: Path) -> ModelFiles:
    """What `portable_model` recorded, where it is now."""
    files = source if isinstance(source, ModelFiles) else ModelFiles(source)
    return files.renamed(lambda source: located(source, folder))
