"""The best of some candidates: found with few losses, never more than the budget, and with the exhaustive scores."""

import numpy as np
import pytest
from near import assert_close

from attribution.unlearning.best import BestSettings, Estimate, Known, Search, least
from attribution.unlearning.race import exhaustive, race

KINDS = ("difference", "skew")


def tables(images, views=2, columns=10, noise=0.3, seed=0):
    """Losses before and after unlearning (images, views, columns) of a few images that stand out, and the rest."""
    rng = np.random.default_rng(seed)
    before = rng.uniform(0.5, 1.5, (images, views, columns))
    gain = rng.gumbel(0, 1, images)[:, None, None] + rng.normal(0, 0.2, (images, views, 1))
    common = rng.normal(0, 3, columns)  # what a noise does to all of them
    return before, before + gain + common + rng.normal(0, noise, before.shape)


def table_look(before, after, rows, chunk=16, seen=None):
    """A look that reads losses from tables, and records each cell that it is asked for."""

    def look(places, views, columns):
        for start in range(0, len(places), chunk):
            which = slice(start, min(start + chunk, len(places)))
            at = (np.asarray(rows)[places[which]], views[which], columns[which])
            if seen is not None:
                seen.extend(zip(*(each.tolist() for each in at), strict=True))
            yield which, before[at], after[at]

    return look


def searched(before, after, settings, kind="difference", yardsticks=8, rows=None, seen=None):
    """A search among the images of tables, the last of which are the yardsticks, and its standings."""
    rows = list(range(len(before))) if rows is None else rows
    known, last = Known(len(rows), *before.shape[1:], kind), np.arange(len(rows) - yardsticks, len(rows))
    at = np.asarray(rows)[last]
    known.put(last, (before[at], after[at]))
    search = Search(rows, known, last, settings)
    return search, list(search.run(table_look(before, after, rows, seen=seen)))


def whole_race(before, after, kind="difference"):
    """The exhaustive race's last standing."""

    def measure(rows, columns, views):
        for column in columns:
            yield slice(0, len(rows)), column, after[np.ix_(rows, views, [column])][..., 0]

    rounds = exhaustive(before.shape[0], before.shape[2], range(before.shape[1]))
    *_, last = race(measure, before, rounds, range(len(before)), kind)
    return last


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("views", [1, 2])
def test_who_is_wholly_known_has_exactly_the_exhaustive_scores(kind, views):
    before, after = tables(120, views)
    _, standings = searched(before, after, BestSettings(5, 700), kind)
    last, whole = standings[-1], whole_race(before, after, kind)
    places = [whole.rows.index(row) for row in last.rows]
    assert places == sorted(places)
    for ours, theirs in zip(vars(last.scores).values(), vars(whole.scores).values(), strict=True):
        assert_close(ours, theirs[places], rtol=0, atol=0)
    assert_close(last.losses, whole.losses[places], rtol=0, atol=0)
    assert last.settled


@pytest.mark.parametrize("seed", range(5))
def test_a_clear_best_is_settled_with_a_part_of_the_losses(seed):
    before, after = tables(300, noise=0.2, seed=seed)
    search, standings = searched(before, after, BestSettings(10, 6000))
    assert search.end == "settled"
    found, best = standings[-1].rows[:10], whole_race(before, after).rows[:10]
    assert len(set(found) & set(best)) >= 9  # an interval of 95 % errs one time in twenty
    assert search.spent < 300 * 20 / 4


def test_what_is_settled_is_nearly_always_right():
    right = []
    for seed in range(20):
        before, after = tables(150, noise=1.0, seed=seed)
        search, standings = searched(before, after, BestSettings(10, 3000))
        assert search.end == "settled"
        right.append(len(set(standings[-1].rows[:10]) & set(whole_race(before, after).rows[:10])))
    assert np.mean(right) >= 9.8


