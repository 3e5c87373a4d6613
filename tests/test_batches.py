"""Batches that grow smaller where the device's memory is too small, and what is then computed."""

import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch
from conftest import ALL_GRADIENTS, build_all

from attribution.batches import batches, in_batches
from attribution.errors import WorkFailed
from attribution.index.index import Index
from attribution.methods import attribute, fitting
from attribution.methods.answer import AttributeSettings
from attribution.unlearning.step import UnlearnSettings

FULL = "CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has a total capacity of 23.69 GiB."


def test_batches_cover_the_rows_once_in_order():
    assert [list(rows) for rows in batches(7, 3)] == [[0, 1, 2], [3, 4, 5], [6]]
    assert [list(rows) for rows in batches(7, 3, 5)] == [[5, 6]]
    assert not list(batches(7, 3, 7))


def test_batches_that_do_not_fit_are_halved_until_they_do(caplog):
    tried = []

    def work(rows):
        tried.append(len(rows))
        if len(rows) > 3:
            raise torch.OutOfMemoryError(FULL)
        return [row * row for row in rows]

    done = list(in_batches(20, 8, work, start=1))
    assert [list(rows) for rows, _ in done] == [list(rows) for rows in batches(20, 2, 1)]
    assert [square for _, squares in done for square in squares] == [row * row for row in range(1, 20)]
    assert tried[:3] == [8, 4, 2]
    assert set(tried[2:]) == {2, 1}, "what fits is kept"
    assert "going on with 2" in caplog.text


def test_a_single_row_that_does_not_fit_is_said_in_one_line():
    def work(_rows):
        raise torch.OutOfMemoryError(FULL)

    with pytest.raises(WorkFailed, match=r"^the device's memory is too small for this model \(CUDA out of memory"):
        list(in_batches(5, 4, work))


def test_other_errors_are_not_tried_again():
    tried = []

    def work(rows):
        tried.append(rows)
        raise RuntimeError("mat1 and mat2 shapes cannot be multiplied")

    with pytest.raises(RuntimeError, match="mat1"):
        list(in_batches(5, 4, work))
    assert len(tried) == 1


@pytest.fixture
def small_device(monkeypatch):
    """Gives a model whose U-Net runs out of memory with more than five predictions at once."""

    def limit(model):
        def predict(x_t, t, text, forward=model.predict):
            if len(x_t) > 5:
                raise torch.OutOfMemoryError(FULL)
            return forward(x_t, t, text)

        monkeypatch.setattr(model, "predict", predict)
        return model

    return limit


@pytest.fixture(scope="module")
def projected(index, model, extend_all, tmp_path_factory):
    """The float64 model's index with EK-FAC and gradients of few dimensions."""
    folder = shutil.copytree(index.path, tmp_path_factory.mktemp("projected") / "index")
    extend_all(folder, model, dimension=64, ekfac=True, gradients=ALL_GRADIENTS)
    return Index.open(folder)


@pytest.mark.parametrize("method", ["unlearning", "unlearning+", "influence", "influence+", "trak", "d-trak"])
def test_a_small_device_gives_the_same_answer(projected, model, query, small_device, method):
    wanted = AttributeSettings(top_k=8, unlearn=UnlearnSettings(timesteps=9, batch=16), batch=12)
    settings = fitting(wanted, method)
    *_, roomy = attribute(model, projected, query, settings)
    *_, tight = attribute(small_device(model), projected, query, settings)
    assert [result.row for result in tight.results] == [result.row for result in roomy.results]
    scores = [[result.score for result in each.results] for each in (tight, roomy)]
    np.testing.assert_allclose(*scores, rtol=1e-4)


def test_a_small_device_builds_the_same_index(model, index, tiny_settings, small_device, tmp_path):
    roomy = replace(tiny_settings, batch=32)
    built = Index.open(build_all(tmp_path / "index", small_device(model), roomy))
    np.testing.assert_allclose(built.base_losses, index.base_losses, rtol=1e-6)
    for name, values in index.fisher.items():
        torch.testing.assert_close(built.fisher[name], values)
