"""A ranking in words, as the page and the report show it: places, scores as multiples, intervals, agreement."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from attribution.answers.compare import agreement, finders, fold
from attribution.answers.networks import network_behind
from attribution.index.index import Index
from attribution.methods import METHODS
from attribution.methods.answer import Attribution, Progress, Result

LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
TIMES, MINUS = "\N{MULTIPLICATION SIGN}", "\N{MINUS SIGN}"
UNIT = f"Scores are multiples of the typical training image's: at 10{TIMES}, its loss rises ten times as much"
MIXED = ", by the mean of what is measured and what is foreseen"
ESTIMATE = "A first estimate by stored gradients, before any training loss is measured."
SAME = 1e-6  # of a score: two that differ by less are equal

Answers = Mapping[str, Attribution | Progress]  # by method, the main one first


@dataclass(frozen=True)
class Card:
    """One training image of a ranking.

    Attributes:
        result: of the method.
        place: its rank; "=2" where its score equals a neighbour's.
        score: "39.5x", a multiple of the typical training image's score; as it is where a method has no typical one.
        interval: of the score, in the same unit; "" where the method gives none.
        weak: the score is not above zero.
        letter: of an image that several methods have among their first; "" otherwise.
        alike: how many nearly equal images are folded into this one.
        others: the other methods that have it among their first.
        came: a first estimate did not name it.
        told: all of it as one line, with the score as it is.
    """

    result: Result
    place: str
    score: str
    interval: str
    weak: bool
    letter: str
    alike: int
    others: str
    came: bool
    told: str


@dataclass(frozen=True)
class Ranking:
    """A method's ranking.

    Attributes:
        method: its name.
        line: what it does, and who published it.
        behind: the network that it compares by, where that is not the published one; "" otherwise.
        cards: best first.
        empty: places that have no image yet.
        took: evaluations and seconds of a finished one; "" before.
        unit: what its scores say, in a sentence; "" while that is not known, or where they are no multiples.
        found: how its images were found, in whole sentences; "" before, and where all were ranked at once.
    """

    method: str
    line: str
    behind: str
    cards: list[Card]
    empty: int
    took: str
    unit: str
    found: str


@dataclass(frozen=True)
class Agreement:
    """A line of the agreement table: another method, how much of the first K it shares, and the rank correlation."""

    method: str
    shared: str
    correlation: str


def rankings(answers: Answers, index: Index, top_k: int, folded: bool) -> list[Ranking]:
    """Every method's ranking, the main one first.

    Args:
        answers: finished, or so far.
        index: of the training set.
        top_k: places that a ranking has.
        folded: show nearly equal training images as one.
    """
    finished = finished_of(answers)
    found = finders(finished)
    letters = _letters(found)
    return [_ranking(method, answer, index, top_k, folded, found, letters) for method, answer in answers.items()]


def agreements(answers: Answers) -> list[Agreement]:
    """How far each other method agrees with the main one, the first; as many lines from the start."""
    if not answers:
        return []
    main, *others = answers
    return [_agreement(answers[main], answers[name], name) for name in others]


def alone(answers: Answers) -> str:
    """How many of the main method's first images no other method has; "" while that is not known."""
    finished = finished_of(answers)
    main = next(iter(answers))
    if main not in finished or len(answers) < 2:
        return ""
    found, results = finders(finished), finished[main].results
    count = sum(found[result.row] == [main] for result in results)
    return f"{count} of its {len(results)} images are named by it alone"


def finished_of(answers: Answers) -> dict[str, Attribution]:
    """The finished answers, in their order."""
    return {method: answer for method, answer in answers.items() if isinstance(answer, Attribution)}


def score_words(answer: Attribution | Progress, result: Result) -> str:
    """A result's score: as a multiple of the typical training image's, or as it is where there is no typical one.

    Nothing while it is under way: the typical score is not known then, and the score is not settled.
    """
    if isinstance(answer, Progress):
        return ""
    typical = typical_of(answer)
    if typical is not None:
        return multiple_words(result.score / typical)
    if abs(result.score) >= 0.001:
        return f"{result.score:.4f}".replace("-", MINUS)
    return f"{result.score:.1e}".replace("e-0", "e-")  # short: it stands under a small picture


def interval_words(answer: Attribution | Progress, result: Result) -> str:
    """The interval of a result's score in the score's unit; "" where the method gives none."""
    if result.low == result.high:
        return ""
    if not (math.isfinite(result.low) and math.isfinite(result.high)):
        return "settling"
    typical = typical_of(answer)
    if typical is None:
        return f"{result.low:.4g} to {result.high:.4g}"
    return f"{number_words(result.low / typical)} to {multiple_words(result.high / typical)}"


def typical_of(answer: Attribution | Progress) -> float | None:
    """The typical training image's score, where scores can be told as multiples of it: above zero."""
    typical = answer.typical if isinstance(answer, Attribution) else None
    return typical if typical is not None and typical > 0 else None


def multiple_words(multiple: float) -> str:
    """A multiple, such as "39.5x"."""
    return f"{number_words(multiple)}{TIMES}"


