"""Customised models: a new word and other keys and values, laid over a pretrained model, and read from diffusers."""

import re

import pytest
import torch
from diffusers import StableDiffusionPipeline
from diffusers.models.attention_processor import CustomDiffusionAttnProcessor2_0 as Processor

from attribution.diffusion.custom import WEIGHTS, Custom, add_token, custom_of, customise_with, read_custom
from attribution.diffusion.overlaid import open_model
from attribution.diffusion.pipeline import Model
from attribution.diffusion.source import ModelFiles
from attribution.diffusion.weights import parameters
from attribution.errors import InputError

TOKEN = "<new1>"
PROMPT = f"a {TOKEN} bird"


@pytest.fixture
def custom(model32):
    """Other keys and values, and a word."""
    generator = torch.Generator().manual_seed(3)
    held = parameters(model32, "cross-attn-kv")
    weights = {name: torch.randn(value.shape, generator=generator) for name, value in held.items()}
    return Custom({TOKEN: torch.randn(16, generator=generator)}, weights)


@pytest.fixture(params=[True, False], ids=["safetensors", "bin"])
def left_by_diffusers(request, tiny_folder, custom, tmp_path):
    """A folder that diffusers itself wrote."""
    unet = StableDiffusionPipeline.from_pretrained(tiny_folder).unet
    modules, processors = dict(unet.named_modules()), {}
    for name in unet.attn_processors:
        layer = modules[name.removesuffix(".processor")]
        crossed = "attn2" in name
        processors[name] = Processor(crossed, False, layer.to_q.in_features, 16 if crossed else None)
        if crossed:
            for side in "kv":
                weight = custom.weights[name.replace("processor", f"to_{side}.weight")]
                getattr(processors[name], f"to_{side}_custom_diffusion").weight.data.copy_(weight)
    unet.set_attn_processor(processors)
    unet.save_attn_procs(tmp_path, safe_serialization=request.param)
    torch.save(custom.words, tmp_path / f"{TOKEN}.bin")
    return tmp_path


def test_what_diffusers_leaves_is_read(left_by_diffusers, custom):
    found = read_custom(left_by_diffusers)
    assert found.token == TOKEN
    torch.testing.assert_close(found.words, custom.words)
    assert found.weights.keys() == custom.weights.keys()
    for name, value in custom.weights.items():
        torch.testing.assert_close(found.weights[name], value)


def test_a_customised_model_has_the_word_and_the_weights_and_nothing_else(tiny_folder, model32, custom):
    other = customise_with(Model.load(tiny_folder), custom)
    back = custom_of(other, TOKEN)
    torch.testing.assert_close(back.words, custom.words)
    for name, value in custom.weights.items():
        torch.testing.assert_close(back.weights[name], value)
    known = "a red apple on a blue ground"
    torch.testing.assert_close(other.encode_text([known]), model32.encode_text([known]))
    assert not torch.equal(other.encode_text([PROMPT]), model32.encode_text([PROMPT]))
    changed = {
        name
        for name, value in other.unet.named_parameters()
        if not torch.equal(value, dict(model32.unet.named_parameters())[name])
    }
    assert changed == set(custom.weights)
    assert other.sha256 != model32.sha256
    assert not any(value.requires_grad for value in other.text_encoder.parameters())


def test_the_word_is_one_token(tiny_folder, custom):
    plain, other = Model.load(tiny_folder), customise_with(Model.load(tiny_folder), custom)
    assert other.tokens.count(TOKEN).count == 3  # with both markers
    assert plain.tokens.count(TOKEN).count > 3


def test_a_word_that_is_there_already_is_refused(tiny_folder, custom):
    model = customise_with(Model.load(tiny_folder), custom)
    with pytest.raises(InputError, match="knows the word '<new1>' already"):
        add_token(model, TOKEN)


