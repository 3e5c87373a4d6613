"""What the page says: statuses, captions and notes, as text or escaped HTML."""

from collections.abc import Collection, Mapping, Sequence

from attribution.answers.provenance import Credits
from attribution.answers.run import Run
from attribution.diffusion.pictures import MAX_BYTES, MAX_SIDE
from attribution.diffusion.tokens import TokenCount
from attribution.methods import METHODS
from attribution.methods.answer import Progress
from attribution.methods.budgets import Budget
from attribution.query.detect import Found
from attribution.ui.regions import MOST
from attribution.ui.studio import Picture, Waiting
from attribution.ui.templates import render

INTRO = (
    "Generate a picture, mark what interests you, and see the training images that it is made of: those whose loss"
    " rises most when the model unlearns that picture."
)
UPLOAD = (
    f"PNG, JPEG or WebP, up to {MAX_BYTES // 1_000_000} MB and {MAX_SIDE} px a side. What this model did not make has"
    " no influence to find."
)
REGIONS = (
    f"Draw boxes, let objects be found, or pick words: up to {MOST} regions, each answered by itself. None means the"
    " whole picture."
)
COMPARED = "Shown beside {}. All but those whose names begin with unlearning are quick."
BETTER = (
    "In our measurements D-TRAK's top ten hold the boxed object more often (99 % against 95 % for unlearning+), but"
    " models trained without the images that unlearning+ names forget the picture more (see Proof, below). Ensemble is"
    " the mean of unlearning+ and influence+."
)
NOT_HERE = "is not in this page's index"
PUBLISHED = "Where its published weights cannot be had, the model's attention to the prompt's words is used instead."
ADDED = "Not in this index. The command that built it, run again with these flags, adds what they need:"
FOLDED = "Show nearly equal training images once."
HISTORY = "Your finished runs, listed in this browser alone"
ASK_PROMPT = "Write above what it shows: the model reads the picture with its prompt."
BEGUN = "A finished example is open below. Ask of it again, or make a picture of your own."
FOREIGN = (
    "If this model did not make it, there is no influence to find: the ranking then only shows which training images"
    " are nearest for the model."
)
NO_PICTURE = "No picture yet: generate one, or upload one."
KEPT_PICTURE = "Stopped; the picture before is kept."
KEPT_BOXES = "Stopped; the boxes are as they were."
BUDGET = "How far to search"
SEARCHES: dict[Budget, str] = {"quick": "Quick", "normal": "Normal", "thorough": "Thorough", "all": "Every image"}
BEGIN = "Begin"
STORED = (
    "Uploads lie in temporary files on this server for at most two hours. Finished runs, with picture, prompt and"
    " ranking, are kept here so that their links work, the latest 200 of them; whoever has a link can open it. Your own"
    " list of runs is in your browser alone. Nothing is sent elsewhere."
)


