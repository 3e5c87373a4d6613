"""`python -m attribution rehearse`."""

from pathlib import Path

from attribution.cli.asked import opened
from attribution.cli.parsing import Names, flags
from attribution.cli.progress import watch
from attribution.evaluate.rehearsal import RehearsalSettings
from attribution.evaluate.rehearsal import rehearse as measure
from attribution.methods import BEST
from attribution.methods.rehearsed import Rehearsed


@flags({RehearsalSettings: Names(hidden=("top_k",))})
def rehearse(*, settings: RehearsalSettings, index: Path | None = None, method: str = BEST) -> None:
    """Find how a search of an index should go: how many candidates, and in which order noises; kept in the index.

    Generated pictures are searched whole, about a minute of a core each for the embedded index; resumable, and several
    processes share the work.

    Args:
        settings: what is measured, and what a search must find.
        index: an index folder; the embedded one by default.
        method: that is to search; each has its own schedule, and "best" is the one that is asked where none is named.
    """
    for step in watch(measure(*opened(index), settings, method), _told):
        if isinstance(step, Rehearsed):
            print(_summary(step))


def _told(step: str | Rehearsed) -> str:
    return step if isinstance(step, str) else "done"


def _summary(rehearsed: Rehearsed) -> str:
    race, share = (
        rehearsed.race,
        f"{rehearsed.mean:.0%} of the first {rehearsed.top_k} images ({rehearsed.worst:.0%} in the worst case)",
    )
    return (
        f"Searches take {rehearsed.evaluations:,} predictions among {race.pool:,} candidates, and found {share} of the"
        f" {rehearsed.candidates:,} on all noises, for {rehearsed.pictures} pictures. Columns in the order"
        f" {' '.join(map(str, race.columns))}; keep {race.keep:g}, growth {race.growth:g}, survivors {race.survivors}."
    )
