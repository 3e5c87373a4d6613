"""Thumbnails and captions are one file each, of which a row is read alone; old ones open; places and losses mend."""

import io
import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow
import pyarrow.parquet as parquet
import pytest
from conftest import CAPTIONS, build_all, random_picture, save_tiny_pipeline
from networks import tiny_vit
from PIL import Image
from safetensors.torch import load_file, save_file

from attribution.diffusion.pipeline import Model
from attribution.errors import IndexMismatch, WeightsUnavailable
from attribution.index import texts
from attribution.index.build import build
from attribution.index.index import Index, open_index
from attribution.index.manifest import Manifest
from attribution.index.packed import Packed, PackedFile
from attribution.index.texts import Texts, open_several, open_texts, packed_texts
from attribution.index.work import ExtendSettings
from attribution.unlearning.projection import GradientSettings


def files_of(folder):
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def png(seed):
    packed = io.BytesIO()
    random_picture(seed).save(packed, "PNG")
    return packed.getvalue()


PARTS = [png(0), b"", png(1), b"x", png(2), b"yz", png(3)]


def pack(path, upto=7, done=0):
    store = PackedFile.open(path, len(PARTS), done)
    for first in range(done, upto, 2):
        rows = range(first, min(first + 2, upto))
        store.put(rows, PARTS[rows.start : rows.stop])
    store.close()


# Many small files as one


def test_every_part_is_read_as_it_was_put(tmp_path):
    pack(tmp_path / "a")
    packed = Packed.open(tmp_path / "a", len(PARTS))
    assert [packed[row] for row in range(len(packed))] == PARTS
    assert (tmp_path / "a.bin").read_bytes() == b"".join(PARTS)
    assert packed.bytes == len(b"".join(PARTS)) + 8 * len(PARTS)


def test_what_an_ended_build_left_behind_is_cut_off(tmp_path):
    """It ended after it wrote some rows, and before the manifest told so."""
    pack(tmp_path / "whole")
    pack(tmp_path / "a", upto=6)
    pack(tmp_path / "a", done=2)
    for ending in (".bin", ".npy"):
        assert (tmp_path / f"a{ending}").read_bytes() == (tmp_path / f"whole{ending}").read_bytes()


def test_a_truncated_one_is_not_gone_on_with(tmp_path):
    pack(tmp_path / "a", upto=4)
    (tmp_path / "a.bin").write_bytes(b"".join(PARTS[:3])[:-1])
    with pytest.raises(IndexMismatch, match=r"a.bin is truncated"):
        pack(tmp_path / "a", done=4)


@pytest.mark.parametrize("wrong", [-1, 1 << 40])
def test_places_that_are_damaged_are_told_in_a_line(tmp_path, wrong):
    pack(tmp_path / "a")
    ends = np.load(tmp_path / "a.npy")
    ends[2] = wrong
    np.save(tmp_path / "a.npy", ends)
    packed = Packed.open(tmp_path / "a", len(PARTS))
    for row in (2, 3):
        with pytest.raises(IndexMismatch, match=rf"a.npy is damaged at row {row}"):
            packed[row]
    assert packed[0] == PARTS[0]


# Thumbnails


def with_a_folder(folder):
    """An index as earlier versions built it: a PNG a row, and captions in a parquet file."""
    index = Index.open(folder)
    (folder / "thumbnails").mkdir()
    for row in range(len(index)):
        (folder / "thumbnails" / f"{row:08d}.png").write_bytes(index.thumbnail(row))
    told = pyarrow.table({"id": list(index.ids), "caption": list(index.captions)})
    parquet.write_table(told, folder / "captions.parquet", compression="zstd")
    for name in ("thumbnails.bin", "thumbnails.npy", "captions.arrow"):
        (folder / name).unlink()
    told = json.loads((folder / "manifest.json").read_text())
    for name in ("thumbnails", "captions"):
        del told["steps"][name]["stored"]
    (folder / "manifest.json").write_text(json.dumps(told, indent=1) + "\n")
    return folder


def test_an_index_of_an_earlier_version_opens_and_is_not_built_again(plain_copy, index32, model32, tiny_settings):
    before = files_of(with_a_folder(plain_copy))
    index = Index.open(plain_copy)
    assert index.ids == index32.ids
    assert index.captions == index32.captions
    assert [index.thumbnail(row) for row in range(8)] == [index32.thumbnail(row) for row in range(8)]
    assert list(build(plain_copy, model32, tiny_settings)) == []
    assert files_of(plain_copy) == before


def test_a_folder_that_lacks_a_thumbnail_is_refused(plain_copy):
    (with_a_folder(plain_copy) / "thumbnails/00000003.png").unlink()
    with pytest.raises(IndexMismatch, match="thumbnails has 7 pictures, the manifest says 8; run the same index comma"):
        Index.open(plain_copy)


