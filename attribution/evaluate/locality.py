"""Does a box find its object? Precision@10 on generated pictures of two objects, by the scenes' own metadata.

Where its objects are is told by `scenes/truth.py`.
"""

import json
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from scipy.stats import spearmanr

from attribution.diffusion.noise import NoiseBank
from attribution.diffusion.pipeline import Model
from attribution.diffusion.weights import unlearned
from attribution.errors import InputError
from attribution.files import write_whole
from attribution.index.index import Index
from attribution.methods import METHODS, attribute, bytes_read, check_settings
from attribution.methods.answer import AttributeSettings, Attribution
from attribution.methods.unlearning import unlearn_query
from attribution.query.encoded import encode
from attribution.query.query import Box, Query
from attribution.scenes.compose import make_scenes
from attribution.scenes.truth import Subject, locate, subjects
from attribution.unlearning.gradients import per_image_gradients
from attribution.unlearning.score import Floats, training_losses
from attribution.unlearning.step import STEP_SIZES, UnlearnSettings

TOP = 10


def _rows() -> dict[str, AttributeSettings]:
    plain = AttributeSettings(top_k=TOP)

    def changed(**unlearn: Any) -> AttributeSettings:
        return replace(plain, unlearn=replace(plain.unlearn, **unlearn))

    return {
        **{name: replace(plain, method=name) for name in METHODS},
        "unlearning, skew": replace(plain, score="skew"),
        "unlearning, 10 steps": changed(steps=10, step_size=STEP_SIZES["diagonal"] / 10),
        **{f"unlearning, {subset}": changed(weights=subset) for subset in ("cross-attn", "attn", "all")},
    }


ROWS: dict[str, AttributeSettings] = _rows()


@dataclass(frozen=True)
class LocalitySettings:
    """What is measured.

    Attributes:
        pictures: with both objects found in them; others are counted and left out.
        seed: of prompts and pictures.
        rows: of the table: methods and their variants, such as "unlearning" or "unlearning, all"; none is all that the
            index can answer.
        studied: pictures, the first ones, that first-order scores and a second noise bank are compared on.
        sample: training images, drawn at random, for the comparison with first-order scores.
        second_bank: seed of the second noise bank.
    """

    pictures: int = 60
    seed: int = 1
    rows: tuple[str, ...] = ()
    studied: int = 10
    sample: int = 256
    second_bank: int = 100


def measure(model: Model, index: Index, settings: LocalitySettings, out: Path) -> Iterator[str]:
    """Keep one JSON line a picture in `out`; yields what it is doing.

    What `out` holds is not measured again: a run goes on where an earlier one stopped, and may add rows to it.
    """
    kept = {key: value for key, value in asdict(settings).items() if key not in ("pictures", "rows")}
    header = {"settings": kept, "index": index.id}
    rows = _resume(out, header)
    found, labels = 0, settings.rows or available(model, index)
    names = [frozenset(placed.name for placed in scene.objects) for scene in make_scenes("train", len(index))]
    for number, subject in enumerate(subjects(settings.seed)):
        if found == settings.pictures:
            return
        row: dict[str, Any] = rows[number] if number < len(rows) else {"prompt": subject.prompt, "seed": subject.seed}
        missing = [label for label in labels if label not in row]
        study = found < settings.studied and "spearman" not in row
        if row.get("found", True) and (missing or study):
            picture = model.generate(subject.prompt, subject.seed)
            boxes = [locate(picture, name, subject.style) for name in subject.names]
            row["found"] = None not in boxes
            if row["found"]:
                boxed = number % 2
                row |= _measure_one(model, index, missing, subject, picture, boxes[boxed], boxed, names)  # type: ignore[arg-type]
                row |= _study(model, index, settings, subject, picture, out) if study else {}
            rows[number : number + 1] = [row]
            _save(out, header, rows)
            yield f"{found + row['found']}/{settings.pictures} pictures, {number + 1} prompts"
        found += row["found"]


def check_rows(rows: Sequence[str]) -> None:
    """Refuse rows that the table does not have.

    Raises:
        InputError: names the first one, and those that there are.
    """
    if unknown := [row for row in rows if row not in ROWS]:
        raise InputError(f"there is no row {unknown[0]!r}; accepted are {', '.join(ROWS)}")


def _save(out: Path, header: dict[str, Any], rows: list[dict[str, Any]]) -> None:
    write_whole(out, "".join(json.dumps(line) + "\n" for line in (header, *rows)).encode())


def _resume(out: Path, header: dict[str, Any]) -> list[dict[str, Any]]:
    if not out.exists():
        return []
    first, *rows = (json.loads(line) for line in out.read_text(encoding="utf-8").splitlines())
    if first != header:
        raise InputError(f"{out} was measured with other settings or another index; name another file")
    return rows


def _measure_one(
    model: Model,
    index: Index,
    labels: list[str],
    subject: Subject,
    picture: Image.Image,
    box: Box,
    boxed: int,
    names: list[frozenset[str]],
) -> dict[str, Any]:
    """Hits among the top of each method: of the boxed object, of the other one, and for the whole picture."""
    this, other = subject.names[boxed], subject.names[1 - boxed]
    measured: dict[str, Any] = {"box": box, "boxed": this, "chance": float(np.mean([this in have for have in names]))}
    for label in labels:
        asked = ROWS[label]
        began = time.monotonic()
        local = [names[row] for row in _top(model, index, Query(subject.prompt, picture, subject.seed, (box,)), asked)]
        seconds = time.monotonic() - began
        measured[label] = {
            "box": float(np.mean([this in have for have in local])),
            "box_other": float(np.mean([other in have for have in local])),
            "seconds": seconds,
        }
        if label in METHODS:  # variants are compared on boxes alone
            whole = [names[row] for row in _top(model, index, Query(subject.prompt, picture, subject.seed), asked)]
            measured[label] |= {
                "whole_either": float(np.mean([this in have or other in have for have in whole])),
                "whole_both": float(np.mean([this in have and other in have for have in whole])),
            }
    return measured


