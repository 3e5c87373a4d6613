"""A word of the prompt as a region: its tokens, its cross-attention map, its box, and what is attributed then."""

import json
import time
from dataclasses import replace

import pytest
import torch
from conftest import random_picture
from near import assert_close
from PIL import Image

from attribution.cli import main
from attribution.diffusion.attention import inside, watched, word_map, word_tokens
from attribution.diffusion.pictures import Frame, to_pixels
from attribution.diffusion.words import words_of
from attribution.errors import InputError, WeightsUnavailable
from attribution.methods import attribute, fitting
from attribution.methods.answer import AttributeSettings
from attribution.query.detect import _if_there, can_be_had, find
from attribution.query.encoded import encode
from attribution.query.grounding import PUBLISHED
from attribution.query.regions import check_query, mask_box

PROMPT = "a red bird and a blue key"


@pytest.fixture(scope="module")
def latents(model32):
    return model32.encode_images(to_pixels([random_picture(99)]))


@pytest.mark.parametrize("word", ["bird", "BLUE", "blue key", "a"])
def test_the_tokens_of_a_word_are_those_that_spell_it(model32, word):
    ids = model32.pipe.tokenizer(PROMPT).input_ids
    places = word_tokens(model32, PROMPT, word)
    assert places == list(range(places[0], places[-1] + 1))
    assert model32.pipe.tokenizer.decode([ids[place] for place in places]).split() == word.lower().split()


def test_a_part_of_a_word_is_no_word(model32):
    for absent in ("bir", "ird", "bus", "", "  ", "blue bird"):
        with pytest.raises(InputError, match="is not in the prompt; accepted are a, red, bird, and, blue, key"):
            word_tokens(model32, PROMPT, absent)


def test_a_word_that_is_not_read_cannot_be_a_region(model32):
    prompt = "a bus " * model32.pipe.tokenizer.model_max_length + "key"
    with pytest.raises(InputError, match=f"beyond the {model32.pipe.tokenizer.model_max_length} tokens"):
        word_tokens(model32, prompt, "key")


def test_the_words_of_a_prompt():
    assert words_of("A red bird, a well-kept key; the bird's 2 keys!") == [
        *("A", "red", "bird", "a", "well-kept", "key", "the", "bird's", "2", "keys")
    ]


