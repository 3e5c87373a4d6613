"""`index` and `scenes`: folders that are built."""

import json
import shutil

import pytest
import torch
from diffusers import FlowMatchEulerDiscreteScheduler
from safetensors.torch import save_file

from attribution.cli import main
from attribution.diffusion.noise import NoiseSettings
from attribution.diffusion.pipeline import Model
from attribution.diffusion.weights import parameters
from attribution.index.index import Index, open_index
from attribution.unlearning.fisher import FisherSettings

PROMPT = ("--prompt", "a green bus")


def test_scenes_writes_its_folder_and_refuses_one_that_is_not_empty(refused, capsys, tmp_path):
    out = tmp_path / "scenes"
    assert main(["scenes", "--out", str(out), "--split", "heldout"]) == 0
    assert capsys.readouterr().out == f"{out}\n"
    assert len(list(out.glob("*.png"))) == 512
    assert len((out / "metadata.jsonl").read_text().splitlines()) == 512
    (out / "metadata.jsonl").write_text("changed")
    assert "is not empty" in refused("scenes", "--out", str(out), index=None)
    assert (out / "metadata.jsonl").read_text() == "changed"
    (tmp_path / "file").write_text("")
    assert "--out" in refused("scenes", "--out", str(tmp_path / "file"), index=None)


def test_index_builds_an_index_that_attribute_reads(capsys, refused, tiny_folder, pictures, tmp_path):
    arguments = [
        *("index", "--out", str(tmp_path / "index"), "--pretrained_model_name_or_path", str(tiny_folder)),
        *("--train_data_dir", str(pictures), "--timesteps", "2", "--fisher_samples", "8", "--batch", "8"),
    ]
    assert "was made for 32 px" in refused(*arguments, "--resolution", "512", index=None)
    assert main([*arguments, "--resolution", "32"]) == 0
    assert main(arguments) == 0  # finished already
    assert len(Index.open(tmp_path / "index")) == 8
    assert main(["attribute", *PROMPT, "--index", str(tmp_path / "index"), "--top_k", "1"]) == 0
    capsys.readouterr()
    told = refused(*arguments[:-4], "--fisher_samples", "9", "--batch", "8", index=None)
    assert "'samples': 8" in told
    assert "'samples': 9" in told
    assert "could not be read" in refused(*arguments[:5], "--train_data_dir", str(tmp_path / "none"), index=None)
    assert "either --dataset_name or --train_data_dir" in refused(*arguments[:5], index=None)
    weightless = ("index", "--out", str(tmp_path / "i"), "--pretrained_model_name_or_path", str(tmp_path / "none"))
    told = refused(*weightless, "--train_data_dir", str(pictures), index=None)
    assert "no Stable Diffusion pipeline could be loaded" in told


def test_a_name_that_is_taken_by_a_file_is_refused_before_any_work(
    refused, tiny_folder, pictures, tmp_path, monkeypatch
):
    (tmp_path / "file").touch()
    monkeypatch.setattr("attribution.diffusion.pipeline.Model.load", lambda *_: pytest.fail("work"))
    asked = ("--pretrained_model_name_or_path", str(tiny_folder), "--train_data_dir", str(pictures))
    for name in ("file", "file/index", "/proc/index"):
        told = refused("index", *asked, "--out", str(tmp_path / name), index=None)
        assert f"--out {tmp_path / name} cannot be written" in told


def test_every_setting_of_a_build_is_a_flag(tiny_folder, pictures, tmp_path):
    out = tmp_path / "index"
    asked = ("--pretrained_model_name_or_path", str(tiny_folder), "--train_data_dir", str(pictures), "--out", str(out))
    given = ("--timesteps", "2", "--noises", "2", "--seed", "7", "--start", "0.25", "--end", "0.75", "--no_random_flip")
    fisher = (
        "--fisher_samples",
        "8",
        "--fisher_timesteps",
        "3",
        "--fisher_seed",
        "4",
        "--fisher_weights",
        "cross-attn",
    )
    added = ("--gradients", "loss", "--projection_dimension", "32", "--projection_seed", "6")
    assert main(["index", *asked, *given, *fisher, *added]) == 0
    index = Index.open(out)
    settings = index.manifest.settings
    assert settings.noise == NoiseSettings(2, 2, 7, 0.25, 0.75)
    assert settings.fisher == FisherSettings("cross-attn", 8, 3, 4)
    assert not settings.data.random_flip
    assert index.array("gradients/loss").shape[-1] == 32


