"""The proof that the page shows: pictures drawn again by models that were trained without the images that were named.

A folder of PROOF and PNGs, which `evaluate/proof.py` writes; nothing is computed to show it.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from attribution.errors import InputError
from attribution.index.typed import read_as
from attribution.query.query import Box

PROOF = "proof.json"
VERSION = 1  # of the format
CHANCE = "random"  # the method that names images by chance


@dataclass(frozen=True)
class Retrained:
    """What a model draws that was trained without the images that a method names.

    Attributes:
        method: that names them; CHANCE where none does.
        named: K, how many it names for this picture.
        left_out: how many that training left out in all: more than K where it serves several pictures.
        strip: file of the first named images, beside and below each other.
        shown: how many are in the strip.
        picture: file of what the model draws from the same noise.
        change: mean absolute difference in the region from what the model trained on everything draws, as a share of
            the intensities' range.
    """

    method: str
    named: int
    left_out: int
    strip: str
    shown: int
    picture: str
    change: float
    rise: float


@dataclass(frozen=True)
class Case:
    """One picture, and what becomes of it.

    Attributes:
        prompt: of it.
        seed: of it.
        boxes: the region, in pixels of the picture; none is the whole.
        size: of the picture in pixels, width and height.
        picture: its file.
        retrained: by method, the page's default first.
        noise: the same change where nothing is left out and only the training's random numbers are others; None where
            that was not trained.
    """

    prompt: str
    seed: int
    boxes: tuple[Box, ...]
    size: tuple[int, int]
    picture: str
    retrained: tuple[Retrained, ...]
    noise: float | None


@dataclass(frozen=True)
class Proof:
    """All that is shown, and where it comes from.

    Attributes:
        version: of the format.
        images: N, of the training set.
        cases: two or three.
        pictures: that were judged in all; shown are those whose loss rose the most, unless others were asked for.
        rises: the mean share by which their loss rises, by method.
        command: that made the results.
        date: when this was written, UTC.
        index: id of the index that named the images.
        model_sha256: of the model that drew the pictures.
        credits: whose drawings are in the pictures, with their licences.
        foreseen: how well unlearning images foresees training without them: rank correlations in words, one for each K.
    """

    version: int
    images: int
    cases: tuple[Case, ...]
    pictures: int
    rises: dict[str, float]
    command: str
    date: str
    index: str
    model_sha256: str
    credits: tuple[str, ...]
    foreseen: tuple[str, ...] = ()

    @property
    def files(self) -> set[str]:
        """Names of all its PNGs."""
        drawn = [each for case in self.cases for each in case.retrained]
        return {case.picture for case in self.cases} | {name for each in drawn for name in (each.strip, each.picture)}


def foreseen_words(foreseen: Sequence[str]) -> str:
    """A sentence about `Proof.foreseen`, where there is something."""
    return (
        f"The rises of loss by unlearning images rank with those by training without them by {' and '.join(foreseen)};"
        " 1 is the same order, 0 is chance."
    )


def read_proof(folder: Path) -> Proof | None:
    """The proof in a folder; None where there is no such folder.

    Raises:
        InputError: a file is missing or damaged, or of another version.
    """
    if not folder.is_dir():
        return None
    path = folder / PROOF
    try:
        told = json.loads(path.read_text(encoding="utf-8"))
        if isinstance(told, dict) and told.get("version") != VERSION:
            raise InputError(
                f"{path} is of version {told.get('version')!r}, this program reads {VERSION}; write it anew"
            )
        proof: Proof = read_as(Proof, told, "proof")
    except (OSError, ValueError) as error:
        raise InputError(f"{path} cannot be read ({error}); write it anew, or delete the folder") from error
    held = {each.name for each in folder.glob("*.png")}
    if missing := sorted(proof.files - held):
        raise InputError(f"{folder} lacks {missing[0]}; write it anew, or delete the folder")
    return proof
