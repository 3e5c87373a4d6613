"""The proof that the page shows: written from made-up results of leave-K-out, read again."""

import json
from dataclasses import replace

import numpy as np
import pytest
from conftest import CAPTIONS, random_picture
from PIL import Image

from attribution.answers.forget import change
from attribution.answers.proof import PROOF, read_proof
from attribution.errors import InputError
from attribution.evaluate.counterfactual import LeaveOutSettings, by_chance, removals
from attribution.evaluate.proof import ProofSettings, Results, write_proof
from attribution.evaluate.retrain import without
from attribution.query.query import Query

BOX = ((4.0, 4.0, 20.0, 12.5),)
QUERIES = [Query("an owl", random_picture(0), 0, BOX), Query("a bus", random_picture(1), 1)]
LEAVE_OUT = LeaveOutSettings(ks=(3,), queries=2, together=1, methods=("dino", "d-trak"), seeds=2, curve=(3,), draws=1)
SETTINGS = ProofSettings(show=(0, 1), by=("d-trak", "dino"), k=3, leave_out=LEAVE_OUT)
MADE = ("python -m attribution evaluate counterfactual", "abc" * 20, ("Twemoji (CC BY 4.0, https://example.org)",))


@pytest.fixture
def results(index32):
    """Two pictures, eight training images, and models whose every picture is another."""
    rng = np.random.default_rng(0)
    scores = {method: rng.random((2, len(CAPTIONS))) for method in LEAVE_OUT.methods}
    wanted = removals(scores, QUERIES, LEAVE_OUT)
    known = {
        each: {"pictures": rng.integers(0, 256, (2, 32, 32, 3), np.uint8), "losses": 1 + rng.random(2)}
        for each in wanted
    }
    return Results(index32, QUERIES, scores, known)


def drawn(results, removal, number):
    return Image.fromarray(results.known[removal]["pictures"][number])


def test_what_is_written_is_read(results, tmp_path):
    written = write_proof(tmp_path / "proof", results, SETTINGS, *MADE)
    assert read_proof(tmp_path / "proof") == written
    assert {path.name for path in (tmp_path / "proof").iterdir()} == {PROOF, *written.files}
    assert [case.prompt for case in written.cases] == ["an owl", "a bus"]
    assert written.images == len(CAPTIONS)
    assert written.credits == MADE[2]


def test_each_method_has_its_own_images_and_the_picture_of_the_training_without_them(results, tmp_path):
    proof = write_proof(tmp_path, results, SETTINGS, *MADE)
    for number, case in enumerate(proof.cases):
        assert [each.method for each in case.retrained] == ["d-trak", "dino", "random"]
        assert Image.open(tmp_path / case.picture).tobytes() == QUERIES[number].image.tobytes()
        for each in case.retrained:
            chance = by_chance(len(CAPTIONS), 3, 0, 0)
            rows = list(chance.rows) if each.method == "random" else np.argsort(-results.scores[each.method][number])
            removal = without(rows[:3], 0)
            picture = Image.open(tmp_path / each.picture)
            assert picture.tobytes() == drawn(results, removal, number).tobytes()
            mask = None if number else np.pad(np.ones((9, 16)), ((4, 19), (4, 12)))
            plain = drawn(results, without((), 0), number)
            assert each.change == pytest.approx(change(plain, picture, mask))
            rise = results.known[removal]["losses"][number] / results.known[without((), 0)]["losses"][number] - 1
            assert each.rise == pytest.approx(rise)
            assert (each.named, each.left_out, each.shown) == (3, 3, 3)
            strip = Image.open(tmp_path / each.strip).convert("RGB")
            thumbnail = results.index.pictures.small(int(rows[0]))
            assert strip.crop((0, 0, *thumbnail.size)).tobytes() == thumbnail.tobytes()
    plain, again = (drawn(results, without((), seed), 1) for seed in (0, 1))
    assert proof.cases[1].noise == pytest.approx(change(plain, again))


