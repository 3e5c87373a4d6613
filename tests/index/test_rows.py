"""Which rows of a training set count, what each is called, and what is said of those that do not."""

import json
import logging
from pathlib import Path

import datasets
import numpy as np
import pyarrow
import pyarrow.parquet as parquet
import pytest
from conftest import CAPTIONS, random_picture
from PIL import Image

from attribution.errors import InputError
from attribution.index.build import build
from attribution.index.data import DataSettings, open_training_set


def folder_of(folder, rows, table="metadata.jsonl"):
    """An imagefolder of (file name, caption) rows; a caption of ... is left out of the metadata."""
    for number, (name, _) in enumerate(rows):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        random_picture(number).save(folder / name)
    told = [{"file_name": name, **({} if text is ... else {"text": text})} for name, text in rows]
    (folder / table).write_text("".join(json.dumps(row) + "\n" for row in told), encoding="utf-8")
    return folder


def csv_of(folder, text):
    for number in range(4):
        random_picture(number).save(folder / f"p{number}.png")
    (folder / "metadata.csv").write_text(text, encoding="utf-8")
    return folder


def opened(folder, **how):
    return open_training_set(DataSettings(train_data_dir=folder, **how))


def script_trains_on(folder):
    """The images that diffusers' train_text_to_image.py would train on."""
    table = datasets.load_dataset("imagefolder", data_files={"train": str(folder / "**")})["train"]
    undecoded = table.cast_column("image", datasets.Image(decode=False))["image"]
    return sorted(Path(row["path"]).relative_to(folder).as_posix() for row in undecoded)


def refused(folder, *told, **how):
    with pytest.raises(InputError) as caught:
        opened(folder, **how)
    assert "\n" not in str(caught.value)
    for each in told:
        assert each in str(caught.value)


# What counts


@pytest.mark.parametrize(
    "names",
    [
        ("cat/a.png", "cat/b.png", "steam train/a.png", "dog/a.png"),
        ("train/a.png", "test/b.png", "validation/c.png"),
        ("cat.png", "dog.png", "steam train.png", "eval.png", "dev.png"),
        ("val_thorens.png", "cat.png"),
        (".hidden.png", "cat.png", "__dunder.png", "_one.png"),
        ("a[1].png", "b*.png", "\u00e9t\u00e9.png", "deep/er/and/deeper/a.png"),
    ],
)
def test_all_that_the_script_trains_on_counts_whatever_its_name(tmp_path, names):
    folder = tmp_path / "my train data"
    for parent in {Path(name).parent for name in names}:
        rows = [(Path(name).name, f"a {name}") for name in names if Path(name).parent == parent]
        folder_of(folder / parent, rows)
    training = opened(folder)
    paths = sorted(Path(row["path"]).relative_to(folder).as_posix() for row in training._images)
    assert paths == script_trains_on(folder) == sorted(names)


def test_folders_that_datasets_passes_over_are_passed_over(tmp_path):
    folder_of(tmp_path, [("a.png", "a"), ("b.png", "b")])
    folder_of(tmp_path / "__pycache__", [("c.png", "c")])
    folder_of(tmp_path / ".cache", [("d.png", "d")])
    training = opened(tmp_path)
    assert sorted(training.ids) == script_trains_on(tmp_path) == ["a.png", "b.png"]
    assert training.notes == ()


