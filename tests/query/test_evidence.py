"""What a picture itself tells: against a loop over texts and noises, and on regions drawn by hand."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image, ImageDraw

from attribution.diffusion.loss import denoising_loss
from attribution.diffusion.noise import NoiseBank
from attribution.query.encoded import encode
from attribution.query.evidence import EMPTY, NOISE, Evidence, filled, kind_of, without

SOME = Evidence("word", 0.4, 0.3, 0.5)


def loss(model, asked, text):
    """The region's loss with a text, noise by noise."""
    bank = NoiseBank.draw(NOISE, model.latent_shape, model.train_timesteps)
    with torch.no_grad():
        encoded = model.encode_text([text])
        each = [denoising_loss(model, asked.latents, encoded, bank.select([c]), asked.mask) for c in range(len(bank))]
    return float(torch.cat(each).mean())


@pytest.mark.parametrize("region", [{}, {"boxes": ((1.0, 2.0, 20.0, 30.0),)}, {"word": "bird"}])
def test_evidence_is_the_share_of_the_loss_that_the_words_take_away(model, query, region):
    asked = encode(model, replace(query, **region))
    found = asked.evidence
    own, none = (loss(model, asked, text) for text in (query.prompt, ""))
    assert found.words == pytest.approx(1 - own / none)
    if found.kind == "word":
        assert found.word == pytest.approx(1 - own / loss(model, asked, "a red and a blue key"))
    else:
        assert found.word is None
    assert found.kind == kind_of(asked.query)


def test_a_word_is_cut_where_the_prompt_first_has_it():
    assert without("a red bird and a Red key", "red") == "a bird and a Red key"
    assert without("Redder than red", "RED") == "Redder than"
    assert without("bird", "bird") == ""


def test_a_region_is_filled_by_what_differs_from_its_ground():
    picture = Image.new("RGB", (32, 32), (200, 220, 240))
    ImageDraw.Draw(picture).rectangle((8, 8, 15, 31), (20, 60, 90))
    whole = np.ones((32, 32))
    assert filled(picture, whole) == 8 * 24 / 32**2
    left = whole.copy()
    left[:, 8:] = 0
    assert filled(picture, left) == 0
    faint = Image.fromarray(np.asarray(picture) // 10 + 100)
    assert filled(faint, whole) == 0


def test_the_box_beside_an_object_is_empty_to_the_pixel(model32, query):
    """Its latent cells have a part of the object."""
    picture = Image.new("RGB", (32, 32), "white")
    ImageDraw.Draw(picture).rectangle((13, 0, 31, 31), "red")
    beside, into = (
        encode(model32, replace(query, image=picture, boxes=((0.0, 0.0, right, 32.0),))).evidence
        for right in (13.0, 16.0)
    )
    assert (beside.filled, beside.empty) == (0, True)
    assert (into.filled, into.empty) == (pytest.approx(3 / 16), False)


def test_strength_is_the_weaker_of_two_and_nothing_for_an_empty_region():
    assert SOME.strength == 0.3
    assert replace(SOME, word=None).strength == 0.4
    assert replace(SOME, words=-3.0).strength == -1
    assert replace(SOME, filled=EMPTY / 2).strength == -1
    assert replace(SOME, filled=EMPTY).strength == 0.3