def test_watched_attention_is_the_softmax_of_queries_and_keys(model32):
    """Against the layers' own projections, kept by hooks; predictions are as without watching."""
    torch.manual_seed(0)
    x, t = torch.randn(3, *model32.latent_shape), torch.tensor([10, 500, 900])
    text = model32.encode_text([PROMPT]).expand(3, -1, -1)
    layers = [layer for name, layer in model32.unet.named_modules() if name.endswith("attn2")]
    seen, hooks = [], []
    for layer in layers:
        for part in (layer.to_q, layer.to_k):
            hooks.append(part.register_forward_hook(lambda _, __, made: seen.append(made)))
    before = model32.predict(x, t, text)
    for hook in hooks:
        hook.remove()
    with watched(model32) as kept:
        seen_too = model32.predict(x, t, text)
    assert torch.equal(before, seen_too)
    assert torch.equal(before, model32.predict(x, t, text))
    assert len(kept) == len(layers)
    for number, (layer, probabilities) in enumerate(zip(layers, kept, strict=True)):
        query, key = (
            part.view(3, -1, layer.heads, part.shape[-1] // layer.heads).transpose(1, 2)
            for part in seen[2 * number : 2 * number + 2]
        )
        expected = (query @ key.transpose(-1, -2) * query.shape[-1] ** -0.5).softmax(-1).mean(1)
        assert_close(probabilities, expected, rtol=1e-4, atol=1e-6)


def test_processors_come_back_after_an_error(model32):
    before = dict(model32.unet.attn_processors)
    with pytest.raises(ZeroDivisionError), watched(model32):
        _ = 1 / 0
    assert model32.unet.attn_processors == before


def test_a_map_is_a_mask(model32, latents):
    one, again, other = (word_map(model32, latents, PROMPT, word) for word in ("bird", "bird", "key"))
    assert torch.equal(one, again)
    assert one.shape == (8, 8)
    assert (float(one.min()), float(one.max())) == (0.0, 1.0)
    assert not torch.equal(one, other)


def test_the_box_of_a_map_is_that_of_the_cells_about_its_peak():
    mask = torch.zeros(6, 8)
    mask[1:3, 2:5] = 0.5
    mask[2, 4] = 1.0
    mask[3, 4] = 0.05  # too faint
    mask[5, 7] = 0.9  # elsewhere
    assert inside(mask) == (2, 1, 5, 3)
    assert inside(torch.ones(4, 4)) == (0, 0, 4, 4)


def test_a_maps_box_in_pixels_undoes_the_square(model32):
    mask = torch.zeros(8, 8)
    mask[2, 1] = 1.0
    assert mask_box(mask, model32, Frame(16, 0, 0.5, 0.5)) == (24.0, 16.0, 32.0, 24.0)  # a latent cell is 4 px


def test_a_words_region_is_its_map_and_the_crop_its_box(model32, query, latents):
    asked = replace(query, word="bird")
    mask = word_map(model32, latents, query.prompt, "bird")
    assert torch.equal(encode(model32, asked).mask, mask)
    x0, y0, x1, y1 = (4 * side for side in inside(mask))
    crop = encode(model32, asked).crop
    assert crop.size == (max(x1 - x0, y1 - y0),) * 2
    part = query.image.crop((x0, y0, x1, y1))
    left, top = (crop.width - part.width) // 2, (crop.height - part.height) // 2
    assert crop.crop((left, top, left + part.width, top + part.height)).tobytes() == part.tobytes()


def scores(model, index, query, method):
    *_, last = attribute(model, index, query, fitting(AttributeSettings(top_k=8, exhaustive=True), method))
    return {result.row: result.score for result in last.results}


@pytest.mark.parametrize("method", ["unlearning", "d-trak"])
def test_a_words_map_weighs_the_loss(model32, full_index, query, method):
    bird, whole = (scores(model32, full_index, replace(query, word=word), method) for word in ("bird", None))
    assert bird.keys() == whole.keys() == set(range(8))
    assert bird != whole


@pytest.mark.parametrize("method", ["clip", "pixel"])
def test_features_of_a_word_are_those_of_its_box(model32, full_index, query, method, monkeypatch):
    monkeypatch.setattr("attribution.diffusion.attention.INSIDE", 0.5)
    asked = replace(query, word="bird")
    box = tuple(float(4 * side) for side in inside(encode(model32, asked).mask))
    assert box != (0.0, 0.0, 32.0, 32.0)
    by_word, by_box = (scores(model32, full_index, each, method) for each in (asked, replace(query, boxes=(box,))))
    assert by_word == by_box != scores(model32, full_index, query, method)


def test_a_word_and_boxes_are_not_both_accepted(model32, query):
    with pytest.raises(InputError, match="one or the other"):
        check_query(replace(query, word="bird", boxes=((0, 0, 16, 16),)), model32, True)


def test_the_command_line_takes_a_word(index_folder, tmp_path, capsys):
    out, where = tmp_path / "answer.json", ("--index", str(index_folder), "--top_k", "2")
    assert main(["attribute", "--prompt", PROMPT, "--seed", "1", "--word", "key", *where, "--out", str(out)]) == 0
    assert json.loads(out.read_text())["query"]["word"] == "key"
    assert main(["attribute", "--prompt", PROMPT, "--seed", "1", "--word", "bus", *where]) == 2
    assert "the word 'bus' is not in the prompt" in capsys.readouterr().err


# Objects by attention, where no detector can be had


def test_without_a_detector_labels_are_looked_for_by_attention(model32, index32, query, latents, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    found = find(model32, index32, query.image, ["key", "bus", "Bird"], query.prompt)
    assert "cross-attention" in found.by
    assert {each.label for each in found.detections} == {"key", "bird"}
    for each in found.detections:
        mask = word_map(model32, latents, query.prompt, each.label)
        x0, y0, x1, y1 = inside(mask)
        assert each.box == (4 * x0, 4 * y0, 4 * x1, 4 * y1)
        assert each.score == pytest.approx(float(mask[y0:y1, x0:x1].sum() / mask.sum()))
    with pytest.raises(InputError, match="'bus' is not in the prompt"):
        find(model32, index32, query.image, ["bus"], query.prompt)
    with pytest.raises(WeightsUnavailable, match="no GroundingDINO could be loaded from 'nowhere'"):
        find(model32, index32, query.image, ["key"], query.prompt, source="nowhere")


def test_a_detector_that_cannot_be_had_is_looked_for_once(model32, index32, query, monkeypatch):
    looked = []

    def nowhere(source):
        looked.append(source)
        raise WeightsUnavailable(source)

    monkeypatch.setattr("attribution.query.detect.open_detector", nowhere)
    monkeypatch.setattr("attribution.query.detect.can_be_had", lambda: True)
    _if_there.cache_clear()
    for _ in range(2):
        assert find(model32, index32, query.image, ["key"], query.prompt).detections
    assert looked == [PUBLISHED]
    _if_there.cache_clear()


def test_a_hub_that_does_not_answer_is_not_waited_for(monkeypatch):
    """A download would try again for half a minute, while every other visitor waits."""
    monkeypatch.setattr("attribution.query.detect.is_offline_mode", lambda: False)
    monkeypatch.setattr("attribution.query.detect.hf_hub_url", lambda *_: "http://127.0.0.1:9/weights")
    began = time.monotonic()
    assert not can_be_had()
    monkeypatch.setattr("attribution.query.detect.is_offline_mode", lambda: True)
    monkeypatch.setattr("attribution.query.detect.urlopen", lambda *_, **__: pytest.fail("asked"))
    assert not can_be_had()
    assert time.monotonic() - began < 5


def test_detect_on_the_command_line(index_folder, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    picture, out = tmp_path / "picture.png", tmp_path / "found.json"
    random_picture(5).save(picture)
    asked = ("detect", "--image", str(picture), "--index", str(index_folder))
    assert main([*asked, "--labels", "bird . key", "--prompt", PROMPT, "--out", str(out)]) == 0
    found = json.loads(out.read_text())
    assert {each["label"] for each in found["detections"]} == {"bird", "key"}
    assert len(capsys.readouterr().out.splitlines()) == 2
    for wrong, told in (
        (("--labels", " . "), "there are 0 labels"),
        (("--labels", "key", "--threshold", "2"), "the threshold 2.0 is not possible"),
        (("--labels", "key", "--detector", str(tmp_path)), "no GroundingDINO could be loaded"),
    ):
        assert main([*asked, *wrong]) == 2
        assert told in capsys.readouterr().err


def test_wide_pictures_keep_their_places(model32, query):
    wide = Image.new("RGB", (64, 32), "white")
    wide.paste(query.image.resize((32, 32)), (16, 0))
    asked = replace(query, image=wide, word="bird")
    x0, y0, x1, y1 = mask_box(encode(model32, asked).mask, model32, Frame(16, 0, 1, 1))
    assert 16 <= x0 < x1 <= 48
    assert 0 <= y0 < y1 <= 32
