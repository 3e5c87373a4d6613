"""What is kept of a run: JSON, CSV, a ZIP with everything needed to replay it, and the folder that runs are kept in."""

import csv
import hashlib
import io
import json
import math
import re
import zipfile
from collections.abc import Iterator
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any, TypeVar

from attribution.answers.html import page, to_png
from attribution.diffusion.pictures import decode_upload
from attribution.diffusion.pipeline import GenerateSettings, Model
from attribution.errors import InputError
from attribution.files import write_whole
from attribution.index.index import Index
from attribution.methods import attribute
from attribution.methods.answer import AttributeSettings, Attribution, Progress, Result
from attribution.query.query import Query, image_sha256, region_words
from attribution.unlearning.race import RaceSettings
from attribution.unlearning.step import UnlearnSettings

RUN, PICTURE, TABLE, HTML = "run.json", "picture.png", "results.csv", "report.html"
COLUMNS = ("method", "rank", "id", "score", "score_low", "score_high", "flip", "caption")
MAX_ENTRY = 20_000_000  # bytes that are read of one file of a ZIP
Settings = TypeVar("Settings", AttributeSettings, UnlearnSettings, RaceSettings, GenerateSettings)


@dataclass(frozen=True)
class Run:
    """A question and its answers, the main one first; all are of one query and one index.

    Attributes:
        answers: by method.
        sampled: how the query's picture was generated, where that is not by the defaults.
        label: what the asker calls the region; "" where they do not.
    """

    answers: tuple[Attribution, ...]
    sampled: GenerateSettings | None = None
    label: str = ""

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
        return self.answers[0].settings.top_k

    @property
    def id(self) -> str:
        """Twelve hexadecimal digits: the same for the same model, index, query, its label and settings."""
        asked: list[Any] = [
            self.answers[0].index_id,
            self.answers[0].model_sha256,
            query_json(self.query),
            [asdict(answer.settings) for answer in self.answers],
            *filter(None, [self.label]),
        ]
        return hashlib.sha256(json.dumps(asked, sort_keys=True).encode()).hexdigest()[:12]


def query_json(query: Query) -> dict[str, Any]:
    """A query as the contract has it; boxes are `x0, y0, x1, y1` in pixels of its picture."""
    return {
        "prompt": query.prompt,
        "seed": query.seed,
        "image_sha256": image_sha256(query.image),
        "boxes": [list(box) for box in query.boxes],
        "word": query.word,
    }


def to_json(attribution: Attribution) -> dict[str, Any]:
    """The contract of `attribute --out`: query, method, results, evaluations, seconds, settings, index.

    Scores are `score`, `score_low`, `score_high`, the bounds null where there is one noise alone.
    """
    return {
        "query": query_json(attribution.query),
        "method": attribution.settings.method,
        "results": [
            {
                "rank": result.rank,
                "id": result.id,
                "score": result.score,
                "score_low": _finite(result.low),
                "score_high": _finite(result.high),
                "caption": result.caption,
                "flip": result.flip,
            }
            for result in attribution.results
        ],
        "evaluations": attribution.evaluations,
        "seconds": {stage: round(seconds, 3) for stage, seconds in attribution.seconds.items()},
        "settings": asdict(attribution.settings),
        "index": {"id": attribution.index_id, "model_sha256": attribution.model_sha256},
    }


def _finite(bound: float) -> float | None:
    """JSON knows no infinity."""
    return bound if math.isfinite(bound) else None


def run_json(run: Run, index: Index, model: Model) -> dict[str, Any]:
    """A run: id, query and sampling, the timesteps of the noise bank, and each answer with the losses of its results.

    `losses` is, by result, [before, after] for each timestep; `rows` all rows of the training set with a final score.
    """
    return {
        "id": run.id,
        "query": query_json(run.query),
        "label": run.label,
        "sampled": run.sampled and asdict(run.sampled),
        "timesteps": index.bank(model).t.tolist(),
        "answers": [
            {
                **{key: value for key, value in to_json(answer).items() if key != "query"},
                "losses": [result.losses for result in answer.results],
                "rows": answer.rows,
                "ranked": answer.ranked,
                "typical": answer.typical,
            }
            for answer in run.answers
        ],
    }


def to_csv(run: Run) -> str:
    """One line for each result of each method, under COLUMNS; spreadsheets take no cell of it for a formula."""
    out = io.StringIO()
    table = csv.DictWriter(out, COLUMNS, extrasaction="ignore", lineterminator="\n")
    table.writeheader()
    for answer in run.answers:
        for result in to_json(answer)["results"]:
            caption = result["caption"]
            guarded = f"'{caption}" if re.match(r"[=+\-@\t\r]", caption) else caption
            table.writerow({**result, "method": answer.settings.method, "caption": guarded})
    return out.getvalue()


def write_json(attribution: Attribution, path: Path) -> None:
    """Write the JSON, whole or not at all."""
    write_whole(path, (json.dumps(to_json(attribution), indent=1, ensure_ascii=False) + "\n").encode())


