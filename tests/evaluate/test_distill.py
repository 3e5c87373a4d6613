"""The networks of `fast`: what they learn from, that they learn it, and that they answer as a plain loop does."""

import json
import math
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import random_picture

from attribution.cli import main
from attribution.errors import InputError, WeightsUnavailable
from attribution.evaluate.agreement import average_precision
from attribution.evaluate.distill import (
    Chosen,
    Group,
    TrainSettings,
    begin,
    check_training,
    choose,
    compared_rows,
    cosines_of,
    group_of,
    learn,
    own_group,
    placed_by,
    precisions,
    rank_cross_entropy,
    rank_shares,
    train,
    vectors_of,
)
from attribution.evaluate.distilled import judge
from attribution.evaluate.lessons import (
    BASES,
    Lesson,
    LessonSettings,
    ask,
    check_lessons,
    fitted,
    lessons_in,
    names_of,
    question,
    read_lessons,
)
from attribution.index.added import add_joined
from attribution.index.features import open_feature
from attribution.index.index import Index
from attribution.index.manifest import Manifest
from attribution.index.towers import Towers
from attribution.index.verify import verify
from attribution.methods import attribute
from attribution.methods.answer import AttributeSettings, Attribution
from attribution.query.query import Query

FEW = LessonSettings(queries=4, held_out=2, quick=3, relevant=3, pool=6, held_pool=8)
QUICK = TrainSettings(hidden=8, steps=20, every=10, folds=2)
FLAGS = ("--queries", "2", "--held_out", "2", "--quick", "1", "--relevant", "3", "--train_steps", "20")
FLAGS += ("--train_every", "10", "--train_folds", "2", "--train_hidden", "8")


@pytest.fixture(scope="module")
def asked(model32, full_index, tmp_path_factory):
    """A folder of pictures that were all asked about."""
    folder = tmp_path_factory.mktemp("distill") / "work"
    for _ in ask(lessons_in(folder, full_index, FEW), model32, full_index, FEW):
        pass
    return folder


@pytest.fixture
def held(asked, full_index):
    """The lessons of that folder, by kind."""
    queue = lessons_in(asked, full_index, FEW)
    return {kind: read_lessons(queue, names) for kind, names in names_of(full_index, FEW).items()}


@pytest.fixture
def copied(full_folder, tmp_path):
    """A copy of the index that holds everything, which a test may change; its networks lie beside it."""
    return Path(shutil.copytree(full_folder, full_folder.parent / f"distilled-{tmp_path.name}"))


# The loss


def test_shares_fall_with_the_rank_by_hand():
    shares = rank_shares(torch.tensor([[7, 2]]), torch.tensor([2, 5, 7]), decay=1.0)
    first = 1 / (1 + math.exp(-1))
    torch.testing.assert_close(shares, torch.tensor([[1 - first, 0.0, first]]))


def test_the_rank_cross_entropy_by_hand():
    cosines, shares = torch.tensor([[0.5, 0.1, -0.3]]), torch.tensor([[0.75, 0.25, 0.0]])
    powers = [math.exp(each / 0.2) for each in (0.5, 0.1, -0.3)]
    expected = -(0.75 * math.log(powers[0] / sum(powers)) + 0.25 * math.log(powers[1] / sum(powers)))
    assert float(rank_cross_entropy(cosines, shares, 0.2)) == pytest.approx(expected, rel=1e-6)


def test_of_many_images_those_that_are_wanted_are_always_compared(monkeypatch):
    monkeypatch.setattr("attribution.evaluate.distill.ALL", 5)
    wanted, generator = torch.tensor([[90, 3], [41, 3]]), torch.Generator().manual_seed(0)
    rows = compared_rows(wanted, 100, generator)
    assert {3, 41, 90} <= set(rows.tolist())
    assert rows.tolist() == sorted(set(rows.tolist()))
    assert 3 < len(rows) <= 8
    assert compared_rows(wanted, 5, generator).tolist() == list(range(5))
    shares = rank_shares(wanted, rows, 1.0)
    assert shares[0, rows.tolist().index(90)] > shares[0, rows.tolist().index(3)] > 0
    torch.testing.assert_close(shares.sum(1), torch.ones(2))


