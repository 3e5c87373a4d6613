"""Leave-K-out, in a world whose losses are known: a query's loss is the sum of what was left out of its own images."""

import numpy as np
import pytest
from conftest import random_picture

from attribution.errors import InputError
from attribution.evaluate.counterfactual import (
    LeaveOutSettings,
    groups,
    lacking,
    named,
    outcome,
    removals,
    table,
    top,
)
from attribution.evaluate.retrain import without
from attribution.query.query import Query

PROMPTS = ("an owl and a bus", "a key and an owl", "a frog and a crown", "a bus and a key")
QUERIES = [Query(prompt, random_picture(number), number) for number, prompt in enumerate(PROMPTS)]
IMAGES = 50


def loss(removal):
    """Query q depends on images 10 q to 10 q + 9 alike, and a little on every other."""
    gone = np.zeros(IMAGES)
    gone[list(removal.rows)] = 1
    return np.array([gone[10 * q : 10 * q + 10].sum() + 0.01 * gone.sum() for q in range(4)])


def trained(wanted):
    return {
        each: {"losses": loss(each), "pictures": np.full((4, 2, 2, 3), len(each.rows), np.uint8)} for each in wanted
    }


@pytest.fixture
def scores():
    right, wrong = np.zeros((4, IMAGES)), np.zeros((4, IMAGES))
    for q in range(4):
        right[q, 10 * q : 10 * q + 10] = 2 - np.arange(10) / 10
        wrong[q, 40:] = 1
    return {"right": right, "wrong": wrong}


SETTINGS = LeaveOutSettings(
    ks=(2, 5), queries=4, together=2, methods=("wrong", "right"), seeds=2, curve=(5, 20, 40), draws=40
)


def test_queries_that_share_a_training_name_no_object_in_common():
    assert groups(QUERIES, 2) == [(0, 2), (1, 3)]
    assert groups(QUERIES, 1) == [(0,), (1,), (2,), (3,)]
    assert sorted(number for group in groups(QUERIES, 3) for number in group) == [0, 1, 2, 3]


def test_the_first_k_are_the_highest_and_ties_go_to_the_earlier():
    assert top(np.array([0.0, 3.0, 1.0, 3.0]), 3).tolist() == [1, 3, 2]


def test_one_training_leaves_out_what_is_named_for_each_of_its_queries(scores):
    assert named(scores, (0, 2), "right", 2, 1) == without([0, 1, 20, 21], 1)


def test_every_training_is_asked_for_once(scores):
    wanted = removals(scores, QUERIES, SETTINGS)
    assert len(wanted) == len(set(wanted))
    assert without((), 0) in wanted
    assert wanted.index(without((), 0)) < wanted.index(without((), 1))
    # nothing, 3 sizes x 40 draws, and by each method: "wrong" names the same images for every query
    assert len(wanted) == 2 * (1 + 120 + 2 * (2 + 1))


def test_the_outcome_is_what_the_world_does(scores):
    known = trained(removals(scores, QUERIES, SETTINGS))
    right = next(each for each in outcome(known, scores, QUERIES, SETTINGS) if (each.method, each.k) == ("right", 5))
    assert right.change == pytest.approx(5 + 0.01 * 10)  # ten images went, five of them its own
    assert right.moved == pytest.approx((10 / 255) ** 2)
    assert right.removed == 10
    # a random image does 0.2 + 0.01 of harm on average: 24.3 of them do as much, give or take chance
    assert right.random == pytest.approx(5.1 / 0.21, abs=2)
    wrong = next(each for each in outcome(known, scores, QUERIES, SETTINGS) if (each.method, each.k) == ("wrong", 5))
    assert wrong.change == pytest.approx(0.05)
    assert wrong.random.max() < 1
    lines = table(outcome(known, scores, QUERIES, SETTINGS)).splitlines()
    assert [line.split(" | ")[1] for line in lines[2:]] == ["right", "wrong"] * 2


def test_a_seed_with_a_missing_training_is_left_out_and_a_method_without_any_seed(scores):
    known = trained(removals(scores, QUERIES, SETTINGS))
    before = outcome(known, scores, QUERIES, SETTINGS)
    assert [(each.method, each.k, each.seeds) for each in before if each.k == 5] == [("wrong", 5, 2), ("right", 5, 2)]
    assert lacking(before, SETTINGS) == []
    del known[named(scores, (0, 2), "right", 5, 1)]
    found = outcome(known, scores, QUERIES, SETTINGS)
    assert [(each.method, each.k, each.seeds) for each in found] == [
        ("wrong", 2, 2),
        ("right", 2, 2),
        ("wrong", 5, 2),
        ("right", 5, 1),
    ]
    assert lacking(found, SETTINGS) == ["1 of 2 seeds with K = 5"]
    del known[named(scores, (0, 2), "right", 5, 0)]
    found = outcome(known, scores, QUERIES, SETTINGS)
    assert [(each.method, each.k) for each in found] == [("wrong", 2), ("right", 2), ("wrong", 5)]
    assert lacking(found, SETTINGS) == ["right with K = 5"]


def test_queries_whose_images_stayed_are_beside(scores):
    """Those of the other group lose nothing of their own, and 0.01 for each image that went."""
    known = trained(removals(scores, QUERIES, SETTINGS))
    right = next(each for each in outcome(known, scores, QUERIES, SETTINGS) if (each.method, each.k) == ("right", 5))
    assert right.stayed == pytest.approx(0.01 * 10)
    assert "| 0.10000 |" in table([right])


@pytest.mark.parametrize("k", [0, IMAGES, 2000])
def test_all_images_cannot_be_left_out(scores, k):
    with pytest.raises(InputError, match=f"{k} of 50 images cannot be left out; accepted are 1 to 49"):
        removals(scores, QUERIES, LeaveOutSettings(ks=(k,)))
