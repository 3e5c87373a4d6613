"""Customised models: candidates that are an ordinary index, rankings in a queue, and tables by hand."""

import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from attribution.cli import main
from attribution.diffusion.custom import Custom, customise_with
from attribution.diffusion.overlaid import open_model
from attribution.errors import InputError
from attribution.evaluate import retrieval
from attribution.evaluate.candidates import exemplar_rows, make_candidates, sampled, settings_for
from attribution.evaluate.customised import Case, Cases, RetrievalSettings, check_settings, concepts, own_cases
from attribution.evaluate.lds import JUDGED
from attribution.evaluate.queue import open_queue
from attribution.evaluate.retrieval import Job, found, jobs_of, left, rankings, run_all, table
from attribution.index.index import Index
from attribution.methods import METHODS
from attribution.scenes.customise import CROPS, DRESSED, TOKEN, CustomiseSettings
from attribution.scenes.looks import LOOKS
from attribution.scenes.names import UNSEEN
from attribution.unlearning.score import losses_of
from attribution.unlearning.step import STEP_SIZES

TRAINING = CustomiseSettings(steps=3, batch=2, remembered=1, learning_rate=0.05)
SETTINGS = RetrievalSettings(2, 2, 5, ("dino", "unlearning"), k=3, training=TRAINING)
OBJECT, STYLE = f"object-{UNSEEN[-1]}", f"style-{next(iter(LOOKS))}"
FLAGS = (
    *("--models", "2", "--pictures", "2", "--scenes", "5", "--k", "3", "--methods", "dino", "unlearning"),
    *("--customise_steps", "3", "--customise_batch", "2", "--customise_remembered", "1"),
    *("--customise_learning_rate", "0.05"),
)

pytestmark = pytest.mark.usefixtures("few_gradients")


def run(folder, index, settings=SETTINGS):
    cases = own_cases(folder, index.id, settings)
    return run_all(folder, index, cases, settings), cases


def ranks(folder):
    held = {path.name: np.load(path)["ranks"].tolist() for path in (folder / "rankings").glob("*.npz")}
    assert not list(folder.rglob("*.claim"))
    return held


@pytest.fixture(scope="module")
def done(tmp_path_factory, full_index, few_gradients):
    """A folder with two models and all that two methods say of them."""
    folder = tmp_path_factory.mktemp("retrieval")
    steps, _ = run(folder, full_index)
    for _ in steps:
        pass
    return folder


# The candidates


def test_candidates_are_a_sample_and_the_exemplars(done, full_index):
    for name, exemplars in ((OBJECT, CROPS), (STYLE, DRESSED)):
        candidates, case = (
            Index.open(done / "candidates" / name / "index"),
            own_cases(done, full_index.id, SETTINGS).load(name),
        )
        assert len(candidates) == 5 + exemplars
        assert exemplar_rows(candidates) == list(range(5, 5 + exemplars))
        rows = sampled(full_index, 5)
        assert candidates.captions == [*(full_index.captions[row] for row in rows), *case.captions]
        for feature in ("dino", "clip", "clip-text"):
            held, had = (each.array(f"features/{feature}") for each in (candidates, full_index))
            np.testing.assert_allclose(held[:5], had[rows], atol=1e-3)
        np.testing.assert_allclose(candidates.latents[:5], full_index.latents[rows], atol=2e-3)


def test_base_losses_are_the_customised_models_and_the_fisher_information_is_not(done, full_index, model32):
    candidates = Index.open(done / "candidates" / OBJECT / "index")
    case = own_cases(done, full_index.id, SETTINGS).load(OBJECT)
    model = customise_with(open_model(full_index.model_files), case.custom)
    candidates.check(model)
    measured = losses_of(model, candidates.encoded, candidates.bank(model), range(len(candidates)))
    np.testing.assert_allclose(candidates.base_losses, measured.cpu(), rtol=1e-4)
    rows = sampled(full_index, 5)
    assert not np.allclose(candidates.base_losses[:5], full_index.base_losses[rows], rtol=1e-3)
    for part in ("fisher", "ekfac"):
        file = f"{part}.safetensors"
        assert (candidates.path / file).read_bytes() == (full_index.path / file).read_bytes()


def test_the_step_is_that_of_the_whole_training_set(done, full_index):
    candidates = Index.open(done / "candidates" / OBJECT / "index")
    for method in ("unlearning", "unlearning+"):
        asked = settings_for(method, full_index, candidates, 64)
        assert asked.exhaustive
        if METHODS[method].rise is not None:  # of the query's own loss, whatever N is
            assert (asked.unlearn.step_size, asked.unlearn.rise) == (None, None)
            continue
        alpha = STEP_SIZES[METHODS[method].curvature]
        assert asked.unlearn.step_size / len(candidates) == pytest.approx(alpha / (len(full_index) + CROPS))
    assert settings_for("dino", full_index, candidates, 64).unlearn.step_size is None


