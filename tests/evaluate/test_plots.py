"""Figures of results: each has a name for every method and is written whole; what it looks like is for eyes."""

import numpy as np
import pytest
from PIL import Image

from attribution.cli import main
from attribution.evaluate.agreement import estimate
from attribution.evaluate.counterfactual import Left
from attribution.evaluate.lds import Agreement
from attribution.evaluate.plots import lds_bars, left_out, recall_bars
from attribution.evaluate.retrieval import Found

METHODS = ("d-trak", "dino", "random")
VALUES = {method: np.array([0.1, 0.2, 0.3]) - number / 10 for number, method in enumerate(METHODS)}


def draw(kind, path):
    if kind == "lds":
        estimates = {method: estimate(value) for method, value in VALUES.items()}
        lds_bars(Agreement(8, (8, 4), estimates, VALUES, estimate(np.array([0.4, 0.5]))), path)
    elif kind == "leave-out":
        moved = [Left(each, k, k * VALUES[each], VALUES[each], VALUES[each], k) for each in METHODS for k in (0, 2, 5)]
        left_out(moved, {2: np.array([0.1, 0.0, 0.2]), 9: np.array([1.0, 2.0, 3.0])}, path)
    else:
        recall = {method: dict(zip("abc", value + 0.3, strict=True)) for method, value in VALUES.items()}
        recall_bars([Found(each, worded, recall[each], {}) for worded in (True, False) for each in METHODS], 10, path)


@pytest.mark.parametrize("kind", ["lds", "leave-out", "recall"])
def test_a_figure_names_every_method(kind, tmp_path):
    draw(kind, tmp_path / "figure.svg")
    told = (tmp_path / "figure.svg").read_text()
    for method in METHODS:
        assert f"<!-- {method} -->" in told
    draw(kind, tmp_path / "figure.png")
    with Image.open(tmp_path / "figure.png") as picture:
        assert picture.width > 800
    assert len(list(tmp_path.iterdir())) == 2


def test_a_figure_without_random_removals_has_no_curve(tmp_path):
    left_out([Left("dino", 2, VALUES["dino"], VALUES["dino"], VALUES["dino"], 4)], {}, tmp_path / "figure.svg")
    assert "random" not in (tmp_path / "figure.svg").read_text()


def test_a_figure_of_another_kind_is_refused_before_any_work(tmp_path, capsys):
    assert main(["evaluate", "lds", "--plot", str(tmp_path / "figure.jpg")]) == 2
    assert "name a file that ends in .png, .svg, .pdf" in capsys.readouterr().err