def number_words(value: float) -> str:
    """A number with one digit after the point below a hundred, with none above."""
    rounded = f"{value:,.1f}" if abs(value) < 99.95 else f"{value:,.0f}"
    return rounded.replace("-", MINUS)


def correlation_words(correlation: float | None) -> str:
    """A rank correlation."""
    return "too few in common" if correlation is None else f"{correlation:+.2f}"


def places(results: Sequence[Result]) -> list[str]:
    """Ranks in words: results whose scores are equal share the best one's, with "=" before it."""
    first, shown = 0, []
    for number, result in enumerate(results):
        if not equal(results[first], result):
            first = number
        tied = first != number or (number + 1 < len(results) and equal(result, results[number + 1]))
        shown.append(f"={results[first].rank}" if tied else str(result.rank))
    return shown


def equal(one: Result, other: Result) -> bool:
    """Whether two results' scores differ by no more than rounding."""
    return math.isclose(one.score, other.score, rel_tol=SAME, abs_tol=1e-12)


def _letters(found: Mapping[int, list[str]]) -> dict[int, str]:
    """A letter for each training image that more than one method has among its first."""
    shared = [row for row, methods in found.items() if len(methods) > 1]
    return {row: LETTERS[place % len(LETTERS)] for place, row in enumerate(shared)}


def _ranking(
    method: str,
    answer: Attribution | Progress,
    index: Index,
    top_k: int,
    folded: bool,
    found: Mapping[int, list[str]],
    letters: Mapping[int, str],
) -> Ranking:
    entry, place_of = METHODS[method], dict(zip(answer.results, places(answer.results), strict=True))
    groups = fold(answer.results, index) if folded else [(result, []) for result in answer.results]
    cards = [
        _card(answer, result, place_of[result], letters.get(result.row, ""), len(alike), _others(found, result, method))
        for result, alike in groups
    ]
    took = ""
    if isinstance(answer, Attribution):
        took = f"{answer.evaluations:,} evaluations in {sum(answer.seconds.values()):.1f} s{_steps_words(answer)}"
    line = f"{entry.line} ({entry.source})"
    empty = max(0, top_k - len(answer.results))
    return Ranking(method, line, network_behind(index, method), cards, empty, took, _unit(answer), _found(answer))


def _unit(answer: Attribution | Progress) -> str:
    if isinstance(answer, Progress):
        return ESTIMATE if answer.estimated else _kept_words(answer)
    mixed = isinstance(answer, Attribution) and answer.settings.foresees
    return f"{UNIT}{MIXED if mixed else ''}." if typical_of(answer) else ""


def _found(answer: Attribution | Progress) -> str:
    if isinstance(answer, Progress) or answer.search is None:
        return ""
    return f"{answer.search.sentence} {_kept_words(answer)}".strip()


def _kept_words(answer: Attribution | Progress) -> str:
    """How many of the first estimate's images are among the results; "" where there was no estimate."""
    estimate, shown = _estimate(answer), len(answer.results)
    if not estimate or not shown:
        return ""
    kept = sum(result.row in estimate for result in answer.results)
    if kept == shown:
        return f"The first estimate had named all {shown}."
    return f"Of these {shown}, the first estimate had named {kept}; the others are marked as new."


def _estimate(answer: Attribution | Progress) -> tuple[int, ...]:
    """Rows of the first estimate; none where there was none."""
    if isinstance(answer, Progress):
        return answer.estimate
    return answer.search.estimate if answer.search else ()


def _steps_words(answer: Attribution) -> str:
    """The step size that was found, or the first and the last of several; "" where none was looked for."""
    sizes = [f"{size:.3g}" for size in (*answer.step_sizes[:1], *answer.step_sizes[1:][-1:])]
    return f"; step size {' to '.join(sizes)}, found by its effect" if sizes else ""


def _others(found: Mapping[int, list[str]], result: Result, method: str) -> str:
    return ", ".join(name for name in found.get(result.row, ()) if name != method)


def _card(answer: Attribution | Progress, result: Result, place: str, letter: str, alike: int, others: str) -> Card:
    score, interval = score_words(answer, result), interval_words(answer, result)
    times = f" ({score} the typical image's)" if typical_of(answer) else ""
    estimate = _estimate(answer)
    came = bool(estimate) and result.row not in estimate
    measured = "" if isinstance(answer, Progress) and answer.estimated else f", score {result.score:+.4f}{times}"
    told = [
        f"rank {place.replace('=', 'equal ')}{measured}",
        "mirrored" if result.flip else "",
        f"{alike} more nearly equal to it" if alike else "",
        "not in the first estimate" if came else "",
    ]
    words = f"{', '.join(filter(None, told))}: {result.caption}"
    return Card(result, place, score, interval, result.score <= 0, letter, alike, others, came, words)


def _agreement(main: Attribution | Progress, other: Attribution | Progress, name: str) -> Agreement:
    if not (isinstance(main, Attribution) and isinstance(other, Attribution)):
        return Agreement(name, "…", "")
    each, count = agreement(main.rows, other.rows, len(main.results)), len(main.results)
    shared = f"{each.overlap * count:.0f} of {count}"
    return Agreement(name, shared, f"{correlation_words(each.correlation)} ({each.common:,})")
