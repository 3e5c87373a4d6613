"""How a build begins: known images are not decoded again, bad ones are named, and each network is made once."""

import csv
import io
import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
from conftest import random_picture, save_tiny_pipeline
from PIL import Image

from attribution.diffusion import weights
from attribution.errors import InputError
from attribution.files import writing
from attribution.index import rows
from attribution.index.build import build
from attribution.index.checksums import sha256_of
from attribution.index.data import BAD_ROWS, DataSettings, open_training_set
from attribution.index.index import Index
from attribution.index.manifest import GradientRecord, Manifest
from attribution.index.work import BuildSettings, ExtendSettings
from attribution.unlearning.projection import GradientSettings


def run(steps):
    for _ in steps:
        pass


# Images that are known


@pytest.fixture
def counted(monkeypatch):
    """Images that were decoded."""
    seen, inspect = [], rows._inspect
    monkeypatch.setattr(rows, "_inspect", lambda stored: seen.append(stored["path"]) or inspect(stored))
    return seen


@pytest.fixture
def old_pictures(pictures, tmp_path):
    """Eight pictures that were written an hour ago."""
    folder = shutil.copytree(pictures, tmp_path / "old")
    for path in folder.iterdir():
        age(path)
    return folder


def age(path, seconds=3600):
    when = path.stat().st_mtime_ns - seconds * 10**9
    os.utime(path, ns=(when, when))


def test_a_build_that_goes_on_decodes_no_image_to_know_it(model32, tiny_settings, old_pictures, tmp_path, counted):
    settings = BuildSettings(DataSettings(train_data_dir=old_pictures), tiny_settings.noise, tiny_settings.fisher, 6)
    steps = build(tmp_path / "index", model32, settings)
    while next(steps).step != "latents":
        pass
    steps.close()
    assert len(counted) == 8
    run(build(tmp_path / "index", model32, settings))
    run(build(tmp_path / "index", model32, settings))
    assert len(counted) == 8


def test_an_image_that_changed_is_decoded_and_the_others_are_not(old_pictures, counted):
    asked = DataSettings(train_data_dir=old_pictures)
    before = open_training_set(asked).sha256()
    assert open_training_set(asked).sha256() == before
    assert len(counted) == 8
    random_picture(70).save(old_pictures / "p3.png")
    age(old_pictures / "p3.png", 1800)
    assert open_training_set(asked).sha256() != before
    assert [path.rpartition("/")[2] for path in counted[8:]] == ["p3.png"]


def test_an_image_that_was_written_just_now_is_decoded_each_time(old_pictures, counted):
    """It could change once more within the same tick of the clock."""
    random_picture(70).save(old_pictures / "p3.png")
    for _ in range(2):
        open_training_set(DataSettings(train_data_dir=old_pictures))
    assert len(counted) == 9


def test_a_bad_image_is_looked_at_each_time(old_pictures, counted):
    (old_pictures / "p5.png").write_bytes(b"no picture")
    age(old_pictures / "p5.png")
    for _ in range(2):
        with pytest.raises(InputError, match=r"of 8 training images 1 cannot be used: p5.png"):
            open_training_set(DataSettings(train_data_dir=old_pictures))
    assert len(counted) == 9