def world(images=60, queries=24, seed=0):
    """Queries that want the images whose first two numbers are near theirs; the others mislead."""
    generator = torch.Generator().manual_seed(seed)
    vectors = torch.randn(images, 2, 6, generator=generator)
    vectors[:, 1] = vectors[:, 0] + 0.01 * torch.randn(images, 6, generator=generator)
    asked = torch.randn(queries, 6, generator=generator)
    near = torch.nn.functional.normalize(asked[:, :2]) @ torch.nn.functional.normalize(vectors[:, 0, :2]).T
    wanted = near.argsort(1, descending=True)[:, :8]
    group = Group(asked, wanted, torch.full((queries,), -1))
    seen = [dict(zip(BASES, (own[:4].numpy(), own[4:].numpy()), strict=True)) for own in asked]
    return vectors, group, [Lesson(own, rows.numpy(), {}, False) for own, rows in zip(seen, wanted, strict=True)]


def test_training_lowers_the_loss_and_finds_more_for_queries_that_it_never_saw():
    images, group, lessons = world(200, 120)
    seen, new = group.some(torch.arange(100)), torch.arange(100, 120)
    settings, rows = TrainSettings(hidden=16, steps=300), torch.arange(200)

    def loss(towers):
        cosines = torch.from_numpy(placed_by(towers, images, seen.asked))
        return float(rank_cross_entropy(cosines, rank_shares(seen.wanted, rows, settings.decay), settings.temperature))

    def found(towers):
        return precisions(placed_by(towers, images, group.asked[new]), lessons[100:], 8).mean()

    before = Towers(begin(images, settings), {})
    *_, after = train(images, [seen], 300, settings)
    assert loss(after) < loss(before) - 0.3
    assert found(after) > found(before) + 0.15


def test_networks_begin_as_plain_cosines_of_the_standardised_features():
    images, group, _ = world()
    towers = Towers(begin(images, QUICK), {})
    flat = images.flatten(0, 1).double()
    mean, scale = flat.mean(0), flat.std(0)
    standard, asked = (images.double() - mean) / scale, (group.asked.double() - mean) / scale
    expected = [[max(float(q @ v / q.norm() / v.norm()) for v in views) for views in standard] for q in asked]
    np.testing.assert_allclose(placed_by(towers, images, group.asked), expected, atol=1e-5)


def test_the_same_seed_trains_the_same_networks():
    images, group, _ = world()
    one, other = ([*train(images, [group], 5, QUICK)][-1] for _ in range(2))
    for name, value in one.weights.items():
        torch.testing.assert_close(value, other.weights[name], rtol=0, atol=0)


def test_nothing_is_learned_from_pictures_left_out():
    images, _, lessons = world()
    *_, chosen = choose(images, lessons, [], [], 8, replace(QUICK, steps=30))
    assert isinstance(chosen, Chosen)
    assert chosen.steps in (10, 20, 30)
    shuffled = [replace(each, rows=np.random.default_rng(7).permutation(60)[:8]) for each in lessons]
    *_, blind = choose(images, shuffled, [], [], 8, replace(QUICK, steps=30))
    assert blind.value < chosen.value


def test_precisions_are_those_of_a_plain_sort():
    scores = np.random.default_rng(0).normal(size=(3, 20)).astype(np.float32)
    lessons = [Lesson({}, np.array(rows), {}, False) for rows in ([4, 9, 1, 2], [0, 19, 5, 7], [3, 2, 1, 0])]
    for own, lesson, value in zip(scores, lessons, precisions(scores, lessons, 3), strict=True):
        order = sorted(range(20), key=lambda row: -own[row])
        ranks = np.array([order.index(row) + 1 for row in lesson.rows[:3]])
        assert value == pytest.approx(average_precision(ranks))


# What is learned from


