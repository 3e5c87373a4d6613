"""The manifest of an index: what it was made of and with, what is finished, and how far the rest is.

One typed, frozen object that reads, checks and writes itself. It is read from JSON strictly: a key that is missing or
unknown, or a value of another kind, makes it the manifest of another program.
"""

import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal, TypeVar

from attribution.diffusion.noise import NoiseSettings
from attribution.diffusion.source import ModelFiles
from attribution.diffusion.weights import WeightSubset
from attribution.errors import IndexMismatch
from attribution.files import write_whole
from attribution.index.checksums import Checksums
from attribution.index.data import DataSettings
from attribution.index.earlier import EarlierRecord
from attribution.index.lists import ListRecord
from attribution.index.places import located
from attribution.index.typed import ADDED, read_as, refuse_differing, told_of
from attribution.unlearning.fisher import FisherSettings
from attribution.unlearning.projection import GradientSettings

FORMAT_VERSION = 2
MANIFEST = "manifest.json"
ADVICE = "name a folder that `python -m attribution index` made"
Order = Literal["permutation", "modulo"]  # "modulo" is of indexes that format version 1 made


@dataclass(frozen=True)
class ModelRecord:
    """The model that an index is of; where it lies is no part of what it is.

    Attributes:
        source: the pipeline's folder or hub id, or that and what is laid over it; what lies beside the index is named
            relative to it.
        sha256: of all weights.
        latent_shape: (C, h, w) of one picture's latents.
        train_timesteps: of the noise schedule.
        prediction_type: what the U-Net predicts.
    """

    source: str | ModelFiles = field(compare=False)
    sha256: str
    latent_shape: tuple[int, int, int]
    train_timesteps: int
    prediction_type: str


@dataclass(frozen=True)
class DataRecord:
    """The training set that an index is of: how many images, and a hash of them."""

    count: int
    sha256: str


@dataclass(frozen=True)
class IndexSettings:
    """All settings that what every index holds depends on.

    Attributes:
        data: where the training set is, and how it is read; a folder beside the index is named relative to it.
        noise: the bank that losses are measured with.
        fisher: the samples of the Fisher information.
    """

    data: DataSettings
    noise: NoiseSettings
    fisher: FisherSettings


@dataclass(frozen=True, kw_only=True)
class FisherRecord(FisherSettings):
    """How a sum over samples was made; `order` is how the samples were chosen."""

    samples: int
    order: Order = field(default="permutation", compare=False)


@dataclass(frozen=True)
class FeatureRecord:
    """How a feature was made.

    Attributes:
        weights: the network's folder, file or hub id; what lies beside the index is named relative to it.
        shape: of the array; None of a mapper, which has none.
        sha256: of the network's weights, known once it is loaded; "" where an earlier version did not ask.
        distilled: what it was distilled from, as JSON; "" of a network that was not.
    """

    weights: str
    shape: tuple[int, ...] | None = field(default=None, compare=False)
    sha256: str = field(default="", metadata=ADDED)
    distilled: str = field(default="", compare=False, metadata=ADDED)


@dataclass(frozen=True, kw_only=True)
class GradientRecord(GradientSettings):
    """How projected gradients were made.

    Attributes:
        weights: what was differentiated by.
        checkpoints: the pipelines whose U-Nets they are of; None is the index's own model.
        scale: that they are multiplied by, a power of two, so that float16 holds them.
        shape: of the array.
        sha256: of the U-Net of each checkpoint but the index's own model, known once they are loaded.
    """

    weights: WeightSubset
    checkpoints: tuple[str | None, ...]
    scale: float = field(default=1.0, compare=False)
    shape: tuple[int, ...] = field(default=(), compare=False)
    sha256: tuple[str, ...] = field(default=(), metadata=ADDED)

    def located(self, folder: Path) -> list[str | None]:
        """The checkpoints, as they are found from an index's folder."""
        return [None if source is None else located(source, folder) for source in self.checkpoints]


@dataclass(frozen=True)
class ImportRecord:
    """What was read from a file instead of being computed: the file's hash."""

    sha256: str


Record = FisherRecord | FeatureRecord | GradientRecord | ImportRecord | ListRecord
R = TypeVar("R", FisherRecord, FeatureRecord, GradientRecord, ListRecord)


@dataclass(frozen=True)
class StepRecord:
    """How far a step is, and what it is made with.

    Attributes:
        finished: whether it is whole.
        blocks: rows that are done of a step that is not, as first and one past the last.
        made: its own settings; None where the index's are all there are.
        stored: checksums of what it wrote, once it is whole; None where earlier versions made it, or it wrote nothing.
        since: the training set that it was made of, where the index's was changed since and it was kept.
    """

    finished: bool = False
    blocks: tuple[tuple[int, int], ...] = ()
    made: Record | None = None
    stored: Checksums | None = field(default=None, metadata=ADDED)
    since: EarlierRecord | None = field(default=None, metadata=ADDED)

    @property
    def done(self) -> int:
        """How many rows are done of a step that is not finished."""
        return sum(end - first for first, end in self.blocks)

    def with_block(self, rows: range) -> "StepRecord":
        """The same with some more rows done."""
        joined: list[tuple[int, int]] = []
        for first, end in sorted([*self.blocks, (rows.start, rows.stop)]):
            if joined and first <= joined[-1][1]:
                first, end = joined[-1][0], max(end, joined.pop()[1])
            joined.append((first, end))
        return replace(self, blocks=tuple(joined))

    def gaps(self, rows: range) -> Iterator[range]:
        """The parts of `rows` that are not done."""
        start = rows.start
        for first, end in self.blocks:
            if start < min(first, rows.stop):
                yield range(start, min(first, rows.stop))
            start = max(start, end)
        if start < rows.stop:
            yield range(start, rows.stop)