def test_without_a_cache_that_can_be_written_to_a_build_goes_on(old_pictures, counted, tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    monkeypatch.setenv("ATTRIBUTION_CACHE", str(tmp_path / "file"))
    for _ in range(2):
        open_training_set(DataSettings(train_data_dir=old_pictures))
    assert len(counted) == 16


# Images that cannot be used


@pytest.fixture
def bad_pictures(tmp_path):
    """Twenty rows, of which ten cannot be used, and kinds that can though they are no RGB of eight bits."""
    folder = tmp_path / "bad"
    folder.mkdir()
    told = []
    for row in range(20):
        name, text = f"{row:02d}.{'jpg' if row < 4 else 'png'}", f"number {row}"
        random_picture(row, (64, 64)).save(folder / name)
        if row < 2:  # cut
            (folder / name).write_bytes((folder / name).read_bytes()[:400])
        told.append({"file_name": name, "text": text})
    for row in range(4, 8):
        (folder / told[row]["file_name"]).unlink()
    for row, text in zip(range(8, 12), (None, [], 7, [None]), strict=True):
        told[row]["text"] = text
    random_picture(3, (64, 64)).convert("CMYK").save(folder / "03.jpg")
    Image.fromarray(np.arange(64 * 64, dtype=np.uint16).reshape(64, 64) * 16).save(folder / "12.png")
    told[13]["text"] = ""
    (folder / "metadata.jsonl").write_text("".join(json.dumps(row) + "\n" for row in told))
    return folder


NAMED = ["00.jpg", "01.jpg", *(f"{row:02d}.png" for row in range(4, 12))]


def test_bad_images_are_counted_and_all_of_them_named_in_a_file(bad_pictures):
    with pytest.raises(
        InputError, match=r"of 20 training images 10 .* and 2 more \(all are named in .*\); mend"
    ) as caught:
        open_training_set(DataSettings(train_data_dir=bad_pictures))
    path = Path(str(caught.value).partition("all are named in ")[2].partition(")")[0])
    listed = list(csv.DictReader(io.StringIO(path.read_text())))
    assert [row["image"] for row in listed] == NAMED
    faults = dict.fromkeys(row["fault"] for row in listed)
    assert list(faults)[1:] == [
        "there is no such file",
        "it has no caption",
        "its list of captions is empty",
        "its caption is 7, which is not text",
    ]


def test_bad_images_are_left_out_when_asked_and_named_in_the_index(model32, tiny_settings, bad_pictures, tmp_path):
    asked = DataSettings(train_data_dir=bad_pictures, skip_bad=True)
    run(build(tmp_path / "index", model32, BuildSettings(asked, tiny_settings.noise, tiny_settings.fisher)))
    index = Index.open(tmp_path / "index")
    assert index.ids == ["02.jpg", "03.jpg", *(f"{row:02d}.png" for row in range(12, 20))]
    assert index.captions[3] == ""  # as diffusers' script trains on it
    told = list(csv.reader(io.StringIO((tmp_path / "index" / BAD_ROWS).read_text())))
    assert told[0] == ["image", "fault"]
    assert [name for name, _ in told[1:]] == NAMED
    assert index.picture(1).mode == index.picture(2).mode == "RGB"  # of CMYK, of 16 bits


# What a folder's errors are


def test_an_error_of_another_file_is_not_taken_for_one_of_the_folder(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"gone.png"), writing(tmp_path / "index"):
        (tmp_path / "gone.png").read_bytes()
    for name in ("index/gone.npy", "index"):
        with pytest.raises(InputError, match="index cannot be written to"), writing(tmp_path / "index"):
            (tmp_path / name).read_bytes()
    with pytest.raises(InputError, match=r"cannot be written to \(No space left"), writing(tmp_path / "index"):
        raise OSError(28, "No space left on device")


def test_an_image_that_vanishes_is_named(model32, tiny_settings, old_pictures, tmp_path):
    settings = BuildSettings(DataSettings(train_data_dir=old_pictures), tiny_settings.noise, tiny_settings.fisher, 6)
    steps = build(tmp_path / "index", model32, settings)
    while next(steps).step != "thumbnails":
        pass
    (old_pictures / "p7.png").unlink()
    with pytest.raises(InputError, match=r"^the training image p7.png cannot be used \(there is no such file\)"):
        run(steps)


# Checkpoints


def test_a_checkpoint_is_made_once(model32, tiny_settings, plain_copy, tmp_path, monkeypatch):
    made, load = [], weights.load_network
    monkeypatch.setattr(weights, "load_network", lambda *asked: made.append(asked[1]) or load(*asked))
    sources = tuple(str(save_tiny_pipeline(tmp_path / f"{seed}", "v_prediction", seed)) for seed in (3, 4))
    projection = GradientSettings(dimension=32)
    asked = ExtendSettings(gradients=("loss",), projection=projection, checkpoints=sources)
    run(build(plain_copy, model32, tiny_settings, asked))
    assert [files.pretrained_model_name_or_path for files in made] == list(sources)
    record = Manifest.read(plain_copy).made("gradients/loss", GradientRecord)
    for source, sha256 in zip(sources, record.sha256, strict=True):
        with weights.checkpoint(model32, source):
            assert sha256_of(model32.unet.state_dict()) == sha256
