"""Results in files: what is written is read, prints the same tables, and is refused where it does not fit."""

import json
from dataclasses import replace

import numpy as np
import pytest
from conftest import random_picture

from attribution.cli import main
from attribution.errors import InputError
from attribution.evaluate import counterfactual, lds, left, recalled, steadiness
from attribution.evaluate.arrays import read_arrays, write_arrays
from attribution.evaluate.counterfactual import LeaveOutSettings, changes, groups, judged, noise, outcome, removals
from attribution.evaluate.customised import Cases, RetrievalSettings
from attribution.evaluate.lds import Evidence, agreement
from attribution.evaluate.queue import open_queue
from attribution.evaluate.results import Made, check_replaced, read_results, write_results
from attribution.evaluate.retrain import without
from attribution.evaluate.retrieval import found, jobs_of, table
from attribution.evaluate.retrieval import left as still_to_do
from attribution.evaluate.scored import scored
from attribution.evaluate.twice import Line, SteadinessSettings
from attribution.query.query import Query

IMAGES = 40
QUERIES = [Query(f"an owl and a bus {number}", random_picture(number), number) for number in range(4)]
RNG = np.random.default_rng(0)
FIXED = {"training": {"steps": 3}, "queries": [[query.prompt, query.seed, []] for query in QUERIES]}
SCORES = {method: RNG.normal(size=(4, IMAGES)) for method in ("d-trak", "dino")}


def made(kind, settings, fixed=None):
    return Made(kind, "abc123", "f" * 64, IMAGES, fixed or {"training": {"steps": 3}}, settings, "python -m this")


def told(settings):
    return json.loads(json.dumps(settings.__dict__, default=lambda each: each.__dict__))


@pytest.fixture
def halves():
    """Twelve halves, ten of them with a second seed, whose losses d-trak's scores make."""
    kept = np.stack([np.random.default_rng(number).permutation(IMAGES) < IMAGES // 2 for number in range(12)])
    losses = -(SCORES["d-trak"] @ kept.T).T[None] + 0.01 * RNG.normal(size=(2, 12, 4))
    losses[1, 10:] = np.nan
    return Evidence(np.arange(12), kept, losses, SCORES)


@pytest.fixture
def halves_file(halves, tmp_path):
    path = tmp_path / "lds.npz"
    write_results(path, made("lds", {}, FIXED), lds.packed(halves))
    return path


def refused(*arguments, capsys):
    assert main(["evaluate", *map(str, arguments)]) == 2
    lines = capsys.readouterr().err.strip().splitlines()
    assert len(lines) == 1
    return lines[0]


# LDS


def test_halves_are_read_as_they_were_written(halves, halves_file):
    again = lds.unpacked(read_results(halves_file, "lds"))
    np.testing.assert_array_equal(again.kept, halves.kept)
    np.testing.assert_allclose(again.losses, halves.losses, rtol=1e-6)
    one, other = agreement(halves), agreement(again)
    assert (other.models, other.trainings) == (12, (12, 10))
    for method, value in one.methods.items():
        assert other.methods[method].mean == pytest.approx(value.mean, abs=0.02)
    assert halves_file.stat().st_size < 5000


def test_half_precision_keeps_the_order_of_small_and_of_large_scores():
    scores = np.concatenate([1e-9 * np.arange(-500, 500), [3e-6, 1e-5]])[None] + 7.0
    again = lds.rounded(scores)[0]
    assert (np.diff(again[:-2].astype(float)) >= 0).all()
    assert np.argsort(again)[-2:].tolist() == [1000, 1001]


def test_a_second_seed_of_some_halves_does_not_move_them(halves):
    """What a seed does to all alike makes no difference, though only ten of twelve halves have it."""
    shifted = replace(halves, losses=halves.losses + np.array([0.0, 50.0])[:, None, None])
    for method, value in agreement(shifted).methods.items():
        assert value == agreement(halves).methods[method]


def test_a_second_seed_of_two_halves_says_nothing_yet(halves):
    few = halves.losses.copy()
    few[1, 2:] = np.nan
    assert agreement(replace(halves, losses=few)).ceiling is None
    np.testing.assert_array_equal(lds.aligned(few)[0], few[0])
    assert np.isnan(lds.aligned(few)[1]).all()


def test_the_command_prints_a_file_and_says_what_it_lacks(halves_file, capsys):
    assert main(["evaluate", "lds", "--results", str(halves_file)]) == 0
    printed = capsys.readouterr().out
    assert "| d-trak | " in printed
    assert "12 halves; trained: 12 with seed 0, 10 with seed 1. One seed against another: " in printed
    assert "from lds.npz: index abc123, 40 training images" in printed
    assert "Nothing was computed. Not in them: 52 of 64 halves with seed 0" in printed  # all of its methods are printed
    assert "52 of 64 halves with seed 0, 54 of 64 halves with seed 1, 60 of 64 queries. Anew: `python -m" in printed


def test_the_command_prints_a_part_of_a_file(halves_file, capsys):
    part = ("--methods", "dino", "--models", "8", "--seeds", "1", "--queries", "2")
    assert main(["evaluate", "lds", "--results", str(halves_file), *part]) == 0
    printed = capsys.readouterr().out
    assert "8 halves; trained: 8 with seed 0.\n" in printed
    assert "d-trak" not in printed
    assert "Not in them" not in printed


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--methods", "magic"), "there is no method 'magic'; accepted are unlearning, "),
        (("--steps", "5"), "training = "),
        (("--out", "x.npz"), "add --folder DIR"),
    ],
)
def test_the_command_refuses_what_a_file_cannot_say(halves_file, capsys, arguments, words):
    assert words in refused("lds", "--results", halves_file, *arguments, capsys=capsys)


