"""What the page says: statuses, captions and notes, as text or escaped HTML."""

from collections.abc import Sequence
from html import escape

from attribution.answers.forget import STRENGTH, Regenerated
from attribution.answers.report import Run
from attribution.diffusion.pictures import MAX_BYTES, MAX_SIDE
from attribution.diffusion.tokens import TokenCount
from attribution.methods.answer import Progress
from attribution.query.detect import Found
from attribution.ui.regions import MOST
from attribution.ui.studio import Picture, Waiting

PROMPT = "a flat drawing of a red apple and a motorcycle on a blue background"
INTRO = (
    "Generate a picture, mark what interests you, and see which training images it is made of: those whose loss rises"
    " most when the model <em>unlearns</em> that picture."
)
UPLOAD = (
    f"PNG, JPEG or WebP, up to {MAX_BYTES // 1_000_000} MB and {MAX_SIDE} px a side; its prompt goes above. A picture"
    " that this model did not make has no influence to find."
)
REGIONS = (
    "Draw boxes on the picture (the hand moves them) or type their corners in pixels, let objects be found, or pick"
    f" words: up to {MOST} regions, each answered by itself. None means the whole picture."
)
COMPARED = "Shown beside unlearning; the quick ones take under a second."
FOLDED = "Show nearly equal training images once."
HISTORY = "Your finished runs, listed in this browser alone"
FORGET = (
    "The same prompt and seed, and two unrelated prompts, from the model after it has unlearned the picture, with"
    f" {STRENGTH:g} times the step that scores are measured with, which is too small to see. The change is the mean"
    " difference of intensities, as a share of their range."
)
NO_PICTURE = "No picture yet: generate one, or upload one."
KEPT_PICTURE = "Stopped; the picture before is kept."
KEPT_BOXES = "Stopped; the boxes are as they were."
EXHAUSTIVE = "Score every training image on all noises, instead of dropping unlikely ones early; slower."
CREDITS = (
    "Emoji art: <a href='https://github.com/jdecked/twemoji'>Twemoji</a>"
    " (<a href='https://creativecommons.org/licenses/by/4.0/'>CC BY 4.0</a>) and"
    " <a href='https://openmoji.org'>OpenMoji</a>"
    " (<a href='https://creativecommons.org/licenses/by-sa/4.0/'>CC BY-SA 4.0</a>), composed into scenes."
)
STORED = (
    "Uploads lie in temporary files on this server for at most two hours. Finished runs, with picture, prompt and"
    " ranking, are kept here so that their links work, the latest 200 of them; whoever has a link can open it. Your own"
    " list of runs is in your browser alone. Nothing is sent elsewhere."
)


def progress(step: Progress, region: str, number: int, count: int) -> str:
    """Stage, predictions made, time left, and a bar, of one region of some."""
    left = "" if step.eta is None else f" · {seconds(step.eta)} left"
    stage = {
        "unlearning": "Unlearning the picture",
        "scoring": "Scoring training images",
        "generating": "Generating",
        "gradient": "Taking its gradient",
    }.get(step.stage, step.stage)
    of = f"{region}, region {number} of {count} · " if count > 1 else ""
    detail = f"{of}{step.evaluations:,} of {step.total:,} evaluations{left}"
    return status("running", stage, detail, (number - 1 + step.evaluations / step.total) / count)


def done(runs: Sequence[tuple[str, Run]]) -> str:
    """What finished runs took, and what they are about."""
    answers = [answer for _, run in runs for answer in run.answers]
    took = seconds(sum(sum(answer.seconds.values()) for answer in answers))
    named, made = ", ".join(name for name, _ in runs), sum(answer.evaluations for answer in answers)
    return status("done", "Done", f"{named} · {made:,} evaluations in {took}", 1)


def waiting(step: Waiting) -> str:
    """A place in the line."""
    runs = "1 run is" if step.ahead == 1 else f"{step.ahead} runs are"
    return status("waiting", "Waiting", f"{runs} ahead of this one")


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


def found(objects: Found, wanted: Sequence[str]) -> str:
    """What was found, by what, with the scores, and which of the wanted names were not."""
    if not objects.detections:
        return note(
            f"{objects.by} Nothing reaches the threshold; lower it, name things shorter, or draw a box.", "warning"
        )
    listed = ", ".join(f"{each.label} {each.score:.2f}" for each in objects.detections)
    named = {each.label for each in objects.detections}
    missing = ", ".join(f"“{name}”" for name in wanted if name not in named)
    return note(f"{objects.by} {listed}." + (f" Not found: {missing}; a shorter name may be." if missing else ""))


def examples(buttons: str) -> str:
    """Finished runs to open, as buttons."""
    return f"<p class='label' id='examples-label'>See a finished one</p><div class='examples'>{buttons}</div>"


def word_figure(word: str, picture: str) -> str:
    """A picture that is lit where a word is."""
    alt = f"Where the picture attends to “{word}”"
    image = f"<img src='{picture}' alt='{escape(alt, quote=True)}'>"
    return f"<figure class='word'>{image}<figcaption>{escape(word)}</figcaption></figure>"


def searched(name: str) -> str:
    """What it means to attribute a training image."""
    return note(f"The training image {name}, taken as the picture: its own rank tells whether a method finds itself.")


def forgotten(made: Sequence[tuple[Regenerated, str, str]]) -> str:
    """Pictures before and after unlearning, the first of the query's prompt, with their addresses."""
    rows = "".join(
        f"<figure><div><img src='{before}' alt='Before'><img src='{after}' alt='After'></div>"
        f"<figcaption><b>{'Control' if place else 'This picture'}: changed by {pair.change:.0%}</b>"
        f" {escape(pair.prompt)}</figcaption></figure>"
        for place, (pair, before, after) in enumerate(made)
    )
    return f"<div class='forgotten'>{rows}</div>"


def note(text: str, kind: str = "plain") -> str:
    """A small paragraph: plain, warning or error."""
    return f"<p class='note {kind}'>{escape(text)}</p>"


IDLE = status("idle", "", "The ranking appears early, then settles.")