def test_training_pictures_that_are_gone_are_not_replaced_by_thumbnails(done, full_index, tmp_path, monkeypatch):
    case = own_cases(done, full_index.id, SETTINGS).load(OBJECT)
    model = customise_with(open_model(full_index.model_files), case.custom)
    monkeypatch.setattr("attribution.evaluate.candidates.THUMBNAIL_SIDE", 32)
    monkeypatch.setattr(type(model), "resolution", 64)
    with pytest.raises(InputError, match="only a thumbnail is there; put the training pictures back"):
        next(make_candidates(tmp_path, model, full_index, case, 5, 6))


def test_prompts_without_the_new_word_are_whole_texts():
    prompts = (f"a {TOKEN} drawing of a key", f"a drawing of a {TOKEN}")
    case = Case("x", "style", (), (), (), prompts, Custom({TOKEN: torch.zeros(1)}, {}))
    assert case.asked(True) == list(prompts)
    assert case.asked(False) == ["a drawing of a key", "a drawing of a"]


# The queue


def test_every_model_and_method_is_ranked_once(done, full_index, monkeypatch):
    jobs = {f"{job.name}.npz" for job in jobs_of(own_cases(done, full_index.id, SETTINGS), SETTINGS)}
    held = ranks(done)
    assert held.keys() == jobs
    assert len(jobs) == 2 * 2 * 2
    for name, each in held.items():
        exemplars = CROPS if name.startswith("object") else DRESSED
        for one in each:
            assert len(set(one)) == exemplars
            assert set(one) <= set(range(1, 6 + exemplars))
    for wording in ("with", "without"):  # what looks at pictures alone does not mind
        assert held[f"{OBJECT}-dino-{wording}.npz"] == held[f"{OBJECT}-dino-with.npz"]
    monkeypatch.setattr(retrieval, "attribute", lambda *_: pytest.fail("it was done again"))
    steps, _ = run(done, full_index)
    assert list(steps) == []


def test_stopped_at_any_step_it_goes_on_and_ends_alike(done, full_index, tmp_path):
    """Ended after each of a few steps, as a kill ends it, until all is done."""
    for _ in range(200):
        steps, _ = run(tmp_path, full_index)
        taken = [step for step, _ in zip(steps, range(9), strict=False)]
        steps.close()
        if not taken:
            break
    assert ranks(tmp_path) == ranks(done)


def test_every_judged_method_can_answer(done, full_index, tmp_path):
    folder, settings = Path(shutil.copytree(done, tmp_path / "copy")), replace(SETTINGS, methods=JUDGED)
    steps, cases = run(folder, full_index, settings)
    for _ in steps:
        pass
    every = found(rankings(folder, cases, settings), cases, settings)
    assert {(each.method, each.worded) for each in every} == {(m, w) for m in JUDGED for w in (True, False)}
    assert all(0 <= value <= 1 for each in every for value in (*each.recall.values(), *each.precision.values()))


def test_work_of_other_settings_is_refused(done, full_index):
    other = replace(SETTINGS, scenes=4)
    with pytest.raises(InputError, match="scenes = 5, now it is 4"):
        list(run(done, full_index, other)[0])
    with pytest.raises(InputError, match="scenes = 5, now it is 4"):
        rankings(done, own_cases(done, full_index.id, other), other)
    with pytest.raises(InputError, match=r"'steps': 3.*now it is.*'steps': 4"):
        list(run(done, full_index, replace(SETTINGS, training=replace(TRAINING, steps=4)))[0])


# The tables


@pytest.fixture
def by_hand(tmp_path):
    """Three models of two pictures, each made of two exemplars."""
    cases = Cases({"a": "object", "b": "object", "c": "style"}, {}, lambda _: True, lambda _: pytest.fail("loaded"))
    settings = RetrievalSettings(methods=("dino", "clip"), k=2, scenes=5)
    queue = open_queue(tmp_path / "rankings", {"scenes": 5})

    def keep(case, method, worded, *each):
        queue.keep(Job(case, method, worded).name, {"ranks": np.array(each), "seconds": np.array(3600.0)})

    keep("a", "dino", True, [1, 2], [2, 1])
    keep("b", "dino", True, [1, 4], [2, 3])
    keep("c", "dino", True, [0, 5], [3, 4])
    keep("a", "clip", True, [1, 2], [3, 4])
    return queue, cases, settings