def test_pictures_are_ranked_by_kind(held, full_index):
    assert {kind: len(each) for kind, each in held.items()} == {"quick": 3, "held": 2, "query": 4}
    for lesson in [*held["query"], *held["quick"]]:
        assert len(set(lesson.rows.tolist())) == 3
        assert not lesson.ranked
    assert [lesson.boxed for lesson in held["query"]] == [False, True, False, True]
    assert all(lesson.boxed for lesson in held["quick"])
    for lesson in held["held"]:
        assert sorted(lesson.rows.tolist()) == list(range(8))
        assert set(lesson.ranked) == {"dino", "clip", "clip-text", "d-trak", "random"}


def test_an_index_with_influence_plus_alone_has_lessons_but_no_quick_ones(model32, full_folder, tmp_path):
    folder = Path(shutil.copytree(full_folder, full_folder.parent / f"lessons-{tmp_path.name}"))
    Manifest.read(folder).lacking("gradients/d-trak").write(folder)
    index, few = Index.open(folder), replace(FEW, queries=1, held_out=1, held_pool=7)
    queue = lessons_in(tmp_path / "work", index, few)
    *_, last = ask(queue, model32, index, few)
    assert (last.kind, last.done) == ("query", 1)
    names = names_of(index, few)
    assert {kind: len(each) for kind, each in names.items()} == {"quick": 0, "held": 1, "query": 1}
    (lesson,), (held_out,) = (read_lessons(queue, names[kind]) for kind in ("query", "held"))
    assert len(set(lesson.rows.tolist())) == 3
    assert set(held_out.ranked) == {"dino", "clip", "clip-text", "random"}
    shutil.rmtree(folder)


def test_a_held_out_ranking_is_the_exhaustive_one(held, model32, full_index):
    query = question(model32, full_index, FEW.seed + 1, 0)
    *_, found = attribute(model32, full_index, query, AttributeSettings("ensemble", exhaustive=True))
    assert tuple(held["held"][0].rows.tolist()) == found.rows


def test_a_killed_run_goes_on_where_it_was(asked, model32, full_index, tmp_path):
    queue, fewer = lessons_in(tmp_path / "work", full_index, FEW), replace(FEW, queries=1, held_out=1)
    steps = ask(queue, model32, full_index, fewer)
    for step in steps:
        if step.kind == "quick" and step.done == 2:
            break
    steps.close()
    times = {path: path.stat().st_mtime_ns for path in (tmp_path / "work").glob("*.npz")}
    assert len(times) == 2
    *_, last = ask(queue, model32, full_index, fewer)
    assert (last.kind, last.done, last.count) == ("query", 1, 1)
    assert {path: path.stat().st_mtime_ns for path in times} == times
    for path in (made := sorted((tmp_path / "work").glob("*.npz"))):
        one, other = (np.load(each) for each in (path, asked / path.name))
        assert set(one.files) == set(other.files)
        for name in one.files:
            np.testing.assert_array_equal(one[name], other[name])
    assert len(made) == 5


def test_questions_differ_by_seed_and_number(model32, full_index):
    made = [question(model32, full_index, *each) for each in ((1507, 0), (1508, 0), (1507, 2))]
    assert len({(each.prompt, each.seed) for each in made}) == 3
    boxed = question(model32, full_index, 1507, 1)
    ((left, top, right, bottom),) = boxed.boxes
    assert 0 <= left < right <= boxed.image.width
    assert 0 <= top < bottom <= boxed.image.height


def test_training_images_rank_one_another_by_a_plain_loop(full_index):
    images = vectors_of(full_index, BASES)
    group = own_group(full_index, images, 3, 0)
    phi = full_index.array("gradients/d-trak")[0, :, 0].astype(np.float64)
    gram = phi.T @ phi
    gram += full_index.gradients("d-trak").damping * gram.trace() / len(gram) * np.eye(len(gram))
    scores = phi @ np.linalg.solve(gram, phi.T)
    assert sorted(group.own.tolist()) == list(range(8))
    for row, wanted, seen in zip(group.own.tolist(), group.wanted.tolist(), group.asked, strict=True):
        expected = sorted((each for each in range(8) if each != row), key=lambda each: -scores[each, row])
        assert wanted == expected[:3]
        torch.testing.assert_close(seen, images[row, 0])


