"""An approximate search: who is looked at is chosen by lists, every score is exact, and what is missed is measured."""

import json
import shutil
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import make_tiny_tokenizer, random_picture
from large import clustered, list_up, stretch, with_vectors
from networks import tiny_clip

from attribution.answers.report import read_zip, write_zip
from attribution.answers.run import Run
from attribution.cli import main
from attribution.errors import IndexMismatch, InputError
from attribution.index import listed
from attribution.index.build import build
from attribution.index.index import Index
from attribution.index.lists import ASKED, DEPTHS, FEWEST, ListRecord, ListSettings, faiss, nearest, unit
from attribution.index.manifest import Manifest
from attribution.index.nearest import lists_of
from attribution.index.plan import plan
from attribution.index.plan_update import plan_update
from attribution.index.stored import load_tensors
from attribution.index.update import update
from attribution.index.verify import verify
from attribution.index.work import ExtendSettings
from attribution.methods import attribute
from attribution.methods.answer import AttributeSettings
from attribution.methods.features import cosines_of

ROWS, WIDTH = 3000, 12


@pytest.fixture(scope="module")
def many(full_folder):
    """An index of many images in lists, whose vectors are drawn in clusters. Do not change it."""
    folder = with_vectors(stretch(copied(full_folder, "listed"), ROWS), topics=20)
    list_up(folder)
    return folder


def copied(folder, name):
    return Path(shutil.copytree(folder, folder.parent / name))


def made_of(folder):
    return Manifest.read(folder).made("listed/clip", ListRecord)


def answers(model, folder, query, **asked):
    *_, last = attribute(model, Index.open(folder), query, AttributeSettings(method="clip", **asked))
    return last


def scores(answer):
    return [(result.row, result.flip, pytest.approx(result.score, abs=1e-6)) for result in answer.results]


def run(steps):
    for _ in steps:
        pass


# A search


def test_a_search_of_all_lists_is_the_exact_one(model32, full_folder, query):
    folder = with_vectors(stretch(copied(full_folder, "all-lists"), ROWS), topics=20)
    list_up(folder, ListSettings(lists=30, probes=30))
    found, whole = (answers(model32, folder, query, top_k=100, exhaustive=each) for each in (False, True))
    assert scores(found) == scores(whole)
    assert (found.search.how, found.search.looked_at, whole.search) == ("approximate", ROWS, None)
    assert (found.ranked, whole.ranked) == (100, ROWS)
    assert found.rows == whole.rows[:100]
    assert made_of(folder).recall == (1, 1)


def test_a_search_of_few_lists_has_exact_scores_and_says_what_it_is_worth(model32, many, query):
    made = made_of(many)
    assert 1 <= made.near < made.made == round(2 * ROWS**0.5)
    found, whole = (answers(model32, many, query, top_k=100, exhaustive=each) for each in (False, True))
    exact = {result.row: result for result in answers(model32, many, query, top_k=ROWS).results}
    for result in found.results:
        assert result.score == pytest.approx(exact[result.row].score, abs=1e-6)
        assert result.flip == exact[result.row].flip
    assert len(set(found.rows[:10]) & set(whole.rows[:10])) >= 8
    assert 100 <= found.search.looked_at < ROWS / 2
    assert found.search.missed is None
    told = f"An approximate search: {found.search.looked_at:,} of 3,000 training images were compared"
    assert found.search.sentence.startswith(told)
    assert f"it found {made.recall[0]:.1%} of the first 10" in found.search.sentence


