"""Boxes drawn on a picture become latent masks; what is not acceptable is refused in one sentence."""

import pytest
import torch
from conftest import random_picture
from PIL import Image, ImageOps
from torch.testing import assert_close

from attribution.errors import InputError
from attribution.methods import attribute
from attribution.methods.answer import AttributeSettings
from attribution.methods.unlearning import likely_first
from attribution.query.query import Query
from attribution.query.regions import box_mask


def mask_of(model, *boxes, size=(32, 32), center_crop=True):
    return box_mask(Query("a bus", random_picture(0, size), boxes=boxes), model, center_crop)


def expected(rows, columns):
    """The outer product of coverages of rows and columns, given by cell."""
    cover = [torch.zeros(8), torch.zeros(8)]
    for line, cells in zip(cover, (rows, columns), strict=True):
        for cell, share in cells.items():
            line[cell] = share
    return cover[0][:, None] * cover[1][None, :]


def test_no_box_is_the_whole_picture(model32):
    assert mask_of(model32) is None


def test_a_box_of_everything_is_a_mask_of_ones(model32):
    assert torch.equal(mask_of(model32, (0, 0, 32, 32)), torch.ones(8, 8))


def test_a_box_on_the_grid_takes_whole_cells(model32):
    mask = mask_of(model32, (4, 8, 16, 12))
    assert torch.equal(mask, expected({2: 1}, {1: 1, 2: 1, 3: 1}))


def test_a_box_between_cells_takes_shares_of_them(model32):
    mask = mask_of(model32, (2, 5, 11, 9))
    assert_close(mask, expected({1: 0.75, 2: 0.25}, {0: 0.5, 1: 1, 2: 0.75}))


def test_two_boxes_are_joined(model32):
    mask = mask_of(model32, (0, 0, 8, 8), (4, 4, 12, 12))
    wanted = torch.maximum(expected({0: 1, 1: 1}, {0: 1, 1: 1}), expected({1: 1, 2: 1}, {1: 1, 2: 1}))
    assert torch.equal(mask, wanted)


def test_a_box_on_a_larger_picture_is_scaled(model32):
    assert torch.equal(mask_of(model32, (8, 0, 24, 16), size=(64, 64)), expected({0: 1, 1: 1}, {1: 1, 2: 1}))


def test_a_box_on_a_wide_picture_moves_with_the_centre_crop(model32):
    mask = mask_of(model32, (16, 0, 24, 4), size=(64, 32))  # the crop begins at 16 px
    assert torch.equal(mask, expected({0: 1}, {0: 1, 1: 1}))


def test_a_box_on_a_tall_picture_moves_with_the_centre_crop(model32):
    mask = mask_of(model32, (0, 40, 4, 48), size=(32, 64))
    assert torch.equal(mask, expected({6: 1, 7: 1}, {0: 1}))


def test_a_box_that_is_cut_by_the_crop_keeps_what_is_inside(model32):
    assert torch.equal(mask_of(model32, (0, 0, 20, 8), size=(64, 32)), expected({0: 1, 1: 1}, {0: 1}))


def test_a_box_on_a_squeezed_picture_is_squeezed(model32):
    mask = mask_of(model32, (16, 4, 32, 16), size=(64, 32), center_crop=False)
    assert torch.equal(mask, expected({1: 1, 2: 1, 3: 1}, {2: 1, 3: 1}))


def test_a_box_outside_the_crop_is_refused(model32):
    with pytest.raises(InputError, match=r"0, 0, 12, 12 is outside what the model sees, the middle square of 32 px"):
        mask_of(model32, (0, 0, 12, 12), size=(64, 32))