def progress(step: Progress, region: str, number: int, count: int) -> str:
    """What is being done, of which region, and how far the whole is: predictions made, time left, a bar."""
    left = "" if step.eta is None else f" · {seconds(step.eta)} left"
    stage = {
        "unlearning": "Unlearning the picture",
        "scoring": "Scoring training images",
        "removing": "Unlearning training images",
        "generating": "Generating",
        "gradient": "Taking its gradient",
    }.get(step.stage, step.stage)
    of = f"{region}, region {number} of {count} · " if count > 1 else ""
    detail = f"{of}{step.evaluations:,} of {step.total:,} evaluations{left}"
    return status("running", stage, detail, step.evaluations / step.total)


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
        state: idle, asked (whether to begin), waiting, running, done, stopped or error.
        title: in bold.
        detail: after it.
        share: of the work, 0 to 1; None leaves the bar empty.
    """
    percent = 0 if share is None else min(100.0, 100 * share)
    role = {"error": "alert", "asked": "alert", "done": "status", "stopped": "status"}.get(state, "")
    return render("words.html", "status", state, title, detail, percent, role)


def seconds(value: float) -> str:
    """A duration, rounded to what matters."""
    if value >= 5400:
        return f"{value / 3600:.1f} h"
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


def reopened(run: Run) -> str:
    """Where the picture of a finished run comes from."""
    query = run.query
    if query.seed is not None:
        return generated(Picture(query.image, query.prompt, query.seed))
    width, height = query.image.size
    return note(f"A picture of {width} x {height} px that was not generated here. {FOREIGN}")


def generated(picture: Picture) -> str:
    """Where a generated picture comes from."""
    return note(f"Generated from “{picture.prompt}”, seed {picture.seed}.")


def uploaded(picture: Picture, name: str, center_crop: bool) -> str:
    """What to expect of an upload."""
    width, height = picture.image.size
    seen = " The model sees its middle square." if center_crop else " The model sees it squeezed to a square."
    square = "" if width == height else seen
    return note(f"{name}, {width} x {height} px, uploaded.{square} {FOREIGN}")


def missing(methods: dict[str, str], told: str = "") -> str:
    """The methods that the index holds nothing for, greyed out, each with the reason; before them what they share."""
    return render("words.html", "missing", methods, told) if methods else ""


def lacking(methods: dict[str, str], held: Collection[str]) -> str:
    """The same for those who serve an index of their own, with the flags that add what it does not hold."""
    needed = {name: [each for each in METHODS[name].artifacts if each not in held] for name in methods}
    flags = {name: " ".join(f"--{each.replace('/', ' ')}" for each in lacks) for name, lacks in needed.items()}
    return missing({name: flags[name] or methods[name] for name in methods}, ADDED)


def introduction(about: str) -> str:
    """What the page is for, and what model and training set it shows."""
    return render("words.html", "intro", INTRO, f"It shows {about}.")


def own(model: str, side: int, count: int, source: str) -> str:
    """A model and a training set of somebody's own, in a few words.

    Args:
        model: what it is called.
        side: px, of its pictures.
        count: of training images.
        source: what the training set is called.
    """
    images = "1 training image" if count == 1 else f"{count:,} training images"
    return f"{model}, which makes pictures of {side} px, and the {images} of {source}"


def credited(credits: Credits) -> str:
    """Whose pictures the training set shows, and what is kept here."""
    return render("words.html", "credits", credits.pictures, STORED)


def detecting(behind: str) -> str:
    """By what objects are found; `behind` is a sentence about a network of the index's own, "" where there is none."""
    return f"GroundingDINO looks for names, with full stops between them. {behind or PUBLISHED}"


def compared(main: str, methods: Sequence[str], measured: bool) -> str:
    """What comparing takes, and, on the index that it was measured on, what a method does better."""
    told = COMPARED.format(main)
    return f"{told} {BETTER}" if measured and "d-trak" in methods else told


def budgets(seconds_of: Mapping[Budget, float | None]) -> list[tuple[str, Budget]]:
    """Budgets by what they are called, with the time that each takes for a region, where that is known."""
    told = {name: "" if each is None else f" · about {seconds(each)}" for name, each in seconds_of.items()}
    return [(f"{SEARCHES[name]}{each}", name) for name, each in told.items()]


def long(took: float, regions: int, quicker: Mapping[Budget, float]) -> str:
    """What a question will take, before it is begun, and what would take less.

    Args:
        took: seconds.
        regions: that are asked about.
        quicker: other budgets' seconds, of which the longest is named.
    """
    of = f" for {regions} regions" if regions > 1 else ""
    name, least = max(quicker.items(), key=lambda each: each[1], default=(None, 0.0))
    less = f" “{SEARCHES[name]}”, under “{BUDGET}”, takes about {seconds(least)}." if name else ""
    return status("asked", f"This takes about {seconds(took)}{of}.", f"{BEGIN} starts it.{less}")


def chips(names: Sequence[str]) -> str:
    """Words that a prompt can be about, and a prompt by chance, as buttons."""
    return render("words.html", "chips", names)


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


def word_figure(word: str, picture: str) -> str:
    """A picture that is lit where a word is."""
    return render("words.html", "word", word, picture)


def searched(name: str) -> str:
    """What it means to attribute a training image."""
    return note(f"The training image {name}, taken as the picture: its own rank tells whether a method finds itself.")


def note(text: str, kind: str = "plain") -> str:
    """A small paragraph: plain, warning or error."""
    return render("words.html", "note", text, kind)


IDLE = status("idle", "", "The ranking appears early, then settles.")
