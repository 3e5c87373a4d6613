"""Halving against the exhaustive way, and losses that depend on the image alone."""

from dataclasses import replace
from itertools import product

import numpy as np
import pytest
from near import assert_close

from attribution.diffusion.weights import unlearned
from attribution.methods import answer, attribute, check_settings
from attribution.methods.answer import AttributeSettings
from attribution.methods.unlearning import unlearn_query
from attribution.query.encoded import encode
from attribution.unlearning import race as race_module
from attribution.unlearning.race import RaceSettings, Round, evaluations, exhaustive, made, race, schedule
from attribution.unlearning.score import losses_by_call, training_losses
from attribution.unlearning.step import UnlearnSettings

UNLEARN = UnlearnSettings(step_size=0.3, timesteps=3, noises=1, batch=4)
TIGHT = RaceSettings(keep=0.5, first_columns=1, growth=2.0, survivors=3)


def race_to_the_end(model, index, query, rounds, kind="difference", batch=6):
    """The last standing of a race under the weights of the query unlearned."""
    bank = index.bank(model)

    def measure(rows, columns, views):
        return losses_by_call(model, index.encoded, bank, rows, columns, views, batch)

    with unlearned(model, index.weights) as weights:
        for _ in unlearn_query(model, index, encode(model, query), UNLEARN, weights):
            pass
        *_, last = race(measure, index.base_losses, rounds, range(len(index)), kind)
    return last


def by_row(standing):
    """Scores, bounds and flips by row."""
    s = standing.scores
    return dict(zip(standing.rows, zip(s.value, s.low, s.high, s.flip, strict=True), strict=True))


def assert_same_scores(fast, whole, rtol, atol):
    """The survivors of `fast` have the scores, bounds and flips that they have in `whole`.

    One thread gives the same bits; with more, an image's place in a batch decides how products are rounded.
    """
    ours, theirs = by_row(fast), by_row(whole)
    for row, (*values, flip) in ours.items():
        *expected, flipped = theirs[row]
        assert flip == flipped
        assert_close([float(v) for v in values], [float(v) for v in expected], rtol=rtol, atol=atol)


@pytest.mark.parametrize("kind", ["difference", "skew"])
def test_survivors_have_exactly_the_exhaustive_scores(model32, index32, query, kind):
    whole = race_to_the_end(model32, index32, query, exhaustive(8, 8), kind)
    fast = race_to_the_end(model32, index32, query, schedule(8, 8, TIGHT), kind)
    assert len(fast.rows) == 3
    assert fast.settled
    assert_same_scores(fast, whole, rtol=1e-3, atol=2e-5)  # float32: the scores are differences of losses near 1


def test_survivors_have_exactly_the_exhaustive_scores_in_float64(model, index, query):
    whole = race_to_the_end(model, index, query, exhaustive(8, 8))
    fast = race_to_the_end(model, index, query, schedule(8, 8, TIGHT))
    assert_same_scores(fast, whole, rtol=1e-9, atol=1e-12)


def test_halving_returns_the_exhaustive_answer_when_it_keeps_everyone(model32, index32, query):
    settings = AttributeSettings(top_k=8, unlearn=UNLEARN, race=replace(TIGHT, survivors=8), batch=6)
    *_, fast = attribute(model32, index32, query, settings)
    *_, whole = attribute(model32, index32, query, replace(settings, exhaustive=True, race=RaceSettings()))
    assert [result.row for result in fast.results] == [result.row for result in whole.results]
    assert len({result.score for result in whole.results}) == 8


def test_halving_finds_the_exhaustive_best_when_the_signal_is_clear():
    rng = np.random.default_rng(0)
    base = rng.uniform(0.5, 1.5, (200, 2, 10))
    gain = rng.permutation(200) / 100.0
    after = base + gain[:, None, None] + rng.normal(0, 0.01, base.shape)
    fast = list(race(table_measure(after, 7), base, schedule(200, 10, RaceSettings()), range(200)))[-1]
    assert list(fast.rows[:10]) == list(np.argsort(-gain)[:10])


@pytest.mark.parametrize("batch", [2, 3, 16])
def test_losses_do_not_depend_on_the_batch_size(model, index, batch):
    bank = index.bank(model)
    tables = [
        np.concatenate([t for _, t in training_losses(model, index.encoded, bank, range(8), range(8), batch=size)])
        for size in (6, batch)
    ]
    assert tables[1].shape == (8, 2, 8)
    assert_close(tables[1], tables[0], rtol=1e-11, atol=0)


