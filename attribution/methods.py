"""Every way to answer a query, behind one call: `METHODS[name].answer(model, index, query, settings, stop)`."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, fields, replace
from functools import lru_cache, partial
from pathlib import Path
from threading import Event

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from attribution.answer import Answer, AttributeSettings, Attribution, Clock, Progress, check_stop, to_results
from attribution.data import to_pixels, to_square
from attribution.errors import InputError
from attribution.features import FEATURES, Encode, feature_scores, open_feature, pixel_scores
from attribution.gradients import (
    GRADIENT_OUTPUTS,
    GradientSettings,
    Kernel,
    Projection,
    first_order,
    journey_bank,
    mean_gradients,
    whitening,
)
from attribution.index import Index
from attribution.model import Model
from attribution.noise import NoiseBank, NoiseSettings
from attribution.query import Query, image_sha256, region_crop, region_mask
from attribution.race import Round, Standing, evaluations, exhaustive, race, schedule
from attribution.score import Floats, Scores, training_losses
from attribution.unlearn import Curvature, UnlearnSettings, add_step, newton_step, query_gradient, unlearned


@dataclass(frozen=True)
class Method:
    """A way to answer.

    Attributes:
        answer: how.
        line: about it.
        source: where it comes from.
        curvature: that it unlearns with; None where that is not its matter.
        artifacts: what the index must hold for it beyond what every index does.
        reads: what it reads of what every index holds.
    """

    answer: Callable[[Model, Index, Query, AttributeSettings, Event], Answer]
    line: str
    source: str
    curvature: Curvature | None = None
    artifacts: tuple[str, ...] = ()
    reads: tuple[str, ...] = ()


def unlearning(model: Model, index: Index, query: Query, settings: AttributeSettings, stop: Event) -> Answer:
    """The paper's method: unlearn the query, then see which training images' losses rose (Eq. 4 to 6)."""
    clock, unlearn, bank = Clock(), settings.unlearn, index.bank(model)
    rounds = _rounds(index, len(bank), settings)
    gradients = unlearn.steps * unlearn.timesteps * unlearn.noises
    total = gradients + evaluations(rounds)
    with unlearned(model, unlearn.weights or index.weights) as weights:
        for done in unlearn_query(model, index, query, unlearn, weights):
            check_stop(stop)
            yield Progress("unlearning", done, total, clock.total())
        clock.lap("unlearning")

        def measure(
            rows: Sequence[int], columns: Sequence[int], views: Sequence[int]
        ) -> Iterator[tuple[slice, Floats]]:
            for chunk in training_losses(model, index.encoded, bank, rows, columns, views, settings.batch):
                check_stop(stop)
                yield chunk

        order, typical = likely_first(query.prompt, index.captions), 0.0
        base = index.base_losses[:, : len(index.views)]
        for standing in race(measure, base, rounds, order, settings.score):
            if len(standing.rows) == len(index):
                typical = float(np.median(standing.scores.value))
            results = to_results(standing, index, settings.top_k)
            yield Progress("scoring", gradients + standing.evaluations, total, clock.total(), results)
    clock.lap("scoring")
    yield Attribution(query, settings, results, total, clock.laps, index.id, model.sha256, standing.rows, typical)


def unlearn_query(
    model: Model, index: Index, query: Query, settings: UnlearnSettings, weights: dict[str, Tensor]
) -> Iterator[int]:
    """Move `weights`, the model's own, to where the query is unlearned; yields predictions made so far."""
    subset = settings.weights or index.weights
    information = index.information(weights, settings.curvature)
    latents, text, mask = _encoded(model, index, query)
    bank = _query_bank(model, settings)
    for step in range(settings.steps):
        gradient: dict[str, Tensor] = {}
        for done, so_far in query_gradient(model, subset, latents, text, bank, mask, settings.batch):
            gradient = so_far
            yield step * len(bank) + done
        add_step(weights, newton_step(gradient, information, settings, len(index)))


