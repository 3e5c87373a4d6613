"""An index whose training set was changed: what stayed is kept, what is new is made, and until then it is as it was."""

import json
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from conftest import ALL_GRADIENTS, CAPTIONS, build_all, random_picture, save_tiny_pipeline
from safetensors.torch import load_file

from attribution.cli import main
from attribution.diffusion.noise import NoiseSettings
from attribution.diffusion.pipeline import Model
from attribution.errors import IndexMismatch, InputError
from attribution.index import plan as planning
from attribution.index.build import build
from attribution.index.index import Index
from attribution.index.manifest import GradientRecord, Manifest
from attribution.index.plan import LOOKED_AT, QUERIES
from attribution.index.plan_update import KEPT, plan_update
from attribution.index.texts import packed_texts
from attribution.index.update import update
from attribution.index.verify import verify
from attribution.index.work import BuildSettings, ExtendSettings
from attribution.methods import METHODS, attribute, fitting
from attribution.methods.answer import AttributeSettings
from attribution.unlearning.projection import GradientSettings
from attribution.unlearning.step import UnlearnSettings

# What is in the folder now, by name: a picture's seed and its text. Of the eight, 4 and 6 are gone, 5 has another text.
NOW = {
    "z0.png": (0, CAPTIONS[0]),
    "new-1.png": (51, "a green bird"),
    "p7.png": (7, CAPTIONS[7]),
    "p2.png": (2, CAPTIONS[2]),
    "p5.png": (5, "a key on a red ground"),
    "p1.png": (1, CAPTIONS[1]),
    "new-2.png": (52, "two blue keys"),
    "p3.png": (3, CAPTIONS[3]),
    "new-3.png": (53, "an apple on a bus"),
}
WHITENED = ("influence", "influence+")  # by Fisher information, and by EK-FAC
STAYED = {0: 0, 2: 7, 3: 2, 5: 1, 7: 3}  # rows now, and then


def files_of(folder):
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def run(steps):
    for _ in steps:
        pass


def save_pictures(folder, rows):
    folder.mkdir()
    for name, (seed, _) in rows.items():
        random_picture(seed).save(folder / name)
    told = [{"file_name": name, "text": text} for name, (_, text) in rows.items()]
    (folder / "metadata.jsonl").write_text("".join(json.dumps(each) + "\n" for each in told))
    return folder


@pytest.fixture(scope="module")
def now(tiny_settings, tmp_path_factory):
    """How an index of the changed folder is built."""
    folder = save_pictures(tmp_path_factory.mktemp("now") / "pictures", NOW)
    return replace(tiny_settings, data=replace(tiny_settings.data, train_data_dir=folder))


@pytest.fixture(scope="module")
def more(full_folder):
    """What the index that holds everything was asked for."""
    made = Manifest.read(full_folder).steps
    base = full_folder.parent
    weights = {n.partition("/")[2]: base / Path(s.made.weights).name for n, s in made.items() if n[:9] == "features/"}
    return ExtendSettings(
        fisher_all=True,
        ekfac=True,
        features=tuple(weights),
        feature_weights={name: str(path) for name, path in weights.items()},
        gradients=ALL_GRADIENTS,
        projection=GradientSettings(dimension=64),
    )


@pytest.fixture(scope="module")
def fresh(model32, now, more, full_folder):
    """An index of the changed folder that was built from scratch."""
    out = full_folder.parent / "fresh"
    run(build(out, model32, now, more))
    return out


def copied(folder, name):
    return Path(shutil.copytree(folder, folder.parent / name))


@pytest.mark.exact_bits
def test_an_update_with_new_estimates_is_what_a_build_from_scratch_makes(model32, now, full_folder, fresh):
    out = copied(full_folder, "anew")
    run(update(out, model32, now, estimates="anew"))
    manifest, wanted = Manifest.read(out), Manifest.read(fresh)
    assert manifest.id == wanted.id
    assert manifest.steps == wanted.steps
    assert [damage for part in verify(out) for damage in part.damage] == []
    assert not (out / "latents.npy").exists()  # what the update replaced