def test_what_does_not_fit_is_refused(tiny_folder, custom):
    narrow = Custom({TOKEN: custom.words[TOKEN][:7]}, custom.weights)
    with pytest.raises(InputError, match=r"the embedding of '<new1>' is \(7,\)"):
        customise_with(Model.load(tiny_folder), narrow)
    few = Custom(custom.words, dict(list(custom.weights.items())[:3]))
    with pytest.raises(InputError, match="of 3 layers that do not fit"):
        customise_with(Model.load(tiny_folder), few)


def test_a_folder_that_lacks_a_part_is_refused(left_by_diffusers):
    (left_by_diffusers / f"{TOKEN}.bin").rename(left_by_diffusers / "kept")
    with pytest.raises(InputError, match="and 0 words such as"):
        read_custom(left_by_diffusers)
    (left_by_diffusers / "kept").rename(left_by_diffusers / f"{TOKEN}.bin")
    for path in left_by_diffusers.glob(f"{WEIGHTS}*"):
        path.write_bytes(path.read_bytes()[:40])
    with pytest.raises(InputError, match="could not be read"):
        read_custom(left_by_diffusers)
    for path in left_by_diffusers.glob(f"{WEIGHTS}*"):
        path.unlink()
    with pytest.raises(InputError, match="holds 0 of pytorch_custom_diffusion_weights"):
        read_custom(left_by_diffusers)


def test_several_words_are_read(left_by_diffusers, tiny_folder, custom):
    torch.save({"<new2>": custom.words[TOKEN] + 1}, left_by_diffusers / "<new2>.bin")
    found = read_custom(left_by_diffusers)
    assert list(found.words) == [TOKEN, "<new2>"]
    model = customise_with(Model.load(tiny_folder), found)
    assert model.tokens.count("<new2> <new1>").count == 4
    table = model.text_encoder.get_input_embeddings().weight
    torch.testing.assert_close(table[-2:], torch.stack([custom.words[TOKEN], custom.words[TOKEN] + 1]))


def test_queries_and_outputs_that_were_trained_too_are_read(tiny_folder, custom, tmp_path):
    layer = next(iter(custom.weights)).rpartition(".attn2")[0] + ".attn2"
    more = {"to_q.weight": torch.ones(16, 16), "to_out.0.weight": torch.zeros(16, 16), "to_out.0.bias": torch.ones(16)}
    named = {f"{layer}.{key}": value for key, value in more.items()} | custom.weights
    spelt = {name.replace("attn2.to_", "attn2.processor.to_"): value for name, value in named.items()}
    mark = r"(to_k|to_v|to_q|to_out)(?=\.)"
    saved = {re.sub(mark, r"\1_custom_diffusion", name): value for name, value in spelt.items()}
    torch.save(saved, tmp_path / f"{WEIGHTS}.bin")
    torch.save(custom.words, tmp_path / f"{TOKEN}.bin")
    model = open_model(ModelFiles(str(tiny_folder), custom_diffusion=str(tmp_path)))
    held = parameters(model, "cross-attn")
    for name, value in named.items():
        assert torch.equal(held[name].cpu(), value), name


@pytest.mark.parametrize("inside", [True, False])
def test_the_delta_of_the_authors_script_is_read(custom, tmp_path, inside):
    torch.save({"unet": custom.weights, "modifier_token": custom.words}, tmp_path / "delta.bin")
    found = read_custom(tmp_path if inside else tmp_path / "delta.bin")
    torch.testing.assert_close(found.words, custom.words)
    torch.testing.assert_close(found.weights, custom.weights)


def test_weights_of_other_layers_are_refused(custom, tmp_path):
    other = {"unet": custom.weights | {"conv_in.weight": torch.zeros(2)}, "modifier_token": custom.words}
    torch.save(other, tmp_path / "delta.bin")
    with pytest.raises(InputError, match=r"holds conv_in.weight; accepted are weights of cross-attention"):
        read_custom(tmp_path)
