"""Handlers of questions: Attribute, and what is opened of an answer."""

from collections.abc import Sequence
from typing import Any

import gradio as gr

from attribution.errors import InputError
from attribution.methods import best_method, check_settings, fitting
from attribution.methods.answer import AttributeSettings, default_top_k
from attribution.methods.budgets import Budget, within
from attribution.query.query import Query
from attribution.query.regions import check_query
from attribution.ui import answers, words
from attribution.ui.answering import Answering, panel_of
from attribution.ui.check import Runs
from attribution.ui.handlers import UNCHANGED, Asked, Handlers, NotYet, Update, there_is, whole
from attribution.ui.jobs import Job, attributing
from attribution.ui.pace import budgets, choices
from attribution.ui.regions import read_regions
from attribution.ui.studio import Picture

LARGEST_K = 100
ROUGHLY = 1.5  # times as long as was agreed to


class Questions:
    """Handlers of questions and answers, beside those of every run."""

    def __init__(self, handlers: Handlers) -> None:
        self.handlers, self.studio, self.on = handlers, handlers.studio, handlers.on

    def attribution(
        self,
        prompt: str,
        picture: Picture | None,
        table: list[list[Any]],
        chosen: list[str],
        top_k: float,
        budget: Budget,
        compared: list[str],
        folded: bool,
        agreed: float,
    ) -> Asked:
        """An answer for each region; what takes long is begun when that was told.

        Raises:
            NotYet: it is told now.
        """
        picture = there_is(picture)
        regions = read_regions(table, chosen)
        settings = self._settings(top_k, budget, compared)
        queries = [
            Query(picture.prompt or prompt, picture.image, picture.seed, each.boxes, each.word) for each in regions
        ]
        for query in queries:
            check_query(query, self.studio.model, self.studio.index.center_crop)
        self._tell_first(settings, len(queries), budget, agreed)
        answering = Answering(self.studio, self.on, regions, queries, settings, folded, picture.settings)
        stopped = words.status("stopped", "Stopped.", "The ranking below, if any, is unfinished.")
        job = Job(attributing, (queries, settings))
        begun = {**answering.begun(), **self.plain()}
        return Asked(job, answering.take, {self.on.status: stopped}, lambda: begun, answering.ended)

    def _tell_first(self, settings: list[AttributeSettings], regions: int, budget: Budget, agreed: float) -> None:
        """Tell what takes long before it is begun, unless as much was told already."""
        studio, pace = self.studio, self.studio.pace
        took = pace.seconds(studio.index, settings) * regions if pace else 0.0
        if pace is None or took < studio.ask_above or took <= ROUGHLY * agreed:
            return
        own, others = settings[0], choices(studio.model, studio.index, settings[0].k)
        added = took - regions * pace.seconds(studio.index, [own])
        cost = {name: added + regions * pace.seconds(studio.index, [each]) for name, each in others.items()}
        quicker = {name: each for name, each in cost.items() if name != budget and each < took}
        told = words.long(took, regions, quicker)
        raise NotYet({self.on.status: told, self.on.attribute: gr.Button(words.BEGIN), self.on.agreed: took})

    def plain(self) -> Update:
        """Nothing is agreed to."""
        return {self.on.attribute: gr.Button("Attribute"), self.on.agreed: 0.0}

    def budgets(self) -> Update:
        """How long each budget takes, as that is known now."""
        studio = self.studio
        told = words.budgets(budgets(studio.pace, studio.model, studio.index, default_top_k(len(studio.index))))
        return {self.on.budget: gr.Radio(told)}

    def _settings(self, top_k: float, budget: Budget, compared: Sequence[str]) -> list[AttributeSettings]:
        count, most = whole(top_k, "K"), min(LARGEST_K, len(self.studio.index))
        if not 1 <= count <= most:
            raise InputError(f"K = {count} is not possible; accepted are 1 to {most}")
        main = within(AttributeSettings(best_method(self.studio.index), count), self.studio.index, budget)
        asked = [main, *(fitting(main, name) for name in compared if name != main.method)]
        return [check_settings(self.studio.model, self.studio.index, each) for each in asked]

    def refused(self, told: str) -> Update:
        """What is not possible, said beside Attribute."""
        return {self.on.status: words.status("error", "Nothing was done:", told)}

    def fold(self, runs: Runs, folded: bool) -> Update:
        """The panels anew, with nearly equal images shown as one or not."""
        panels = zip(self.on.panels, runs, strict=False)
        return {panel: panel_of(self.studio, name, run, folded) for panel, (name, run) in panels} or UNCHANGED

    def open_image(self, event: gr.EventData, runs: Runs, place: int) -> Update:
        """A training image opened: its row, what is told of it, the buttons that search from it and close it."""
        row = event._data.get("row") if isinstance(event._data, dict) else None
        if not isinstance(row, int) or not 0 <= row < len(self.studio.index):
            return UNCHANGED
        timesteps = self.studio.index.bank(self.studio.model).t.tolist()
        run = runs[place][1] if place < len(runs) else None
        shown = gr.Button(visible=True)
        html = answers.opened(row, run, self.studio.index, timesteps)
        return {self.on.row: row, self.on.opened: html, self.on.search: shown, self.on.close: shown}
