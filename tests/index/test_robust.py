"""A build that is killed, a full disk, a second writer, a byte that changed: told in a line, and gone on with."""

import json
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from conftest import build_all, save_tiny_pipeline
from filelock import FileLock
from killed import Kind, forked, kill_at_moments
from networks import tiny_vit
from safetensors.torch import save_file

from attribution.answers.floor import measure_floor
from attribution.cli import main
from attribution.errors import IndexMismatch, InputError
from attribution.files import LOCK
from attribution.index import checksums, stored
from attribution.index.build import build
from attribution.index.data import DataSettings
from attribution.index.features import open_feature
from attribution.index.index import Index
from attribution.index.manifest import FeatureRecord, GradientRecord, Manifest
from attribution.index.work import ExtendSettings
from attribution.methods import attribute
from attribution.methods.answer import AttributeSettings
from attribution.unlearning.projection import GradientSettings


def files_of(folder):
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def run(steps):
    for _ in steps:
        pass


# Killed


@pytest.mark.exact_bits
def test_builds_and_additions_that_are_killed_at_random_moments_have_the_same_bytes():
    """By SIGKILL; the children of one process, which imports all and loads the model once. See `tests/killed.py`."""
    what = ("build", "fisher_all", "ekfac", "features", "gradients")
    asked = [sys.executable, "tests/killed.py", "--moments", "2", "--what", *what]
    done = subprocess.run(asked, capture_output=True, text=True, cwd=Path(__file__).parents[2])
    assert done.returncode == 0, done.stdout + done.stderr
    told = [line for line in done.stdout.splitlines() if "killed at 2 of 2 moments" in line]
    assert [line.partition(":")[0] for line in told] == list(what)
    assert all(line.endswith("all the same bytes") for line in told)


def test_a_difference_after_a_kill_is_told(tmp_path):
    def unsteady(out):
        out.mkdir(exist_ok=True)
        (out / "part").write_bytes(os.urandom(8))
        yield time.sleep(0.2)

    begin = forked(unsteady)
    told = kill_at_moments(Kind("unsteady", begin, (begin,)), tmp_path / "runs", 2, random.Random(0))
    assert (told.differ, told.killed.total()) == ({"part"}, 2)


# One writer, many readers


def test_a_second_writer_is_refused_and_a_dead_one_is_not_waited_for(model32, tiny_settings, tmp_path):
    out = tmp_path / "index"
    first = build(out, model32, tiny_settings)
    next(first)
    before = files_of(out)
    with pytest.raises(InputError, match=r"index is being written to by another process; wait for it"):
        next(build(out, model32, tiny_settings))
    assert files_of(out) == before
    first.close()
    code = f"import filelock; held = filelock.FileLock({str(out / LOCK)!r}); held.acquire(); print(flush=True); input()"
    with subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as other:
        other.stdout.read(1)
        with pytest.raises(InputError, match="another process"):
            next(build(out, model32, tiny_settings))
        other.send_signal(signal.SIGKILL)
        other.wait()
    run(build(out, model32, tiny_settings))
    with FileLock(out / LOCK):
        assert len(Index.open(out)) == 8  # whoever reads does not wait


def test_a_writer_leaves_the_unfinished_files_of_another_alone(model32, tiny_settings, index_folder, tmp_path):
    out = shutil.copytree(index_folder, tmp_path / "index")
    (out / ".of-the-other.partial").touch()
    with FileLock(out / LOCK), pytest.raises(InputError):
        next(build(out, model32, tiny_settings))
    assert (out / ".of-the-other.partial").exists()


def test_a_calibration_is_a_writer_too(model32, index_folder, tmp_path):
    index = Index.open(shutil.copytree(index_folder, tmp_path / "index"))
    with FileLock(index.path / LOCK), pytest.raises(InputError, match="another process"):
        next(measure_floor(model32, index))
    assert not list(index.path.glob("floor*"))


# A disk that is full, or may not be written to


@pytest.fixture
def small_files():
    """As on a full disk, a write past the limit fails; Python ignores the signal that goes with it."""

    def limit(size):
        resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))

    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    yield limit
    resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.mark.parametrize(("size", "step"), [(500, "captions"), (3000, "latents"), (9000, "fisher")])
