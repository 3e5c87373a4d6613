"""What a bench has found so far: kept picture by picture, told as a table and as JSON."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from statistics import median
from typing import Any

from attribution.answers.run import query_json
from attribution.evaluate.figures import ESTIMATE, GENERATE, RECIPE, TOPS, Line, Taken, notes, summary, table
from attribution.evaluate.growth import Growth
from attribution.evaluate.machine import Clock
from attribution.evaluate.recipe import Fraction
from attribution.query.query import Query

Taking = dict[str, dict[int, Taken]]  # by way, then by the number of the picture


@dataclass
class Findings:
    """What was measured so far.

    Attributes:
        about: the machine, the index, the model, the program and the settings, as JSON has them.
        default: the method that is asked where none is named.
        estimate: the method that gives its first estimate; "" where there is none.
        images: in the training set.
        fraction: of the published recipe that is run.
        clock: that times are compared by.
        lds: of methods, from the results that come with this program.
        queries: the pictures that all ways were asked about.
        memory: resident in MB after each of these.
        peak: the most that was resident in MB until all methods had answered; the recipe takes larger batches.
        takes: what each took each way.
        again: likewise, with other noises.
        own: likewise, of all images on all noises, by methods that search otherwise.
        growth: of a search with the training set; None where that was not measured.
    """

    about: dict[str, Any]
    default: str
    estimate: str
    images: int
    fraction: Fraction
    clock: Clock
    lds: Mapping[str, float]
    queries: list[Query] = field(default_factory=list)
    memory: list[int] = field(default_factory=list)
    peak: float = 0.0
    takes: Taking = field(default_factory=dict)
    again: Taking = field(default_factory=dict)
    own: Taking = field(default_factory=dict)
    growth: Growth | None = None

    def keep(self, number: int, way: str, taken: Taken) -> None:
        """Keep what a picture took one way."""
        self.takes.setdefault(way, {})[number] = taken

    @property
    def lines(self) -> list[Line]:
        """A line a way."""
        return summary(self.takes, self.again, self.own, self.default, self.estimate, self.lds, self.images, self.clock)

    @property
    def sentences(self) -> list[str]:
        """What the lines do not say."""
        told = [self.fraction.sentence] if RECIPE in self.takes else []
        told += notes(self.lines, self.default, self.clock)
        told.append(f"At most {self.peak:,.0f} MB were resident while methods answered.")
        return told + ([] if self.growth is None else self.growth.sentences)

    @property
    def markdown(self) -> str:
        """Tables, and what they do not say."""
        tables = [table(self.lines), *([] if self.growth is None else [self.growth.table])]
        return "\n\n".join([*tables, "\n".join(self.sentences)])

    @property
    def json(self) -> dict[str, Any]:
        """Everything."""
        queries = [self._query(number) for number in range(len(self.memory))]
        names = {"generate": GENERATE, "first_top_k": ESTIMATE, "attribute": self.default}
        medians = {
            key: median(taken.spent.seconds for taken in self.takes[way].values())
            for key, way in names.items()
            if way in self.takes
        }
        return {
            **self.about,
            "images": self.images,
            "default": self.default,
            "median_seconds": medians,
            "evaluations": queries[0].get("evaluations"),
            "rss_mb": self.memory,
            "peak_memory_mb": round(self.peak),
            "ways": {line.way: asdict(line) for line in self.lines},
            "recipe": self.fraction.told if RECIPE in self.takes else None,
            "growth": None if self.growth is None else self.growth.json,
            "notes": self.sentences,
            "queries": queries,
        }

    def _query(self, number: int) -> dict[str, Any]:
        """All of a picture."""
        ways = {way: held[number] for way, held in self.takes.items() if number in held}
        again = {way: held[number] for way, held in self.again.items() if number in held}
        names = {"generate": GENERATE, "first_top_k": ESTIMATE, "attribute": self.default}
        seconds = {key: ways[way].spent.seconds for key, way in names.items() if way in ways}
        told = {"evaluations": ways[self.default].spent.predictions} if self.default in ways else {}
        return {
            **query_json(self.queries[number]),
            **seconds,
            **told,
            "rss_mb": self.memory[number],
            "ways": {way: _told(taken) for way, taken in ways.items()},
            "again": {way: _told(taken) for way, taken in again.items()},
            "own": {way: _told(held[number]) for way, held in self.own.items() if number in held},
        }


def _told(taken: Taken) -> dict[str, Any]:
    return {**asdict(taken.spent), "first": list(taken.rows[: max(TOPS)])}
