"""What the page says: statuses, captions and notes, as text or escaped HTML."""

from html import escape

from attribution.attribute import METHODS, Attribution, Progress, Result
from attribution.data import MAX_BYTES, MAX_SIDE
from attribution.index import Index
from attribution.model import TokenCount
from attribution.ui.studio import Picture

PROMPT = "a flat drawing of a red apple and a motorcycle on a blue background"
INTRO = (
    "Generate a picture, mark what interests you, and see which training images it is made of: those whose loss rises"
    " most when the model <em>unlearns</em> that picture."
)
UPLOAD = (
    f"PNG, JPEG or WebP, up to {MAX_BYTES // 1_000_000} MB and {MAX_SIDE} px a side; its prompt goes in the box above."
    " An upload that this model did not make has no influence to find."
)
BOX = "Draw a box on the picture, or type its corners in pixels. No box means the whole picture."
INFLUENTIAL = "Most influential, by unlearning"
SCORE = "Score: how much the image's loss rises; higher is more."
SIDES = {"x0": "x0, left", "y0": "y0, top", "x1": "x1, right", "y1": "y1, bottom"}
NO_PICTURE = "No picture yet: generate one, or upload one."
EXHAUSTIVE = "Score every training image on all noises, instead of dropping unlikely ones early; slower."
CREDITS = (
    "Emoji art: <a href='https://github.com/jdecked/twemoji'>Twemoji</a>"
    " (<a href='https://creativecommons.org/licenses/by/4.0/'>CC BY 4.0</a>) and"
    " <a href='https://openmoji.org'>OpenMoji</a>"
    " (<a href='https://creativecommons.org/licenses/by-sa/4.0/'>CC BY-SA 4.0</a>), composed into scenes."
)
STORED = (
    "Pictures lie in temporary files on this server for at most two hours, then they are deleted;"
    " nothing else is stored, and nothing is sent elsewhere."
)


def gallery(results: tuple[Result, ...], index: Index) -> list[tuple[str, str]]:
    """Results as a gallery's items: thumbnail, and a caption of rank, score and training caption."""
    return [(str(index.thumbnail(result.row)), caption(result)) for result in results]


def caption(result: Result) -> str:
    """Rank, score, whether the mirror scored higher, and the training caption."""
    mirrored = "(mirrored) " if result.flip else ""
    return f"{result.rank} · {result.score:+.4f}\n{mirrored}{result.caption}"


def progress(step: Progress) -> str:
    """Stage, predictions made, time left, and a bar."""
    left = "" if step.eta is None else f" · {seconds(step.eta)} left"
    stage = {"unlearning": "Unlearning the picture", "scoring": "Scoring training images"}.get(step.stage, step.stage)
    return status(
        "running", stage, f"{step.evaluations:,} of {step.total:,} evaluations{left}", step.evaluations / step.total
    )


def done(answer: Attribution, region: str) -> str:
    """What a finished answer took, and what it is about."""
    took = seconds(sum(answer.seconds.values()))
    return status("done", "Done", f"{region} · {answer.evaluations:,} evaluations in {took}", 1)


def status(state: str, title: str, detail: str = "", share: float | None = None) -> str:
    """One line with a bar under it.

    Args:
        state: idle, waiting, running, done, stopped or error.
        title: in bold.
        detail: after it.
        share: of the work, 0 to 1; None leaves the bar empty.
    """
    percent = 0 if share is None else min(100.0, 100 * share)
    bar = f"<div class='bar'><div style='width: {percent:.2f}%'></div></div>"
    role = {"error": " role='alert'", "done": " role='status'", "stopped": " role='status'"}.get(state, "")
    text = f"<p{role}><strong>{escape(title)}</strong> {escape(detail)}</p>"
    return f"<div class='status' data-state='{state}'>{text}{bar}</div>"


def seconds(value: float) -> str:
    """A duration, rounded to what matters."""
    if value >= 90:
        return f"{value / 60:.0f} min"
    return f"{value:.0f} s" if value >= 1 else "under 1 s"


def tokens(count: TokenCount) -> str:
    """How much of the prompt is read."""
    if count.count > count.limit:
        return note(
            f"The prompt has {count.count} tokens and the model reads {count.limit}; it reads: “{count.kept}”",
            "warning",
        )
    return note(f"{count.count} of {count.limit} tokens")


def generated(picture: Picture) -> str:
    """Where a generated picture comes from."""
    return note(f"Generated from “{picture.prompt}”, seed {picture.seed}.")


def uploaded(picture: Picture, name: str, center_crop: bool) -> str:
    """What to expect of an upload."""
    width, height = picture.image.size
    seen = " The model sees its middle square." if center_crop else " The model sees it squeezed to a square."
    square = "" if width == height else seen
    return note(
        f"{name}, {width} x {height} px, uploaded.{square} If this model did not make it, there is no influence to"
        " find: the ranking then only shows which training images are nearest for the model."
    )


def missing(methods: dict[str, str]) -> str:
    """The methods that the index holds nothing for, greyed out, each with the reason."""
    rows = (
        f"<li><span class='off' aria-disabled='true'>{escape(name)}</span> {escape(reason)}</li>"
        for name, reason in methods.items()
    )
    return f"<ul class='note missing'>{''.join(rows)}</ul>" if methods else ""


def heading(method: str) -> str:
    """Over the ranking that is compared with."""
    entry = METHODS[method]
    return f"<h2>Compared with {escape(method)}</h2>{note(f'Score: {entry.line} ({entry.source}).')}"


def note(text: str, kind: str = "plain") -> str:
    """A small paragraph: plain, warning or error."""
    return f"<p class='note {kind}'>{escape(text)}</p>"


IDLE = status("idle", "", "The ranking appears early, then settles.")
