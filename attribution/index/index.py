"""An index: what was computed once about a training set and a model, in one folder, opened memory-mapped.

manifest.json         format version, model, data, every setting, what is finished, and where, since an update
captions.arrow        id, caption; where images have several, captions: all of them, over which losses are averaged
thumbnails.bin        PNGs or JPEGs one after another; where each row's ends is in thumbnails.npy, (N,) int64
latents.npy           (N, views, C, h, w) float16: image, and mirror where those were trained on
base_losses.npy       (N, views, S) float32 under the pretrained weights
fisher.safetensors    diagonal Fisher information by parameter name
and, where they were asked for:
lists/, listed/           vectors list by list, see `index.listed`
fisher-all.safetensors    diagonal Fisher information of all weights, in eight bits
ekfac.safetensors         EK-FAC: <parameter>.inputs, .outputs, .information
features/<name>.npy       (N, views, D) float16; (N, 1, D) of captions
gradients/<name>.npy      (checkpoints, N, views or 1, dimension) float16, projected, averaged over the noise bank
gradients/influence+.npy  (checkpoints, N, views, dimension / 8) uint8, signs of whitened ones, see `unlearning.signs`
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from attribution.diffusion.noise import NoiseBank, drawn_anew
from attribution.diffusion.overlaid import open_model
from attribution.diffusion.pipeline import Model
from attribution.diffusion.source import ModelFiles
from attribution.diffusion.weights import WeightSubset, parameters
from attribution.errors import IndexMismatch, InputError, WeightsUnavailable
from attribution.index.features import Encoder
from attribution.index.found import file_of
from attribution.index.manifest import FeatureRecord, GradientRecord, Manifest, Record
from attribution.index.pictures import TrainingPictures, open_thumbnails
from attribution.index.places import located, located_data, located_model
from attribution.index.steps import REQUIRED
from attribution.index.stored import load_tensors, open_array, open_views, tensor_shapes
from attribution.index.texts import open_several, open_texts
from attribution.unlearning.ekfac import Eigenbasis
from attribution.unlearning.fisher import Information, decompress
from attribution.unlearning.score import EncodedSet, Floats, Losses, losses_by_call
from attribution.unlearning.signs import SignProjection
from attribution.unlearning.step import Curvature

FLOOR = "floor.json"
SEARCH = "search.json"


@dataclass(frozen=True)
class Index:
    """An opened index; arrays stay on disk until they are read.

    Attributes:
        path: its folder.
        manifest: everything that it was made with.
        ids: what to look each training image up by.
        captions: of each training image.
        latents: (N, views, C, h, w): of each image, and of its mirror where mirrors were trained on.
        base_losses: (N, views, S).
        pictures: the training pictures, and their thumbnails.
        losses_by: measures losses of the training images: here, or elsewhere, see `index.cluster`.
    """

    path: Path
    manifest: Manifest
    ids: Sequence[str]
    captions: Sequence[str]
    latents: NDArray[np.floating]
    base_losses: Floats
    pictures: TrainingPictures
    losses_by: Losses = losses_by_call

    @classmethod
    def open(cls, path: Path, thumbnails: Path | None = None, pictures: Path | None = None) -> "Index":
        """Open a finished index.

        Args:
            path: its folder.
            thumbnails: of an index that holds none: a folder of PNGs, named by their rows in eight digits.
            pictures: the training pictures' folder, where it is not the one that the index was built from.

        Raises:
            IndexMismatch: it is missing, foreign, unfinished or truncated.
        """
        manifest = Manifest.read(path)
        needed = [step for step in REQUIRED if step != "thumbnails" or thumbnails is None]
        if unfinished := [step for step in needed if not manifest.finished(step)]:
            raise IndexMismatch(f"{path} is unfinished ({', '.join(unfinished)}); run the same index command again")
        count, noise, files = manifest.data.count, manifest.settings.noise, path / manifest.folder
        ids, captions = open_texts(files, count)
        views = 2 if manifest.settings.data.random_flip else 1
        latents = open_views(files / "latents.npy", count, views, *manifest.model.latent_shape)
        losses = open_views(files / "base_losses.npy", count, views, noise.timesteps * noise.noises)
        tensor_shapes(files / "fisher.safetensors")  # refuses now what is damaged
        data = located_data(manifest.settings.data, path)
        data = replace(data, dataset_name=None, train_data_dir=pictures) if pictures else data
        shown = TrainingPictures(open_thumbnails(thumbnails or files / "thumbnails", count), data, ids)
        return cls(path, manifest, ids, captions, latents, losses, shown)

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def id(self) -> str:
        """A short name of what the index was made of and with."""
        return self.manifest.id

    def file(self, name: str) -> Path:
        """Where a file of its steps lies; raises IndexMismatch where the index was updated since it was opened."""
        return file_of(self.path, self.manifest, name)

    @property
    def model_files(self) -> ModelFiles:
        """The pipeline, and what is laid over it; relative paths are looked for beside the index first."""
        return located_model(self.manifest.model.source, self.path)

    @property
    def weights(self) -> WeightSubset:
        """The subset that the Fisher information is of."""
        return self.manifest.settings.fisher.weights

    @property
    def center_crop(self) -> bool:
        """Whether pictures are cut to their middle square, or squeezed."""
        return self.manifest.settings.data.center_crop

    @property
    def views(self) -> tuple[int, ...]:
        """(0, 1) where mirrors were trained on, else (0,)."""
        return (0, 1) if self.manifest.settings.data.random_flip else (0,)

    @cached_property
    def fisher(self) -> dict[str, Tensor]:
        """The Fisher information's diagonal, by parameter name."""
        return load_tensors(self.file("fisher.safetensors"))

    @cached_property
    def encoded(self) -> EncodedSet:
        """What scoring reads."""
        return EncodedSet(self.latents, self.captions, open_several(self.file("")))

    @property
    def artifacts(self) -> dict[str, Record]:
        """What was added to the index, and how it was made, by file name without its ending."""
        added = {name: step for name, step in self.manifest.steps.items() if name not in REQUIRED and step.finished}
        return {name: step.made for name, step in added.items() if step.made is not None}

    def require_information(self, names: Iterable[str], curvature: Curvature) -> None:
        """Refuse to go on without the Fisher information of some parameters; only names are read.

        Raises:
            InputError: the index holds it not for all of them; says how to add it.
        """
        if curvature == "none":
            return
        parts = ("ekfac",) if curvature == "ek-fac" else ("fisher", "fisher-all")
        held = {name for part in parts for name in self._tensor_names(part)}
        if missing := [name for name in names if name not in held]:
            flag = "--ekfac" if curvature == "ek-fac" else "--fisher_all"
            raise InputError(
                f"the index holds no {curvature} Fisher information of {len(missing)} of these weights"
                f" ({missing[0]}, ...); it has that of {self.weights}; add more with"
                f" `python -m attribution index ... {flag}`"
            )

    def information(self, names: Iterable[str], curvature: Curvature) -> dict[str, Information] | None:
        """The Fisher information of some parameters; None where none is wanted; see `require_information`."""
        names = list(names)
        self.require_information(names, curvature)
        if curvature == "none":
            return None
        if curvature == "ek-fac":
            return {name: self._eigenbases[name] for name in names}
        return {name: self.fisher[name] if name in self.fisher else decompress(self._wide, name) for name in names}

    def _tensor_names(self, step: str) -> set[str]:
        """The parameters that a file of tensors is about."""
        if not self.manifest.finished(step):
            return set()
        keys = tensor_shapes(self.file(f"{step}.safetensors")).keys()
        return {key.rpartition(".")[0] for key in keys} if step == "ekfac" else set(keys)

    @cached_property
    def _wide(self) -> dict[str, Tensor]:
        return load_tensors(self.file("fisher-all.safetensors"))

    @cached_property
    def signs(self) -> SignProjection:
        """Which numbers of whitened gradients `influence+` takes; raises what `require` does."""
        made = self.gradients("influence+")
        return SignProjection.like(self._eigenbases, made.dimension, made.whitening)

    @cached_property
    def _eigenbases(self) -> dict[str, Eigenbasis]:
        return Eigenbasis.all_of(load_tensors(self.file("ekfac.safetensors")))

    def require(self, artifact: str) -> None:
        """Refuse to go on without something that may be added to an index, such as "features/dino".

        Raises:
            InputError: it was not added; says how to.
        """
        if artifact not in self.artifacts:
            kind, _, name = artifact.partition("/")
            held = [key.partition("/")[2] for key in self.artifacts if key.startswith(f"{kind}/")]
            flag = f"--{kind} {name}".rstrip()
            raise InputError(
                f"the index {self.path.name!r} holds no {artifact}; of {kind} it has {', '.join(held) or 'none'};"
                f" add it with `python -m attribution index ... {flag}`"
            )

    def array(self, artifact: str) -> NDArray[np.floating]:
        """An array that was added to the index, memory-mapped.

        Raises:
            InputError: it was not added.
            IndexMismatch: it is missing or truncated.
        """
        self.require(artifact)
        made = self.artifacts[artifact]
        if isinstance(made, FeatureRecord | GradientRecord) and made.shape:
            return open_array(self.file(f"{artifact}.npy"), made.shape)
        raise IndexMismatch(f"the index's manifest does not say what shape {artifact} has; build the index anew")

    def bytes_of(self, part: str) -> int:
        """Size on disk of a part of the index, such as "latents" or "features/dino"; 0 where there is none."""
        if part == "thumbnails":
            return self.pictures.thumbnails.bytes
        return sum(path.stat().st_size for path in self.file("").glob(f"{part}.*"))

    def feature_weights(self, name: str) -> str:
        """The folder, file or hub id of a feature's network; a relative path is looked for beside the index first."""
        self.require(f"features/{name}")
        return located(self.manifest.made(f"features/{name}", FeatureRecord).weights, self.path)

    def check_network(self, name: str, network: Encoder) -> None:
        """Refuse another network than a feature was made with; raises what `require` does, too.

        Raises:
            IndexMismatch: its weights have another hash; both are named.
        """
        source, known = self.feature_weights(name), self.manifest.made(f"features/{name}", FeatureRecord).sha256
        if known and network.sha256 != known:
            raise IndexMismatch(
                f"features/{name} of {self.path} were made with a network {known[:12]}, but {source} has weights"
                f" {network.sha256[:12]}; put that one back, or build the index anew"
            )

    def gradients(self, name: str) -> GradientRecord:
        """How some projected gradients were made; raises what `require` does."""
        self.require(f"gradients/{name}")
        return self.manifest.made(f"gradients/{name}", GradientRecord)

    def checkpoints(self, gradients: str) -> list[str | None]:
        """The pipelines whose U-Nets some gradients are of, in order; None is the index's own model."""
        return self.gradients(gradients).located(self.path)

    def bank(self, model: Model, noise_seed: int | None = None) -> NoiseBank:
        """The noise bank that the base losses were measured with; with a noise seed, one of other noises."""
        own = self.manifest.settings.noise
        noise = replace(own, seed=drawn_anew(own.seed, noise_seed))
        return NoiseBank.draw(noise, model.latent_shape, model.train_timesteps)

    def check(self, model: Model) -> None:
        """Refuse a model other than the one that the index was made with.

        Raises:
            IndexMismatch: the weights' hashes differ (both are named), or the Fisher information is of other weights.
        """
        made_with = self.manifest.model.sha256
        if model.sha256 != made_with:
            raise IndexMismatch(
                f"the index was made with model {made_with[:12]}, but {model.source} has weights {model.sha256[:12]};"
                " build an index for this model, or name the model of the index"
            )
        shapes = {name: tuple(parameter.shape) for name, parameter in parameters(model, self.weights).items()}
        if shapes != tensor_shapes(self.file("fisher.safetensors")):
            raise IndexMismatch(
                f"the Fisher information in {self.path} is not of {model.source}'s {self.weights} weights; build anew"
            )

    def thumbnail(self, row: int) -> bytes:
        """The picture of a row, a PNG or JPEG, see `pictures.packed_thumbnail`."""
        return self.pictures.thumbnails[row]

    def picture(self, row: int) -> Image.Image:
        """The training image of a row, RGB; where that is not there any more, its thumbnail."""
        return self.pictures.picture(row)


def open_index(path: Path) -> tuple[Model, Index]:
    """An index and its model.

    Raises:
        IndexMismatch: the index cannot be used, or is of another model.
        WeightsUnavailable: the model cannot be had.
    """
    index = Index.open(path)
    try:
        model = open_model(index.model_files)
    except WeightsUnavailable as error:
        told = "if the index's model was moved, run the index command again with its new place"
        raise WeightsUnavailable(f"{error}; {told}") from error
    index.check(model)
    return model, index