def test_pools_and_k_fit_a_small_training_set(full_index):
    small = fitted(full_index, LessonSettings())
    assert (small.pool, small.held_pool, small.relevant) == (8, 8, 8)
    assert fitted(full_index, LessonSettings(pool=99)).pool == 99  # asked for: refused, not changed


@pytest.mark.parametrize(
    ("changed", "told"),
    [
        ({"queries": 0}, "queries = 0 is not possible; accepted are whole numbers from 2"),
        ({"held_out": 0}, "held_out = 0"),
        ({"quick": -1}, "quick = -1"),
        ({"relevant": 7}, "pool = 6 is not possible; accepted are 7 to 8"),
        ({"pool": 9}, "pool = 9"),
        ({"held_pool": 2}, "held_pool = 2"),
        ({"seed": -1}, "-1"),
    ],
)
def test_lessons_that_teach_nothing_are_refused(full_index, changed, told):
    with pytest.raises(InputError, match=told):
        check_lessons(full_index, replace(FEW, **changed))


@pytest.mark.parametrize(
    "changed",
    [
        {"hidden": 0},
        {"rate": 0.0},
        {"temperature": 0.0},
        {"decay": -1.0},
        {"penalty": -1.0},
        {"every": 0},
        {"steps": 5},
        {"folds": 1},
        {"folds": 5},
    ],
)
def test_training_that_is_not_possible_is_refused(changed):
    check_training(QUICK, 4)
    with pytest.raises(InputError, match=f"{next(iter(changed))} = "):
        check_training(replace(QUICK, **changed), 4)


# The index and the method


@pytest.fixture
def towers(held, full_index):
    *_, made = learn(full_index, held["query"], held["quick"], 3, QUICK)
    return made


def test_what_is_added_is_what_a_plain_loop_places_and_the_id_stays(towers, copied, model32):
    index = Index.open(copied)
    replace(towers, told={"from": "here"}).write(copied / "fast.safetensors")
    for _ in add_joined(index, model32, "fast", copied / "fast.safetensors"):
        pass
    added = Index.open(copied)
    assert added.id == index.id
    record = added.manifest.steps["features/fast"].made
    assert (record.weights, json.loads(record.distilled)) == ("fast.safetensors", {"from": "here"})
    held = added.array("features/fast")
    assert held.shape[:2] == (8, 2)
    weights = {name: value.double().detach().numpy() for name, value in towers.weights.items()}
    for row in range(8):
        for view in range(2):
            parts = [added.array("features/dino")[row, view], added.array("features/clip-text")[row, 0]]
            np.testing.assert_allclose(held[row, view], placed(weights, "images", np.concatenate(parts)), atol=5e-3)
    assert not [damage for part in verify(copied) for damage in part.damage]


def placed(weights, side, vector):
    """One vector, placed by hand."""
    mean, scale, direct, inner, bias, outer = (
        weights[f"{side}.{part}"] for part in ("mean", "scale", "direct", "inner", "bias", "outer")
    )
    standard = (vector.astype(np.float64) - mean) / scale
    return direct @ standard + outer @ np.maximum(inner @ standard + bias, 0)


@pytest.mark.parametrize("boxes", [(), ((0.0, 0.0, 16.0, 32.0),)])
def test_an_answer_is_the_cosine_by_a_plain_loop(towers, copied, model32, boxes):
    towers.write(copied / "fast.safetensors")
    for _ in add_joined(Index.open(copied), model32, "fast", copied / "fast.safetensors"):
        pass
    index = Index.open(copied)
    query = Query("a red bird and a blue key", random_picture(99), boxes=boxes)
    *_, found = attribute(model32, index, query, AttributeSettings("fast", top_k=8))
    assert isinstance(found, Attribution)
    picture = query.image.crop((0, 0, 32, 32)) if not boxes else None
    dino = open_feature("dino", index.feature_weights("dino"))
    text = open_feature("clip-text", index.feature_weights("clip-text"))([query.prompt])[0].numpy()
    if picture is None:
        from attribution.query.regions import crop

        picture = crop(query.image, boxes)
    weights = {name: value.double().detach().numpy() for name, value in towers.weights.items()}
    one = placed(weights, "queries", np.concatenate([dino([picture])[0].numpy(), text]))
    vectors = index.array("features/fast").astype(np.float64)
    expected = ((vectors @ one) / np.linalg.norm(vectors, axis=2) / np.linalg.norm(one)).max(1)
    for result in found.results:
        assert result.score == pytest.approx(expected[result.row], abs=1e-5)