def influence(model: Model, index: Index, query: Query, settings: AttributeSettings, stop: Event) -> Answer:
    """First-order influence: each training loss's gradient times the query's Newton step (Appendix A.3)."""
    clock, unlearn = Clock(), settings.unlearn
    phi, kept = _gradients(index, "influence")
    latents, text, mask = _encoded(model, index, query)
    bank, gradient = _query_bank(model, unlearn), {}
    for done, so_far in query_gradient(model, index.weights, latents, text, bank, mask, unlearn.batch):
        check_stop(stop)
        gradient = so_far
        yield Progress("gradient", done, len(bank), clock.total())
    step = newton_step(gradient, index.information(gradient, unlearn.curvature), unlearn, len(index))
    scales = whitening(index.fisher, kept.whitening)
    whitened = {name: (change / scales[name].to(change))[None] for name, change in step.items()}
    projected = Projection(kept.dimension, kept.seed)(whitened)[0]
    scale = index.artifacts["gradients/influence"]["scale"]
    slopes = np.mean([first_order(each, projected) for each in phi], 0)[:, : len(index.views)] / scale
    yield _ranked(model, index, query, settings, Scores.exact(slopes), len(bank), clock)


def trak(
    name: str, journey: bool, model: Model, index: Index, query: Query, settings: AttributeSettings, stop: Event
) -> Answer:
    """TRAK and its kin: the query's projected gradient against the training images', through TRAK's kernel.

    Args:
        name: of the gradients.
        journey: the query's gradient is taken at one denoising step alone, not over the index's noise bank.
        model: the index's.
        index: of the training set to search.
        query: what to attribute.
        settings: how.
        stop: set it to stop.
    """
    clock = Clock()
    phi, kept = _gradients(index, name)
    latents, text, mask = _encoded(model, index, query)
    bank = journey_bank(kept, model.latent_shape, model.train_timesteps) if journey else index.bank(model)
    project, output = Projection(kept.dimension, kept.seed), GRADIENT_OUTPUTS[name]
    total = np.zeros(len(index))
    for number, checkpoint in enumerate(index.checkpoints(name)):
        check_stop(stop)
        yield Progress("gradient", number * len(bank), len(phi) * len(bank), clock.total())
        with model.checkpoint(checkpoint):
            wanted = mean_gradients(
                model, index.weights, latents, text, bank, project, output, settings.unlearn.batch, mask
            )[0]
        total += _kernel(index, name, number, kept.damping).scores(phi[number, :, 0], wanted) / len(phi)
    yield _ranked(model, index, query, settings, Scores.exact(total[:, None]), len(phi) * len(bank), clock)


def feature(name: str, model: Model, index: Index, query: Query, settings: AttributeSettings, stop: Event) -> Answer:
    """Cosine similarity of a feature: of the picture, or the boxes' crop, or the prompt, with each training image."""
    clock, entry = Clock(), FEATURES[name]
    base = entry.base or name
    vectors = index.array(f"features/{base}")
    mapper: Encode | None = open_feature(name, index.feature_weights(name)) if entry.base else None
    check_stop(stop)
    seen = query.prompt if entry.of == "captions" else region_crop(query, model, index.center_crop)
    wanted = open_feature(base, index.feature_weights(base))([seen])[0]
    yield _ranked(model, index, query, settings, feature_scores(wanted, vectors, mapper), 0, clock)


def pixel(model: Model, index: Index, query: Query, settings: AttributeSettings, stop: Event) -> Answer:
    """The pixel baseline: cosine of intensities, of the whole picture or of the boxes' crop."""
    clock = Clock()
    scores = pixel_scores(region_crop(query, model, index.center_crop), index.pixels)
    check_stop(stop)
    yield _ranked(model, index, query, settings, scores, 0, clock)


def chance(model: Model, index: Index, query: Query, settings: AttributeSettings, stop: Event) -> Answer:
    """An order by chance, fixed by the seed and the picture."""
    clock = Clock()
    check_stop(stop)
    rng = np.random.default_rng([settings.seed, int(image_sha256(query.image)[:8], 16)])
    yield _ranked(model, index, query, settings, Scores.exact(rng.random((len(index), 1))), 0, clock)


def _feature_method(name: str) -> Method:
    entry = FEATURES[name]
    needed = tuple(f"features/{part}" for part in (entry.base, name) if part)
    return Method(partial(feature, name), entry.line, entry.source, artifacts=needed)