@pytest.fixture(scope="module")
def calls(full_folder, model32, now):
    """An index that was updated, its estimates kept, and how often the networks were asked for it."""
    out, seen = copied(full_folder, "kept"), {"encoded": 0, "predicted": 0}
    encode, predict = model32.encode_images, model32.predict
    with pytest.MonkeyPatch.context() as patch:

        def encoding(pixels):
            seen["encoded"] += len(pixels)
            return encode(pixels)

        def predicting(noisy, *rest):
            seen["predicted"] += len(noisy)
            return predict(noisy, *rest)

        patch.setattr(model32, "encode_images", encoding)
        patch.setattr(model32, "predict", predicting)
        run(update(out, model32, now, estimates="kept"))
    return out, seen


def test_only_new_images_are_encoded_and_measured(calls, full_folder):
    out, seen = calls
    assert seen["encoded"] == 4 * 2
    losses, gradients = 6 * 8, 4 * 4 * 2 * 8  # a call of the losses holds three images and their mirrors
    assert seen["predicted"] <= 2 * losses + gradients
    for name in ("latents", "base_losses", "features/dino", *(f"gradients/{each}" for each in ALL_GRADIENTS)):
        before, after = np.load(full_folder / f"{name}.npy"), np.load(out / Manifest.read(out).folder / f"{name}.npy")
        before, after = (each[0] if name[:4] == "grad" else each for each in (before, after))
        assert len(after) == 9
        np.testing.assert_array_equal(after[list(STAYED)], before[list(STAYED.values())])


def test_what_was_kept_is_recorded_and_the_id_tells(calls, full_folder, fresh):
    out, _ = calls
    manifest, before = Manifest.read(out), Manifest.read(full_folder)
    assert len({manifest.id, before.id, Manifest.read(fresh).id}) == 3
    assert set(manifest.kept) == {"fisher", "fisher-all", "ekfac"}
    since = manifest.kept["fisher"]
    assert (since.count, since.sha256, since.added, since.gone) == (8, before.data.sha256, 4, 3)
    assert manifest.data == Manifest.read(fresh).data
    assert not [damage for part in verify(out) for damage in part.damage]
    for name in manifest.kept:
        old, new = (load_file(folder / f"{name}.safetensors") for folder in (full_folder, out / manifest.folder))
        assert all(old[key].equal(new[key]) for key in old)


@pytest.mark.exact_bits
@pytest.mark.parametrize("method", METHODS)
def test_every_method_answers_as_an_index_that_was_built_from_scratch(calls, fresh, model32, query, method):
    """With the same Fisher information; those gradients that are whitened by it are the updated index's."""
    out, _ = calls
    folder, manifest = fresh.parent / "fresh-kept", Manifest.read(out)
    if not folder.exists():
        shutil.copytree(fresh, folder)
        for name in manifest.kept:
            shutil.copyfile(out / manifest.folder / f"{name}.safetensors", folder / f"{name}.safetensors")
        for whitened in WHITENED:
            (folder / f"gradients/{whitened}.npy").unlink()
            Manifest.read(folder).lacking(f"gradients/{whitened}").write(folder)
        asked = ExtendSettings(gradients=WHITENED, projection=GradientSettings(dimension=64))
        run(build(folder, model32, now_of(Index.open(folder)), asked))
    few = AttributeSettings(top_k=9, unlearn=UnlearnSettings(timesteps=2, noises=1))
    found = []
    for index in (Index.open(out), Index.open(folder)):
        *_, answer = attribute(model32, index, query, fitting(few, method))
        found.append((answer.rows, answer.scores, answer.typical, [each.id for each in answer.results]))
    assert found[0] == found[1]
    assert set(found[0][0]) == set(range(9))


def now_of(index):
    """The settings that an index was built with."""
    own = index.manifest.settings
    return BuildSettings(own.data, own.noise, own.fisher, 6)


