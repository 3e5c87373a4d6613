"""Finished runs on the page: opened again by a link, from the examples, or from the visitor's own list."""

from typing import Any

import gradio as gr

from attribution.answers.report import read_zip
from attribution.errors import AttributionError, InputError
from attribution.query.labels import telling
from attribution.ui import words
from attribution.ui.handlers import Handlers, Runs, refusal, tabs_of, unchanged
from attribution.ui.regions import EMPTY, MOST, drawn_boxes
from attribution.ui.studio import Picture, title_of

HISTORY = 50  # runs that a browser remembers


class KeptRuns:
    """Handlers of finished runs, beside the page's other ones."""

    def __init__(self, handlers: Handlers) -> None:
        self.handlers = handlers
        self.studio = handlers.studio

    def reopen(self, run_id: str, folded: bool) -> tuple[Any, ...]:
        """A kept run, as the outputs of `_wire_kept`."""
        run = read_zip(self.studio.run_file(run_id))
        main, query = run.answers[0], run.query
        if (main.index_id, main.model_sha256) != (self.studio.index.id, self.studio.model.sha256):
            raise InputError(f"the run {run_id} is of index {main.index_id}; this page serves {self.studio.index.id}")
        name = run.region
        picture = Picture(query.image, query.prompt if query.seed is not None else None, query.seed, run.sampled)
        state, shown, frame, choices, labels = self.handlers.shown(picture, query.prompt)
        rows = [[run.label, *box] for box in query.boxes] or EMPTY
        shown["boxes"] = drawn_boxes(rows, frame["factor"])
        if query.word is not None:
            choices = gr.CheckboxGroup([*telling(query.prompt)], value=[query.word], visible=True)
        tabs, panels = tabs_of([name]), [self.handlers.panel_of(name, run, folded), *[""] * (MOST - 1)]
        note = words.note(f"Run {run_id} opened.")
        status = words.status("done", "Opened", f"run {run_id}: {name}", 1)
        seed = gr.skip() if query.seed is None else query.seed
        answer = (status, [(name, run)], *tabs, *panels, seed)
        return (state, shown, frame, choices, labels, note, query.prompt, rows, *answer)

    def reopen_linked(self, folded: bool, request: gr.Request) -> tuple[Any, ...]:
        """The run that the page's address names."""
        run_id = str(dict(request.query_params).get("run", ""))
        return self.reopen_chosen(run_id, folded, request)

    def reopen_example(self, event: gr.EventData, folded: bool, request: gr.Request) -> tuple[Any, ...]:
        """The example whose button was clicked."""
        run_id = event._data.get("run") if isinstance(event._data, dict) else None
        return self.reopen_chosen(str(run_id or ""), folded, request)

    def reopen_chosen(self, run_id: str | None, folded: bool, request: gr.Request) -> tuple[Any, ...]:
        """A run that was chosen from the list, in place of the visitor's that works; nothing changes where none is."""
        if not run_id:
            return unchanged(11 + 2 * MOST)
        try:
            answer = self.reopen(run_id, folded)
            self.handlers.end(request)
            return answer
        except AttributionError as error:
            raise refusal(error) from error

    def remember(self, runs: Runs, mine: list[list[str]]) -> tuple[Any, ...]:
        """Put finished runs into the browser's own list, the newest first; an example is nobody's own."""
        shipped = {run.id for run in self.studio.shipped}
        new = [[title_of(run), run.id] for _, run in reversed(runs) if run.id not in shipped]
        kept = [*new, *(each for each in mine or [] if each[1] not in {run_id for _, run_id in new})][:HISTORY]
        return kept, self.list_runs(kept)

    def list_runs(self, mine: list[list[str]] | None) -> gr.Dropdown:
        """The visitor's own runs that are still kept."""
        own = []
        for title, run_id in mine or []:
            try:
                self.studio.run_file(run_id)
            except InputError:
                continue
            own.append((title, run_id))
        return gr.Dropdown(own, visible=bool(own))
