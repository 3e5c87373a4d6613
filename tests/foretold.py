"""Is `index --dry_run` right? `python tests/foretold.py` asks it, builds the index, and compares them step by step.

The model is one of Stable Diffusion 1.5's shape with random weights, or `--model FOLDER`; the training images are
scenes. Both are done in processes of their own. On a CPU seconds are the processor's, so that other work on the machine
does not count. Prints, as JSON, for each step what was foretold and what it took: seconds, bytes, and the most memory.
"""

import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Literal
from unittest.mock import patch

import torch
import tyro

sys.path.insert(0, str(Path(__file__).parent.parent))

from real_size import random_pipeline, scenes_of

from attribution.diffusion.noise import NoiseSettings
from attribution.diffusion.pipeline import Model, default_device
from attribution.index import plan as planning
from attribution.index.build import LOOKED_AT, BuildProgress, build
from attribution.index.checksums import written
from attribution.index.data import DataSettings
from attribution.index.plan import plan
from attribution.index.work import BuildSettings, ExtendSettings
from attribution.unlearning.fisher import FisherSettings
from attribution.unlearning.projection import GradientSettings

CLOCK = time.monotonic if torch.cuda.is_available() else time.process_time
Told = dict[str, dict[str, float]]


@contextmanager
def processor() -> Iterator[None]:
    """A context in which a dry run reads this file's clock."""
    with patch.object(planning, "time", SimpleNamespace(monotonic=CLOCK)):
        yield


def foretold(folder: Path, model: Model, settings: BuildSettings, more: ExtendSettings) -> Told:
    """What the dry run says of each step."""
    with processor():
        costs = list(plan(folder / "index", model, settings, more))
    return {each.name: {"s": each.seconds, "bytes": each.bytes, "memory": each.memory >> 20} for each in costs}


def built(folder: Path, model: Model, settings: BuildSettings, more: ExtendSettings) -> Told:
    """What each step takes."""
    found, began, under_way = dict[str, dict[str, float]](), CLOCK(), LOOKED_AT

    def see(progress: BuildProgress) -> None:
        """Time goes to the step that it was spent in, the moment before the next begins."""
        nonlocal began, under_way
        now = CLOCK()
        held = found.setdefault(under_way, {"s": 0.0})
        held["s"], began, under_way = held["s"] + now - began, now, progress.step

    with planning.peak_of(model.device) as peak:
        for progress in build(folder / "index", model, settings, more, see):
            see(progress)
    see(progress)
    for name, held in found.items():
        held["bytes"] = sum(path.stat().st_size for path in written(folder / "index", name))
    return {**found, "all": {"s": sum(each["s"] for each in found.values()), "memory": peak[0] >> 20}}


def main(
    model: Path | None = None,
    images: int = 6,
    timesteps: int = 1,
    samples: int = 6,
    gradients: bool = False,
    part: Literal["foretold", "built"] | None = None,
    within: Path | None = None,
) -> None:
    """Compare.

    Args:
        model: a pipeline's folder, in place of a random one.
        images: of the training set.
        timesteps: of the noise bank.
        samples: of the Fisher information.
        gradients: EK-FAC and D-TRAK's gradients, too.
        part: of a process that measures.
        within: the folder that it is given.
    """
    if part is None or within is None:
        with tempfile.TemporaryDirectory() as made:
            asked = [sys.executable, __file__, *sys.argv[1:], "--within", made, "--part"]
            foreseen, took = (_asked([*asked, each]) for each in ("foretold", "built"))
        for name, held in took.items():
            print(json.dumps({"step": name, "foretold": foreseen.get(name, _whole(foreseen)), "built": held}))
        return
    with default_device():
        loaded = Model.load(model, default_device()) if model else Model(random_pipeline(False), "random")
    _ = loaded.sha256  # of all weights, which takes seconds of no step
    data = scenes_of(within / "data", loaded.resolution, images)
    settings = BuildSettings(DataSettings(train_data_dir=data), NoiseSettings(timesteps))
    settings = replace(settings, fisher=FisherSettings(samples=samples))
    names = ("d-trak",) if gradients else ()
    more = ExtendSettings(ekfac=gradients, gradients=names, projection=GradientSettings(dimension=512))
    print(json.dumps((foretold if part == "foretold" else built)(within, loaded, settings, more)))


def _asked(command: list[str]) -> Any:
    return json.loads(subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout)


def _whole(costs: Told) -> dict[str, float]:
    steps = [each for name, each in costs.items() if name not in planning.QUERIES]
    return {"s": sum(each["s"] for each in steps), "memory": max(each["memory"] for each in steps)}


if __name__ == "__main__":
    tyro.cli(main)