def test_further_methods_are_judged_by_finished_trainings_of_the_same_world(halves, tmp_path, model32, index32):
    settings = lds.LdsSettings(queries=4, methods=("d-trak", "pixel", "random"))
    kept, losses = halves.kept[:, : len(index32)], halves.losses
    scores = {"d-trak": SCORES["d-trak"][:, : len(index32)]}
    own = lds.made_of(index32, model32, QUERIES, settings)
    write_results(tmp_path / "old.npz", own, lds.packed(Evidence(np.arange(12), kept, losses, scores)))
    old = read_results(tmp_path / "old.npz", "lds")
    found = lds.with_further_methods(old, tmp_path, model32, index32, QUERIES, settings)
    assert found.scores.keys() == {"d-trak", "pixel", "random"}
    np.testing.assert_array_equal(found.scores["d-trak"], lds.unpacked(old).scores["d-trak"])
    asked = scored(tmp_path / "anew", model32, index32, QUERIES, ("pixel",))
    np.testing.assert_array_equal(found.scores["pixel"], asked["pixel"])
    np.testing.assert_array_equal(found.losses, lds.unpacked(old).losses)
    for what, other in (
        ("model", replace(old, made=replace(old.made, model_sha256="0" * 64))),
        ("number of images", replace(old, made=replace(old.made, images=7))),
        ("queries or training", replace(old, made=replace(old.made, fixed={**old.made.fixed, "queries": []}))),
    ):
        with pytest.raises(InputError, match=f"the results are of another {what} than"):
            lds.with_further_methods(other, tmp_path, model32, index32, QUERIES, settings)


def test_scores_of_some_queries_serve_when_more_are_asked(tmp_path, monkeypatch):
    """Leave-K-out asks the first of LDS's queries, in the same folder."""
    asked = []

    def scores(_model, _index, query, settings):
        asked.append((settings.method, query.prompt))
        return np.full(IMAGES, len(query.prompt))

    class Index:
        id = "abc123"

        def __len__(self):
            return IMAGES

    monkeypatch.setattr("attribution.evaluate.scored._scores", scores)
    few = scored(tmp_path, None, Index(), QUERIES[:2], ["dino"])
    every = scored(tmp_path, None, Index(), QUERIES, ["dino"])
    assert len(asked) == len(set(asked)) == 4
    np.testing.assert_array_equal(every["dino"][:2], few["dino"])


# Files


