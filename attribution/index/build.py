"""Build an index, resumably: each step goes on where it was interrupted, and other settings are refused."""

import json
import os
from collections.abc import Callable, Generator, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow
import pyarrow.parquet as parquet
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from attribution.batches import batches, in_batches
from attribution.diffusion.noise import NoiseBank, NoiseSettings
from attribution.diffusion.pictures import to_pixels, to_square
from attribution.diffusion.pipeline import Model
from attribution.errors import IndexMismatch, InputError
from attribution.index.data import SCENES, DataSettings, TrainingSet, open_training_set
from attribution.index.index import FORMAT_VERSION, STEPS, THUMBNAIL_SIDE, open_array, read_manifest
from attribution.unlearning.fisher import FisherSettings, add_squares
from attribution.unlearning.gradients import Trace, per_image_gradients, trace
from attribution.unlearning.score import EncodedSet, training_losses

Add = Callable[[dict[str, Tensor], range, NoiseBank], dict[str, Tensor]]  # adds samples to running sums


@dataclass(frozen=True)
class BuildSettings:
    """All that an index depends on, save for the model; written whole into the manifest."""

    data: DataSettings = field(default_factory=DataSettings)
    noise: NoiseSettings = field(default_factory=NoiseSettings)
    fisher: FisherSettings = field(default_factory=FisherSettings)
    batch: int = 64


@dataclass(frozen=True)
class BuildProgress:
    """A step of the build, and how much of it is done."""

    step: str
    done: int
    total: int


@dataclass
class Builder:
    """One build: where to, from what, and the manifest that says how far it is."""

    out: Path
    model: Model
    training: TrainingSet
    settings: BuildSettings
    manifest: dict[str, Any]

    def finish(self, step: str) -> None:
        """Record that a step is done."""
        self.manifest["finished"].append(step)
        self.manifest["progress"].pop(step, None)
        self.save()

    def advance(self, step: str, done: int) -> None:
        """Record how far a step is."""
        self.manifest["progress"][step] = done
        self.save()

    def save(self) -> None:
        """Write the manifest, whole or not at all."""
        partial = self.out / "manifest.json.partial"
        partial.write_text(json.dumps(self.manifest, indent=1) + "\n", encoding="utf-8")
        os.replace(partial, self.out / "manifest.json")

    @property
    def views(self) -> int:
        """2 where mirrors were trained on, else 1."""
        return 2 if self.settings.data.random_flip else 1

    def bank(self, settings: NoiseSettings) -> NoiseBank:
        """A noise bank for the model."""
        return NoiseBank.draw(settings, self.model.latent_shape, self.model.train_timesteps)

    def encoded(self) -> EncodedSet:
        """The latents, once they are there, with their captions."""
        shape = (len(self.training), 2, *self.model.latent_shape)
        return EncodedSet(open_array(self.out / "latents.npy", shape), self.training.captions)

    def array(self, name: str, shape: tuple[int, ...], dtype: type[np.floating]) -> NDArray[np.floating]:
        """A file of `shape`, opened for writing; what an interrupted build wrote is kept."""
        path = self.out / f"{name}.npy"
        if name in self.manifest["progress"] and path.is_file():
            open_array(path, shape)  # refuses a truncated file, which "r+" would silently fill up with zeros
            return np.load(path, mmap_mode="r+")  # type: ignore[no-any-return]
        self.manifest["progress"].pop(name, None)
        return np.lib.format.open_memmap(path, mode="w+", dtype=dtype, shape=shape)


def build(out: Path, model: Model, settings: BuildSettings) -> Iterator[BuildProgress]:
    """Build or go on building an index; raises what `prepare` raises."""
    builder = prepare(out, model, settings)
    for step in STEPS:
        if step not in builder.manifest["finished"]:
            yield from BUILD_STEPS[step](builder)
            builder.finish(step)


