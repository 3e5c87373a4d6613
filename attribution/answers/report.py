"""What is kept of a run: JSON, CSV, and a ZIP with everything needed to replay it."""

import csv
import io
import json
import math
import re
import zipfile
from collections.abc import Iterator
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any, TypeVar

from PIL import Image

from attribution.answers.html import page, to_png
from attribution.answers.provenance import provenance
from attribution.answers.run import Run, query_json
from attribution.answers.verdict import verdict_of
from attribution.diffusion.pictures import MAX_SIDE, decode_upload
from attribution.diffusion.pipeline import GenerateSettings, Model
from attribution.errors import InputError
from attribution.files import write_whole
from attribution.index.index import Index
from attribution.index.pictures import kind_of
from attribution.methods import METHODS
from attribution.methods.answer import AttributeSettings, Attribution, Result
from attribution.methods.searched import Searched
from attribution.query.evidence import Evidence
from attribution.query.query import Query
from attribution.unlearning.race import RaceSettings
from attribution.unlearning.step import UnlearnSettings

RUN, PICTURE, TABLE, HTML = "run.json", "picture.png", "results.csv", "report.html"
COLUMNS = ("method", "rank", "id", "score", "score_low", "score_high", "flip", "caption")
MAX_ENTRY = 3 * MAX_SIDE**2 + 1_000_000  # bytes of one file of a ZIP: the largest picture fits, as a PNG of noise
SHOWN = 1024  # px a side, at most, of the picture in the HTML
Settings = TypeVar("Settings", AttributeSettings, UnlearnSettings, RaceSettings, GenerateSettings)


def to_json(attribution: Attribution) -> dict[str, Any]:
    """The contract of `attribute --out`: query, method, results, evaluations, seconds, settings, index.

    Scores are `score`, `score_low`, `score_high`, the bounds null where there is one noise alone. `step_sizes` are of
    each step, where they were found by their effect; none where the settings name the step size.
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
        "step_sizes": attribution.step_sizes,
        "search": attribution.search and search_json(attribution.search),
        "index": {"id": attribution.index_id, "model_sha256": attribution.model_sha256},
    }


def search_json(search: Searched) -> dict[str, Any]:
    """How the training images were found, the bound on what was left out, and all of it in words."""
    return {**asdict(search), "missed": search.missed, "sentence": search.sentence}


def _finite(bound: float) -> float | None:
    """JSON knows no infinity."""
    return bound if math.isfinite(bound) else None


def run_json(run: Run, index: Index, model: Model) -> dict[str, Any]:
    """A run: id, date, query and sampling, what `provenance` tells, the bank's timesteps, and each answer.

    An answer has, beside what `to_json` gives, `losses`: by result, [before, after] for each timestep; `rows`: those of
    the training set with a final score, best first; and `scores`: of the first of them.
    """
    return {
        "id": run.id,
        "date": run.date,
        **provenance(run.id, index),
        "query": query_json(run.query),
        "label": run.label,
        "sampled": run.sampled and asdict(run.sampled),
        "timesteps": index.bank(model).t.tolist(),
        "answers": [
            {
                **{key: value for key, value in to_json(answer).items() if key != "query"},
                "losses": [result.losses for result in answer.results],
                "rows": answer.rows,
                "scores": answer.scores,
                "ranked": answer.ranked,
                "typical": answer.typical,
                "evidence": answer.evidence and asdict(answer.evidence),
                "verdict": asdict(verdict_of(answer, index)),
            }
            for answer in run.answers
        ],
    }


def to_csv(run: Run, index: Index) -> str:
    """One line for each training image with a final score that is kept, by method and rank, under COLUMNS.

    The interval and whether it is the mirror are known of the first K. Spreadsheets take no cell for a formula.
    """
    out = io.StringIO()
    table = csv.DictWriter(out, COLUMNS, extrasaction="ignore", lineterminator="\n")
    table.writeheader()
    for answer in run.answers:
        for line in _lines(answer, index):
            caption = line["caption"]
            guarded = f"'{caption}" if re.match(r"[=+\-@\t\r]", caption) else caption
            table.writerow({**line, "method": answer.settings.method, "caption": guarded})
    return out.getvalue()


def _lines(answer: Attribution, index: Index) -> Iterator[dict[str, Any]]:
    """The results, then what is kept of those after them."""
    yield from to_json(answer)["results"]
    shown = len(answer.results)
    further = zip(answer.rows[shown:], answer.scores[shown:], strict=False)
    for rank, (row, score) in enumerate(further, shown + 1):
        yield {"rank": rank, "id": index.ids[row], "score": score, "caption": index.captions[row]}


def write_json(attribution: Attribution, path: Path) -> None:
    """Write the JSON, whole or not at all."""
    write_whole(path, (json.dumps(to_json(attribution), indent=1, ensure_ascii=False) + "\n").encode())


def file_name(image_id: str, kind: str = "png") -> str:
    """The name of a training image's thumbnail in a ZIP: its id, ending in its kind, that stays inside the folder."""
    inside = "/".join(part for part in re.split(r"[/\\]+", image_id) if part not in ("", ".", ".."))
    ending = {"jpeg": ".jpg"}.get(kind, f".{kind}")
    return inside if inside.lower().endswith(ending) else f"{inside}{ending}"