def test_a_full_disk_is_told_in_a_line_and_the_build_goes_on_when_there_is_room(
    model32, tiny_settings, index_folder, tmp_path, small_files, size, step
):
    """The latents have 8,320 bytes, the Fisher information more."""
    out, settings = tmp_path / "index", replace(tiny_settings, batch=64)
    small_files(size)
    with pytest.raises(InputError) as caught:
        run(build(out, model32, settings))
    small_files(-1)
    assert str(caught.value).startswith(f"{out} cannot be written to (")
    assert "File too large" in str(caught.value)
    assert "\n" not in str(caught.value)
    if (out / "manifest.json").exists():
        assert not Manifest.read(out).finished(step)
    run(build(out, model32, tiny_settings))
    assert files_of(out).keys() == files_of(index_folder).keys()
    assert not list(out.glob("*.partial*"))


def test_room_is_reserved_before_an_array_is_gone_on_with(tmp_path, monkeypatch):
    """A copy may have left out the zeros of rows that are not done yet."""
    reserved = []
    monkeypatch.setattr(stored.os, "posix_fallocate", lambda _file, start, size: reserved.append((start, size)))
    for going_on in (False, True):
        file = stored.ArrayFile.open(tmp_path / "a.npy", (3, 2, 5), 3, np.float16, going_on)
        file.put(range(1, 2), np.ones((1, 2, 5), np.float16))
        file.close()
    assert reserved == [(0, 128 + 60)] * 2
    assert np.load(tmp_path / "a.npy").sum(axis=(1, 2)).tolist() == [0, 10, 0]


def test_a_folder_that_may_not_be_written_to_is_told_in_a_line(model32, tiny_settings, index_folder, tmp_path):
    out = shutil.copytree(index_folder, tmp_path / "index")
    (out / LOCK).unlink()
    (out / LOCK).mkdir()  # no lock can be made, whoever asks
    index = Index.open(out)
    for steps in (build(out, model32, tiny_settings), measure_floor(model32, index)):
        with pytest.raises(InputError, match=r"index cannot be written to \(") as caught:
            next(steps)
        assert "\n" not in str(caught.value)


# A byte that changed


def verified(folder, capsys):
    status = main(["index", "verify", str(folder)])
    told = capsys.readouterr()
    assert told.err.count("error: ") == (status == 2)
    return status, told.out, told.err


def test_an_index_that_is_whole_is_told_so(full_folder, capsys):
    status, out, _ = verified(full_folder, capsys)
    assert status == 0
    told = out.splitlines()[0]
    assert told.startswith("as it was written: manifest.json, captions, thumbnails, latents, base_losses, fisher")
    steps = Manifest.read(full_folder).steps
    assert all(name in told for name in steps if not name.endswith("-abc"))
    assert {name for name, step in steps.items() if step.stored is None} == {"features/clip-abc", "features/dino-abc"}


@pytest.mark.parametrize(
    "name", ["latents.npy", "base_losses.npy", "fisher.safetensors", "captions.arrow", "thumbnails.bin"]
)
@pytest.mark.parametrize("place", [0.3, 0.999])
def test_a_flipped_byte_is_named(full_folder, tmp_path, capsys, name, place):
    folder = shutil.copytree(full_folder, tmp_path / "index")
    content = bytearray((folder / name).read_bytes())
    place = int(place * len(content))
    content[place] ^= 1
    (folder / name).write_bytes(content)
    status, _, err = verified(folder, capsys)
    assert status == 2
    first = place - place % checksums.LEAST
    last = min(first + checksums.LEAST, len(content)) - 1
    assert f"is damaged: {name} between bytes {first:,} and {last:,} changed after it was written; copy" in err


def test_every_damaged_part_is_named(full_folder, tmp_path, capsys):
    folder = shutil.copytree(full_folder, tmp_path / "index")
    for name in ("thumbnails.npy", "gradients/loss.npy"):
        content = (folder / name).read_bytes()
        (folder / name).write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    (folder / "features/dino.npy").write_bytes((folder / "features/dino.npy").read_bytes()[:-7])
    (folder / "ekfac.safetensors").unlink()
    status, _, err = verified(folder, capsys)
    assert status == 2
    for told in (
        "thumbnails.npy between bytes 0 and 191 changed after it was written",
        "gradients/loss.npy between bytes 0 and",
        "features/dino.npy has 633 bytes, 640 were written",
        "ekfac is missing",
    ):
        assert told in err
    assert "fisher" not in err
    (folder / "thumbnails.npy").unlink()
    assert "of thumbnails only thumbnails.bin is there, 2 files were written" in verified(folder, capsys)[2]


