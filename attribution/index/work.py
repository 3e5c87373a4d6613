"""What a step of a build is given, and what it gives back: settings, the source, the work that makes its blocks."""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from attribution.batches import batches
from attribution.diffusion.memory import AtOnce
from attribution.diffusion.noise import NoiseBank, NoiseSettings
from attribution.diffusion.pipeline import Model
from attribution.index.data import DataSettings, TrainingSet
from attribution.index.lists import ListSettings
from attribution.index.manifest import Record
from attribution.index.stored import Block, Sums, open_views
from attribution.unlearning.fisher import FisherSettings
from attribution.unlearning.projection import GradientSettings
from attribution.unlearning.score import EncodedSet


@dataclass(frozen=True)
class BuildSettings:
    """What every index holds, and how it is made.

    Attributes:
        data: the training set.
        noise: the noises that each training loss is measured with.
        fisher: the samples of the Fisher information.
        batch: predictions in one call of the U-Net; it changes nothing but the time and memory that a build takes.
        fisher_file: the Fisher information's diagonal, such as a published fisher_info.pt, read instead of computed.
        latents_file: the latents of the training set, read instead of made; see `index.imported` for both formats.
    """

    data: DataSettings = field(default_factory=DataSettings)
    noise: NoiseSettings = field(default_factory=NoiseSettings)
    fisher: FisherSettings = field(default_factory=FisherSettings)
    batch: int = 64
    fisher_file: Path | None = None
    latents_file: Path | None = None


@dataclass(frozen=True)
class ExtendSettings:
    """What is added to what every index holds.

    Attributes:
        fisher_all: the diagonal Fisher information of all weights, to unlearn other subsets.
        ekfac: EK-FAC of the index's weights, for the method "unlearning+".
        features: for the methods of these names: clip, clip-text, dino, dinov2, clip-abc, dino-abc, fast.
        feature_weights: folder, file or hub id by feature; by default the published ones.
        gradients: loss (for trak and journey-trak), d-trak, influence, influence+ (needs EK-FAC).
        projection: of the gradients.
        checkpoints: pipelines whose U-Nets the gradients are averaged over; none is the index's model alone.
        approximate: features that the index holds, or is to hold, whose vectors are put into lists, of which a search
            looks at the nearest alone: clip, clip-text, dino, dinov2; for very many images. Needs FAISS.
        nearest: these lists.
    """

    fisher_all: bool = False
    ekfac: bool = False
    features: tuple[str, ...] = ()
    feature_weights: dict[str, str] = field(default_factory=dict)
    gradients: tuple[str, ...] = ()
    projection: GradientSettings = field(default_factory=GradientSettings)
    checkpoints: tuple[str, ...] = ()
    approximate: tuple[str, ...] = ()
    nearest: ListSettings = field(default_factory=ListSettings)


@dataclass(frozen=True)
class Source:
    """What steps are made from.

    Attributes:
        out: the index's folder.
        model: the index's.
        training: the images that rows are about.
        settings: of the build.
        folder: in the index's, that files of steps lie in; "" where they lie in the index's own.
    """

    out: Path
    model: Model
    training: TrainingSet
    settings: BuildSettings
    folder: str = ""

    @property
    def files(self) -> Path:
        """Where the files of steps lie."""
        return self.out / self.folder

    @property
    def views(self) -> int:
        """2 where mirrors were trained on, else 1."""
        return 2 if self.settings.data.random_flip else 1

    @cached_property
    def at_once(self) -> AtOnce:
        """How many pictures and predictions a call is given, at most."""
        most = max(map(len, self.training.several.values()), default=1)
        return AtOnce.of(self.model, self.settings.batch, most)

    def bank(self, settings: NoiseSettings) -> NoiseBank:
        """A noise bank for the model."""
        return NoiseBank.draw(settings, self.model.latent_shape, self.model.train_timesteps)

    @cached_property
    def encoded(self) -> EncodedSet:
        """The latents, once they are there, with their captions."""
        shape = (len(self.training), self.views, *self.model.latent_shape)
        return EncodedSet(open_views(self.files / "latents.npy", *shape), self.training.captions, self.training.several)


Part = float | Block  # the share of a block that is done, after each call of a network; at last the block itself


@dataclass(frozen=True)
class Work:
    """How a step's blocks are made.

    Attributes:
        count: rows in all, or samples.
        batch: rows of a block, at most.
        block: makes one, part by part: the rows' numbers, or sums over them, or files.
        row: the training image that a row is about.
        made: what the step is made with, with what is known only now.
        shape: of the array that the blocks fill.
        dtype: of that array.
        total: makes what is stored of the sums over all samples.
        parts: the rows are cut into as many equal parts, of which a block never holds two.
        during: entered with a part's number while its blocks are made.
        even: blocks past the last row are asked for, so that all are of one size.
        packed: the blocks are lists of small files, one a row, which are put together into one.
        size: bytes of files that are made in one block of many calls.
    """

    count: int
    batch: int
    block: Callable[[range], Iterator[Part]]
    row: Callable[[int], int] = lambda row: row
    made: Record | None = None
    shape: tuple[int, ...] | None = None
    dtype: type[np.number] = np.float16
    total: Callable[[Sums], Sums] | None = None
    parts: int = 1
    during: Callable[[int], AbstractContextManager[None]] = lambda _part: nullcontext()
    even: bool = False
    packed: bool = False
    size: int = 0


@dataclass(frozen=True)
class Step:
    """A part of an index.

    Attributes:
        record: the settings that it depends on, besides those that the whole index does.
        work: what there is to do.
        scaffold: a step that is made first, and not kept.
    """

    record: Callable[[Source, ExtendSettings], Record | None]
    work: Callable[[Source, Any], Work]
    scaffold: str | None = None


def in_calls(rows: range, most: int, call: Callable[[range], NDArray[np.floating]]) -> Iterator[Part]:
    """A block of an array from calls for at most so many rows each."""
    made = []
    for some in batches(rows.stop, most, rows.start):
        made.append(call(some))
        if some.stop < rows.stop:
            yield (some.stop - rows.start) / len(rows)
    yield np.concatenate(made)


def in_one(make: Callable[[range], Block]) -> Callable[[range], Iterator[Part]]:
    """A block that is made by one call."""
    return lambda rows: iter((make(rows),))
