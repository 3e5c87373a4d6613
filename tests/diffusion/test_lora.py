"""LoRA in the formats that people have: merged, it is W + alpha / r B A, whoever wrote the file."""

import json
from types import SimpleNamespace

import pytest
import torch
from diffusers import StableDiffusionPipeline
from diffusers.loaders.lora_conversion_utils import _maybe_map_sgm_blocks_to_diffusers
from safetensors.torch import save_file
from sdxl import save_tiny_xl
from torch.testing import assert_close

from attribution.diffusion.adapted import _by_diffusers, merge_lora
from attribution.diffusion.lora import read_lora
from attribution.diffusion.overlaid import open_model
from attribution.diffusion.pipeline import Model
from attribution.diffusion.source import ModelFiles
from attribution.errors import InputError, WeightsUnavailable

KEY = "down_blocks.0.attentions.0.transformer_blocks.0.attn2.to_k"
OUT = "up_blocks.1.attentions.1.transformer_blocks.0.attn2.to_out.0"
CONV = "down_blocks.1.resnets.0.conv1"
QUERY = "encoder.layers.0.self_attn.q_proj"
RANK, ALPHA = 2, 6


@pytest.fixture
def factors(model32):
    """(down, up) of four layers, one of them a convolution and one of the text encoder."""
    generator, found = torch.Generator().manual_seed(8), {}
    for name in (KEY, OUT, CONV, QUERY):
        shape = layer_of(model32, name).weight.shape
        down = torch.randn((RANK, *shape[1:]), generator=generator)
        up = torch.randn((shape[0], RANK, *(1 for _ in shape[2:])), generator=generator)
        found[name] = (down, up)
    return found


def layer_of(model, name):
    return (model.text_encoder if name == QUERY else model.unet).get_submodule(name)


def part_of(name):
    return "text_encoder" if name == QUERY else "unet"


def written(folder, tensors, file="pytorch_lora_weights.safetensors", metadata=None):
    folder.mkdir(parents=True, exist_ok=True)
    tensors = {name: value.contiguous() for name, value in tensors.items()}
    if file.endswith(".bin"):
        torch.save(tensors, folder / file)
    else:
        save_file(tensors, folder / file, metadata)
    return folder


def named(factors, name):
    """Tensors under the names that a function gives them: of the layer, and of whether it is the first to act."""
    return {
        name(layer, first): value for layer, pair in factors.items() for first, value in zip((1, 0), pair, strict=True)
    }


def by_diffusers(folder, factors):
    """What its training scripts write, by its own function, with PEFT's configuration."""
    parts = {"unet": {}, "text_encoder": {}}
    for layer, (down, up) in factors.items():
        parts[part_of(layer)] |= {f"{layer}.lora_A.weight": down, f"{layer}.lora_B.weight": up}
    config = {"r": RANK, "lora_alpha": ALPHA, "use_dora": False, "bias": "none", "modules_to_save": None}
    StableDiffusionPipeline.save_lora_weights(
        folder, parts["unet"], parts["text_encoder"], unet_lora_adapter_metadata=config,
        text_encoder_lora_adapter_metadata=config,
    )  # fmt: skip
    return folder, ALPHA / RANK


def by_scripts_without_alpha(folder, factors):
    def name(layer, first):
        side = "down" if first else "up"
        return f"{part_of(layer)}.{layer}.{'lora_linear_layer' if layer == QUERY else 'lora'}.{side}.weight"

    return written(folder, named(factors, name), "pytorch_lora_weights.bin"), 1


def by_old_diffusers(folder, factors):
    """Before PEFT; its processors had a name of their own for every projection."""

    def name(layer, first):
        side = "down" if first else "up"
        if layer == QUERY:
            return f"text_encoder.text_model.{layer.replace('q_proj', 'to_q')}_lora.{side}.weight"
        layer = layer.replace("attn2.", "attn2.processor.").removesuffix(".0")
        return f"unet.{layer}_lora.{side}.weight"

    return written(folder, named(factors, name)), 1


def by_kohya(folder, factors):
    def name(layer, first):
        start = "lora_te_text_model_" if layer == QUERY else "lora_unet_"
        return f"{start}{layer.replace('.', '_')}.lora_{'down' if first else 'up'}.weight"

    tensors = named(factors, name)
    tensors |= {f"{key.partition('.')[0]}.alpha": torch.tensor(float(ALPHA)) for key in tensors}
    return written(folder, tensors, "mine.safetensors") / "mine.safetensors", ALPHA / RANK