def write_zip(run: Run, index: Index, model: Model, path: Path, whole: bool = True) -> None:
    """Write a run's RUN and PICTURE and, where it is `whole`, TABLE, HTML and thumbnails."""
    picture = to_png(run.query.image)
    told = run_json(run, index, model)
    entries: dict[str, bytes] = {
        RUN: (json.dumps(told, indent=1, ensure_ascii=False) + "\n").encode(),
        PICTURE: picture,
    }
    if whole:
        rows = dict.fromkeys(result.row for answer in run.answers for result in answer.results)
        thumbnails = {row: index.thumbnail(row).read_bytes() for row in rows}
        entries[TABLE] = to_csv(run).encode()
        entries[HTML] = page(run.id, run.label, run.answers, told["timesteps"], picture, thumbnails).encode()
        entries |= {f"thumbnails/{row:08d}.png": content for row, content in thumbnails.items()}
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in entries.items():
            archive.writestr(zipfile.ZipInfo(name, (1980, 1, 1, 0, 0, 0)), content, zipfile.ZIP_DEFLATED)
    write_whole(path, packed.getvalue())


def read_zip(path: Path) -> Run:
    """Read what `write_zip` wrote. Nothing is unpacked to disk.

    Raises:
        InputError: it is not such a ZIP, or is damaged.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            held = {name: _entry(archive, name) for name in (RUN, PICTURE)}
        told = json.loads(held[RUN])
        image, asked = decode_upload(io.BytesIO(held[PICTURE]), PICTURE), told["query"]
        boxes = tuple(tuple(map(float, box)) for box in asked["boxes"])
        query = Query(asked["prompt"], image, asked["seed"], boxes, asked["word"])  # type: ignore[arg-type]
        sampled = _filled(GenerateSettings, told["sampled"]) if told.get("sampled") else None
        run = Run(tuple(_answer(query, answer) for answer in told["answers"]), sampled, str(told.get("label", "")))
        if run.id != told["id"]:
            raise ValueError(f"its query and settings are not those of run {told['id']}")
        return run
    except (OSError, zipfile.BadZipFile, ValueError, KeyError, TypeError, IndexError, AttributeError) as error:
        raise InputError(f"{path.name} is not the ZIP of a run ({error}); accepted is what --report wrote") from error


def _entry(archive: zipfile.ZipFile, name: str) -> bytes:
    with archive.open(name) as file:
        content = file.read(MAX_ENTRY + 1)
    if len(content) > MAX_ENTRY:
        raise ValueError(f"{name} has more than {MAX_ENTRY} bytes")
    return content


def _answer(query: Query, told: dict[str, Any]) -> Attribution:
    results = tuple(
        Result(
            rank=each["rank"],
            row=row,
            id=each["id"],
            score=each["score"],
            low=-math.inf if each["score_low"] is None else each["score_low"],
            high=math.inf if each["score_high"] is None else each["score_high"],
            caption=each["caption"],
            flip=each["flip"],
            losses=tuple((before, after) for before, after in losses),
        )
        for each, row, losses in zip(told["results"], told["rows"], told["losses"], strict=False)
    )
    index, settings = told["index"], _settings(told["settings"])
    spent = (told["evaluations"], told["seconds"])
    made_with = (index["id"], index["model_sha256"])
    return Attribution(
        query,
        settings,
        results,
        *spent,
        *made_with,
        tuple(told["rows"]),
        told.get("ranked", len(told["rows"])),
        told["typical"],
    )


def _settings(told: dict[str, Any]) -> AttributeSettings:
    nested = {"unlearn": _filled(UnlearnSettings, told["unlearn"]), "race": _filled(RaceSettings, told["race"])}
    return _filled(AttributeSettings, {**told, **nested})


def _filled(kind: type[Settings], told: dict[str, Any]) -> Settings:
    if unknown := told.keys() - {field.name for field in fields(kind)}:
        raise ValueError(f"the setting {sorted(unknown)[0]!r} is unknown")
    return kind(**told)


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


def is_run_id(text: str) -> bool:
    """Whether a text has the form of a run's id; it can then be a file's name."""
    return bool(re.fullmatch(r"[0-9a-f]{12}", text))


class RunFolder:
    """A folder that keeps the latest runs, each a ZIP named by its id."""

    def __init__(self, folder: Path, most: int = 200) -> None:
        self.folder, self.most = folder, most
        folder.mkdir(parents=True, exist_ok=True)

    def keep(self, run: Run, index: Index, model: Model) -> Path:
        """Write a run, and delete the oldest ones over `most`."""
        path = self.folder / f"{run.id}.zip"
        write_zip(run, index, model, path)
        for old in sorted(self.folder.glob("*.zip"), key=lambda each: -each.stat().st_mtime)[self.most :]:
            old.unlink(missing_ok=True)
        return path

    def holds(self, run_id: str) -> bool:
        """Whether a run is kept."""
        return is_run_id(run_id) and (self.folder / f"{run_id}.zip").is_file()

    def path(self, run_id: str) -> Path:
        """The ZIP of a run.

        Raises:
            InputError: the id is none, or that run is not kept (any more).
        """
        if not self.holds(run_id):
            raise InputError(f"the run {run_id[:40]!r} is not kept here; the latest {self.most} are")
        return self.folder / f"{run_id}.zip"