@pytest.mark.exact_bits
def test_signs_of_rows_that_stayed_are_of_the_estimates_that_were_kept_and_made_anew_with_new_ones(
    plain_copy, model32, now
):
    """In an index that has no other gradients, and no other estimates but the one that each has."""
    asked = ExtendSettings(ekfac=True, gradients=("influence+",), projection=GradientSettings(dimension=16))
    run(build(plain_copy, model32, now_of(Index.open(plain_copy)), asked))
    before, bases = (Index.open(plain_copy), load_file(plain_copy / "ekfac.safetensors"))
    kept, anew = (copied(plain_copy, f"{plain_copy.name}-{each}") for each in ("kept", "anew"))
    signs = np.array(before.array("gradients/influence+")[0])
    found = {}
    for out, estimates in ((kept, "kept"), (anew, "anew")):
        run(update(out, model32, now, estimates=estimates))
        index = Index.open(out)
        found[estimates] = np.array(index.array("gradients/influence+")[0])
        same = load_file(out / index.manifest.folder / "ekfac.safetensors")
        assert all(same[key].equal(bases[key]) for key in bases) == (estimates == "kept")
    assert found["kept"].shape == found["anew"].shape == (9, 2, 32)
    np.testing.assert_array_equal(found["kept"][list(STAYED)], signs[list(STAYED.values())])
    differs = (found["anew"][list(STAYED)] != signs[list(STAYED.values())]).any((1, 2))
    assert differs.all()


def test_everything_else_is_of_the_changed_folder(calls, fresh):
    index, wanted = Index.open(calls[0]), Index.open(fresh)
    assert index.ids == wanted.ids == list(NOW)
    assert index.captions == wanted.captions
    assert [index.thumbnail(row) for row in range(9)] == [wanted.thumbnail(row) for row in range(9)]
    assert index.picture(4).tobytes() == random_picture(5).tobytes()


def test_an_index_that_is_open_says_that_it_was_updated(index_folder, model32, now, plain_copy):
    index = Index.open(plain_copy)
    run(update(plain_copy, model32, now))
    for read in (lambda: index.encoded, lambda: index.fisher):
        with pytest.raises(IndexMismatch, match="was updated since it was opened; open it again"):
            read()
    np.testing.assert_array_equal(index.latents, np.load(index_folder / "latents.npy"))  # what was open stays


def test_an_updated_index_is_updated_again_and_back(model32, now, tiny_settings, index_folder, plain_copy):
    """Of the training set that they were estimated from, estimates are no approximation."""
    run(update(plain_copy, model32, now, estimates="kept"))
    assert list(update(plain_copy, model32, now)) == []
    run(update(plain_copy, model32, tiny_settings, estimates="kept"))
    manifest = Manifest.read(plain_copy)
    assert (manifest.kept, manifest.id) == ({}, Manifest.read(index_folder).id)
    assert manifest.steps == Manifest.read(index_folder).steps
    assert len(list(plain_copy.glob("rows-*"))) == 1
    assert list(build(plain_copy, model32, tiny_settings)) == []


# Small changes


def changed(tmp_path, settings, rows):
    """Settings of a folder of such pictures."""
    return replace(settings, data=replace(settings.data, train_data_dir=save_pictures(tmp_path / "now", rows)))


EIGHT = {f"p{row}.png": (row, text) for row, text in enumerate(CAPTIONS)}


def test_images_that_are_gone_need_no_network(model32, tiny_settings, plain_copy, tmp_path, monkeypatch, caplog):
    rows = {name: row for name, row in EIGHT.items() if name != "p3.png"}
    monkeypatch.setattr(model32, "predict", lambda *_: pytest.fail("predicted"))
    monkeypatch.setattr(model32, "encode_images", lambda *_: pytest.fail("encoded"))
    run(update(plain_copy, model32, changed(tmp_path, tiny_settings, rows), estimates="kept"))
    index = Index.open(plain_copy)
    assert index.ids == list(rows)
    assert len(index) == 7
    assert "8 then, 7 now (0 new, 0 changed and 1 gone); what was made of 7 of them is kept" in caplog.text
    assert (
        "fisher is kept, which is an approximation: it was estimated from 8 images, of which 1 are gone" in caplog.text
    )