def by_peft(folder, factors):
    """A folder of each network, as its example of DreamBooth saves them; rank-stabilised, with one alpha of its own."""
    for part in ("unet", "text_encoder"):
        own = {layer: pair for layer, pair in factors.items() if part_of(layer) == part}
        start = "base_model.model." + ("text_model." if part == "text_encoder" else "")
        tensors = {f"{start}{layer}.lora_A.weight": down for layer, (down, _) in own.items()}
        tensors |= {f"{start}{layer}.lora_B.weight": up for layer, (_, up) in own.items()}
        written(folder / part, tensors, "adapter_model.safetensors")
        config = {"peft_type": "LORA", "r": RANK, "lora_alpha": 1, "alpha_pattern": {".*": ALPHA}, "use_rslora": True}
        (folder / part / "adapter_config.json").write_text(json.dumps(config))
    return folder, ALPHA / RANK**0.5


def opened(folder, lora, **how):
    return open_model(ModelFiles(str(folder), lora_weights=str(lora), **how), torch.device("cpu"))


@pytest.mark.parametrize(
    "write",
    [by_diffusers, by_scripts_without_alpha, by_old_diffusers, by_kohya, by_peft],
    ids=lambda each: each.__name__,
)
def test_a_lora_is_merged(tiny_folder, model32, factors, tmp_path, write):
    if write is by_old_diffusers:  # which had none of convolutions
        del factors[CONV]
    lora, strength = write(tmp_path / "lora", factors)
    model = opened(tiny_folder, lora, lora_scale=0.5)
    changed = {layer: 0.5 * strength * (up.flatten(1) @ down.flatten(1)) for layer, (down, up) in factors.items()}
    for name, value in changed.items():
        before = layer_of(model32, name).weight
        assert_close(layer_of(model, name).weight, before + value.reshape(before.shape), rtol=1e-5, atol=1e-5)
    for part in ("unet", "text_encoder"):
        held, now = (getattr(each, part).state_dict() for each in (model32, model))
        assert held.keys() == now.keys()
        other = {name for name in held if not torch.equal(held[name], now[name])}
        assert other == {f"{name}.weight" for name in changed if part_of(name) == part}
    model.pipe.save_pretrained(tmp_path / "merged")  # an index of the one is an index of the other
    assert Model.load(tmp_path / "merged", torch.device("cpu")).sha256 == model.sha256 != model32.sha256


def test_a_folder_with_one_file_of_another_name_is_read(tiny_folder, factors, tmp_path):
    file, _ = by_kohya(tmp_path / "lora", factors)
    assert opened(tiny_folder, tmp_path / "lora").sha256 == opened(tiny_folder, file).sha256
    written(tmp_path / "lora", {}, "second.safetensors")
    refused(tiny_folder, tmp_path / "lora", "is no file of a LoRA, nor a folder with")


def test_a_lora_of_the_hub_is_fetched(tiny_folder, factors, tmp_path, monkeypatch):
    folder, _ = by_peft(tmp_path / "fetched", factors)
    asked = []

    def fetch(source, allow_patterns):
        asked.append((source, allow_patterns))
        return str(folder)

    with pytest.raises(WeightsUnavailable, match="there is no file or folder someone/lora, nor could a LoRA"):
        opened(tiny_folder, "someone/lora")
    monkeypatch.setattr("attribution.diffusion.lora.snapshot_download", fetch)
    assert opened(tiny_folder, "someone/lora").sha256 == opened(tiny_folder, folder).sha256
    [(source, files)] = asked
    assert source == "someone/lora"
    assert {"pytorch_lora_weights.safetensors", "adapter_config.json", "unet/adapter_model.safetensors"} < set(files)


def test_a_lora_of_xl_is_merged_into_its_second_text_encoder(tmp_path):
    xl = save_tiny_xl(tmp_path / "xl")
    plain, layer = Model.load(xl, torch.device("cpu")), f"text_model.{QUERY}"
    for name, sides in ((f"text_encoder_2.{layer}", "AB"), (f"lora_te2_{layer.replace('.', '_')}", ("down", "up"))):
        factors = zip(sides, (torch.full((1, 20), 2.0), torch.full((20, 1), 3.0)), strict=True)
        lora = {f"{name}.lora_{side}.weight": value for side, value in factors}
        model = opened(xl, written(tmp_path / name, lora))
        first = [each.text_encoder.get_submodule(QUERY).weight for each in (plain, model)]
        second = [each.networks["text_encoder_2"].get_submodule(layer).weight for each in (plain, model)]
        assert_close(second[1], second[0] + 6, rtol=1e-5, atol=1e-5)
        assert torch.equal(*first)


