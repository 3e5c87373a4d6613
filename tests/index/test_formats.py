"""Every format that training data come in, as a small folder; the rows are those that the trainer's script reads."""

import io
import json
import tarfile
from pathlib import Path

import datasets
import pyarrow
import pyarrow.parquet as parquet
import pytest
from conftest import CAPTIONS, build_all, random_picture

from attribution.cli import main
from attribution.errors import InputError
from attribution.index.build import build
from attribution.index.data import DataSettings, open_training_set
from attribution.index.index import Index

NAMES = [f"p{number}.png" for number in range(4)]
TEXTS = CAPTIONS[:4]


def png(number):
    packed = io.BytesIO()
    random_picture(number).save(packed, "PNG")
    return packed.getvalue()


def save_pictures(folder, names=NAMES):
    for number, name in enumerate(names):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(png(number))
    return folder


def write_shard(path, rows, kind="png"):
    """A shard of WebDataset of (number, caption) rows."""
    path.parent.mkdir(exist_ok=True)
    with tarfile.open(path, "w") as shard:
        for number, text in rows:
            for ending, content in ((kind, png(number)), ("txt", text.encode())):
                member = tarfile.TarInfo(f"{number:04d}.{ending}")
                member.size = len(content)
                shard.addfile(member, io.BytesIO(content))


def as_table(folder, images):
    table = {"image": images, "text": TEXTS}
    kinds = datasets.Features({"image": datasets.Image(), "text": datasets.Value("string")})
    return datasets.Dataset.from_dict(table, features=kinds)


def opened(folder, **how):
    return open_training_set(DataSettings(train_data_dir=folder, **how))


def refused(told, settings):
    with pytest.raises(InputError) as caught:
        open_training_set(settings)
    assert "\n" not in str(caught.value)
    assert told in str(caught.value)


def holds(training, captions=TEXTS):
    """Whether these are the four pictures in order, with these captions."""
    assert training.captions == list(captions)
    for row in range(4):
        assert training.image(row).tobytes() == random_picture(row).tobytes()
    return True


def trained_on(dataset, image="image", text="text"):
    """Pixels and captions as diffusers' train_text_to_image.py sees a split: converted to RGB, by its two columns."""
    return [(row[image].convert("RGB").tobytes(), row[text]) for row in dataset]


def rows_of(training):
    return [(training.image(row).tobytes(), training.captions[row]) for row in range(len(training))]


# Tables that `datasets` reads


@pytest.mark.parametrize("flag", ["train_data_dir", "dataset_name"])
@pytest.mark.parametrize("kind", ["bytes", "images", "paths"])
def test_parquet(tmp_path, kind, flag):
    content = [png(number) for number in range(4)]
    if kind == "images":
        as_table(tmp_path, [{"bytes": each, "path": None} for each in content]).to_parquet(tmp_path / "t.parquet")
    else:
        pictures = save_pictures(tmp_path.parent / f"{tmp_path.name}-pictures")
        paths = [str(pictures / name) for name in NAMES]
        told = pyarrow.table({"image": content if kind == "bytes" else paths, "text": TEXTS})
        parquet.write_table(told, tmp_path / "t.parquet")
    training = open_training_set(DataSettings(**{flag: tmp_path if flag == "train_data_dir" else str(tmp_path)}))
    assert holds(training)
    script = datasets.load_dataset(str(tmp_path), split="train").cast_column("image", datasets.Image())
    assert rows_of(training) == trained_on(script)


def test_parquet_with_paths_to_pictures_beside_it(tmp_path):
    """`datasets` would read the pictures alone, of which there are more."""
    save_pictures(tmp_path, [f"images/{name}" for name in NAMES])
    told = pyarrow.table({"image": [f"images/{name}" for name in NAMES], "text": TEXTS})
    parquet.write_table(told, tmp_path / "captions.parquet")
    assert holds(opened(tmp_path))


@pytest.mark.parametrize("flag", ["train_data_dir", "dataset_name"])
def test_a_folder_of_save_to_disk(tmp_path, flag):
    saved = as_table(tmp_path, [{"bytes": png(number), "path": None} for number in range(4)])
    saved.save_to_disk(tmp_path / "one")
    datasets.DatasetDict({"train": saved, "test": saved.select([2])}).save_to_disk(tmp_path / "two")

    def asked(name, **how):
        folder = tmp_path / name
        return DataSettings(**{flag: folder if flag == "train_data_dir" else str(folder)}, **how)

    for name in ("one", "two"):
        training = open_training_set(asked(name))
        assert holds(training)
        assert rows_of(training) == trained_on(saved)
    assert "left out: test (1)" in training.notes[0]
    assert open_training_set(asked("two", dataset_split="test")).captions == [TEXTS[2]]
    refused("has no split 'val'; accepted for --dataset_split are train, test", asked("two", dataset_split="val"))
    refused("was saved without splits; leave out --dataset_split test", asked("one", dataset_split="test"))


