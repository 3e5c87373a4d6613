"""What is shown of an answer: rankings of several methods, their agreement, one training image opened. Escaped HTML."""

import math
from collections.abc import Mapping, Sequence
from html import escape

from attribution.answer import Attribution, Progress, Result
from attribution.compare import agreement, finders, fold, rank_of
from attribution.index import Index
from attribution.methods import METHODS
from attribution.report import Run
from attribution.report_html import agreed, loss_plot

THUMBNAIL = "thumbnails/{row}.png"  # relative to the page; see `routes.py`
LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"

Answers = Mapping[str, Attribution | Progress]  # by method, the main one first


def panel(answers: Answers, index: Index, top_k: int, folded: bool) -> str:
    """The rankings of one region, and the finished run's links.

    Args:
        answers: finished, or so far.
        index: of the training set.
        top_k: places that a ranking has, so that nothing moves while it fills.
        folded: show nearly equal training images as one.
    """
    finished = {name: answer for name, answer in answers.items() if isinstance(answer, Attribution)}
    badges = _badges(finished)
    main, *others = answers
    larger = _ranking(main, answers[main], index, top_k, folded, badges, "large")
    smaller = "".join(_ranking(name, answers[name], index, top_k, folded, badges, "small") for name in others)
    kept = _links(Run(tuple(finished.values()))) if len(finished) == len(answers) else "<p class='kept'>&nbsp;</p>"
    return (
        f"{kept}<div class='answer'><div class='main'>{larger}{_clear_source(answers[main], index)}</div>"
        f"<div class='others'>{smaller}{_agreements(answers, main)}</div></div>"
    )


def opened(row: int, run: Run, index: Index, timesteps: Sequence[int]) -> str:
    """One training image: larger, its caption, source and id, its rank by every method, its losses by timestep."""
    results = {answer.settings.method: each for answer in run.answers for each in answer.results if each.row == row}
    ranks = "".join(
        f"<tr><th scope='row'>{escape(answer.settings.method)}</th><td>{_rank(row, answer)}</td>"
        f"<td>{_score(results.get(answer.settings.method))}</td></tr>"
        for answer in run.answers
    )
    losses = next((each.losses for each in results.values() if each.losses), ())
    why = f"<h4>Why: its loss at each timestep</h4>{loss_plot(losses, timesteps)}" if losses else ""
    source = escape(str(index.manifest["data"].get("source", "")))
    return (
        f"<section class='opened' aria-label='Training image {escape(index.ids[row], quote=True)}'>"
        f"{_image(row, index.captions[row])}<div><h3>{escape(index.captions[row])}</h3>"
        f"<p class='note'>{escape(index.ids[row])}, row {row} of {len(index):,}{' of ' + source if source else ''}</p>"
        f"<table><tr><th>method</th><th>rank</th><th>score</th></tr>{ranks}</table>{why}</div></section>"
    )


def _links(run: Run) -> str:
    files = " ".join(
        f"<a href='runs/{run.id}.{kind}' download>{kind.upper()}</a>" for kind in ("json", "csv", "zip", "html")
    )
    return f"<p class='kept' data-run='{run.id}'>Run <a href='?run={run.id}'>{run.id}</a> {files}</p>"


def _badges(answers: Mapping[str, Attribution]) -> dict[int, str]:
    """A letter for each training image that more than one method has among its first."""
    shared = [row for row, methods in finders(answers).items() if len(methods) > 1]
    return {row: LETTERS[place % len(LETTERS)] for place, row in enumerate(shared)}


def _ranking(
    method: str,
    answer: Attribution | Progress,
    index: Index,
    top_k: int,
    folded: bool,
    badges: Mapping[int, str],
    size: str,
) -> str:
    entry = METHODS[method]
    groups = fold(answer.results, index) if folded else [(result, []) for result in answer.results]
    cards = [_card(result, len(alike), badges.get(result.row), size) for result, alike in groups]
    cards += ["<li class='card empty' aria-hidden='true'></li>"] * (top_k - len(answer.results))
    title = f"<h3>{escape(method)}</h3><p class='note'>{escape(entry.line)} ({escape(entry.source)})</p>"
    listed = f"<ol class='cards {size}'>{''.join(cards)}</ol>"
    return f"<div class='ranking' data-method='{escape(method)}'>{title}{listed}</div>"