@pytest.mark.parametrize("spare", [0, 1, 17, 64, 200])
@pytest.mark.parametrize(("images", "top_k", "views", "columns"), [(90, 5, 2, 10), (40, 1, 1, 6), (33, 32, 2, 3)])
def test_the_budget_is_never_exceeded_and_pays_for_the_first(images, top_k, views, columns, spare):
    before, after = tables(images, views, columns, noise=3.0)
    budget, seen = least(images, top_k, views * columns) + spare, []
    search, standings = searched(before, after, BestSettings(top_k, budget), seen=seen)
    assert len(seen) == len(set(seen)) == search.spent == standings[-1].evaluations <= budget
    assert len(standings[-1].rows) >= top_k
    assert [standing.settled for standing in standings] == [False] * (len(standings) - 1) + [True]
    assert {standing.total for standing in standings[:-1]} <= {budget}
    assert standings[-1].total == search.spent


def test_the_end_tells_why():
    before, after = tables(200, noise=2.0)
    short, _ = searched(before, after, BestSettings(10, least(200, 10, 20) + 20))
    long, _ = searched(before, after, BestSettings(10, 4000))
    assert (short.end, long.end) == ("budget", "settled")
    assert long.spent < 4000


def test_looks_go_where_the_boundary_is():
    before, after = tables(400, noise=0.5)
    search, _ = searched(before, after, BestSettings(10, 8000))
    score = (after - before).mean(-1).max(1)
    far = score < np.sort(score)[-10] - 3
    own = np.arange(400) < 392  # no yardsticks
    assert search.known.cells[far & own].mean() < 3
    assert np.median(search.known.cells[np.argsort(-score)[:10]]) == 20


def test_the_first_standing_is_of_the_first_looked_at_and_intervals_close():
    before, after = tables(100)
    _, standings = searched(before, after, BestSettings(3, 2000))
    assert set(standings[0].rows) <= {*range(16), *range(92, 100)}
    width = [float((standing.scores.high - standing.scores.low).mean()) for standing in standings[:-1]]
    assert width[-1] == 0  # of the whole bank: nothing is unknown
    assert width[0] > 0


def test_nothing_is_measured_where_all_is_known():
    before, after = tables(8)
    search, standings = searched(before, after, BestSettings(3, 500), yardsticks=8)
    assert (search.spent, search.end, len(standings)) == (0, "settled", 1)
    assert standings[0].rows == whole_race(before, after).rows


@pytest.mark.parametrize("order", [list(range(60)), list(reversed(range(60)))])
def test_rows_are_of_the_training_set_and_ties_go_to_the_earlier(order):
    before, after = np.zeros((60, 2, 4)), np.ones((60, 2, 4))
    _, standings = searched(before, after, BestSettings(60, 480), rows=order)
    assert standings[-1].rows == tuple(range(60))


def test_a_bank_of_one_noise_is_enough():
    before, after = tables(50, columns=1)
    search, standings = searched(before, after, BestSettings(5, 100))
    assert search.end == "settled"
    assert standings[-1].rows[:5] == whole_race(before, after).rows[:5]


def test_what_a_noise_does_to_all_is_no_difference_between_two():
    """An image that was seen with an easy noise is not before one that was seen with a hard one."""
    before, after = tables(40, columns=4, noise=0.0)
    known, yardsticks = Known(40, 2, 4, "difference"), np.arange(32, 40)
    known.put(yardsticks, (before[yardsticks], after[yardsticks]))
    for place in range(32):
        column = place % 4
        known.before[place, :, column], known.after[place, :, column] = (
            before[place, :, column],
            after[place, :, column],
        )
        known.cells[place] = 2
    found = Estimate.of(known, yardsticks, 0.95)
    assert_close(found.value, (after - before).mean(-1).max(1), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("candidates", [1_000, 4_000])
def test_a_search_sorts_no_more_than_reaches_across_the_boundary(candidates, monkeypatch):
    """Elements that are sorted: those of the first K and those that are looked at next, never all candidates."""
    sorted_at_once, plain = [], np.argsort
    monkeypatch.setattr(np, "argsort", lambda key, **how: (sorted_at_once.append(len(key)), plain(key, **how))[1])
    before, after = tables(candidates, noise=0.1)
    searched(before, after, BestSettings(10, 10 * candidates))
    assert np.median(sorted_at_once) <= 64
    assert sum(sorted_at_once) < 20 * candidates
