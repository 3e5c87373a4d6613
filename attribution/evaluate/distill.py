"""Teach the networks of `fast` to rank training images as the default method does, and judge them on pictures held out.

A cross-entropy over ranks: the softmax of a query's cosines with all training images should be the shares that those
ranked first for it have by their rank. Two groups are learned from, which count alike: pictures, which the default
method answered or, with a box and in a tenth of the time, the source of its candidates ranked; and training images,
which the stored gradients rank for one another at no cost. For how many steps is chosen by leaving pictures out that
the default method answered.
"""

import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import normalize

from attribution.errors import InputError
from attribution.evaluate.agreement import average_precision, ranks_of
from attribution.evaluate.lessons import BASES, Lesson
from attribution.index.index import Index
from attribution.index.towers import SIDES, Towers, joined
from attribution.methods.candidates import D_TRAK, holds
from attribution.methods.trak import Kernel
from attribution.unlearning.score import Floats

ALL = 4096  # training images that a step compares, of more by chance; and that are asked about themselves, at most
LEARNED = ("direct", "inner", "bias", "outer")
BATCH = 128  # queries of a group in one step, at most


@dataclass(frozen=True)
class Group:
    """Queries that are learned from together.

    Attributes:
        asked: (Q, D) float32, their joined features.
        wanted: (Q, R), rows of the training set, best first.
        own: (Q,), the row that a query itself is; -1 where it is none.
    """

    asked: Tensor
    wanted: Tensor
    own: Tensor

    def some(self, which: Tensor) -> "Group":
        """Some of the queries."""
        return Group(self.asked[which], self.wanted[which], self.own[which])


@dataclass(frozen=True)
class TrainSettings:
    """How the networks learn.

    Attributes:
        hidden: width of the hidden layers.
        rate: of AdamW.
        temperature: of the softmax of cosines.
        decay: ranks by which an image's share falls to a third.
        penalty: on the squares of what the networks add to where they begin, the plain cosines of the joined features.
        steps: at most; how many is chosen.
        every: steps between two looks at pictures left out.
        folds: parts of the pictures that are left out in turn.
        seed: of the weights and of these parts.
    """

    hidden: int = 256
    rate: float = 2e-3
    temperature: float = 0.1
    decay: float = 30.0
    penalty: float = 1e-5
    steps: int = 600
    every: int = 100
    folds: int = 4
    seed: int = 0


@dataclass(frozen=True)
class Chosen:
    """How many steps leaving pictures out decided on, and the mAP on those."""

    steps: int
    value: float


def check_training(settings: TrainSettings, queries: int) -> None:
    """Refuse settings that nothing could be trained with.

    Raises:
        InputError: names the first value that is not possible, and what is accepted.
    """
    for name, possible, accepted in (
        ("hidden", settings.hidden >= 1, "whole numbers from 1"),
        ("rate", settings.rate > 0, "numbers above 0"),
        ("temperature", settings.temperature > 0, "numbers above 0"),
        ("decay", settings.decay > 0, "numbers above 0"),
        ("penalty", settings.penalty >= 0, "numbers from 0"),
        ("every", settings.every >= 1, "whole numbers from 1"),
        ("steps", settings.steps >= settings.every, f"whole numbers from {settings.every}, that of --every"),
        ("folds", 2 <= settings.folds <= queries, f"2 to {queries}, the pictures that are learned from"),
    ):
        if not possible:
            raise InputError(f"{name} = {getattr(settings, name)} is not possible; accepted are {accepted}")


def vectors_of(index: Index, bases: Sequence[str]) -> Tensor:
    """The joined features of all training images: (N, views, D) float32."""
    return torch.from_numpy(joined([np.asarray(index.array(f"features/{base}"), np.float32) for base in bases]))


def asked_of(lessons: Sequence[Lesson], bases: Sequence[str]) -> Tensor:
    """The joined features of pictures: (Q, D) float32."""
    return torch.from_numpy(np.stack([np.concatenate([each.seen[base] for base in bases]) for each in lessons])).float()


def group_of(lessons: Sequence[Lesson], bases: Sequence[str]) -> Group:
    """Pictures and what ranks first for each."""
    most = min(len(each.rows) for each in lessons)
    wanted = np.stack([each.rows[:most] for each in lessons])
    return Group(asked_of(lessons, bases), torch.from_numpy(wanted).long(), torch.full((len(lessons),), -1))


