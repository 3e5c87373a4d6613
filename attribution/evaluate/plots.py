"""Figures of the results: LDS with its ceiling, leave-K-out against random removals, Recall@K of exemplars."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from attribution.evaluate.agreement import Floats, estimate
from attribution.evaluate.counterfactual import Left
from attribution.evaluate.lds import Agreement
from attribution.evaluate.retrieval import Found
from attribution.files import whole

PAPER, QUIET = "#b3541e", "#5b6b73"  # methods that unlearn, and all others
MARKS = "osD^vP*X<>"
BASELINES = ("random", "pixel", "clip", "clip-text", "dino")


def lds_bars(found: Agreement, path: Path) -> None:
    """A bar a method, with its standard error over queries, and the rank correlation of two seeds as a line."""
    methods = list(found.methods)[::-1]
    figure, axes = _figure(0.34 * len(methods) + 1.2)
    values = [found.methods[method] for method in methods]
    _bars(axes, methods, [each.mean for each in values], [each.error for each in values])
    if found.ceiling is not None:
        _line(axes, found.ceiling.mean, "one seed against another")
    axes.axvline(0, color="black", linewidth=0.8)
    axes.set_xlabel(f"LDS: rank correlation with {sum(found.trainings)} models trained on {found.models} random halves")
    _save(figure, path)


def recall_bars(found: Sequence[Found], k: int, path: Path) -> None:
    """Recall@K a method, with the new word in the prompt and without it, with standard errors over models."""
    methods = list(dict.fromkeys(each.method for each in found))[::-1]
    figure, axes = _figure(0.42 * len(methods) + 1.2)
    for worded, place, shade in ((True, 0.2, 1.0), (False, -0.2, 0.45)):
        held = {each.method: estimate(_values(each)) for each in found if each.worded == worded}
        here = [number for number, method in enumerate(methods) if method in held]
        bars = [held[methods[number]] for number in here]
        label = "with the new word" if worded else "without it"
        means, errors = [each.mean for each in bars], [each.error for each in bars]
        axes.barh(np.array(here) + place, means, 0.38, xerr=errors, color=PAPER, alpha=shade, label=label)
    axes.set_yticks(range(len(methods)), methods)
    axes.set_xlim(0, 1)
    axes.set_xlabel(f"Recall@{k} of the exemplars")
    axes.legend(frameon=False)
    _save(figure, path)


def _values(found: Found) -> Floats:
    return np.array(list(found.recall.values()))


def left_out(found: Sequence[Left], curve: Mapping[int, Floats], path: Path) -> None:
    """The change of loss by how many images were left out: by random, a curve, and by each method, its points.

    Args:
        found: methods and their K; those of K = 0 are left out.
        curve: (Q,) changes by how many random images were left out.
        path: of the figure.
    """
    figure, axes = _figure(4.2)
    if curve:
        counts = [0, *curve]
        means = np.array([0.0, *(changes.mean() for changes in curve.values())])
        errors = np.array([0.0, *(estimate(changes).error for changes in curve.values())])
        axes.plot(counts, means, color="black", label="random images")
        axes.fill_between(counts, means - errors, means + errors, color="black", alpha=0.15, linewidth=0)
    shown = [each for each in found if each.k]
    for number, method in enumerate(dict.fromkeys(each.method for each in shown)):
        points = sorted((each for each in shown if each.method == method), key=lambda each: each.removed)
        where = [each.removed for each in points]
        rises, spread = [each.mean.mean for each in points], [each.mean.error for each in points]
        axes.errorbar(where, rises, spread, marker=MARKS[number % len(MARKS)], label=method, capsize=2, linewidth=1)
    axes.set_xlabel("training images left out, of one training")
    axes.set_ylabel("rise of the queries' loss")
    axes.legend(frameon=False, fontsize=8, loc="center left", bbox_to_anchor=(1.0, 0.5))
    _save(figure, path)


def _figure(height: float) -> tuple[Figure, Axes]:
    """A figure 7 inches wide, without the program-wide state of pyplot."""
    figure = Figure(figsize=(7, height), layout="constrained")
    axes = figure.add_subplot()
    axes.spines[["top", "right"]].set_visible(False)
    return figure, axes


def _bars(axes: Axes, names: Sequence[str], means: Sequence[float], errors: Sequence[float]) -> None:
    colours = [QUIET if name in BASELINES else PAPER for name in names]
    axes.barh(range(len(names)), means, xerr=errors, color=colours)
    axes.set_yticks(range(len(names)), names)


def _line(axes: Axes, value: float, label: str) -> None:
    axes.axvline(value, color="black", linestyle="--", linewidth=1, label=label)
    axes.legend(frameon=False)


def _save(figure: Figure, path: Path) -> None:
    """Write a figure, whole or not at all; the same numbers make the same file."""
    ending = path.suffix.lower().removeprefix(".")
    undated = {"png": {}, "svg": {"Date": None}, "pdf": {"CreationDate": None}}[ending]
    with whole(path) as partial:
        figure.savefig(partial, format=ending, dpi=150, metadata=undated)
