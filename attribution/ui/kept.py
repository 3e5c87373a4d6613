"""Finished runs on the page: opened again by a link, from the examples, or from the visitor's own list."""

import gradio as gr

from attribution.answers.report import Run, read_zip
from attribution.errors import AttributionError, InputError
from attribution.query.labels import telling
from attribution.ui import words
from attribution.ui.answering import Runs, panel_of, tabs_of
from attribution.ui.handlers import UNCHANGED, Update, refusal
from attribution.ui.pictures import Pictures
from attribution.ui.regions import EMPTY, drawn_boxes
from attribution.ui.studio import Picture, title_of

HISTORY = 50  # runs that a browser remembers


class KeptRuns:
    """Handlers of finished runs, beside those of the picture."""

    def __init__(self, pictures: Pictures) -> None:
        self.pictures, self.studio, self.on = pictures, pictures.studio, pictures.on

    def reopen(self, run_id: str, folded: bool) -> Update:
        """A kept run, with all that was asked."""
        run = self._read(run_id)
        on, name = self.on, run.region
        seed = {} if run.query.seed is None else {on.seed: run.query.seed}  # an upload's: what is there stays
        return {
            **self._asked(run),
            **seed,
            **dict.fromkeys(on.panels, ""),
            **tabs_of(on, [name]),
            on.panels[0]: panel_of(self.studio, name, run, folded),
            on.runs: [(name, run)],
            on.note: words.note(f"Run {run_id} opened."),
            on.status: words.status("done", "Opened", f"run {run_id}: {name}", 1),
        }

    def _read(self, run_id: str) -> Run:
        run = read_zip(self.studio.run_file(run_id))
        main = run.answers[0]
        if (main.index_id, main.model_sha256) != (self.studio.index.id, self.studio.model.sha256):
            raise InputError(f"the run {run_id} is of index {main.index_id}; this page serves {self.studio.index.id}")
        return run

    def _asked(self, run: Run) -> Update:
        """A run's picture, prompt and region."""
        on, query = self.on, run.query
        picture = Picture(query.image, query.prompt if query.seed is not None else None, query.seed, run.sampled)
        shown = self.pictures.shown(picture, query.prompt)
        rows = [[run.label, *box] for box in query.boxes] or EMPTY
        shown[on.annotator]["boxes"] = drawn_boxes(rows, shown[on.frame]["factor"])
        if query.word is not None:
            shown[on.chosen] = gr.CheckboxGroup([*telling(query.prompt)], value=[query.word], visible=True)
        return {**shown, on.prompt: query.prompt, on.table: rows}

    def reopen_linked(self, folded: bool, request: gr.Request) -> Update:
        """The run that the page's address names."""
        run_id = str(dict(request.query_params).get("run", ""))
        return self.reopen_chosen(run_id, folded, request)

    def reopen_example(self, event: gr.EventData, folded: bool, request: gr.Request) -> Update:
        """The example whose button was clicked."""
        run_id = event._data.get("run") if isinstance(event._data, dict) else None
        return self.reopen_chosen(str(run_id or ""), folded, request)

    def reopen_chosen(self, run_id: str | None, folded: bool, request: gr.Request) -> Update:
        """A run that was chosen from the list, in place of the visitor's that works; nothing changes where none is."""
        if not run_id:
            return UNCHANGED
        try:
            answer = self.reopen(run_id, folded)
            self.pictures.handlers.end(request)
            return answer
        except AttributionError as error:
            raise refusal(error) from error

    def remember(self, runs: Runs, mine: list[list[str]]) -> Update:
        """Put finished runs into the browser's own list, the newest first; an example is nobody's own."""
        shipped = {run.id for run in self.studio.shipped}
        new = [[title_of(run), run.id] for _, run in reversed(runs) if run.id not in shipped]
        kept = [*new, *(each for each in mine or [] if each[1] not in {run_id for _, run_id in new})][:HISTORY]
        return {self.on.mine: kept, self.on.history: self.list_runs(kept)}

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

    def before(self) -> Update:
        """What belonged to the picture before is gone."""
        return {self.on.found: "", self.on.forgotten: "", **self.pictures.closed()}
