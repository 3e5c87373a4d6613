"""What can be asked for, in words of the training captions."""

import random

import pytest

from attribution.query.prompts import prompt_with, replaced, things

CAPTIONS = [
    "a flat drawing of a red apple and a motorcycle on a blue background",
    "an outlined drawing of an owl and a motorcycle on a pink background",
    "a flat drawing of an umbrella on a white background",
]


def test_things_are_those_that_captions_name_most_often():
    assert things(CAPTIONS, 1) == ["motorcycle"]
    assert things(CAPTIONS) == ["motorcycle", "owl", "red apple", "umbrella"]
    assert things([""]) == []


@pytest.mark.parametrize("name", ["owl", "motorcycle", "red apple"])
def test_a_prompt_about_a_thing_names_it(name):
    for seed in range(20):
        assert name in prompt_with(name, CAPTIONS, random.Random(seed))


def test_a_prompt_by_chance_is_about_what_captions_name():
    made = {prompt_with("", CAPTIONS, random.Random(seed)) for seed in range(50)}
    assert len(made) > len(CAPTIONS)
    assert all(any(name in prompt for name in things(CAPTIONS)) for prompt in made)


def test_the_article_fits():
    assert replaced(CAPTIONS[1], "owl", "frog") == "an outlined drawing of a frog and a motorcycle on a pink background"
    assert replaced(CAPTIONS[2], "umbrella", "owl") == "a flat drawing of an owl on a white background"
    assert replaced("two red birds", "red birds", "owl") == "two owl"
    assert replaced("nothing", "bird", "owl") == "nothing"
