"""Schedules tried on losses that are known: against a slow oracle, and by hand."""

import numpy as np
import pytest

from attribution.unlearning.race import RaceSettings, evaluations, schedule
from attribution.unlearning.schedules import Known, Tried, cheapest, found, schedules, telling_order, try_schedules


def pictures(count=3, candidates=40, noisy=(0, 1), seed=0):
    """Changes in which some columns tell little of the image's own rise."""
    rng = np.random.default_rng(seed)
    noise = np.where(np.isin(np.arange(10), noisy), 3.0, 0.1)
    own, error = (lambda: rng.normal(size=(candidates, 1, 1))), (lambda: noise * rng.normal(size=(candidates, 2, 10)))
    return [Known(own() + error()) for _ in range(count)]


def slow_halving(known, settings, top_k):
    """The same race, written out."""
    changes = known.changes
    rows, order = list(range(settings.pool)), settings.columns
    for this in schedule(settings.pool, 10, settings):
        rows = rows[: this.images]
        assert this.columns == order[: len(this.columns)]
        score = {}
        for row in rows:
            score[row] = max(np.mean([changes[row, view, column] for column in this.columns]) for view in this.views)
        rows.sort(key=score.__getitem__, reverse=True)
    return rows[:top_k]


def test_the_first_are_those_of_the_highest_mean_over_noises_of_either_view():
    changes = np.zeros((3, 2, 2))
    changes[0, 0], changes[1, 1], changes[2, 0] = (1, 1), (4, 0), (0, 3)
    assert Known(changes).first(2) == [1, 2]


def test_columns_that_tell_most_come_first_and_every_column_comes_once():
    order = telling_order(pictures(noisy=(3, 7)), 4)
    assert sorted(order) == list(range(10))
    assert not {3, 7} & set(order[:1])
    one = [Known(np.eye(4)[:, None, [2, 0, 1]] * [5.0, 1.0, 1.0])]  # image 2 is the first, by the first column alone
    assert telling_order(one, 1)[0] == 0


def test_what_a_race_finds_is_what_a_slow_one_does():
    known = pictures(1, seed=4)[0]
    settings = RaceSettings(30, 0.4, 1, 2.5, 8, (2, 5, 9, 8, 1, 7, 3, 4, 6, 0))
    expected = set(slow_halving(known, settings, 5)) & set(known.first(5))
    assert found(known, settings, 5) == pytest.approx(len(expected) / 5)


def test_a_race_with_everything_finds_all():
    assert found(pictures(1)[0], RaceSettings(40, 1.0, 10, 1.0, 40, tuple(range(10))), 5) == 1.0


def test_an_order_that_was_measured_finds_more_than_one_that_begins_with_noise():
    known = pictures(6, 200, noisy=(0, 1))
    settings = RaceSettings(200, 0.125, 1, 2.5, 20)
    good, bad = (
        np.mean([found(each, RaceSettings(**{**vars(settings), "columns": order}), 10) for each in known])
        for order in (telling_order(known, 10), tuple(range(10)))
    )
    assert good > bad + 0.1


def test_every_schedule_is_tried_on_pictures_that_its_order_was_not_made_of():
    known = pictures(3, 300)
    tried = list(try_schedules(known, 10, 64, 64))
    assert [each.race.pool for each in tried] == [each.pool for each in schedules(300, 10)]
    assert {each.race.columns for each in tried} == {telling_order(known, 10)}
    first = tried[0]
    left = RaceSettings(**{**vars(first.race), "columns": telling_order(known[1:], 10)})
    assert first.shares[0] == found(known[0], left, 10)
    assert first.evaluations == evaluations(schedule(first.race.pool, 10, first.race))
    assert len(list(try_schedules(pictures(2, 50), 10, 0, 64))) == len(schedules(50, 10)) > 0


def tried(evaluations, *shares):
    return Tried(RaceSettings(), 0, evaluations, shares)


def test_the_cheapest_that_finds_enough_is_taken_else_the_one_that_finds_most():
    few, more, most = tried(100, 1.0, 0.6), tried(200, 0.9, 0.8), tried(300, 1.0, 0.9)
    assert (few.mean, few.worst) == (pytest.approx(0.8), 0.6)
    assert cheapest([most, more, few], 0.8, 0.6) is few
    assert cheapest([most, more, few], 0.8, 0.7) is more
    assert cheapest([most, more, few], 0.99, 0.7) is most


def test_what_is_foreseen_takes_part_in_scores_and_in_races():
    rng, order = np.random.default_rng(6), (2, 5, 9, 8, 1, 7, 3, 4, 6, 0)
    known = Known(rng.normal(size=(40, 1, 10)), "trimmed", rng.normal(size=(40, 1)))
    first = sorted(range(40), key=lambda row: -known.values[row, 0])[:32]  # their losses give the unit
    unit = np.linalg.norm(known.changes[first, 0, 2]) / np.linalg.norm(known.values[first, 0])

    def scores(columns):
        cut = len(columns) // 5
        means = [np.mean(sorted(each)[cut : len(each) - cut]) for each in known.changes[:, 0, list(columns)]]
        return (np.array(means) + unit * known.values[:, 0]) / 2

    assert known.scores(order, (0,)).value == pytest.approx(scores(order))
    assert known.first(5, 2) == list(np.argsort(-scores(order))[:5])
    settings, rows = RaceSettings(30, 0.4, 1, 2.5, 8, order), list(range(30))
    unit = np.linalg.norm(known.changes[first, 0, 2][np.array(first) < 30]) / np.linalg.norm(
        known.values[first, 0][np.array(first) < 30]
    )  # of those that take part
    for this in schedule(30, 10, settings, (0,)):
        value = scores(this.columns)
        rows = sorted(rows[: this.images], key=lambda row: -value[row])
    assert found(known, settings, 5) == pytest.approx(len(set(rows[:5]) & set(known.first(5, 2))) / 5)