SCORED = ("latents", "base_losses")
METHODS: dict[str, Method] = {
    "unlearning": Method(
        unlearning,
        "loss change after a Newton step that unlearns the picture",
        "Wang et al. 2024",
        "diagonal",
        reads=(*SCORED, "fisher"),
    ),
    "unlearning+": Method(
        unlearning,
        "loss change after a Newton step with EK-FAC instead of the Fisher's diagonal",
        "Wang et al. 2025",
        "ek-fac",
        ("ekfac",),
        SCORED,
    ),
    "unlearning-sgd": Method(
        unlearning,
        "loss change after gradient ascent, without the Fisher information",
        "ablation of Wang et al. 2024",
        "none",
        reads=SCORED,
    ),
    "influence": Method(
        influence,
        "first-order loss change along the Newton step",
        "Wang et al. 2024, A.3",
        "diagonal",
        ("gradients/influence",),
        ("fisher",),
    ),
    "trak": Method(
        partial(trak, "loss", False),
        "projected gradients of the loss, through TRAK's kernel",
        "Park et al. 2023",
        artifacts=("gradients/loss",),
    ),
    "journey-trak": Method(
        partial(trak, "loss", True),
        "projected gradients, the picture's at one denoising step, through TRAK's kernel",
        "Georgiev et al. 2023",
        artifacts=("gradients/loss",),
    ),
    "d-trak": Method(
        partial(trak, "d-trak", False),
        "projected gradients of the prediction's squared norm, through TRAK's kernel",
        "Zheng et al. 2024",
        artifacts=("gradients/d-trak",),
    ),
    **{name: _feature_method(name) for name in FEATURES},
    "pixel": Method(
        pixel, "cosine similarity of pixel intensities", "baseline of Wang et al. 2024", reads=("thumbnails",)
    ),
    "random": Method(chance, "an order by chance", "chance"),
}


def bytes_read(index: Index, method: str) -> int:
    """Size on disk of what a method reads of an index."""
    return sum(index.bytes_of(part) for part in (*METHODS[method].reads, *METHODS[method].artifacts))


def likely_first(prompt: str, captions: list[str]) -> list[int]:
    """Rows by how many words of the prompt their captions share: only the order in which a race looks at them."""
    words = set(prompt.lower().split())
    shared = [len(words.intersection(text.lower().split())) / (1 + len(text.split())) for text in captions]
    return [int(row) for row in np.argsort(-np.asarray(shared), kind="stable")]


def _encoded(model: Model, index: Index, query: Query) -> tuple[Tensor, Tensor, Tensor | None]:
    """Latents (1, C, h, w), text (1, L, D) and region mask of a query."""
    square, _ = to_square(query.image, model.resolution, index.center_crop)
    latents, text = model.encode_images(to_pixels([square])), model.encode_text([query.prompt])
    return latents, text, region_mask(query, model, index.center_crop)


def _query_bank(model: Model, settings: UnlearnSettings) -> NoiseBank:
    noise = NoiseSettings(settings.timesteps, settings.noises, settings.seed)
    return NoiseBank.draw(noise, model.latent_shape, model.train_timesteps)


def _rounds(index: Index, columns: int, settings: AttributeSettings) -> list[Round]:
    if settings.exhaustive:
        return exhaustive(len(index), columns, index.views)
    race_settings = replace(settings.race, survivors=max(settings.race.survivors, 2 * settings.top_k))
    return schedule(len(index), columns, race_settings, index.views)


def _gradients(index: Index, name: str) -> tuple[NDArray[np.floating], GradientSettings]:
    """Projected gradients (checkpoints, N, views, dimension) that were added to an index, and how.

    Raises:
        InputError: they were not added, or are of other weights than the index's.
    """
    phi, made = index.array(f"gradients/{name}"), index.artifacts[f"gradients/{name}"]
    if made["weights"] != index.weights:
        raise InputError(f"the gradients {name!r} are of {made['weights']}, the index is of {index.weights}")
    return phi, GradientSettings(**{field.name: made[field.name] for field in fields(GradientSettings)})


@lru_cache(maxsize=8)
def _cached_kernel(path: Path, changed: float, checkpoint: int, damping: float) -> Kernel:
    return Kernel.of(np.load(path, mmap_mode="r", allow_pickle=False)[checkpoint, :, 0], damping)


def _kernel(index: Index, name: str, checkpoint: int, damping: float) -> Kernel:
    """TRAK's kernel of an index's gradients, whose views are averaged already; made once."""
    path = index.path / "gradients" / f"{name}.npy"
    return _cached_kernel(path, path.stat().st_mtime, checkpoint, damping)


def _ranked(
    model: Model,
    index: Index,
    query: Query,
    settings: AttributeSettings,
    scores: Scores,
    predictions: int,
    clock: Clock,
) -> Attribution:
    best = scores.best_first(range(len(index)))
    standing = Standing(tuple(int(row) for row in best), scores.take(best), predictions, predictions, True)
    clock.lap("ranking")
    results = to_results(standing, index, settings.top_k)
    return Attribution(query, settings, results, predictions, clock.laps, index.id, model.sha256, standing.rows)
