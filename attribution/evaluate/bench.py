"""What answers cost on this machine, and how good they are: every way to answer, asked about the same pictures.

python -m attribution bench --queries 10 --out bench.json
python -m attribution bench --queries 10 --growth 4000 16000 64000 256000
"""

from collections.abc import Generator, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import islice

import psutil
from PIL import Image

from attribution.answers.run import now
from attribution.diffusion.pipeline import Model, check_seed
from attribution.errors import InputError
from attribution.evaluate.figures import ENCODE, ESTIMATE, EXHAUSTIVE, GENERATE, RECIPE, Taken, known_lds
from attribution.evaluate.findings import Findings
from attribution.evaluate.growth import Growth, GrowthSettings, check_growth, grow
from attribution.evaluate.machine import Clock, Meter, machine, peak_memory
from attribution.evaluate.recipe import RecipeSettings, Run, fraction
from attribution.evaluate.recipe import measure as run_recipe
from attribution.evaluate.twice import Line, SteadinessSettings
from attribution.evaluate.twice import asked as asked_twice
from attribution.index.index import Index
from attribution.index.typed import told_of
from attribution.methods import METHODS, attribute, best_method, check_settings
from attribution.methods.answer import AttributeSettings, Attribution, Progress
from attribution.methods.candidates import sources
from attribution.query.encoded import Encoded, encode
from attribution.query.query import Box, Query
from attribution.scenes.compose import SIZE
from attribution.scenes.truth import Subject, locate, subjects
from attribution.version import VERSION

ABLATION = "unlearning-sgd"  # asked only where it is named
WARM = 0  # seed of the picture that is asked about first, whose figures are not kept


@dataclass(frozen=True)
class BenchSettings:
    """What is measured.

    Attributes:
        queries: generated pictures that every method is asked about, every other one about a box.
        seed: of their prompts; nothing was chosen by the pictures of the default one.
        methods: that are asked; none is all that the index can answer.
        exhaustive: on how many of the pictures, at most, methods that search also rank all images on all noises.
        steady: on how many of the pictures, at most, methods that search are asked again with other noises.
        recipe: what part of the published recipe is run.
        growth: on how many images a search is measured.
    """

    queries: int = 10
    seed: int = 2026
    methods: tuple[str, ...] = ()
    exhaustive: int = 1
    steady: int = 2
    recipe: RecipeSettings = field(default_factory=RecipeSettings)
    growth: GrowthSettings = field(default_factory=GrowthSettings)


def check(model: Model, index: Index, settings: BenchSettings) -> None:
    """Refuse what cannot be measured, before any work.

    Raises:
        InputError: names the first value that is not possible, and what is accepted.
    """
    recipe = settings.recipe
    for name, value, least in (
        ("queries", settings.queries, 1),
        ("exhaustive", settings.exhaustive, 0),
        ("steady", settings.steady, 0),
        ("recipe_queries", recipe.queries, 0),
        ("recipe_images", recipe.images, 1),
        ("recipe_gradients", recipe.gradients, 1),
    ):
        if value < least:
            raise InputError(f"{name} = {value} is not possible; accepted are whole numbers from {least}")
    check_seed(settings.seed)
    check_seed(recipe.seed)
    methods_of(model, index, settings)
    check_growth(index, settings.growth)


def methods_of(model: Model, index: Index, settings: BenchSettings) -> list[str]:
    """The methods that are asked: those that are named, or all that the index can answer.

    Raises:
        InputError: one that is named is none, or cannot be used with the index.
    """
    for method in settings.methods:
        check_settings(model, index, AttributeSettings(method))
    if settings.methods:
        return list(dict.fromkeys(settings.methods))
    found = []
    for method in METHODS:
        with suppress(InputError):
            check_settings(model, index, AttributeSettings(method))
            found.append(method)
    return [method for method in found if method != ABLATION]


def bench(model: Model, index: Index, settings: BenchSettings) -> Iterator[str | Findings]:
    """Yields what is being done, and what was found so far after every picture and every size of a training set.

    Raises:
        InputError: before any work, what `check` raises.
    """
    check(model, index, settings)
    about = {
        "machine": machine(model),
        "index": index.id,
        "model_sha256": model.sha256,
        "program": VERSION,
        "date": now(),
        "settings": told_of(settings),
    }
    clock: Clock = "cpu" if model.device.type == "cpu" else "seconds"  # processors wait for other devices
    part, estimated_by = fraction(index, settings.recipe), next(iter(sources(index)), "")
    found = Findings(about, best_method(index), estimated_by, len(index), part, clock, known_lds())
    with Meter(model) as meter:
        at = Bench(meter, model, index, settings, found)
        yield from at.warm_up()
        for number, subject in enumerate(islice(subjects(settings.seed), settings.queries)):
            yield from at.every_method(number, subject)
            yield found
        for work, count in ((at.recipe, settings.recipe.queries), (at.exhaustive, settings.exhaustive)):
            for number in range(min(count, settings.queries)):
                yield from work(number)
                yield found
    for each in grow(index, settings.growth, found.queries[0], clock):
        found.growth = each if isinstance(each, Growth) else found.growth
        yield found if isinstance(each, Growth) else each


