"""Handlers of what is marked on the picture: objects that are found, and words of its prompt."""

from base64 import b64encode
from collections.abc import Iterator
from threading import Event

from PIL import Image

from attribution.answers.html import to_png
from attribution.errors import AttributionError
from attribution.query.detect import Found
from attribution.query.labels import check_labels, parse_labels
from attribution.ui import words
from attribution.ui.handlers import Asked, Handlers, Update, sentence, there_is
from attribution.ui.jobs import Job, detecting, mapping
from attribution.ui.regions import MOST, drawn_boxes, found_rows, shown_copy
from attribution.ui.studio import Picture, Waiting


class Marks:
    """Handlers of what is marked, beside those of every run."""

    def __init__(self, handlers: Handlers) -> None:
        self.handlers, self.studio, self.on = handlers, handlers.studio, handlers.on

    def detection(self, picture: Picture | None, prompt: str, labels: str, threshold: float) -> Asked:
        """The objects of these names, as boxes."""
        picture = there_is(picture)
        image, wanted = picture.image, check_labels(parse_labels(labels))
        job = Job(detecting, (image, wanted, picture.prompt or prompt, threshold, self.studio.detector))

        def show(found: Found | Waiting) -> Update:
            if isinstance(found, Waiting):
                return {self.on.found: words.note(f"Waiting: {found.ahead} ahead of this one.")}
            return {**self.boxed(image, found), self.on.found: words.found(found, wanted)}

        return Asked(job, show, {self.on.found: words.note(words.KEPT_BOXES)}, repeated=True)

    def boxed(self, image: Image.Image, found: Found) -> Update:
        """What was found, in the table and on the picture."""
        rows = found_rows(found.detections)
        copy, frame = shown_copy(image)
        return {self.on.table: rows, self.on.annotator: {"image": copy, "boxes": drawn_boxes(rows, frame["factor"])}}

    def refused(self, told: str) -> Update:
        """What is not possible, said beside the objects."""
        return {self.on.found: words.note(told, "error")}

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


def data_uri(image: Image.Image) -> str:
    """A picture inside a page."""
    return f"data:image/png;base64,{b64encode(to_png(image)).decode()}"
