"""Losses of training images under the weights that the model has now, for searches that ask for them bit by bit."""

from collections.abc import Iterator, Sequence
from threading import Event

import numpy as np

from attribution.batches import batches
from attribution.diffusion.pipeline import Model
from attribution.diffusion.weights import pretrained
from attribution.index.index import Index
from attribution.methods.answer import AttributeSettings, check_scores, check_stop
from attribution.unlearning.best import Look, Places
from attribution.unlearning.race import Measure
from attribution.unlearning.score import Floats, losses_by_call, losses_one_by_one


class Losses:
    """Training losses on the noises that the settings name.

    Attributes:
        base: (N, views, S) losses under the pretrained weights: the index's or, with a noise seed, measured beside
            those after unlearning.
        each: how many predictions a loss after unlearning takes, the one before included.
    """

    def __init__(self, model: Model, index: Index, settings: AttributeSettings, stop: Event) -> None:
        self.model, self.index, self.batch, self.stop = model, index, settings.batch, stop
        self.bank = index.bank(model, settings.noise_seed)
        self.each, self.base = predictions_each(settings), index.base_losses[:, : len(index.views)]
        if self.each == 2:
            self.base = np.full(self.base.shape, np.nan, self.base.dtype)

    @property
    def measure(self) -> Measure:
        """Losses after unlearning, for a race; `base` is known of what was measured."""
        return self._after if self.each == 1 else self._both

    def _after(
        self, rows: Sequence[int], columns: Sequence[int], views: Sequence[int]
    ) -> Iterator[tuple[slice, int, Floats]]:
        model, encoded = self.model, self.index.encoded
        for which, column, losses in losses_by_call(model, encoded, self.bank, rows, columns, views, self.batch):
            self._check(losses, rows[which])
            yield which, column, losses

    def _both(
        self, rows: Sequence[int], columns: Sequence[int], views: Sequence[int]
    ) -> Iterator[tuple[slice, int, Floats]]:
        """A batch before unlearning, into `base`, and then after it."""
        for some in batches(len(rows), max(1, self.batch // len(views))):
            here = rows[some.start : some.stop]
            with pretrained(self.model):
                for which, column, losses in self._after(here, columns, views):
                    self.base[np.ix_(here[which], views, [columns[column]])] = losses[..., None]
            for which, column, losses in self._after(here, columns, views):
                yield slice(some.start + which.start, some.start + which.stop), column, losses

    def look(self, rows: Sequence[int]) -> Look:
        """How candidates, which are these rows, are looked at, one by one."""
        candidates = np.asarray(rows)

        def look(places: Places, views: Places, columns: Places) -> Iterator[tuple[slice, Floats, Floats]]:
            for some in batches(len(places), self.batch):
                at = slice(some.start, some.stop)
                asked = (candidates[places[at]], views[at], columns[at])
                if self.each == 2:
                    with pretrained(self.model):
                        self.base[asked] = np.concatenate([losses for _, losses in self._one_by_one(*asked)])
                for which, losses in self._one_by_one(*asked):
                    here = slice(some.start + which.start, some.start + which.stop)
                    yield here, self.base[tuple(each[which] for each in asked)], losses

        return look

    def _one_by_one(self, rows: Places, views: Places, columns: Places) -> Iterator[tuple[slice, Floats]]:
        asked = (rows.tolist(), views.tolist(), columns.tolist())
        for which, losses in losses_one_by_one(self.model, self.index.encoded, self.bank, *asked, self.batch):
            self._check(losses, asked[0][which])
            yield which, losses

    def _check(self, losses: Floats, rows: Sequence[int]) -> None:
        check_stop(self.stop)
        check_scores(losses, rows, self.index)


def predictions_each(settings: AttributeSettings) -> int:
    """How often a training loss is measured: after unlearning, and before where the index does not hold it."""
    return 1 if settings.noise_seed is None else 2
