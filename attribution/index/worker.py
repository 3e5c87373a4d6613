"""A process of a cluster: it holds the model, makes blocks of an index, and measures losses of training images."""

import os
import socket
from collections.abc import Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from attribution.batches import in_parts
from attribution.diffusion.overlaid import open_model
from attribution.diffusion.source import ModelFiles
from attribution.diffusion.weights import holding
from attribution.errors import IndexMismatch, InputError
from attribution.index.blocks import within
from attribution.index.crew import ray
from attribution.index.manifest import MANIFEST, Manifest, Record
from attribution.index.steps import STEPS
from attribution.index.stored import Block, open_views
from attribution.index.texts import open_several, open_texts
from attribution.index.work import BuildSettings, Source, Work
from attribution.unlearning.score import EncodedSet, Floats, training_losses

FETCHED = 4  # objects of the cluster's store that a worker keeps


@dataclass(frozen=True)
class Held:
    """The model that workers hold.

    Attributes:
        files: that it is loaded from.
        folder: that relative paths are of, where there is such a one.
        device: that it is on.
        dtype: of its networks.
        threads: that a worker on a CPU computes with: as many as whoever asks, since sums are rounded by their number.
        sha256: that its weights have to have.
    """

    files: ModelFiles
    folder: Path
    device: str
    dtype: torch.dtype
    threads: int
    sha256: str


@dataclass(frozen=True)
class AskedStep:
    """A step of a build, as workers are told of it.

    Attributes:
        key: no other has it.
        name: of the step.
        out: the index's folder.
        folder: in it, that files of steps lie in; see `Source`.
        training: where the training set is in the cluster's store.
        settings: of the build.
        record: of the step, as it was asked for.
        made: the same with what is known once there is work to do.
    """

    key: str
    name: str
    out: Path
    folder: str
    training: Any
    settings: BuildSettings
    record: Record | None
    made: Record | None


@dataclass(frozen=True)
class AskedLosses:
    """Losses of training images, as workers are told of them.

    Attributes:
        path: the index's folder.
        bank: where the noise bank is in the cluster's store.
        weights: likewise, parameters of the U-Net that are other ones than the model's.
    """

    path: Path
    bank: Any
    weights: Any


class Worker:
    """What a process of a cluster does; it is asked for one thing at a time, and nothing depends on what was before.

    Attributes:
        held: the model that it holds, once it was asked to load it.
    """

    def __init__(self, held: Held) -> None:
        self.held = held
        self._begun: tuple[AskedStep, int, Work] | None = None
        self._during = ExitStack()
        self._fetched: dict[Any, Any] = {}

    def load(self) -> None:
        """Load the model.

        Raises:
            IndexMismatch: it has other weights here.
            InputError, WeightsUnavailable: it cannot be had here, see `open_model`.
        """
        with suppress(OSError):
            os.chdir(self.held.folder)
        if self.held.device == "cpu":
            torch.set_num_threads(self.held.threads)
        self.model = open_model(self.held.files, torch.device(self.held.device), self.held.dtype)
        if self.model.sha256 != self.held.sha256:
            raise IndexMismatch(
                f"on {socket.gethostname()} {self.model.source} has weights {self.model.sha256[:12]}, here"
                f" {self.held.sha256[:12]}; all machines need the same model at the same path"
            )

    def block(self, asked: AskedStep, part: int, gap: range, rows: range) -> list[tuple[range, Block]]:
        """Make a block of a step, in several where the device's memory is too small for it.

        Args:
            asked: of which step.
            part: of the rows, that these are in; see `Work`.
            gap: the rows that are lacking.
            rows: those to make.
        """
        work = self._work(asked, part)
        made = in_parts(rows.stop, len(rows), work.block, rows.start)
        kept = (each for some, block in made for each in within(gap, some, block))
        return [(some, on(block, "cpu")) for some, block in kept if not isinstance(block, float)]

    def _work(self, asked: AskedStep, part: int) -> Work:
        """The work of a step, begun unless it is under way, with what is to be in force for a part of it."""
        step, at, work = self._begun or (None, None, None)
        if step is None or work is None or step.key != asked.key:
            self._leave()
            work = self._begin(asked)
        elif at != part:
            self._leave()
        if self._begun is None:
            self._during.enter_context(work.during(part))
            self._begun = asked, part, work
        return work

    def _leave(self) -> None:
        self._begun = None
        self._during.close()

    def _begin(self, asked: AskedStep) -> Work:
        if not (asked.out / MANIFEST).is_file():
            raise InputError(
                f"the index {asked.out} is not to be found on {socket.gethostname()}; the index, the model and the"
                " training data need to be at the same paths on all machines"
            )
        source = Source(asked.out, self.model, self._fetch(asked.training), asked.settings, asked.folder)
        work = STEPS[asked.name].work(source, asked.record)
        if repr(work.made) != repr(asked.made):
            raise IndexMismatch(
                f"{asked.name} is made with {work.made} on {socket.gethostname()}, with {asked.made} here; all machines"
                " need the same files at the same paths"
            )
        return work

    def losses(
        self, asked: AskedLosses, rows: Sequence[int], columns: Sequence[int], views: NDArray[np.integer]
    ) -> Floats:
        """Losses of some training images under the weights asked for: (n, views, columns), in one batch if it fits.

        Args:
            asked: the index, the noises, the weights.
            rows: of the training set.
            columns: of the noise bank.
            views: (v,) of all rows, or (n, v) of each.
        """
        self._leave()
        training = encoded_of(asked.path)
        with holding(self.model, self._fetch(asked.weights)):
            batch, bank = len(rows) * views.shape[-1], self._fetch(asked.bank)
            of = views if views.ndim == 2 else views.tolist()
            chunks = training_losses(self.model, training, bank, rows, columns, of, batch)
            return np.concatenate([losses for _, losses in chunks])

    def _fetch(self, place: Any) -> Any:
        """An object of the cluster's store, kept for a while."""
        if place not in self._fetched:
            self._fetched[place] = ray().get(place)
            for old in list(self._fetched)[:-FETCHED]:
                del self._fetched[old]
        return self._fetched[place]


@lru_cache(1)
def encoded_of(path: Path) -> EncodedSet:
    """What scoring reads of an index's folder.

    Raises:
        IndexMismatch: it is missing or truncated.
    """
    manifest = Manifest.read(path)
    count, views = manifest.data.count, 2 if manifest.settings.data.random_flip else 1
    files = path / manifest.folder
    latents = open_views(files / "latents.npy", count, views, *manifest.model.latent_shape)
    return EncodedSet(latents, open_texts(files, count)[1], open_several(files))


def on(block: Block, device: torch.device | str) -> Block:
    """A block whose sums are on another device; what else it may be is on none."""
    if not isinstance(block, dict):
        return block
    return {name: each.to(device) if isinstance(each, torch.Tensor) else each for name, each in block.items()}  # type: ignore[return-value]
