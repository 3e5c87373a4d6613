"""What happens when something on the page is used. Components are in `layout.py`, wiring in `page.py`."""

import math
import random
import time
from base64 import b64encode
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import closing
from functools import partial
from html import escape
from pathlib import Path
from threading import Event
from typing import Any

import gradio as gr
from PIL import Image

from attribution.answers.forget import Regenerated
from attribution.answers.html import to_png
from attribution.answers.report import Run
from attribution.diffusion.pictures import open_upload
from attribution.diffusion.pipeline import GenerateSettings, check_seed
from attribution.diffusion.tokens import check_prompt
from attribution.errors import AttributionError, InputError, Stopped
from attribution.methods import check_settings, fitting
from attribution.methods.answer import AttributeSettings, Attribution, Progress
from attribution.query.labels import check_labels, parse_labels, phrases, telling
from attribution.query.query import Query
from attribution.query.regions import check_query
from attribution.ui import answers, words
from attribution.ui.jobs import Job, attributing, detecting, forgetting, generating, mapping
from attribution.ui.regions import EMPTY, MOST, Region, drawn_boxes, found_rows, read_regions, shown_copy
from attribution.ui.studio import Picture, Studio, Waiting
from attribution.ui.zero import on_zero_gpu

LARGEST_K = 100
DICE = 2**31 - 1  # the largest seed that the dice throw
EVERY = 0.3  # seconds between updates of the status line
STEPS = gr.Progress()

Updates = Generator[tuple[Any, ...], None, None]
Runs = list[tuple[str, Run]]  # by region


