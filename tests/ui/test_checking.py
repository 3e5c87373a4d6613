"""Check it, without a browser: what can be taken away, what is drawn again, and what is said of it."""

from dataclasses import replace
from types import SimpleNamespace

import gradio as gr
import pytest
from conftest import random_picture
from near import awaited
from PIL import Image
from test_line import generate

from attribution.answers.forget import Regenerated
from attribution.answers.remove import CHANCE, Named
from attribution.answers.run import Run
from attribution.diffusion.pipeline import GenerateSettings
from attribution.errors import InputError
from attribution.ui import again
from attribution.ui.check import runs_shown
from attribution.ui.checking import Checks
from attribution.ui.first import begin_with
from attribution.ui.handlers import UNCHANGED, Handlers
from attribution.ui.page import lay

REQUEST = SimpleNamespace(session_hash="me", query_params={})
FEW = GenerateSettings(steps=2)


@pytest.fixture
def checks(studio):
    """Handlers of a page that nobody serves."""

    async def laid():
        with gr.Blocks():
            return lay(studio)

    return Checks(Handlers(studio, awaited(laid())))


@pytest.fixture
def runs(answers, model32):
    """A finished run of a generated picture, about the whole and about a box."""
    picture = model32.generate("a red bird", 3, FEW)

    def run_of(**asked):
        query = replace(answers["unlearning"].query, prompt="a red bird", image=picture, seed=3, **asked)
        return Run(tuple(replace(each, query=query) for each in answers.values()), FEW)

    return [("whole picture", run_of()), ("a bird", run_of(boxes=((4.0, 4.0, 20.0, 12.0),)))]


def removal(checks, runs, named="0:clip", beside=CHANCE, weakest=False, strength=50):
    follow = checks.handlers.following(checks.removing, checks.refused)
    return follow(REQUEST, gr.Progress(), runs, named, beside, weakest, strength)


def test_every_ranking_of_every_region_can_be_taken_away(checks, runs, answers):
    shown, on = runs_shown(checks.on, runs), checks.on
    assert shown[on.named].choices == [
        (f"{method}, {region}", f"{place}:{method}") for place, (region, _) in enumerate(runs) for method in answers
    ]
    assert shown[on.named].value == "0:" + next(iter(answers))
    assert [value for _, value in shown[on.beside].choices] == [CHANCE, *answers]
    assert shown[on.removal].visible
    assert runs_shown(on, runs[:1])[on.named].choices == [(method, f"0:{method}") for method in answers]
    assert not runs_shown(on, [])[on.removal].visible
    assert runs_shown(on, [])[on.removed] == ""


@pytest.mark.parametrize("beside", [CHANCE, "pixel"])
def test_the_images_of_a_ranking_are_taken_away(checks, runs, beside):
    seen, on = {}, checks.on
    for update in removal(checks, runs, beside=beside):
        seen |= {} if update == UNCHANGED else update
    count, other = len(runs[0][1].answers[0].results), "at random" if beside == CHANCE else "that pixel names"
    assert f"Without the {count} that clip names" in seen[on.removed]
    assert other in seen[on.removed]
    assert seen[on.removed].count("<figure>") == 4
    assert seen[on.removed].count("Control") == 2
    assert seen[on.removal_strength] == 50
    assert "data-state='done'" in seen[on.status]
    assert f"without the {count} of clip" in seen[on.status]


def test_what_the_page_begins_with_can_be_chosen(checks, runs):
    """Gradio makes a visitor's components anew from their arguments, and then refuses what is no choice."""
    on = checks.on
    begin_with({part: change for part, change in runs_shown(on, runs).items() if part in (on.named, on.beside)})
    assert type(on.named)(**on.named.constructor_args, render=False).preprocess("1:clip") == "1:clip"
    assert type(on.beside)(**on.beside.constructor_args, render=False).preprocess("pixel") == "pixel"


def test_short_work_is_done_between_its_steps_and_neither_notices(checks, runs, studio):
    def pictures(meanwhile):
        seen = {}
        for update in removal(checks, runs):
            seen |= {} if update == UNCHANGED else update
            meanwhile()
        return seen[checks.on.removed]

    alone, moved = generate(studio), []

    def meanwhile():
        moved.append(bool(studio.model.changed))
        assert generate(studio) == alone

    assert pictures(lambda: None) == pictures(meanwhile)
    assert True in moved


def test_a_stop_is_told_and_frees_the_device(checks, runs, studio):
    steps, seen = removal(checks, runs, weakest=True), {}
    for update in steps:
        seen |= {} if update == UNCHANGED else update
        if "Unlearning training images" in str(seen.get(checks.on.status)):
            studio.stop("me")
    assert "data-state='stopped'" in seen[checks.on.status]
    assert checks.on.removed not in seen
    assert studio.waiting == 0
    assert not studio.model.changed


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"runs": []}, "no finished ranking is chosen; press Attribute"),
        ({"named": None}, "no finished ranking is chosen"),
        ({"named": "7:clip"}, "no finished ranking is chosen"),
        ({"named": "0:magic"}, "'magic' was not asked about this region; accepted are unlearning"),
        ({"beside": "magic"}, "'magic' was not asked"),
        ({"beside": "clip"}, "clip stands beside itself"),
    ],
)
def test_what_cannot_be_taken_away_is_refused(checks, runs, changed, said):
    given = {"runs": runs, "named": "0:clip", "beside": CHANCE, "weakest": True, "strength": 1} | changed
    with pytest.raises(InputError, match=said):
        checks.removing(**given)


def made(*shares):
    """Pictures of which so much changed, of the named images, of the others, of the controls."""
    before, after = random_picture(1), random_picture(2)
    return [(Regenerated("a <b>bird</b>", before, after, 16, share), "data:1", "data:2") for share in shares]


@pytest.mark.parametrize(
    ("shares", "said"),
    [
        ((0.2, 0.02), "The named images matter more"),
        ((0.12, 0.09), "That is no clear difference"),
        ((0.05, 0.2), "The other images matter more"),
        ((0.0, 0.0), "That is no clear difference"),
    ],
)
def test_the_two_removals_are_compared(shares, said):
    told = again.removed(made(*shares), Named("d-trak", (1, 2)), Named(CHANCE, (3, 4)))
    assert said in told
    assert "16 times as large" in told
    assert "Without the 2 that d-trak names" in told
    assert "without 2 at random" in told
    assert "<b>bird" not in told


def test_what_is_hardly_seen_is_said_and_so_are_the_controls():
    same = Image.new("RGB", (2, 2))
    control = Regenerated("a bus", same, same, 64, 0.0)
    told = again.removed([*made(0.04, 0.01), (control, "", "")], Named("dino", (1,)), Named("clip", (3,)))
    assert "changes by 4.0%, which is hardly seen (from 10% on it is); without the 1 that clip names, by 1.0%" in told
    assert "The controls changed by 0.0%: they lost as good as nothing" in told
    assert again.removed([], Named("dino", (1,)), Named("clip", (3,))) == ""
    assert "changes by 4.0%" in again.removed(made(0.04), Named("dino", (1,)), Named("clip", (3,)))


def test_what_a_removal_shows_is_said_with_how_far_it_was_found_to_hold():
    assert again.removing(()) == again.REMOVE
    told = again.removing(("0.24 for 16 images", "0.56 for 64 images"))
    assert told.startswith(f"{again.REMOVE} {again.TRUST}")
    assert "by 0.24 for 16 images and 0.56 for 64 images; 1 is the same order, 0 is chance." in told
