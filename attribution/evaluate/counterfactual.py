"""Leave-K-out: take away the images that a method names, train again, and see whether the picture goes (Section 5.1).

One training may leave out the top K of several queries of different objects. A query whose images were left out is then
compared with what the same training does when nothing is left out, and with how many random images do as much.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from attribution.errors import InputError
from attribution.evaluate.agreement import Estimate, equivalent_random, estimate, paired_p
from attribution.evaluate.lds import JUDGED
from attribution.evaluate.retrain import Removal, without
from attribution.query.query import Query
from attribution.scenes.names import named_in
from attribution.scenes.retraining import RetrainSettings
from attribution.unlearning.score import Floats

Known = Mapping[Removal, Mapping[str, NDArray[Any]]]
Changes = Mapping[Removal, Mapping[str, Floats]]


@dataclass(frozen=True)
class LeaveOutSettings:
    """What is taken away.

    Attributes:
        ks: how many images a query and method.
        queries: the first ones.
        together: queries whose images one training leaves out; 1 is the paper's own form.
        methods: that name the images.
        seeds: trainings of each; nothing is left out of as many more.
        curve: sizes of random removals, that a method's are compared with.
        draws: random removals of each size.
        training: how each model is trained.
    """

    ks: tuple[int, ...] = (16, 64)
    queries: int = 16
    together: int = 4
    methods: tuple[str, ...] = JUDGED
    seeds: int = 2
    curve: tuple[int, ...] = (16, 32, 64, 128, 256, 512, 960)
    draws: int = 3
    training: RetrainSettings = field(default_factory=RetrainSettings)


def groups(queries: Sequence[Query], together: int) -> list[tuple[int, ...]]:
    """Queries that share a training, by their numbers: no two of one group name an object in common, where possible.

    Each query joins the first group with room and none of its objects; where there is none, the emptiest.
    """
    count = -(-len(queries) // together)
    found: list[list[int]] = [[] for _ in range(count)]
    for number, query in enumerate(queries):
        room = [group for group in found if len(group) < together]
        named = named_in(query.prompt)
        apart = [group for group in room if not any(named & named_in(queries[one].prompt) for one in group)]
        (apart or sorted(room, key=len))[0].append(number)
    return [tuple(group) for group in found if group]


def top(scores: Floats, k: int) -> NDArray[np.intp]:
    """The K rows of highest scores (N,); ties go to the earlier row."""
    return np.lexsort((np.arange(len(scores)), -scores))[:k]


def named(scores: Mapping[str, Floats], members: Sequence[int], method: str, k: int, seed: int) -> Removal:
    """The training without what a method names first for each query of a group."""
    rows = {int(row) for number in members for row in top(scores[method][number], k)}
    return without(rows, seed)


def by_chance(images: int, k: int, draw: int, seed: int) -> Removal:
    """The training without K random images."""
    return without(np.random.default_rng([16, k, draw]).permutation(images)[:k], seed)


def check_sizes(ks: Sequence[int], images: int) -> None:
    """Refuse to leave out nothing, or as many images as there are, or more; raises InputError."""
    if impossible := [k for k in ks if not 1 <= k < images]:
        raise InputError(f"{impossible[0]} of {images} images cannot be left out; accepted are 1 to {images - 1}")


def removals(scores: Mapping[str, Floats], queries: Sequence[Query], settings: LeaveOutSettings) -> list[Removal]:
    """All trainings: with nothing left out, by chance, and by every method; the first seed of all comes first.

    Raises:
        InputError: as many images as there are, or more, would be left out.
    """
    images = next(iter(scores.values())).shape[1]
    check_sizes((*settings.ks, *settings.curve), images)
    wanted: list[Removal] = []
    for seed in range(settings.seeds):
        wanted.append(without((), seed))
        wanted += [by_chance(images, k, draw, seed) for k in settings.curve for draw in range(settings.draws)]
        wanted += named_by_methods(scores, queries, settings, seed)
    return list(dict.fromkeys(wanted))


def named_by_methods(
    scores: Mapping[str, Floats], queries: Sequence[Query], settings: LeaveOutSettings, seed: int
) -> list[Removal]:
    """The trainings of a seed without what methods name, some of them twice."""
    sharing = groups(queries[: settings.queries], settings.together)
    return [
        named(scores, each, method, k, seed) for k in settings.ks for each in sharing for method in settings.methods
    ]


@dataclass(frozen=True)
class Left:
    """What happened to the queries when the images went that a method names.

    Attributes:
        method: that named them.
        k: images a query.
        change: (Q,) rise of each query's loss, mean over seeds.
        moved: (Q,) mean squared difference of the picture drawn again, in [0, 1].
        random: (Q,) how many random images would do as much to the loss.
        removed: mean number of images left out of a training.
        stayed: mean rise of the loss of queries whose images were not meant: what leaving out anything does.
        seeds: trainings of each, that the figures are means of.
    """

    method: str
    k: int
    change: Floats
    moved: Floats
    random: Floats
    removed: float
    stayed: float = 0.0
    seeds: int = 1

    @property
    def mean(self) -> Estimate:
        """Of the change, over queries."""
        return estimate(self.change)

    def of(self, queries: int) -> "Left":
        """The same of the first queries alone."""
        change, moved, random = (each[:queries] for each in (self.change, self.moved, self.random))
        return replace(self, change=change, moved=moved, random=random)


def outcome(
    known: Known, scores: Mapping[str, Floats], queries: Sequence[Query], settings: LeaveOutSettings
) -> list[Left]:
    """What is known of every method and K whose trainings are all done."""
    sharing = groups(queries[: settings.queries], settings.together)
    return judged(Evidence(changes(known), scores, sharing), settings)


@dataclass(frozen=True)
class Evidence:
    """What the methods are judged by.

    Attributes:
        changes: of every query, by training; see `changes`.
        scores: (Q, N) by method.
        sharing: queries that share a training, by their numbers.
        unlearned: how much every query's loss rose (Q,) when the images were unlearned that a training left out.
    """

    changes: Changes
    scores: Mapping[str, Floats]
    sharing: Sequence[tuple[int, ...]]
    unlearned: Mapping[Removal, Floats] = field(default_factory=dict)

    @property
    def images(self) -> int:
        """N, of the training set."""
        return int(next(iter(self.scores.values())).shape[1])


def judged(evidence: Evidence, settings: LeaveOutSettings) -> list[Left]:
    """What evidence says of every method and K whose trainings are all done."""
    seeds, curve = _seeds(evidence, settings), random_curve(evidence, settings)
    every = [_left(evidence, seeds, method, k) for k in settings.ks for method in settings.methods]
    return [_compared(each, curve) for each in every if each is not None]


def _left(evidence: Evidence, seeds: Sequence[int], method: str, k: int) -> Left | None:
    """One method and K, not yet compared with random removals: of the seeds that are trained whole, or None."""
    known, count = evidence.changes, sum(map(len, evidence.sharing))
    without_them = [
        [named(evidence.scores, members, method, k, seed) for members in evidence.sharing] for seed in seeds
    ]
    whole = [trainings for trainings in without_them if all(each in known for each in trainings)]
    if not whole:
        return None
    change, moved = np.zeros(count), np.zeros(count)
    stayed: list[float] = []
    for members, held in zip(evidence.sharing, zip(*whole, strict=True), strict=True):
        place, others = list(members), sorted(set(range(count)) - set(members))
        rises = np.mean([known[each]["change"] for each in held], 0)
        change[place], stayed = rises[place], [*stayed, *rises[others]]
        moved[place] = np.mean([known[each]["moved"] for each in held], 0)[place]
    removed = float(np.mean([len(each.rows) for each in whole[0]]))
    beside = float(np.mean(stayed)) if stayed else 0.0
    return Left(method, k, change, moved, np.zeros(count), removed, beside, len(whole))


def _compared(left: Left, curve: Mapping[int, Floats]) -> Left:
    random = [equivalent_random(change, *_rising(curve, query)) for query, change in enumerate(left.change)]
    return replace(left, random=np.array(random))


def changes(known: Known) -> Changes:
    """What became of the queries without some images, against the training of the same seed without any removal.

    A training without any removal is compared with that of the first seed: that is the noise of training again.

    Returns:
        By training, where that is known: "change" of loss and "moved", the mean squared difference of the pictures
        in [0, 1]; (Q,) each.
    """
    plain = {removal.seed: held for removal, held in known.items() if not removal.rows}
    found = {}
    for removal, held in known.items():
        if removal.seed in plain:
            against = plain[removal.seed if removal.rows else min(plain)]
            moved = ((held["pictures"].astype(np.float64) - against["pictures"]) / 255) ** 2
            found[removal] = {"change": held["losses"] - against["losses"], "moved": moved.mean((1, 2, 3))}
    return found


def noise(evidence: Evidence) -> list[Left]:
    """What training again with another seed does to the queries, where nothing is left out: none or one line."""
    again = [held for removal, held in sorted(evidence.changes.items(), key=_seed) if not removal.rows][1:]
    if not again:
        return []
    queries = sum(map(len, evidence.sharing))
    change, moved = (np.mean([held[name][:queries] for held in again], 0) for name in ("change", "moved"))
    return [Left("nothing, but another seed", 0, change, moved, np.zeros(queries), 0.0)]


def _seed(held: tuple[Removal, Any]) -> int:
    return held[0].seed


def _seeds(evidence: Evidence, settings: LeaveOutSettings) -> list[int]:
    """Those that a training without any removal has."""
    return [seed for seed in range(settings.seeds) if without((), seed) in evidence.changes]


def random_curve(evidence: Evidence, settings: LeaveOutSettings) -> dict[int, Floats]:
    """The rise of every query's loss (Q,) by how many random images were left out, as far as that is known."""
    curve, seeds = {}, _seeds(evidence, settings)
    for k in settings.curve:
        asked = [by_chance(evidence.images, k, draw, seed) for draw in range(settings.draws) for seed in seeds]
        rises = [evidence.changes[each]["change"] for each in asked if each in evidence.changes]
        if rises:
            curve[k] = np.mean(rises, 0)
    return curve