def test_shards_of_webdataset(tmp_path):
    write_shard(tmp_path / "0.tar", list(enumerate(TEXTS))[:2])
    write_shard(tmp_path / "1.tar", list(enumerate(TEXTS))[2:])
    refused("its columns are png, txt, __key__, __url__; name those of", DataSettings(train_data_dir=tmp_path))
    training = opened(tmp_path, image_column="png", caption_column="txt")
    assert holds(training)
    assert training.ids == [f"{number:04d}.png" for number in range(4)]
    script = datasets.load_dataset(str(tmp_path), split="train")
    assert rows_of(training) == trained_on(script, "png", "txt")


def test_splits_and_configurations_are_chosen_by_flag(tmp_path):
    rows = list(enumerate(TEXTS))
    for name, some in (("cats/train", rows[:1]), ("cats/test", rows[1:2]), ("dogs/train", rows[2:])):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        content = {"image": [png(number) for number, _ in some], "text": [text for _, text in some]}
        parquet.write_table(pyarrow.table(content), tmp_path / f"{name}.parquet")
    configs = [
        {"config_name": name, "data_files": [{"split": each, "path": f"{name}/{each}.parquet"} for each in splits]}
        for name, splits in (("cats", ["train", "test"]), ("dogs", ["train"]))
    ]
    (tmp_path / "README.md").write_text(f"---\nconfigs: {json.dumps(configs)}\n---\n")

    def asked(**how):
        return DataSettings(dataset_name=str(tmp_path), cache_dir=tmp_path / ".cache", **how)

    refused("it has several configurations; choose one with --dataset_config_name: 'cats', 'dogs'", asked())
    assert open_training_set(asked(dataset_config_name="dogs")).captions == TEXTS[2:]
    assert open_training_set(asked(dataset_config_name="cats", dataset_split="test")).captions == TEXTS[1:2]
    assert list((tmp_path / ".cache").rglob("*.arrow"))
    refused('Unknown split "test"', asked(dataset_config_name="dogs", dataset_split="test"))
    refused("choose one with --dataset_split", asked(dataset_config_name="dogs", dataset_split="test"))
    refused("could not be read (BuilderConfig 'birds' not found", asked(dataset_config_name="birds"))


# Captions apart from their images


def test_a_txt_beside_each_image(tmp_path):
    names = ("p0.png", "p1.jpg.png", "10_bus/p2.png", "10_bus/p3.png")
    save_pictures(tmp_path, names)
    for name, text in zip(names, TEXTS, strict=True):
        (tmp_path / name).with_suffix(".txt").write_text(f"\ufeff{text}  \n", encoding="utf-8")
    training = opened(tmp_path)
    assert holds(training)
    assert training.notes == (f"captions are read from the .txt beside each image of {str(tmp_path)!r}",)
    (tmp_path / "p0.txt").write_text("first\nsecond\n")
    (tmp_path / "p1.jpg.txt").write_bytes(b"\xff\xfe")
    (tmp_path / "10_bus" / "p2.txt").unlink()
    refused("of 4 training images 2 cannot be used: p1.jpg.png (its p1.jpg.txt", DataSettings(None, tmp_path))
    refused("10_bus/p2.png (there is no p2.txt beside it)", DataSettings(None, tmp_path))
    training = opened(tmp_path, skip_bad=True)
    assert training.captions == ["first", TEXTS[3]]
    assert "of texts with several lines the first counts (1): p0.png" in training.notes


def test_metadata_come_before_texts_as_for_the_script(tmp_path):
    save_pictures(tmp_path)
    for name in NAMES:
        (tmp_path / name).with_suffix(".txt").write_text("a text")
    lines = [json.dumps({"file_name": name, "text": text}) for name, text in zip(NAMES, TEXTS, strict=True)]
    (tmp_path / "metadata.jsonl").write_text("\n".join(lines))
    assert holds(opened(tmp_path))


def test_one_prompt_for_a_folder_as_train_dreambooth_reads_it(tmp_path):
    save_pictures(tmp_path, [*NAMES, "others/p5.png"])
    (tmp_path / "notes.md").write_text("about these")
    training = opened(tmp_path, instance_prompt="a photo of sks bus")
    assert holds(training, ["a photo of sks bus"] * 4)
    assert training.ids == sorted(path.name for path in tmp_path.iterdir() if path.suffix == ".png")
    assert training.notes[0].endswith("(1): others/p5.png")
    asked = DataSettings(train_data_dir=tmp_path.parent / "empty", instance_prompt="a")
    (tmp_path.parent / "empty" / "deeper").mkdir(parents=True)
    refused("no picture lies in", asked)


