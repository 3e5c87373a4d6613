"""Handlers of Check it: pictures drawn again without the picture itself, and without training images."""

from collections.abc import Callable
from typing import Any

from attribution.answers.forget import Regenerated
from attribution.answers.remove import CHANCE, Named, by_chance
from attribution.answers.run import Run
from attribution.errors import InputError
from attribution.methods.answer import Progress
from attribution.query.query import Query
from attribution.ui import again, words
from attribution.ui.check import Runs
from attribution.ui.handlers import Asked, Handlers, Update, there_is
from attribution.ui.jobs import Job, forgetting, removing
from attribution.ui.marks import data_uri
from attribution.ui.regions import read_regions
from attribution.ui.studio import Picture, Waiting


class Checks:
    """Handlers of what is drawn again, beside those of every run."""

    def __init__(self, handlers: Handlers) -> None:
        self.handlers, self.studio, self.on = handlers, handlers.studio, handlers.on

    def forgetting(
        self, picture: Picture | None, table: list[list[Any]], chosen: list[str], weakest: bool, strength: float
    ) -> Asked:
        """Pictures before and after the first region was unlearned."""
        picture = there_is(picture)
        asked = read_regions(table, chosen)[0]
        query = Query(picture.prompt or "", picture.image, picture.seed, asked.boxes, asked.word)
        job = Job(forgetting, (query, picture.settings, None if weakest else strength))

        def shown(made: list[again.Made]) -> Update:
            return {self.on.forgotten: again.forgotten(made), self.on.strength: made[-1][0].strength}

        return self._asked(job, asked.name, f"generated again without it: {asked.name}", shown)

    def removing(self, runs: Runs, named: str | None, beside: str | None, weakest: bool, strength: float) -> Asked:
        """Pictures before and after the images of a ranking were unlearned, and others in their place."""
        region, run, taken = chosen_of(runs, named)
        other = self._beside(run, taken, beside)
        job = Job(removing, (run.query, taken, other, run.sampled, None if weakest else strength))

        def shown(made: list[again.Made]) -> Update:
            return {self.on.removed: again.removed(made, taken, other), self.on.removal_strength: made[-1][0].strength}

        return self._asked(job, region, f"generated again without the {len(taken.rows)} of {taken.by}", shown)

    def _beside(self, run: Run, taken: Named, beside: str | None) -> Named:
        if beside in (None, CHANCE):
            return by_chance(self.studio.index, taken, run.query.seed or 0)
        if beside == taken.by:
            raise InputError(f"{beside} stands beside itself; accepted are images at random, or another method's")
        return named_by(run, str(beside))

    def _asked(self, job: Job, region: str, done: str, shown: Callable[[list[again.Made]], Update]) -> Asked:
        """A job that draws again, whose pictures are shown as they come."""
        made: list[again.Made] = []

        def show(step: Progress | Regenerated | Waiting) -> Update:
            if isinstance(step, Waiting):
                return {self.on.status: words.waiting(step)}
            if isinstance(step, Progress):
                return {self.on.status: words.progress(step, region, 1, 1)}
            made.append((step, data_uri(step.before), data_uri(step.after)))
            return shown(made)

        def ended() -> Update:
            return {self.on.status: words.status("done", "Done", done, 1)}

        return Asked(job, show, {self.on.status: words.status("stopped", "Stopped.")}, ended=ended)

    def refused(self, told: str) -> Update:
        """What is not possible, said beside Attribute."""
        return {self.on.status: words.status("error", "Nothing was done:", told)}


def chosen_of(runs: Runs, named: str | None) -> tuple[str, Run, Named]:
    """The region, the run and the images of a ranking, such as "0:d-trak": the first region's, by D-TRAK.

    Raises:
        InputError: there is no such ranking.
    """
    place, _, method = (named or "").partition(":")
    if not place.isdecimal() or int(place) >= len(runs):
        raise InputError("no finished ranking is chosen; press Attribute, then choose whose images to remove")
    region, run = runs[int(place)]
    return region, run, named_by(run, method)


def named_by(run: Run, method: str) -> Named:
    """The images that a method of a run names.

    Raises:
        InputError: the run has no such method.
    """
    by_method = {answer.settings.method: answer for answer in run.answers}
    if method not in by_method:
        raise InputError(f"{method!r} was not asked about this region; accepted are {', '.join(by_method)}")
    return Named(method, tuple(result.row for result in by_method[method].results))
