"""Attribution by an adapter's own matrices, against the oracle: a pipeline whose layers each stand beside two more."""

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import oracle
import pytest
import torch
from diffusers import StableDiffusionPipeline
from near import assert_close
from safetensors.torch import save_file
from torch import nn

from attribution.cli import main
from attribution.diffusion.overlaid import open_model
from attribution.diffusion.source import ModelFiles
from attribution.diffusion.weights import parameters
from attribution.errors import InputError
from attribution.index.build import build
from attribution.index.index import Index, open_index
from attribution.index.work import BuildSettings, ExtendSettings
from attribution.methods import attribute
from attribution.methods.answer import AttributeSettings
from attribution.unlearning.fisher import FisherSettings, Samples
from attribution.unlearning.projection import GradientSettings
from attribution.unlearning.step import UnlearnSettings

LAYERS = (
    "down_blocks.0.attentions.0.transformer_blocks.0.attn2.to_k",
    "down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_out.0",
    "down_blocks.1.resnets.0.conv1",
    "up_blocks.1.attentions.0.transformer_blocks.0.attn2.to_v",
)
TEXT = "text_encoder.encoder.layers.0.self_attn.q_proj"
RANK, ALPHA, SCALE = 2, 6.0, 0.5


class Beside(nn.Module):
    """W x + strength B A x, as the paper of LoRA has it."""

    def __init__(self, base, down, up):
        super().__init__()
        self.base, conv = base, isinstance(base, nn.Conv2d)
        self.lora_A = nn.Conv2d(1, 1, 3, padding=1, stride=base.stride, bias=False) if conv else nn.Linear(1, 1, False)
        self.lora_B = nn.Conv2d(1, 1, 1, bias=False) if conv else nn.Linear(1, 1, False)
        self.lora_A.weight, self.lora_B.weight = nn.Parameter(down.double()), nn.Parameter(up.double())

    def forward(self, x):
        return self.base(x) + SCALE * ALPHA / RANK * self.lora_B(self.lora_A(x))


@pytest.fixture(scope="module")
def factors(tiny_folder):
    """(A, B) by layer."""
    pipe = StableDiffusionPipeline.from_pretrained(tiny_folder, safety_checker=None)
    generator, found = torch.Generator().manual_seed(8), {}
    for name in LAYERS:
        shape = pipe.unet.get_submodule(name).weight.shape
        down = 0.1 * torch.randn((RANK, *shape[1:]), generator=generator)
        up = 0.1 * torch.randn((shape[0], RANK, *(1 for _ in shape[2:])), generator=generator)
        found[name] = (down, up)
    return found


@pytest.fixture(scope="module")
def files(tiny_folder, factors, tmp_path_factory):
    """The LoRA as kohya writes it, one layer of the text encoder included."""
    tensors = {}
    for name, (down, up) in {**factors, TEXT: (torch.ones(RANK, 16), torch.ones(16, RANK))}.items():
        start = name if name == TEXT else f"unet.{name}"
        tensors |= {
            f"{start}.lora_down.weight": down,
            f"{start}.lora_up.weight": up,
            f"{start}.alpha": torch.tensor(ALPHA),
        }
    file = tmp_path_factory.mktemp("lora") / "lora.safetensors"
    save_file(tensors, file)
    return ModelFiles(str(tiny_folder), lora_weights=str(file), lora_scale=SCALE, lora_apart=True)


@pytest.fixture(scope="module")
def world(files, factors, tiny_settings, tmp_path_factory, device):
    """The model in float64, its index by the adapter alone, and the oracle's pipeline."""
    model = open_model(files, device, torch.float64)
    fisher = FisherSettings(weights="lora", samples=20, timesteps=3, seed=6)
    settings = BuildSettings(tiny_settings.data, tiny_settings.noise, fisher, batch=6)
    more = ExtendSettings(ekfac=False, gradients=("influence",), projection=GradientSettings(dimension=4096))
    folder = tmp_path_factory.mktemp("apart") / "index"
    for _ in build(folder, model, settings, more):
        pass
    index = Index.open(folder)
    pipe = StableDiffusionPipeline.from_pretrained(
        files.pretrained_model_name_or_path, dtype=torch.float64, safety_checker=None
    )
    pipe.unet.requires_grad_(False)
    for name, pair in factors.items():
        owner, _, own = name.rpartition(".")
        setattr(pipe.unet.get_submodule(owner), own, Beside(pipe.unet.get_submodule(name), *pair))
    pipe.text_encoder.get_submodule(TEXT.removeprefix("text_encoder.")).weight.data += SCALE * ALPHA
    latents = torch.from_numpy(np.array(index.latents, np.float64))
    drawn = Samples.draw(8, 2, 3, seed=6)
    return SimpleNamespace(
        model=model,
        index=index,
        pipe=pipe,
        latents=latents,
        noises=oracle.draw(5, 4, 2, (4, 8, 8), 1000),
        samples=[drawn[number] for number in range(20)],
    )


@pytest.fixture(scope="module")
def information(world):
    noises = oracle.draw(6, 3, 1, (4, 8, 8), 1000)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(oracle, "weights", own)
        return oracle.fisher(world.pipe, world.latents, world.index.captions, noises, world.samples)


def own(pipe, _subset=""):
    """The adapter's matrices by name, in the oracle's pipeline."""
    return {name: value for name, value in pipe.unet.named_parameters() if ".lora_" in name}


