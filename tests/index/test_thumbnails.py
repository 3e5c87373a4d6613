"""Thumbnails: small ones exact, larger ones crisp on any screen in no more room, and known from another picture's."""

import io
import json
import shutil
from dataclasses import replace

import numpy as np
import pytest
from conftest import build_all, random_picture
from PIL import Image

from attribution.diffusion.noise import NoiseSettings
from attribution.diffusion.pipeline import Model
from attribution.index.data import DataSettings
from attribution.index.features import pixel_vectors
from attribution.index.index import Index
from attribution.index.pictures import EXACT_SIDE, kind_of, packed_thumbnail


@pytest.mark.parametrize(("side", "kind"), [(32, "png"), (EXACT_SIDE, "png"), (EXACT_SIDE + 1, "jpeg"), (384, "jpeg")])
def test_a_small_thumbnail_is_exact_and_a_larger_one_is_near(side, kind):
    square = random_picture(3, (side, side))
    content = packed_thumbnail(square)
    assert kind_of(content) == kind
    shown = Image.open(io.BytesIO(content))
    assert (shown.format.lower(), shown.size) == (kind, (side, side))
    difference = np.abs(np.asarray(shown, float) - np.asarray(square, float))
    assert difference.max() == 0 if kind == "png" else difference.mean() < 4


SHAPES = ((600, 450), (400, 700), (192, 192))


@pytest.fixture(scope="module")
def large(tiny_folder, tiny_settings, tmp_path_factory):
    """An index of pictures of three shapes and a model of 192 px; and the pictures' folder."""
    folder = tmp_path_factory.mktemp("large")
    model, pictures = shutil.copytree(tiny_folder, folder / "model"), folder / "pictures"
    config = json.loads((model / "unet/config.json").read_text())
    (model / "unet/config.json").write_text(json.dumps({**config, "sample_size": 48}))
    pictures.mkdir()
    rows = [{"file_name": f"{number}.png", "text": "a bird"} for number in range(len(SHAPES))]
    for number, row in enumerate(rows):
        random_picture(number, SHAPES[number]).save(pictures / row["file_name"])
    (pictures / "metadata.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    settings = replace(tiny_settings, data=DataSettings(train_data_dir=pictures), noise=NoiseSettings(1))
    return Index.open(build_all(folder / "index", Model.load(model), settings)), pictures


def test_pictures_of_unequal_sizes_have_thumbnails_as_large_as_the_model_sees_them(large):
    index, _ = large
    assert {kind_of(index.thumbnail(row)) for row in range(3)} == {"jpeg"}
    assert {index.pictures.small(row).size for row in range(3)} == {(192, 192)}


def test_a_training_picture_is_opened_whole_while_it_is_the_same_and_else_its_thumbnail(large):
    index, pictures = large
    assert [index.picture(row).size for row in range(3)] == list(SHAPES)
    random_picture(9, SHAPES[1]).save(pictures / "1.png")
    index = Index.open(index.path)
    assert [index.picture(row).size for row in range(3)] == [SHAPES[0], (192, 192), SHAPES[2]]
    random_picture(1, SHAPES[1]).save(pictures / "1.png")


def test_the_pixel_baseline_sees_a_thumbnail_as_it_is_shown(large):
    """It is decoded smaller, which is quicker, and as good as the same."""
    index, _ = large
    whole = pixel_vectors(index.pictures.small(row) for row in range(3)).astype(float)
    assert np.abs(index.pictures.pixels(range(3)) - whole).mean() < 2