def own_group(index: Index, images: Tensor, relevant: int, seed: int) -> Group:
    """Training images, and the others that the stored gradients rank first for each: it takes no prediction."""
    phi = np.asarray(index.array(f"gradients/{D_TRAK}")[0, :, 0], np.float32)
    kernel, count = Kernel.of(phi, index.gradients(D_TRAK).damping), min(ALL, len(index))
    rows = torch.from_numpy(np.random.default_rng(seed).permutation(len(index))[:count])
    wanted = []
    for some in rows.split(64):
        right = torch.from_numpy(phi[some.numpy()].T.astype(np.float64))
        scores = torch.from_numpy(phi) @ torch.cholesky_solve(right, kernel.factor).float()
        scores[some, torch.arange(len(some))] = -torch.inf
        wanted.append(scores.topk(min(relevant, len(index) - 1), dim=0).indices.T)
    return Group(images[rows, 0], torch.cat(wanted), rows)


def rank_shares(wanted: Tensor, compared: Tensor, decay: float) -> Tensor:
    """The shares (Q, M) of the compared rows (M,), sorted: exp(-rank / decay) of those in `wanted` (Q, R), best first.

    They have a sum of one; other rows have none.
    """
    each = torch.softmax(-torch.arange(wanted.shape[1]) / decay, 0)
    shares = torch.zeros(len(wanted), len(compared))
    return shares.scatter_(1, torch.searchsorted(compared, wanted), each.expand(wanted.shape))


def compared_rows(wanted: Tensor, count: int, generator: torch.Generator) -> Tensor:
    """The rows that queries are compared with: all, or those that are wanted and ALL by chance; sorted."""
    if count <= ALL:
        return torch.arange(count)
    rows: Tensor = torch.cat([wanted.flatten(), torch.randint(count, (ALL,), generator=generator)]).unique()
    return rows


def rank_cross_entropy(cosines: Tensor, shares: Tensor, temperature: float) -> Tensor:
    """The mean over queries of -sum_i shares_i log softmax(cosines / temperature)_i; both are (Q, N)."""
    each: Tensor = -(shares * (cosines / temperature).log_softmax(1)).sum(1)
    return each.mean()


def begin(images: Tensor, settings: TrainSettings) -> dict[str, Tensor]:
    """Weights of networks whose cosines are those of the standardised features."""
    flat, wide = images.flatten(0, 1), images.shape[-1]
    generator, weights = torch.Generator().manual_seed(settings.seed), dict[str, Tensor]()
    for side in SIDES:
        weights |= {
            f"{side}.mean": flat.mean(0),
            f"{side}.scale": flat.std(0).clamp_min(1e-6),
            f"{side}.direct": torch.eye(wide),
            f"{side}.inner": torch.randn(settings.hidden, wide, generator=generator) / wide**0.5,
            f"{side}.bias": torch.zeros(settings.hidden),
            f"{side}.outer": torch.zeros(wide, settings.hidden),
        }
    return weights


def train(images: Tensor, groups: Sequence[Group], steps: int, settings: TrainSettings) -> Iterator[Towers]:
    """Train on groups of queries for some steps; yields the networks after each; `images` are (N, views, D)."""
    weights, generator = begin(images, settings), torch.Generator().manual_seed(settings.seed)
    free = [weights[f"{side}.{part}"].requires_grad_() for side in SIDES for part in LEARNED]
    home = [each.detach().clone() for each in free]
    optimizer, towers = torch.optim.AdamW(free, settings.rate, weight_decay=0.0), Towers(weights, {})
    for _ in range(steps):
        view = images[:, int(torch.randint(images.shape[1], (1,), generator=generator))]
        some = [group.some(torch.randperm(len(group.own), generator=generator)[:BATCH]) for group in groups]
        loss = _loss(towers, view, some, settings, generator)
        moved = torch.stack([(new - old).square().sum() for new, old in zip(free, home, strict=True)])
        loss = loss + settings.penalty * moved.sum()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        yield towers


