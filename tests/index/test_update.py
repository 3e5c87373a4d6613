"""An index whose training set was changed: what stayed is kept, what is new is made, and until then it is as it was."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from conftest import CAPTIONS, random_picture

from attribution.index.build import build
from attribution.index.index import Index
from attribution.index.manifest import Manifest
from attribution.index.update import update
from attribution.index.work import ExtendSettings
from attribution.unlearning.projection import GradientSettings

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
KEPT = {0: 0, 2: 7, 3: 2, 5: 1, 7: 3}  # rows now, and then


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
        gradients=("loss", "d-trak", "influence"),
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