@pytest.mark.parametrize(
    ("rows", "columns", "views"),
    [([5, 2, 7, 0, 1, 6, 4, 3], range(8), (0, 1)), ([6], [3], (1,)), ([3, 1], [7, 0, 4], (0,)), ([2, 2], [1], (1, 0))],
)
def test_losses_do_not_depend_on_order_or_subset(model, index, rows, columns, views):
    bank = index.bank(model)
    whole = np.concatenate([t for _, t in training_losses(model, index.encoded, bank, range(8), range(8), batch=6)])
    part = np.concatenate([t for _, t in training_losses(model, index.encoded, bank, rows, columns, views, batch=6)])
    assert_close(part, whole[np.ix_(rows, views, list(columns))], rtol=1e-11, atol=0)


@pytest.mark.parametrize(("count", "views"), [(8, (0, 1)), (7, (0, 1)), (1, (0, 1)), (8, (0,)), (5, (1,))])
def test_every_call_of_the_unet_holds_a_whole_batch(model32, index32, monkeypatch, count, views):
    """Else the same image may get other last bits in another subset, by other kernels for other sizes."""
    sizes, predict = set(), model32.predict

    def record(x, t, text):
        sizes.add((len(x), len(t), len(text)))
        return predict(x, t, text)

    monkeypatch.setattr(model32, "predict", record)
    list(training_losses(model32, index32.encoded, index32.bank(model32), range(count), [2, 5], views, batch=6))
    assert sizes == {(6, 6, 6)}


