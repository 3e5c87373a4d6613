"""What a run says of itself wherever it goes: what its verdict stands on, whose pictures it shows, the version."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from attribution.answers.calibration import SHARES, read_calibration
from attribution.errors import IndexMismatch
from attribution.index.index import Index
from attribution.version import VERSION

CREDITS = "credits.json"  # in an index's folder


@dataclass(frozen=True)
class Credit:
    """Whose pictures a training set shows: name and address, licence and the address of its text."""

    name: str
    address: str
    licence: str
    text: str


@dataclass(frozen=True)
class Credits:
    """What a training set is, in a few words ("" where nobody says), and whose pictures are in it."""

    about: str = ""
    pictures: tuple[Credit, ...] = ()


def credits_of(index: Index) -> Credits:
    """What the index's folder says in CREDITS; nothing where that is not there, as of an index of one's own.

    Raises:
        IndexMismatch: the file is damaged.
    """
    about, pictures = _read_credits(index.path)
    return Credits(about.replace("{count}", f"{len(index):,}"), pictures)


def source_name(index: Index) -> str:
    """What the training set is called: a folder by its name, whose place is nobody's matter; a hub data set whole."""
    return _called(index.manifest.source)


def model_name(index: Index) -> str:
    """What the model is called, likewise, and what is laid over it."""
    files = index.model_files
    over = filter(None, (files.lora_weights, files.custom_diffusion, files.mscoco_unet, *files.textual_inversion))
    return " with ".join(map(_called, (files.pretrained_model_name_or_path, *over)))


def _called(source: str) -> str:
    path = Path(source)
    return path.name if path.is_absolute() or source.startswith("..") else source


def art_credits(folder: Path) -> list[str]:
    """A line for each whose pictures an index's folder credits; raises what `credits_of` does."""
    return list(map(_line, _read_credits(folder)[1]))


def _read_credits(folder: Path) -> tuple[str, tuple[Credit, ...]]:
    path = folder / CREDITS
    if not path.is_file():
        return "", ()
    try:
        told = json.loads(path.read_text(encoding="utf-8"))
        return str(told["about"]), tuple(Credit(**each) for each in told["pictures"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise IndexMismatch(f"{path} is damaged; delete it, or write it anew") from error


def _line(credit: Credit) -> str:
    return f"{credit.name} ({credit.licence}, {credit.address})"


def calibrated(index: Index) -> dict[str, Any] | None:
    """What verdicts stand on: when, and on how many unrelated questions of each kind; and each grade's limits.

    None where the index is not calibrated, or its calibration cannot be read.
    """
    try:
        known = read_calibration(index)
    except IndexMismatch:
        return None
    if known is None:
        return None
    return {
        "date": known.date,
        "unrelated": {kind: known.count(kind) for kind in known.strengths},
        "limits": {kind: {grade: known.limit(kind, grade) for grade in SHARES} for kind in known.strengths},
    }


def provenance(run_id: str, index: Index) -> dict[str, Any]:
    """Link, version, calibration, training set and licences of a run; the link is relative to a page of this index."""
    credits = credits_of(index)
    return {
        "link": f"?run={run_id}",
        "version": VERSION,
        "floor": calibrated(index),
        "licences": list(map(_line, credits.pictures)),
        "source": credits.about or source_name(index),
        "count": len(index),
    }
