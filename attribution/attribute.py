"""The use case: a query goes in, progress comes out, and an attribution at the end."""

import hashlib
import math
import time
from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from threading import Event

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor

from attribution.data import Frame, to_pixels, to_square
from attribution.errors import InputError, Stopped
from attribution.features import pixel_scores
from attribution.index import EMBEDDED, Index
from attribution.model import Model, check_prompt, check_seed
from attribution.noise import NoiseBank, NoiseSettings
from attribution.race import RaceSettings, Round, Standing, evaluations, exhaustive, race, schedule
from attribution.score import Floats, ScoreKind, training_losses
from attribution.unlearn import UnlearnSettings, add_step, newton_step, query_gradient, unlearned

Box = tuple[float, float, float, float]


@dataclass(frozen=True)
class Query:
    """A picture, the prompt that made it, and optionally regions of it.

    Attributes:
        prompt: not empty.
        image: the picture as shown.
        seed: that generated it, or None for an upload.
        boxes: `x0, y0, x1, y1` in pixels of `image`, ends exclusive; their union is attributed. None is the whole.
    """

    prompt: str
    image: Image.Image
    seed: int | None = None
    boxes: tuple[Box, ...] = ()


@dataclass(frozen=True)
class AttributeSettings:
    """How a query is answered.

    Attributes:
        method: a key of METHODS.
        top_k: how many results.
        exhaustive: score every image on all noises, instead of halving.
        score: kind of score.
        unlearn: the Newton step.
        race: the schedule of halving.
        batch: predictions in one call of the U-Net.
    """

    method: str = "unlearning"
    top_k: int = 10
    exhaustive: bool = False
    score: ScoreKind = "difference"
    unlearn: UnlearnSettings = field(default_factory=UnlearnSettings)
    race: RaceSettings = field(default_factory=RaceSettings)
    batch: int = 64


@dataclass(frozen=True)
class Result:
    """One training image of an answer; `low` and `high` bound its score over the noises."""

    rank: int
    row: int
    id: str
    score: float
    low: float
    high: float
    caption: str
    flip: bool


@dataclass(frozen=True)
class Progress:
    """Where a query is: a stage, how much of all its predictions are made, seconds left, and the ranking so far."""

    stage: str
    evaluations: int
    total: int
    seconds: float
    results: tuple[Result, ...] = ()

    @property
    def eta(self) -> float | None:
        """Seconds left at the pace so far."""
        return self.seconds / self.evaluations * (self.total - self.evaluations) if self.evaluations else None


@dataclass(frozen=True)
class Attribution:
    """A finished answer."""

    query: Query
    settings: AttributeSettings
    results: tuple[Result, ...]
    evaluations: int
    seconds: dict[str, float]
    index_id: str
    model_sha256: str


Answer = Generator[Progress | Attribution, None, None]  # close it to stop early


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


@dataclass(frozen=True)
class Method:
    """A way to answer: how, a line about it, and where it comes from."""

    answer: Callable[[Model, Index, Query, AttributeSettings, Event], Answer]
    line: str
    source: str


def attribute(
    model: Model, index: Index, query: Query, settings: AttributeSettings | None = None, stop: Event | None = None
) -> Answer:
    """Answer a query: yields Progress, then one Attribution. Weights are restored whatever happens.

    Args:
        model: the index's.
        index: of the training set to search.
        query: what to attribute.
        settings: how.
        stop: set it to stop; it is checked between calls of the U-Net.

    Raises:
        InputError: before any work, if a value is not acceptable.
        Stopped: after `stop` was set.
    """
    settings, stop = settings or AttributeSettings(), stop or Event()
    if settings.method not in METHODS:
        raise InputError(f"there is no method {settings.method!r}; accepted are {', '.join(METHODS)}")
    check_prompt(query.prompt)
    if query.seed is not None:
        check_seed(query.seed)
    if not 1 <= settings.top_k <= len(index):
        raise InputError(
            f"top_k = {settings.top_k} is not possible; accepted are 1 to {len(index)}, the training images"
        )
    region_mask(query, model, index.center_crop)
    return METHODS[settings.method].answer(model, index, query, settings, stop)