def test_a_manifest_that_names_other_settings_is_damaged(index_folder, tmp_path, capsys):
    folder = shutil.copytree(index_folder, tmp_path / "index")
    told = (folder / "manifest.json").read_text()
    (folder / "manifest.json").write_text(told.replace('"seed": 5', '"seed": 7'))
    assert "manifest.json names settings that are not those of the index's id" in verified(folder, capsys)[2]


def test_indexes_of_earlier_versions_open_unchanged_and_have_nothing_to_compare(index_folder, tmp_path, capsys):
    folder = shutil.copytree(index_folder, tmp_path / "index")
    told = json.loads((folder / "manifest.json").read_text())
    for step in told["steps"].values():
        del step["stored"]
    (folder / "manifest.json").write_text(json.dumps(told, indent=1) + "\n")
    before = files_of(folder)
    assert len(Index.open(folder)) == 8
    Manifest.read(folder).write(folder)
    assert files_of(folder) == before
    status, out, _ = verified(folder, capsys)
    assert status == 0
    assert "without checksums, so not compared: captions, thumbnails" in out


def test_an_unfinished_index_is_verified_as_far_as_it_goes(model32, tiny_settings, tmp_path, capsys):
    steps = build(tmp_path / "index", model32, tiny_settings)
    while next(steps).step != "latents":
        pass
    steps.close()
    status, out, _ = verified(tmp_path / "index", capsys)
    assert status == 0
    assert "as it was written: manifest.json, captions, thumbnails\n" in out
    assert "unfinished, so not compared: latents\n" in out
    assert main(["index", "verify", str(tmp_path)]) == 2


def test_pieces_of_a_large_file_have_a_checksum_each(tmp_path, monkeypatch):
    monkeypatch.setattr(checksums, "CHUNK", 1000)
    (tmp_path / "latents.npy").write_bytes(np.random.default_rng(0).bytes(5_000_003))
    known = checksums.checksums_of(tmp_path, "latents")
    assert (known.files, known.bytes, len(known.pieces)) == (1, 5_000_003, checksums.PIECES)
    assert len(set(known.pieces)) == checksums.PIECES
    assert checksums.damage_of(tmp_path, "latents", known) == []
    for place in (0, 78_126, 5_000_002):
        content = bytearray((tmp_path / "latents.npy").read_bytes())
        content[place] ^= 128
        (tmp_path / "latents.npy").write_bytes(content)
    found = checksums.damage_of(tmp_path, "latents", known)
    assert [each.split(" changed")[0] for each in found] == [
        "latents.npy between bytes 0 and 78,125",
        "latents.npy between bytes 78,126 and 156,251",
        "latents.npy between bytes 4,921,938 and 5,000,002",
    ]


# Mixtures


def begun(steps, step, blocks=1):
    """End a build when it has made so many blocks of a step."""
    for progress in steps:
        blocks -= progress.step == step
        if not blocks:
            steps.close()
            return
    pytest.fail(f"the build made no {step}")


def test_a_feature_that_another_network_began_is_begun_anew(model32, tiny_settings, plain_copy, tmp_path):
    """The networks have one name: the second took the place of the first."""
    weights, other = tmp_path / "dino", tmp_path / "other"
    tiny_vit(weights)
    network = open_feature("dino", str(weights))
    changed = {name: value * 1.5 for name, value in network.weights.items()}
    asked = ExtendSettings(features=("dino",), feature_weights={"dino": str(weights)})
    begun(build(plain_copy, model32, tiny_settings, asked), "features/dino")
    assert Manifest.read(plain_copy).step("features/dino").done == 6
    shutil.copytree(weights, other)
    save_changed(other, changed)
    shutil.rmtree(weights)
    other.rename(weights)
    open_feature.cache_clear()
    done = [each.done for each in build(plain_copy, model32, tiny_settings, asked)]
    assert done == [6, 8]
    made = Manifest.read(plain_copy).made("features/dino", FeatureRecord)
    assert made.sha256 == open_feature("dino", str(weights)).sha256 != network.sha256
    fresh = shutil.copytree(plain_copy, tmp_path / "fresh")
    (fresh / "features/dino.npy").unlink()
    Manifest.read(fresh).lacking("features/dino").write(fresh)
    run(build(fresh, model32, tiny_settings, asked))
    np.testing.assert_array_equal(np.load(plain_copy / "features/dino.npy"), np.load(fresh / "features/dino.npy"))


