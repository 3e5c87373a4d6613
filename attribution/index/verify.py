"""Is an index as it was written? Everything that it has checksums of is read."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from attribution.index.checksums import damage_of, written
from attribution.index.manifest import MANIFEST, Manifest


@dataclass(frozen=True)
class Verified:
    """What is found of a part of an index.

    Attributes:
        name: of the part.
        bytes: that were read.
        damage: what is wrong with it, in a few words each.
        state: whether it was read; there may be nothing to compare it with.
    """

    name: str
    bytes: int = 0
    damage: tuple[str, ...] = ()
    state: Literal["read", "unfinished", "unknown"] = "read"


def verify(folder: Path) -> Iterator[Verified]:
    """Compare what lies in an index's folder with the checksums in its manifest, a part at a time.

    Raises:
        IndexMismatch: the folder has no manifest that can be read.
    """
    manifest = Manifest.read(folder)
    made_of, files = (manifest.model, manifest.data, manifest.settings, manifest.kept), folder / manifest.folder
    same = Manifest.begin(*made_of).id == manifest.id
    damage = () if same else (f"{MANIFEST} names settings that are not those of the index's id {manifest.id}",)
    yield Verified(MANIFEST, (folder / MANIFEST).stat().st_size, damage)
    for name, step in manifest.steps.items():
        if not step.finished:
            yield Verified(name, state="unfinished")
        elif step.stored:
            yield Verified(name, step.stored.bytes, tuple(damage_of(files, name, step.stored)))
        elif written(files, name):
            yield Verified(name, state="unknown")
