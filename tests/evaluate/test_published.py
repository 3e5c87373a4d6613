"""The published benchmark's layout, as its authors document it, made small: two models, of a bird and of a style."""

import json

import pytest
import torch
from conftest import random_picture

from attribution.cli import main
from attribution.diffusion.custom import WEIGHTS
from attribution.diffusion.weights import parameters
from attribution.errors import InputError
from attribution.evaluate.customised import RetrievalSettings
from attribution.evaluate.published import Published, published_cases

TOKEN = "<new1>"
SETTINGS = RetrievalSettings(2, 3, 5, ("clip", "unlearning"), k=3)
FLAGS = ("--models", "2", "--pictures", "3", "--scenes", "5", "--k", "3", "--methods", "clip", "unlearning")
PLACES = {"bird_0008": ("imagenet", "bird", ["media", "gpt"]), "monet": ("artchive", None, ["gpt", "object"])}

pytestmark = pytest.mark.usefixtures("few_gradients")


@pytest.fixture
def root(tmp_path, model32):
    """Per model two exemplars and, in each of two ways, three prompts with two pictures each."""
    top, prompts, seed = tmp_path / "dataset", {}, 0

    def picture(named):
        nonlocal seed
        path, seed = top.parent / named, seed + 1
        path.parent.mkdir(parents=True, exist_ok=True)
        random_picture(seed, (40, 36)).save(path)
        return named

    for name, (place, category, ways) in PLACES.items():
        exemplars = [picture(f"dataset/exemplar/{place}/images/{name}/{number}.jpg") for number in range(2)]
        synth = {
            way: [picture(f"dataset/synth/{place}/{way}/{name}/samples/{number:05d}.png") for number in range(6)]
            for way in ways
        }
        for way, paths in synth.items():
            prompts |= {path: f"a {TOKEN} {way} {number // 2}" for number, path in enumerate(paths)}
        entry = {"exemplar": exemplars, "synth": synth, "class_id": name, "category": category}
        (top / "json").mkdir(exist_ok=True)
        (top / "json" / f"test_{place}.json").write_text(json.dumps([entry]))
        leave_custom(top / "models" / name, model32)
    (top / "path_to_prompts.json").write_text(json.dumps(prompts))
    return top


def leave_custom(folder, model):
    """Keys, values and a word, by the names that diffusers gives them."""
    folder.mkdir(parents=True)
    generator = torch.Generator().manual_seed(len(folder.name))
    held = {
        name.replace("attn2.to_", "attn2.processor.to_").replace(".weight", "_custom_diffusion.weight"): (
            value + 0.1 * torch.randn(value.shape, generator=generator)
        )
        for name, value in parameters(model, "cross-attn-kv").items()
    }
    torch.save({name: value.detach() for name, value in held.items()}, folder / f"{WEIGHTS}.bin")
    torch.save({TOKEN: torch.randn(16, generator=generator)}, folder / f"{TOKEN}.bin")


def cases(root, settings=SETTINGS):
    return published_cases(Published(root, root / "models", root / "path_to_prompts.json"), "an index", settings)


def change(root, place, **entry):
    path = root / "json" / f"test_{place}.json"
    path.write_text(json.dumps([json.loads(path.read_text())[0] | entry]))


def test_models_are_read_with_pictures_of_different_prompts(root):
    read = cases(root)
    assert read.kinds == {"bird_0008": "object", "monet": "style"}
    bird, monet = (read.load(name) for name in read.kinds)
    assert bird.prompts == (f"a {TOKEN} media 0", f"a {TOKEN} media 1", f"a {TOKEN} media 2")
    assert bird.captions == (f"photo of a {TOKEN} bird",) * 2
    assert monet.captions == (f"painting in the style of {TOKEN} art",) * 2
    assert monet.custom.token == TOKEN
    assert len(bird.exemplars) == 2
    assert bird.asked(False)[0] == "a media 0"
    assert bird.pictures[1].tobytes() == random_picture(5, (40, 36)).tobytes()  # of its third: two exemplars, 0, 1, 2
    assert len(cases(root, RetrievalSettings(2, 6)).load("monet").pictures) == 6


