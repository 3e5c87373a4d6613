"""One tokenizer and many threads: truncation and padding are states of it."""

from concurrent.futures import ThreadPoolExecutor
from threading import Event

import numpy as np
import pytest
import torch
from diffusers import StableDiffusionPipeline

from attribution.diffusion.pipeline import GenerateSettings, Model


def test_tokens_are_counted_while_others_generate_and_encode(model32):
    """The same picture, the same text, no error, whatever else is asked of the tokenizer meanwhile."""
    prompts = ["a red bird", "a red key beside a green apple and two birds above a red bus on a blue ground"]
    settings = GenerateSettings(steps=1)

    def picture():
        return model32.generate(prompts[0], 3, settings).tobytes()

    def text():
        return model32.encode_text(prompts).numpy().tobytes()

    expected = [picture(), text(), [model32.tokens.count(prompt) for prompt in prompts]]
    enough = Event()

    def count_on():
        wrong = 0
        while not enough.is_set():
            wrong += [model32.tokens.count(prompt) for prompt in prompts] != expected[2]
        return wrong

    with ThreadPoolExecutor(5) as pool:
        counting = [pool.submit(count_on) for _ in range(3)]
        try:
            encoding = pool.submit(lambda: {text() for _ in range(200)})  # another thread than the device's
            pictures = {picture() for _ in range(40)}
            texts = encoding.result()
        finally:
            enough.set()
        assert [future.result() for future in counting] == [0, 0, 0]
    assert pictures == {expected[0]}
    assert texts == {expected[1]}


@pytest.fixture
def inverted(tiny_folder, tmp_path):
    """A pipeline with a word of three vectors and one of one, and its model, loaded from its own folder."""
    pipe = StableDiffusionPipeline.from_pretrained(tiny_folder)
    generator = torch.Generator().manual_seed(3)
    pipe.load_textual_inversion({"<cat>": torch.randn(3, 16, generator=generator)})
    pipe.load_textual_inversion({"<hat>": torch.randn(1, 16, generator=generator)})
    pipe.save_pretrained(tmp_path / "model")
    return pipe, Model.load(tmp_path / "model", torch.device("cpu"))


@pytest.mark.parametrize("prompt", ["a <cat> with a <hat>", "<cat> <cat>", "a red bus", "<hat> <cat> " * 9, ""])
def test_a_word_of_several_vectors_is_read_as_diffusers_reads_it(inverted, prompt):
    pipe, model = inverted
    expected, _ = pipe.encode_prompt(prompt, "cpu", 1, False)
    torch.testing.assert_close(model.encode_text([prompt]), expected)
    ids = pipe.tokenizer(pipe.maybe_convert_prompt(prompt, pipe.tokenizer)).input_ids
    assert model.tokens.count(prompt).count == len(ids)


def test_all_vectors_of_a_word_are_where_it_is(inverted):
    _, model = inverted
    prompt = "a <cat> with a bus"
    places = model.tokens.places(prompt, 2, 7)
    assert places == [2, 3, 4]
    bus = model.tokens.places(prompt, prompt.index("bus"), len(prompt))
    assert bus[0] > places[-1]
    assert model.tokens.count("<cat> " * 9).kept.count("<cat>") == 4  # the last is cut after its first vector
    assert "_1" not in model.tokens.count("<cat> " * 9).kept


@pytest.mark.parametrize("masked", [True, False])
def test_padding_is_masked_where_the_text_encoder_says_so_in_generating_too(tiny_folder, tmp_path, masked):
    pipe = StableDiffusionPipeline.from_pretrained(tiny_folder, safety_checker=None)
    pipe.text_encoder.config.use_attention_mask = masked
    pipe.save_pretrained(tmp_path / "model")
    model = Model.load(tmp_path / "model", torch.device("cpu"))
    expected, _ = pipe.encode_prompt("a red bus", "cpu", 1, False)
    torch.testing.assert_close(model.encode_text(["a red bus"]), expected)
    how = {"num_inference_steps": 2, "guidance_scale": 3.0, "height": 32, "width": 32}
    made = pipe("a red bus", generator=torch.Generator().manual_seed(1), **how).images[0]
    own = model.generate("a red bus", 1, GenerateSettings(2, 3.0))
    both = (torch.tensor(np.asarray(each)).int() for each in (own, made))
    torch.testing.assert_close(*both, atol=1, rtol=0)