def test_the_recall_that_is_told_is_what_a_search_finds(many):
    lists, made = lists_of(Index.open(many), "clip"), made_of(many)
    drawn, asked = made.drawn(ROWS)
    assert (len(asked), made.asked) == (ASKED, ASKED // 2)
    assert not set(drawn) & set(asked)
    vectors = np.load(many / "features/clip.npy")
    found, looked_at = {depth: [] for depth in DEPTHS}, []
    for row in asked[1::2]:
        wanted = torch.from_numpy(vectors[row, 0])
        exact = cosines_of(wanted, vectors).max(1)
        exact[row] = -np.inf
        seen = np.concatenate([rows for rows, _ in lists.near(wanted.float().numpy())])
        looked_at.append(len(seen) / ROWS)
        for depth in DEPTHS:
            best = np.argsort(-exact)[:depth]
            found[depth].append(np.isin(best, seen).mean())
    assert made.recall == pytest.approx([np.mean(found[depth]) for depth in DEPTHS], abs=2e-3)
    assert made.looked_at == pytest.approx(np.mean(looked_at))
    assert made.recall[0] > 0.85


def test_lists_hold_every_image_once_beside_its_own_vectors(many):
    held = load_tensors(many / "lists/clip.safetensors")
    rows, ends = held["rows"].numpy(), held["ends"].numpy()
    assert sorted(rows) == list(range(ROWS))
    vectors, listed_ = (np.load(many / f"{name}/clip.npy") for name in ("features", "listed"))
    np.testing.assert_array_equal(listed_, vectors[rows])
    centres = held["centres"].numpy()
    place = unit(unit(vectors).mean(1))
    inside = np.repeat(np.arange(len(ends)), np.diff(ends, prepend=0))
    np.testing.assert_array_equal(nearest(place[rows], centres), inside)
    assert ((place[rows] * centres[inside]).sum(1) >= (place[rows] @ centres.T).max(1) - 1e-5).all()


def test_more_images_than_such_a_search_is_good_for_are_found_among_all(model32, many, query, full_folder):
    assert answers(model32, many, query, top_k=101).search is None
    assert answers(model32, many, query, top_k=101).ranked == ROWS
    assert answers(model32, many, query).search.how == "approximate"
    few = with_vectors(stretch(copied(full_folder, "few-a-list"), ROWS), topics=20)
    list_up(few, ListSettings(lists=600, probes=1))
    assert answers(model32, few, query, top_k=100).search is None  # the nearest list holds fewer than a hundred


def test_a_report_keeps_what_a_search_was_worth(model32, many, query, tmp_path):
    index, found = Index.open(many), answers(model32, many, query, top_k=3)
    write_zip(Run((found,)), index, model32, tmp_path / "run.zip")
    assert read_zip(tmp_path / "run.zip").answers[0].search == found.search


# A build


@pytest.fixture
def clip_folder(model32, plain_copy, extend_all):
    """An index with CLIP's vectors that a test may change."""
    weights = tiny_clip(plain_copy.parent / f"clip-of-{plain_copy.name}", make_tiny_tokenizer())
    extend_all(plain_copy, model32, features=("clip",), feature_weights={"clip": str(weights)})
    return plain_copy


LISTS = ExtendSettings(approximate=("clip",), nearest=ListSettings(lists=3))


def files_of(folder):
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_a_build_that_was_interrupted_ends_with_the_same_files(model32, tiny_settings, clip_folder, monkeypatch):
    monkeypatch.setattr(listed, "GATHERED", 3)
    whole = copied(clip_folder, f"{clip_folder.name}-whole")
    made = [(each.step, each.done) for each in build(whole, model32, tiny_settings, LISTS)]
    assert made == [("lists/clip", 8), ("listed/clip", 3), ("listed/clip", 6), ("listed/clip", 8)]
    for _ in range(3):
        steps = build(clip_folder, model32, tiny_settings, LISTS)
        next(steps)
        steps.close()
        assert not Manifest.read(clip_folder).finished("listed/clip")
    run(build(clip_folder, model32, tiny_settings, LISTS))
    assert files_of(clip_folder) == files_of(whole)
    assert list(build(clip_folder, model32, tiny_settings, LISTS)) == []


def test_a_dry_run_names_what_lists_take_and_writes_nothing(model32, tiny_settings, clip_folder, plain_copy):
    before = files_of(clip_folder)
    costs = {each.name: each for each in plan(clip_folder, model32, tiny_settings, LISTS)}
    assert files_of(clip_folder) == before
    run(build(clip_folder, model32, tiny_settings, LISTS))
    after = files_of(clip_folder)
    for name, file in (("lists/clip", "lists/clip.safetensors"), ("listed/clip", "listed/clip.npy")):
        assert costs[name].count == 8
        assert costs[name].seconds > 0
        assert costs[name].bytes == pytest.approx(len(after[file]), abs=1024)


def test_a_dry_run_of_vectors_and_lists_together(model32, tiny_settings, tmp_path):
    weights = {"clip": str(tiny_clip(tmp_path / "clip", make_tiny_tokenizer()))}
    more = replace(LISTS, features=("clip",), feature_weights=weights)
    costs = [each.name for each in plan(tmp_path / "index", model32, tiny_settings, more)]
    assert {"features/clip", "lists/clip", "listed/clip"} <= set(costs)
    assert not (tmp_path / "index").exists()


def test_lists_follow_a_training_set_that_changed(model32, tiny_settings, clip_folder, tmp_path, caplog):
    run(build(clip_folder, model32, tiny_settings, LISTS))
    folder = tmp_path / "now"
    shutil.copytree(tiny_settings.data.train_data_dir, folder)
    random_picture(77).save(folder / "q.png")
    with (folder / "metadata.jsonl").open("a", encoding="utf-8") as file:
        file.write(json.dumps({"file_name": "q.png", "text": "a new bus"}) + "\n")
    now = replace(tiny_settings, data=replace(tiny_settings.data, train_data_dir=folder))
    names = [each.name for each in plan_update(clip_folder, model32, now)]
    assert {"lists/clip", "listed/clip"} <= set(names)
    run(update(clip_folder, model32, now))
    assert "made anew from all images: fisher, lists/clip, listed/clip" in caplog.text
    index = Index.open(clip_folder)
    assert len(lists_of(index, "clip").vectors) == len(index) == 9
    assert [damage for part in verify(clip_folder) for damage in part.damage] == []


def test_lists_of_other_vectors_are_not_searched_and_made_anew(model32, tiny_settings, clip_folder, query, caplog):
    run(build(clip_folder, model32, tiny_settings, LISTS))
    manifest, step = Manifest.read(clip_folder), Manifest.read(clip_folder).step("features/clip")
    other = replace(step, stored=replace(step.stored, pieces=("0" * 16,)))
    manifest.having("features/clip", other).write(clip_folder)
    assert answers(model32, clip_folder, query, top_k=2).search is None
    assert "are of other vectors than the index holds now" in caplog.text
    manifest.write(clip_folder)
    (clip_folder / "lists/clip.safetensors").unlink()
    with pytest.raises(IndexMismatch, match=r"clip\.safetensors is missing"):
        answers(model32, clip_folder, query, top_k=2)
    made = [each.step for each in build(clip_folder, model32, tiny_settings, LISTS)]
    assert made == ["lists/clip", "listed/clip"]  # the order is that of the lists that were lost
    assert answers(model32, clip_folder, query, top_k=2).search.how == "approximate"


@pytest.mark.parametrize("file", ["lists/clip.safetensors", "listed/clip.npy"])
def test_damage_is_named(model32, many, query, file, tmp_path):
    folder = copied(many, f"damaged-{tmp_path.name}")
    content = bytearray((folder / file).read_bytes())
    content[-9] ^= 64
    (folder / file).write_bytes(content)
    assert any(file in damage for part in verify(folder) for damage in part.damage)
    (folder / file).write_bytes(content[:-1000])
    with pytest.raises(IndexMismatch, match=Path(file).name):
        answers(model32, folder, query)


def test_rows_that_no_index_has_are_refused(model32, many, query, monkeypatch):
    monkeypatch.setattr("attribution.index.nearest.read_rows", lambda _, places: np.full(len(places), ROWS, np.int32))
    with pytest.raises(IndexMismatch, match="is damaged"):
        answers(model32, many, query)


# What is not possible


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        (
            ListSettings(lists=2801),
            "--approximate_lists 2801 is not possible; .* from 1 to 2,800",
        ),
        (ListSettings(lists=0), "--approximate_lists 0 is not possible"),
        (
            ListSettings(probes=111),
            "--approximate_probes 111 is not possible; .* from 1 to 110",
        ),
        (ListSettings(seed=-1), "--approximate_seed -1 is not possible"),
    ],
)
def test_impossible_lists_are_refused(settings, told):
    with pytest.raises(InputError, match=told):
        settings.checked(ROWS)