def test_an_index_of_a_model_with_what_is_laid_over_it_is_opened_with_it(
    capsys, refused, tiny_folder, pictures, tmp_path
):
    """A LoRA and Custom Diffusion; the index remembers both, and says so if one of them is another later."""
    held = Model.load(tiny_folder)
    keys = {name: value + 1 for name, value in parameters(held, "cross-attn-kv").items()}
    torch.save({"unet": keys, "modifier_token": {"<new1>": torch.ones(16)}}, tmp_path / "delta.bin")
    name = "mid.safetensors"
    layer = next(iter(keys)).removesuffix(".weight")

    def adapt(value):
        factors = {f"unet.{layer}.lora_{side}.weight": torch.full((16, 16), value) for side in "AB"}
        save_file(factors, tmp_path / name)

    adapt(0.1)
    base = (*("index", "--train_data_dir", str(pictures)), "--pretrained_model_name_or_path", str(tiny_folder))
    small = ("--timesteps", "2", "--fisher_samples", "8", "--batch", "8", "--out", str(tmp_path / "index"))
    over = ("--lora_weights", str(tmp_path / name), "--custom_diffusion", str(tmp_path / "delta.bin"))
    assert main([*base, *small, *over, "--lora_scale", "0.5"]) == 0
    model, index = open_index(tmp_path / "index")
    assert index.manifest.model.source.lora_weights == f"../{name}"  # beside the index, wherever both are moved
    assert index.manifest.model.source.lora_scale == 0.5
    assert model.sha256 == index.manifest.model.sha256 != held.sha256
    expected = keys[f"{layer}.weight"] + 0.5 * 16 * 0.1**2
    torch.testing.assert_close(parameters(model, "cross-attn-kv")[f"{layer}.weight"].data, expected.data)
    asked = ("--prompt", "a <new1> bus", "--index", str(tmp_path / "index"))
    assert main(["attribute", *asked, "--top_k", "1"]) == 0
    capsys.readouterr()
    adapt(0.2)
    assert "the index was made with model" in refused("attribute", *asked, index=None)
    assert "was built with model sha256" in refused(*base, *small, *over, "--lora_scale", "0.5", index=None)
    assert "--lora_scale 0.5 is of no use" in refused(*base, *small, "--lora_scale", "0.5", index=None)


def test_a_lora_of_another_base_is_refused_before_anything_is_written(refused, tiny_folder, pictures, tmp_path):
    save_file({f"unet.x.lora_{side}.weight": torch.ones(2, 2) for side in "AB"}, tmp_path / "x.safetensors")
    asked = ("--pretrained_model_name_or_path", str(tiny_folder), "--train_data_dir", str(pictures))
    told = refused(
        "index", *asked, "--out", str(tmp_path / "i"), "--lora_weights", str(tmp_path / "x.safetensors"), index=None
    )
    assert "was made for another model" in told
    assert not (tmp_path / "i").exists()


@pytest.mark.parametrize("dry", [(), ("--dry_run",)])
@pytest.mark.parametrize(
    ("given", "told"),
    [
        (
            ("--caption_column", "prompt"),
            "no column 'prompt'; its columns are image, text; name those of images",
        ),
        (("--image_column", "picture"), "no column 'picture'; its columns are image, text"),
        (("--max_train_samples", "0"), "the training data are empty; at least one captioned image is needed"),
        (("--dataset_split", "test"), "--dataset_split is of no use"),
    ],
)
def test_data_that_cannot_be_built_from_are_refused_before_anything_is_written(
    refused, tiny_folder, pictures, tmp_path, given, told, dry
):
    asked = ("--pretrained_model_name_or_path", str(tiny_folder), "--train_data_dir", str(pictures), *given, *dry)
    assert told in refused("index", *asked, "--out", str(tmp_path / "index"), index=None)
    assert list(tmp_path.iterdir()) == []