@pytest.mark.parametrize("name", ["clip", "clip-text", "dino", "dinov2", "clip-abc", "dino-abc", "fast"])
def test_a_network_has_one_hash_each_time_it_is_loaded(full_index, name):
    """A vision transformer's pooler is made at random where its files have none; nothing reads it."""
    made = full_index.manifest.made(f"features/{name}", FeatureRecord).sha256
    for _ in range(2):
        open_feature.cache_clear()
        assert open_feature(name, full_index.feature_weights(name)).sha256 == made


def save_changed(folder, weights):
    save_file(
        {name: value.contiguous() for name, value in weights.items()}, folder / "model.safetensors", {"format": "pt"}
    )


def test_a_network_that_took_the_place_of_the_features_own_is_refused(
    model32, tiny_settings, plain_copy, tmp_path, query
):
    weights = tmp_path / "dino"
    tiny_vit(weights)
    open_feature.cache_clear()
    asked = ExtendSettings(features=("dino",), feature_weights={"dino": str(weights)})
    run(build(plain_copy, model32, tiny_settings, asked))
    settings = AttributeSettings(method="dino", top_k=2)
    assert list(attribute(model32, Index.open(plain_copy), query, settings))
    network = open_feature("dino", str(weights))
    save_changed(weights, {name: value * 1.5 for name, value in network.weights.items()})
    open_feature.cache_clear()
    with pytest.raises(IndexMismatch, match=rf"were made with a network {network.sha256[:12]}, but .*dino has weights"):
        list(attribute(model32, Index.open(plain_copy), query, settings))
    assert list(build(plain_copy, model32, tiny_settings, asked)) == []  # it is finished, with the first one


def test_gradients_that_another_checkpoint_began_are_begun_anew(model32, tiny_settings, plain_copy, tmp_path):
    source = tmp_path / "checkpoint"
    projection = GradientSettings(dimension=32)
    asked = ExtendSettings(gradients=("loss",), projection=projection, checkpoints=(str(source),))
    save_tiny_pipeline(source, "v_prediction", seed=11)
    begun(build(plain_copy, model32, tiny_settings, asked), "gradients/loss")
    first = Manifest.read(plain_copy).step("gradients/loss")
    assert first.done == 6
    shutil.rmtree(source)
    save_tiny_pipeline(source, "v_prediction", seed=12)
    assert [each.done for each in build(plain_copy, model32, tiny_settings, asked)] == [6, 8]
    made = Manifest.read(plain_copy).made("gradients/loss", GradientRecord)
    assert made.sha256 != first.made.sha256
    assert len(made.sha256) == 1


# Mirrors


def test_without_mirrors_nothing_is_made_of_them(model32, pictures, tiny_settings, tmp_path, monkeypatch, query):
    encode, predict, seen = model32.encode_images, model32.predict, {"encoded": 0, "predicted": 0}

    def encoding(pixels):
        seen["encoded"] += len(pixels)
        return encode(pixels)

    def predicting(noisy, *more):
        seen["predicted"] += len(noisy)
        return predict(noisy, *more)

    monkeypatch.setattr(model32, "encode_images", encoding)
    monkeypatch.setattr(model32, "predict", predicting)
    settings = replace(tiny_settings, data=DataSettings(train_data_dir=pictures, random_flip=False), batch=8)
    steps = build(tmp_path / "index", model32, settings)
    while next(steps).step != "base_losses":
        pass
    steps.close()
    assert seen == {"encoded": 8, "predicted": 8 * 8}
    run(build(tmp_path / "index", model32, settings))
    index = Index.open(tmp_path / "index")
    assert (index.latents.shape[:2], index.base_losses.shape[:2]) == ((8, 1), (8, 1))
    twofold = build_all(tmp_path / "both", model32, replace(tiny_settings, batch=16))
    np.testing.assert_array_equal(index.latents, np.load(twofold / "latents.npy")[:, :1])
    np.testing.assert_allclose(index.base_losses, np.load(twofold / "base_losses.npy")[:, :1], rtol=1e-5)


def test_an_index_that_stored_mirrors_in_vain_still_opens(index_folder, tmp_path):
    """Earlier versions encoded and measured them whether they were trained on or not."""
    folder = shutil.copytree(index_folder, tmp_path / "index")
    told = (folder / "manifest.json").read_text()
    (folder / "manifest.json").write_text(told.replace('"random_flip": true', '"random_flip": false'))
    index = Index.open(folder)
    assert index.latents.shape == (8, 1, 4, 8, 8)
    np.testing.assert_array_equal(index.base_losses, np.load(folder / "base_losses.npy")[:, :1])