class Handlers:
    """The page's handlers over one studio."""

    def __init__(self, studio: Studio) -> None:
        self.studio = studio

    # --- the picture ---

    def generate(
        self,
        prompt: str,
        seed: float,
        steps: float,
        guidance: float,
        request: gr.Request,
        progress: gr.Progress = STEPS,
    ) -> Updates:
        """Generate: yields what `new_picture` gives, once there is one, and Stop."""
        try:
            check_prompt(prompt)
            number = check_seed(whole(seed, "seed"))
            settings = GenerateSettings(whole(steps, "steps"), guidance)
            report = None if on_zero_gpu() else partial(_report, progress)
            job = Job(generating, (prompt, number, settings, report))
            stopped = only_note(words.note(words.KEPT_PICTURE))
            yield from self._run(request, partial(self._generated, job), stopped, repeated=True)
        except AttributionError as error:
            yield (*only_note(words.note(sentence(error), "error")), gr.skip())
            raise refusal(error) from error

    def _generated(self, job: Job, stop: Event) -> Updates:
        prompt, seed, settings, _ = job.asked
        for made in self.studio.alone(job, stop):
            if isinstance(made, Waiting):
                yield only_note(words.note(f"Waiting: {made.ahead} ahead of this one."))
                continue
            picture = Picture(made, prompt.strip(), seed, settings)
            yield self.new_picture(picture, words.generated(picture))

    def upload(self, path: str, prompt: str, request: gr.Request) -> Updates:
        """Take a file as the picture: yields what `new_picture` gives."""
        try:
            picture = Picture(open_upload(Path(path)))
            note = words.uploaded(picture, Path(path).name, self.studio.index.center_crop)
            self.end(request)
            yield self.new_picture(picture, note, prompt)
        except AttributionError as error:
            yield only_note(words.note(sentence(error), "error"))
            raise refusal(error) from error

    def new_picture(self, picture: Picture, note: str, prompt: str = "") -> tuple[Any, ...]:
        """What `shown` gives, a note, and nothing marked or answered yet."""
        return (*self.shown(picture, prompt), note, *cleared())

    def shown(self, picture: Picture, prompt: str = "") -> tuple[Any, ...]:
        """Picture, annotator, frame, the prompt's words and the labels to look for."""
        copy, frame = shown_copy(picture.image)
        read = picture.prompt or prompt
        choices = gr.CheckboxGroup(telling(read), value=[], visible=bool(telling(read)))
        return picture, {"image": copy, "boxes": []}, frame, choices, " . ".join(phrases(read))

    def tokens(self, prompt: str) -> str:
        """Say how much of the prompt the model reads."""
        try:
            if prompt.strip():
                check_prompt(prompt)
        except InputError as error:
            return words.note(sentence(error), "error")
        return words.tokens(self.studio.model.tokens.count(prompt))

    # --- its regions ---

    def detect(
        self, picture: Picture | None, prompt: str, labels: str, threshold: float, request: gr.Request
    ) -> Updates:
        """Find objects: yields the table of boxes, the annotator, a note, and Stop."""
        try:
            picture = there_is(picture)
            wanted = check_labels(parse_labels(labels))
            asked = (picture.image, wanted, picture.prompt or prompt, threshold, self.studio.detector)
            stopped = (*unchanged(2), words.note(words.KEPT_BOXES))
            yield from self._run(request, partial(self._found, Job(detecting, asked)), stopped, repeated=True)
        except AttributionError as error:
            yield (*unchanged(2), words.note(sentence(error), "error"), gr.skip())
            raise refusal(error) from error

    def _found(self, job: Job, stop: Event) -> Updates:
        image, wanted, *_ = job.asked
        for found in self.studio.alone(job, stop):
            if isinstance(found, Waiting):
                yield (*unchanged(2), words.note(f"Waiting: {found.ahead} ahead of this one."))
                continue
            rows = found_rows(found.detections)
            copy, frame = shown_copy(image)
            shown = {"image": copy, "boxes": drawn_boxes(rows, frame["factor"])}
            yield rows, shown, words.found(found, wanted)

    def show_words(self, picture: Picture | None, prompt: str, chosen: list[str]) -> Iterator[str]:
        """The picture with each chosen word's attention over it, as HTML."""
        shown = ""
        if picture is not None and chosen:
            try:
                asked = (picture.image, picture.prompt or prompt, chosen[:MOST])
                for step in self.studio.alone(Job(mapping, asked), Event()):
                    if isinstance(step, Waiting):
                        yield words.note(f"Waiting: {step.ahead} ahead of this one.")
                        continue
                    word, image = step
                    shown += words.word_figure(word, data_uri(image))
            except AttributionError as error:
                shown = words.note(sentence(error), "error")
        yield shown

    # --- the answer ---

    def attribute(
        self,
        prompt: str,
        picture: Picture | None,
        table: list[list[Any]],
        chosen: list[str],
        top_k: float,
        exhaustive: bool,
        compared: list[str],
        folded: bool,
        request: gr.Request,
    ) -> Updates:
        """Answer for each region: yields status, runs, for each of MOST places its tab and its panel, and Stop."""
        try:
            picture = there_is(picture)
            regions = read_regions(table, chosen)
            settings = self._settings(top_k, exhaustive, compared)
            queries = [
                Query(picture.prompt or prompt, picture.image, picture.seed, each.boxes, each.word) for each in regions
            ]
            for query in queries:
                check_query(query, self.studio.model, self.studio.index.center_crop)
            stopped = words.status("stopped", "Stopped.", "The ranking below, if any, is unfinished.")
            steps = partial(self._answer, regions, queries, settings, folded, sampled=picture.settings)
            yield from self._run(request, steps, (stopped, *unchanged(1 + 2 * MOST)))
        except AttributionError as error:
            yield (words.status("error", "Not possible:", sentence(error)), *unchanged(2 + 2 * MOST))
            raise refusal(error) from error

    def _settings(self, top_k: float, exhaustive: bool, compared: Sequence[str]) -> list[AttributeSettings]:
        count, most = whole(top_k, "K"), min(LARGEST_K, len(self.studio.index))
        if not 1 <= count <= most:
            raise InputError(f"K = {count} is not possible; accepted are 1 to {most}")
        main = AttributeSettings(top_k=count, exhaustive=exhaustive)
        asked = [main, *(fitting(main, name) for name in compared if name != main.method)]
        return [check_settings(self.studio.model, self.studio.index, each) for each in asked]

    def _answer(
        self,
        regions: list[Region],
        queries: list[Query],
        settings: list[AttributeSettings],
        folded: bool,
        stop: Event,
        sampled: GenerateSettings | None,
    ) -> Updates:
        top_k, runs, last = settings[0].top_k, Runs(), 0.0
        names = [each.method for each in settings]
        shown: list[answers.Answers] = [dict.fromkeys(names, NOTHING) for _ in regions]
        tabs = tabs_of([region.name for region in regions])

        def panel_of(place: int) -> str:
            if place < len(runs):  # one region after the other
                return self.panel_of(*runs[place], folded)
            return answers.panel(regions[place].name, queries[place], shown[place], self.studio.index, top_k, folded)

        panels: list[Any] = [panel_of(place) for place in range(len(shown))] + [""] * (MOST - len(shown))
        yield (words.status("waiting", "Starting"), [], *tabs, *panels)
        for step in self.studio.alone(Job(attributing, (queries, settings)), stop):
            if isinstance(step, Waiting):
                yield (words.waiting(step), *unchanged(1 + 2 * MOST))
                continue
            place, method, state = step
            before = shown[place][method]
            shown[place] = {**shown[place], method: state}
            rows = [result.row for result in state.results]
            changed = isinstance(state, Attribution) or rows != [result.row for result in before.results]
            if isinstance(state, Attribution) and all(isinstance(each, Attribution) for each in shown[place].values()):
                ended = tuple(each for each in shown[place].values() if isinstance(each, Attribution))
                run = Run(ended, sampled, regions[place].label)
                self.studio.runs.keep(run, self.studio.index, self.studio.model)
                runs.append((regions[place].name, run))
                yield (gr.skip(), list(runs), *unchanged(2 * MOST))  # what has ended can be opened
            if changed or time.monotonic() - last >= EVERY:
                last = time.monotonic()
                status = gr.skip()
                if isinstance(state, Progress):
                    status = words.progress(state, regions[place].name, place + 1, len(regions))
                updates = list(unchanged(MOST))
                if changed:
                    panels[place] = updates[place] = panel_of(place)
                yield (status, gr.skip(), *unchanged(MOST), *updates)
        yield (words.done(runs), runs, *unchanged(MOST), *panels)

    def panel_of(self, name: str, run: Run, folded: bool) -> str:
        """A finished run's panel."""
        return answers.panel(name, run.query, by_method(run), self.studio.index, run.top_k, folded, run.id)

    def fold(self, runs: Runs, folded: bool) -> tuple[Any, ...]:
        """The panels anew, with nearly equal images shown as one or not."""
        panels = [self.panel_of(name, run, folded) for name, run in runs]
        return (*panels, *unchanged(MOST - len(panels)))

    def open_image(self, event: gr.EventData, runs: Runs, place: int) -> tuple[Any, ...]:
        """A training image opened: its row, what is told of it, the buttons that search from it and close it."""
        row = event._data.get("row") if isinstance(event._data, dict) else None
        if not isinstance(row, int) or not 0 <= row < len(self.studio.index):
            return unchanged(4)
        timesteps = self.studio.index.bank(self.studio.model).t.tolist()
        run = runs[place][1] if place < len(runs) else None
        html = answers.opened(row, run, self.studio.index, timesteps)
        return row, html, gr.Button(visible=True), gr.Button(visible=True)

    def search_from(self, row: int | None, request: gr.Request) -> Updates:
        """Take an opened training image as the picture, with its caption as the prompt."""
        if row is None:
            return
        self.end(request)
        index = self.studio.index
        picture = Picture(Image.open(index.thumbnail(row)).convert("RGB"))
        caption = index.captions[row]
        yield (*self.new_picture(picture, words.searched(index.ids[row]), caption), caption)

    def forget(
        self, picture: Picture | None, table: list[list[Any]], chosen: list[str], request: gr.Request
    ) -> Updates:
        """Generate again without it: yields a status line, pictures before and after as HTML, and Stop."""
        try:
            picture = there_is(picture)
            asked = read_regions(table, chosen)[0]
            query = Query(picture.prompt or "", picture.image, picture.seed, asked.boxes, asked.word)
            steps = partial(self._forgotten, Job(forgetting, (query, picture.settings)), asked.name)
            yield from self._run(request, steps, (words.status("stopped", "Stopped."), gr.skip()))
        except AttributionError as error:
            yield words.status("error", "Not possible:", sentence(error)), *unchanged(2)
            raise refusal(error) from error

    def _forgotten(self, job: Job, name: str, stop: Event) -> Updates:
        made: list[tuple[Regenerated, str, str]] = []
        for step in self.studio.alone(job, stop):
            if isinstance(step, Waiting):
                yield words.waiting(step), gr.skip()
            elif isinstance(step, Regenerated):
                made.append((step, data_uri(step.before), data_uri(step.after)))
                yield gr.skip(), words.forgotten(made)
            else:
                yield words.progress(step, name, 1, 1), gr.skip()
        yield words.status("done", "Done", f"generated again without {name}", 1), words.forgotten(made)

    # --- runs ---

    def _run(
        self,
        request: gr.Request,
        steps: Callable[[Event], Updates],
        stopped: tuple[Any, ...],
        repeated: bool = False,
    ) -> Updates:
        """The visitor's run: its updates, each with Stop's, which can be pressed from the first on.

        Gradio sends the last update once more when a run has ended, and the page may show another by then: so the last
        says nothing.

        Args:
            request: of the visitor.
            steps: updates, given the event that stops them.
            stopped: the update when they were.
            repeated: let the last one be sent again; for updates with a picture or a table, dicts that Gradio's diff to
                nothing would empty in the page.
        """
        with self.studio.run(str(request.session_hash)) as stop, closing(steps(stop)) as updates:
            yield (*unchanged(len(stopped)), gr.Button(interactive=True))
            try:
                for update in updates:
                    yield (*update, gr.skip())
            except Stopped:
                yield (*stopped, gr.skip())
            if not repeated:
                yield unchanged(len(stopped) + 1)

    def stop(self, request: gr.Request) -> None:
        """Stop the visitor's run, if there is one."""
        self.studio.stop(str(request.session_hash))

    def end(self, request: gr.Request) -> None:
        """Stop the visitor's run and let it tell its last, since something else takes its place on the page."""
        self.studio.end(str(request.session_hash))

    def controls(self, request: gr.Request) -> list[Any]:
        """The buttons that use the device, and Stop, by whether a run of the visitor's is under way."""
        works = self.studio.works(str(request.session_hash))
        return [*[gr.Button(interactive=not works)] * 4, gr.Button(interactive=works)]


