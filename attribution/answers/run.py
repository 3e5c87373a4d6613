"""A run: a question and its answers by one or more methods, and the name that it is kept under."""

import hashlib
import json
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from typing import Any

from attribution.diffusion.pipeline import GenerateSettings
from attribution.methods.answer import AttributeSettings, Attribution
from attribution.query.query import Query, image_sha256, region_words


def now() -> str:
    """The date and time, to the second, in UTC."""
    return datetime.now(UTC).isoformat(timespec="seconds")


@dataclass(frozen=True)
class Run:
    """A question and its answers, the main one first; all are of one query and one index.

    Attributes:
        answers: by method.
        sampled: how the query's picture was generated, where that is not by the defaults.
        label: what the asker calls the region; "" where they do not.
        date: when it was answered, in UTC; "" where an earlier version kept it.
    """

    answers: tuple[Attribution, ...]
    sampled: GenerateSettings | None = None
    label: str = ""
    date: str = field(default_factory=now)

    @property
    def query(self) -> Query:
        """What was asked."""
        return self.answers[0].query

    @property
    def region(self) -> str:
        """What part of the picture it is about."""
        return self.label or region_words(self.query)

    @property
    def top_k(self) -> int:
        """How many results were asked for."""
        return self.answers[0].settings.k

    @property
    def id(self) -> str:
        """Twelve hexadecimal digits: the same for the same model, index, query, its label and settings."""
        asked: list[Any] = [
            self.answers[0].index_id,
            self.answers[0].model_sha256,
            query_json(self.query),
            [_asked(answer.settings) for answer in self.answers],
            *filter(None, [self.label]),
        ]
        return hashlib.sha256(json.dumps(asked, sort_keys=True).encode()).hexdigest()[:12]


def _asked(settings: AttributeSettings) -> dict[str, Any]:
    """Settings as an id tells them: what earlier versions did not know is left out where it is not used."""
    told = asdict(settings)
    for part, name in ((told, "noise_seed"), (told["unlearn"], "rise"), (told["unlearn"], "images")):
        if part[name] is None:
            del part[name]
    if not settings.race.columns:
        del told["race"]["columns"]
    if not settings.race.pool:
        told["race"] = {"first_columns": settings.race.first_columns, **settings.race.pace._asdict()}
    return told


def query_json(query: Query) -> dict[str, Any]:
    """A query as the contract has it; boxes are `x0, y0, x1, y1` in pixels of its picture."""
    return {
        "prompt": query.prompt,
        "seed": query.seed,
        "image_sha256": image_sha256(query.image),
        "boxes": [list(box) for box in query.boxes],
        "word": query.word,
    }
