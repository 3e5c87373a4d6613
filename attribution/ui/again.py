"""What the page says of pictures that were drawn again: without the picture itself, or without training images."""

from collections.abc import Sequence
from dataclasses import dataclass

from attribution.answers.forget import VISIBLE, Regenerated
from attribution.answers.proof import foreseen_words
from attribution.answers.remove import CHANCE, Named
from attribution.ui.templates import render

FORGET = (
    "The model takes a step that unlearns this picture (the picture, not the training images above); then the same"
    " prompt and seed are drawn again, and two unrelated prompts as controls. What the controls lose tells how much"
    " else the step breaks."
)
REMOVE = (
    "The model unlearns the training images that a method names, as training data: its weights move to where training"
    " without them would have led, by an estimate that takes seconds. Then the same prompt and seed are drawn again;"
    " beside it, the same by a step of the same strength that removes other images. The step is made long enough to be"
    " seen, so compare the two: if the named images matter, only theirs changes the picture. It does not show what a"
    " model would draw that was really trained without them."
)
TRUST = "How far to trust it was tried in the small world of the proof below."
WEAKEST = f"Find the weakest step that visibly changes the region: by {VISIBLE:.0%} of the intensities' range"
STRENGTH = "Strength"
UNIT = "1 is the step that scores are measured with."
SLIGHT, CLEAR = 0.02, 0.05  # changes of a control, of the intensities' range: seen when looked for, seen at a glance
TELLING = 2.0  # times as much change as the other images do: from there on it is called more

Made = tuple[Regenerated, str, str]  # with the addresses of the pictures before and after


@dataclass(frozen=True)
class Pair:
    """A prompt's two pictures, by their addresses, and what became of it."""

    prompt: str
    before: str
    after: str
    title: str
    change: str


def removing(foreseen: Sequence[str]) -> str:
    """What the removal of training images shows, and how well that is known to foresee training without them."""
    return f"{REMOVE} {TRUST} {foreseen_words(foreseen)}" if foreseen else REMOVE


def forgotten(made: Sequence[Made]) -> str:
    """Pictures before and after unlearning, the first of the query's prompt, with their addresses."""
    if not made:
        return ""
    (this, *_), *others = made
    pairs = [
        Pair(pair.prompt, before, after, *(_lost(pair) if place else _unlearned(pair)))
        for place, (pair, before, after) in enumerate(made)
    ]
    return render("words.html", "forgotten", pairs, _forgetting(this, [pair for pair, *_ in others]))


def _unlearned(pair: Regenerated) -> tuple[str, str]:
    whole = "" if pair.inside == pair.change else f", {pair.change:.0%} over the whole picture"
    return "This picture", f"changed by {pair.inside:.0%}{' in the region' if whole else ''}{whole}"


def _lost(pair: Regenerated) -> tuple[str, str]:
    said = "as good as nothing lost" if pair.change < SLIGHT else "a little lost"
    return "Control", f"changed by {pair.change:.1%}: {said if pair.change < CLEAR else 'something visible is lost'}"


def _forgetting(this: Regenerated, others: Sequence[Regenerated]) -> str:
    """The step's strength, what it did to the picture, and what the controls lost."""
    step = f"A step {this.strength:g} times as large as the one that scores are measured with"
    did = f"changes the region by {this.inside:.0%}"
    if this.inside < VISIBLE:
        did += f", which is hardly seen (from {VISIBLE:.0%} on it is)"
    return f"{step} {did}. {_harm(others)}".strip()


def _harm(controls: Sequence[Regenerated]) -> str:
    """What the controls lost, in a sentence; "" without any."""
    if not controls:
        return ""
    lost = max(pair.change for pair in controls)
    harm = "as good as nothing" if lost < SLIGHT else "a little" if lost < CLEAR else "something that is seen"
    changes = " and ".join(f"{pair.change:.1%}" for pair in controls)
    return f"The controls changed by {changes}: they lost {harm}."


def removed(made: Sequence[Made], named: Named, beside: Named) -> str:
    """Pictures before and after training images were unlearned: the named ones, those beside them, the controls."""
    if not made:
        return ""
    titles = [_taken(named), _taken(beside)]
    pairs = [
        Pair(pair.prompt, before, after, *((titles[place], _unlearned(pair)[1]) if place < 2 else _lost(pair)))
        for place, (pair, before, after) in enumerate(made)
    ]
    return render("words.html", "forgotten", pairs, _removing([pair for pair, *_ in made], named, beside))


def _taken(named: Named) -> str:
    count = len(named.rows)
    return f"Without {count} at random" if named.by == CHANCE else f"Without the {count} that {named.by} names"


def _removing(made: Sequence[Regenerated], named: Named, beside: Named) -> str:
    """What the two removals did to the picture, which of them more, and what the controls lost."""
    this, *others = made
    did = f"{_taken(named)}, the region changes by {this.inside:.1%}"
    if this.inside < VISIBLE:
        did += f", which is hardly seen (from {VISIBLE:.0%} on it is)"
    if not others:
        return f"{did}."
    other, *controls = others
    did += f"; {_taken(beside)[:1].lower()}{_taken(beside)[1:]}, by {other.inside:.1%}."
    step = f"Both steps are {this.strength:g} times as large as scores are measured with."
    return " ".join(filter(None, [did, _compared(this, other), step, _harm(controls)]))


def _compared(this: Regenerated, other: Regenerated) -> str:
    if this.inside > TELLING * other.inside:
        return "The named images matter more to this picture."
    if other.inside > TELLING * this.inside:
        return "The other images matter more to this picture."
    return "That is no clear difference."