def test_results_are_not_written_over_others(halves, halves_file, tmp_path):
    before = halves_file.read_bytes()
    plain = made("lds", {}, FIXED)
    for other, words in (
        (replace(plain, index="other"), "holds results of index abc123, not of other; name another file"),
        (replace(plain, kind="counterfactual"), "holds results of `evaluate lds` in format 1; accepted are those of"),
        (
            replace(plain, fixed={**FIXED, "training": {"steps": 4}}),
            'with training = {"steps": 3}, now it is {"steps": 4}',
        ),
    ):
        with pytest.raises(InputError, match=words.replace("{", r"\{")):
            write_results(halves_file, other, lds.packed(halves))
        assert halves_file.read_bytes() == before
    (tmp_path / "letter.npz").write_text("Dear all")
    with pytest.raises(InputError, match="holds no results that can be read"):
        check_replaced(tmp_path / "letter.npz", plain)
    write_results(halves_file, plain, lds.packed(halves))  # the same ones, anew


def test_damaged_files_and_other_formats_are_refused(halves_file, tmp_path, capsys):
    whole = halves_file.read_bytes()
    middle = len(whole) // 2
    for content in (b"", whole[:middle], whole[:middle] + bytes([whole[middle] ^ 255]) + whole[middle + 1 :]):
        (tmp_path / "x.npz").write_bytes(content)
        assert "holds no results that can be read" in refused("lds", "--results", tmp_path / "x.npz", capsys=capsys)
    arrays = read_arrays(halves_file)
    told = {**json.loads(str(arrays["made"])), "format": 9}
    write_arrays(tmp_path / "x.npz", {**arrays, "made": np.array(json.dumps(told))})
    assert "in format 9; accepted are those" in refused("lds", "--results", tmp_path / "x.npz", capsys=capsys)
    nowhere = tmp_path / "nowhere.npz"
    assert "there are no results of `evaluate lds` in" in refused("lds", "--results", nowhere, capsys=capsys)


# Leave-K-out

LEAVE_OUT = LeaveOutSettings(
    ks=(2, 5), queries=4, together=2, methods=("d-trak", "dino"), seeds=2, curve=(5, 20), draws=1
)


@pytest.fixture
def known():
    def outcome_of(removal):
        gone = np.zeros(IMAGES)
        gone[list(removal.rows)] = 1
        pictures = np.full((4, 2, 2, 3), len(removal.rows) + removal.seed, np.uint8)
        return {"losses": SCORES["d-trak"] @ gone + 0.1 * removal.seed, "pictures": pictures}

    return {each: outcome_of(each) for each in removals(SCORES, QUERIES, LEAVE_OUT)}


@pytest.fixture
def left_file(known, tmp_path):
    evidence = counterfactual.Evidence(changes(known), SCORES, groups(QUERIES, LEAVE_OUT.together))
    path = tmp_path / "counterfactual.npz"
    write_results(path, made("counterfactual", told(LEAVE_OUT)), left.packed(evidence, LEAVE_OUT))
    return path


def test_removals_are_read_as_they_were_written(known, left_file):
    again = left.unpacked(read_results(left_file, "counterfactual"))
    for one, other in zip(outcome(known, SCORES, QUERIES, LEAVE_OUT), judged(again, LEAVE_OUT), strict=True):
        assert (one.method, one.k, one.removed) == (other.method, other.k, other.removed)
        for name in ("change", "moved", "random"):
            np.testing.assert_allclose(getattr(one, name), getattr(other, name), rtol=1e-5, atol=1e-5)


def test_training_again_with_another_seed_is_a_control(known, left_file):
    (again,) = noise(left.unpacked(read_results(left_file, "counterfactual")))
    assert again.change == pytest.approx(0.1)
    assert again.moved == pytest.approx(1 / 255**2)
    del known[without((), 1)]
    assert noise(counterfactual.Evidence(changes(known), SCORES, groups(QUERIES, 2))) == []


def test_the_command_prints_the_removals_that_are_asked_for(left_file, capsys):
    asked = ("--queries", "1", "--k", "5", "--methods", "d-trak", "random")
    assert main(["evaluate", "counterfactual", "--results", str(left_file), *asked]) == 0
    printed = capsys.readouterr().out
    assert [line.split(" | ")[1] for line in printed.splitlines()[2:4]] == ["nothing, but another seed", "d-trak"]
    assert [line.split(" | ")[0] for line in printed.splitlines()[2:4]] == ["| 0", "| 5"]
    assert "dino" not in printed
    assert "Not in them: random with K = 5. Anew:" in printed


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--k", "2000"), "2000 of 40 images cannot be left out; accepted are 1 to 39"),
        (("--k", "5", "--methods", "magic"), "there is no method 'magic'"),
        (("--k", "5", "--together", "1"), "together = 1 is not among finished results; --folder DIR computes with it"),
    ],
)
def test_the_command_refuses_removals_that_cannot_be(left_file, capsys, arguments, words):
    assert words in refused("counterfactual", "--results", left_file, *arguments, capsys=capsys)


