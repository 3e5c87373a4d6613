"""Handlers of questions: Attribute, and what is opened of an answer."""

from collections.abc import Sequence
from typing import Any

import gradio as gr

from attribution.errors import InputError
from attribution.methods import best_method, check_settings, fitting
from attribution.methods.answer import AttributeSettings
from attribution.query.query import Query
from attribution.query.regions import check_query
from attribution.ui import answers, words
from attribution.ui.answering import Answering, panel_of
from attribution.ui.check import Runs
from attribution.ui.handlers import UNCHANGED, Asked, Handlers, Update, there_is, whole
from attribution.ui.jobs import Job, attributing
from attribution.ui.regions import read_regions
from attribution.ui.studio import Picture

LARGEST_K = 100


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
        exhaustive: bool,
        compared: list[str],
        folded: bool,
    ) -> Asked:
        """An answer for each region."""
        picture = there_is(picture)
        regions = read_regions(table, chosen)
        settings = self._settings(top_k, exhaustive, compared)
        queries = [
            Query(picture.prompt or prompt, picture.image, picture.seed, each.boxes, each.word) for each in regions
        ]
        for query in queries:
            check_query(query, self.studio.model, self.studio.index.center_crop)
        answering = Answering(self.studio, self.on, regions, queries, settings, folded, picture.settings)
        stopped = words.status("stopped", "Stopped.", "The ranking below, if any, is unfinished.")
        job = Job(attributing, (queries, settings))
        return Asked(job, answering.take, {self.on.status: stopped}, answering.begun, answering.ended)

    def _settings(self, top_k: float, exhaustive: bool, compared: Sequence[str]) -> list[AttributeSettings]:
        count, most = whole(top_k, "K"), min(LARGEST_K, len(self.studio.index))
        if not 1 <= count <= most:
            raise InputError(f"K = {count} is not possible; accepted are 1 to {most}")
        main = AttributeSettings(best_method(self.studio.index), count, exhaustive)
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
