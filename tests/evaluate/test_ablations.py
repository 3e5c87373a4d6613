"""Variants of unlearning and the controls: columns and figures by hand, scores against the plain answer."""

import numpy as np
import pytest
import torch
from conftest import random_picture

from attribution.cli import main
from attribution.errors import InputError
from attribution.evaluate import ablations, controls, scored
from attribution.evaluate.ablations import (
    ALIKE,
    BY_FLAGS,
    DEFAULT,
    LONG,
    MEAN_OF_MIRRORS,
    VARIANTS,
    AblationSettings,
    by_losses,
    compute,
    known,
    strided,
)
from attribution.evaluate.lds import Evidence
from attribution.methods import METHODS
from attribution.query.query import Query

QUERY = Query("an owl and a bus", random_picture(3), 3)


def test_few_timesteps_are_spread_over_many():
    assert strided(2) == [12, 37]
    assert strided(5) == [5, 15, 25, 35, 45]
    assert strided(LONG) == list(range(LONG))


def test_scores_are_of_the_columns_and_views_that_a_variant_names():
    before = np.zeros((2, 2, LONG))
    after = np.zeros((2, 2, LONG))
    after[0, 1, [12, 37]] = 1.0, 3.0  # the mirror of the first image, where two timesteps look
    after[1, :, 2] = 5.0, 15.0  # where ten look, and two do not
    np.testing.assert_allclose(by_losses(f"{DEFAULT}, 2 timesteps", before, after), [2.0, 0.0])
    np.testing.assert_allclose(by_losses(f"{DEFAULT}, 50 timesteps", before, after), [0.08, 0.3])
    np.testing.assert_allclose(by_losses(MEAN_OF_MIRRORS, before, after), [0.2, 1.0])


def test_every_variant_is_named_by_flags_that_there_are():
    for name, (method, unlearn) in BY_FLAGS.items():
        words = name.split()
        assert words[0] == method
        assert method in METHODS
        for flag, value in zip(words[1::2], words[2::2], strict=True):
            assert str(getattr(unlearn, flag.removeprefix("--"))).removesuffix(".0") == value


def test_noises_at_many_timesteps_are_like_the_indexs(model32, full_index):
    bank, own = ablations.long_bank(model32, full_index), full_index.bank(model32)
    assert len(bank) == LONG == len(set(bank.t.tolist()))
    assert bank.eps.shape[1:] == own.eps.shape[1:]


def test_timesteps_of_equal_weight_count_alike():
    """Changes a hundred times as large at one of the timesteps rank no image before the others."""
    rng = np.random.default_rng(0)
    after = rng.normal(size=(6, 2, LONG))
    larger = after.copy()
    larger[..., 22] *= 100.0
    plain, scaled = (by_losses(ALIKE, np.zeros_like(each), each) for each in (after, larger))
    np.testing.assert_allclose(plain, scaled)
    np.testing.assert_allclose(plain, (after[..., 2::5] / after[..., 2::5].std((0, 1))).mean(2).max(1))


@pytest.fixture
def short(monkeypatch, full_index):
    """Losses at the index's own noises."""
    count = full_index.base_losses.shape[-1]
    monkeypatch.setattr(ablations, "LONG", count)
    monkeypatch.setattr(ablations, "long_bank", lambda model, index: index.bank(model))
    name = f"{DEFAULT}, {count} timesteps"
    monkeypatch.setattr(ablations, "BY_LOSSES", {name: count})
    monkeypatch.setattr(ablations, "VARIANTS", (*BY_FLAGS, name))
    return name


def test_what_is_scored_by_losses_is_what_the_method_answers(tmp_path, model32, full_index, short):
    settings = AblationSettings(1, (DEFAULT, "unlearning-sgd --rise 0.1", short))
    done = list(compute(tmp_path, model32, full_index, [QUERY], settings))
    assert len(done) == 3
    assert list(compute(tmp_path, model32, full_index, [QUERY], settings)) == []
    found = known(tmp_path, full_index, [QUERY], settings)
    np.testing.assert_allclose(found[short], found[DEFAULT], rtol=1e-4, atol=1e-7)
    assert not np.allclose(found["unlearning-sgd --rise 0.1"], found[DEFAULT])


def test_what_is_not_scored_is_left_out(tmp_path, full_index):
    assert known(tmp_path, full_index, [QUERY], AblationSettings(1)) == {}


def test_an_unknown_variant_is_named(capsys):
    with pytest.raises(InputError, match="there is no variant 'magic'; accepted are 'unlearning"):
        _ = AblationSettings(variants=("magic",)).named
    assert main(["evaluate", "ablations", "--variants", "magic"]) == 2
    assert capsys.readouterr().err.count("\n") == 1


def test_the_command_prints_what_comes_with_the_program(capsys):
    assert main(["evaluate", "ablations"]) == 0
    printed = capsys.readouterr().out
    for name in VARIANTS:
        assert f"| {name} |" in printed, name


# Controls


def test_shuffled_weights_are_the_same_numbers_and_come_back(model32):
    before = {name: value.clone() for name, value in model32.unet.state_dict().items()}
    with scored.shuffled(model32):
        now = model32.unet.state_dict()
        moved = [name for name, value in now.items() if not torch.equal(value, before[name])]
        assert len(moved) > len(before) / 2  # norms' weights are all ones
        for name, value in now.items():
            torch.testing.assert_close(value.flatten().sort()[0], before[name].flatten().sort()[0], rtol=0, atol=0)
    for name, value in model32.unet.state_dict().items():
        assert torch.equal(value, before[name])


def test_the_model_with_shuffled_weights_is_asked(tmp_path, model32, full_index):
    asked = scored.exhaustively(full_index, "unlearning+")
    jobs = list(scored.score_shuffled(tmp_path, model32, full_index, [QUERY], "shuffled", asked))
    assert len(jobs) == 1
    plain = scored.scored(tmp_path, model32, full_index, [QUERY], ["unlearning+"])["unlearning+"]
    shuffled = scored.held(tmp_path, full_index, [QUERY], "shuffled")
    assert shuffled.shape == plain.shape
    assert not np.allclose(shuffled, plain)


def test_the_next_picture_of_other_objects_stands_for_any():
    prompts = ["a red apple and a dog", "a dog and a frog", "a frog and a rocket", "a red apple and a rocket"]
    assert controls.unrelated(prompts) == {0: 2, 1: 3, 2: 0, 3: 1}
    assert controls.unrelated(["a dog", "a dog and a frog"]) == {}


def test_controls_are_of_the_losses_of_the_query_that_was_asked():
    """Each picture's scores explain the other's losses perfectly, and its own the wrong way round."""
    scores = np.array([[1.0, 4.0, 2.0], [4.0, 1.0, 2.0]])
    kept = ~np.eye(3, dtype=bool)
    losses = np.array([[[3.0, 1.0], [1.0, 3.0], [2.0, 2.0]]])
    evidence = Evidence(np.arange(3), kept, losses, {"unlearning+": scores}, scores[:1])
    told = controls.controls(evidence, ["a dog", "a frog"])
    assert "the scores of another picture, of other objects 1.000" in told
    assert "the model with shuffled weights -1.000" in told
    assert controls.controls(Evidence(np.arange(3), kept, losses, {}), ["a dog", "a frog"]) == ""
