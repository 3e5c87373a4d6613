"""What an index may hold beyond what unlearning needs: features, gradients, EK-FAC, all weights' Fisher information.

Each is added to a finished index on its own, resumably, and recorded in the manifest once it is whole.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import ImageOps
from safetensors.torch import load_file, save_file
from torch import Tensor

from attribution.batches import in_batches
from attribution.diffusion.noise import NoiseBank
from attribution.diffusion.weights import checkpoint
from attribution.errors import IndexMismatch, InputError
from attribution.index.build import Builder, BuildProgress, fisher_sample, portable, sample_traces, summed, unfinished
from attribution.index.features import FEATURES, open_feature
from attribution.unlearning.ekfac import add_moments, eigenvectors, rotate
from attribution.unlearning.fisher import FisherSettings, add_squares, compress
from attribution.unlearning.projection import GRADIENT_OUTPUTS, GradientSettings, Projection, mean_gradients, whitening

SAMPLES_ALL = 4096  # gradients, at most, that the Fisher information of all weights is estimated from


@dataclass(frozen=True)
class ExtendSettings:
    """What is added to an index.

    Attributes:
        fisher_all: the diagonal Fisher information of all weights.
        ekfac: EK-FAC of the index's weights.
        features: of the FEATURES table.
        feature_weights: folder, file or hub id by feature; by default the published ones.
        gradients: of GRADIENT_OUTPUTS.
        projection: of the gradients.
        checkpoints: pipelines whose U-Nets the gradients are averaged over; none is the index's model alone.
    """

    fisher_all: bool = False
    ekfac: bool = False
    features: tuple[str, ...] = ()
    feature_weights: dict[str, str] = field(default_factory=dict)
    gradients: tuple[str, ...] = ()
    projection: GradientSettings = field(default_factory=GradientSettings)
    checkpoints: tuple[str, ...] = ()


@dataclass(frozen=True)
class Addition:
    """One artifact.

    Attributes:
        name: in the manifest; its file's, without the ending.
        record: what it is made with; `make` adds what is known only then.
        make: makes it.
    """

    name: str
    record: dict[str, Any]
    make: Callable[[Builder, dict[str, Any]], Iterator[BuildProgress]]


def extend(builder: Builder, settings: ExtendSettings) -> Iterator[BuildProgress]:
    """Add to a finished index what it does not hold yet.

    Raises:
        InputError: an unknown feature or gradient, a mapper without a file or its base, or numbers that are not finite.
        WeightsUnavailable: a network cannot be had; what was added before stays.
        IndexMismatch: the index holds one made with other settings.
    """
    held = builder.manifest.setdefault("artifacts", {})
    wanted = additions(builder, settings)
    for addition in wanted:
        if addition.name in held:
            _refuse_mismatch(builder.out, addition, held[addition.name])
    for addition in wanted:
        if addition.name not in held:
            record = dict(addition.record)
            yield from addition.make(builder, record)
            builder.manifest["progress"].pop(addition.name, None)
            held[addition.name] = record
            builder.save()


def additions(builder: Builder, settings: ExtendSettings) -> list[Addition]:
    """Everything that is asked for, checked."""
    found = []
    if settings.fisher_all:
        own = builder.settings.fisher
        of_all = replace(own, weights="all", samples=min(SAMPLES_ALL, own.samples))
        found.append(Addition("fisher-all", asdict(of_all), partial(_fisher_all, of_all)))
    if settings.ekfac:
        found.append(Addition("ekfac", asdict(builder.settings.fisher), _ekfac))
    found += [_feature(builder, name, settings) for name in settings.features]
    found += [_gradient(builder, name, settings) for name in settings.gradients]
    return found


def _refuse_mismatch(out: Path, addition: Addition, held: dict[str, Any]) -> None:
    for key, now in addition.record.items():
        if (was := held.get(key)) != now:
            raise IndexMismatch(
                f"{out} holds {addition.name} with {key} = {was!r}, now it is {now!r};"
                " use the same settings, or another index"
            )


# The Fisher information


def _fisher_all(settings: FisherSettings, builder: Builder, _record: dict[str, Any]) -> Iterator[BuildProgress]:
    batch = max(1, builder.settings.batch // 8)  # gradients of all weights, for each image

    def add(sums: dict[str, Tensor], samples: range, bank: NoiseBank) -> dict[str, Tensor]:
        return add_squares(sums, fisher_sample(builder, settings, samples, bank))

    sums = yield from summed(builder, "fisher-all", settings, batch, add)
    save_file(
        compress({name: total / settings.samples for name, total in sums.items()}),
        builder.out / "fisher-all.safetensors",
    )
    unfinished(builder, "fisher-all").unlink()


def _ekfac(builder: Builder, _record: dict[str, Any]) -> Iterator[BuildProgress]:
    """Two passes over the samples: the Kronecker factors, then the diagonal in their eigenbasis."""
    settings, batch = builder.settings.fisher, builder.settings.batch

    def add_factors(sums: dict[str, Tensor], samples: range, bank: NoiseBank) -> dict[str, Tensor]:
        return add_moments(sums, sample_traces(builder, settings, samples, bank))

    moments = yield from summed(builder, "ekfac-factors", settings, batch, add_factors)
    parts = eigenvectors(moments)
    layers = {key.rpartition(".")[0] for key in parts}
    bases = {name: (parts[f"{name}.inputs"], parts[f"{name}.outputs"]) for name in sorted(layers)}

    def add_rotated(sums: dict[str, Tensor], samples: range, bank: NoiseBank) -> dict[str, Tensor]:
        gradients = fisher_sample(builder, settings, samples, bank)
        return add_squares(sums, {name: rotate(gradients[name], *basis) for name, basis in bases.items()})

    rotated = yield from summed(builder, "ekfac-diagonal", settings, batch, add_rotated)
    parts |= {f"{name}.information": total / settings.samples for name, total in rotated.items()}
    save_file({name: part.cpu().contiguous() for name, part in parts.items()}, builder.out / "ekfac.safetensors")
    for step in ("ekfac-factors", "ekfac-diagonal"):
        unfinished(builder, step).unlink()


# Features and gradients


def _feature(builder: Builder, name: str, settings: ExtendSettings) -> Addition:
    if name not in FEATURES:
        raise InputError(f"there is no feature {name!r}; accepted are {', '.join(FEATURES)}")
    base, weights = FEATURES[name].base, settings.feature_weights.get(name) or FEATURES[name].weights
    if weights is None:
        raise InputError(f"the feature {name!r} needs a mapper's file; name it with --feature_weights {name} FILE")
    if base and base not in settings.features and f"features/{base}" not in builder.manifest["artifacts"]:
        raise InputError(f"the feature {name!r} maps {base!r}, which the index does not hold; add both")
    make = partial(_mapper if base else _vectors, name, weights)
    return Addition(f"features/{name}", {"weights": portable(weights, builder.out)}, make)


def _mapper(name: str, weights: str, _builder: Builder, _record: dict[str, Any]) -> Iterator[BuildProgress]:
    open_feature(name, weights)  # it can be had; it maps the base's vectors when a query comes
    yield BuildProgress(f"features/{name}", 1, 1)


def _vectors(name: str, weights: str, builder: Builder, record: dict[str, Any]) -> Iterator[BuildProgress]:
    encode, training = open_feature(name, weights), builder.training
    captions = FEATURES[name].of == "captions"

    def vectors(rows: range) -> Tensor:
        if captions:
            return encode([training.captions[row] for row in rows])[:, None]
        pictures = [training.image(row) for row in rows]
        sides = (pictures, [ImageOps.mirror(picture) for picture in pictures])
        return torch.stack([encode(side) for side in sides[: builder.views]], 1)

    record["shape"] = [len(training), *vectors(range(1)).shape[1:]]
    yield from _filled(builder, f"features/{name}", record["shape"], vectors)


def _gradient(builder: Builder, name: str, settings: ExtendSettings) -> Addition:
    if name not in GRADIENT_OUTPUTS:
        raise InputError(f"there are no gradients {name!r}; accepted are {', '.join(GRADIENT_OUTPUTS)}")
    Projection(settings.projection.dimension, settings.projection.seed)  # refuses before any work
    sources = settings.checkpoints or (None,)
    record = {
        **asdict(settings.projection),
        "weights": builder.settings.fisher.weights,
        "checkpoints": [source and portable(source, builder.out) for source in sources],
    }
    return Addition(f"gradients/{name}", record, partial(_projected, name, settings.projection, sources))


def _projected(
    name: str,
    settings: GradientSettings,
    sources: Sequence[str | None],
    builder: Builder,
    record: dict[str, Any],
) -> Iterator[BuildProgress]:
    model, encoded, views = builder.model, builder.encoded(), list(range(builder.views))
    bank = builder.bank(builder.settings.noise)
    influence = name == "influence"  # tells an image from its mirror; TRAK takes their mean
    kept = len(views) if influence else 1
    scales = whitening(load_file(builder.out / "fisher.safetensors"), settings.whitening) if influence else None
    project, output = Projection(settings.dimension, settings.seed, scales), GRADIENT_OUTPUTS[name]

    def projected(rows: range) -> Tensor:
        latents = encoded.view(list(rows), views).flatten(0, 1)
        text = model.encode_text([encoded.captions[row] for row in rows]).repeat_interleave(len(views), 0)
        found = mean_gradients(
            model, builder.settings.fisher.weights, latents, text, bank, project, output, builder.settings.batch
        )
        return found.reshape(len(rows), kept, -1, settings.dimension).mean(2)

    # float16 holds 6e-5 to 65504: a power of two brings the first gradients to about one
    record["scale"] = 2.0 ** -round(math.log2(max(float(projected(range(1)).square().mean().sqrt()), 1e-30)))
    record["shape"] = [len(sources), len(encoded), kept, settings.dimension]
    for number, source in enumerate(sources):
        with checkpoint(model, source):
            yield from _filled(
                builder, f"gradients/{name}", record["shape"], lambda rows: projected(rows) * record["scale"], number
            )


def _filled(
    builder: Builder, name: str, shape: Sequence[int], compute: Callable[[range], Tensor], part: int | None = None
) -> Iterator[BuildProgress]:
    """Fill an array, or its part `part` of the first axis, block by block, going on where it was interrupted.

    Raises:
        InputError: a block is not finite in float16.
    """
    (builder.out / name).parent.mkdir(exist_ok=True)
    array = builder.array(name, tuple(shape), np.float16)
    target, offset = (array, 0) if part is None else (array[part], part * shape[1])
    total, count = (shape[0], shape[0]) if part is None else (shape[0] * shape[1], shape[1])
    start = min(max(builder.manifest["progress"].get(name, 0) - offset, 0), count)
    for rows, computed in in_batches(count, builder.settings.batch, compute, start):
        block = computed.cpu().numpy().astype(np.float16)
        if bad := [row for row, values in zip(rows, block, strict=True) if not np.isfinite(values).all()]:
            raise InputError(
                f"{name} of training image {builder.training.ids[bad[0]]} is not finite; mend or leave it out"
            )
        target[rows.start : rows.stop] = block
        array.flush()  # type: ignore[attr-defined]
        builder.advance(name, offset + rows.stop)
        yield BuildProgress(name, offset + rows.stop, total)
