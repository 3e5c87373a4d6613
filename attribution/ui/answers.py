"""What is shown of an answer: rankings of several methods, their agreement, one training image opened; as HTML."""

from collections.abc import Sequence
from dataclasses import dataclass

from attribution.answers.compare import rank_of
from attribution.answers.html import Framed, framed, to_png
from attribution.answers.plot import LossPlot, loss_marks
from attribution.answers.provenance import source_name
from attribution.answers.ranking import (
    Answers,
    agreements,
    alone,
    rankings,
    score_words,
)
from attribution.answers.run import Run
from attribution.answers.verdict import verdict_of
from attribution.index.index import Index
from attribution.methods.answer import Attribution, Result
from attribution.query.query import Query
from attribution.ui.templates import render

THUMBNAILS = "thumbnails/{index}"  # relative to the page; see `routes.py`
SMALL = 256  # px, the longer side of the picture beside its answer, at most


@dataclass(frozen=True)
class Example:
    """A finished run as a button: its picture, its question with the verdict, and its prompt."""

    run_id: str
    shown: Framed
    title: str
    prompt: str


def panel(
    name: str, query: Query, answers: Answers, index: Index, top_k: int, folded: bool, run_id: str | None = None
) -> str:
    """What was asked about one region, its verdict, its rankings, and the finished run's links.

    Args:
        name: of the region.
        query: about it.
        answers: finished, or so far.
        index: of the training set.
        top_k: places that a ranking has, so that nothing moves while it fills.
        folded: show nearly equal training images as one.
        run_id: of the finished run; None while it is under way.
    """
    first = next(iter(answers.values()))
    verdict = verdict_of(first, index) if isinstance(first, Attribution) else None
    main, *others = rankings(answers, index, top_k, folded)
    folder, agreed = THUMBNAILS.format(index=index.id), (agreements(answers), alone(answers))
    return render("answers.html", "panel", folder, name, picture_of(query), verdict, main, others, *agreed, run_id)


def picture_of(query: Query) -> Framed:
    """A query's picture, small, with its boxes."""
    small = query.image.copy()
    small.thumbnail((SMALL, SMALL))
    return framed(query, to_png(small))


def examples(runs: Sequence[Run], index: Index) -> str:
    """Finished runs as buttons, each with its picture, its question and its verdict."""
    return render("answers.html", "examples", [_example(run, index) for run in runs])


def _example(run: Run, index: Index) -> Example:
    grade = verdict_of(run.answers[0], index).grade
    title = f"{_short(run)} · {grade}" if grade else _short(run)
    return Example(run.id, picture_of(run.query), title, run.query.prompt)


def _short(run: Run) -> str:
    query = run.query
    if run.label:
        return f"A box, “{run.label}”"
    if query.word is not None:
        return f"The word “{query.word}”"
    if query.boxes:
        return "A box" if len(query.boxes) == 1 else f"{len(query.boxes)} boxes"
    return "An upload" if query.seed is None else "The whole picture"


def opened(row: int, run: Run | None, index: Index, timesteps: Sequence[int]) -> str:
    """One training image: larger, its caption, source and id, its rank by every method, its losses by timestep.

    Args:
        row: of the training set.
        run: that it is an answer of; None while that is under way.
        index: of the training set.
        timesteps: of the noise bank's columns.
    """
    ranks = None if run is None else [_rank(row, answer) for answer in run.answers]
    plot = None if run is None else _plot(row, run, timesteps)
    of = (row, index.ids[row], index.captions[row], len(index), source_name(index))
    return render("answers.html", "opened", THUMBNAILS.format(index=index.id), *of, ranks, plot)


def _rank(row: int, answer: Attribution) -> tuple[str, str, str]:
    """A method, and a training image's rank and score by it."""
    rank = rank_of(row, answer)
    told = f"{rank:,} of {len(answer.rows):,}" if rank else f"not among the {len(answer.rows):,} ranked to the end"
    found = _result(row, answer)
    return answer.settings.method, told, "" if found is None else _scored(answer, found)


def _scored(answer: Attribution, result: Result) -> str:
    words, exact = score_words(answer, result), f"{result.score:+.4f}"
    return f"{words} ({exact})" if answer.typical else exact


def _result(row: int, answer: Attribution) -> Result | None:
    return next((each for each in answer.results if each.row == row), None)


def _plot(row: int, run: Run, timesteps: Sequence[int]) -> LossPlot | None:
    results = (_result(row, answer) for answer in run.answers)
    losses = next((each.losses for each in results if each is not None and each.losses), ())
    return loss_marks(losses, timesteps) if losses else None