def test_a_file_of_something_else_is_refused(full_index, tmp_path):
    path = tmp_path / "other.safetensors"
    path.write_bytes(b"nothing")
    for each in (path, tmp_path / "missing.safetensors", Path(full_index.feature_weights("clip-abc"))):
        with pytest.raises(WeightsUnavailable, match="holds no networks of `fast`"):
            Towers.read(str(each))


def test_rivals_are_judged_by_their_rankings(held, full_index, towers):
    images, lessons = vectors_of(full_index, BASES), held["held"]
    found = judge(towers, images, group_of(lessons, BASES).asked, lessons, 3).precisions
    assert set(found) == {"fast", "concatenation", "dino", "clip", "clip-text", "d-trak", "random"}
    for number, lesson in enumerate(lessons):
        order = lesson.ranked["dino"].tolist()
        ranks = np.array([order.index(row) + 1 for row in lesson.rows[:3]])
        assert found["dino"][number] == pytest.approx(average_precision(ranks))
    widths = [len(vector) for vector in lessons[0].seen.values()]
    parts = images.double().split(widths, -1)
    asked = [torch.from_numpy(lessons[0].seen[base]).double() for base in BASES]
    means = sum(torch.cosine_similarity(part, own, dim=-1) for part, own in zip(parts, asked, strict=True)).amax(1)
    expected = precisions(means[None].numpy(), lessons[:1], 3)[0]
    assert found["concatenation"][0] == pytest.approx(expected)


def test_cosines_take_the_better_view():
    images = torch.tensor([[[1.0, 0.0], [0.0, 2.0]]])
    assert cosines_of(images, torch.tensor([[0.0, 3.0]])) == pytest.approx(np.array([[1.0]]))


# The command


def test_the_command_teaches_adds_and_answers(copied, tmp_path, capsys):
    work = tmp_path / "work"
    assert main(["distill", "--folder", str(work), "--index", str(copied), "--add", *FLAGS]) == 0
    told = capsys.readouterr()
    assert "| fast |" in told.out
    assert "2 pictures were held out; `fast`" in told.out
    assert "pictures held out: 1 of 2" in told.err
    assert "left" in told.err
    assert (work / "fast.safetensors").read_bytes() == (copied / "fast.safetensors").read_bytes()
    made = json.loads(Index.open(copied).manifest.steps["features/fast"].made.distilled)
    assert (made["method"], made["lessons"]["queries"], made["index"]) == ("ensemble", 2, Index.open(copied).id)
    random_picture(99).save(tmp_path / "picture.png")
    asked = ["--prompt", "a key", "--image", str(tmp_path / "picture.png"), "--method", "fast"]
    assert main(["attribute", "--index", str(copied), *asked]) == 0
    assert main(["distill", "--folder", str(work), "--index", str(copied), "--add", *FLAGS]) == 0  # again: replaced


def test_bad_input_is_one_line(refused, full_folder, tmp_path, asked):
    work = ("--folder", str(tmp_path / "work"))
    assert "holds no features/dino" in refused("distill", *work)
    assert "queries = 0" in refused("distill", *work, "--queries", "0", index=full_folder)
    told = refused("distill", *work, "--relevant", "6", "--pool", "4", index=full_folder)
    assert "pool = 4 is not possible; accepted are 6 to 8" in told
    told = refused("distill", "--folder", str(asked), *FLAGS, "--seed", "3", "--pool", "6", index=full_folder)
    assert "seed" in told
    assert not (tmp_path / "work").exists()
