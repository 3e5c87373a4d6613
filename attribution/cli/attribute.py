"""`python -m attribution attribute`."""

import sys
from dataclasses import replace
from pathlib import Path

from PIL import Image

from attribution.answers.report import write_json, write_zip
from attribution.answers.run import Run
from attribution.cli.asked import check_file, opened
from attribution.cli.parsing import Names, flags
from attribution.cli.progress import watch
from attribution.diffusion.pictures import open_upload
from attribution.diffusion.pipeline import Model
from attribution.diffusion.tokens import check_prompt
from attribution.errors import InputError
from attribution.evaluate.costs import Cost, costs
from attribution.index.cluster import ClusterSettings, connected, hired
from attribution.index.index import Index
from attribution.methods import BEST, METHODS, check_settings, fitting, method_named
from attribution.methods import attribute as answer
from attribution.methods.answer import AttributeSettings, Attribution, Progress
from attribution.methods.presets import PRESETS, Preset, filled
from attribution.query.query import Query
from attribution.query.regions import check_query
from attribution.unlearning.race import RaceSettings
from attribution.unlearning.step import UnlearnSettings

Boxes = tuple[tuple[float, float, float, float], ...]


@flags(
    {
        AttributeSettings: Names(renamed={"seed": "random_seed"}, hidden=("method",)),
        UnlearnSettings: Names(
            "unlearn_", ("weights", "steps", "step_size", "rise", "damping", "images"), ("curvature",)
        ),
        RaceSettings: Names("race_"),
    }
)
def attribute(
    prompt: str | None = None,
    seed: int | None = None,
    image: Path | None = None,
    box: Boxes = (),
    word: str | None = None,
    method: str = BEST,
    *,
    settings: AttributeSettings,
    index: Path | None = None,
    preset: Preset | None = None,
    out: Path | None = None,
    report: Path | None = None,
    machines: ClusterSettings,
) -> None:
    """Find the training images that a picture is made of.

    Args:
        prompt: that the picture was, or is to be, generated from.
        seed: generates the picture; not with --image.
        image: a picture that exists already.
        box: x0 y0 x1 y1 in pixels; several boxes are joined.
        word: of the prompt, instead of boxes: where the picture attends to it.
        method: how it is answered; best is the method that agrees best with training again, of those that the index can
            answer by, and list prints all methods with what each costs here.
        settings: of the method.
        index: an index folder; the embedded one by default.
        preset: the settings of an experiment of the paper, for what is left at its default.
        out: a JSON file.
        report: a ZIP with the picture, results, thumbnails and an HTML page, which `replay` answers again.
        machines: that measure losses of training images.
    """
    if method == "list":
        return _list_methods(index)
    if preset is not None:
        method = PRESETS[preset].answer.method if method == BEST else method
        settings = filled(settings, fitting(PRESETS[preset].answer, method))
    if prompt is None:
        raise InputError("--prompt is missing; describe the picture in a few words")
    check_prompt(prompt)
    _check_files(out, report)
    if image is not None and seed is not None:
        raise InputError("name either --image or --seed: a picture that exists is not generated")
    upload = None if image is None else open_upload(image)
    with connected(machines):
        model, searched = opened(index)
        blank = Image.new("RGB", (model.resolution, model.resolution))
        asked = Query(prompt, upload or blank, None if upload else seed or 0, box, word)
        check_query(asked, model, searched.center_crop)  # refused now, rather than after generating
        settings = check_settings(model, searched, replace(settings, method=method_named(method, searched)))
        _check_use(machines, settings.method)
        _tell_what_is_read(model, prompt)
        query = asked if upload else Query(prompt, model.generate(prompt, seed or 0), seed or 0, box, word)
        with hired(model, machines) as cluster:
            searched = searched if cluster is None else replace(searched, losses_by=cluster.losses(searched.path))
            for step in watch(answer(model, searched, query, settings), _told):
                if isinstance(step, Attribution):
                    _give(step, model, searched, out, report)
    return None


def _check_use(machines: ClusterSettings, method: str) -> None:
    """Refuse a cluster for a method that measures no losses of training images."""
    if machines.cluster is not None and "race" not in METHODS[method].uses:
        using = [name for name, each in METHODS.items() if "race" in each.uses]
        raise InputError(f"{method} does not use --cluster (given: {machines.cluster}); it is for {', '.join(using)}")


def _check_files(out: Path | None, report: Path | None) -> None:
    check_file("--out", out)
    check_file("--report", report)
    if out is not None and report is not None and out.resolve() == report.resolve():
        raise InputError(f"--out and --report both name {out}; name two files")


def _tell_what_is_read(model: Model, prompt: str) -> None:
    tokens = model.tokens.count(prompt)
    if tokens.count > tokens.limit:
        print(f"the prompt has {tokens.count} tokens, {tokens.limit} are read: {tokens.kept!r}", file=sys.stderr)


def _told(step: Progress | Attribution) -> str:
    if isinstance(step, Attribution):
        return "done"
    eta = "" if step.eta is None else f", {step.eta:.0f} s left"
    return f"{step.stage} {step.evaluations}/{step.total} evaluations{eta}"


def _give(found: Attribution, model: Model, index: Index, out: Path | None, report: Path | None) -> None:
    """Write the files first: whoever reads what is printed may leave."""
    if out is not None:
        write_json(found, out)
    if report is not None:
        write_zip(Run((found,)), index, model, report)
    for result in found.results:
        mirrored = " (mirrored)" if result.flip else ""
        print(f"{result.rank:3} {result.score:+.5f} {result.id}{mirrored}  {result.caption}")
    if found.search is not None and found.search.how == "approximate":
        print(found.search.sentence, file=sys.stderr)


def _list_methods(index: Path | None) -> None:
    """Print every method: a line, its source, what it costs on this machine, or why it cannot be used."""

    def measuring(measured: tuple[str, Cost]) -> str:
        return f"measuring {measured[0]}"

    for name, cost in watch(costs(*opened(index)), measuring):
        entry = METHODS[name]
        spent = f"{cost.evaluations} evaluations, {cost.seconds:.2g} s, {cost.bytes / 1e6:.1f} MB"
        print(f"{name:14} {entry.line} ({entry.source}): {cost.missing or spent}")
