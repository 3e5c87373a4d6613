"""The paper's experiments by name: every figure that it tells, in a program and on the command line."""

import json
import math
from dataclasses import replace
from typing import get_args

import pytest
import torch

from attribution.cli import main
from attribution.diffusion.noise import NoiseSettings
from attribution.errors import InputError
from attribution.index.work import BuildSettings
from attribution.methods import check_settings, fitting
from attribution.methods.answer import AttributeSettings
from attribution.methods.presets import PRESETS, Preset, filled
from attribution.unlearning.step import UnlearnSettings, newton_step


@pytest.mark.parametrize(
    ("name", "steps", "alpha", "gradients", "timesteps", "images", "fisher"),
    [("mscoco", 1, 0.01, 50_000, 20, 118_287, 591_435), ("customised", 100, 0.1, 160, 10, 400_000_000, 1_000_000)],
)
def test_a_preset_has_the_papers_figures(name, steps, alpha, gradients, timesteps, images, fisher):
    build, answer = PRESETS[name].build, PRESETS[name].answer
    unlearn = answer.unlearn
    assert (unlearn.steps, unlearn.alpha, unlearn.images) == (steps, alpha, images)
    assert unlearn.timesteps * unlearn.noises == gradients
    assert (build.noise.timesteps, build.noise.noises, build.fisher.samples) == (timesteps, 1, fisher)
    assert answer.exhaustive
    assert set(get_args(Preset)) == set(PRESETS)


def test_a_preset_fills_in_what_was_left_at_its_default():
    given = BuildSettings(noise=NoiseSettings(timesteps=3), batch=5)
    build = filled(given, PRESETS["mscoco"].build)
    assert build == replace(PRESETS["mscoco"].build, noise=NoiseSettings(timesteps=3), batch=5)
    assert filled(given, BuildSettings()) == given


def test_every_method_takes_what_it_uses_of_a_preset(model32, full_index):
    for method in ("unlearning", "unlearning+", "unlearning-sgd", "influence", "trak", "clip"):
        settings = filled(AttributeSettings(method=method), fitting(PRESETS["customised"].answer, method))
        checked = check_settings(model32, full_index, settings)
        assert checked.unlearn.images == (400_000_000 if method in ("unlearning", "unlearning+", "influence") else None)


def test_the_images_that_the_model_was_trained_on_divide_the_step(model32, full_index):
    gradient, information = {"x": torch.ones(2)}, {"x": torch.full((2,), 4.0)}
    settings = UnlearnSettings(step_size=8.0, damping=0.0)
    assert newton_step(gradient, information, settings, 2)["x"].tolist() == [1.0, 1.0]
    assert newton_step(gradient, information, replace(settings, images=4), 2)["x"].tolist() == [0.5, 0.5]
    for wrong in (0, -3):
        asked = AttributeSettings(unlearn=UnlearnSettings(images=wrong))
        with pytest.raises(InputError, match=f"images = {wrong} is not possible; accepted are whole numbers from 1"):
            check_settings(model32, full_index, asked)
    asked = AttributeSettings(method="unlearning-sgd", unlearn=UnlearnSettings(images=9))
    with pytest.raises(InputError, match=r"does not use --images \(given: 9\)"):
        check_settings(model32, full_index, asked)


def test_presets_are_named_on_the_command_line(index_folder, tmp_path, capsys, refused):
    out = tmp_path / "answer.json"
    quick = ["--unlearn_timesteps", "2", "--unlearn_noises", "1", "--steps", "2", "--top_k", "2"]
    asked = ["attribute", "--index", str(index_folder), "--prompt", "a bus", "--preset", "customised", *quick]
    assert main([*asked, "--out", str(out)]) == 0
    capsys.readouterr()
    told = json.loads(out.read_text())["settings"]
    assert told["unlearn"]["images"] == 400_000_000
    assert (told["unlearn"]["step_size"], told["unlearn"]["steps"], told["exhaustive"]) == (0.1, 2, True)
    assert math.prod(told["unlearn"][name] for name in ("timesteps", "noises")) == 2
    assert "accepted are customised, mscoco" in refused("attribute", "--prompt", "a bus", "--preset", "coco")
