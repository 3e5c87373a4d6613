"""Scores: how much the loss of each training image rose when the query was unlearned (Eq. 6)."""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from attribution.batches import batches, in_batches
from attribution.diffusion.loss import paired_loss
from attribution.diffusion.noise import NoiseBank
from attribution.diffusion.pipeline import Model
from attribution.files import let_go

ScoreKind = Literal["difference", "skew", "trimmed"]
Floats = NDArray[np.floating]
VIEWS = (0, 1)  # a training image and its mirror
Views = Sequence[int] | NDArray[np.integer]  # of all rows the same; or (n, v) of each row its own
# (model, training set, bank, rows, columns, views, batch): `losses_by_call`, or what does the same elsewhere
Losses = Callable[
    [Model, "EncodedSet", NoiseBank, Sequence[int], Sequence[int], Views, int],
    Iterator[tuple[slice, int, Floats]],
]
TRIMMED = 0.2  # share of the noises that a trimmed mean leaves out at either end (Wilcox 2017)


@dataclass(frozen=True)
class EncodedSet:
    """What scoring needs of a training set.

    Attributes:
        latents: (N, views, C, h, w) float16 or float32, memory-mapped or not; axis 1 is image, mirror.
        captions: N, of each image the first.
        several: all captions of the rows that have more than one.
    """

    latents: NDArray[np.floating]
    captions: Sequence[str]
    several: Mapping[int, tuple[str, ...]] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.captions)

    def view(self, rows: Sequence[int], views: Views) -> Tensor:
        """Latents of rows and views: (n, views, C, h, w) float32."""
        picked = np.asarray(self.latents[list(rows)])[cells(range(len(rows)), views)]
        let_go(self.latents)
        return torch.from_numpy(picked.astype(np.promote_types(picked.dtype, np.float32)))

    def text(self, model: Model, rows: Sequence[int]) -> Tensor:
        """Captions of rows, encoded: (n, L, D); where any has several, (n, K, L, D), NaN where one has fewer than K."""
        each = [self.several.get(row, (self.captions[row],)) for row in rows]
        encoded = model.encode_captions([caption for some in each for caption in some])
        if len(encoded) == len(each):
            return encoded
        padded = encoded.new_full((len(each), max(map(len, each)), *encoded.shape[1:]), torch.nan)
        for own, part in zip(padded, encoded.split([len(some) for some in each]), strict=True):
            own[: len(part)] = part
        return padded


def cells(rows: Sequence[int], views: Views, columns: Sequence[int] | None = None) -> tuple[NDArray[np.integer], ...]:
    """Where losses of rows and views are in an array (N, views, ...), of some columns or whole: (n, v[, columns])."""
    at = np.asarray(views) if np.ndim(views) == 2 else np.asarray(views)[None]
    here: tuple[NDArray[np.integer], ...] = (np.asarray(rows, np.intp)[:, None], at)
    return here if columns is None else (here[0][..., None], here[1][..., None], np.asarray(columns, np.intp))


def views_at(views: Views, places: Sequence[int]) -> Views:
    """The views of some rows, by their places."""
    return views[np.asarray(places)] if isinstance(views, np.ndarray) else views


def width(views: Views) -> int:
    """In how many views each row is looked at."""
    return int(views.shape[1]) if isinstance(views, np.ndarray) else len(views)


def losses_of(model: Model, training: EncodedSet, bank: NoiseBank, rows: Sequence[int], views: Views = VIEWS) -> Tensor:
    """Losses of some training images at all columns of a bank: (n, views, columns), on the model's device."""
    return torch.stack(list(losses_by_column(model, training, bank, rows, views)), -1)


def losses_by_column(
    model: Model, training: EncodedSet, bank: NoiseBank, rows: Sequence[int], views: Views = VIEWS
) -> Iterator[Tensor]:
    """Like `losses_of`, a column of the bank at a time, by one call of the U-Net each: (n, views)."""
    encoded = _encoded(model, training, rows, views)
    for column in range(len(bank)):
        yield _losses_at(model, *encoded, bank, [column], len(rows))[0]


def _encoded(model: Model, training: EncodedSet, rows: Sequence[int], views: Views) -> tuple[Tensor, Tensor]:
    """Latents (n, views, C, h, w) and captions of some training images; see `EncodedSet`."""
    return training.view(rows, views), training.text(model, rows)


