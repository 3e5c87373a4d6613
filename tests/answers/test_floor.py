"""Calibration: unrelated questions are what they are said to be, and are measured once, also when interrupted."""

import json
from itertools import islice

import numpy as np
import pytest

from attribution.answers import floor
from attribution.answers.calibration import read_calibration
from attribution.answers.drawn import DRAWN
from attribution.answers.floor import UNFINISHED, measure_floor, summary
from attribution.answers.unrelated import KINDS, NONSENSE, NOWHERE, Pictures, makers, question, some_box
from attribution.errors import InputError
from attribution.index.index import Index
from attribution.query.evidence import kind_of


@pytest.fixture(autouse=True)
def few(monkeypatch):
    monkeypatch.setattr(floor, "ENOUGH", 1)
    monkeypatch.setattr("attribution.answers.unrelated.POOL", 2)


def test_a_calibration_that_was_interrupted_is_the_same(model32, plain_copy):
    index = Index.open(plain_copy)
    whole = list(measure_floor(model32, index, 4))
    assert [step.done for step in whole] == list(range(1, 13))
    told = (plain_copy / "floor.json").read_text()
    (plain_copy / "floor.json").unlink()
    assert len(list(islice(measure_floor(model32, index, 4), 5))) == 5
    assert not (plain_copy / "floor.json").exists()
    with (plain_copy / UNFINISHED).open("a") as file:
        file.write('{"done": 6, "cou')  # killed while it wrote
    assert [step.done for step in measure_floor(model32, index, 4)] == list(range(6, 13))
    assert (plain_copy / "floor.json").read_text() == told
    assert not (plain_copy / UNFINISHED).exists()


def test_what_was_measured_with_other_settings_is_not_gone_on_with(model32, plain_copy):
    index = Index.open(plain_copy)
    list(islice(measure_floor(model32, index, 2, seed=5), 3))
    assert len(list(measure_floor(model32, index, 2, seed=6))) == 6


def test_the_calibration_holds_every_strength(model32, plain_copy):
    index = Index.open(plain_copy)
    assert summary(index) == "not calibrated"
    steps = list(measure_floor(model32, index, 4, seed=3))
    known = read_calibration(index)
    assert known.seed == 3
    for kind in KINDS:
        own = sorted((step.evidence.strength for step in steps if step.kind == kind), reverse=True)
        assert known.strengths[kind] == pytest.approx(own, abs=1e-6)
        assert f"| {kind} | 4 |" in summary(index)
    told = json.loads((plain_copy / "floor.json").read_text())
    assert {name for named in told["strengths"].values() for name in named} == {step.maker for step in steps}


def test_questions_are_of_words_that_are_not_the_pictures(model32, index32):
    pictures = Pictures(model32, index32, 0)
    for kind in KINDS:
        for number, name in enumerate(makers(kind)):
            made, query = question(pictures, kind, number)
            assert (made, kind_of(query)) == (name, kind)
            own = {prompt for prompt, picture in pictures._made.values() if picture is query.image}
            assert bool(own) == (name != "drawing")
            assert query.prompt not in own or name in ("empty region", "word that is nowhere")
            assert (query.prompt in NONSENSE) == (name == "nonsense prompt")
            again = question(Pictures(model32, index32, 0), kind, number)[1]
            assert (again.prompt, again.boxes, again.word) == (query.prompt, query.boxes, query.word)
            assert again.image.tobytes() == query.image.tobytes()


def test_a_picture_is_asked_with_its_own_prompt_about_nothing_alone(model32, index32, monkeypatch):
    plain, full = (DRAWN[name](np.random.default_rng(0), 32) for name in ("plain", "noise"))
    for picture, prompt, empty, nowhere in (
        (plain, "a red bird", True, True),
        (full, "a red bird", False, True),
        (plain, "red birds", True, False),
    ):
        monkeypatch.setattr(Pictures, "generated", lambda self, rng, made=(prompt, picture): made)
        pictures = Pictures(model32, index32, 0)
        box = makers("box")["empty region"](pictures, np.random.default_rng(1))
        assert (box.prompt == prompt) == empty
        word = makers("word")["word that is nowhere"](pictures, np.random.default_rng(1))
        assert (word.prompt == prompt) == nowhere
        assert word.word in NOWHERE or not nowhere


@pytest.mark.parametrize("name", list(DRAWN))
def test_drawn_pictures_are_many_and_fixed_by_their_seed(name):
    made = [DRAWN[name](np.random.default_rng(seed), 48) for seed in (1, 2, 1)]
    assert {picture.size for picture in made} == {(48, 48)}
    assert {picture.mode for picture in made} == {"RGB"}
    first, other, again = (picture.tobytes() for picture in made)
    assert first == again != other


def test_a_box_is_put_where_there_is_most_or_least():
    picture = DRAWN["plain"](np.random.default_rng(0), 64)
    noisy = DRAWN["noise"](np.random.default_rng(0), 16)
    picture.paste(noisy, (48, 0))
    full, empty = (some_box(picture, np.random.default_rng(3), fullest) for fullest in (True, False))
    assert picture.crop(full).getextrema() != picture.crop(empty).getextrema()
    assert len({low == high for low, high in picture.crop(empty).getextrema()}) == 1


@pytest.mark.parametrize("count", [0, -1, 5001])
def test_a_count_that_is_not_possible(model32, index32, count):
    with pytest.raises(InputError, match="accepted are 1 to 5000"):
        list(measure_floor(model32, index32, count))
