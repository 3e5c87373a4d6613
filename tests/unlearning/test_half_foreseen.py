"""Scores that are half foreseen: their unit, the trimmed mean, and a race on them against a slow one."""

import numpy as np
import pytest
from near import assert_close
from scipy.stats import mstats, trim_mean
from test_race import TIGHT, table_measure

from attribution.unlearning.foreseen import ANCHORS, Foreseen
from attribution.unlearning.race import evaluations, exhaustive, race, schedule
from attribution.unlearning.score import score


@pytest.mark.parametrize("columns", [1, 2, 4, 5, 10, 11, 23])
@pytest.mark.parametrize("views", [1, 2])
def test_a_trimmed_score_is_scipys_trimmed_mean_with_the_interval_of_its_standard_error(columns, views):
    rng = np.random.default_rng(columns)
    before, after = rng.uniform(size=(2, 6, views, columns)) ** 4
    found = score(before, after, "trimmed")
    means = trim_mean(after - before, 0.2, axis=-1)
    best = means.argmax(1)
    assert_close(found.value, means.max(1), rtol=1e-12, atol=0)
    assert list(found.flip) == list(best == 1)
    if columns == 1:
        assert np.isinf(found.high).all()
        return
    kept = 1 - 2 * int(0.2 * columns) / columns  # the share that is really left, where scipy takes 0.6
    for row, view in enumerate(best):
        error = float(mstats.trimmed_stde((after - before)[row, view], (0.2, 0.2))) * 0.6 / kept
        assert found.high[row] - found.value[row] == pytest.approx(1.96 * error, rel=1e-9)
        assert found.value[row] - found.low[row] == pytest.approx(1.96 * error, rel=1e-9)


def test_an_outlying_noise_moves_a_mean_and_not_a_trimmed_one():
    before, after = np.zeros((1, 1, 10)), np.arange(10.0)[None, None] / 10
    far = after.copy()
    far[..., 9] = 1e6
    assert score(before, far, "trimmed").value == score(before, after, "trimmed").value
    assert score(before, far).value > 1e5


def test_a_score_with_what_was_foreseen_is_the_mean_of_both_and_its_interval_half_as_wide():
    rng = np.random.default_rng(2)
    before, after, foreseen = rng.normal(size=(5, 2, 8)), rng.normal(size=(5, 2, 8)), rng.normal(size=(5, 2))
    means = ((after - before).mean(-1) + foreseen) / 2
    found = score(before, after, foreseen=foreseen)
    assert_close(found.value, means.max(1), rtol=1e-12, atol=0)
    for row, view in enumerate(means.argmax(1)):
        alone = score(before[row : row + 1, view : view + 1], after[row : row + 1, view : view + 1])
        assert found.high[row] - found.low[row] == pytest.approx((alone.high[0] - alone.low[0]) / 2)


def slow_changes(values, before, after, column, skew):
    """What is foreseen in the unit of the images that are ranked first, written out."""
    ranked = sorted(range(len(values)), key=lambda row: (-max(values[row]), row))[:ANCHORS]
    pairs = []
    for row in ranked:
        view = int(np.argmax(values[row]))
        low, high = before[row, view, column], after[row, view, column]
        if np.isfinite(high):
            pairs.append(((high - low) / ((high + low + 1e-3) if skew else 1), values[row, view]))
    length = sum(value**2 for _, value in pairs) ** 0.5
    return values * (sum(change**2 for change, _ in pairs) ** 0.5 / length if length else 0)


@pytest.mark.parametrize("images", [3, 32, 200])
@pytest.mark.parametrize(("kind", "measured"), [("difference", 1.0), ("skew", 0.5), ("trimmed", 0.0)])
def test_the_unit_is_that_of_the_images_which_it_ranks_first_as_far_as_they_are_measured(images, kind, measured):
    rng = np.random.default_rng(images)
    values, before = rng.normal(size=(images, 2)), rng.uniform(1, 2, (images, 2, 4))
    after = before + rng.normal(size=before.shape)
    after[rng.uniform(size=images) >= measured] = np.nan
    foreseen, views = Foreseen(values, 3), rng.integers(0, 2, (images, 1))
    expected = slow_changes(values, before, after, 3, kind == "skew")
    rows = [int(row) for row in rng.permutation(images)]
    assert_close(foreseen.changes(rows, (0, 1), before, after, kind), expected[rows], rtol=1e-12, atol=0)
    own = foreseen.changes(rows, views, before, after, kind)
    assert_close(own, expected[np.array(rows)[:, None], views], rtol=1e-12, atol=0)
    assert list(foreseen.likely) == [int(each.argmax()) for each in values]
    if not measured:
        assert not expected.any()


def test_no_foreseen_change_has_no_unit_and_changes_nothing():
    before, after = np.zeros((4, 1, 2)), np.ones((4, 1, 2))
    assert not Foreseen(np.zeros((4, 1)), 0).changes(range(4), (0,), before, after, "difference").any()


@pytest.mark.parametrize("chunk", [1, 7, 64])
def test_a_race_on_half_foreseen_scores_is_that_of_a_slow_one_and_ends_with_the_exhaustive_scores(chunk):
    rng = np.random.default_rng(8)
    after, values = rng.normal(size=(60, 2, 8)), rng.normal(size=(60, 2))
    order, likely, before, seen = [int(row) for row in rng.permutation(60)], values.argmax(1), np.zeros_like(after), []
    rounds = schedule(60, 8, TIGHT, (0,))
    column = rounds[0].columns[0]
    foreseen = Foreseen(values, column)
    standings = list(race(table_measure(after, chunk, seen), before, rounds, order, "trimmed", 10, likely, foreseen))
    assert len(seen) == len(set(seen)) == evaluations(rounds)
    assert {(row, view) for row, view, _ in seen} == {(row, likely[row]) for row in range(60)}  # no other view
    unit, rows = slow_changes(values, before, after, column, False), list(range(60))
    for this, ended in zip(rounds, [each for each in standings if each.ended], strict=True):
        scores = {}
        for row in rows[: this.images]:
            changes = after[row, likely[row], list(this.columns)]
            scores[row] = (trim_mean(changes, 0.2) + unit[row, likely[row]]) / 2
        rows = sorted(scores, key=lambda row: (-scores[row], row))
        assert list(ended.rows) == rows
        assert_close(ended.scores.value, np.array([scores[row] for row in rows]), rtol=1e-12, atol=0)
        assert list(ended.scores.flip) == [likely[row] == 1 for row in rows]
    plain = race(table_measure(after, chunk), before, exhaustive(60, 8, (0,)), order, "trimmed", 10, likely, foreseen)
    *_, whole = plain
    by_row = dict(zip(whole.rows, whole.scores.value, strict=True))
    assert_close(standings[-1].scores.value, np.array([by_row[row] for row in rows]), rtol=1e-12, atol=0)


def test_while_no_anchor_is_measured_a_race_ranks_by_what_it_measures():
    after = np.arange(40.0)[:, None, None] + np.zeros((40, 1, 2))
    foreseen = Foreseen(np.arange(40.0)[:, None], 1)
    first = next(race(table_measure(after, 4), 0 * after, exhaustive(40, 2, (0,)), range(40), foreseen=foreseen))
    assert first.rows == (3, 2, 1, 0)
    assert_close(first.scores.value, np.array([1.5, 1.0, 0.5, 0.0]), rtol=0, atol=0)