def test_an_empty_folder_and_what_cannot_be_reached_are_refused(refused, tiny_folder, pictures, tmp_path):
    (tmp_path / "empty").mkdir()
    base = ("index", "--pretrained_model_name_or_path", str(tiny_folder), "--out", str(tmp_path / "index"))
    assert "there is no metadata.jsonl" in refused(*base, "--train_data_dir", str(tmp_path / "empty"), index=None)
    (tmp_path / "empty" / "metadata.jsonl").touch()
    assert "the training data are empty" in refused(*base, "--train_data_dir", str(tmp_path / "empty"), index=None)
    assert "'nobody/nothing' could not be read" in refused(*base, "--dataset_name", "nobody/nothing", index=None)
    away = (*base[:2], "nobody/nothing", *base[3:], "--train_data_dir", str(pictures))
    told = refused(*away, index=None)
    assert "no Stable Diffusion pipeline could be loaded from 'nobody/nothing'" in told
    assert not (tmp_path / "index").exists()


@pytest.mark.parametrize("dry", [(), ("--dry_run",)])
def test_an_index_of_a_newer_format_is_refused(refused, tiny_folder, pictures, tmp_path, dry):
    (tmp_path / "manifest.json").write_text('{"format_version": 3, "more": []}')
    asked = ("--pretrained_model_name_or_path", str(tiny_folder), "--train_data_dir", str(pictures))
    told = refused("index", *asked, "--out", str(tmp_path), *dry, index=None)
    assert "has format version 3, this program reads 2; update this program, or build it anew" in told
    assert (tmp_path / "manifest.json").read_text() == '{"format_version": 3, "more": []}'


def test_a_model_that_cannot_be_had_or_used_is_refused_before_anything_is_written(
    refused, tiny_folder, pictures, tmp_path
):
    flow = shutil.copytree(tiny_folder, tmp_path / "flow")
    FlowMatchEulerDiscreteScheduler().save_pretrained(flow / "scheduler")
    told = json.loads((flow / "model_index.json").read_text())
    told["scheduler"] = ["diffusers", "FlowMatchEulerDiscreteScheduler"]
    (flow / "model_index.json").write_text(json.dumps(told))
    for name, why in (
        ("someone/not-there", "no Stable Diffusion pipeline could be loaded from 'someone/not-there'"),
        (str(flow), "has the scheduler FlowMatchEulerDiscreteScheduler, whose noise is not that of"),
    ):
        asked = ("--pretrained_model_name_or_path", name, "--train_data_dir", str(pictures))
        assert why in refused("index", *asked, "--out", str(tmp_path / "index"), index=None)
    assert not (tmp_path / "index").exists()


def test_a_learned_word_is_part_of_an_index_and_of_its_model(capsys, tiny_folder, pictures, tmp_path):
    save_file({"<cat>": torch.ones(2, 16)}, tmp_path / "cat.safetensors")
    asked = [
        *("index", "--out", str(tmp_path / "index"), "--pretrained_model_name_or_path", str(tiny_folder)),
        *("--train_data_dir", str(pictures), "--timesteps", "1", "--fisher_samples", "2"),
        *("--textual_inversion", str(tmp_path / "cat.safetensors")),
    ]
    assert main(asked) == 0
    model, index = open_index(tmp_path / "index")
    assert index.manifest.model.source.textual_inversion == ("../cat.safetensors",)
    assert not index.manifest.model.source.lora_apart
    assert model.tokens.count("<cat>").count == 4  # two vectors between the markers
    picture = tmp_path / "cat.png"
    asked = ["generate", "--index", str(tmp_path / "index"), "--prompt", "a <cat>", "--seed", "1"]
    assert main([*asked, "--out", str(picture)]) == 0
    assert picture.is_file()