def test_images_that_were_only_renamed_are_the_same(model32, tiny_settings, plain_copy, tmp_path, monkeypatch):
    rows = {f"{7 - row}.png": one for row, one in reversed(list(enumerate(EIGHT.values())))}
    monkeypatch.setattr(model32, "predict", lambda *_: pytest.fail("predicted"))
    before = np.load(plain_copy / "latents.npy")
    settings = changed(tmp_path, tiny_settings, rows)
    with pytest.raises(IndexMismatch, match=r"8 then, 8 now \(the same ones, in another order or by other names\)"):
        next(build(plain_copy, model32, settings))
    run(update(plain_copy, model32, settings))
    np.testing.assert_array_equal(Index.open(plain_copy).latents, before[::-1])


def test_estimates_are_made_anew_when_more_than_a_twentieth_changed(model32, tiny_settings, plain_copy, tmp_path):
    rows = {**EIGHT, "p8.png": (8, "a bus")}
    steps = [each.step for each in update(plain_copy, model32, changed(tmp_path, tiny_settings, rows))]
    assert "fisher" in steps
    assert Manifest.read(plain_copy).kept == {}


def test_the_scale_of_gradients_stays(plain_copy, model32, now, extend_all):
    """Those of the first image set it, when the index was built."""
    extend_all(plain_copy, model32, gradients=("loss",))
    plain, out = copied(plain_copy, f"{plain_copy.name}-plain"), plain_copy
    manifest = Manifest.read(out)
    step = manifest.step("gradients/loss")
    manifest.having("gradients/loss", replace(step, made=replace(step.made, scale=step.made.scale * 4))).write(out)
    run(update(out, model32, now, estimates="kept"))
    made = Manifest.read(out).made("gradients/loss", GradientRecord)
    assert (made.scale, made.shape) == (step.made.scale * 4, (1, 9, 1, 64))
    new = Index.open(out).array("gradients/loss")[0, 1]
    run(update(plain, model32, now, estimates="kept"))
    np.testing.assert_allclose(new, 4 * Index.open(plain).array("gradients/loss")[0, 1], rtol=1e-3)


def test_an_unfinished_index_keeps_the_rows_that_it_has(model32, tiny_settings, tmp_path):
    """An image is left out half way, as it is advised of one that cannot be used."""
    out = tmp_path / "index"
    steps = build(out, model32, tiny_settings)
    for progress in steps:
        if progress.step == "base_losses" and progress.done == 6:
            steps.close()
            break
    rows = {name: row for name, row in EIGHT.items() if name != "p1.png"}
    settings = changed(tmp_path, tiny_settings, rows)
    found = [(each.step, each.done) for each in update(out, model32, settings)]
    assert ("base_losses", 7) in found
    assert ("latents", 7) not in found
    whole = build_all(tmp_path / "whole", model32, settings)
    np.testing.assert_allclose(Index.open(out).base_losses, Index.open(whole).base_losses, rtol=1e-5)
    assert Manifest.read(out).id == Manifest.read(whole).id


# What is refused


def test_an_update_with_another_model_or_other_settings_is_refused(model32, now, plain_copy, tmp_path):
    before = files_of(plain_copy)
    other = Model.load(save_tiny_pipeline(tmp_path / "model", "v_prediction", seed=1), model32.device)
    noise = replace(now, noise=NoiseSettings(4, 2, 9))
    flip = replace(now, data=replace(now.data, random_flip=False))
    for model, settings, told in (
        (other, now, "was built with model sha256"),
        (model32, noise, "was built with settings noise"),
        (model32, flip, "'random_flip': True"),
    ):
        with pytest.raises(IndexMismatch, match=told):
            next(update(plain_copy, model, settings))
    with pytest.raises(InputError, match="--latents_file is of no use with --update"):
        next(update(plain_copy, model32, replace(now, latents_file=tmp_path / "latents.npy")))
    assert files_of(plain_copy) == before


