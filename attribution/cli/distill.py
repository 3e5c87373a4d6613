"""`python -m attribution distill`."""

from dataclasses import replace
from pathlib import Path

from attribution.cli.asked import check_folder, opened
from attribution.cli.parsing import Names, flags
from attribution.cli.progress import watch
from attribution.cli.stages import clock
from attribution.evaluate.distill import TrainSettings, asked_of, check_training, learn, vectors_of
from attribution.evaluate.distilled import judge
from attribution.evaluate.lessons import (
    BASES,
    Asked,
    Kind,
    LessonSettings,
    ask,
    check_lessons,
    fitted,
    lessons_in,
    made_of,
    names_of,
    read_lessons,
)
from attribution.index.added import add_joined
from attribution.index.towers import Towers
from attribution.index.typed import told_of

FILE = "fast.safetensors"
TOLD: dict[Kind, str] = {
    "query": "pictures for the default method",
    "quick": "pictures with a box for the source of its candidates",
    "held": "pictures held out",
}


@flags({TrainSettings: Names("train_")})
def distill(
    *,
    folder: Path,
    lessons: LessonSettings,
    training: TrainSettings,
    index: Path | None = None,
    add: bool = False,
) -> None:
    """Teach the method `fast`: generate pictures, ask the default method about them, train two small networks.

    Prints how well these find what the default method ranks first for pictures held out, beside DINO, CLIP, both
    features side by side, and others. Each picture is a file of the folder: interrupted, the command goes on where it
    was, and any number of processes share the pictures.

    Args:
        folder: of the pictures' answers, and of the networks, fast.safetensors.
        lessons: pictures that are asked about.
        training: of the networks.
        index: an index folder; the embedded one by default. It holds the features dino and clip-text.
        add: put the networks, and where they place each training image, into the index, for `--method fast`.
    """
    check_folder("--folder", folder)
    model, searched = opened(index)
    lessons = fitted(searched, lessons)
    check_lessons(searched, lessons)
    check_training(training, lessons.queries)
    queue, names = lessons_in(folder, searched, lessons), names_of(searched, lessons)
    for _ in watch(ask(queue, model, searched, lessons), _told, every=1):
        pass
    read = {kind: read_lessons(queue, each) for kind, each in names.items()}
    *_, towers = watch(learn(searched, read["query"], read["quick"], lessons.relevant, training), _said, every=1)
    assert isinstance(towers, Towers)
    told = {**made_of(searched), "lessons": told_of(lessons), "training": told_of(training)}
    towers = replace(towers, told=told)
    towers.write(folder / FILE)
    held = read["held"]
    print(judge(towers, vectors_of(searched, BASES), asked_of(held, BASES), held, lessons.relevant).table)
    if add:
        towers.write(searched.path / FILE)
        for _ in watch(add_joined(searched, model, "fast", searched.path / FILE), lambda step: step.step):
            pass
        print(f"added to {searched.path}: `--method fast`")


def _told(step: Asked) -> str:
    left = "" if step.left != step.left else f", {clock(step.left)} left"
    return f"{TOLD[step.kind]}: {step.done:,} of {step.count:,}{left}"


def _said(step: str | Towers) -> str:
    return step if isinstance(step, str) else "trained"