def test_images_without_metadata_are_left_out_and_named(tmp_path, caplog):
    folder_of(tmp_path, [("a.png", "a"), ("b.png", "b")])
    for name in ("stray.png", "sub/Other.JPG"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        random_picture(5).save(tmp_path / name)
    with caplog.at_level(logging.WARNING):
        training = opened(tmp_path)
    assert sorted(training.ids) == script_trains_on(tmp_path)
    assert training.notes == tuple(caplog.messages)
    assert "that no metadata file names (2)" in training.notes[0]
    assert training.notes[0].endswith("stray.png, sub/Other.JPG")


def test_other_splits_of_a_data_set_are_named(tmp_path):
    for split in ("train", "test"):
        (tmp_path / split).mkdir()
        content = [path.read_bytes() for path in sorted(folder_of(tmp_path / f"p-{split}", ROWS).glob("*.png"))]
        parquet.write_table(pyarrow.table({"image": content, "text": CAPTIONS[:4]}), tmp_path / split / "0.parquet")
    for each in ("p-train", "p-test"):
        (tmp_path / each).rename(tmp_path.parent / f"{tmp_path.name}-{each}")
    training = open_training_set(DataSettings(dataset_name=str(tmp_path)))
    assert len(training) == 4
    assert "left out: test (4)" in training.notes[0]


ROWS = [(f"p{number}.png", text) for number, text in enumerate(CAPTIONS[:4])]


# Captions


@pytest.mark.parametrize(
    ("caption", "fault"),
    [
        (None, "it has no caption"),
        (..., "it has no caption"),
        ([], "its list of captions is empty"),
        ([None], "it has no caption"),
        (["one", None], "it has no caption"),
        ([["a"]], "its caption is ['a'], which is not text"),
        (7, "its caption is 7, which is not text"),
        (True, "its caption is True, which is not text"),
        ({"en": "a"}, "its caption is {'en': 'a'}, which is not text"),
        ("half \ud83d", "its caption has half a character"),
    ],
)
def test_a_caption_that_is_no_text_is_named_or_skipped(tmp_path, caption, fault):
    folder_of(tmp_path, [*ROWS[:3], ("p3.png", caption)])
    refused(tmp_path, "of 4 training images 1 cannot be used: p3.png", fault, "--skip_bad")
    training = opened(tmp_path, skip_bad=True)
    assert training.ids == ["p0.png", "p1.png", "p2.png"]
    assert training.captions == CAPTIONS[:3]
    assert fault in training.notes[0]


def test_all_bad_rows_are_named_at_once_up_to_some(tmp_path):
    folder_of(tmp_path, [(f"{number:02d}.png", None if number % 2 else "a") for number in range(24)])
    refused(tmp_path, "of 24 training images 12", "01.png (it has no caption), 03.png", "15.png", "and 4 more")
    assert len(opened(tmp_path, skip_bad=True)) == 12


def test_a_folder_of_bad_rows_alone_is_empty(tmp_path, model32, tiny_settings):
    folder_of(tmp_path / "data", [(name, number) for number, (name, _) in enumerate(ROWS)])
    data = DataSettings(train_data_dir=tmp_path / "data", skip_bad=True)
    with pytest.raises(InputError, match="the training data are empty"):
        next(build(tmp_path / "index", model32, type(tiny_settings)(data)))
    assert not (tmp_path / "index").exists()


def test_lists_and_blank_text_are_captions(tmp_path):
    """The script takes any of a list, and trains on a blank caption as on a picture without a text."""
    folder_of(tmp_path, [("a.png", ["one", "two"]), ("b.png", ""), ("c.png", "2024-01-01"), ("d.png", "NA")])
    training = opened(tmp_path)
    assert training.captions == ["one", "", "2024-01-01", "NA"]
    assert training.several == {0: ("one", "two")}
    assert training.notes == (
        "images with several captions (1): their losses are averaged over all of them, of which diffusers' script draws"
        " any each time; the first is shown",
        "blank captions (1): these images count as trained on without a text",
    )


def test_words_that_pandas_takes_for_missing_stay_text(tmp_path):
    lines = ["p0.png,None", "p1.png,NA", 'p2.png,"null, nan"', "p3.png,7"]
    training = opened(csv_of(tmp_path, "\ufefffile_name,text\r\n" + "\r\n".join(lines) + "\r\n"))
    assert training.captions == ["None", "NA", "null, nan", "7"]
    assert training.ids == ["p0.png", "p1.png", "p2.png", "p3.png"]


@pytest.mark.parametrize(
    ("line", "fault"),
    [
        ("p3.png,", "p3.png (it has no caption)"),
        ("p3.png", "p3.png (it has no caption)"),
        ("p3.png,a cat, sitting", "p3.png (it has more cells than the table has columns"),
        (",a cat", "metadata.csv, row 4 (it names no image file)"),
        ("../p3.png,a cat", "is not a path inside the folder of its metadata"),
        ("/etc/passwd,a cat", "is not a path inside the folder of its metadata"),
        ("gone.png,a cat", "gone.png (there is no such file)"),
    ],
)
def test_a_line_of_a_table_that_cannot_be_used_is_named(tmp_path, line, fault):
    csv_of(tmp_path, f"file_name,text\np0.png,a\np1.png,b\np2.png,c\n{line}\n")
    refused(tmp_path, "of 4 training images 1 ", fault)
    assert opened(tmp_path, skip_bad=True).captions == ["a", "b", "c"]


@pytest.mark.parametrize("line", ['{"file_name": "p3.png", "text": "a"', "[1]", "nonsense"])
def test_a_line_that_is_not_json_is_named(tmp_path, line):
    folder_of(tmp_path, ROWS)
    with (tmp_path / "metadata.jsonl").open("a") as file:
        file.write(f"{line}\n\n")
    refused(tmp_path, "of 5 training images 1 ", "metadata.jsonl, row 5 (its line is not")


def test_what_is_no_imagefolder_is_refused_in_a_sentence(tmp_path):
    refused(tmp_path / "nowhere", "there is no such folder")
    random_picture(0).save(tmp_path / "a.png")
    refused(tmp_path, "there is no metadata.jsonl with a file_name and a text for each image")
    (tmp_path / "metadata.csv").write_bytes(b"\xff\xfe\x00")
    refused(tmp_path, "metadata.csv could not be read")
    folder_of(tmp_path, ROWS)
    refused(tmp_path, "metadata of several kinds, metadata.csv and metadata.jsonl")
    (tmp_path / "metadata.csv").unlink()
    (tmp_path / "more.zip").write_bytes(b"PK")
    refused(tmp_path, "has the archives more.zip, which are not read here; unpack them")


# Images


@pytest.fixture(scope="module")
def stored(tmp_path_factory):
    """Paths and bytes of four pictures."""
    folder = folder_of(tmp_path_factory.mktemp("stored"), ROWS)
    paths = [str(folder / name) for name, _ in ROWS]
    return paths, [Path(path).read_bytes() for path in paths]


def table_of(folder, images, **features):
    kinds = datasets.Features({"image": datasets.Image(), "text": datasets.Value("string")}) if features else None
    table = {"image": images, "text": CAPTIONS[: len(images)]}
    if kinds:
        datasets.Dataset.from_dict(table, features=kinds).to_parquet(str(folder / "train.parquet"))
    else:
        parquet.write_table(pyarrow.table(table), folder / "train.parquet")
    return DataSettings(dataset_name=str(folder))


@pytest.mark.parametrize("kind", ["bytes", "paths", "dicts", "csv", "images"])
def test_images_are_read_from_bytes_paths_and_dicts(tmp_path, stored, kind):
    paths, content = stored
    settings = DataSettings(dataset_name=str(tmp_path))
    if kind == "csv":
        lines = [f'{path},"{text}"\n' for path, text in zip(paths, ["None", *CAPTIONS[1:4]], strict=True)]
        (tmp_path / "train.csv").write_text("image,text\n" + "".join(lines))
    elif kind == "images":
        settings = table_of(tmp_path, [{"bytes": each, "path": None} for each in content], features=True)
    else:
        dicts = [{"bytes": each, "path": f"{row}.png"} for row, each in enumerate(content)]
        settings = table_of(tmp_path, {"bytes": content, "paths": paths, "dicts": dicts}[kind])
    training = open_training_set(settings)
    assert training.captions == [*(["None"] if kind == "csv" else CAPTIONS[:1]), *CAPTIONS[1:4]]
    assert len(set(training.ids)) == 4
    for row in range(4):
        assert training.image(row).tobytes() == random_picture(row).tobytes()


def test_missing_and_damaged_images_of_a_table_are_named(tmp_path, stored):
    content = stored[1]
    rows = [{"bytes": content[0], "path": "a.png"}, None, {"bytes": content[2][:-90], "path": "c.png"}]
    settings = table_of(tmp_path, [*rows, {"bytes": b"no picture", "path": "d.png"}], features=True)
    with pytest.raises(
        InputError, match=r"of 4 training images 3 .*: 1 \(it has no image\), c.png \(.*truncated\), d.png \(cannot"
    ):
        open_training_set(settings)


def test_a_column_that_holds_no_images_is_refused(tmp_path):
    parquet.write_table(pyarrow.table({"image": [1, 2], "text": ["a", "b"]}), tmp_path / "train.parquet")
    with pytest.raises(InputError, match=r"the column 'image' of .* holds no images"):
        open_training_set(DataSettings(dataset_name=str(tmp_path)))


def test_images_of_a_folder_that_cannot_be_used_are_named_at_once(tmp_path):
    folder_of(tmp_path, [("a.png", "a bus"), ("c.png", "a bus")])
    floats = np.full((32, 32), 128.0, np.float32)
    floats[3, 4] = np.nan
    Image.fromarray(floats).save(tmp_path / "b.tiff")
    (tmp_path / "d.png").write_bytes((tmp_path / "a.png").read_bytes()[:-200])
    random_picture(1, (64, 64)).save(tmp_path / "e.jpg")
    (tmp_path / "e.jpg").write_bytes((tmp_path / "e.jpg").read_bytes()[:-300])
    names = ("a.png", "b.tiff", "c.png", "d.png", "e.jpg")
    (tmp_path / "metadata.jsonl").write_text(
        "".join(json.dumps({"file_name": name, "text": "a bus"}) + "\n" for name in names)
    )
    refused(tmp_path, "of 5 training images 3 ", "b.tiff (it has pixels that are not finite)", "d.png (", "e.jpg (")
    training = opened(tmp_path, skip_bad=True)
    assert training.ids == ["a.png", "c.png"]
    assert training.image(1).size == (32, 32)
    (tmp_path / "c.png").unlink()
    with pytest.raises(InputError, match=r"the training image c.png cannot be used \(there is no such file\)"):
        training.image(1)


# Ids and the fingerprint


@pytest.mark.parametrize(
    ("names", "ids"),
    [
        (("x/a.png", "y/b.png"), ["a.png", "b.png"]),
        (("x/a.png", "y/a.png", "b.png"), ["x/a.png", "y/a.png", "b.png"]),
        (("a.png", "b.png", "a.png"), ["a.png (row 0)", "b.png", "a.png (row 2)"]),
    ],
)
def test_ids_are_unique_and_can_be_looked_up(tmp_path, names, ids):
    assert opened(folder_of(tmp_path, [(name, "a") for name in names])).ids == ids


@pytest.mark.parametrize("name", ["p7.png", "p7.jpg"])
def test_the_fingerprint_covers_every_image(tmp_path, name):
    folder_of(tmp_path, [*[(f"p{number}.png", "a") for number in range(7)], (name, "a")])
    before = opened(tmp_path).sha256()
    assert opened(tmp_path).sha256() == opened(tmp_path, skip_bad=True).sha256() == before
    random_picture(99).save(tmp_path / name)
    assert opened(tmp_path).sha256() != before


def test_the_fingerprint_tells_ids_from_captions(tmp_path):
    first = opened(folder_of(tmp_path / "1", [("a.png", "x\ny")])).sha256()
    assert opened(folder_of(tmp_path / "2", [("a.png", "x y")])).sha256() != first


def test_a_png_compressed_otherwise_is_the_same_image(tmp_path):
    before = opened(folder_of(tmp_path, ROWS)).sha256()
    random_picture(2).save(tmp_path / "p2.png", compress_level=1)
    assert opened(tmp_path).sha256() == before