@dataclass(frozen=True)
class Manifest:
    """All that an index says of itself.

    Attributes:
        format_version: of the folder.
        id: twelve hexadecimal digits, given when the build begins: the same for the same model, data and settings,
            and for the same `kept`.
        model: that it is of.
        data: that it is of.
        settings: that what every index holds depends on.
        steps: by the name of a step, which is its file's without the ending.
        folder: in the index's, that the files of steps lie in since it was updated; "" where they lie in its own.
    """

    format_version: int
    id: str
    model: ModelRecord
    data: DataRecord
    settings: IndexSettings
    steps: dict[str, StepRecord] = field(default_factory=dict)
    folder: str = field(default="", metadata=ADDED)

    @classmethod
    def begin(
        cls,
        model: ModelRecord,
        data: DataRecord,
        settings: IndexSettings,
        kept: Mapping[str, EarlierRecord] | None = None,
    ) -> "Manifest":
        """Of an index that nothing is finished of; `kept` are the steps that will be of earlier training sets."""
        made_of = [told_of(part) for part in (model, data, replace(settings, data=settings.data.anywhere()))]
        made_of[0].pop("source")
        made_of += [told_of(dict(kept))] if kept else []
        name = hashlib.sha256(json.dumps(made_of, sort_keys=True, default=str).encode()).hexdigest()[:12]
        return cls(FORMAT_VERSION, name, model, data, settings)

    @classmethod
    def read(cls, folder: Path) -> "Manifest":
        """The manifest of an index folder.

        Raises:
            IndexMismatch: there is none, or it is damaged or not of this format version.
        """
        try:
            told = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
            version = told["format_version"]
            if version == FORMAT_VERSION:
                manifest: Manifest = read_as(cls, told, "manifest")
                return manifest
        except OSError as error:
            raise IndexMismatch(f"{folder} is not an index: it has no {MANIFEST}; {ADVICE}") from error
        except (ValueError, KeyError, TypeError) as error:
            why = f" ({error})" if type(error) is ValueError else ""
            raise IndexMismatch(f"{folder / MANIFEST} is damaged or of another program{why}; {ADVICE}") from error
        newer = isinstance(version, int) and version > FORMAT_VERSION
        raise IndexMismatch(
            f"{folder} has format version {version!r}, this program reads {FORMAT_VERSION};"
            f" {'update this program, or ' if newer else ''}build it anew"
        )

    def write(self, folder: Path) -> None:
        """Write it, whole or not at all."""
        write_whole(folder / MANIFEST, self._told())

    def is_in(self, folder: Path) -> bool:
        """Whether a folder's manifest is this one, to the byte."""
        return (path := folder / MANIFEST).is_file() and path.read_bytes() == self._told()

    def _told(self) -> bytes:
        return (json.dumps(told_of(self), indent=1, default=str) + "\n").encode()

    @property
    def source(self) -> str:
        """Where the training set was read from."""
        return str(self.settings.data.dataset_name or self.settings.data.train_data_dir)

    @property
    def kept(self) -> dict[str, EarlierRecord]:
        """By step, the earlier training sets that some are of."""
        return {name: step.since for name, step in self.steps.items() if step.since}

    def finished(self, step: str) -> bool:
        """Whether a step is done."""
        return self.step(step).finished

    def step(self, name: str) -> StepRecord:
        """How far a step is; one that was not begun has nothing done."""
        return self.steps.get(name, StepRecord())

    def having(self, name: str, step: StepRecord) -> "Manifest":
        """The same with another record of one step."""
        return replace(self, steps={**self.steps, name: step})

    def lacking(self, name: str) -> "Manifest":
        """The same with no record of one step."""
        return replace(self, steps={key: step for key, step in self.steps.items() if key != name})

    def made(self, name: str, kind: type[R]) -> R:
        """What a finished step was made with.

        Raises:
            IndexMismatch: it is not finished, or its record is of another kind.
        """
        step = self.step(name)
        if not step.finished or not isinstance(step.made, kind):
            raise IndexMismatch(f"the index's manifest does not say how {name} was made; build the index anew")
        return step.made

    def refuse_other(self, wanted: "Manifest", folder: Path) -> None:
        """Refuse to go on with an index of another model, other data or other settings; names both values."""
        end = "name another --out folder, or the same settings to go on with this one"
        held, now = (replace(each, data=each.data.of_pictures()) for each in (self.settings, wanted.settings))
        parts = ("model", self.model, wanted.model), ("data", self.data, wanted.data), ("settings", held, now)
        for part, was, new in parts:
            refuse_differing(f"{folder} was built with {part}", was, new, end)

    def refuse_other_step(self, name: str, wanted: Record | None, folder: Path) -> None:
        """Refuse to make a step with other settings than the finished one was made with; names both values."""
        held = self.step(name)
        if held.finished and wanted is not None:
            end = "use the same settings, or another index"
            refuse_differing(f"{folder} holds {name} with", held.made, wanted, end)
