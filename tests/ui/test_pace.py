"""How far to search, and how long that takes: told beforehand, from what this machine did."""

import re

import gradio as gr
import pytest
from conftest import UNLEARN, random_picture
from test_handlers import attribution, handlers  # noqa: F401

from attribution.methods import attribute, check_settings
from attribution.methods.answer import AttributeSettings, Progress
from attribution.methods.budgets import BUDGETS, calls, within
from attribution.query.query import Query
from attribution.ui import words
from attribution.ui.asking import Questions
from attribution.ui.pace import LONG, Pace, budgets, choices, measured, paced
from attribution.ui.studio import Picture


def seconds_of(html):
    return re.search(r"This takes about ([^.<]+)\.", html)[1]


@pytest.mark.parametrize("holds_vectors", [True, False])
@pytest.mark.parametrize("budget", BUDGETS)
def test_calls_are_those_that_an_answer_makes(model32, full_index, index32, holds_vectors, budget):
    index = full_index if holds_vectors else index32
    settings = within(AttributeSettings(top_k=2, unlearn=UNLEARN), index, budget)
    settings = check_settings(model32, index, settings)
    *steps, last = attribute(model32, index, Query("a bird", random_picture(5)), settings)
    assert sum(calls(index, settings)) == last.evaluations
    assert max(step.evaluations for step in steps if isinstance(step, Progress)) == last.evaluations
    assert paced(last, index).loss > 0


def test_methods_that_read_vectors_cost_nothing_worth_telling(model32, full_index):
    asked = [
        check_settings(model32, full_index, AttributeSettings(name, 2))
        for name in ("d-trak", "influence+", "pixel", "influence")
    ]
    assert [calls(full_index, each) for each in asked] == [(0, 0), (0, 0), (0, 0), (200, 0)]
    assert Pace(0.5, 1.0).seconds(full_index, asked) == 100


def test_a_large_index_has_four_ways_and_a_small_one_those_that_differ(model32, full_index, index32, monkeypatch):
    assert list(choices(model32, index32, 2)) == ["all"]  # eight images: whoever takes part is looked at whole
    for index in (full_index, index32):
        monkeypatch.setattr("attribution.index.index.Index.__len__", lambda _: 100_000)
        asked = choices(model32, index, 10)
        cost = [sum(calls(index, each)) for each in asked.values()]
        monkeypatch.undo()
        assert list(asked) == list(BUDGETS)
        assert cost == sorted(set(cost))
        assert not any(each.exhaustive for name, each in asked.items() if name != "all")


def test_the_page_tells_how_long_each_takes(model32, full_index):
    assert all(each > 0 for each in (measured(model32, full_index).gradient, measured(model32, full_index).loss))
    assert words.budgets(budgets(None, model32, full_index, 2))[-1] == ("Every image", "all")
    label, name = words.budgets(budgets(Pace(10, 100), model32, full_index, 2))[-1]
    assert (name, label) == (
        "all",
        f"Every image · about {words.seconds(10 * 268 + 100 * 64)}",
    )


def test_what_takes_long_is_begun_when_that_was_told(handlers, studio):  # noqa: F811
    studio.pace, on = Pace(1.0, 1.0), handlers.on
    steps = attribution(handlers, Picture(random_picture(1)))
    told = next(steps)
    took = seconds_of(told[on.status])
    assert told[on.attribute].value == words.BEGIN
    assert told[on.agreed] > LONG
    with pytest.raises(gr.Error) as nothing:
        next(steps)
    assert not nothing.value.visible  # there is no toast: it stands beside the button
    assert studio.waiting == 0
    begun = next(attribution(handlers, Picture(random_picture(1)), agreed=told[on.agreed]))
    assert (begun[on.attribute].value, begun[on.agreed]) == ("Attribute", 0.0)
    studio.pace = Pace(2.0, 2.0)  # twice as long as was agreed to
    again = next(attribution(handlers, Picture(random_picture(1)), agreed=told[on.agreed]))
    assert seconds_of(again[on.status]) != took
    studio.pace = Pace(0.001, 0.001)
    assert "data-state='waiting'" in next(attribution(handlers, Picture(random_picture(1))))[on.status]


def test_an_answer_that_has_ended_tells_the_pace(handlers, studio):  # noqa: F811
    for _ in attribution(handlers, Picture(random_picture(1)), ["pixel"]):
        pass
    assert studio.pace is not None
    assert "about" in Questions(handlers).budgets()[handlers.on.budget].choices[0][0]


def test_seconds_are_told_in_the_unit_that_fits():
    told = [words.seconds(each) for each in (0.2, 5, 89, 90, 3600, 7200)]
    assert told == ["under 1 s", "5 s", "89 s", "2 min", "60 min", "2.0 h"]


def test_what_is_quicker_is_named():
    told = words.long(7200, 2, {"quick": 600, "normal": 1200})
    assert "This takes about 2.0 h for 2 regions." in told
    assert "Begin starts it. “Normal”, under “How far to search”, takes about 20 min." in told
    assert "under" not in words.long(200, 1, {})
