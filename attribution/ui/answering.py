"""Answers that are under way, and finished ones, as the page shows them: a tab and a panel for each region."""

import time
from collections.abc import Sequence
from dataclasses import dataclass, field

import gradio as gr

from attribution.answers.ranking import Answers
from attribution.answers.run import Run
from attribution.diffusion.pipeline import GenerateSettings
from attribution.errors import NotKept
from attribution.methods.answer import AttributeSettings, Attribution, Progress
from attribution.query.query import Query
from attribution.ui import answers, words
from attribution.ui.check import Runs, runs_shown
from attribution.ui.handlers import Update, sentence
from attribution.ui.jobs import Answered
from attribution.ui.layout import Parts
from attribution.ui.regions import MOST, Region
from attribution.ui.studio import Studio, Waiting

EVERY = 0.3  # seconds between updates of the status line
REDRAWN = 1.0  # seconds between those of a changing ranking, after its first one: it takes time to show

NOTHING = Progress("waiting", 0, 1, 0.0)


@dataclass
class Answering:
    """Answers that are under way: a panel for each region, and what has ended of them.

    Attributes:
        studio: keeps what has ended.
        on: the page.
        regions: asked about.
        queries: about them.
        settings: of the methods, the main one first.
        folded: show nearly equal training images as one.
        sampled: how the picture was generated.
        runs: that have ended, by region.
    """

    studio: Studio
    on: Parts
    regions: list[Region]
    queries: list[Query]
    settings: list[AttributeSettings]
    folded: bool
    sampled: GenerateSettings | None = None
    runs: Runs = field(default_factory=list)
    _told: float = 0.0
    _drawn: float = 0.0
    _changed: bool = False  # a ranking, since its panel was shown
    _lost: NotKept | None = None

    def __post_init__(self) -> None:
        methods = [each.method for each in self.settings]
        self._states: list[Answers] = [dict.fromkeys(methods, NOTHING) for _ in self.regions]

    def begun(self) -> Update:
        """Places for all that will come."""
        tabs, panels = tabs_of(self.on, [region.name for region in self.regions]), self._panels()
        return {self.on.status: words.status("waiting", "Starting"), **runs_shown(self.on, []), **tabs, **panels}

    def take(self, step: Answered | Waiting) -> Update:
        """What changes at a step: a finished answer at once, a ranking and the status line now and then."""
        if isinstance(step, Waiting):
            return {self.on.status: words.waiting(step)}
        place, method, state = step.place, step.method, step.state
        before, now = self._states[place][method], time.monotonic()
        due, ended = now - self._told >= EVERY, isinstance(state, Attribution)
        self._states[place] = {**self._states[place], method: state}
        self._changed |= [each.row for each in state.results] != [each.row for each in before.results]
        update: Update = {}
        if ended or (self._changed and (not before.results or now - self._drawn >= REDRAWN)):
            self._changed, self._drawn = False, now
            update = {**self._kept(place), self.on.panels[place]: self._panel(place)}
        if due and not ended:
            self._told = now
            update[self.on.status] = words.progress(step.whole, self.regions[place].name, place + 1, len(self.regions))
        return update

    def ended(self) -> Update:
        """All that was found, once more whole."""
        lost = words.note(sentence(self._lost), "warning") if self._lost else ""
        told = {self.on.status: words.done(self.runs) + lost, self.on.link: link_of(self.studio, self.runs)}
        return {**told, **runs_shown(self.on, self.runs), **self._panels()}

    def _kept(self, place: int) -> Update:
        """Keep a region's run when its last method has ended: it can be opened then."""
        ended = tuple(each for each in self._states[place].values() if isinstance(each, Attribution))
        if len(ended) < len(self.settings):
            return {}
        self.studio.learn(ended)
        region = self.regions[place]
        run = Run(ended, self.sampled, region.label)
        self._lost = self.studio.keep(run) or self._lost
        self.runs.append((region.name, run))
        return runs_shown(self.on, list(self.runs))

    def _panel(self, place: int) -> str:
        if place < len(self.runs):  # one region after the other
            return panel_of(self.studio, *self.runs[place], self.folded)
        name, top_k = self.regions[place].name, self.settings[0].k
        return answers.panel(name, self.queries[place], self._states[place], self.studio.index, top_k, self.folded)

    def _panels(self) -> Update:
        shown = [self._panel(place) for place in range(len(self.regions))]
        return dict(zip(self.on.panels, [*shown, *[""] * MOST], strict=False))


def panel_of(studio: Studio, name: str, run: Run, folded: bool) -> str:
    """A finished run's panel."""
    by_method = {answer.settings.method: answer for answer in run.answers}
    kept = run.id if studio.holds(run.id) else None  # there is a link to what is kept alone
    return answers.panel(name, run.query, by_method, studio.index, run.top_k, folded, kept)


def tabs_of(on: Parts, names: Sequence[str]) -> Update:
    """The tabs, those of named regions visible."""
    shown = [gr.Tab(label=f"{number} · {name}", visible=True) for number, name in enumerate(names, 1)]
    return dict(zip(on.tabs, [*shown, *[gr.Tab(visible=False)] * MOST], strict=False))


def link_of(studio: Studio, runs: Runs) -> str:
    """The ids of those runs that are kept, with commas between: one link for all regions."""
    return ",".join(run.id for _, run in runs if studio.holds(run.id))