def write_zip(run: Run, index: Index, model: Model, path: Path, whole: bool = True) -> None:
    """Write a run's RUN and PICTURE and, where it is `whole`, TABLE, HTML and thumbnails.

    Raises:
        InputError: `read_zip` could not read it, for the number of its results.
        OSError: it cannot be written.
    """
    picture = to_png(run.query.image)
    told = run_json(run, index, model)
    entries: dict[str, bytes] = {
        RUN: (json.dumps(told, indent=1, ensure_ascii=False) + "\n").encode(),
        PICTURE: picture,
    }
    if len(entries[RUN]) > MAX_ENTRY:
        raise InputError(f"a report of {run.top_k:,} results is too large to be read again; name a smaller --top_k")
    if whole:
        rows = dict.fromkeys(result.row for answer in run.answers for result in answer.results)
        thumbnails = {row: index.thumbnail(row) for row in rows}
        entries[TABLE] = to_csv(run, index).encode()
        shown = _shown(run.query.image, picture)
        entries[HTML] = page(told, run.answers, index, run.label, shown, thumbnails).encode()
        entries |= {
            f"thumbnails/{file_name(index.ids[row], kind_of(content))}": content for row, content in thumbnails.items()
        }
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in entries.items():
            packing = zipfile.ZIP_STORED if name.endswith((".png", ".jpg")) else zipfile.ZIP_DEFLATED
            archive.writestr(zipfile.ZipInfo(name, (1980, 1, 1, 0, 0, 0)), content, packing)
    write_whole(path, packed.getvalue())


def _shown(image: Image.Image, png: bytes) -> bytes:
    """A picture for the HTML, a PNG: a large one is reduced."""
    if max(image.size) <= SHOWN:
        return png
    reduced = image.copy()
    reduced.thumbnail((SHOWN, SHOWN))
    return to_png(reduced)


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
        label, date = (str(told.get(key, "")) for key in ("label", "date"))
        run = Run(tuple(_answer(query, answer) for answer in told["answers"]), sampled, label, date)
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
        Evidence(**told["evidence"]) if told.get("evidence") else None,
        tuple(told.get("scores", ())),
        tuple(told.get("step_sizes", ())),
        _searched(told["search"]) if told.get("search") else None,
    )


def _searched(told: dict[str, Any]) -> Searched:
    found = {field.name: told[field.name] for field in fields(Searched) if field.name in told}
    return Searched(**{**found, "estimate": tuple(found.get("estimate", ()))})


def _settings(told: dict[str, Any]) -> AttributeSettings:
    race = told["race"]
    if "pool" not in race:  # an earlier version let all images take part, and named a race where there was none
        race = {"pool": 0, **race} if "race" in METHODS[told["method"]].uses and not told["exhaustive"] else {}
    race = {**race, "columns": tuple(race.get("columns", ()))}
    nested = {"unlearn": _filled(UnlearnSettings, told["unlearn"]), "race": _filled(RaceSettings, race)}
    return _filled(AttributeSettings, {**told, **nested})


def _filled(kind: type[Settings], told: dict[str, Any]) -> Settings:
    if unknown := told.keys() - {field.name for field in fields(kind)}:
        raise ValueError(f"the setting {sorted(unknown)[0]!r} is unknown")
    return kind(**told)