def test_a_folder_that_holds_none_of_the_images_is_refused(model32, tiny_settings, plain_copy, tmp_path):
    before, rows = files_of(plain_copy), {"a.png": (61, "a tram")}
    with pytest.raises(
        IndexMismatch, match=r"none of the 8 images that .* was built from is among the training images"
    ):
        next(update(plain_copy, model32, changed(tmp_path, tiny_settings, rows)))
    assert files_of(plain_copy) == before


def test_a_damaged_index_is_not_kept_for_whole(model32, now, plain_copy):
    content = bytearray((plain_copy / "latents.npy").read_bytes())
    content[-1] ^= 1
    (plain_copy / "latents.npy").write_bytes(content)
    with pytest.raises(IndexMismatch, match=r"is damaged: latents.npy between bytes"):
        run(update(plain_copy, model32, now))
    assert Manifest.read(plain_copy).folder == ""


def test_an_index_of_an_earlier_version_gets_its_hashes_from_the_images_as_they_were(
    model32, now, tiny_settings, plain_copy
):
    index = Index.open(plain_copy)
    (plain_copy / "captions.arrow").write_bytes(packed_texts(list(index.ids), list(index.captions), {}))
    with pytest.raises(IndexMismatch, match="run this command once on the training images as they were"):
        next(update(plain_copy, model32, now))
    assert [each.step for each in update(plain_copy, model32, tiny_settings)] == ["captions"]
    run(update(plain_copy, model32, now))
    assert Index.open(plain_copy).ids == list(NOW)


def test_the_command_says_what_changed_and_names_the_flag(refused, capsys, tiny_folder, tmp_path, pictures):
    out, folder = tmp_path / "index", save_pictures(tmp_path / "pictures", EIGHT)
    small = ("--timesteps", "1", "--fisher_samples", "2")
    asked = ("--pretrained_model_name_or_path", str(tiny_folder), "--train_data_dir", str(folder), "--out", str(out))
    assert "is not an index" in refused("index", *asked, *small, "--update", index=None)
    assert "--estimates kept is of no use" in refused("index", *asked, "--estimates", "kept", index=None)
    assert main(["index", *asked, *small]) == 0
    capsys.readouterr()
    (folder / "p2.png").write_bytes(b"broken")
    random_picture(77).save(folder / "p5.png")
    asked += ("--skip_bad",)
    assert main(["index", *asked, *small]) == 2
    told = capsys.readouterr().err.splitlines()[-1]
    assert "8 then, 7 now (0 new, 1 changed and 1 gone); add --update to keep" in told
    before = files_of(out)
    capsys.readouterr()
    assert main(["index", *asked, *small, "--update", "--estimates", "kept", "--dry_run"]) == 0
    rows = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert ["kept", "rows", "6"] in [row[:3] for row in rows]
    assert ["latents", "1"] in [row[:2] for row in rows]
    assert files_of(out) == before
    assert main(["index", *asked, *small, "--update", "--estimates", "kept"]) == 0
    assert Index.open(out).ids == [name for name in EIGHT if name != "p2.png"]
    assert (out / "left-out.csv").is_file()
    assert main(["index", *asked, *small]) == 0  # it is of these images now
    assert main(["attribute", "--prompt", "a bus", "--index", str(out), "--top_k", "7"]) == 0
    capsys.readouterr()
    shutil.rmtree(folder)
    save_pictures(folder, {})
    assert main(["index", *asked, *small, "--update"]) == 2
    assert "the training data are empty" in capsys.readouterr().err.splitlines()[-1]


def test_a_folder_that_may_not_be_written_to_is_told_in_a_line(model32, now, plain_copy):
    (plain_copy / ".lock").unlink(missing_ok=True)
    (plain_copy / ".lock").mkdir()
    with pytest.raises(InputError, match=r"cannot be written to \(") as caught:
        next(update(plain_copy, model32, now))
    assert "\n" not in str(caught.value)


