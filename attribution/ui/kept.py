"""Finished runs on the page: opened again by a link, from the examples, or from the visitor's own list."""

import gradio as gr

from attribution.answers.run import Run
from attribution.errors import AttributionError, InputError
from attribution.query.labels import telling
from attribution.ui import words
from attribution.ui.answering import link_of, panel_of, tabs_of
from attribution.ui.check import Runs, runs_shown
from attribution.ui.handlers import UNCHANGED, Update, refusal
from attribution.ui.pictures import Pictures
from attribution.ui.regions import EMPTY, drawn_boxes
from attribution.ui.studio import Picture, run_ids, title_of

HISTORY = 50  # runs that a browser remembers


class KeptRuns:
    """Handlers of finished runs, beside those of the picture."""

    def __init__(self, pictures: Pictures) -> None:
        self.pictures, self.studio, self.on = pictures, pictures.studio, pictures.on

    def reopen(self, asked: str, folded: bool) -> Update:
        """Kept runs, one for each region of a picture, with all that was asked.

        Args:
            asked: their ids, with commas between.
            folded: show nearly equal training images as one.

        Raises:
            InputError: one of them is not kept, of another index, or of another picture than the first.
        """
        runs = [(run.region, run) for run in map(self._read, run_ids(asked) or [asked])]
        first = runs[0][1]
        if any((run.query.prompt, run.query.image) != (first.query.prompt, first.query.image) for _, run in runs):
            raise InputError(f"the runs {asked[:60]} are of several pictures; accepted are those of one")
        on, names = self.on, [name for name, _ in runs]
        seed = {} if first.query.seed is None else {on.seed: first.query.seed}  # an upload's: what is there stays
        panels = {panel: panel_of(self.studio, *each, folded) for panel, each in zip(on.panels, runs, strict=False)}
        return {
            **self._asked([run for _, run in runs]),
            **self._nothing_of_before(),
            **seed,
            **dict.fromkeys(on.panels, ""),
            **tabs_of(on, names),
            **panels,
            **runs_shown(on, runs),
            on.link: link_of(self.studio, runs),
            on.note: words.reopened(first),
            on.status: words.status("done", "Opened", f"run {asked}: {', '.join(names)}", 1),
        }

    def _read(self, run_id: str) -> Run:
        run = self.studio.read_run(run_id)
        main = run.answers[0]
        if (main.index_id, main.model_sha256) != (self.studio.index.id, self.studio.model.sha256):
            raise InputError(f"the run {run_id} is of index {main.index_id}; this page serves {self.studio.index.id}")
        return run

    def _asked(self, runs: list[Run]) -> Update:
        """The picture, prompt and regions of runs."""
        on, query = self.on, runs[0].query
        picture = Picture(query.image, query.prompt if query.seed is not None else None, query.seed, runs[0].sampled)
        shown = self.pictures.shown(picture, query.prompt)
        rows = [[run.label, *box] for run in runs for box in run.query.boxes] or EMPTY
        shown[on.annotator]["boxes"] = drawn_boxes(rows, shown[on.frame]["factor"])
        if chosen := [run.query.word for run in runs if run.query.word is not None]:
            shown[on.chosen] = gr.CheckboxGroup([*telling(query.prompt)], value=chosen, visible=True)
        return {**shown, on.prompt: query.prompt, on.table: rows}

    def first(self) -> Update:
        """What is open at the start: the first of the examples."""
        run = self.studio.shipped[0]
        return {**self.reopen(run.id, folded=True), self.on.status: words.status("idle", "", words.BEGUN)}

    def reopen_linked(self, folded: bool, request: gr.Request) -> Update:
        """The runs that the page's address names."""
        asked = str(dict(request.query_params).get("run", ""))
        return self.reopen_chosen(asked, folded, request)

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
        own = [(title, run_id) for title, run_id in mine or [] if self.studio.holds(run_id)]
        return gr.Dropdown(own, visible=bool(own))

    def _nothing_of_before(self) -> Update:
        """What belonged to the picture before is gone."""
        return {self.on.found: "", self.on.forgotten: "", **self.pictures.closed()}
