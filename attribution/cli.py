"""The command line: `python -m attribution COMMAND`; see COMMANDS."""

import json
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import redirect_stderr
from dataclasses import asdict, replace
from functools import partial, wraps
from io import StringIO
from pathlib import Path
from typing import Any, Literal, TypeVar

import tyro

from attribution.errors import AttributionError, InputError

Boxes = tuple[tuple[float, float, float, float], ...]
Step = TypeVar("Step")


def scenes(out: Path, split: Literal["train", "heldout"] = "train") -> None:
    """Compose EmojiScenes, the embedded training set, as an imagefolder with metadata.jsonl.

    Args:
        out: a folder that does not exist yet.
        split: which scenes.
    """
    from attribution.scenes.compose import write_imagefolder

    try:
        print(write_imagefolder(out, split))
    except OSError as error:
        raise InputError(f"--out {out} cannot be written ({error})") from error


def index(
    out: Path,
    pretrained_model_name_or_path: str,
    dataset_name: str | None = None,
    train_data_dir: Path | None = None,
    image_column: str = "image",
    caption_column: str = "text",
    resolution: int | None = None,
    center_crop: bool = True,
    random_flip: bool = True,
    max_train_samples: int | None = None,
    timesteps: int = 10,
    noises: int = 1,
    start: float = 0.0,
    end: float = 1.0,
    fisher_samples: int = 16_384,
    fisher_all: bool = False,
    ekfac: bool = False,
    features: tuple[str, ...] = (),
    feature_weights: tuple[tuple[str, str], ...] = (),
    gradients: tuple[str, ...] = (),
    projection_dimension: int = 4096,
    checkpoints: tuple[str, ...] = (),
    batch: int = 64,
) -> None:
    """Build, or go on building, the index of a training set and a model; with the same settings, add to it.

    Args:
        out: the index folder.
        pretrained_model_name_or_path: a StableDiffusionPipeline folder or hub id.
        dataset_name: a hub id for `datasets`.
        train_data_dir: an imagefolder with metadata.jsonl, instead.
        image_column: column of the images.
        caption_column: column of the captions.
        resolution: px; the model's own by default, and another value is refused.
        center_crop: cut the middle square of each image; otherwise squeeze it.
        random_flip: the model was trained with mirrored images.
        max_train_samples: only the first so many images.
        timesteps: of the noise bank that scores are measured with.
        noises: per timestep.
        start: where the noise bank's timesteps begin, as a share of the schedule.
        end: where they end.
        fisher_samples: gradients that the Fisher information is estimated from.
        fisher_all: add the Fisher information of all weights, to unlearn other subsets.
        ekfac: add EK-FAC, for "unlearning+".
        features: to add, for the methods of these names: clip, clip-text, dino, dinov2, clip-abc, dino-abc.
        feature_weights: NAME FOLDER pairs; the published networks by default.
        gradients: to add: loss (for trak and journey-trak), d-trak, influence.
        projection_dimension: of the gradients.
        checkpoints: pipelines whose U-Nets the gradients are averaged over.
        batch: predictions in one call of the U-Net.
    """
    from attribution.diffusion.noise import NoiseSettings
    from attribution.diffusion.pipeline import Model
    from attribution.evaluate.bench import peak_memory
    from attribution.index.build import build
    from attribution.index.data import DataSettings
    from attribution.index.work import BuildSettings, ExtendSettings
    from attribution.unlearning.fisher import FisherSettings
    from attribution.unlearning.projection import GradientSettings

    model = Model.load(pretrained_model_name_or_path)
    if resolution not in (None, model.resolution):
        raise InputError(
            f"--resolution {resolution} is not possible; {model.source} was made for {model.resolution} px, which is"
            " the default"
        )
    data = DataSettings(
        dataset_name=dataset_name,
        train_data_dir=train_data_dir,
        image_column=image_column,
        caption_column=caption_column,
        center_crop=center_crop,
        random_flip=random_flip,
        max_train_samples=max_train_samples,
    )
    settings = BuildSettings(
        data, NoiseSettings(timesteps, noises, start=start, end=end), FisherSettings(samples=fisher_samples), batch
    )
    more = ExtendSettings(
        fisher_all=fisher_all,
        ekfac=ekfac,
        features=features,
        feature_weights=dict(feature_weights),
        gradients=gradients,
        projection=GradientSettings(dimension=projection_dimension),
        checkpoints=checkpoints,
    )

    for _ in _watch(build(out, model, settings, more), lambda step: f"{step.step} {step.done}/{step.total}"):
        pass
    print(f"{peak_memory():.0f} MB of memory at most", file=sys.stderr)
    print(out)


