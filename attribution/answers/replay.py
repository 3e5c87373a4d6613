"""A kept run, answered again."""

from collections.abc import Iterator
from dataclasses import dataclass, replace

from attribution.answers.run import Run
from attribution.diffusion.pipeline import Model
from attribution.errors import InputError
from attribution.index.index import Index
from attribution.methods import attribute
from attribution.methods.answer import Progress


@dataclass(frozen=True)
class Replayed:
    """A run asked again: its answers, and by method the first rank that differs (None if the ranking is the same)."""

    run: Run
    differs: dict[str, int | None]


def replay(model: Model, index: Index, kept: Run) -> Iterator[Progress | Replayed]:
    """Answer a kept run's query again; yields Progress, then what became of it.

    Raises:
        InputError: it was another model's or index's.
    """
    main = kept.answers[0]
    if (main.index_id, main.model_sha256) != (index.id, model.sha256):
        raise InputError(
            f"the run {kept.id} is of index {main.index_id} and model {main.model_sha256[:12]};"
            f" here they are {index.id} and {model.sha256[:12]}; name its own with --index"
        )
    answers, differs = [], {}
    for answer in kept.answers:
        for step in attribute(model, index, kept.query, answer.settings):
            if isinstance(step, Progress):
                yield step
                continue
            answers.append(step)
            pairs = zip(answer.results, step.results, strict=True)
            places = (before.rank for before, again in pairs if before.id != again.id)
            differs[answer.settings.method] = next(places, None)
    yield Replayed(replace(kept, answers=tuple(answers)), differs)