def test_names_of_xls_authors_are_those_of_diffusers():
    block = "transformer_blocks_1_attn2_to_k"
    for theirs, diffusers in (
        (f"input_blocks_4_1_{block}", f"down_blocks_1_attentions_0_{block}"),
        (f"input_blocks_8_1_{block}", f"down_blocks_2_attentions_1_{block}"),
        (f"middle_block_1_{block}", f"mid_block_attentions_0_{block}"),
        ("input_blocks_5_1_proj_in", "down_blocks_1_attentions_1_proj_in"),
        (f"output_blocks_0_1_{block}", f"up_blocks_0_attentions_0_{block}"),
        (f"output_blocks_5_1_{block}", f"up_blocks_1_attentions_2_{block}"),
    ):
        file = {f"lora_unet_{theirs}.lora_down.weight": torch.zeros(1)}
        [mapped] = _maybe_map_sgm_blocks_to_diffusers(file, SimpleNamespace(layers_per_block=2))
        for before, after in (("input_blocks", "down_blocks"), ("middle_b", "mid_b"), ("output_blocks", "up_blocks")):
            mapped = mapped.replace(before, after)
        assert mapped == f"lora_unet_{diffusers}.lora_down.weight"
        assert _by_diffusers(theirs) == diffusers
    assert _by_diffusers("input_blocks_4_0_in_layers_2") == "input_blocks_4_0_in_layers_2"


def refused(folder, lora, *told, **how):
    with pytest.raises(InputError) as caught:
        opened(folder, lora, **how)
    assert "\n" not in str(caught.value)
    for each in told:
        assert each in str(caught.value)


def test_a_lora_of_another_base_is_refused_and_nothing_is_changed(tiny_folder, model32, factors, tmp_path):
    wider = {KEY: (torch.zeros(RANK, 24), factors.pop(KEY)[1])}  # the last, after others that fit
    lora, _ = by_scripts_without_alpha(tmp_path / "wider", factors | wider)
    factors[KEY] = wider[KEY]
    refused(tiny_folder, lora, "was made for another model", KEY, "of 16 by 24 weights, that of 16 by 16 here")
    model = Model.load(tiny_folder, torch.device("cpu"))
    with pytest.raises(InputError, match="was made for another model"):
        merge_lora(model, *read_lora(str(lora)))
    assert model.sha256 == model32.sha256
    deeper = {KEY.replace("blocks.0.attn2", "blocks.9.attn2"): factors[KEY]}
    lora, _ = by_kohya(tmp_path / "deeper", deeper)
    refused(tiny_folder, lora, "was made for another model", "transformer_blocks_9_attn2_to_k in its unet")
    refused(tiny_folder, written(tmp_path / "xl", {"text_encoder_2.x.lora_A.weight": torch.zeros(2, 2),
                                                   "text_encoder_2.x.lora_B.weight": torch.zeros(2, 2)}),
            "has no layer x in its text_encoder_2")  # fmt: skip


def test_what_is_no_plain_lora_is_refused(tiny_folder, factors, tmp_path):
    peft, _ = by_peft(tmp_path / "peft", factors)
    config = peft / "unet/adapter_config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"use_dora": True}))
    refused(tiny_folder, peft, "has use_dora = True")
    config.write_text("[")
    refused(tiny_folder, peft, "holds no whole adapter_config.json")
    other = written(tmp_path / "loha", {"unet.x.hada_w1_a": torch.zeros(2)})
    refused(tiny_folder, other, "holds unet.x.hada_w1_a, which is no part of a plain LoRA")
    half = written(tmp_path / "half", {f"unet.{KEY}.lora_A.weight": factors[KEY][0]})
    refused(tiny_folder, half, f"only a part of the layer unet.{KEY}")
    refused(tiny_folder, written(tmp_path / "none", {}), "holds no LoRA")
    broken = written(
        tmp_path / "nan", {f"unet.{KEY}.lora_{side}.weight": torch.full((16, 16), float("nan")) for side in "AB"}
    )
    refused(tiny_folder, broken, "1 weights of", "are not finite")


def test_a_file_that_is_missing_or_damaged_is_refused(tiny_folder, tmp_path):
    refused(
        tiny_folder, tmp_path / "nowhere", "is no file of a LoRA, nor a folder with pytorch_lora_weights.safetensors"
    )
    for ending in ("safetensors", "bin"):
        (tmp_path / f"x.{ending}").write_bytes(b"no tensors")
        refused(tiny_folder, tmp_path / f"x.{ending}", f"x.{ending} could not be read")


def test_nothing_is_unpickled(tiny_folder, tmp_path):
    class Trap:
        def __reduce__(self):
            return (tmp_path.joinpath("sprung").touch, ())

    torch.save({"x": Trap()}, tmp_path / "pytorch_lora_weights.bin")
    refused(tiny_folder, tmp_path, "could not be read")
    assert not (tmp_path / "sprung").exists()


def test_a_scale_without_a_lora_is_refused(tiny_folder):
    with pytest.raises(InputError, match=r"--lora_scale 0.5 is of no use without --lora_weights"):
        open_model(ModelFiles(str(tiny_folder), lora_scale=0.5))