def _losses_at(
    model: Model, latents: Tensor, text: Tensor, bank: NoiseBank, columns: Sequence[int], at_once: int
) -> Tensor:
    """Losses of n encoded images at some columns of a bank, by one call of the U-Net: (columns, n, views).

    The call holds as many images `at_once`, each at one column, filled up by repetition.
    """
    images, views = latents.shape[:2]
    places = [place % images for place in range(at_once)]
    noises = [columns[place // images % len(columns)] for place in range(at_once) for _ in range(views)]
    x, caption = latents[places].flatten(0, 1), text[places].repeat_interleave(views, 0)
    with torch.inference_mode():
        losses = paired_loss(model, x, caption, bank.select(noises))
    return losses[: len(columns) * images * views].reshape(len(columns), images, views)


def training_losses(
    model: Model,
    training: EncodedSet,
    bank: NoiseBank,
    rows: Sequence[int],
    columns: Sequence[int],
    views: Views = VIEWS,
    batch: int = 64,
) -> Iterator[tuple[slice, Floats]]:
    """Losses of training images, a chunk of them at a time; see `losses_by_call`.

    Yields:
        (which of `rows`, losses of shape (chunk, views, columns)).
    """
    known: list[Floats] = []
    for which, column, losses in losses_by_call(model, training, bank, rows, columns, views, batch):
        known.append(losses)
        if column == len(columns) - 1:
            yield which, np.stack(known, -1)
            known = []


def losses_by_call(
    model: Model,
    training: EncodedSet,
    bank: NoiseBank,
    rows: Sequence[int],
    columns: Sequence[int],
    views: Views = VIEWS,
    batch: int = 64,
) -> Iterator[tuple[slice, int, Floats]]:
    """Losses of training images, one call of the U-Net at a time: a chunk of images at each column in turn.

    Every call of the U-Net holds as many predictions: of few images at several columns, filled up by repetition. So an
    image's loss depends on the subset that it is measured in by no more than its place in a batch changes the rounding
    of a product.

    Yields:
        (which of `rows`, which of `columns`, losses of shape (chunk, views)).
    """
    bank, at_once = bank.select(list(columns)), max(1, batch // width(views))

    def begin(which: range) -> tuple[Callable[[range], Tensor], Tensor]:  # with a call, to learn whether so many fit
        some = [place % len(rows) for place in range(which.start, max(which.start + 1, min(which.stop, len(rows))))]
        encoded = _encoded(model, training, [rows[place] for place in some], views_at(views, some))
        call = partial(_losses_at, model, *encoded, bank, at_once=len(which))
        return call, call(range(columns_at_once(len(some), len(which)))[: len(bank)])

    for which, (call, first) in in_batches(math.ceil(len(rows) / at_once) * at_once, at_once, begin):
        here = slice(which.start, min(which.stop, len(rows)))
        if here.start < here.stop:  # not of repetitions alone, the last of smaller batches
            for together in batches(len(bank), len(first)):
                losses = call(together) if together.start else first
                for column, each in zip(together, losses.cpu().numpy(), strict=True):
                    yield here, column, each


def columns_at_once(images: int, at_once: int) -> int:
    """At how many columns so many images are in one call of the U-Net, which holds so many at once."""
    return max(1, at_once // images)


@dataclass(frozen=True)
class Scores:
    """Scores of n images, higher is more influential.

    Attributes:
        value: (n,) the larger of the image's and its mirror's.
        low: (n,) lower end of a 95 % interval over the bank's noises.
        high: (n,) upper end.
        flip: (n,) whether the mirror's was the larger.
    """

    value: Floats
    low: Floats
    high: Floats
    flip: NDArray[np.bool_]

    @classmethod
    def exact(cls, values: Floats) -> "Scores":
        """Scores without an interval from values (n, views), the larger of the views."""
        best = values.max(1)
        return cls(best, best, best, values.argmax(1) == 1)

    def take(self, order: NDArray[np.intp]) -> "Scores":
        """The scores of some images, in the order given."""
        return Scores(self.value[order], self.low[order], self.high[order], self.flip[order])

    def first(self, count: int) -> NDArray[np.intp]:
        """The first `count` of the order that `best_first` gives all; the others are not sorted."""
        kept = np.arange(len(self.value))
        if count < len(kept):
            border = np.partition(self.value, -count)[-count]
            above, ties = np.flatnonzero(self.value > border), np.flatnonzero(self.value == border)
            kept = np.concatenate([above, ties[: count - len(above)]])
        order: NDArray[np.intp] = kept[np.lexsort((kept, -self.value[kept]))]
        return order

    def best_first(self, rows: Sequence[int]) -> NDArray[np.intp]:
        """The order from the highest score down; ties go to the earlier of `rows`."""
        return np.lexsort((np.asarray(rows), -self.value))


def changes_of(before: Floats, after: Floats, kind: ScoreKind = "difference") -> Floats:
    """Losses' changes by unlearning, noise by noise, of any shape: L1 - L0; of `skew` normalised, see `score`."""
    change = after - before
    return change / (after + before + 1e-3) if kind == "skew" else change


def score(before: Floats, after: Floats, kind: ScoreKind = "difference", foreseen: Floats | None = None) -> Scores:
    """Score images from their losses (n, views, columns) before and after unlearning.

    `difference` is Eq. 6, the mean over the bank of L1 - L0; `skew` is the mean of the normalised
    (L1 - L0) / (L1 + L0 + 1e-3), noise by noise (Serra et al. 2026); `trimmed` is the mean of L1 - L0 without the
    highest and the lowest fifth of them, whole noises only.

    Args:
        before: losses.
        after: losses.
        kind: of score.
        foreseen: (n, views) changes that were foreseen, in the measured ones' unit; the score is then the mean of both.
    """
    change = changes_of(before, after, kind)
    columns = change.shape[-1]
    cut = int(TRIMMED * columns) if kind == "trimmed" else 0
    mean = _trimmed(change, cut)  # (n, views)
    error = _spread(change, cut) / np.sqrt(columns) if columns > 1 else np.full_like(mean, np.inf)
    if foreseen is not None:
        mean, error = (mean + foreseen) / 2, error / 2
    best = mean.argmax(1)
    at = (np.arange(len(mean)), best)
    return Scores(mean[at], mean[at] - 1.96 * error[at], mean[at] + 1.96 * error[at], best == 1)


def _trimmed(values: Floats, cut: int) -> Floats:
    """The mean over the last axis without the `cut` highest and lowest."""
    if not cut:
        return np.asarray(values.mean(-1))
    return np.asarray(np.sort(values, -1)[..., cut:-cut].mean(-1))


def _spread(values: Floats, cut: int) -> Floats:
    """The standard error of a trimmed mean times the root of how many: of winsorised values (Tukey and McLaughlin)."""
    if not cut:
        return np.asarray(values.std(-1, ddof=1))
    ordered, columns = np.sort(values, -1), values.shape[-1]
    winsorised = values.clip(ordered[..., cut, None], ordered[..., -cut - 1, None])
    return np.asarray(winsorised.std(-1, ddof=1) / (1 - 2 * cut / columns))