@pytest.mark.parametrize("count", [1, 2, 3, 7, 8])
@pytest.mark.parametrize("batch", [6, 16, 64])
def test_few_images_are_measured_at_several_noises_in_a_call(model, index, monkeypatch, count, batch):
    bank, calls, predict = index.bank(model), [], model.predict
    whole = np.concatenate([t for _, t in training_losses(model, index.encoded, bank, range(8), range(8), batch=6)])
    monkeypatch.setattr(model, "predict", lambda *given: (calls.append(len(given[0])), predict(*given))[1])
    rows, columns = [6, 0, 3, 1, 7, 2, 5, 4][:count], [3, 7, 0, 5, 1]
    parts = list(training_losses(model, index.encoded, bank, rows, columns, batch=batch))
    assert_close(np.concatenate([t for _, t in parts]), whole[rows][..., columns], rtol=1e-11, atol=0)
    assert set(calls) == {batch}
    assert sum(calls) == made([Round(count, tuple(columns), (0, 1))], batch)
    chunks, rest = divmod(count, batch // 2)
    assert len(calls) == 5 * chunks + (-(-5 // (batch // 2 // rest)) if rest else 0)


def test_chunks_say_which_rows_they_hold(model, index):
    chunks = list(training_losses(model, index.encoded, index.bank(model), range(8), [0], batch=6))
    assert [which for which, _ in chunks] == [slice(0, 3), slice(3, 6), slice(6, 8)]
    assert [table.shape for _, table in chunks] == [(3, 2, 1), (3, 2, 1), (2, 2, 1)]


@pytest.mark.exact_bits
def test_base_losses_in_the_index_serve_any_subset(model32, index32):
    bank = index32.bank(model32)
    part = np.concatenate([t for _, t in training_losses(model32, index32.encoded, bank, [7, 3], [6, 1], batch=6)])
    assert_close(part, np.array(index32.base_losses)[np.ix_([7, 3], (0, 1), [6, 1])], rtol=0, atol=0)


def table_measure(after, chunk, seen=None):
    """A measure that looks losses up, `chunk` rows at a time, and records each cell it is asked for."""

    def measure(rows, columns, views):
        for start in range(0, len(rows), chunk):
            which = slice(start, min(start + chunk, len(rows)))
            for place, column in enumerate(columns):
                each = views[which] if np.ndim(views) == 2 else [views] * len(rows[which])
                if seen is not None:
                    seen.extend((row, view, column) for row, own in zip(rows[which], each, strict=True) for view in own)
                yield (
                    which,
                    place,
                    np.array(
                        [[after[row, view, column] for view in own] for row, own in zip(rows[which], each, strict=True)]
                    ),
                )

    return measure


@pytest.mark.parametrize("images", [1, 5, 70, 500])
@pytest.mark.parametrize("columns", [1, 2, 10])
@pytest.mark.parametrize("views", [(0,), (0, 1)])
@pytest.mark.parametrize("settings", [RaceSettings(), TIGHT, RaceSettings(first_columns=20), None])
def test_the_count_of_evaluations_is_what_is_really_evaluated(images, columns, views, settings):
    rounds = exhaustive(images, columns, views) if settings is None else schedule(images, columns, settings, views)
    after, seen = np.random.default_rng(1).random((images, len(views), columns)), []
    standings = list(race(table_measure(after, 16, seen), np.zeros_like(after), rounds, range(images)))
    assert len(seen) == len(set(seen)) == evaluations(rounds) == standings[-1].evaluations
    assert [s.settled for s in standings] == [False] * (len(standings) - 1) + [True]
    assert {s.total for s in standings} == {evaluations(rounds)}
    assert (rounds[-1].views, sorted(rounds[-1].columns)) == (views, list(range(columns)))
    counts = [standing.evaluations for standing in standings]
    assert counts == sorted(counts)


def test_an_answer_reports_its_evaluations(model32, index32, query):
    settings = AttributeSettings(top_k=1, unlearn=UNLEARN, race=TIGHT, batch=6)
    *progress, answer = attribute(model32, index32, query, settings)
    assert answer.evaluations == progress[-1].evaluations == 3 + evaluations(schedule(8, 8, TIGHT))
    exhaustive_settings = replace(settings, exhaustive=True, race=RaceSettings())
    assert list(attribute(model32, index32, query, exhaustive_settings))[-1].evaluations == 3 + 8 * 2 * 8


def test_the_ranking_so_far_appears_early_and_holds_only_measured_images():
    after = np.arange(40.0)[:, None, None] + np.zeros((40, 2, 4))
    order = list(reversed(range(40)))
    first = next(race(table_measure(after, 8), np.zeros_like(after), schedule(40, 4, TIGHT), order))
    assert first.rows == tuple(range(39, 31, -1))
    assert not first.settled


def test_progress_is_told_after_every_call_of_the_unet_in_every_round(model32, index32, query, monkeypatch):
    """So that no bar stands still, and short work can be done between two of them."""
    calls, predict = [], model32.predict
    monkeypatch.setattr(model32, "predict", lambda *given: (calls.append(1), predict(*given))[1])
    settings = AttributeSettings(top_k=2, unlearn=UNLEARN, race=TIGHT, batch=4)
    since = []
    asked = encode(model32, query, index32.center_crop)  # measures the prompt's evidence, in two calls
    calls.clear()
    for _ in answer(model32, index32, asked, check_settings(model32, index32, settings)):
        since.append(len(calls))
        calls.clear()
    assert max(since) == 1


def test_ties_go_to_the_earlier_row():
    after = np.ones((6, 2, 4))
    *_, last = race(table_measure(after, 2), np.zeros_like(after), exhaustive(6, 4), [3, 5, 1, 0, 2, 4])
    assert last.rows == (0, 1, 2, 3, 4, 5)


@pytest.mark.parametrize("chunk", [1, 3, 8, 40])
@pytest.mark.parametrize("leaders", [1, 5, 20])
def test_standings_within_a_round_are_the_best_of_those_measured_so_far(chunk, leaders):
    """By brute force, for the first round and a later one; before enough are measured, the round before stands."""
    rng, settings = np.random.default_rng(3), RaceSettings(keep=0.6, first_columns=2, growth=2.0, survivors=24)
    base, after = np.zeros((40, 2, 5)), rng.integers(0, 4, (40, 2, 5)) / 4.0
    order, rounds = [int(row) for row in rng.permutation(40)], schedule(40, 5, settings)
    standings = race(table_measure(after, chunk), base, rounds, order, leaders=leaders)
    rows, before = order, None
    for number, this in enumerate(rounds):
        at = np.ix_(range(40), this.views, this.columns)
        scores = (after[at] - base[at]).mean(-1).max(-1)
        rows, shown = rows[: this.images], before
        parts = list(race_module._missing(rounds[number - 1] if number else None, this))
        chunks = [rows[start : start + chunk] for start in range(0, len(rows), chunk)]
        for part, (_, columns) in enumerate(parts):
            measured = []
            for some, column in product(chunks, columns):
                if (part, column) == (len(parts) - 1, columns[-1]):  # with the last noise, a chunk is measured
                    measured += some
                    best = sorted(measured, key=lambda row: (-scores[row], row))[:leaders]
                    shown = best if shown is None or len(best) == leaders else shown
                if shown is not None:
                    standing = next(standings)
                    assert list(standing.rows)[:leaders] == shown[:leaders]
                    assert not standing.ended
        ended = next(standings)
        rows = sorted(rows, key=lambda row: (-scores[row], row))
        assert list(ended.rows) == rows
        assert_close(ended.scores.value, scores[rows], rtol=1e-12, atol=0)
        assert ended.ended
        before = rows
    assert next(standings, None) is None


@pytest.mark.parametrize("images", [2_000, 65_536])
def test_what_a_chunk_costs_does_not_grow_with_the_training_set(monkeypatch, images):
    """Images that are scored: within a round the chunk and the leaders, at its end everyone once."""
    scored, plain = [], race_module.score

    def counted(before, *more):
        scored.append(len(before))
        return plain(before, *more)

    monkeypatch.setattr(race_module, "score", counted)
    after = np.random.default_rng(0).random((images, 2, 4), np.float32)
    rounds, chunk = schedule(images, 4, RaceSettings()), 64
    standings = list(race(table_measure(after, chunk), np.zeros_like(after), rounds, range(images)))
    ends = [this.images for this in rounds]
    assert [len(standing.rows) for standing in standings if standing.ended] == ends
    within = sorted(scored)[: -len(rounds)]
    assert max(within) <= chunk + 10
    assert sum(scored) <= sum(ends) + sum(this + 10 * (this / chunk + 1) for this in ends)
    assert all(len(standing.rows) <= 10 for standing in standings[: images // chunk])  # of the first round


def test_survivors_of_a_long_race_are_the_exhaustive_best_and_end_with_their_scores():
    rng = np.random.default_rng(5)
    gain = np.where(np.arange(3000) % 100 == 0, 1.0, 0.0) + rng.normal(0, 0.05, 3000)
    base = rng.random((3000, 2, 10))
    after = base + gain[:, None, None] + rng.normal(0, 0.05, base.shape)
    *_, fast = race(table_measure(after, 100), base, schedule(3000, 10, RaceSettings()), range(3000))
    *_, whole = race(table_measure(after, 100), base, exhaustive(3000, 10), range(3000))
    assert fast.rows[:30] == whole.rows[:30]
    ours, theirs = by_row(fast), by_row(whole)
    assert all(ours[row] == theirs[row] for row in ours)
    assert [row % 100 for row in fast.rows[:30]] == [0] * 30


def slow_race(after, rounds, order, likely):
    """A race on changes (N, 2, S), written out: every round's rows with their scores and views, best first."""
    rows, found = list(order), []
    for this in rounds:
        scored = []
        for row in rows[: this.images]:
            views = this.views if len(this.views) == 2 else (likely[row],)
            means = {view: np.mean([after[row, view, column] for column in this.columns]) for view in views}
            view = max(means, key=means.get)
            scored.append((-means[view], row, view))
        found.append(sorted(scored))
        rows = [row for _, row, _ in found[-1]]
    return found


@pytest.mark.parametrize("chunk", [1, 7, 64])
def test_images_are_looked_at_in_their_likelier_view_before_mirrors_take_part(chunk):
    rng, settings = np.random.default_rng(11), replace(TIGHT, survivors=10)
    after, likely = rng.normal(size=(60, 2, 8)), rng.integers(0, 2, 60)
    order, rounds, seen = [int(row) for row in rng.permutation(60)], schedule(60, 8, settings), []
    standings = list(race(table_measure(after, chunk, seen), np.zeros_like(after), rounds, order, likely=likely))
    assert len(seen) == len(set(seen)) == evaluations(rounds) == standings[-1].evaluations
    expected = slow_race(after, rounds, order, likely)
    for ended, scored in zip([each for each in standings if each.ended], expected, strict=True):
        assert list(ended.rows) == [row for _, row, _ in scored]
        assert list(ended.scores.flip) == [view == 1 for _, _, view in scored]
        assert_close(ended.scores.value, np.array([-value for value, _, _ in scored]), rtol=1e-12, atol=0)


def test_a_race_that_knows_the_likelier_view_misses_no_image_that_is_first_in_its_mirror():
    rng = np.random.default_rng(2)
    after = rng.normal(0, 0.02, (200, 2, 10))
    likely = rng.integers(0, 2, 200)
    after[np.arange(200), likely] += np.linspace(0, 3, 200)[:, None]  # each image in one view alone
    rounds = schedule(200, 10, RaceSettings(keep=0.1, survivors=20))
    *_, told = race(table_measure(after, 64), np.zeros_like(after), rounds, range(200), likely=likely)
    *_, untold = race(table_measure(after, 64), np.zeros_like(after), rounds, range(200))
    best = set(np.argsort(-after.mean(-1).max(1))[:10].tolist())
    assert len(best & set(told.rows[:10])) >= 9 > len(best & set(untold.rows[:10]))


@pytest.mark.parametrize("batch", [2, 5, 16])
def test_losses_of_views_that_each_row_has_for_itself_are_those_of_all(model, index, batch):
    bank, rows, views = index.bank(model), [5, 2, 7, 0, 1], np.array([[1], [0], [0], [1], [1]])
    whole = np.concatenate([t for _, t in training_losses(model, index.encoded, bank, range(8), range(8), batch=6)])
    parts = training_losses(model, index.encoded, bank, rows, [3, 0], views, batch=batch)
    part = np.concatenate([t for _, t in parts])
    assert_close(part, whole[rows, views[:, 0]][:, None, [3, 0]], rtol=1e-11, atol=0)