def _rising(curve: Mapping[int, Floats], query: int) -> tuple[list[int], Floats]:
    """One query's curve, from nothing removed on."""
    return [0, *curve], np.array([0.0, *(changes[query] for changes in curve.values())])


def lacking(found: Sequence[Left], settings: LeaveOutSettings) -> list[str]:
    """What is asked for and not found, in words."""
    held = {(each.method, each.k) for each in found}
    wanted = [(method, k) for k in settings.ks for method in settings.methods if (method, k) not in held]
    few_seeds = [
        f"{settings.seeds - fewest} of {settings.seeds} seeds with K = {k}"
        for k in settings.ks
        if (fewest := min((each.seeds for each in found if each.k == k), default=settings.seeds)) < settings.seeds
    ]
    queries = max((len(each.change) for each in found), default=0)
    few = [f"{settings.queries - queries} of {settings.queries} queries"] if 0 < queries < settings.queries else []
    return [*(f"{method} with K = {k}" for method, k in wanted), *few_seeds, *few]


def table(found: Sequence[Left]) -> str:
    """Markdown: a line a method and K, the largest change first, and how likely it is that this one is no better."""
    lines = [
        "| K | method | change of loss | standard error | others' change | picture moved (MSE) | equals random"
        " | left out | seeds | first is no better |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    first: dict[int, Left] = {}
    for left in sorted(found, key=lambda each: (each.k, -each.mean.mean)):
        best = first.setdefault(left.k, left)
        alone = len(left.change) == 1  # nothing is known of how far chance goes
        chance = "" if best is left or alone else f"{paired_p(best.change, left.change):.4f}"
        error = "" if alone else f"{left.mean.error:.5f}"
        figures = f"{left.mean.mean:.5f} | {error} | {left.stayed:.5f} | {left.moved.mean():.4f}"
        rest = f"{left.random.mean():.0f} | {left.removed:.0f} | {left.seeds} | {chance}"
        lines.append(f"| {left.k} | {left.method} | {figures} | {rest} |")
    return "\n".join(lines)
