"""Make the finished runs that open on the page at once: `python -m attribution.scenes.examples`.

A box that the detector found, a word of the prompt whose object the picture lacks, and an unrelated picture, which has
no clear source.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import tyro

from attribution.answers.drawn import DRAWN
from attribution.answers.report import write_zip
from attribution.answers.run import Run
from attribution.answers.verdict import verdict_of
from attribution.diffusion.pipeline import Model
from attribution.index.index import Index
from attribution.methods import attribute
from attribution.methods.answer import AttributeSettings, Attribution
from attribution.query.grounding import open_detector
from attribution.query.query import Query
from attribution.scenes.world import open_world

UNRELATED = "tomorrow's arithmetic examination is postponed"
METHODS = ("ensemble", "influence+", "d-trak", "dino", "clip")


@dataclass
class ExamplesArgs:
    """Make the examples.

    Attributes:
        out: their folder.
        detector: folder of the detector whose box is asked about.
    """

    out: Path = Path("assets/emoji-scenes/examples")
    detector: Path = Path("assets/emoji-scenes/detector")


def queries(model: Model, detector: Path) -> list[tuple[str, Query]]:
    """What is asked, and what its box is called."""
    named, boxed = "motorcycle", "a flat drawing of a red apple and a motorcycle on a blue background"
    picture = model.generate(boxed, 7)
    found = open_detector(str(detector), torch.device("cpu")).detect(picture, [named])
    x0, y0, x1, y1 = (round(side, 1) for side in found[0].box)  # as the page's table has it
    worded = "a line drawing of a pineapple and a penguin on a green background"
    return [
        (named, Query(boxed, picture, 7, ((x0, y0, x1, y1),))),
        ("", Query(worded, model.generate(worded, 3), 3, word="pineapple")),
        ("", Query(UNRELATED, DRAWN["noise"](np.random.default_rng(12), model.resolution))),
    ]


def answered(model: Model, index: Index, query: Query, label: str) -> Run:
    """One run by every one of METHODS."""
    answers: list[Attribution] = []
    for method in METHODS:
        *_, answer = attribute(model, index, query, AttributeSettings(method=method))
        assert isinstance(answer, Attribution)
        answers.append(answer)
    return Run(tuple(answers), label=label)


def main(args: ExamplesArgs) -> None:
    """Ask, and write each run without what can be made of it again."""
    model, index = open_world()
    args.out.mkdir(parents=True, exist_ok=True)
    for label, query in queries(model, args.detector):
        run = answered(model, index, query, label)
        path = args.out / f"{run.id}.zip"
        write_zip(run, index, model, path, whole=False)
        print(path, query.prompt, verdict_of(run.answers[0], index).title)


if __name__ == "__main__":
    main(tyro.cli(ExamplesArgs))