def _loss(
    towers: Towers, images: Tensor, groups: Sequence[Group], settings: TrainSettings, generator: torch.Generator
) -> Tensor:
    """The sum of the groups' cross-entropies, among training images in one view, (N, D)."""
    rows = compared_rows(torch.cat([group.wanted.flatten() for group in groups]), len(images), generator)
    placed, losses = normalize(towers.place("images", images[rows]), dim=1), []
    for group in groups:
        cosines = normalize(towers.place("queries", group.asked), dim=1) @ placed.T
        cosines = cosines.masked_fill(group.own[:, None] == rows, -10.0)  # nobody is compared with itself
        losses.append(
            rank_cross_entropy(cosines, rank_shares(group.wanted, rows, settings.decay), settings.temperature)
        )
    return torch.stack(losses).sum()


def cosines_of(images: Tensor, asked: Tensor) -> Floats:
    """Cosines (Q, N) of placed queries (Q, E) with placed training images (N, views, E), the larger over the views."""
    found = torch.einsum("qe,nve->qnv", normalize(asked, dim=-1), normalize(images, dim=-1)).amax(2)
    return found.detach().numpy()


def placed_by(towers: Towers, images: Tensor, asked: Tensor) -> Floats:
    """Cosines (Q, N) of pictures with training images, by joined features."""
    with torch.inference_mode():
        flat = towers.place("images", images.flatten(0, 1))
        return cosines_of(flat.reshape(*images.shape[:2], -1), towers.place("queries", asked))


def precisions(scores: Floats, lessons: Sequence[Lesson], relevant: int) -> Floats:
    """Of each picture, the average precision at finding the default method's first images by scores (Q, N)."""
    return precisions_of(np.argsort(-scores, 1, kind="stable"), lessons, relevant)


def precisions_of(rankings: Iterable[NDArray[np.integer]], lessons: Sequence[Lesson], relevant: int) -> Floats:
    """The same by rankings, each of rows, best first, of all training images or fewer."""
    ranked = zip(rankings, lessons, strict=True)
    ranks = (ranks_of(ranking.tolist(), lesson.rows[:relevant].tolist()) for ranking, lesson in ranked)
    return np.array([average_precision(each) for each in ranks])


# For how long to train


def learn(
    index: Index, lessons: Sequence[Lesson], quick: Sequence[Lesson], relevant: int, settings: TrainSettings
) -> Iterator[str | Towers]:
    """Networks that learned from all pictures; yields what is being done, and at last them.

    Args:
        index: whose images they rank.
        lessons: pictures that the default method answered.
        quick: pictures that the source of its candidates ranked.
        relevant: K of mAP(K), by which the number of steps is chosen.
        settings: of the training.
    """
    images, steps, began = vectors_of(index, BASES), settings.steps, time.monotonic()
    own = [own_group(index, images, relevant, settings.seed)] if holds(index, D_TRAK) else []
    yield "training"
    for done, chosen in enumerate(choose(images, lessons, quick, own, relevant, settings), start=1):
        steps, left = chosen.steps, (time.monotonic() - began) / done * (settings.folds + 1 - done)
        yield f"mAP({relevant}) of pictures left out: {chosen.value:.3f} after {steps} steps; {left:.0f} s left"
    *_, towers = train(images, [group_of([*lessons, *quick], BASES), *own], steps, settings)
    yield towers


def choose(
    images: Tensor,
    lessons: Sequence[Lesson],
    quick: Sequence[Lesson],
    own: Sequence[Group],
    relevant: int,
    settings: TrainSettings,
) -> Iterator[Chosen]:
    """The number of steps by mAP(K) on lessons left out in turn; yields the best so far after each part of them.

    Args:
        images: (N, views, D), joined features of training images.
        lessons: that are left out in turn.
        quick: that are learned from, too, and never left out.
        own: likewise, training images.
        relevant: K.
        settings: of the training.
    """
    looks = settings.steps // settings.every
    folds = np.random.default_rng(settings.seed).permutation(len(lessons)) % settings.folds
    found: list[Floats] = []
    for fold in range(settings.folds):
        kept, left = (
            [each for each, own_fold in zip(lessons, folds, strict=True) if (own_fold == fold) == out]
            for out in (False, True)
        )
        asked, values = asked_of(left, BASES), []
        steps = train(images, [group_of([*kept, *quick], BASES), *own], looks * settings.every, settings)
        for step, towers in enumerate(steps, start=1):
            if step % settings.every == 0:
                values.append(precisions(placed_by(towers, images, asked), left, relevant))
        found.append(np.array(values))
        means = np.concatenate(found, 1).mean(1)
        yield Chosen((int(means.argmax()) + 1) * settings.every, float(means.max()))