def generate(prompt: str, out: Path, seed: int = 0, index: Path | None = None) -> None:
    """Generate a picture with the index's model.

    Args:
        prompt: what to draw.
        out: a PNG file.
        seed: 0 to 2**63 - 1.
        index: an index folder; the embedded one by default.
    """
    from attribution.scenes.world import open_world_or

    _check_file(out)
    model, _ = open_world_or(index)
    model.generate(prompt, seed).save(out)
    print(out)


def attribute(
    prompt: str | None = None,
    seed: int | None = None,
    image: Path | None = None,
    box: Boxes = (),
    word: str | None = None,
    method: str = "unlearning",
    exhaustive: bool = False,
    top_k: int = 10,
    score: Literal["difference", "skew"] = "difference",
    weights: Literal["cross-attn-kv", "cross-attn", "attn", "all"] | None = None,
    steps: int = 1,
    step_size: float | None = None,
    index: Path | None = None,
    out: Path | None = None,
    report: Path | None = None,
) -> None:
    """Find the training images that a picture is made of.

    Args:
        prompt: that the picture was, or is to be, generated from.
        seed: generates the picture; not with --image.
        image: a picture that exists already.
        box: x0 y0 x1 y1 in pixels; several boxes are joined.
        word: of the prompt, instead of boxes: where the picture attends to it.
        method: one of the methods; "list" prints them with what each costs here.
        exhaustive: score every image on all noises, instead of halving.
        top_k: how many training images to report.
        score: how losses before and after unlearning are compared.
        weights: that unlearning changes; the index's own by default.
        steps: of unlearning.
        step_size: of each step; the method's own by default.
        index: an index folder; the embedded one by default.
        out: a JSON file.
        report: a ZIP with the picture, results, thumbnails and an HTML page, which `replay` answers again.
    """
    from PIL import Image

    from attribution.answers.report import Run, write_json, write_zip
    from attribution.diffusion.pictures import open_upload
    from attribution.diffusion.tokens import check_prompt
    from attribution.methods import attribute as answer
    from attribution.methods import check_settings
    from attribution.methods.answer import AttributeSettings, Attribution, Progress
    from attribution.query.query import Query
    from attribution.query.regions import check_query
    from attribution.scenes.world import open_world_or
    from attribution.unlearning.step import UnlearnSettings

    if method == "list":
        return _list_methods(index)
    if prompt is None:
        raise InputError("--prompt is missing; describe the picture in a few words")
    check_prompt(prompt)
    _check_file(out)
    _check_file(report)
    if image is not None and seed is not None:
        raise InputError("name either --image or --seed: a picture that exists is not generated")
    upload = None if image is None else open_upload(image)
    model, opened = open_world_or(index)
    if upload is None:  # refused now, rather than after generating
        blank = Image.new("RGB", (model.resolution, model.resolution))
        check_query(Query(prompt, blank, seed or 0, box, word), model, opened.center_crop)
    unlearn = replace(UnlearnSettings(), weights=weights, steps=steps, step_size=step_size)
    settings = check_settings(
        model,
        opened,
        replace(AttributeSettings(), method=method, exhaustive=exhaustive, top_k=top_k, score=score, unlearn=unlearn),
    )
    tokens = model.tokens.count(prompt)
    if tokens.count > tokens.limit:
        print(f"the prompt has {tokens.count} tokens, {tokens.limit} are read: {tokens.kept!r}", file=sys.stderr)
    picture = upload or model.generate(prompt, seed or 0)
    query = Query(prompt, picture, None if upload else seed or 0, box, word)

    def describe(step: Progress | Attribution) -> str:
        if isinstance(step, Attribution):
            return "done"
        eta = "" if step.eta is None else f", {step.eta:.0f} s left"
        return f"{step.stage} {step.evaluations}/{step.total} evaluations{eta}"

    for step in _watch(answer(model, opened, query, settings), describe):
        if isinstance(step, Attribution):
            for result in step.results:
                mirrored = " (mirrored)" if result.flip else ""
                print(f"{result.rank:3} {result.score:+.5f} {result.id}{mirrored}  {result.caption}")
            if out is not None:
                write_json(step, out)
            if report is not None:
                write_zip(Run((step,)), opened, model, report)
    return None