def test_recall_and_precision_of_models_by_hand(by_hand):
    """Model b: AP of ranks 1, 4 is (1 + 2/4) / 2 = 0.75, of 2, 3 is (1/2 + 2/3) / 2."""
    dino, clip = found(*by_hand)
    assert (dino.method, clip.method) == ("dino", "clip")
    assert dino.recall == {"a": 1, "b": 0.5, "c": 0}
    assert dino.precision["b"] == pytest.approx((0.75 + 7 / 12) / 2)
    assert dino.precision["c"] == pytest.approx((1 / 5 / 2 + (1 / 3 + 2 / 4) / 2) / 2)
    assert dino.of(by_hand[1], "object").tolist() == [1, 0.5]
    assert clip.recall == {"a": 0.5}


def test_a_table_has_means_and_errors_over_models(by_hand):
    queue, cases, settings = by_hand
    lines = table(found(*by_hand), cases, settings).splitlines()
    assert lines[0].startswith("| method | new word | models | Recall@2 | mAP |")
    assert lines[2].startswith("| dino | with | 3 | 0.500 ± 0.289 |")  # std 0.5 / sqrt 3
    assert "| 0.750 ± 0.250 | 0.000 |" in lines[2]
    assert lines[3].startswith("| clip | with | 1 | 0.500 |")
    told = left(queue, cases, settings)
    assert told == (
        "4 of 12 rankings are done, among 5 scenes and the exemplars; to do: dino 3, clip 5, 8.0 hours at the pace so"
        " far. Add --compute to do it."
    )


def test_all_done_is_said(by_hand):
    queue, cases, settings = by_hand
    settings = replace(settings, methods=("dino",))
    for case in cases.kinds:
        queue.keep(Job(case, "dino", False).name, {"ranks": np.array([[1, 2]]), "seconds": np.array(1.0)})
    assert left(queue, cases, settings) == "6 of 6 rankings are done, among 5 scenes and the exemplars."


# Settings, and the command


@pytest.mark.parametrize(
    ("changed", "told"),
    [
        ({"models": 3}, "models = 3"),
        ({"models": 0}, "models = 0 is not possible; accepted are even numbers from 2"),
        ({"pictures": 0}, "pictures = 0"),
        ({"scenes": 9}, "scenes = 9 is not possible; accepted are 1 to 8, the training images"),
        ({"k": 6}, "k = 6 is not possible; accepted are 1 to 5, the scenes"),
        ({"batch": 0}, "batch = 0"),
        ({"training": replace(TRAINING, steps=0)}, "customise_steps = 0"),
        ({"training": replace(TRAINING, remembered=0)}, "customise_remembered = 0"),
        ({"methods": ("dino", "magic")}, "there is no method 'magic'"),
    ],
)
def test_settings_that_cannot_be_are_refused(changed, told):
    with pytest.raises(InputError, match=told):
        check_settings(replace(SETTINGS, **changed), 8)
    check_settings(SETTINGS, 8)


def test_objects_are_those_that_the_mappers_did_not_see():
    names = list(concepts(RetrievalSettings()))
    assert names[:10] == [f"object-{name}" for name in reversed(UNSEEN[-10:])]
    assert len(set(names)) == 20
    assert list(concepts(RetrievalSettings(4))) == [*names[:2], *names[10:12]]


def test_more_models_than_there_are_looks_are_refused(tmp_path):
    with pytest.raises(InputError, match="models = 22 is not possible; accepted are even numbers from 2 to 20"):
        own_cases(tmp_path, "an index", RetrievalSettings(22))


def test_an_index_that_lacks_what_a_method_needs_is_refused_before_any_work(index32, tmp_path):
    steps, _ = run(tmp_path, index32)
    with pytest.raises(InputError, match="holds no features/dino"):
        next(steps)
    assert not list(tmp_path.iterdir())


def test_the_command_prints_what_is_done_and_does_nothing(done, full_index, capsys):
    assert main(["evaluate", "retrieval", "--folder", str(done), "--index", str(full_index.path), *FLAGS]) == 0
    printed = capsys.readouterr().out
    assert "| unlearning | without | 2 |" in printed
    assert "8 of 8 rankings are done, among 5 scenes and the exemplars." in printed


def test_the_command_prints_what_there_is_to_do(tmp_path, full_index, capsys):
    folder = tmp_path / "new"
    assert main(["evaluate", "retrieval", "--folder", str(folder), "--index", str(full_index.path), *FLAGS]) == 0
    printed = capsys.readouterr().out
    assert "0 of 8 rankings are done" in printed
    assert "to do: dino 4, unlearning 4. Add --compute to do it." in printed
    assert not folder.exists()


def test_the_command_refuses_in_one_line(done, full_index, refused):
    command = ("evaluate", "retrieval", "--folder", str(done), *FLAGS)
    for flags, told in (
        (("--k", "6"), "k = 6"),
        (("--scenes", "4"), "scenes = 5, now it is 4"),
        (("--methods", "magic"), "there is no method 'magic'"),
        (("--benchmark", str(done)), "could not be read"),
    ):
        assert told in refused(*command, *flags, index=full_index.path)
