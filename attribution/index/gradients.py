"""Projected gradients of every training image, as steps of a build; see `steps.py`."""

import math
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path

import numpy as np
from safetensors import SafetensorError
from torch import Tensor

from attribution.diffusion.pipeline import Model
from attribution.diffusion.weights import checkpoint
from attribution.errors import InputError
from attribution.index.checksums import sha256_of, sha256_of_file
from attribution.index.manifest import GradientRecord
from attribution.index.places import portable
from attribution.index.stored import as_array, first_not_finite, load_tensors
from attribution.index.work import ExtendSettings, Part, Source, Step, Work
from attribution.unlearning.ekfac import Eigenbasis
from attribution.unlearning.projection import (
    GRADIENT_OUTPUTS,
    Projecting,
    Projection,
    gradients_by_call,
    whitening,
)
from attribution.unlearning.signs import SignProjection, to_bits

WHITENED = ("influence", "influence+")  # tell an image from its mirror; TRAK takes their mean
SIGNED = "influence+"  # of which signs are kept


def _record(name: str, source: Source, more: ExtendSettings) -> GradientRecord:
    Projection(more.projection.dimension, more.projection.seed)  # refuses before any work
    sources: Sequence[str | None] = more.checkpoints or (None,)
    return GradientRecord(
        **asdict(more.projection),
        weights=source.settings.fisher.weights,
        checkpoints=tuple(each and portable(each, source.out) for each in sources),
    )


def projection_of(name: str, folder: Path, record: GradientRecord) -> Projecting:
    """How some gradients are projected, with what the files of an index say of it."""
    if name == SIGNED:
        bases = Eigenbasis.all_of(load_tensors(folder / "ekfac.safetensors"))
        return SignProjection.like(bases, record.dimension, record.whitening)
    scales = whitening(load_tensors(folder / "fisher.safetensors"), record.whitening) if name in WHITENED else None
    return Projection(record.dimension, record.seed, scales)


def _work(name: str, source: Source, record: GradientRecord) -> Work:
    model, encoded, views = source.model, source.encoded, list(range(source.views))
    bank, count = source.bank(source.settings.noise), len(encoded)
    kept, signed = len(views) if name in WHITENED else 1, name == SIGNED
    project, output = projection_of(name, source.files, record), GRADIENT_OUTPUTS[name]

    def projected(rows: Sequence[int]) -> Iterator[tuple[float, Tensor]]:
        latents = encoded.view(rows, views).flatten(0, 1)
        text = encoded.text(model, rows).repeat_interleave(len(views), 0)
        batch = source.at_once.gradients
        for share, sums in gradients_by_call(model, record.weights, latents, text, bank, project, output, batch):
            yield share, sums.reshape(len(rows), kept, -1, project.dimension).mean(2)

    def stored(rows: range) -> Iterator[Part]:
        for share, found in projected([row % count for row in rows]):
            if share < 1:
                yield share
            elif signed:
                yield to_bits(_finite(found, rows, source))
            else:
                yield as_array(found * scale, np.float16)

    scale = 1.0 if signed else record.scale if record.shape else _scale(projected([0]))  # also for later rows
    width = project.dimension // 8 if signed else project.dimension
    shape = (len(record.checkpoints), count, kept, width)
    return Work(
        len(record.checkpoints) * count,
        source.settings.batch,
        stored,
        lambda row: row % count,
        replace(record, scale=scale, shape=shape, sha256=_sha256_of_checkpoints(model, record.located(source.out))),
        shape,
        np.uint8 if signed else np.float16,
        parts=len(record.checkpoints),
        during=lambda part: checkpoint(model, record.located(source.out)[part]),
    )


def _finite(numbers: Tensor, rows: range, source: Source) -> Tensor:
    """The numbers, whose signs would not tell that they are none.

    Raises:
        InputError: one is not finite; names the first training image of such.
    """
    place = first_not_finite(numbers.detach().cpu().numpy())
    if place is not None:
        image = source.training.ids[rows[place] % len(source.training)]
        raise InputError(
            f"the gradient of training image {image} is not finite; check the model's weights, mend the"
            " image or leave it out"
        )
    return numbers


def _sha256_of_checkpoints(model: Model, sources: list[str | None]) -> tuple[str, ...]:
    """Hashes of the U-Nets of other pipelines than the model itself."""
    return tuple(_sha256_of_checkpoint(model, source) for source in sources if source is not None)


def _sha256_of_checkpoint(model: Model, source: str) -> str:
    """Read from the U-Net's file where it has one that is read: the network itself is made but once, for its part."""
    file = Path(source, "unet", "diffusion_pytorch_model.safetensors")
    if file.is_file():
        with suppress(SafetensorError):  # which making the network tells better
            return sha256_of_file(file, model.dtype)
    with checkpoint(model, source):
        return sha256_of(model.unet.state_dict())


def _scale(projected: Iterator[tuple[float, Tensor]]) -> float:
    """The power of two that brings gradients like the first ones to about one: float16 holds 6e-5 to 65504."""
    *_, (_, first) = projected
    size = float(first.square().mean().sqrt())
    return 2.0 ** -round(math.log2(max(size, 1e-30))) if math.isfinite(size) else 1.0


GRADIENTS = {f"gradients/{name}": Step(partial(_record, name), partial(_work, name)) for name in GRADIENT_OUTPUTS}