def write_coco(path, captions, **more):
    """Images by their numbers, each with its captions, in another order."""
    images = [{"id": 40 - number, "file_name": name} for number, name in enumerate(reversed(NAMES))]
    by_name = {each["file_name"]: each["id"] for each in images}
    annotations = [
        {"id": 7 * place, "image_id": by_name[name], "caption": text} for place, (name, text) in enumerate(captions)
    ]
    path.write_text(json.dumps({"info": {}, "images": images, "annotations": annotations, **more}))
    return path


def test_captions_of_coco(tmp_path):
    folder = save_pictures(tmp_path / "train2017", [*NAMES, "stray.png"])
    told = [(name, f"{text}{more}") for more in ("", " again") for name, text in zip(NAMES, TEXTS, strict=True)]
    file = write_coco(tmp_path / "captions.json", told)
    training = opened(folder, captions_file=file)
    assert holds(training)
    assert training.ids == NAMES
    assert "that captions.json does not name (1): stray.png" in training.notes[0]
    assert "several captions (4): their losses are averaged over all of them" in training.notes[1]
    assert training.several == {row: (text, f"{text} again") for row, text in enumerate(TEXTS)}
    write_coco(file, told[:2])
    refused(
        "of 4 training images 2 cannot be used: p2.png (it has no caption)",
        DataSettings(None, folder, captions_file=file),
    )


@pytest.mark.parametrize(
    "content", ["[]", "{", '{"images": [], "annotations": {}}', '{"images": [3], "annotations": []}']
)
def test_a_captions_file_of_another_kind_is_refused(tmp_path, content):
    (tmp_path / "captions.json").write_text(content)
    asked = DataSettings(None, save_pictures(tmp_path / "images"), captions_file=tmp_path / "captions.json")
    refused("captions.json could not be read" if content == "{" else "is not of COCO's kind", asked)


def test_images_without_captions_are_refused_with_what_helps(tmp_path):
    save_pictures(tmp_path / "data", ["cat/p0.png", "dog/p1.png"])
    asked = DataSettings(train_data_dir=tmp_path / "data")
    for told in ("metadata.jsonl", "(cat, dog) are no captions", ".txt beside", "--captions_file", "--instance_prompt"):
        refused(told, asked)


@pytest.mark.parametrize(
    ("how", "told"),
    [
        ({"dataset_split": "test"}, "--dataset_split is of no use for"),
        ({"dataset_config_name": "a"}, "--dataset_config_name is of no use for"),
        ({"instance_prompt": "a", "captions_file": Path("x.json")}, "either --captions_file or --instance_prompt"),
    ],
)
def test_settings_that_say_nothing_of_such_data_are_refused(pictures, how, told):
    refused(told, DataSettings(train_data_dir=pictures, **how))


def test_a_prompt_for_a_table_is_refused(tmp_path):
    refused("--instance_prompt is of no use for 'lake/cats'", DataSettings("lake/cats", instance_prompt="a cat"))


# From the folder to the index


def test_an_index_finds_its_captions_file_again(model32, tiny_settings, tmp_path):
    folder = save_pictures(tmp_path / "images")
    file = write_coco(tmp_path / "captions.json", list(zip(NAMES, TEXTS, strict=True)))
    data = DataSettings(train_data_dir=folder, captions_file=file)
    out = build_all(tmp_path / "index", model32, type(tiny_settings)(data, tiny_settings.noise, tiny_settings.fisher))
    index = Index.open(out)
    assert index.manifest.settings.data.captions_file == Path("../captions.json")
    assert index.captions == TEXTS
    assert index.picture(2).tobytes() == random_picture(2).tobytes()
    assert index.pictures._training is not None
    file.rename(tmp_path / "renamed.json")
    moved = DataSettings(train_data_dir=folder, captions_file=tmp_path / "renamed.json")
    settings = type(tiny_settings)(moved, tiny_settings.noise, tiny_settings.fisher)
    assert list(build(out, model32, settings)) == []


def test_the_settings_of_data_are_flags(tiny_folder, tmp_path, capsys):
    folder = save_pictures(tmp_path / "images")
    asked = ("--pretrained_model_name_or_path", str(tiny_folder), "--train_data_dir", str(folder))
    few = ("--timesteps", "1", "--fisher_samples", "1", "--fisher_timesteps", "1")
    out = str(tmp_path / "index")
    assert main(["index", *asked, *few, "--out", out, "--instance_prompt", "a sks bus"]) == 0
    assert Index.open(Path(out)).captions == ["a sks bus"] * 4
    assert main(["index", *asked, *few, "--out", out, "--dataset_split", "test"]) == 2
    assert capsys.readouterr().err.endswith("leave it out\n")
