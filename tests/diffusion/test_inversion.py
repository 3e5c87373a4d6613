"""Textual inversion: words of one or several vectors, read and generated as diffusers reads them."""

import numpy as np
import pytest
import torch
from diffusers import StableDiffusionPipeline, StableDiffusionXLPipeline
from safetensors.torch import save_file
from sdxl import save_tiny_xl
from torch.testing import assert_close

from attribution.diffusion.overlaid import open_model
from attribution.diffusion.pipeline import GenerateSettings
from attribution.diffusion.source import ModelFiles
from attribution.errors import InputError

CPU = torch.device("cpu")
VECTORS = torch.randn(3, 16, generator=torch.Generator().manual_seed(3))


def by_diffusers(folder):
    save_file({"<cat>": VECTORS}, folder / "learned_embeds.safetensors")
    return folder / "learned_embeds.safetensors", "<cat>"


def by_diffusers_of_one_vector(folder):
    torch.save({"<hat>": VECTORS[0]}, folder / "learned_embeds.bin")
    return folder / "learned_embeds.bin", "<hat>"


def by_the_web_ui(folder):
    torch.save({"string_to_param": {"*": VECTORS}, "name": "my-cat", "step": 7}, folder / "x.pt")
    return folder / "x.pt", "my-cat"


def by_the_web_ui_without_a_name(folder):
    save_file({"emb_params": VECTORS}, folder / "own-cat.safetensors")
    return folder / "own-cat.safetensors", "own-cat"


@pytest.mark.parametrize(
    "write",
    [by_diffusers, by_diffusers_of_one_vector, by_the_web_ui, by_the_web_ui_without_a_name],
    ids=lambda each: each.__name__,
)
def test_index_and_generation_read_a_word_as_diffusers_does(tiny_folder, tmp_path, write):
    file, word = write(tmp_path)
    model = open_model(ModelFiles(str(tiny_folder), textual_inversion=(str(file),)), CPU)
    pipe = StableDiffusionPipeline.from_pretrained(tiny_folder, safety_checker=None)
    pipe.load_textual_inversion(str(file), token=word)
    for prompt in (f"a {word} and a bus", f"{word} " * 9, "a bus"):
        expected, _ = pipe.encode_prompt(prompt, "cpu", 1, False)
        assert_close(model.encode_text([prompt]), expected)
    prompt, how = f"a {word}", {"num_inference_steps": 2, "guidance_scale": 3.0, "height": 32, "width": 32}
    made = pipe(prompt, generator=torch.Generator().manual_seed(1), **how).images[0]
    own = model.generate(prompt, 1, GenerateSettings(2, 3.0))
    assert_close(*(torch.tensor(np.asarray(each)).int() for each in (own, made)), atol=1, rtol=0)


def test_a_word_of_xl_is_of_both_text_encoders(tmp_path):
    xl, generator = save_tiny_xl(tmp_path / "xl"), torch.Generator().manual_seed(4)
    tables = {"clip_l": torch.randn(2, 16, generator=generator), "clip_g": torch.randn(2, 20, generator=generator)}
    save_file(tables, tmp_path / "zig.safetensors")
    model = open_model(ModelFiles(str(xl), textual_inversion=(str(tmp_path / "zig.safetensors"),)), CPU)
    pipe = StableDiffusionXLPipeline.from_pretrained(xl)
    for name, text, tokenizer in (("clip_l", "text_encoder", "tokenizer"), ("clip_g", "text_encoder_2", "tokenizer_2")):
        parts = {"text_encoder": getattr(pipe, text), "tokenizer": getattr(pipe, tokenizer)}
        pipe.load_textual_inversion({"zig": tables[name]}, **parts)
    states, _, pooled, _ = pipe.encode_prompt("a zig on a bus", device="cpu", do_classifier_free_guidance=False)
    told = model.texts.conditions(model.encode_text(["a zig on a bus"]))
    assert_close(told["encoder_hidden_states"], states)
    assert_close(told["added_cond_kwargs"]["text_embeds"], pooled)


def test_what_is_no_word_of_the_model_is_refused(tiny_folder, tmp_path):
    cases = {
        "wide": ({"<cat>": torch.zeros(2, 24)}, r"are of widths \[24\], .* reads \[16\]"),
        "known": ({"bus</w>": VECTORS}, "knows the word 'bus</w>' of"),
        "two": ({"<cat>": VECTORS, "<hat>": VECTORS + 1}, "holds <cat>, <hat>, which is no new word; accepted are"),
        "cube": ({"<cat>": torch.zeros(1, 2, 16)}, "which is no new word"),
        "xl": ({"clip_l": VECTORS, "clip_g": VECTORS + 1}, r"are of widths \[16, 16\], .* reads \[16\]"),
        "nan": ({"<cat>": VECTORS * float("nan")}, "weights of .* are not finite"),
    }
    for name, (tensors, told) in cases.items():
        save_file(tensors, tmp_path / f"{name}.safetensors")
        with pytest.raises(InputError, match=told) as caught:
            open_model(ModelFiles(str(tiny_folder), textual_inversion=(str(tmp_path / f"{name}.safetensors"),)), CPU)
        assert "\n" not in str(caught.value)
    with pytest.raises(InputError, match="there is no file"):
        open_model(ModelFiles(str(tiny_folder), textual_inversion=("nowhere.bin",)), CPU)
