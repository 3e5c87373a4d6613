"""Whatever reads text reads it up to its own network's limit."""

import pytest
import torch
from conftest import make_tiny_tokenizer, save_tiny_pipeline
from networks import tiny_clip
from texts import SCRIPTS
from transformers import CLIPModel

from attribution.diffusion.pipeline import Model
from attribution.index.features import open_feature

LENGTHS = [1, 10, 77, 4000]  # characters
TEXTS = [(script * length)[:length] for script in SCRIPTS.values() for length in LENGTHS]


def test_prompts_of_every_script_and_length_fill_the_text_encoders_positions(model32):
    for text in TEXTS:
        hidden = model32.encode_text([text])
        assert hidden.shape == (1, 12, 16)
        assert hidden.isfinite().all()
        assert model32.tokens.count(text).limit == 12


@pytest.mark.parametrize("longest", [8, 1000])
def test_the_smaller_of_the_tokenizers_and_the_text_encoders_limits_holds(tmp_path, longest):
    folder = save_tiny_pipeline(tmp_path / "model", "epsilon")
    tokenizer = make_tiny_tokenizer()
    tokenizer.model_max_length = longest  # as if it had been saved for another network
    tokenizer.save_pretrained(folder / "tokenizer")
    model = Model.load(folder, torch.device("cpu"))
    assert model.encode_text(["a red apple " * 30]).shape == (1, min(longest, 12), 16)


@pytest.mark.parametrize("longest", [12, 1000])
def test_captions_of_every_script_and_length_have_features(tmp_path, longest):
    tokenizer = make_tiny_tokenizer()
    folder = str(tiny_clip(tmp_path / "clip", tokenizer))
    tokenizer.model_max_length = longest
    tokenizer.save_pretrained(folder)
    assert CLIPModel.from_pretrained(folder).config.text_config.max_position_embeddings == 12
    encode = open_feature("clip-text", folder)
    vectors = encode(TEXTS)
    assert vectors.shape == (len(TEXTS), 12)
    assert vectors.isfinite().all()
    assert torch.equal(encode(["a red apple " * 30]), encode(["a red apple " * 300]))
