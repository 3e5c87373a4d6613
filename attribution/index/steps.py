"""What an index can hold, in one table: the settings that each part depends on, and how its blocks are made.

A step is made block by block: a range of rows (or of samples) goes in, a block comes out. Blocks do not depend on one
another, so they can be made in any order and anywhere; only `build.py` writes them down.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, replace
from functools import partial
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import ImageOps
from torch import Tensor

from attribution.diffusion.noise import NoiseBank, NoiseSettings
from attribution.diffusion.pictures import to_pixels
from attribution.errors import InputError
from attribution.index.features import FEATURES, Encoder, open_feature
from attribution.index.gradients import GRADIENTS
from attribution.index.imported import fisher_of_file, fisher_record, latents_of_file, latents_record
from attribution.index.listed import LISTED
from attribution.index.manifest import FeatureRecord, FisherRecord, ImportRecord
from attribution.index.pictures import THUMBNAIL_SIDE, packed_thumbnail
from attribution.index.places import located, portable
from attribution.index.stored import Sums, as_array, load_tensors, open_array
from attribution.index.texts import CAPTIONS, packed_texts
from attribution.index.towers import joined
from attribution.index.work import ExtendSettings, Part, Source, Step, Work, in_calls, in_one
from attribution.unlearning.ekfac import add_moments, eigenvectors, rotate
from attribution.unlearning.fisher import Samples, add_squares, compress
from attribution.unlearning.gradients import per_image_gradients, trace
from attribution.unlearning.score import VIEWS, losses_by_column

PICTURES = 16  # that a feature's network is given at once
JOINED = 4096  # rows of features that are placed at once
SAMPLES_ALL = 4096  # gradients, at most, that the Fisher information of all weights is estimated from


# What every index holds


def _nothing(_source: Source, _more: ExtendSettings) -> None:
    return None


def _captions(source: Source, _record: None) -> Work:
    held = source.training

    def table(_rows: range) -> dict[str, bytes]:
        return {CAPTIONS: packed_texts(held.ids, held.captions, held.several, held.digests())}

    return Work(len(held), len(held), in_one(table))


def _thumbnails(source: Source, _record: None) -> Work:
    def small(row: int) -> bytes:
        return packed_thumbnail(source.training.square(row, min(source.model.resolution, THUMBNAIL_SIDE)))

    def thumbnails(rows: range) -> list[bytes]:
        return [small(row) for row in rows]

    return Work(len(source.training), source.settings.batch, in_one(thumbnails), packed=True)


def _latents(source: Source, record: ImportRecord | None) -> Work:
    if record is not None:
        return latents_of_file(source, record)
    model, training = source.model, source.training

    def encoded(rows: range) -> NDArray[np.floating]:
        pixels = to_pixels([training.square(row, model.resolution) for row in rows])
        sides = (pixels, pixels.flip(-1))[: source.views]
        return as_array(torch.stack([model.encode_images(side) for side in sides], 1), np.float16)

    def latents(rows: range) -> Iterator[Part]:
        return in_calls(rows, source.at_once.pictures, encoded)

    shape = (len(training), source.views, *model.latent_shape)
    return Work(len(training), source.settings.batch, latents, shape=shape)


def _base_losses(source: Source, _record: None) -> Work:
    count, bank, views = len(source.training), source.bank(source.settings.noise), VIEWS[: source.views]

    def losses(rows: range) -> Iterator[Part]:
        found = []
        for losses in losses_by_column(source.model, source.encoded, bank, [row % count for row in rows], views):
            found.append(losses)
            if len(found) < len(bank):
                yield len(found) / len(bank)
        yield as_array(torch.stack(found, -1), np.float32)

    batch = max(1, source.at_once.predictions // len(views))
    return Work(count, batch, losses, shape=(count, len(views), len(bank)), dtype=np.float32, even=True)


# The Fisher information: sums over samples


def _fisher_record(source: Source, more: ExtendSettings) -> FisherRecord | ImportRecord:
    return fisher_record(source) or _of_index(source, more)


def _of_index(source: Source, _more: ExtendSettings) -> FisherRecord:
    return FisherRecord(**asdict(source.settings.fisher))


def _of_all(source: Source, _more: ExtendSettings) -> FisherRecord:
    own = _of_index(source, _more)
    return replace(own, weights="all", samples=min(SAMPLES_ALL, own.samples))


def _summed(
    source: Source,
    record: FisherRecord,
    batch: int,
    sums: Callable[[Tensor, Tensor, NoiseBank], Sums],
    total: Callable[[Sums], Sums],
) -> Work:
    """Sums over the samples of a record; `sums` is given the latents, text and columns of some."""
    bank = source.bank(NoiseSettings(record.timesteps, 1, record.seed))
    drawn = Samples.draw(len(source.training), source.views, len(bank), record.seed)

    def block(samples: range) -> Sums:
        rows, views, columns = zip(*(drawn[sample] for sample in samples), strict=True)
        pairs = zip(rows, views, strict=True)
        latents = torch.stack([source.encoded.view([row], [view])[0, 0] for row, view in pairs])
        text = source.encoded.text(source.model, rows)
        return sums(latents, text, bank.select(list(columns)))

    return Work(record.samples, batch, in_one(block), lambda sample: drawn[sample][0], record, total=total)


def _fisher(source: Source, record: FisherRecord | ImportRecord) -> Work:
    if isinstance(record, ImportRecord):
        return fisher_of_file(source, record)

    def squares(*batch: Any) -> Sums:
        return add_squares({}, per_image_gradients(source.model, record.weights, *batch))

    def mean(sums: Sums) -> Sums:
        return {name: total / record.samples for name, total in sums.items()}

    if record.weights != "all":
        return _summed(source, record, source.at_once.gradients, squares, mean)
    batch = max(1, min(source.at_once.gradients, source.settings.batch // 8))  # each gradient is as large as the U-Net
    return _summed(source, record, batch, squares, lambda sums: compress(mean(sums)))


def _factors(source: Source, record: FisherRecord) -> Work:
    """The Kronecker factors' eigenvectors, by `<parameter>.inputs` and `.outputs`."""

    def moments(*batch: Any) -> Sums:
        return add_moments({}, trace(source.model, record.weights, *batch))

    return _summed(source, record, source.at_once.gradients, moments, eigenvectors)


