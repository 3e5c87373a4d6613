"""Does unlearning training images foresee what training without them does?

The page takes training images away in seconds, by unlearning them (`answers/remove.py`), and draws the picture again.
Here the images that trainings left out are unlearned in the same way, and the queries' losses are held against those
that the trainings ended with.
"""

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from scipy.stats import spearmanr

from attribution.answers.forget import move
from attribution.answers.remove import removal_settings, unlearn_rows
from attribution.diffusion.pipeline import Model
from attribution.diffusion.weights import unlearned
from attribution.evaluate.agreement import Estimate, estimate
from attribution.evaluate.counterfactual import Evidence, LeaveOutSettings, named
from attribution.evaluate.queue import Queue, open_queue
from attribution.evaluate.retrain import Removal, losses_of, queries_digest
from attribution.index.index import Index
from attribution.query.encoded import encode
from attribution.query.query import Query
from attribution.unlearning.score import Floats

STRENGTH = 4.0  # times Eq. 5; the page takes the weakest that shows, from 1 to 64


def foresee(
    folder: Path, model: Model, index: Index, wanted: Sequence[Removal], queries: Sequence[Query]
) -> Iterator[Removal]:
    """Unlearn what trainings left out; yields each removal that this process has unlearned.

    Args:
        folder: of trainings; what the queries' losses do is kept beside them; any number of processes share it.
        model: trained on all images, which ends as it was.
        index: of its training set, with its Fisher information.
        wanted: one seed of each.
        queries: of generated pictures.
    """
    asked, settings = [encode(model, query) for query in queries], removal_settings(model, index)
    made = {"index": index.id, "step": asdict(settings), "strength": STRENGTH}
    queue, by_name = open_queue(_folder(folder, queries), made), {removal.name: removal for removal in wanted}
    before = losses_of(model, asked)
    for name in queue.claimed(list(by_name)):
        with unlearned(model, index.weights) as weights:
            start = {key: weight.clone() for key, weight in weights.items()}
            for _ in unlearn_rows(model, index, by_name[name].rows, settings, weights):
                queue.touch(name)
            move(weights, start, {key: weight - start[key] for key, weight in weights.items()}, STRENGTH)
            queue.keep(name, {"change": losses_of(model, asked) - before})
        yield by_name[name]


def _folder(folder: Path, queries: Sequence[Query]) -> Path:
    return folder / f"unlearned-{queries_digest(queries)}"


def foreseen(folder: Path, wanted: Sequence[Removal], queries: Sequence[Query]) -> dict[Removal, Floats]:
    """By removal, how much each query's loss rose (Q,) when it was unlearned, as far as that is done."""
    queue = Queue(_folder(folder, queries))
    return {each: queue.result(each.name)["change"] for each in wanted if queue.done(each.name)}


@dataclass(frozen=True)
class Foresight:
    """How well unlearning K images a query foresees training without them.

    Attributes:
        k: images a query and method.
        methods: whose images were unlearned, of all queries.
        queries: how many.
        all: rank correlation of the rises of loss over queries and methods together.
        within: over methods, of each query: which of the methods' images matter the most.
    """

    k: int
    methods: tuple[str, ...]
    queries: int
    all: float
    within: Estimate

    @property
    def told(self) -> str:
        """In words, as `counterfactual` and the page say it."""
        return (
            f"{self.all:.2f} for {self.k} images a picture ({self.within.mean:.2f} within one picture;"
            f" {len(self.methods)} methods, {self.queries} pictures)"
        )


def foresight(evidence: Evidence, settings: LeaveOutSettings) -> list[Foresight]:
    """What is known, for each K that three methods or more have been unlearned with."""
    found = []
    for k in settings.ks:
        pairs = {method: _pairs(evidence, method, k, settings.seeds) for method in settings.methods}
        known = {method: both for method, both in pairs.items() if both is not None}
        if len(known) >= 3:
            rises = np.stack(list(known.values()))  # (methods, 2, Q)
            queries = rises.shape[2]
            within = [_correlation(rises[:, 0, query], rises[:, 1, query]) for query in range(queries)]
            ranks = (_correlation(rises[:, 0], rises[:, 1]), estimate(np.array(within)))
            found.append(Foresight(k, tuple(known), queries, *ranks))
    return found


def _pairs(evidence: Evidence, method: str, k: int, seeds: int) -> Floats | None:
    """Each query's rise of loss by training, the mean over seeds, and by unlearning (2, Q); None where one lacks."""
    rises = np.zeros((2, sum(map(len, evidence.sharing))))
    for members in evidence.sharing:
        removals = [named(evidence.scores, members, method, k, seed) for seed in range(seeds)]
        trained = [evidence.changes[each]["change"] for each in removals if each in evidence.changes]
        if removals[0] not in evidence.unlearned or not trained:
            return None
        place = list(members)
        rises[:, place] = np.stack([np.mean(trained, 0), evidence.unlearned[removals[0]]])[:, place]
    return rises


def _correlation(one: Floats, other: Floats) -> float:
    return float(spearmanr(one, other, axis=None).statistic)