def _card(result: Result, alike: int, badge: str | None, size: str) -> str:
    told = f"rank {result.rank}, score {result.score:+.4f}{', mirrored' if result.flip else ''}: {result.caption}"
    marks = f"<span class='badge' title='several methods agree on it'>{badge}</span>" if badge else ""
    marks += f"<span class='alike'>+{alike} alike</span>" if alike else ""
    text = ""
    if size == "large":
        known = math.isfinite(result.low) and result.low < result.high
        interval = (
            f"{result.low:+.4f} to {result.high:+.4f}"
            if known
            else ""
            if result.low == result.high
            else "not settled yet"
        )
        mirrored = " · mirrored" if result.flip else ""
        text = (
            f"<span class='rank'>{result.rank} · {result.score:+.4f}</span>"
            f"<span class='interval'>{interval}{mirrored}</span><span class='caption'>{escape(result.caption)}</span>"
        )
    else:
        text = f"<span class='rank'>{result.rank}</span>"
    label = escape(told, quote=True)
    return (
        f"<li class='card' data-row='{result.row}'><button type='button' aria-label='{label}' title='{label}'>"
        f"{_image(result.row, '')}{marks}{text}</button></li>"
    )


def _image(row: int, alt: str) -> str:
    return f"<img src='{THUMBNAIL.format(row=row)}' alt='{escape(alt, quote=True)}' loading='lazy'>"


def _rank(row: int, answer: Attribution) -> str:
    rank = rank_of(row, answer)
    return f"{rank:,} of {len(answer.rows):,}" if rank else f"not among the {len(answer.rows):,} ranked to the end"


def _score(result: Result | None) -> str:
    return "" if result is None else f"{result.score:+.4f}"


def _agreements(answers: Answers, main: str) -> str:
    """A table of as many rows from the start; told is what two finished answers tell."""
    if len(answers) < 2:
        return ""
    first, rows = answers[main], ""
    for name, other in answers.items():
        if name == main:
            continue
        if not isinstance(first, Attribution) or not isinstance(other, Attribution):
            rows += f"<tr><th scope='row'>{escape(name)}</th><td>…</td><td></td></tr>"
            continue
        each = agreement(first.rows, other.rows, len(first.results))
        shared = f"{each.overlap * len(first.results):.0f} of {len(first.results)}"
        rows += (
            f"<tr><th scope='row'>{escape(name)}</th><td>{shared}</td>"
            f"<td>{agreed(each.correlation)} ({each.common:,})</td></tr>"
        )
    told = ""
    if isinstance(first, Attribution):
        found = finders({name: each for name, each in answers.items() if isinstance(each, Attribution)})
        alone = sum(found[result.row] == [main] for result in first.results)
        told = f"; {alone} of its {len(first.results)} no other method here has"
    return (
        f"<table class='agreement'><caption>Agreement with {escape(main)}{told}</caption>"
        f"<tr><th>method</th><th>shared</th><th>rank correlation (of)</th></tr>{rows}</table>"
    )


def _clear_source(answer: Attribution | Progress, index: Index) -> str:
    """How the scores stand against what unrelated pictures reach, where the index knows that."""
    floor = index.floor
    if floor is None:
        return ""
    if not isinstance(answer, Attribution) or answer.settings.method != floor["method"]:
        return "<p class='floor'>&nbsp;</p>"
    multiples = [answer.multiple(result) for result in answer.results]
    if not multiples or multiples[0] is None:
        return ""
    above = sum(multiple is not None and multiple > floor["multiple"] for multiple in multiples)
    first = f"{multiples[0]:.1f} times" if math.isfinite(multiples[0]) else "far more than"
    told = (
        f"The first score is {first} the typical training image's; unrelated ones reach {floor['multiple']:.1f} times."
        f" {above} of {len(multiples)} are above that."
    )
    return f"<p class='floor'>{told}</p>" if above else f"<p class='floor none'>No clear source. {told}</p>"