def test_too_few_images_are_refused():
    with pytest.raises(InputError, match="7 training images are too few"):
        ListSettings().checked(FEWEST - 1)


@pytest.mark.parametrize("images", [FEWEST, 100, 4096, 10**6])
def test_lists_follow_the_number_of_images(images):
    settings = ListSettings().checked(images)
    drawn, asked = settings.drawn(images)
    assert settings.count(images) <= len(drawn) <= images - len(asked)
    assert len(asked) >= 2


def test_lists_need_vectors_and_their_own_feature(model32, tiny_settings, plain_copy):
    with pytest.raises(InputError, match=r"--approximate clip is of vectors .* add --features clip"):
        run(build(plain_copy, model32, tiny_settings, LISTS))
    with pytest.raises(InputError, match="no approximate search of 'clip-abc'; accepted are clip, clip-text, dino"):
        run(build(plain_copy, model32, tiny_settings, replace(LISTS, approximate=("clip-abc",))))


def test_without_faiss_lists_are_searched_but_not_made(model32, tiny_settings, clip_folder, many, query, monkeypatch):
    monkeypatch.setitem(sys.modules, "faiss", None)
    with pytest.raises(InputError, match=r'--approximate needs FAISS, .* pip install "faiss-cpu>=1.9" does that'):
        run(build(clip_folder, model32, tiny_settings, LISTS))
    with pytest.raises(InputError, match="FAISS"):
        faiss()
    assert answers(model32, many, query).search.how == "approximate"


def test_a_build_prints_what_a_search_is_worth(capsys, tiny_folder, pictures, tmp_path):
    clip = str(tiny_clip(tmp_path / "clip", make_tiny_tokenizer()))
    arguments = ("--pretrained_model_name_or_path", str(tiny_folder), "--train_data_dir", str(pictures))
    arguments += ("--timesteps", "2", "--fisher_samples", "8", "--out", str(tmp_path / "index"))
    arguments += ("--features", "clip", "--feature_weights", "clip", clip)
    assert main(["index", *arguments, "--approximate", "clip", "--approximate_lists", "4"]) == 0
    told = capsys.readouterr().err
    assert "approximate search of clip: the nearest" in told
    assert "of 4 lists are looked at" in told
    assert main(["index", *arguments, "--approximate", "clip", "--approximate_lists", "5"]) == 2
    assert "lists = 4, now it is 5" in capsys.readouterr().err


def test_simulated_vectors_are_as_near_as_is_said():
    vectors = unit(clustered(400, 512, 1, topics=4))
    assert (vectors[:, 0] * vectors[:, 1]).sum(1).mean() == pytest.approx(0.95, abs=0.03)
    assert np.median(vectors[:, 0] @ vectors[:, 0].T) == pytest.approx(0.3, abs=0.1)
