"""An index: what was computed once about a training set and a model, in one folder, opened memory-mapped.

manifest.json         format version, model, data, every setting, what is finished
captions.parquet      id, caption
thumbnails/           one PNG a row (absent for the embedded scenes, which are composed into a cache)
latents.npy           (N, 2, C, h, w) float16: image, mirror
base_losses.npy       (N, 2, S) float32 under the pretrained weights
fisher.safetensors    diagonal Fisher information by parameter name

and, where they were asked for (`extend.py`):

fisher-all.safetensors    diagonal Fisher information of all weights, in eight bits
ekfac.safetensors         EK-FAC: <parameter>.inputs, .outputs, .information
features/<name>.npy       (N, 2, D) float16: image, mirror; (N, 1, D) of captions
gradients/<name>.npy      (checkpoints, N, 2 or 1, dimension) float16, projected, averaged over the noise bank
"""

import hashlib
import json
import os
import tempfile
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow
import pyarrow.parquet as parquet
from numpy.typing import NDArray
from PIL import Image
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from torch import Tensor

from attribution.diffusion.noise import NoiseBank, NoiseSettings
from attribution.diffusion.pipeline import Model
from attribution.diffusion.weights import WeightSubset, parameters
from attribution.errors import IndexMismatch, InputError
from attribution.index.data import SCENES
from attribution.index.features import pixel_vectors
from attribution.scenes import compose
from attribution.unlearning.ekfac import Eigenbasis
from attribution.unlearning.fisher import Information, decompress
from attribution.unlearning.score import EncodedSet, Floats
from attribution.unlearning.step import Curvature

FORMAT_VERSION = 1
THUMBNAIL_SIDE = 128  # px, at most
STEPS = ("captions", "thumbnails", "latents", "base_losses", "fisher")
FLOOR = "floor.json"
MANIFEST_PARTS = {"model": dict, "data": dict, "settings": dict, "finished": list, "progress": dict}
EMBEDDED = Path(__file__).parents[2] / "assets" / "emoji-scenes" / "index"


def cache_folder() -> Path:
    """Where composed thumbnails go: ATTRIBUTION_CACHE, else XDG_CACHE_HOME, else ~/.cache, else a temporary folder."""
    base = os.environ.get("ATTRIBUTION_CACHE") or os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    folder = Path(base) / "attribution-by-unlearning"
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError:
        folder = Path(tempfile.mkdtemp(prefix="attribution-by-unlearning-"))
    return folder


def read_manifest(path: Path) -> dict[str, Any]:
    """The manifest of an index folder.

    Raises:
        IndexMismatch: there is none, or it is not of this format version.
    """
    advice = "name a folder that `python -m attribution index` made"
    try:
        manifest = json.loads((path / "manifest.json").read_text(encoding="utf-8"))
        version = manifest["format_version"]
    except OSError as error:
        raise IndexMismatch(f"{path} is not an index: it has no manifest.json; {advice}") from error
    except (ValueError, KeyError, TypeError) as error:
        raise IndexMismatch(f"{path / 'manifest.json'} is damaged or of another program; {advice}") from error
    if version != FORMAT_VERSION:
        raise IndexMismatch(
            f"{path} has format version {version!r}, this program reads {FORMAT_VERSION}; build it anew"
        )
    if not all(isinstance(manifest.get(part), kind) for part, kind in MANIFEST_PARTS.items()):
        raise IndexMismatch(f"{path / 'manifest.json'} is damaged or of another program; {advice}")
    return dict(manifest)