@dataclass(frozen=True)
class Bench:
    """A bench at work: each part of it yields what is being done, and keeps what was found."""

    meter: Meter
    model: Model
    index: Index
    settings: BenchSettings
    found: Findings

    def warm_up(self) -> Iterator[str]:
        """Draw a picture, load networks and make kernels, which later pictures do not wait for."""
        query = _query(self.model, next(subjects(WARM)), 0)
        for method in methods_of(self.model, self.index, self.settings):
            steps = attribute(self.model, self.index, query, AttributeSettings(method))
            for step in steps:
                yield f"warming up: {method}"
                if isinstance(step, Progress) and step.results:
                    break  # a search has begun
            steps.close()

    def every_method(self, number: int, subject: Subject) -> Iterator[str]:
        """Draw a picture and ask every method about it."""
        began = self.meter.read()
        query = _query(self.model, subject, number)
        self.found.keep(number, GENERATE, Taken(self.meter.read() - began))
        self.found.queries.append(query)
        self._encoded(number)
        for method in methods_of(self.model, self.index, self.settings):
            first, whole = yield from self._answer(number, AttributeSettings(method))
            if method == self.found.default:
                self.found.keep(number, ESTIMATE, first)
            self.found.keep(number, method, whole)
            if number < self.settings.steady and "race" in METHODS[method].uses:
                _, other = asked_twice(Line(method), SteadinessSettings(exhaustive=False))
                _, whole = yield from self._answer(number, other)
                self.found.again.setdefault(method, {})[number] = whole
        self.found.memory.append(round(psutil.Process().memory_info().rss / 1e6))
        self.found.peak = peak_memory()

    def exhaustive(self, number: int) -> Iterator[str]:
        """Ask the default method, and others that search, to rank all images on all noises."""
        asked = dict.fromkeys([self.found.default, *methods_of(self.model, self.index, self.settings)])
        for method in (each for each in asked if "race" in METHODS[each].uses):
            _, whole = yield from self._answer(number, AttributeSettings(method, exhaustive=True))
            self.found.own.setdefault(method, {})[number] = whole
            if method == self.found.default:
                self.found.keep(number, EXHAUSTIVE, whole)

    def recipe(self, number: int) -> Iterator[str]:
        """Run a part of the published recipe."""
        encoded = self._encoded(number)
        for step in run_recipe(self.meter, self.model, self.index, encoded, self.settings.recipe):
            if isinstance(step, Run):
                self.found.keep(number, RECIPE, Taken(step.whole, step.rows))
            else:
                yield f"picture {number + 1}: {step}"

    def _encoded(self, number: int) -> Encoded:
        began = self.meter.read()
        encoded = encode(self.model, self.found.queries[number], self.index.center_crop)
        self.found.keep(number, ENCODE, Taken(self.meter.read() - began))
        return encoded

    def _answer(self, number: int, settings: AttributeSettings) -> Generator[str, None, tuple[Taken, Taken]]:
        """What the first results of an answer took, and what all of it did."""
        began, first = self.meter.read(), None
        for step in attribute(self.model, self.index, self.found.queries[number], settings):
            spent = self.meter.read() - began
            if first is None and step.results:
                first = Taken(spent, tuple(result.row for result in step.results))
            if isinstance(step, Attribution):
                whole = Taken(spent, step.rows)
            else:
                how = f"{settings.method}{' on all images' if settings.exhaustive else ''}"
                yield f"picture {number + 1}: {how}, {step.evaluations:,} of {step.total:,} predictions"
        return first or whole, whole


def _query(model: Model, subject: Subject, number: int) -> Query:
    """A generated picture; every other one is asked about a box."""
    picture = model.generate(subject.prompt, subject.seed)
    boxes = (_box(picture, subject, subject.names[number // 2 % 2]),) if number % 2 else ()
    return Query(subject.prompt, picture, subject.seed, boxes)


def _box(picture: Image.Image, subject: Subject, name: str) -> Box:
    """Where an object of the prompt is; the upper left quarter, where the model did not draw it."""
    there = locate(picture, name, subject.style) if picture.size == (SIZE, SIZE) else None
    return there or (0.0, 0.0, picture.width / 2, picture.height / 2)