@pytest.mark.parametrize(
    ("box", "told"),
    [
        ((-1, 0, 8, 8), "-1, 0, 8, 8 reaches outside"),
        ((0, 0, 33, 8), "0, 0, 33, 8 reaches outside"),
        ((0, 30, 8, 34), "0, 30, 8, 34 reaches outside"),
        ((8, 8, 8, 16), "8, 8, 8, 16 is empty"),
        ((16, 8, 8, 16), "16, 8, 8, 16 is empty, reversed"),
        ((8, 16, 16, 8), "8, 16, 16, 8 is empty, reversed"),
        ((0, 0, 3.9, 8), "0, 0, 3.9, 8 is empty, reversed or too small"),
        ((0, 0, 8, 3.9), "0, 0, 8, 3.9 is empty, reversed or too small"),
        ((float("nan"), 0, 8, 8), "not four finite numbers"),
        ((0, 0, float("inf"), 8), "not four finite numbers"),
        ((0, 0, 8), "not four finite numbers"),
    ],
)
def test_a_bad_box_is_refused_with_its_value_and_what_is_accepted(model32, box, told):
    with pytest.raises(InputError) as caught:
        mask_of(model32, (0, 0, 8, 8), box)
    assert told in str(caught.value)
    assert "accepted are x0 < x1 from 0 to 32 and y0 < y1 from 0 to 32, each side 4 px or more" in str(caught.value)


def test_the_smallest_box_is_one_cell_of_the_picture_as_shown(model32):
    assert mask_of(model32, (0, 0, 4, 4)).sum() == 1
    assert_close(mask_of(model32, (1, 1, 5, 5)).sum(), torch.tensor(1.0))
    assert mask_of(model32, (0, 0, 8, 8), size=(64, 64)).sum() == 1
    with pytest.raises(InputError, match="each side 8 px or more"):
        mask_of(model32, (0, 0, 7, 8), size=(64, 64))


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"prompt": ""}, "the prompt is empty"),
        ({"prompt": " \n"}, "the prompt is empty"),
        ({"seed": -1}, "seed -1 is not possible; accepted are whole numbers from 0 to"),
        ({"seed": 2**63}, "seed 9223372036854775808 is not possible"),
        ({"seed": True}, "seed True is not possible"),
        ({"boxes": ((0, 0, 1, 1),)}, "0, 0, 1, 1 is empty, reversed or too small"),
    ],
)
def test_a_bad_query_is_refused_before_any_work(model32, index32, monkeypatch, change, told):
    monkeypatch.setattr(model32, "predict", lambda *_: pytest.fail("work was begun"))
    values = {"prompt": "a bus", "image": random_picture(0)} | change
    with pytest.raises(InputError) as caught:
        next(attribute(model32, index32, Query(**values), AttributeSettings(top_k=1)))
    assert told in str(caught.value)


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        (AttributeSettings(top_k=0), "top_k = 0 is not possible; accepted are 1 to 8"),
        (AttributeSettings(top_k=9), "top_k = 9 is not possible; accepted are 1 to 8"),
        (AttributeSettings(method="magic"), "there is no method 'magic'; accepted are unlearning, unlearning+"),
    ],
)
def test_bad_settings_are_refused_before_any_work(model32, index32, query, settings, told):
    with pytest.raises(InputError) as caught:
        next(attribute(model32, index32, query, settings))
    assert told in str(caught.value)


def test_likely_first_is_a_permutation_that_begins_with_the_prompts_words(index32):
    for prompt in ("a green bus", "nothing of this", "", "A Red KEY beside a green apple"):
        assert sorted(likely_first(prompt, index32.captions)) == list(range(8))
    assert likely_first("a green bus", index32.captions)[0] == 1
    assert likely_first("A Red KEY beside a green apple", index32.captions)[0] == 6
    assert likely_first("xyz", index32.captions) == list(range(8))


def test_the_pixel_baseline_finds_a_training_picture_and_its_mirror(model32, index32, pictures):
    picture = Image.open(pictures / "p5.png")
    settings = AttributeSettings(method="pixel", top_k=3)
    for image, flip in ((picture, False), (ImageOps.mirror(picture), True)):
        answer = list(attribute(model32, index32, Query("a key", image), settings))[-1]
        assert (answer.results[0].row, answer.results[0].flip, answer.results[0].id) == (5, flip, "p5.png")
        assert_close(answer.results[0].score, 1.0, rtol=0, atol=1e-6)
        assert answer.evaluations == 0