def test_a_folder_that_an_earlier_version_had_begun_is_begun_anew(model32, tiny_settings, index_folder, tmp_path):
    steps = build(tmp_path / "index", model32, tiny_settings)
    while next(steps).step != "thumbnails":
        pass
    steps.close()
    for name in ("thumbnails.bin", "thumbnails.npy"):
        (tmp_path / "index" / name).unlink()
    (tmp_path / "index/thumbnails").mkdir()
    (tmp_path / "index/thumbnails/00000000.png").write_bytes(png(0))
    build_all(tmp_path / "index", model32, tiny_settings)
    assert Index.open(tmp_path / "index").thumbnail(0) == Index.open(index_folder).thumbnail(0)
    assert not (tmp_path / "index/thumbnails").exists()


@pytest.mark.parametrize("names", [("thumbnails.bin",), ("thumbnails.npy",), ("thumbnails.bin", "thumbnails.npy")])
def test_deleted_thumbnails_are_made_again_by_the_same_command(plain_copy, model32, tiny_settings, names):
    before = files_of(plain_copy)
    for name in names:
        (plain_copy / name).unlink()
    assert {step.step for step in build(plain_copy, model32, tiny_settings)} == {"thumbnails"}
    assert files_of(plain_copy) == before


@pytest.mark.exact_bits
def test_whatever_file_is_deleted_is_made_again(plain_copy, model32, tiny_settings):
    before = files_of(plain_copy)
    for name in ("captions.arrow", "latents.npy", "base_losses.npy", "fisher.safetensors"):
        (plain_copy / name).unlink()
    build_all(plain_copy, model32, tiny_settings)
    assert files_of(plain_copy) == before


def test_only_few_pixels_are_kept_in_memory(index32, monkeypatch):
    kept = index32.pictures.pixels(range(2, 5))
    monkeypatch.setattr("attribution.index.pictures.KEPT", 7)
    pictures = replace(index32.pictures)
    np.testing.assert_array_equal(pictures.pixels(range(2, 5)), kept)
    assert "_pixels" in vars(index32.pictures)
    assert "_pixels" not in vars(pictures)


# Ids and captions

SEVERAL = {2: ("a", "b"), 8: ("", "ü", "c")}


@pytest.fixture
def written(tmp_path, monkeypatch):
    """Ten captions in batches of four."""
    monkeypatch.setattr(texts, "BATCH", 4)
    captions = [*CAPTIONS, "", "ümläut \N{GRINNING FACE}"]
    (tmp_path / "captions.arrow").write_bytes(packed_texts([f"{row}.png" for row in range(10)], captions, SEVERAL))
    return tmp_path, captions


def test_texts_are_a_sequence(written):
    folder, captions = written
    ids, held = open_texts(folder, 10)
    assert len(held) == len(ids) == 10
    assert ids[9] == ids[-1] == "9.png"
    assert [held[row] for row in range(10)] == list(held) == captions
    assert held == captions
    assert held != captions[:-1]
    for part in (slice(3), slice(3, 9), slice(-2, None), slice(None, None, 3), slice(None, None, -1), slice(7, 2)):
        assert held[part] == captions[part]
    for wrong in (10, -11):
        with pytest.raises(IndexError):
            held[wrong]
    with pytest.raises(TypeError):
        hash(held)


def test_images_with_several_captions_are_a_mapping(written):
    folder, _ = written
    held = open_several(folder)
    assert dict(held) == SEVERAL
    assert held == SEVERAL
    assert held.get(3) is None
    assert 10 not in held
    (folder / "captions.arrow").write_bytes(packed_texts(["a"], ["b"], {}))
    assert dict(open_several(folder)) == {}


def test_texts_stay_on_disk_until_they_are_read(written, monkeypatch):
    folder, _ = written
    before = pyarrow.total_allocated_bytes()
    _, held = open_texts(folder, 10)
    assert pyarrow.total_allocated_bytes() == before
    read = []
    monkeypatch.setattr(Texts, "_chunk", lambda self, number: read.append(number) or self._chunks[number])
    assert held[5]
    assert held[8:9] == [""]
    assert read == [1, 2]


def test_a_damaged_text_is_told_in_a_line(written):
    folder, captions = written
    content = bytearray((folder / "captions.arrow").read_bytes())
    content[content.index("ü".encode()) + 1] = 0x20
    (folder / "captions.arrow").write_bytes(content)
    _, held = open_texts(folder, 10)
    assert held[0] == captions[0]
    with pytest.raises(IndexMismatch, match=r"captions.arrow is damaged \(.*UTF8"):
        held[9]


# An index whose model, data or networks were moved


