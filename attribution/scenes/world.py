"""The embedded world: its training set, an imagefolder that is composed into a cache once, and its index."""

import os
import shutil
import tempfile
from pathlib import Path

from attribution.diffusion.overlaid import open_model
from attribution.diffusion.pipeline import Model
from attribution.files import assets_folder, cache_folder, passing_folder
from attribution.index.index import Index, open_index
from attribution.scenes.compose import TRAIN_SCENES, make_scenes, scenes_sha256, write_imagefolder

EMBEDDED = assets_folder() / "emoji-scenes" / "index"
SCENES, THUMBNAILS = "scenes", "thumbnails"  # folders in the cache


def open_world() -> tuple[Model, Index]:
    """The embedded model and index; its training pictures are composed unless they are there.

    Raises:
        IndexMismatch: the index is damaged, or of another model.
        WeightsUnavailable: the model cannot be had.
    """
    folder = composed()
    index = Index.open(EMBEDDED, folder / THUMBNAILS, folder / SCENES)
    model = open_model(index.model_files)
    index.check(model)
    return model, index


def open_world_or(path: Path | None) -> tuple[Model, Index]:
    """The index of a folder and its model; the embedded world where none is named, or its own folder is."""
    if path is None or path.resolve() == EMBEDDED:
        return open_world()
    return open_index(path)


def composed(count: int = TRAIN_SCENES) -> Path:
    """The folder of the first scenes as an imagefolder, SCENES, and as an index's THUMBNAILS; whole or not at all."""
    name = f"emoji-scenes-{scenes_sha256(make_scenes('train', 16))[:12]}-{count}"
    try:
        return _compose(cache_folder() / name, count)
    except OSError:  # the cache cannot be written, or is full
        return _compose(passing_folder() / name, count)


def _compose(folder: Path, count: int) -> Path:
    if _is_whole(folder, count):
        return folder
    with tempfile.TemporaryDirectory(dir=folder.parent) as made:
        scenes, thumbnails = write_imagefolder(Path(made) / "new" / SCENES, "train", count), f"new/{THUMBNAILS}"
        (Path(made) / thumbnails).mkdir()
        for row in range(count):
            _same_file(scenes / f"{row:05d}.png", Path(made) / thumbnails / f"{row:08d}.png")
        if folder.exists() and not _is_whole(folder, count):
            os.rename(folder, Path(made) / "old")
        try:
            os.rename(scenes.parent, folder)
        except OSError:
            if not _is_whole(folder, count):  # else another process was first
                raise
    return folder


def _same_file(there: Path, here: Path) -> None:
    """One file under two names, or a copy where the disk has no links."""
    try:
        os.link(there, here)
    except OSError:
        shutil.copyfile(there, here)


def _is_whole(folder: Path, count: int) -> bool:
    return all(len(list((folder / part).glob("*.png"))) == count for part in (SCENES, THUMBNAILS))