def unlearning(model: Model, index: Index, query: Query, settings: AttributeSettings, stop: Event) -> Answer:
    """The paper's method: unlearn the query, then see which training images' losses rose (Eq. 4 to 6)."""
    clock, unlearn, bank = _Clock(), settings.unlearn, index.bank(model)
    rounds = _rounds(index, len(bank), settings)
    gradients = unlearn.steps * unlearn.timesteps * unlearn.noises
    total = gradients + evaluations(rounds)
    with unlearned(model, index.weights) as weights:
        for done in unlearn_query(model, index, query, unlearn, weights):
            _check(stop)
            yield Progress("unlearning", done, total, clock.total())
        clock.lap("unlearning")

        def measure(
            rows: Sequence[int], columns: Sequence[int], views: Sequence[int]
        ) -> Iterator[tuple[slice, Floats]]:
            for chunk in training_losses(model, index.encoded, bank, rows, columns, views, settings.batch):
                _check(stop)
                yield chunk

        results: tuple[Result, ...] = ()
        order = likely_first(query.prompt, index.captions)
        base = index.base_losses[:, : len(index.views)]
        for standing in race(measure, base, rounds, order, settings.score):
            results = _results(standing, index, settings.top_k)
            yield Progress("scoring", gradients + standing.evaluations, total, clock.total(), results)
    clock.lap("scoring")
    yield Attribution(query, settings, results, total, clock.laps, index.id, model.sha256)


def unlearn_query(
    model: Model, index: Index, query: Query, settings: UnlearnSettings, weights: dict[str, Tensor]
) -> Iterator[int]:
    """Move `weights`, the model's own, to where the query is unlearned; yields predictions made so far."""
    square, _ = to_square(query.image, model.resolution, index.center_crop)
    latents, text = model.encode_images(to_pixels([square])), model.encode_text([query.prompt])
    mask = region_mask(query, model, index.center_crop)
    noise = NoiseSettings(settings.timesteps, settings.noises, settings.seed)
    bank = NoiseBank.draw(noise, model.latent_shape, model.train_timesteps)
    for step in range(settings.steps):
        gradient: dict[str, Tensor] = {}
        for done, so_far in query_gradient(model, index.weights, latents, text, bank, mask, settings.batch):
            gradient = so_far
            yield step * len(bank) + done
        add_step(weights, newton_step(gradient, index.fisher, settings, len(index)))


def pixel(model: Model, index: Index, query: Query, settings: AttributeSettings, stop: Event) -> Answer:
    """The pixel baseline: cosine of intensities, of the whole picture or of the boxes' crop."""
    clock = _Clock()
    square, frame = to_square(query.image, model.resolution, index.center_crop)
    if query.boxes:
        square = _crop(square, [_into(frame, box) for box in query.boxes])
    scores = pixel_scores(square, index.pixels)
    _check(stop)
    best = scores.best_first(range(len(index)))
    standing = Standing(tuple(int(row) for row in best), scores.take(best), 0, 0, True)
    clock.lap("features")
    results = _results(standing, index, settings.top_k)
    yield Attribution(query, settings, results, 0, clock.laps, index.id, model.sha256)


METHODS: dict[str, Method] = {
    "unlearning": Method(unlearning, "loss change after a Newton step that unlearns the picture", "Wang et al. 2024"),
    "pixel": Method(pixel, "cosine similarity of pixel intensities", "baseline of Wang et al. 2024"),
}


def region_mask(query: Query, model: Model, center_crop: bool = True) -> Tensor | None:
    """The share of each latent cell that the box covering most of it covers: (h, w) in [0, 1]; None without boxes.

    Raises:
        InputError: a box is not finite, reversed, outside, or smaller than one latent cell.
    """
    if not query.boxes:
        return None
    _, frame = to_square(query.image, model.resolution, center_crop)
    masks = []
    for box in query.boxes:
        check_box(box, query.image.size, model.scale / min(frame.scale_x, frame.scale_y))
        x0, y0, x1, y1 = (side / model.scale for side in _into(frame, box))
        across, down = _cover(x0, x1, model.latent_shape[2]), _cover(y0, y1, model.latent_shape[1])
        masks.append(down[:, None] * across[None, :])
    mask = torch.stack(masks).amax(0)
    if not mask.any():
        raise InputError(
            f"the box {_shown(query.boxes[0])} is outside what the model sees,"
            f" the middle square of {min(query.image.size)} px"
        )
    return mask