def _report(progress: gr.Progress, step: int, count: int) -> None:
    progress((step, count), desc="Generating", unit="steps")


NOTHING = Progress("waiting", 0, 1, 0.0)


def by_method(run: Run) -> dict[str, Attribution]:
    """A run's answers by their methods."""
    return {answer.settings.method: answer for answer in run.answers}


def tabs_of(names: Sequence[str]) -> list[gr.Tab]:
    """MOST tabs, those of named regions visible."""
    labels = [f"{number} · {name}" for number, name in enumerate(names, 1)]
    return [gr.Tab(label=label, visible=True) for label in labels] + [gr.Tab(visible=False)] * (MOST - len(labels))


def there_is(picture: Picture | None) -> Picture:
    """The picture.

    Raises:
        InputError: there is none.
    """
    if picture is None:
        raise InputError("there is no picture yet; generate one, or upload one with its prompt")
    return picture


def data_uri(image: Image.Image) -> str:
    """A picture inside a page."""
    return f"data:image/png;base64,{b64encode(to_png(image)).decode()}"


def throw_dice() -> int:
    """A seed by chance."""
    return random.randint(0, DICE)


def whole(value: float | None, name: str) -> int:
    """A field's number as an integer.

    Raises:
        InputError: it is empty or has a fraction.
    """
    if value is None or not math.isfinite(value) or value != int(value):
        given = "empty" if value is None else f"{value:g}"
        raise InputError(f"{name} is {given}; accepted are whole numbers")
    return int(value)