@dataclass(frozen=True)
class Index:
    """An opened index; arrays stay on disk until they are read.

    Attributes:
        path: its folder.
        manifest: everything that it was made with.
        ids: what to look each training image up by.
        captions: of each training image.
        latents: (N, 2, C, h, w).
        base_losses: (N, 2, S).
        fisher: by parameter name.
        thumbnails: folder of the pictures shown, one PNG a row.
    """

    path: Path
    manifest: dict[str, Any]
    ids: list[str]
    captions: list[str]
    latents: NDArray[np.floating]
    base_losses: Floats
    fisher: dict[str, Tensor]
    thumbnails: Path

    @classmethod
    def open(cls, path: Path = EMBEDDED) -> "Index":
        """Open a finished index.

        Raises:
            IndexMismatch: it is missing, foreign, unfinished or truncated.
        """
        manifest = read_manifest(path)
        unfinished = [step for step in STEPS if step not in manifest["finished"]]
        if unfinished:
            raise IndexMismatch(f"{path} is unfinished ({', '.join(unfinished)}); run the same index command again")
        count, columns = manifest["data"]["count"], manifest["settings"]["noise"]
        ids, captions = _read_captions(path / "captions.parquet", count)
        shape = (count, 2, *manifest["model"]["latent_shape"])
        latents = open_array(path / "latents.npy", shape)
        losses = open_array(path / "base_losses.npy", (count, 2, columns["timesteps"] * columns["noises"]))
        fisher = _load_tensors(path / "fisher.safetensors")
        return cls(path, manifest, ids, captions, latents, losses, fisher, _thumbnails(path, manifest))

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def id(self) -> str:
        """A short name of what the index was made of and with."""
        made_of = json.dumps([self.manifest[part] for part in ("model", "data", "settings")], sort_keys=True)
        return hashlib.sha256(made_of.encode()).hexdigest()[:12]

    @property
    def model_source(self) -> str:
        """The pipeline's folder or hub id; a relative path is looked for beside the index first."""
        return self._beside(str(self.manifest["model"]["id"]))

    @property
    def weights(self) -> WeightSubset:
        """The subset that the Fisher information is of."""
        subset: WeightSubset = self.manifest["settings"]["fisher"]["weights"]
        return subset

    @property
    def center_crop(self) -> bool:
        """Whether pictures are cut to their middle square, or squeezed."""
        return bool(self.manifest["settings"]["data"]["center_crop"])

    @property
    def views(self) -> tuple[int, ...]:
        """(0, 1) where mirrors were trained on, else (0,)."""
        return (0, 1) if self.manifest["settings"]["data"]["random_flip"] else (0,)

    @property
    def encoded(self) -> EncodedSet:
        """What scoring reads."""
        return EncodedSet(self.latents, self.captions)

    @property
    def artifacts(self) -> dict[str, dict[str, Any]]:
        """Settings of what was added to the index, by file name without its ending."""
        return dict(self.manifest.get("artifacts", {}))

    @cached_property
    def floor(self) -> dict[str, Any] | None:
        """What `measure_floor` wrote: `method`, `multiple`, `multiples`; None where it was not measured.

        Raises:
            IndexMismatch: the file is damaged.
        """
        path = self.path / FLOOR
        if not path.is_file():
            return None
        try:
            told = json.loads(path.read_text(encoding="utf-8"))
            return {"method": str(told["method"]), "multiple": float(told["multiple"]), "multiples": told["multiples"]}
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise IndexMismatch(f"{path} is damaged; measure it anew: python -m attribution floor") from error

    def require_information(self, names: Iterable[str], curvature: Curvature) -> None:
        """Refuse to go on without the Fisher information of some parameters; only names are read.

        Raises:
            InputError: the index holds it not for all of them; says how to add it.
        """
        if curvature == "none":
            return
        diagonal = {*self._tensor_names("fisher-all"), *self.fisher}
        held = self._tensor_names("ekfac") if curvature == "ek-fac" else diagonal
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

    def _tensor_names(self, artifact: str) -> set[str]:
        """The parameters that an added file of tensors is about."""
        if artifact not in self.artifacts:
            return set()
        path = self.path / f"{artifact}.safetensors"
        try:
            with safe_open(path, framework="pt") as file:
                keys = set(file.keys())
        except (OSError, SafetensorError) as error:
            raise IndexMismatch(f"{path} is missing or damaged; build the index anew") from error
        return {key.rpartition(".")[0] for key in keys} if artifact == "ekfac" else keys

    @cached_property
    def _wide(self) -> dict[str, Tensor]:
        return self._tensors("fisher-all")

    @cached_property
    def _eigenbases(self) -> dict[str, Eigenbasis]:
        tensors = self._tensors("ekfac")
        names = {key.rpartition(".")[0] for key in tensors}
        parts = ("inputs", "outputs", "information")
        return {name: Eigenbasis(*(tensors[f"{name}.{part}"].float() for part in parts)) for name in sorted(names)}

    def _tensors(self, artifact: str) -> dict[str, Tensor]:
        return _load_tensors(self.path / f"{artifact}.safetensors") if artifact in self.artifacts else {}

    def require(self, artifact: str) -> None:
        """Refuse to go on without something that may be added to an index, such as "features/dino".

        Raises:
            InputError: it was not added; says how to.
        """
        if artifact not in self.artifacts:
            kind, _, name = artifact.partition("/")
            held = [key.partition("/")[2] for key in self.artifacts if key.startswith(f"{kind}/")]
            raise InputError(
                f"the index {self.path.name!r} holds no {artifact}; of {kind} it has {', '.join(held) or 'none'};"
                f" add it with `python -m attribution index ... --{kind} {name}`".rstrip("` ")
                + "`"
            )

    def array(self, artifact: str) -> NDArray[np.floating]:
        """An array that was added to the index, memory-mapped.

        Raises:
            InputError: it was not added.
            IndexMismatch: it is missing or truncated.
        """
        self.require(artifact)
        return open_array(self.path / f"{artifact}.npy", tuple(self.artifacts[artifact]["shape"]))

    def bytes_of(self, part: str) -> int:
        """Size on disk of a part of the index, such as "latents" or "features/dino"; 0 where there is none."""
        if part == "thumbnails":
            return sum(path.stat().st_size for path in self.thumbnails.glob("*.png"))
        return sum(path.stat().st_size for path in self.path.glob(f"{part}.*"))

    def feature_weights(self, name: str) -> str:
        """The folder, file or hub id of a feature's network; a relative path is looked for beside the index first."""
        self.require(f"features/{name}")
        return self._beside(str(self.artifacts[f"features/{name}"]["weights"]))

    def checkpoints(self, gradients: str) -> list[str | None]:
        """The pipelines whose U-Nets some gradients are of, in order; None is the index's own model."""
        named = self.artifacts[f"gradients/{gradients}"]["checkpoints"]
        return [None if source is None else self._beside(source) for source in named]

    def _beside(self, source: str) -> str:
        beside = (self.path / source).resolve()
        return str(beside) if beside.exists() else source

    def bank(self, model: Model) -> NoiseBank:
        """The noise bank that the base losses were measured with."""
        settings = NoiseSettings(**self.manifest["settings"]["noise"])
        return NoiseBank.draw(settings, model.latent_shape, model.train_timesteps)

    def check(self, model: Model) -> None:
        """Refuse a model other than the one that the index was made with.

        Raises:
            IndexMismatch: the weights' hashes differ (both are named), or the Fisher information is of other weights.
        """
        made_with = self.manifest["model"]["sha256"]
        if model.sha256 != made_with:
            raise IndexMismatch(
                f"the index was made with model {made_with[:12]}, but {model.source} has weights {model.sha256[:12]};"
                " build an index for this model, or name the model of the index"
            )
        shapes = {name: parameter.shape for name, parameter in parameters(model, self.weights).items()}
        if shapes != {name: tensor.shape for name, tensor in self.fisher.items()}:
            raise IndexMismatch(
                f"the Fisher information in {self.path} is not of {model.source}'s {self.weights} weights;"
                " build the index anew"
            )

    def thumbnail(self, row: int) -> Path:
        """The picture of a row, a PNG."""
        return self.thumbnails / f"{row:08d}.png"

    @cached_property
    def pixels(self) -> NDArray[np.uint8]:
        """The pixel baseline's view of the training set, read from the thumbnails once."""
        return pixel_vectors(Image.open(self.thumbnail(row)) for row in range(len(self)))


