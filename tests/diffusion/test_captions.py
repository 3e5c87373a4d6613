"""Captions that are encoded once: what is kept, and that nothing depends on it."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from near import assert_close

from attribution.diffusion.captions import Captions
from attribution.diffusion.loss import denoising_loss
from attribution.diffusion.weights import WEIGHT_PATTERNS, parameters
from attribution.methods import attribute
from attribution.methods.answer import AttributeSettings
from attribution.unlearning.score import training_losses
from attribution.unlearning.step import UnlearnSettings


def counting(asked):
    """An encoder that gives a caption's length, (B, 2, 3) float32, and records what it is asked for."""

    def encode(captions):
        asked.append(captions)
        return torch.tensor([float(len(caption)) for caption in captions])[:, None, None].expand(-1, 2, 3).clone()

    return encode


def test_a_caption_is_encoded_once_however_often_it_is_asked_for():
    asked = []
    captions = Captions(counting(asked))
    assert captions(["a", "bb", "a"])[:, 0, 0].tolist() == [1, 2, 1]
    assert captions(["ccc", "bb"])[:, 0, 0].tolist() == [3, 2]
    assert captions(["bb", "a"])[:, 0, 0].tolist() == [2, 1]
    assert asked == [["a", "bb"], ["ccc"]]


@pytest.mark.parametrize("fitting", [0, 1, 3])
def test_no_more_is_kept_than_fits_and_what_was_asked_for_last_stays(fitting):
    asked = []
    captions = Captions(counting(asked), 24 * fitting)
    for many in (["a", "bb", "ccc"], ["a"], ["dddd"]):
        assert captions(many)[:, 0, 0].tolist() == [len(each) for each in many]
        assert captions.bytes <= 24 * fitting
    asked.clear()
    captions(["dddd", "a", "ccc", "bb"])
    assert asked == {0: [["dddd", "a", "ccc", "bb"]], 1: [["a", "ccc", "bb"]], 3: [["bb"]]}[fitting]


def test_losses_are_those_of_captions_that_are_encoded_anew(model32, index32):
    """In float32, to 1e-4, by one plain call a prediction; whatever was encoded before, and among what."""
    bank = index32.bank(model32)
    plain = np.empty((8, 2, len(bank)), np.float32)
    for row, view, column in np.ndindex(*plain.shape):
        x, text = index32.encoded.view([row], [view])[0], model32.encode_text([index32.captions[row]])
        plain[row, view, column] = denoising_loss(model32, x, text, bank.select([column])).item()
    model32.encode_captions.__init__(model32.encode_text)
    for rows in ([5], [5, 0, 3], range(8), range(8)):
        chunks = training_losses(model32, index32.encoded, bank, rows, range(len(bank)), batch=6)
        found = np.concatenate([losses for _, losses in chunks])
        assert_close(found, plain[list(rows)], rtol=1e-4, atol=0)


@pytest.mark.exact_bits
def test_an_answer_does_not_depend_on_what_was_encoded_before(model32, index32, query):
    settings = AttributeSettings(top_k=8, exhaustive=True, unlearn=UnlearnSettings(timesteps=2, noises=1), batch=6)
    said = []
    for limit in (0, 2**20):
        model32.encode_captions.__init__(model32.encode_text, limit)
        for _ in range(2):
            *_, last = attribute(model32, index32, query, replace(settings, batch=6))
            said.append([(result.row, result.score, result.losses) for result in last.results])
    assert said == said[:1] * 4


@pytest.mark.parametrize("subset", [name for name in WEIGHT_PATTERNS if name != "lora"])  # of the U-Net, if any
def test_no_weights_that_are_unlearned_are_the_text_encoders(model, subset):
    own = {parameter.data_ptr() for encoder in model.texts.encoders.values() for parameter in encoder.parameters()}
    assert not own & {parameter.data_ptr() for parameter in parameters(model, subset).values()}
