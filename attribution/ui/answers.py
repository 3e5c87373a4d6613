"""What is shown of an answer: rankings of several methods, their agreement, one training image opened. Escaped HTML."""

import math
from collections.abc import Mapping, Sequence
from html import escape

from attribution.answers.compare import agreement, finders, fold, rank_of
from attribution.answers.html import agreed, framed, loss_plot, to_png
from attribution.answers.report import Run
from attribution.index.index import Index
from attribution.methods import METHODS
from attribution.methods.answer import Attribution, Progress, Result
from attribution.query.query import Query

THUMBNAIL = "thumbnails/{row}.png"  # relative to the page; see `routes.py`
SMALL = 256  # px, the longer side of the picture beside its answer, at most
LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"

Answers = Mapping[str, Attribution | Progress]  # by method, the main one first


def panel(
    name: str, query: Query, answers: Answers, index: Index, top_k: int, folded: bool, run_id: str | None = None
) -> str:
    """What was asked about one region, its rankings, and the finished run's links.

    Args:
        name: of the region.
        query: about it.
        answers: finished, or so far.
        index: of the training set.
        top_k: places that a ranking has, so that nothing moves while it fills.
        folded: show nearly equal training images as one.
        run_id: of the finished run; None while it is under way.
    """
    finished = {method: answer for method, answer in answers.items() if isinstance(answer, Attribution)}
    badges = _badges(finished)
    main, *others = answers
    larger = _ranking(main, answers[main], index, top_k, folded, badges, "large")
    smaller = "".join(_ranking(each, answers[each], index, top_k, folded, badges, "small") for each in others)
    kept = "<p class='kept'>&nbsp;</p>" if run_id is None else _links(run_id)
    return (
        f"<div class='asked'>{picture_of(query)}<div><h2>Training images behind: {escape(name)}</h2>"
        f"{_clear_source(answers[main], index)}{kept}</div></div>"
        f"<div class='answer'><div class='main'>{larger}{_agreements(answers, main)}</div>"
        f"<div class='others'>{smaller}</div></div>"
    )


def picture_of(query: Query) -> str:
    """A query's picture, small, with its boxes."""
    small = query.image.copy()
    small.thumbnail((SMALL, SMALL))
    return framed(query, to_png(small))


def example(run: Run, index: Index) -> str:
    """A finished run as a button with its picture, its question, and whether there is a clear source."""
    query, floor, first = run.query, index.floor, run.answers[0]
    multiple = first.multiple(first.results[0])
    clear = "" if floor is None or multiple is None or multiple > floor["multiple"] else " · no clear source"
    return (
        f"<button type='button' data-run='{run.id}'>{picture_of(query)}<span><b>{escape(_short(run))}{clear}</b>"
        f"{escape(query.prompt)}</span></button>"
    )


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
    told, why = "<p class='note'>Its ranks and losses are known when the run has ended.</p>", ""
    if run is not None:
        told, why = _ranks(row, run), _why(row, run, timesteps)
    source = escape(index.manifest.source)
    return (
        f"<section class='opened' tabindex='-1' aria-label='Training image {escape(index.ids[row], quote=True)}'>"
        f"{_image(row, index.captions[row])}<div><h3>{escape(index.captions[row])}</h3>"
        f"<p class='note'>{escape(index.ids[row])}, row {row} of {len(index):,}{' of ' + source if source else ''}</p>"
        f"{told}</div>{why}</section>"
    )


def _ranks(row: int, run: Run) -> str:
    scores = {answer.settings.method: each for answer in run.answers for each in answer.results if each.row == row}
    ranks = "".join(
        f"<tr><th scope='row'>{escape(answer.settings.method)}</th><td>{_rank(row, answer)}</td>"
        f"<td>{_score(scores.get(answer.settings.method))}</td></tr>"
        for answer in run.answers
    )
    return f"<table><tr><th>method</th><th>rank</th><th>score</th></tr>{ranks}</table>"


def _why(row: int, run: Run, timesteps: Sequence[int]) -> str:
    results = (each for answer in run.answers for each in answer.results if each.row == row)
    losses = next((each.losses for each in results if each.losses), ())
    return f"<div><h4>Why: its loss at each timestep</h4>{loss_plot(losses, timesteps)}</div>" if losses else ""


def _links(run_id: str) -> str:
    files = " ".join(
        f"<a href='runs/{run_id}.{kind}' download>{kind.upper()}</a>" for kind in ("json", "csv", "zip", "html")
    )
    return f"<p class='kept' data-run='{run_id}'>Run <a href='?run={run_id}'>{run_id}</a> {files}</p>"


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
    also = f"{', mirrored' if result.flip else ''}{f', {alike} more nearly equal to it' if alike else ''}"
    told = f"rank {result.rank}, score {result.score:+.4f}{also}: {result.caption}"
    marks = f"<span class='badge' title='several methods agree on it'>{badge}</span>" if badge else ""
    marks += f"<span class='alike' title='nearly equal images, folded into this one'>+{alike}</span>" if alike else ""
    short = f"{result.score:.4g}" if abs(result.score) >= 0.01 else f"{result.score:.1e}"
    text = f"<span class='rank'>{result.rank}</span><span class='score'>{short}</span>"
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
    label = escape(told, quote=True)
    return (
        f"<li class='card' data-row='{result.row}'><button type='button' aria-label='{label}' title='{label}'>"
        f"<span class='thumb'>{_image(result.row, '')}{marks}</span>{text}</button></li>"
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
        f"<tr><th>method</th><th>shared</th><th>rank correlation (images that both rank)</th></tr>{rows}</table>"
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
    first = f"{multiples[0]:.1f} times as much as" if math.isfinite(multiples[0]) else "far more than"
    told = (
        f"Loss of the first rises {first} the typical training image's; for unrelated pictures, at most"
        f" {floor['multiple']:.1f} times. {above} of {len(multiples)} are above that."
    )
    kind, said = ("floor", "Clear source") if above else ("floor none", "No clear source")
    return f"<p class='{kind}'><strong>{said}.</strong> {told}</p>"