def test_the_pictures_whose_loss_rises_most_are_shown_unless_others_are_named(results, tmp_path, monkeypatch):
    monkeypatch.setattr("attribution.evaluate.proof.CASES", 1)
    for number in (0, 1):
        known = {each: {**held, "losses": held["losses"].copy()} for each, held in results.known.items()}
        for seed in (0, 1):
            rows = np.argsort(-results.scores["d-trak"][number])[:3]
            known[without(rows, seed)]["losses"][number] = 9
        proof = write_proof(tmp_path, replace(results, known=known), replace(SETTINGS, show=()), *MADE)
        assert [case.prompt for case in proof.cases] == [QUERIES[number].prompt]
        assert proof.pictures == 2
        risen = [9 / known[without((), seed)]["losses"][number] - 1 for seed in (0, 1)]
        other = [
            known[without(np.argsort(-results.scores["d-trak"][1 - number])[:3], seed)]["losses"][1 - number]
            / known[without((), seed)]["losses"][1 - number]
            - 1
            for seed in (0, 1)
        ]
        assert proof.rises["d-trak"] == pytest.approx(np.mean([risen, other]))
        assert set(proof.rises) == {"d-trak", "dino", "random"}


def test_random_images_are_as_many_as_a_method_leaves_out_where_they_were_judged_too(results, tmp_path):
    leave_out = replace(LEAVE_OUT, methods=("dino", "random"), together=2)
    scores = {"dino": results.scores["dino"], "random": results.scores["d-trak"]}
    wanted = removals(scores, QUERIES, leave_out)
    known = {each: {"pictures": np.zeros((2, 32, 32, 3), np.uint8), "losses": np.ones(2)} for each in wanted}
    settings = replace(SETTINGS, by=("dino",), leave_out=leave_out)
    proof = write_proof(tmp_path, replace(results, scores=scores, known=known), settings, *MADE)
    union = {row for each in scores["random"] for row in np.argsort(-each)[:3]}
    assert proof.cases[0].retrained[-1].left_out == len(union)


def test_a_training_that_serves_several_pictures_says_so(results, tmp_path):
    together = replace(LEAVE_OUT, together=2)
    wanted = removals(results.scores, QUERIES, together)
    known = {each: {"pictures": np.zeros((2, 32, 32, 3), np.uint8), "losses": np.ones(2)} for each in wanted}
    settings = replace(SETTINGS, leave_out=together)
    proof = write_proof(tmp_path, replace(results, known=known), settings, *MADE)
    first = proof.cases[0].retrained[0]
    assert first.named == 3
    assert 3 < first.left_out <= 6
    assert (first.change, proof.cases[0].noise) == (0.0, 0.0)


def test_without_a_second_seed_the_noise_of_training_is_not_known(results, tmp_path):
    first = {removal: made for removal, made in results.known.items() if removal.seed == 0}
    assert write_proof(tmp_path, replace(results, known=first), SETTINGS, *MADE).cases[0].noise is None


def test_what_is_not_there_cannot_be_shown(results, tmp_path):
    def refused(said, **changed):
        with pytest.raises(InputError, match=said):
            write_proof(tmp_path / "none", results, replace(SETTINGS, **changed), *MADE)

    refused("there is no query 2; accepted are 0 to 1", show=(0, 2))
    refused("the results have no method 'clip'; accepted are dino, d-trak", by=("clip",))
    refused("without 2 images, is not done; run `python -m attribution evaluate counterfactual`", k=2)
    assert not (tmp_path / "none").exists()


def test_pictures_of_an_earlier_proof_are_deleted(results, tmp_path):
    write_proof(tmp_path, results, SETTINGS, *MADE)
    later = write_proof(tmp_path, results, replace(SETTINGS, show=(1,)), *MADE)
    assert {path.name for path in tmp_path.glob("*.png")} == later.files


def test_no_folder_is_no_proof_and_a_damaged_one_is_refused(results, tmp_path):
    assert read_proof(tmp_path / "none") is None
    with pytest.raises(InputError, match=r"proof\.json cannot be read"):
        read_proof(tmp_path)
    proof = write_proof(tmp_path, results, SETTINGS, *MADE)
    told = json.loads((tmp_path / PROOF).read_text())
    for damaged, said in (
        ({**told, "version": 9}, "is of version 9, this program reads 1"),
        ({**told, "cases": [{}]}, "lacks"),
        ([], "cannot be read"),
    ):
        (tmp_path / PROOF).write_text(json.dumps(damaged))
        with pytest.raises(InputError, match=said):
            read_proof(tmp_path)
    (tmp_path / PROOF).write_text(json.dumps(told))
    (tmp_path / proof.cases[0].picture).unlink()
    with pytest.raises(InputError, match=r"lacks 0\.png"):
        read_proof(tmp_path)