def replay(run: tyro.conf.Positional[Path], index: Path | None = None) -> None:
    """Answer a run again, and say whether each ranking is the same.

    Args:
        run: a ZIP that `attribute --report` or the page wrote.
        index: the run's index; the embedded one by default.
    """
    from attribution.answers.report import Replayed, read_zip
    from attribution.answers.report import replay as again
    from attribution.methods.answer import Progress
    from attribution.scenes.world import open_world_or

    kept = read_zip(run)
    model, opened = open_world_or(index)

    def describe(step: Progress | Replayed) -> str:
        return f"{step.stage} {step.evaluations}/{step.total} evaluations" if isinstance(step, Progress) else "done"

    for step in _watch(again(model, opened, kept), describe):
        if isinstance(step, Replayed):
            for method, rank in step.differs.items():
                print(f"{method}: {'the same ranking' if rank is None else f'differs from rank {rank} on'}")


def detect(
    image: Path,
    labels: str,
    prompt: str | None = None,
    detector: str | None = None,
    threshold: float | None = None,
    index: Path | None = None,
    out: Path | None = None,
) -> None:
    """Find objects in a picture by their names.

    Args:
        image: a picture.
        labels: names, such as "apple . motorcycle".
        prompt: of the picture: where no detector can be had, its words are looked for by cross-attention.
        detector: a GroundingDINO's folder, `.pth` file or hub id; the embedded world's by default, else the published.
        threshold: 0 to 1, the least score; the detector's own by default.
        index: an index folder; the embedded one by default.
        out: a JSON file.
    """
    from attribution.diffusion.pictures import open_upload
    from attribution.query.detect import find
    from attribution.query.labels import check_labels, check_threshold, parse_labels
    from attribution.scenes.world import open_world_or

    _check_file(out)
    wanted = check_labels(parse_labels(labels))
    picture = open_upload(image)
    if threshold is not None:
        check_threshold(threshold)
    model, opened = open_world_or(index)
    found = find(model, opened, picture, wanted, prompt or labels, threshold, detector)
    print(found.by, file=sys.stderr)
    for each in found.detections:
        print(f"{each.score:.3f} {', '.join(f'{side:.1f}' for side in each.box)}  {each.label}")
    if out is not None:
        text = json.dumps({"by": found.by, "detections": [asdict(each) for each in found.detections]}, indent=1)
        out.write_text(text + "\n", encoding="utf-8")


def floor(index: Path | None = None, pictures: int = 8) -> None:
    """Measure what unrelated pictures reach, below which an answer has no clear source; written into the index.

    Args:
        index: an index folder; the embedded one by default.
        pictures: unrelated pictures that are attributed.
    """
    from attribution.answers.floor import FloorProgress, measure_floor
    from attribution.methods.answer import Progress
    from attribution.scenes.world import open_world_or

    model, opened = open_world_or(index)

    def describe(step: Progress | FloorProgress) -> str:
        if isinstance(step, Progress):
            return f"{step.stage} {step.evaluations}/{step.total} evaluations"
        return f"picture {step.done} of {step.count}"

    for step in _watch(measure_floor(model, opened, pictures), describe):
        if isinstance(step, FloorProgress):
            print(f"{step.done:3} of {step.count}: {step.multiple:.1f}")
    print(json.dumps(opened.floor))


def _list_methods(index: Path | None) -> None:
    """Print every method: a line, its source, what it costs on this machine, or why it cannot be used."""
    from attribution.evaluate.bench import Cost, costs
    from attribution.methods import METHODS
    from attribution.scenes.world import open_world_or

    model, opened = open_world_or(index)

    def describe(measured: tuple[str, Cost]) -> str:
        return f"measuring {measured[0]}"

    for name, cost in _watch(costs(model, opened), describe):
        entry = METHODS[name]
        spent = f"{cost.evaluations} evaluations, {cost.seconds:.2g} s, {cost.bytes / 1e6:.1f} MB"
        print(f"{name:14} {entry.line} ({entry.source}): {cost.missing or spent}")