def _ekfac(source: Source, record: FisherRecord) -> Work:
    """The Fisher information's diagonal in the factors' eigenbasis."""
    parts = load_tensors(source.files / "ekfac-factors.safetensors")
    names = sorted({key.rpartition(".")[0] for key in parts})
    bases = {
        name: [parts[f"{name}.{side}"].to(source.model.device) for side in ("inputs", "outputs")] for name in names
    }

    def squares(*batch: Any) -> Sums:
        gradients = per_image_gradients(source.model, record.weights, *batch)
        return add_squares({}, {name: rotate(gradients[name].to(basis[0]), *basis) for name, basis in bases.items()})

    def whole(sums: Sums) -> Sums:
        return {**parts, **{f"{name}.information": total / record.samples for name, total in sums.items()}}

    return _summed(source, record, source.at_once.gradients, squares, whole)


# Features and gradients


def _feature_record(name: str, source: Source, more: ExtendSettings) -> FeatureRecord:
    weights = more.feature_weights.get(name) or FEATURES[name].weights
    if weights is None:
        made = ", which `python -m attribution distill` writes" if FEATURES[name].joins else ""
        raise InputError(
            f"the feature {name!r} needs a mapper's file{made}; name it with --feature_weights {name} FILE"
        )
    return FeatureRecord(portable(weights, source.out))


def _feature(name: str, source: Source, record: FeatureRecord) -> Work:
    encode, training = open_feature(name, located(record.weights, source.out)), source.training
    made = replace(record, sha256=encode.sha256, distilled=encode.told)
    if FEATURES[name].joins:
        return _joined(FEATURES[name].joins, source, encode, made)

    def encoded(rows: range) -> NDArray[np.floating]:
        if FEATURES[name].of == "captions":
            return as_array(encode([training.captions[row] for row in rows])[:, None], np.float16)
        pictures = [training.square(row, source.model.resolution) for row in rows]
        sides = (pictures, [ImageOps.mirror(picture) for picture in pictures])
        return as_array(torch.stack([encode(side) for side in sides[: source.views]], 1), np.float16)

    if FEATURES[name].base:  # a mapper, which can be had: it maps the base's vectors when a query comes
        return Work(1, 1, in_one(lambda _rows: {}), made=made)

    def vectors(rows: range) -> Iterator[Part]:
        return in_calls(rows, PICTURES, encoded)

    shape = (len(training), *encoded(range(1)).shape[1:])
    return Work(len(training), source.settings.batch, vectors, made=replace(made, shape=shape), shape=shape)


def _joined(bases: Sequence[str], source: Source, network: Encoder, made: FeatureRecord) -> Work:
    """What a network makes of the vectors of several features, which are there already, side by side."""
    parts = [open_array(source.files / f"features/{base}.npy") for base in bases]

    def placed(rows: range) -> NDArray[np.floating]:
        some = joined([np.asarray(part[rows.start : rows.stop], np.float32) for part in parts])
        return as_array(network(list(some.reshape(-1, some.shape[-1]))).reshape(*some.shape[:2], -1), np.float16)

    shape = (len(source.training), *placed(range(1)).shape[1:])
    return Work(shape[0], JOINED, in_one(placed), made=replace(made, shape=shape), shape=shape)


STEPS: dict[str, Step] = {
    "captions": Step(_nothing, _captions),
    "thumbnails": Step(_nothing, _thumbnails),
    "latents": Step(latents_record, _latents),
    "base_losses": Step(_nothing, _base_losses),
    "fisher": Step(_fisher_record, _fisher),
    "fisher-all": Step(_of_all, _fisher),
    "ekfac-factors": Step(_of_index, _factors),
    "ekfac": Step(_of_index, _ekfac, scaffold="ekfac-factors"),
    **{f"features/{name}": Step(partial(_feature_record, name), partial(_feature, name)) for name in FEATURES},
    **GRADIENTS,
    **LISTED,
}
REQUIRED = ("captions", "thumbnails", "latents", "base_losses", "fisher")  # of every index
