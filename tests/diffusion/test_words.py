# ruff: noqa: RUF001 - letters of other scripts are what this is about
"""Prompts of every script: what is accepted, and which words can be picked."""

import pytest

from attribution.diffusion.attention import word_tokens
from attribution.diffusion.tokens import check_prompt
from attribution.diffusion.words import find_words, words_of
from attribution.errors import InputError

HINDI = "एक लाल कीड़ा और हिन्दी"
PERSIAN = "می\u200cخواهم یک سیب"  # a zero-width non-joiner inside its first word
ARABIC = "تُفَّاحَةٌ حَمْراءُ"  # with all vowel marks
FAMILY = "👩\u200d👩\u200d👧"
FARMER = "👩🏽\u200d🌾"
SHAKING = "\U0001fae8"  # of Unicode 15, newer than the tables of Python 3.11
SCOTLAND = "🏴\U000e0067\U000e0062\U000e0073\U000e0063\U000e0074\U000e007f"


@pytest.mark.parametrize(
    "prompt",
    [
        HINDI,
        PERSIAN,
        ARABIC,
        f"a {FAMILY} and a {FARMER}",
        f"a shaking face {SHAKING}",
        f"the flag {SCOTLAND}",
        "\u200fתפוח\u200e apple",
        "\u202bتفاحة\u202c",
        "soft\u00adhyphen",
        "a\u2060b",
        "two\nlines\tand a tab",
        "private \ue000 use",
        "กล้วยหอม",
        "一只红苹果",
        "e\u0301clair",
    ],
)
def test_ordinary_text_of_every_script_is_a_prompt(prompt):
    assert check_prompt(f" {prompt} ") == prompt


@pytest.mark.parametrize("bad", ["\x00", "\x1b", "\x07", "\x7f", "\x9b", "\ud83d"])
def test_control_characters_and_half_characters_are_refused(bad):
    with pytest.raises(InputError, match="accepted is text without control characters"):
        check_prompt(f"a cat{bad} and a dog")


@pytest.mark.parametrize("nothing", ["", "  \n", "\u200b", "\u200d \u200f", "\ufeff"])
def test_a_prompt_of_which_nothing_can_be_seen_is_empty(nothing):
    with pytest.raises(InputError, match="the prompt is empty"):
        check_prompt(nothing)


@pytest.mark.parametrize(
    ("prompt", "words"),
    [
        (HINDI, ["एक", "लाल", "कीड़ा", "और", "हिन्दी"]),
        (PERSIAN, ["می\u200cخواهم", "یک", "سیب"]),
        (ARABIC, ["تُفَّاحَةٌ", "حَمْراءُ"]),
        ("กล้วยหอม สีเหลือง", ["กล้วยหอม", "สีเหลือง"]),
        ("一只红苹果，白色背景", ["一只红苹果", "白色背景"]),
        ("赤いリンゴ", ["赤いリンゴ"]),
        ("빨간 사과", ["빨간", "사과"]),
        (f"a {FAMILY}, a {FARMER}!", ["a", FAMILY, FARMER]),
        (f"{SHAKING}🍎🍌", [SHAKING, "🍎", "🍌"]),
        (f"{SCOTLAND}🇫🇷🇩🇪", [SCOTLAND, "🇫🇷", "🇩🇪"]),
        ("2🍎 1️⃣ ❤️", ["2", "🍎", "1️⃣", "❤️"]),
        ("e\u0301clair col·lecció", ["e\u0301clair", "col·lecció"]),
        ("\u200fתפוח\u200e, well-kept", ["תפוח", "well-kept"]),
        ("a_b + c = $5", ["a", "b", "c", "5"]),
        ("-- ' ...", []),
    ],
)
def test_words_of_every_script_are_whole(prompt, words):
    assert words_of(prompt) == words
    for word in words:
        start, end = find_words(prompt, word)
        assert prompt[start:end] == word


@pytest.mark.parametrize(
    ("prompt", "part", "found"),
    [
        ("की कीड़ा", "क", None),  # a letter is not cut from its vowel mark
        ("हिन्दी", "हिन", None),
        ("一只红苹果", "苹果", (3, 5)),  # no spaces: a part may be picked
        ("กล้วยหอม", "หอม", (5, 8)),
        ("กล้วย", "กล", None),  # the tone mark belongs to its letter
        ("catapult cat", "cat", (9, 12)),
        ("the bird's key", "Bird", (4, 8)),
        (FAMILY, "👩", None),
        (FARMER, "👩🏽", None),
        ("🍎🍌", "🍌", (1, 2)),
        ("🇫🇷", "🇫", None),
        ("red  bird", "red  bird", (0, 9)),
        ("red", " ", None),
    ],
)
def test_a_part_is_found_where_words_have_no_spaces_and_never_inside_a_character(prompt, part, found):
    assert find_words(prompt, part) == found


@pytest.mark.parametrize("word", ["हिन्दी", "کتاب", FAMILY, SHAKING, "红苹果", "تُفَّاحَةٌ", "ไทย"])
def test_the_tokens_of_a_word_of_any_script_are_found(model32, word):
    places = word_tokens(model32, f"{word} a", word)
    assert places[0] == 1
    assert places == list(range(1, len(places) + 1))
    assert len(places) == min(model32.tokens.count(word).count - 2, model32.tokens.limit - 2)
    with pytest.raises(InputError, match="is not in the prompt; accepted are a"):
        word_tokens(model32, "a", word)