def evaluate(
    what: tyro.conf.Positional[Literal["locality", "tuning"]],
    out: Path,
    pictures: int = 60,
    rows: tuple[str, ...] = (),
    index: Path | None = None,
) -> None:
    """Measure how well methods find the objects of generated pictures; resumable.

    Args:
        what: locality: precision@10 of boxed objects by the scenes' own metadata; tuning: the same over a grid of
            settings, on other pictures.
        out: a JSON-lines file; what it holds already is not measured again.
        pictures: generated pictures, two objects each.
        rows: methods and their variants, such as "unlearning" or "unlearning, all"; all that the index can answer by
            default.
        index: an index folder; the embedded one by default.
    """
    from attribution.evaluate import locality, tuning
    from attribution.scenes.world import open_world_or

    model, opened = open_world_or(index)
    if unknown := [row for row in rows if row not in locality.ROWS]:
        raise InputError(f"there is no row {unknown[0]!r}; accepted are {', '.join(locality.ROWS)}")
    if what == "tuning":
        steps = tuning.tune(model, opened, tuning.TuningSettings(pictures=pictures), out)
    else:
        wanted = locality.LocalitySettings(pictures=pictures, rows=rows or locality.available(model, opened))
        steps = locality.measure(model, opened, wanted, out)
    for _ in _watch(steps, str):
        pass
    print(tuning.summary(out) if what == "tuning" else locality.summary(out, opened))


def bench(queries: int = 10, out: Path | None = None, index: Path | None = None) -> None:
    """Measure seconds and resident memory of generating and attributing pictures on this machine.

    Args:
        queries: pictures generated and attributed.
        out: a JSON file.
        index: an index folder; the embedded one by default.
    """
    from attribution.evaluate.bench import BenchSettings
    from attribution.evaluate.bench import bench as measure
    from attribution.scenes.world import open_world_or

    _check_file(out)
    model, opened = open_world_or(index)
    *_, summary = _watch(measure(model, opened, BenchSettings(queries)), str)
    text = json.dumps(summary, indent=1)
    print(text)
    if out is not None:
        out.write_text(text + "\n", encoding="utf-8")


COMMANDS: dict[str, Callable[..., None]] = {
    "scenes": scenes,
    "index": index,
    "generate": generate,
    "attribute": attribute,
    "detect": detect,
    "replay": replay,
    "floor": floor,
    "evaluate": evaluate,
    "bench": bench,
}


def _watch(steps: Iterable[Step], describe: Callable[[Step], str]) -> Iterator[Step]:
    """Show each step on standard error: rewritten in place on a terminal, else now and then a line."""
    terminal = sys.stderr.isatty()
    last = ""
    for number, step in enumerate(steps):
        last = describe(step)
        if terminal:
            print(f"\r\033[K{last}", end="", file=sys.stderr, flush=True)
        elif number % 50 == 0:
            print(last, file=sys.stderr, flush=True)
        yield step
    print("\r\033[K" if terminal else last, file=sys.stderr)


def _check_file(out: Path | None) -> None:
    """Refuse, before any work, a file that could not be written after it."""
    if out is not None and (out.is_dir() or not out.absolute().parent.is_dir()):
        raise InputError(f"--out {out} cannot be written; name a file in a folder that exists")


def _parse(arguments: list[str] | None) -> Callable[[], None]:
    """The command that the arguments name, bound to their values, not yet run.

    Raises:
        InputError: they do not parse; tyro's panel in one line.
    """

    def bound(command: Callable[..., None]) -> Callable[..., Callable[[], None]]:
        @wraps(command)
        def bind(*values: Any, **named: Any) -> Callable[[], None]:
            return partial(command, *values, **named)

        return bind

    panel = StringIO()
    try:
        with redirect_stderr(panel):
            command: Callable[[], None] = tyro.extras.subcommand_cli_from_dict(
                {name: bound(command) for name, command in COMMANDS.items()},
                prog="python -m attribution",
                args=arguments,
            )
    except SystemExit as leaving:
        if not leaving.code:  # --help
            raise
        lines = (line.strip("│╰╯─ ") for line in panel.getvalue().splitlines() if not line.startswith("╭"))
        raise InputError(" ".join(filter(None, lines)).split(" For full helptext")[0]) from None
    return command


def main(arguments: list[str] | None = None) -> int:
    """Run a command; 0, or 2 with one line on standard error for what a person can mend."""
    try:
        _parse(arguments)()
    except AttributionError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130
    return 0
