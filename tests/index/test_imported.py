"""Published artefacts in place of computed ones: small files in the layout that is assumed of the paper's."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from conftest import build_all
from safetensors.torch import save_file

from attribution.cli import main
from attribution.errors import IndexMismatch, InputError
from attribution.index.build import build
from attribution.index.index import Index
from attribution.index.manifest import ImportRecord, Manifest


def fisher_info(index32, path, change=lambda name, value: value, start=""):
    torch.save({f"{start}{name}": change(name, value) for name, value in index32.fisher.items()}, path)
    return path


@pytest.fixture
def settings(tiny_settings, index32, tmp_path):
    """Of a build from both files."""
    np.save(tmp_path / "latents.npy", np.asarray(index32.latents, np.float32))
    file = fisher_info(index32, tmp_path / "fisher_info.pt", lambda _, value: value * 2)
    return replace(tiny_settings, fisher_file=file, latents_file=tmp_path / "latents.npy")


def test_an_index_is_built_from_published_files(model32, index32, settings, tmp_path):
    steps = {each.step: each.total for each in build(tmp_path / "index", model32, settings)}
    assert steps["fisher"] == 1
    index = Index.open(tmp_path / "index")
    index.check(model32)
    assert index.fisher.keys() == index32.fisher.keys()
    assert all(torch.equal(index.fisher[name], 2 * value) for name, value in index32.fisher.items())
    assert np.array_equal(index.latents, index32.latents)
    assert np.array_equal(index.base_losses, index32.base_losses)
    made = [Manifest.read(index.path).step(name).made for name in ("latents", "fisher")]
    assert all(isinstance(each, ImportRecord) and len(each.sha256) == 64 for each in made)
    assert not list(build(index.path, model32, settings))
    with pytest.raises(IndexMismatch, match="holds fisher with ImportRecord"):
        list(build(index.path, model32, replace(settings, fisher_file=None)))
    torch.save({name: value * 3 for name, value in index32.fisher.items()}, settings.fisher_file)
    with pytest.raises(IndexMismatch, match="holds fisher with sha256"):
        list(build(index.path, model32, settings))


def test_other_spellings_are_read(model32, index32, tiny_settings, tmp_path):
    flat = fisher_info(index32, tmp_path / "fisher_info.pt", lambda _, value: value.flatten(), "module.unet.")
    torch.save({"latents": torch.from_numpy(np.array(index32.latents))}, tmp_path / "latents.pt")
    settings = replace(tiny_settings, fisher_file=flat, latents_file=tmp_path / "latents.pt")
    index = Index.open(build_all(tmp_path / "index", model32, settings))
    assert all(torch.equal(index.fisher[name], value) for name, value in index32.fisher.items())
    assert np.array_equal(index.latents, index32.latents)
    once = replace(settings, data=replace(settings.data, random_flip=False))
    np.save(tmp_path / "once.npy", np.array(index32.latents[:, 0]))
    once = replace(once, latents_file=tmp_path / "once.npy")
    assert Index.open(build_all(tmp_path / "second", model32, once)).latents.shape == (8, 1, 4, 8, 8)


def refuse(model32, settings, tmp_path, told):
    with pytest.raises(InputError, match=told) as caught:
        list(build(tmp_path / "refused", model32, settings))
    assert "\n" not in str(caught.value)
    assert not list((tmp_path / "refused").glob("*.npy"))


def test_a_fisher_information_that_does_not_fit_is_refused_before_any_work(model32, index32, settings, tmp_path):
    name, value = next(iter(index32.fisher.items()))
    accepted = rf"accepted are tensors by the names of the cross-attn-kv weights of .*, here \({value.shape[0]}, 16\)"
    cases = (
        ({}, f"holds nothing of {name}; {accepted}"),
        ({name: torch.zeros(3, 3)}, rf"holds a tensor of shape \(3, 3\) of {name}; {accepted}"),
        ({name: -value}, f"values of {name} that are negative or not finite"),
        ({name: value * float("nan")}, f"values of {name} that are negative or not finite"),
    )
    for change, told in cases:
        torch.save(change if not change else {**index32.fisher, **change}, settings.fisher_file)
        refuse(model32, settings, tmp_path, told)
    refuse(model32, replace(settings, fisher_file=tmp_path / "none.pt"), tmp_path, "there is no file")


def test_latents_that_do_not_fit_are_refused_before_any_work(model32, index32, settings, tmp_path):
    held = np.array(index32.latents, np.float32)
    shape = r"accepted are floating-point numbers of shape \(8, 2, 4, 8, 8\)"
    for change, told in (
        (held[:5], rf"holds float32 of shape \(5, 2, 4, 8, 8\); {shape}"),
        (held[:, 0], rf"{shape}.*build with --no-random_flip"),
        (held.astype(np.int64), "holds int64"),
        (held / 0.18215, "begins with latents unlike those of the first picture .cosine 1.00, 5.5 times as large"),
        (-held, "begins with latents unlike those of the first picture .cosine -1.00"),
    ):
        np.save(settings.latents_file, change)
        refuse(model32, settings, tmp_path, told)
    save_file({"a": torch.zeros(1), "b": torch.zeros(1)}, tmp_path / "two.safetensors")
    refuse(model32, replace(settings, latents_file=tmp_path / "two.safetensors"), tmp_path, "holds 2 tensors")
    settings.latents_file.write_bytes(b"no array")
    refuse(model32, settings, tmp_path, "could not be read")


def test_nothing_is_unpickled(model32, settings, tmp_path):
    class Trap:
        def __reduce__(self):
            return (tmp_path.joinpath("sprung").touch, ())

    torch.save({"x": Trap()}, settings.fisher_file)
    refuse(model32, settings, tmp_path, "could not be read")
    np.save(settings.latents_file, np.array([Trap()], object), allow_pickle=True)
    refuse(model32, settings, tmp_path, "could not be read")
    assert not (tmp_path / "sprung").exists()


def test_the_files_are_named_on_the_command_line(tiny_folder, settings, tmp_path, capsys):
    arguments = ["--pretrained_model_name_or_path", str(tiny_folder), "--out", str(tmp_path / "index")]
    files = ["--fisher_file", str(settings.fisher_file), "--latents_file", str(settings.latents_file)]
    data = ["--train_data_dir", str(settings.data.train_data_dir), "--timesteps", "1"]
    assert main(["index", *arguments, *files, *data]) == 0
    steps = json.loads((tmp_path / "index/manifest.json").read_text())["steps"]
    assert [set(steps[name]["made"]) for name in ("latents", "fisher")] == [{"sha256"}] * 2
    capsys.readouterr()
    files[1] = str(tmp_path / "none.pt")
    assert main(["index", *arguments, *files, *data, "--out", str(tmp_path / "other")]) == 2
    assert "there is no file" in capsys.readouterr().err