def test_the_fisher_information_is_of_the_adapters_matrices_alone_and_equals_the_oracles(world, information, factors):
    assert information.keys() == world.index.fisher.keys() == parameters(world.model, "lora").keys()
    assert len(information) == 2 * len(factors)
    for name, expected in information.items():
        assert_close(world.index.fisher[name], expected, rtol=1e-6, atol=1e-6 * float(expected.mean()))


def test_scores_equal_the_oracles_and_the_weights_come_back(world, information, query, monkeypatch):
    before = world.model.sha256
    losses = oracle.losses(world.pipe, world.latents, world.index.captions, world.noises)
    assert_close(np.array(world.index.base_losses), losses.astype(np.float32), rtol=1e-6, atol=0)
    step = UnlearnSettings(step_size=0.05, timesteps=2, noises=1, seed=8, batch=3)
    settings = AttributeSettings(top_k=8, exhaustive=True, unlearn=step, batch=7)
    *_, answer = attribute(world.model, world.index, query, settings)
    assert answer.settings.unlearn.weights == "lora"
    monkeypatch.setattr(oracle, "weights", own)
    x, text = oracle.see(world.pipe, query.image), oracle.read(world.pipe, query.prompt)
    oracle.unlearn(world.pipe, x, text, oracle.draw(8, 2, 1, (4, 8, 8), 1000), information, 0.05, 0.1, 8, 1)
    after = oracle.losses(world.pipe, world.latents, world.index.captions, world.noises)
    expected = oracle.score(losses.astype(np.float32), after, skew=False)
    assert [result.row for result in answer.results] == sorted(range(8), key=lambda row: -expected[row])
    assert_close([each.score for each in answer.results], sorted(expected, reverse=True), rtol=1e-5, atol=1e-7)
    assert max(map(abs, expected)) > 1e-4
    world.model.__dict__.pop("sha256")
    assert world.model.sha256 == before
    *_, influence = attribute(world.model, world.index, query, AttributeSettings(method="influence", top_k=8))
    assert len(influence.results) == 8


def test_kept_apart_it_predicts_what_merged_it_does_and_other_subsets_are_the_models_own(files, tiny_folder, model32):
    device = torch.device("cpu")
    apart, merged = (open_model(replace(files, lora_apart=each), device) for each in (True, False))
    weaker = open_model(replace(files, lora_scale=0.25), device)
    assert len({each.sha256 for each in (apart, merged, weaker, model32)}) == 4
    generator = torch.Generator().manual_seed(1)
    x, text = torch.randn(2, 4, 8, 8, generator=generator), apart.encode_text(["a bus", "a key"])
    assert_close(text, merged.encode_text(["a bus", "a key"]), rtol=1e-5, atol=1e-5)
    with torch.no_grad():
        made = [each.predict(x, torch.tensor([10, 700]), text) for each in (apart, merged, model32)]
    assert_close(made[0], made[1], rtol=1e-4, atol=1e-4)
    assert float((made[0] - made[2]).abs().max()) > 0.01
    for subset in ("cross-attn-kv", "cross-attn", "attn", "all"):
        assert parameters(apart, subset).keys() == parameters(model32, subset).keys()
    with pytest.raises(InputError, match="has no LoRA apart from its weights; build an index with --lora_weights"):
        parameters(model32, "lora")


def test_the_command_builds_such_an_index_which_opens_with_its_adapter(files, tiny_settings, tmp_path, capsys):
    arguments = ["--pretrained_model_name_or_path", files.pretrained_model_name_or_path, "--fisher_weights", "lora"]
    lora = ["--lora_weights", files.lora_weights, "--lora_scale", str(SCALE)]
    data = ["--train_data_dir", str(tiny_settings.data.train_data_dir), "--timesteps", "1", "--fisher_samples", "3"]
    assert main(["index", *arguments, *data, "--out", str(tmp_path / "none")]) == 2
    assert "has no LoRA apart from its weights" in capsys.readouterr().err
    assert not (tmp_path / "none").exists()
    assert main(["index", *arguments, *lora, *data, "--out", str(tmp_path / "index")]) == 0
    model, index = open_index(tmp_path / "index")
    assert model.files.lora_apart
    assert index.fisher.keys() == parameters(model, "lora").keys()


def test_an_adapter_of_linear_layers_has_ek_fac_too(factors, files, tiny_settings, query, tmp_path):
    linear = [name for name in LAYERS if "attn" in name]
    tensors = {
        f"unet.{name}.lora_{side}.weight": value
        for name in linear
        for side, value in zip("AB", factors[name], strict=True)
    }
    save_file(tensors, tmp_path / "linear.safetensors")
    model = open_model(replace(files, lora_weights=str(tmp_path / "linear.safetensors")), torch.device("cpu"))
    settings = replace(tiny_settings, fisher=FisherSettings(weights="lora", samples=6, timesteps=3, seed=6))
    for _ in build(tmp_path / "index", model, settings, ExtendSettings(ekfac=True)):
        pass
    step = UnlearnSettings(timesteps=2, noises=1)
    settings = AttributeSettings(method="unlearning+", top_k=8, exhaustive=True, unlearn=step)
    *_, answer = attribute(model, Index.open(tmp_path / "index"), query, settings)
    assert answer.settings.unlearn.weights == "lora"
    assert len({result.score for result in answer.results}) == 8