def test_a_moved_model_and_moved_data_are_recorded_where_they_are_now(model32, tiny_settings, plain_copy, tmp_path):
    before, folder = files_of(plain_copy), shutil.copytree(plain_copy, tmp_path / "index")
    with pytest.raises(WeightsUnavailable, match="was moved, run the index command again with its new place"):
        open_index(folder)
    (tmp_path / "elsewhere").mkdir()
    model = Model.load(shutil.copytree(model32.source, tmp_path / "elsewhere/model"), model32.device)
    data = shutil.copytree(tiny_settings.data.train_data_dir, tmp_path / "elsewhere/data")
    settings = replace(tiny_settings, data=replace(tiny_settings.data, train_data_dir=Path(data)))
    assert list(build(folder, model, settings)) == []
    opened, index = open_index(folder)
    assert opened.source == str(tmp_path / "elsewhere/model")
    assert index.manifest.source == str(data)
    after = files_of(folder)
    assert {name for name in after if after[name] != before[name]} == {"manifest.json"}
    assert index.id == Index.open(plain_copy).id


def test_data_by_name_are_found_from_any_folder(model32, tiny_settings, tmp_path, monkeypatch):
    """A local folder that `--dataset_name` names, relative to where the command ran."""
    shutil.copytree(tiny_settings.data.train_data_dir, tmp_path / "data")
    for row, path in enumerate(sorted((tmp_path / "data").glob("*.png"))):
        Image.open(path).resize((64, 64)).save(tmp_path / "data" / f"p{row}.png")
    monkeypatch.chdir(tmp_path)
    data = replace(tiny_settings.data, dataset_name="data", train_data_dir=None)
    build_all(tmp_path / "index", model32, replace(tiny_settings, data=data))
    monkeypatch.chdir("/")
    assert Index.open(tmp_path / "index").picture(2).size == (64, 64)


def test_a_feature_network_that_was_moved_is_the_same_one(model32, tiny_settings, plain_copy, tmp_path):
    first = ExtendSettings(features=("dino",), feature_weights={"dino": str(tiny_vit(tmp_path / "one"))})
    for _ in build(plain_copy, model32, tiny_settings, first):
        pass
    shutil.copytree(tmp_path / "one", tmp_path / "two")
    moved = ExtendSettings(features=("dino",), feature_weights={"dino": str(tmp_path / "two")})
    assert list(build(plain_copy, model32, tiny_settings, moved)) == []
    assert Index.open(plain_copy).feature_weights("dino") == str(tmp_path / "two")
    assert Manifest.read(plain_copy).finished("features/dino")


def test_another_feature_network_at_another_place_is_refused(model32, tiny_settings, plain_copy, tmp_path):
    first = ExtendSettings(features=("dino",), feature_weights={"dino": str(tiny_vit(tmp_path / "one"))})
    for _ in build(plain_copy, model32, tiny_settings, first):
        pass
    weights = load_file(tmp_path / "one/model.safetensors")
    shutil.copytree(tmp_path / "one", tmp_path / "two")
    save_file(
        {name: 2 * value for name, value in weights.items()}, tmp_path / "two/model.safetensors", {"format": "pt"}
    )
    other = ExtendSettings(features=("dino",), feature_weights={"dino": str(tmp_path / "two")})
    with pytest.raises(IndexMismatch, match=r"holds features/dino with weights = .*one', now it is .*two'"):
        next(build(plain_copy, model32, tiny_settings, other))


def test_checkpoints_that_were_moved_are_the_same_ones(model32, tiny_settings, plain_copy, tmp_path):
    save_tiny_pipeline(tmp_path / "one", "v_prediction", seed=11)
    shutil.copytree(tmp_path / "one", tmp_path / "two")
    save_tiny_pipeline(tmp_path / "other", "v_prediction", seed=12)

    def asked(name, dimension=32):
        projection, source = GradientSettings(dimension=dimension), str(tmp_path / name)
        return ExtendSettings(gradients=("loss",), projection=projection, checkpoints=(source,))

    for _ in build(plain_copy, model32, tiny_settings, asked("one")):
        pass
    made = Manifest.read(plain_copy).step("gradients/loss")
    assert list(build(plain_copy, model32, tiny_settings, asked("two"))) == []
    assert Index.open(plain_copy).checkpoints("loss") == [str(tmp_path / "two")]
    now = Manifest.read(plain_copy).step("gradients/loss")
    assert (now.stored, now.made.shape, now.made.scale) == (made.stored, made.made.shape, made.made.scale)
    for wrong in (asked("other"), asked("one", 64)):
        with pytest.raises(IndexMismatch, match="holds gradients/loss with"):
            next(build(plain_copy, model32, tiny_settings, wrong))