def sentence(error: AttributionError) -> str:
    """An error's message as a sentence."""
    message = str(error)
    return message[:1].upper() + message[1:] + ("" if message.endswith((".", "!", "?")) else ".")


def refusal(error: AttributionError, shown: bool = True) -> gr.Error:
    """An error for a toast, which takes HTML, or for a program, which takes text."""
    told = sentence(error)
    return gr.Error(escape(told) if shown else told, duration=10, print_exception=False)


def closed() -> list[Any]:
    """No training image is open: the outputs of `Parts.drawer`."""
    return ["", gr.Button(visible=False), gr.Button(visible=False)]


def cleared() -> list[Any]:
    """Nothing is marked or answered of a new picture yet: the outputs of `Parts.answered`."""
    return [EMPTY, "", "", words.IDLE, [], "", *closed(), *[gr.Tab(visible=False)] * MOST, *[""] * MOST]


def only_note(note: str) -> tuple[Any, ...]:
    """A note, and the picture before with all that belongs to it."""
    return (*unchanged(5), note, *unchanged(len(cleared())))


def starting() -> list[Any]:
    """The buttons of `Handlers.controls` when one was pressed; Stop waits for the run."""
    return [*[gr.Button(interactive=False)] * 4, gr.skip()]


def unchanged(count: int) -> tuple[Any, ...]:
    """Outputs that stay as they are."""
    return tuple(gr.skip() for _ in range(count))