def test_a_model_of_two_words_is_refused(root):
    torch.save({"<new2>": torch.ones(16)}, root / "models" / "monet" / "<new2>.bin")
    with pytest.raises(InputError, match=r"models/monet has 2 new words; accepted is one"):
        cases(root).load("monet")


def test_objects_are_of_different_categories(root):
    bird = json.loads((root / "json" / "test_imagenet.json").read_text())[0]
    (root / "json" / "test_imagenet.json").write_text(json.dumps([bird, bird | {"class_id": "another"}]))
    assert list(cases(root).kinds) == ["bird_0008", "monet"]
    with pytest.raises(InputError, match="has 1 categories of objects and 1 styles, 2 of each are wanted"):
        cases(root, RetrievalSettings(4, 3))


def test_missing_files_are_named_in_one_line(root):
    (root / "exemplar" / "imagenet" / "images" / "bird_0008" / "1.jpg").unlink()
    (root / "synth" / "artchive" / "gpt" / "monet" / "samples" / "00002.png").unlink()
    with pytest.raises(InputError, match=r"are missing \(2\): .*bird_0008/1\.jpg, .*monet/samples/00002\.png$"):
        cases(root)


def test_a_model_or_prompts_that_are_missing_are_named(root):
    (root / "models" / "monet").rename(root / "models" / "manet")
    with pytest.raises(InputError, match=r"are missing \(1\): .*models/monet$"):
        cases(root)
    (root / "path_to_prompts.json").write_text("{}")
    with pytest.raises(InputError, match=r"has no prompt of \(12\): dataset/synth/imagenet/media"):
        cases(root)
    (root / "path_to_prompts.json").unlink()
    with pytest.raises(InputError, match=r"path_to_prompts\.json could not be read"):
        cases(root)


@pytest.mark.parametrize(
    ("entry", "told"),
    [
        ({"class_id": "../up"}, "the class_id '../up'"),
        ({"exemplar": ["/etc/passwd"]}, "names the picture '/etc/passwd'; accepted are paths in dataset/"),
        ({"exemplar": ["dataset/../x.png"]}, "names the picture"),
        ({"exemplar": []}, "0 exemplars"),
        ({"synth": ["a list"]}, "has no .*; accepted is the layout"),
    ],
)
def test_an_entry_that_is_not_acceptable_is_refused(root, entry, told):
    change(root, "imagenet", **entry)
    with pytest.raises(InputError, match=told):
        cases(root)


def test_a_root_in_another_layout_is_refused(root, tmp_path):
    for path in (root / "json").iterdir():
        path.write_text("{}")
    with pytest.raises(InputError, match="holds no JSON list; accepted is the layout of Wang et al"):
        cases(root)
    for path in (root / "json").iterdir():
        path.unlink()
    with pytest.raises(InputError, match="there is no json/test_"):
        cases(root)


def test_a_picture_that_is_damaged_is_named(root):
    (root / "exemplar" / "imagenet" / "images" / "bird_0008" / "1.jpg").write_bytes(b"no picture")
    with pytest.raises(InputError, match=r"picture .*bird_0008/1\.jpg could not be read"):
        cases(root).load("bird_0008")


def test_the_command_ranks_the_benchmark(root, full_index, tmp_path, capsys):
    command = ["evaluate", "retrieval", "--folder", str(tmp_path / "work"), "--benchmark", str(root), *FLAGS]
    command += ["--index", str(full_index.path)]
    assert main(command) == 0
    assert "0 of 8 rankings are done" in capsys.readouterr().out
    assert main([*command, "--compute"]) == 0
    printed = capsys.readouterr().out
    assert "8 of 8 rankings are done, among 5 scenes and the exemplars." in printed
    assert printed.count("| unlearning |") == 2
    assert not (tmp_path / "work" / "customised").exists()


def test_the_command_refuses_a_root_with_missing_files(root, full_index, tmp_path, refused):
    (root / "json" / "test_artchive.json").unlink()
    command = ("evaluate", "retrieval", "--folder", str(tmp_path / "work"), "--benchmark", str(root), *FLAGS)
    assert "has 1 categories of objects and 0 styles" in refused(*command, "--compute", index=full_index.path)
    assert not (tmp_path / "work").exists()