def prepare(out: Path, model: Model, settings: BuildSettings) -> Builder:
    """A build, begun or to go on with.

    Raises:
        InputError: the training data cannot be read, or are empty; or a setting is not possible.
        IndexMismatch: the folder holds an index of another model, other data or other settings.
    """
    if settings.batch < 1 or settings.fisher.samples < 1:
        raise InputError(
            f"a build with batch = {settings.batch} and {settings.fisher.samples} Fisher samples is not possible;"
            " accepted are whole numbers from 1"
        )
    for noise in (settings.noise, NoiseSettings(settings.fisher.timesteps)):
        NoiseBank.draw(noise, model.latent_shape, model.train_timesteps)  # refuses before any work
    training = open_training_set(settings.data)
    if not len(training):
        raise InputError("the training data are empty; at least one captioned image is needed")
    out.mkdir(parents=True, exist_ok=True)
    manifest = wanted = _manifest(out, model, training, settings)
    if (out / "manifest.json").exists():
        manifest = read_manifest(out)
        _refuse_mismatch(manifest, wanted, out)
    return Builder(out, model, training, settings, manifest)


def _manifest(out: Path, model: Model, training: TrainingSet, settings: BuildSettings) -> dict[str, Any]:
    source = settings.data.dataset_name or str(settings.data.train_data_dir)
    recorded: dict[str, Any] = json.loads(json.dumps(asdict(settings), default=str))
    recorded.pop("batch")  # changes nothing
    return {
        "format_version": FORMAT_VERSION,
        "model": {
            "id": portable(model.source, out),
            "sha256": model.sha256,
            "latent_shape": list(model.latent_shape),
            "train_timesteps": model.train_timesteps,
            "prediction_type": model.prediction_type,
        },
        "data": {"source": source, "count": len(training), "sha256": training.sha256()},
        "settings": recorded,
        "finished": [],
        "progress": {},
    }


def portable(source: str, out: Path) -> str:
    """A folder or file beside the index is named relative to it, so that both can be moved together."""
    path = Path(source).resolve()
    if path.exists() and path.parent == out.resolve().parent:
        return os.path.join("..", path.name)
    return str(path) if path.exists() else source


def _refuse_mismatch(found: dict[str, Any], wanted: dict[str, Any], out: Path) -> None:
    for part in ("model", "data", "settings"):
        for key in wanted[part].keys() | found[part].keys():
            if (was := found[part].get(key)) != (now := wanted[part].get(key)):
                raise IndexMismatch(
                    f"{out} was built with {part} {key} = {was!r}, now it is {now!r}; name another --out folder,"
                    " or the same settings to go on with this one"
                )


def _captions(builder: Builder) -> Iterator[BuildProgress]:
    training = builder.training
    table = pyarrow.table({"id": training.ids, "caption": training.captions})
    parquet.write_table(table, builder.out / "captions.parquet", compression="zstd")
    yield BuildProgress("captions", len(training), len(training))


def _thumbnails(builder: Builder) -> Iterator[BuildProgress]:
    if builder.settings.data.dataset_name == SCENES:
        return  # composed at first start
    folder, count = builder.out / "thumbnails", len(builder.training)
    folder.mkdir(exist_ok=True)
    for rows in batches(count, builder.settings.batch, builder.manifest["progress"].get("thumbnails", 0)):
        for row in rows:
            picture = builder.training.image(row)
            picture.thumbnail((THUMBNAIL_SIDE, THUMBNAIL_SIDE))
            picture.save(folder / f"{row:08d}.png")
        builder.advance("thumbnails", rows.stop)
        yield BuildProgress("thumbnails", rows.stop, count)


def _latents(builder: Builder) -> Iterator[BuildProgress]:
    model, data, count = builder.model, builder.settings.data, len(builder.training)
    array = builder.array("latents", (count, 2, *model.latent_shape), np.float16)

    def encode(rows: range) -> Tensor:
        images = [builder.training.image(row) for row in rows]
        pixels = to_pixels([to_square(image, model.resolution, data.center_crop)[0] for image in images])
        return torch.stack([model.encode_images(pixels), model.encode_images(pixels.flip(-1))], 1).cpu()

    start = builder.manifest["progress"].get("latents", 0)
    for rows, both in in_batches(count, builder.settings.batch, encode, start):
        array[rows.start : rows.stop] = both.numpy()
        array.flush()  # type: ignore[attr-defined]
        builder.advance("latents", rows.stop)
        yield BuildProgress("latents", rows.stop, count)