def available(model: Model, index: Index) -> tuple[str, ...]:
    """The rows that an index can answer."""
    found = []
    for label, settings in ROWS.items():
        try:
            check_settings(model, index, settings)
            found.append(label)
        except InputError:
            continue
    return tuple(found)


def _top(model: Model, index: Index, query: Query, settings: AttributeSettings) -> list[int]:
    *_, last = attribute(model, index, query, settings)
    assert isinstance(last, Attribution)
    return [result.row for result in last.results]


def _study(
    model: Model, index: Index, settings: LocalitySettings, subject: Subject, picture: Image.Image, out: Path
) -> dict[str, Any]:
    query = Query(subject.prompt, picture, subject.seed)
    asked = replace(AttributeSettings(), top_k=TOP)
    other = _with_second_bank(model, index, settings, out.with_suffix(".bank.npy"))
    moved = replace(asked, unlearn=replace(asked.unlearn, seed=settings.second_bank + 1))
    here, there = (set(_top(model, each, query, how)) for each, how in ((index, asked), (other, moved)))
    rows = np.random.default_rng(settings.seed).choice(len(index), min(settings.sample, len(index)), replace=False)
    exact, first_order = first_order_scores(model, index, query, asked.unlearn, [int(row) for row in rows])
    return {"bank_overlap": len(here & there) / TOP, "spearman": float(spearmanr(exact, first_order).statistic)}


def _with_second_bank(model: Model, index: Index, settings: LocalitySettings, cached: Path) -> Index:
    """The index as it would be with another noise bank; its base losses are measured once."""
    own = index.manifest.settings
    other = replace(own, noise=replace(own.noise, seed=settings.second_bank))
    if not cached.exists():
        bank = NoiseBank.draw(other.noise, model.latent_shape, model.train_timesteps)
        chunks = training_losses(model, index.encoded, bank, range(len(index)), range(len(bank)), index.views)
        np.save(cached, np.concatenate([losses for _, losses in chunks]))
    return replace(index, manifest=replace(index.manifest, settings=other), base_losses=np.load(cached))


def first_order_scores(
    model: Model, index: Index, query: Query, settings: UnlearnSettings, rows: list[int]
) -> tuple[Floats, Floats]:
    """Exact loss changes (Eq. 6, unmirrored) and their first-order estimates (paper, Appendix A.3), for some rows."""
    bank = index.bank(model)
    asked = encode(model, query, index.center_crop)
    with unlearned(model, index.weights) as weights:
        before = {name: weight.clone() for name, weight in weights.items()}
        for _ in unlearn_query(model, index, asked, settings, weights):
            pass
        step = {name: weight - before[name] for name, weight in weights.items()}
        chunks = training_losses(model, index.encoded, bank, rows, range(len(bank)), (0,))
        after = np.concatenate([losses for _, losses in chunks])
    exact = (after - index.base_losses[rows][:, :1]).mean((1, 2))
    return exact, _directional(model, index, bank, step, rows)


def _directional(model: Model, index: Index, bank: NoiseBank, step: dict[str, torch.Tensor], rows: list[int]) -> Floats:
    """Derivative of each row's mean loss along `step`: the dot product with its gradient."""
    slopes = np.zeros(len(rows))
    for place, row in enumerate(rows):
        latents = index.encoded.view([row], [0])[0].expand(len(bank), -1, -1, -1)
        text = model.encode_text([index.captions[row]]).expand(len(bank), -1, -1)
        gradients = per_image_gradients(model, index.weights, latents, text, bank)
        slopes[place] = sum(float((gradients[name].mean(0) * change).sum()) for name, change in step.items())
    return slopes


def summary(out: Path, index: Index) -> str:
    """A Markdown table of what a file of `measure` holds."""
    rows = [json.loads(line) for line in out.read_text(encoding="utf-8").splitlines()[1:]]
    good = [row for row in rows if row["found"]]

    def figure(label: str, key: str) -> str:
        values = [row[label][key] for row in good if key in row[label]]
        return f"{np.mean(values):.2f}" if values else ""

    table = [
        "| method | boxed object | the other object | whole: either | whole: both | median s | MB on disk |",
        "|---|" + "---|" * 6,
    ]
    for label in (label for label in ROWS if all(label in row for row in good)):
        figures = " | ".join(figure(label, key) for key in ("box", "box_other", "whole_either", "whole_both"))
        seconds = float(np.median([row[label]["seconds"] for row in good]))
        megabytes = bytes_read(index, ROWS[label].method) / 1e6
        table.append(f"| {label} | {figures} | {seconds:.2g} | {megabytes:.1f} |")
    studied = [row for row in good if "spearman" in row]
    notes = [f"{len(good)} pictures; {len(rows) - len(good)} others lacked an object."]
    if studied:
        rho, overlap = (float(np.mean([row[key] for row in studied])) for key in ("spearman", "bank_overlap"))
        notes.append(f"First-order against exact score: Spearman's rho {rho:.3f}; two noise banks share {overlap:.0%}.")
    return "\n".join([*table, "", *notes])