def check_box(box: Box, size: tuple[int, int], smallest: float) -> None:
    """Refuse a box that is not inside a picture of `size`, or has a side under `smallest` pixels.

    Raises:
        InputError: naming the box and what is accepted.
    """
    width, height = size
    accepted = (
        f"accepted are x0 < x1 from 0 to {width} and y0 < y1 from 0 to {height},"
        f" each side {math.ceil(smallest)} px or more"
    )
    if len(box) != 4 or not all(math.isfinite(side) for side in box):
        raise InputError(f"the box {box!r} is not four finite numbers; {accepted}")
    x0, y0, x1, y1 = box
    if x0 < 0 or y0 < 0 or x1 > width or y1 > height:
        raise InputError(f"the box {_shown(box)} reaches outside the picture; {accepted}")
    if x1 - x0 < smallest - 1e-6 or y1 - y0 < smallest - 1e-6:
        raise InputError(f"the box {_shown(box)} is empty, reversed or too small; {accepted}")


def likely_first(prompt: str, captions: list[str]) -> list[int]:
    """Rows by how many words of the prompt their captions share: only the order in which a race looks at them."""
    words = set(prompt.lower().split())
    shared = [len(words.intersection(text.lower().split())) / (1 + len(text.split())) for text in captions]
    return [int(row) for row in np.argsort(-np.asarray(shared), kind="stable")]


def image_sha256(image: Image.Image) -> str:
    """A hash of a picture's size and RGB pixels."""
    rgb = image.convert("RGB")
    return hashlib.sha256(repr(rgb.size).encode() + rgb.tobytes()).hexdigest()


def _rounds(index: Index, columns: int, settings: AttributeSettings) -> list[Round]:
    if settings.exhaustive:
        return exhaustive(len(index), columns, index.views)
    race_settings = replace(settings.race, survivors=max(settings.race.survivors, 2 * settings.top_k))
    return schedule(len(index), columns, race_settings, index.views)


def _results(standing: Standing, index: Index, top_k: int) -> tuple[Result, ...]:
    scores = standing.scores
    return tuple(
        Result(
            rank=place + 1,
            row=row,
            id=index.ids[row],
            score=float(scores.value[place]),
            low=float(scores.low[place]),
            high=float(scores.high[place]),
            caption=index.captions[row],
            flip=bool(scores.flip[place]),
        )
        for place, row in enumerate(standing.rows[:top_k])
    )


def _cover(start: float, end: float, cells: int) -> Tensor:
    """The share of each of `cells` unit cells that lies between start and end."""
    edges = torch.arange(cells)
    return (torch.minimum(edges + 1, torch.tensor(end)) - torch.maximum(edges, torch.tensor(start))).clamp(0, 1)


def _into(frame: Frame, box: Box) -> Box:
    x0, y0, x1, y1 = box
    return (
        (x0 - frame.left) * frame.scale_x,
        (y0 - frame.top) * frame.scale_y,
        (x1 - frame.left) * frame.scale_x,
        (y1 - frame.top) * frame.scale_y,
    )


def _crop(square: Image.Image, boxes: list[Box]) -> Image.Image:
    """The square's part around all boxes, padded to a square with white."""
    sides = list(zip(*boxes, strict=True))
    corners = (math.floor(min(sides[0])), math.floor(min(sides[1])), math.ceil(max(sides[2])), math.ceil(max(sides[3])))
    part = square.crop(corners)
    return ImageOps.pad(part, (max(part.size),) * 2, color="white")


def _shown(box: Box) -> str:
    return ", ".join(f"{side:g}" for side in box)


def _check(stop: Event) -> None:
    if stop.is_set():
        raise Stopped("stopped; the model is as it was")


class _Clock:
    """Seconds by stage."""

    def __init__(self) -> None:
        self.began = self.last = time.monotonic()
        self.laps: dict[str, float] = {}

    def lap(self, stage: str) -> None:
        """End a stage."""
        now = time.monotonic()
        self.laps[stage], self.last = now - self.last, now

    def total(self) -> float:
        """Seconds since the beginning."""
        return time.monotonic() - self.began