def _load_tensors(path: Path) -> dict[str, Tensor]:
    try:
        return load_file(path)
    except (OSError, SafetensorError) as error:
        raise IndexMismatch(f"{path} is missing or damaged; build the index anew") from error


def open_array(path: Path, shape: tuple[int, ...]) -> NDArray[np.floating]:
    """An array on disk, memory-mapped.

    Raises:
        IndexMismatch: it is missing, truncated, pickled or of another shape.
    """
    try:
        array: NDArray[np.floating] = np.load(path, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise IndexMismatch(f"{path} is missing or truncated; build the index anew") from error
    if array.shape != shape:
        raise IndexMismatch(f"{path} has shape {array.shape}, the manifest says {shape}; build the index anew")
    return array


def _read_captions(path: Path, count: int) -> tuple[list[str], list[str]]:
    try:
        table = parquet.read_table(path, columns=["id", "caption"])
    except (OSError, pyarrow.ArrowException) as error:
        raise IndexMismatch(f"{path} is missing or truncated; build the index anew") from error
    if len(table) != count:
        raise IndexMismatch(f"{path} has {len(table)} rows, the manifest says {count}; build the index anew")
    return table["id"].to_pylist(), table["caption"].to_pylist()


def _thumbnails(path: Path, manifest: dict[str, Any]) -> Path:
    count = manifest["data"]["count"]
    if manifest["data"]["source"] == SCENES:
        return compose_thumbnails(count)
    folder = path / "thumbnails"
    if (found := len(list(folder.glob("*.png")))) != count:
        raise IndexMismatch(f"{folder} has {found} pictures, the manifest says {count}; build the index anew")
    return folder


def compose_thumbnails(count: int) -> Path:
    """Compose the embedded scenes into the cache, unless they are there; whole or not at all."""
    scenes = compose.make_scenes("train", count)
    folder = cache_folder() / f"emoji-scenes-{compose.scenes_sha256(scenes[:16])[:12]}-{count}"
    if folder.is_dir():
        return folder
    with tempfile.TemporaryDirectory(dir=folder.parent) as partial:
        for row, scene in enumerate(scenes):
            compose.draw_scene(scene).save(Path(partial) / f"{row:08d}.png")
        try:
            os.rename(partial, folder)
            os.mkdir(partial)  # TemporaryDirectory removes it
        except OSError:  # another process was first
            assert folder.is_dir()
    return folder


def open_index(path: Path | None = None) -> tuple[Model, Index]:
    """An index, the embedded one by default, and its model.

    Raises:
        IndexMismatch: the index cannot be used, or is of another model.
        WeightsUnavailable: the model cannot be had.
    """
    index = Index.open(path or EMBEDDED)
    model = Model.load(index.model_source)
    index.check(model)
    return model, index
