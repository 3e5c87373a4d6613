"""Unlearning training images against training without them: the figures by hand, and what is unlearned."""

import numpy as np
import pytest
import torch
from conftest import random_picture

from attribution.answers.remove import removal_settings, unlearn_rows
from attribution.diffusion.weights import unlearned
from attribution.evaluate.counterfactual import Evidence, LeaveOutSettings, named
from attribution.evaluate.foreseen import STRENGTH, foresee, foreseen, foresight
from attribution.evaluate.retrain import losses_of, without
from attribution.query.encoded import encode
from attribution.query.query import Query

SETTINGS = LeaveOutSettings(ks=(1,), queries=2, together=1, methods=("d-trak", "dino", "clip"), seeds=2)
SCORES = {method: np.eye(6)[[place, place + 3]] for place, method in enumerate(SETTINGS.methods)}
TRAINED = {"d-trak": (3.0, 30.0), "dino": (2.0, 20.0), "clip": (1.0, 10.0)}  # rise of each query's loss
UNLEARNED = {"d-trak": (0.3, 0.1), "dino": (0.2, 0.2), "clip": (0.1, 0.3)}  # of the second one: the other way round


@pytest.fixture
def evidence():
    changes, rises = {}, {}
    for method, query in ((method, query) for method in SETTINGS.methods for query in (0, 1)):
        once, again = (named(SCORES, (query,), method, 1, seed) for seed in (0, 1))
        changes[once] = {"change": np.array(TRAINED[method]) - 0.5}
        changes[again] = {"change": np.array(TRAINED[method]) + 0.5}  # the mean over seeds is what counts
        rises[once] = np.array(UNLEARNED[method])
    return Evidence(changes, SCORES, [(0,), (1,)], rises)


def test_ranks_are_compared_over_all_and_within_each_query(evidence):
    (found,) = foresight(evidence, SETTINGS)
    assert (found.k, found.methods, found.queries) == (1, SETTINGS.methods, 2)
    assert found.within.mean == pytest.approx(0.0)  # 1 of the first query, -1 of the second
    # ranks of training 3 2 1 6 5 4, of unlearning (in halves, ties) 5.5 3.5 1.5 1.5 3.5 5.5: by Pearson of these
    expected = np.corrcoef([3, 2, 1, 6, 5, 4], [5.5, 3.5, 1.5, 1.5, 3.5, 5.5])[0, 1]
    assert found.all == pytest.approx(expected)
    assert found.told.endswith("for 1 images a picture (0.00 within one picture; 3 methods, 2 pictures)")


def test_a_method_that_is_not_unlearned_whole_is_left_out(evidence):
    del evidence.unlearned[named(SCORES, (1,), "dino", 1, 0)]
    assert foresight(evidence, SETTINGS) == []  # two methods are no ranking


def test_the_images_that_a_training_left_out_are_unlearned_once(model32, index32, tmp_path):
    queries = [Query("a red key", random_picture(number), number) for number in range(2)]
    removal, asked = without((2, 5), 0), [encode(model32, query) for query in queries]
    before = losses_of(model32, asked)
    with unlearned(model32, index32.weights) as weights:
        start = {name: weight.clone() for name, weight in weights.items()}
        list(unlearn_rows(model32, index32, (2, 5), removal_settings(model32, index32), weights))
        for name, weight in weights.items():
            weight.copy_(torch.lerp(start[name], weight, STRENGTH))
        expected = losses_of(model32, asked) - before
    assert list(foresee(tmp_path, model32, index32, [removal, removal], queries)) == [removal]
    held = foreseen(tmp_path, [removal, without((1,), 0)], queries)
    assert list(held) == [removal]
    np.testing.assert_allclose(held[removal], expected, rtol=1e-3)
    np.testing.assert_array_equal(losses_of(model32, asked), before)  # the model is as it was
    assert list(foresee(tmp_path, model32, index32, [removal], queries)) == []