def _base_losses(builder: Builder) -> Iterator[BuildProgress]:
    count, bank = len(builder.training), builder.bank(builder.settings.noise)
    array = builder.array("base_losses", (count, 2, len(bank)), np.float32)
    start = builder.manifest["progress"].get("base_losses", 0)
    rows, columns = list(range(start, count)), range(len(bank))
    for which, losses in training_losses(
        builder.model, builder.encoded(), bank, rows, columns, batch=builder.settings.batch
    ):
        array[start + which.start : start + which.stop] = losses
        array.flush()  # type: ignore[attr-defined]
        builder.advance("base_losses", start + which.stop)
        yield BuildProgress("base_losses", start + which.stop, count)


def _fisher(builder: Builder) -> Iterator[BuildProgress]:
    settings = builder.settings.fisher

    def add(sums: dict[str, Tensor], samples: range, bank: NoiseBank) -> dict[str, Tensor]:
        return add_squares(sums, fisher_sample(builder, settings, samples, bank))

    sums = yield from summed(builder, "fisher", settings, builder.settings.batch, add)
    save_file(
        {name: (total / settings.samples).cpu() for name, total in sums.items()}, builder.out / "fisher.safetensors"
    )
    unfinished(builder, "fisher").unlink()


def summed(
    builder: Builder, step: str, settings: FisherSettings, batch: int, add: Add
) -> Generator[BuildProgress, None, dict[str, Tensor]]:
    """Sum over all samples; sums are kept on disk now and then, and where it is interrupted, to go on from there."""
    bank, path = builder.bank(NoiseSettings(settings.timesteps, 1, settings.seed)), unfinished(builder, step)
    sums, done = _resume_sums(path, builder.model.device)
    try:
        adding = in_batches(settings.samples, batch, lambda samples: add(sums, samples, bank), done)
        for number, (samples, added) in enumerate(adding, start=1):
            sums, done = added, samples.stop
            if number % 16 == 0:
                _save_sums(path, sums, done)
            yield BuildProgress(step, done, settings.samples)
    finally:
        if sums:
            _save_sums(path, sums, done)
    return sums


def unfinished(builder: Builder, step: str) -> Path:
    """Where the sums of a step are kept until it is done."""
    return builder.out / f"{step}.partial.safetensors"


def fisher_sample(builder: Builder, settings: FisherSettings, samples: range, bank: NoiseBank) -> dict[str, Tensor]:
    """Per-image gradients of samples; see `sample_batch`."""
    return per_image_gradients(builder.model, settings.weights, *sample_batch(builder, samples, bank))


def sample_traces(builder: Builder, settings: FisherSettings, samples: range, bank: NoiseBank) -> dict[str, Trace]:
    """What the layers did on samples; see `sample_batch`."""
    return trace(builder.model, settings.weights, *sample_batch(builder, samples, bank))


def sample_batch(builder: Builder, samples: range, bank: NoiseBank) -> tuple[Tensor, Tensor, NoiseBank]:
    """Latents, text and columns of samples: s is image s mod N, its mirror on odd passes, at column s x 97 mod S."""
    encoded = builder.encoded()
    count, views = len(encoded), builder.views
    rows = [s % count for s in samples]
    latents = torch.stack(
        [encoded.view([row], [s // count % views])[0, 0] for s, row in zip(samples, rows, strict=True)]
    )
    text = builder.model.encode_text([encoded.captions[row] for row in rows])
    return latents, text, bank.select([s * 97 % len(bank) for s in samples])


def _save_sums(path: Path, sums: dict[str, Tensor], done: int) -> None:
    """Keep unfinished sums, whole or not at all, with how many samples they hold."""
    save_file({name: total.cpu() for name, total in sums.items()}, f"{path}.new", metadata={"done": str(done)})
    os.replace(f"{path}.new", path)


def _resume_sums(path: Path, device: torch.device) -> tuple[dict[str, Tensor], int]:
    """Unfinished sums, on a device, and how many samples they hold."""
    if not path.is_file():
        return {}, 0
    try:
        with safe_open(path, framework="pt") as file:
            names = file.keys()
            return {name: file.get_tensor(name).to(device) for name in names}, int(file.metadata()["done"])
    except SafetensorError:  # damaged: the step begins anew
        return {}, 0


BUILD_STEPS: dict[str, Callable[[Builder], Iterator[BuildProgress]]] = {
    "captions": _captions,
    "thumbnails": _thumbnails,
    "latents": _latents,
    "base_losses": _base_losses,
    "fisher": _fisher,
}