# Steadiness


@pytest.fixture
def answered(tmp_path):
    queue = open_queue(tmp_path / "steady", {"index": "abc123", "noise_seed": 1, "exhaustive": True, "queries": 3})
    for number in range(2):
        kept = {"first": np.arange(20), "again": np.arange(20)[::-1] if number else np.arange(20)}
        queue.keep(f"d-trak-{number:03d}", {**kept, "correlation": np.array(0.5), "seconds": np.array(2.0)})
    queue.keep("random-000", {"first": np.arange(9), "again": np.arange(9), "correlation": np.nan, "seconds": 1.0})
    return queue.folder


def test_answers_are_read_as_they_were_written(answered, tmp_path, capsys):
    path, settings = tmp_path / "steadiness.npz", SteadinessSettings()
    fixed = steadiness.made_with(answered)
    write_results(path, made("steadiness", told(settings), fixed), steadiness.packed(steadiness.answers(answered)))
    again = steadiness.judged(steadiness.unpacked(read_results(path, "steadiness"), settings))
    assert [each.line for each in again] == [Line("random"), Line("d-trak")]
    for one, other in zip(steadiness.measured(answered), again, strict=True):
        np.testing.assert_array_equal(one.values, other.values)
    assert main(["evaluate", "steadiness", "--results", str(path), "--methods", "d-trak", "--queries", "1"]) == 0
    printed = capsys.readouterr().out
    assert "| d-trak | the query's gradient | 1 | 1.000 |" in printed
    assert "random" not in printed
    assert "Index abc123, noise seed 1; methods that unlearn score all images" in printed
    assert "there is no method 'magic'" in refused("steadiness", "--results", path, "--methods", "magic", capsys=capsys)
    assert "add --folder DIR" in refused("steadiness", "--compute", capsys=capsys)


def test_results_of_another_index_are_refused(answered, tmp_path, full_folder, capsys):
    path = tmp_path / "steadiness.npz"
    write_results(path, made("steadiness", {}, {}), steadiness.packed(steadiness.answers(answered)))
    told = refused("steadiness", "--results", path, "--index", full_folder, capsys=capsys)
    assert "holds results of index abc123, not of" in told


# Retrieval


def test_rankings_are_read_as_they_were_written(tmp_path, capsys):
    settings = RetrievalSettings(models=2, pictures=2, scenes=5, methods=("dino", "pixel"), k=2)
    cases = Cases({"object-owl": "object", "style-grey": "style"}, {"index": "abc123"}, lambda _: True, None)
    queue = open_queue(tmp_path / "rankings", {})
    for number, job in enumerate(jobs_of(cases, settings)[:7]):
        ranks = np.array([[1, 3, 0], [2, 1, 4]])[:, : 2 if job.case == "object-owl" else 3] + number % 2
        queue.keep(job.name, {"ranks": ranks, "seconds": np.array(number)})
    path, fixed = tmp_path / "retrieval.npz", {**cases.made, "scenes": 5}
    kinds = {"kinds": dict(cases.kinds), "scenes": 5}
    write_results(path, made("retrieval", kinds, fixed), recalled.packed(queue, cases, settings))
    done, others = recalled.unpacked(read_results(path, "retrieval"), settings)
    assert table(found(done, others, settings), others, settings) == table(
        found(queue, cases, settings), cases, settings
    )
    assert still_to_do(done, others, settings) == still_to_do(queue, cases, settings)
    assert main(["evaluate", "retrieval", "--results", str(path), "--k", "2", "--methods", "dino"]) == 0
    printed = capsys.readouterr().out
    assert "| Recall@2 |" in printed
    assert "4 of 4 rankings are done, among 5 scenes" in printed
    words = "scenes = 300 is not among finished results"
    assert words in refused("retrieval", "--results", path, "--scenes", "300", capsys=capsys)
    assert "models = 3 is not possible" in refused("retrieval", "--results", path, "--models", "3", capsys=capsys)
