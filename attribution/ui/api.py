"""The page as an API: four endpoints with inputs of their own, for gradio_client and MCP."""

import time
from collections.abc import Generator
from contextlib import closing
from pathlib import Path
from threading import Event
from typing import Any

import gradio as gr
from gradio.components.api_component import Api
from PIL import Image

from attribution.answers.report import to_json
from attribution.answers.run import Run
from attribution.diffusion.pictures import open_upload
from attribution.diffusion.pipeline import GenerateSettings, check_seed
from attribution.diffusion.tokens import check_prompt
from attribution.errors import AttributionError, InputError, WorkFailed
from attribution.methods import BEST, check_settings, method_named
from attribution.methods.answer import AttributeSettings, Attribution
from attribution.query.detect import Found
from attribution.query.labels import parse_labels
from attribution.query.query import Query
from attribution.query.regions import check_query
from attribution.ui.asking import LARGEST_K
from attribution.ui.handlers import refusal, sentence, whole
from attribution.ui.jobs import Job, attributing, detecting, generating
from attribution.ui.studio import Studio, Waiting

LIMIT = 15  # minutes that a program's job may use the device
EVERY = 1.0  # seconds between looks whether the program still waits for its answer

Following = Generator[Any, None, Any]  # yields no change, and gives the answer

# gr.JSON has no schema, and MCP refuses a tool without one
BOXES: Any = {"type": "array", "items": {"type": "array", "items": {"type": "number"}}}


def add_api(studio: Studio) -> None:
    """Register the endpoints; nothing of them is seen on the page."""
    endpoints = Endpoints(studio)
    defaults = GenerateSettings()
    with gr.Column(visible=False):
        prompt, about = gr.Textbox(), gr.Textbox("")  # without a value, a program has to give one
        word, method = gr.Textbox(""), gr.Textbox(BEST)
        seed, steps, guidance = gr.Number(0), gr.Number(defaults.steps), gr.Number(defaults.guidance)
        image, labels, threshold = gr.File(), gr.Textbox(), gr.Number(studio.threshold)
        boxes, top_k, exhaustive = Api([], BOXES, "boxes"), gr.Number(10), gr.Checkbox(False)
        run_id, picture, told, file = gr.Textbox(), gr.Image(type="pil", format="png"), gr.JSON(), gr.File()
        button = gr.Button()
    button.click(endpoints.generate, [prompt, seed, steps, guidance], picture, api_name="generate")
    button.click(endpoints.detect, [image, labels, about, threshold], told, api_name="detect")
    asked = [image, prompt, seed, boxes, word, method, top_k, exhaustive]
    button.click(endpoints.attribute, asked, told, api_name="attribute")
    button.click(endpoints.report, run_id, file, api_name="report")