def test_a_dry_run_is_of_the_new_images(full_folder, model32, now, more, monkeypatch):
    monkeypatch.setattr(planning, "LONG", 0.0)
    monkeypatch.setattr(planning, "LEAST", 0.0)
    before = files_of(full_folder)
    costs = {each.name: each for each in plan_update(full_folder, model32, now, more, "kept")}
    assert files_of(full_folder) == before
    made = ("latents", "base_losses", *(f"gradients/{each}" for each in WHITENED))
    assert [costs[name].count for name in made] == [4, 4, 4, 4]
    assert (costs[KEPT].count, "fisher" in costs) == (5, False)
    assert next(iter(costs)) == LOOKED_AT
    assert list(costs)[-2:] == list(QUERIES)
    again = {each.name: each.count for each in plan_update(full_folder, model32, now, more, "anew")}
    assert again["fisher"] == 37
    assert [again[f"gradients/{each}"] for each in WHITENED] == [9, 9]
    assert "ekfac" in again


# Killed


KILLED = """
import os, random, shutil, signal, sys, time
import torch
torch.set_num_threads(1)
from dataclasses import replace
from pathlib import Path
from attribution.diffusion.noise import NoiseSettings
from attribution.diffusion.pipeline import Model
from attribution.index.build import build
from attribution.index.data import DataSettings
from attribution.index.index import Index
from attribution.index.manifest import Manifest
from attribution.index.update import update
from attribution.index.verify import verify
from attribution.index.work import BuildSettings, ExtendSettings
from attribution.unlearning.fisher import FisherSettings
from attribution.unlearning.projection import GradientSettings

folder, then, now, out, kills = *map(Path, sys.argv[1:5]), int(sys.argv[5])
model = Model.load(folder, torch.device("cpu"))
model.sha256
settings = BuildSettings(
    DataSettings(train_data_dir=then), NoiseSettings(3, 1, 5), FisherSettings(samples=21, timesteps=7, seed=6), 3
)
more = ExtendSettings(gradients=("loss",), projection=GradientSettings(dimension=64))
for _ in build(out / "then", model, settings, more):
    pass
old = Manifest.read(out / "then")
settings = replace(settings, data=DataSettings(train_data_dir=now))

def begin(where):
    child = os.fork()
    if child == 0:
        for _ in update(where, model, settings):
            pass
        os._exit(0)
    return child

shutil.copytree(out / "then", out / "whole")
began = time.monotonic()
assert os.waitpid(begin(out / "whole"), 0)[1] == 0
took, moments, killed = time.monotonic() - began, random.Random(4), 0
for number in range(kills):
    if number % 3 == 0:
        shutil.rmtree(out / "index", ignore_errors=True)
        shutil.copytree(out / "then", out / "index")
    child = begin(out / "index")
    time.sleep(took * moments.uniform(0.05, 0.9))
    os.kill(child, signal.SIGKILL)
    killed += os.WIFSIGNALED(os.waitpid(child, 0)[1])
    index = Index.open(out / "index")
    assert len(index) == (9 if index.manifest.folder else 8)
    assert index.manifest.folder or index.id == old.id
    index.array("gradients/loss"), index.fisher, index.encoded
assert killed, "the update ended before its end came"
assert os.waitpid(begin(out / "index"), 0)[1] == 0
"""


@pytest.mark.exact_bits
def test_an_update_that_is_killed_at_random_moments_leaves_the_old_index_or_the_new_one(
    tiny_folder, pictures, now, tmp_path
):
    asked = [sys.executable, "-c", KILLED, str(tiny_folder), str(pictures), str(now.data.train_data_dir)]
    done = subprocess.run([*asked, str(tmp_path), "5"], capture_output=True, text=True, cwd=Path(__file__).parents[2])
    assert done.returncode == 0, done.stderr
    whole, index = files_of(tmp_path / "whole"), files_of(tmp_path / "index")
    assert whole == index
    assert main(["index", "verify", str(tmp_path / "index")]) == 0
