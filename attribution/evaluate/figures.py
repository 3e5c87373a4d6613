"""What a bench found, of every way to answer: as a table, and what that does not say."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean, median

from attribution.answers.compare import agreement
from attribution.errors import InputError
from attribution.evaluate import lds as halves
from attribution.evaluate.agreement import overlap_at
from attribution.evaluate.machine import Clock, Spent
from attribution.evaluate.results import committed, read_results
from attribution.methods import METHODS

# Ways that are no methods
GENERATE, ENCODE, RECIPE = "generating the picture", "encoding the query", "published recipe"
EXHAUSTIVE, ESTIMATE = "all images, all noises", "first estimate"
TOPS = (10, 50)
FEWEST = 20  # images, of which a rank correlation says something


@dataclass(frozen=True)
class Taken:
    """What a query took one way.

    Attributes:
        spent: on it.
        rows: of the training set, best first, as far as they were ranked; none where there is nothing to rank.
    """

    spent: Spent
    rows: tuple[int, ...] = ()


Takes = Mapping[str, Mapping[int, Taken]]  # by way, then by the number of the query


@dataclass(frozen=True)
class Line:
    """A way to answer.

    Attributes:
        way: its name.
        queries: that it was measured on.
        evaluations: predictions of the U-Net, the median over queries, as all that follows but for overlaps.
        seconds: by the clock.
        cpu_seconds: of processors.
        fewer: how many times more predictions the published recipe takes.
        faster: how many times more time the published recipe takes.
        pictures: how many pictures are generated in the same time.
        overlap: by K, the share of the first K that the default method has too, on all images and noises: a mean.
        correlation: Spearman's, with the same ranking, over the images that both rank: a mean.
        found: by a search, of the first ten that the same method ranks first of all images on all noises: a mean.
        steadiness: the share of the first ten that stays with other noises: a mean.
        lds: of the method, from the results that come with this program.
    """

    way: str
    queries: int
    evaluations: float
    seconds: float
    cpu_seconds: float
    fewer: float | None = None
    faster: float | None = None
    pictures: float | None = None
    overlap: dict[int, float] | None = None
    correlation: float | None = None
    found: float | None = None
    steadiness: float | None = None
    lds: float | None = None


def summary(
    takes: Takes,
    again: Takes,
    own: Takes,
    default: str,
    estimate: str,
    lds: Mapping[str, float],
    images: int,
    clock: Clock = "seconds",
) -> list[Line]:
    """A line a way.

    Args:
        takes: what was measured.
        again: the same queries with other noises.
        own: the same queries asked of methods that search, of all images on all noises.
        default: the method that is asked where none is named, which all images were ranked by.
        estimate: the method that gives its first estimate; "" where there is none.
        lds: by method.
        images: in the training set.
        clock: that times are compared by.
    """
    whole = _spent(takes[RECIPE]) if takes.get(RECIPE) else None
    picture, truth = _spent(takes[GENERATE]), takes.get(EXHAUSTIVE, {})
    lines = []
    for way, held in takes.items():
        spent = _spent(held)
        overlaps = {k: None if way == RECIPE else _overlap(held, truth, min(k, images)) for k in TOPS}
        lines.append(
            Line(
                way,
                len(held),
                spent.predictions,
                spent.seconds,
                spent.cpu,
                _ratio(whole, spent, "predictions"),
                _ratio(whole, spent, clock),
                _ratio(spent, picture, clock),
                {k: each for k, each in overlaps.items() if each is not None},
                _correlation(held, truth),
                _overlap(held, own.get(way, {}), min(TOPS[0], images)),
                _overlap(again.get(way, {}), held, min(TOPS[0], images)),
                lds.get({EXHAUSTIVE: default, ESTIMATE: estimate}.get(way, way)),
            )
        )
    return lines


def _spent(held: Mapping[int, Taken]) -> Spent:
    """The median of each of its figures."""
    each = [taken.spent for taken in held.values()]
    return Spent(*(median(getattr(spent, name) for spent in each) for name in ("seconds", "cpu", "predictions")))


def _ratio(one: Spent | None, other: Spent, name: str) -> float | None:
    """How many times as much of something one spends; None where that is not known."""
    least = getattr(other, name)
    return getattr(one, name) / least if one is not None and least > 0 else None


def _overlap(held: Mapping[int, Taken], truth: Mapping[int, Taken], k: int) -> float | None:
    """The mean overlap@K over queries; None where none has so many, both ways."""
    both = [(held[number].rows, truth[number].rows) for number in held.keys() & truth.keys()]
    shares = [overlap_at(one, other, k) for one, other in both if min(len(one), len(other)) >= k]
    return fmean(shares) if shares else None


def _correlation(held: Mapping[int, Taken], truth: Mapping[int, Taken]) -> float | None:
    found = [agreement(held[number].rows, truth[number].rows, 1) for number in held.keys() & truth.keys()]
    known = [each.correlation for each in found if each.correlation is not None and each.common >= FEWEST]
    return fmean(known) if known else None


def known_lds() -> dict[str, float]:
    """LDS by method, of the results that come with this program; nothing where they do not."""
    try:
        evidence = halves.unpacked(read_results(committed("lds"), "lds"))
    except InputError:
        return {}
    return {method: value.mean for method, value in halves.agreement(evidence).methods.items()}


HEAD = (
    *("way", "queries", "evaluations", "seconds", "CPU seconds"),
    *("times fewer evaluations", "times less time", "pictures in that time"),
    *(f"overlap@{k}" for k in TOPS),
    *("rank correlation", "found", "steadiness", "LDS"),
)


def table(lines: Sequence[Line]) -> str:
    """Markdown; a figure that was not measured is left out."""
    rows = [HEAD, ("---",) * len(HEAD), *map(_cells, lines)]
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def _cells(line: Line) -> tuple[str, ...]:
    counts = (f"{line.queries}", f"{line.evaluations:,.0f}", *map(_short, (line.seconds, line.cpu_seconds)))
    times = map(_short, (line.fewer, line.faster, line.pictures))
    overlaps = [(line.overlap or {}).get(k) for k in TOPS]
    known = (*overlaps, line.correlation, line.found, line.steadiness)
    shares = ("" if each is None else f"{each:.2f}" for each in known)
    return (line.way, *counts, *times, *shares, "" if line.lds is None else f"{line.lds:.3f}")


def _short(value: float | None) -> str:
    """Three digits, without an exponent; nothing where there is no value."""
    if value is None:
        return ""
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"


def notes(lines: Sequence[Line], default: str, clock: Clock = "seconds") -> list[str]:
    """What the table does not say, in sentences."""
    raced = [line.way for line in lines if line.way in METHODS and "race" in METHODS[line.way].uses]
    sentences = [
        "Evaluations are predictions of the U-Net as it was called. They and seconds are medians over queries; encoding"
        " the query is part of every answer. *Times fewer* and *times less* compare with the published recipe,"
        f" *pictures* with generating one, by {'CPU seconds' if clock == 'cpu' else 'seconds'}.",
        f"The first estimate stands until the search of {default} has looked at every candidate.",
    ]
    if any(line.way == EXHAUSTIVE for line in lines):
        sentences.append(
            f"Overlaps and rank correlations are with {default} on all images and all noises, of the queries that were"
            f" asked so; correlations of {' and '.join(raced) or 'a search'} are of the images that were left in the"
            " end, those of the published recipe of the images that it scored. *Found* is the share that a search finds"
            " of the first ten that the same method has of all images on all noises."
        )
    sentences.append(
        "Steadiness is the share of the first ten that stays with other noises. LDS is of the world for proofs, with"
        " all images on all noises (`python -m attribution evaluate lds`)."
    )
    return sentences