class Endpoints:
    """What the endpoints do; each waits for its turn and answers at the end.

    They are generators that now and then yield no change: Gradio ends one whose program has gone.
    """

    def __init__(self, studio: Studio) -> None:
        self.studio = studio

    def generate(self, prompt: str, seed: float = 0, steps: float = 25, guidance: float = 3.0) -> Following:
        """Generate a picture.

        Args:
            prompt: what to draw, not empty.
            seed: a whole number of at least 0.
            steps: of denoising, 1 to 100.
            guidance: 1 to 20; 1 is none.

        Returns:
            The picture.
        """
        try:
            check_prompt(prompt)
            number, settings = check_seed(whole(seed, "seed")), GenerateSettings(whole(steps, "steps"), guidance)
            yield (yield from self._followed(Job(generating, (prompt, number, settings))))
        except AttributionError as error:
            raise refusal(error, shown=False) from error

    def detect(self, image: str, labels: str, prompt: str = "", threshold: float | None = None) -> Following:
        """Find objects in a picture.

        Args:
            image: a PNG, JPEG or WebP file.
            labels: names, such as "apple . motorcycle".
            prompt: of the picture, for cross-attention where no detector can be had.
            threshold: 0 to 1, the least score.

        Returns:
            `label`, `score`, `box` (x0, y0, x1, y1 in pixels) of each, best first, and `by`.
        """
        try:
            picture, wanted = self._picture(image), parse_labels(labels)
            asked = (picture, wanted, prompt or labels, threshold, self.studio.detector)
            found: Found = yield from self._followed(Job(detecting, asked))
            yield [{"label": x.label, "score": x.score, "box": list(x.box), "by": found.by} for x in found.detections]
        except AttributionError as error:
            raise refusal(error, shown=False) from error

    def attribute(
        self,
        image: str | None = None,
        prompt: str = "",
        seed: float = 0,
        boxes: list[list[float]] | None = None,
        word: str = "",
        method: str = BEST,
        top_k: float = 10,
        exhaustive: bool = False,
    ) -> Following:
        """Find the training images that a picture is made of, in 15 minutes of the device's time at most.

        Args:
            image: a PNG, JPEG or WebP file; None generates one from the prompt and the seed.
            prompt: of the picture, not empty.
            seed: a whole number of at least 0.
            boxes: [[x0, y0, x1, y1], ...] in pixels of the picture; empty is the whole picture.
            word: of the prompt, instead of boxes.
            method: a method of this index; "best" is the one that agrees best with training again.
            top_k: how many training images, 1 to 100.
            exhaustive: score every training image on all noises; many times slower, so mind the limit.

        Returns:
            The attribution as `python -m attribution attribute --out` writes it, and its `run` id for /report; where
            that could not be kept, null, and `not_kept` says why.
        """
        try:
            check_prompt(prompt)
            count, number = whole(top_k, "K"), check_seed(whole(seed, "seed"))
            if count > LARGEST_K:
                raise InputError(f"K = {count} is not possible; accepted are 1 to {LARGEST_K}")
            named = method_named(method, self.studio.index)
            settings = AttributeSettings(method=named, top_k=count, exhaustive=exhaustive)
            settings = check_settings(self.studio.model, self.studio.index, settings)
            picture = self._picture(image) if image else None
            square = (self.studio.model.resolution,) * 2
            asked = tuple(tuple(float(side) for side in box) for box in boxes or [])
            blank = Query(prompt, picture or Image.new("RGB", square), None, asked, word or None)  # type: ignore[arg-type]
            check_query(blank, self.studio.model, self.studio.index.center_crop)
            made = picture or (yield from self._followed(Job(generating, (prompt, number))))
            query = Query(prompt, made, None if picture else number, blank.boxes, blank.word)
            answer = (yield from self._followed(Job(attributing, ([query], [settings])))).state
            assert isinstance(answer, Attribution)
            run = Run((answer,))
            lost = self.studio.keep(run)
            yield {**to_json(answer), "run": None if lost else run.id, **({"not_kept": sentence(lost)} if lost else {})}
        except (TypeError, ValueError) as error:
            wrong = InputError(f"boxes {repr(boxes)[:60]} are not possible; accepted is [[x0, y0, x1, y1], ...]")
            raise refusal(wrong, shown=False) from error
        except AttributionError as error:
            raise refusal(error, shown=False) from error

    def report(self, run_id: str) -> str:
        """The ZIP of a finished run.

        Args:
            run_id: twelve hexadecimal digits, from /attribute or a page's address.

        Returns:
            The file: run.json, picture.png, results.csv, report.html and thumbnails.
        """
        try:
            return str(self.studio.run_file(run_id))
        except AttributionError as error:
            raise refusal(error, shown=False) from error

    def _picture(self, path: str) -> Image.Image:
        return open_upload(Path(path))

    def _followed(self, job: Job) -> Following:
        """Follow a job to its last step, which is returned.

        Raises:
            WorkFailed: it used the device for longer than LIMIT.
        """
        yield gr.skip()  # at once: Gradio can end no generator whose first value it still waits for
        told, began, last = time.monotonic(), None, None
        with closing(self.studio.alone(job, Event())) as steps:
            for last in steps:
                now = time.monotonic()
                if began is None or isinstance(last, Waiting):
                    began = now
                if now - began > 60 * LIMIT:
                    raise WorkFailed(
                        f"the job took more than {LIMIT} minutes, the limit for programs; ask without exhaustive, or"
                        " run `python -m attribution attribute` on a machine of your own"
                    )
                if now - told >= EVERY:
                    told = now
                    yield gr.skip()
        return last
